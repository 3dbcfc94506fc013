"""Mail into an LMTP server: over a port and over a socket, a result for each recipient."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.processes.daemon import Smtpd, until
from tests.processes.delivery.test_local_delivery import LISTEN, MATCH, at_rest, status_of
from tests.processes.lmtp_server import LmtpServer
from tests.processes.local import Place

StartSmtpd = Callable[..., Smtpd]


@pytest.fixture
def lmtp() -> Iterator[LmtpServer]:
    server = LmtpServer()
    yield server
    server.close()


def config(place: Place, destination: object, options: str = "") -> str:
    return (
        LISTEN
        + place.userbase("bob", "eve")
        + f'action "local" lmtp "{destination}" {options} userbase <users>\n'
        + 'action "home" maildir userbase <users>\n'
        + MATCH
        + 'match for domain "sender.test" action "home"\n'
    )


@pytest.fixture(scope="module")
def lasting_lmtp() -> Iterator[LmtpServer]:
    server = LmtpServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def lasting_smtpd(
    lasting_place: Place, lasting_lmtp: LmtpServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Smtpd]:
    """For tests that change only what the LMTP server answers."""
    smtpd = Smtpd(tmp_path_factory.mktemp("smtpd"), config(lasting_place, f"127.0.0.1:{lasting_lmtp.port}"))
    yield smtpd
    smtpd.stop()


@pytest.fixture
def answers(request: pytest.FixtureRequest, lasting_smtpd: Smtpd, lasting_lmtp: LmtpServer) -> Iterator[None]:
    """The LMTP server answers so; then nothing of the mail is left."""
    lasting_lmtp.answers = dict(request.param)
    yield
    lasting_smtpd.smtpctl("remove", "all")
    until(lambda: at_rest(lasting_smtpd), "rest")


def test_one_session_for_all_recipients_of_a_message(start_smtpd: StartSmtpd, place: Place, lmtp: LmtpServer) -> None:
    smtpd = start_smtpd(config(place, f"127.0.0.1:{lmtp.port}"))
    smtpd.send("bob@here.test", "Eve+tag@here.test", text="Subject: hi\r\n\r\n.dot\r\nend\r\n")
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 2, "two deliveries")
    ((sender, recipients, text),) = lmtp.mail
    assert (sender, sorted(recipients)) == ("a@sender.test", ["bob", "eve"])
    assert text.startswith(b"Received: ")
    assert text.endswith(b"\r\n\r\n..dot\r\nend\r\n")
    assert lmtp.sessions == 1


def test_a_local_socket_and_recipients_by_address(start_smtpd: StartSmtpd, place: Place) -> None:
    server = LmtpServer(place.root / "lmtp.sock")
    try:
        smtpd = start_smtpd(config(place, place.root / "lmtp.sock", "rcpt-to"))
        smtpd.send("Bob@here.test")
        until(lambda: smtpd.stats().get("mda.delivery.ok") == 1, "delivery")
        ((_, recipients, text),) = server.mail
        assert recipients == ["Bob@here.test"]
        assert text.startswith(b"Return-Path: <a@sender.test>\r\nDelivered-To: Bob@here.test\r\nReceived: ")
    finally:
        server.close()


def test_each_recipient_has_its_own_answer_after_the_dot(
    start_smtpd: StartSmtpd, place: Place, lmtp: LmtpServer
) -> None:
    lmtp.answers |= {"END bob": "452 4.2.2 over quota", "END eve": "250 kept"}
    smtpd = start_smtpd(config(place, f"127.0.0.1:{lmtp.port}"))
    smtpd.send("bob@here.test", "eve@here.test")
    assert status_of(smtpd) == "452 4.2.2 over quota"
    assert smtpd.stats()["mda.delivery.ok"] == 1
    del lmtp.answers["END bob"]
    smtpd.try_again()
    until(lambda: len(lmtp.mail) == 2, "the second try")
    assert lmtp.mail[1][1] == ["bob"]


def test_a_refused_recipient_is_bounced(start_smtpd: StartSmtpd, place: Place, lmtp: LmtpServer) -> None:
    lmtp.answers |= {"RCPT bob": "550 5.1.1 no such mailbox"}
    smtpd = start_smtpd(config(place, f"127.0.0.1:{lmtp.port}"))
    smtpd.send("bob@here.test", "eve@here.test", sender="eve@sender.test")
    until(lambda: place.mail("eve"), "the bounce")
    assert b"550 5.1.1 no such mailbox" in place.mail("eve")[0]
    assert [recipients for _, recipients, _ in lmtp.mail] == [["eve"]]


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ({"connect": "421 not now"}, "451 4.3.0 greeting: 421 not now"),
        ({"connect": ""}, "451 4.4.2 The LMTP server hung up"),
        ({"LHLO": "500 what?"}, "451 4.3.0 LHLO: 500 what?"),
        ({"MAIL": "451 4.3.0 no"}, "451 4.3.0 no"),
        ({"DATA": ""}, "451 4.4.2 The LMTP server hung up"),
        ({"END bob": ""}, "451 4.4.2 The LMTP server hung up"),
        ({"MAIL": "nonsense"}, "451 4.5.0 LMTP: not a reply line: 'nonsense'"),
    ],
    indirect=["answers"],
)
@pytest.mark.usefixtures("answers")
def test_trouble_keeps_the_mail(lasting_smtpd: Smtpd, status: str) -> None:
    lasting_smtpd.send("bob@here.test")
    assert status_of(lasting_smtpd) == status


def test_no_server_there(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(config(place, place.root / "lmtp.sock"))
    smtpd.send("bob@here.test")
    assert status_of(smtpd) == "451 4.4.1 local: No such file or directory"
    lmtp = LmtpServer()
    lmtp.close()
    smtpd = start_smtpd(config(place, f"127.0.0.1:{lmtp.port}"))
    smtpd.send("bob@here.test")
    assert status_of(smtpd).startswith("451 4.4.1 127.0.0.1")


@pytest.mark.parametrize(
    "answers", [{}, {"connect": ""}, {"RCPT bob": "450 no"}, {"DATA": ""}, {"END bob": ""}], indirect=True
)
@pytest.mark.usefixtures("answers")
def test_sessions_leave_no_descriptor(lasting_smtpd: Smtpd, lasting_lmtp: LmtpServer) -> None:
    def deliver(count: int) -> int:
        lasting_smtpd.smtpctl("remove", "all")
        before = lasting_lmtp.sessions
        for _ in range(count):
            lasting_smtpd.send("bob@here.test")
        until(lambda: lasting_lmtp.sessions == before + count, "sessions")
        until(lambda: at_rest(lasting_smtpd), "rest")
        return len(lasting_smtpd.descriptors("delivery"))

    first = deliver(2)
    until(lambda: deliver(6) == first, "no more descriptors than before")
