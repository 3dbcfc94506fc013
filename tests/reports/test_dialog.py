"""What is written as a dialogue is read back as what was said."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from reports.dialog import dialog
from reports.record import Conditions, PlannedSession, PlannedStep
from tests.dialogs.dialog import Step, raw, read

ANY = st.lists(st.characters(max_codepoint=255), max_size=60).map("".join)
LINES = st.lists(st.sampled_from(["MAIL FROM:<a@b.test>", "", "x" * 300, ".", "# no comment"])).map(
    lambda lines: "".join(f"{line}\r\n" for line in lines)
)


def written(path: Path, *sessions: PlannedSession, conditions: Conditions | None = None) -> tuple[str, list[Step]]:
    text = dialog(["what leaks"], conditions or Conditions(), sessions)
    path.write_text(text)
    return text, list(read(path).steps)


def sent(steps: list[Step]) -> bytes:
    return b"".join(
        raw(step.text) if step.verb == "C!" else f"{step.text}\r\n".encode() for step in steps if step.verb[0] == "C"
    )


@given(said=st.lists(st.one_of(ANY, LINES), max_size=4))
def test_bytes_come_back(said: list[str], tmp_path_factory: object) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "one.smtp"  # type: ignore[attr-defined]
    _, steps = written(path, PlannedSession(1, steps=[PlannedStep(text) for text in said], end="fin"))
    assert sent(steps) == "".join(said).encode("latin-1")


def test_it_reads_as_it_was_said(tmp_path: Path) -> None:
    steps = [
        PlannedStep(),
        PlannedStep("EHLO x.test\r\n"),
        PlannedStep("STARTTLS\r\n", tls=True),
        PlannedStep("RCPT TO:<a@b.test>\r\n", expect="25"),
        PlannedStep("DATA\r\n", expect="3"),
        PlannedStep("Message-ID: <{id}>\r\n\r\n", expect=""),
        PlannedStep(("s" * 62 + "\r\n") * 32, expect=""),
        PlannedStep(".\r\n", accepts=True),
    ]
    conditions = Conditions(refuses="rcpt=550", hold_backlog=True, needs=["tls"], operations=["trace", "vanish"])
    text, _ = written(
        tmp_path / "a.smtp",
        PlannedSession(1, steps=steps),
        PlannedSession(1, steps=[PlannedStep()], end="rst"),
        PlannedSession(1, steps=[PlannedStep("NO", pause_s=0.5, piece_bytes=1)], end="silence"),
        conditions=conditions,
    )
    assert text == (
        "# what leaks\n"
        "# The remote MX: rcpt=550; it greets nobody before the mail is there.\n"
        "# The server needs tls.\n"
        "# An operator meanwhile: trace, vanish.\n"
        "S: 2xx\n"
        "C: EHLO x.test\n"
        "S: 2xx\n"
        "C: STARTTLS\n"
        "S: 2xx\n"
        "-- tls\n"
        "C: RCPT TO:<a@b.test>\n"
        "S: [25]xx\n"
        "C: DATA\n"
        "S: 3xx\n"
        "C: Message-ID: <shrunk@sender.test>\n"
        "C:\n"
        "C! {{s*62}\\r\\n*32}\n"
        "C: .\n"
        "S: 2xx\n"
        "C: QUIT\n"
        "S: 2xx\n"
        "-- reconnect\n"
        "S: 2xx\n"
        "-- reset\n"
        "-- reconnect\n"
        "-- wait 0.5\n"
        "C! N\n"
        "-- wait 0.5\n"
        "C! O\n"
        "S: 2xx\n"
        "S: silence\n"
        "-- reset\n"
    )
