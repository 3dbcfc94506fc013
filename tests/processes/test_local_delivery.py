"""Mail into maildirs, mboxes, programs and LMTP servers of this machine."""

from __future__ import annotations

import os
import signal
import smtplib
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from harness import agent
from harness.probes import agent as agent_probe
from tests.processes.daemon import Smtpd, until
from tests.processes.local import GID, UID, Place

StartSmtpd = Callable[..., Smtpd]
LISTEN = "listen on 127.0.0.1 port 0\n"
MATCH = 'match from any for domain "here.test" action "local"\n'


def config(place: Place, action: str, *users: str) -> str:
    return LISTEN + place.userbase(*(users or ("bob", "eve"))) + f'action "local" {action} userbase <users>\n' + MATCH


def at_rest(smtpd: Smtpd) -> bool:
    stats = smtpd.stats()
    return not stats["mda.envelope"] and smtpd.at_rest()


def status_of(smtpd: Smtpd) -> str:
    """The last error of the one envelope in the queue."""
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail"), "a temporary failure")
    (line,) = smtpd.smtpctl("show", "queue").stdout.splitlines()
    return line.rsplit("|", 1)[1]


# ---- maildir


def test_mail_lands_in_a_maildir_with_its_envelope_in_the_header(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(config(place, "maildir"))
    smtpd.send("bob@here.test", text="Subject: hi\r\n\r\n.dot\r\nline\r\n")
    until(lambda: place.mail("bob"), "delivery")
    (text,) = place.mail("bob")
    lines = text.split(b"\n")
    assert lines[:2] == [b"Return-Path: <a@sender.test>", b"Delivered-To: bob@here.test"]
    assert lines[2].startswith(b"Received: from client.test")
    assert text.endswith(b"Subject: hi\n\n.dot\nline\n")
    assert b"\r" not in text
    (path,) = (place.home("bob") / "Maildir" / "new").iterdir()
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (UID, GID, 0o600)
    assert stat.S_IMODE((place.home("bob") / "Maildir").stat().st_mode) == 0o700
    assert not list((place.home("bob") / "Maildir" / "tmp").iterdir())
    until(lambda: at_rest(smtpd), "rest")
    until(lambda: not [path for path in smtpd.spool.rglob("*") if path.is_file()], "an empty spool")
    assert smtpd.stats()["mda.delivery.ok"] == 1


def test_a_path_is_filled_in_and_no_address_leaves_it(start_smtpd: StartSmtpd, place: Place) -> None:
    path = place.home("bob") / "%{dest.domain:uppercase}" / "%{dest.user[0]}" / "%{rcpt.user}"
    smtpd = start_smtpd(
        LISTEN
        + place.userbase("bob")
        + f'table v {{ "@here.test" = bob }}\naction "local" maildir "{path}" virtual <v> userbase <users>\n'
        + MATCH
    )
    smtpd.send("zoe@here.test", '"../../../etc"@here.test')
    home = place.home("bob") / "HERE.TEST"
    until(lambda: len(list(home.glob("*/*/new/*"))) == 2, "two deliveries")
    assert {str(path.relative_to(home)) for path in home.glob("*/*")} == {"z/zoe", ":/:.:..:..:etc"}


def test_the_tag_chooses_a_folder_that_is_there_and_spam_goes_to_junk(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(config(place, "maildir junk"))
    smtpd.send("bob@here.test")
    until(lambda: place.mail("bob"), "delivery")
    folder = place.home("bob") / "Maildir" / ".lists"
    folder.mkdir()
    os.chown(folder, UID, GID)
    smtpd.send("bob+lists@here.test")
    smtpd.send("bob+other@here.test")
    smtpd.send("bob@here.test", text="X-Spam: Yes, score 9\r\nSubject: buy\r\n\r\nnow\r\n")
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 4, "four deliveries")
    assert len(place.mail("bob", "Maildir/.lists")) == 1
    assert len(place.mail("bob")) == 2
    assert len(place.mail("bob", "Maildir/.Junk")) == 1


def test_a_mailbox_that_cannot_be_written_keeps_the_mail_in_the_queue(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(config(place, "maildir"))
    blocker = place.home("bob") / "Maildir"
    blocker.write_text("no directory")
    smtpd.send("bob@here.test")
    assert "Maildir/tmp" in status_of(smtpd)
    blocker.unlink()
    smtpd.smtpctl("schedule", "all")
    until(lambda: place.mail("bob"), "delivery")


def test_pause_mda_holds_local_mail(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(config(place, "maildir"))
    assert smtpd.smtpctl("pause", "mda").stdout == "command succeeded\n"
    assert "MDA paused" in smtpd.smtpctl("show", "status").stdout
    smtpd.send("bob@here.test")
    until(lambda: smtpd.stats()["scheduler.envelope"], "the envelope")
    assert not place.mail("bob")
    smtpd.smtpctl("resume", "mda")
    until(lambda: place.mail("bob"), "delivery")


def test_mail_that_was_delivered_here_before_is_a_loop(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(config(place, "maildir"))
    smtpd.send("bob@here.test", sender="eve@here.test", text="Delivered-To: BOB@here.test\r\nSubject: x\r\n\r\n\r\n")
    until(lambda: place.mail("eve"), "the bounce")
    assert b"5.4.6" in place.mail("eve")[0]
    assert not place.mail("bob")
    assert smtpd.stats()["scheduler.delivery.loop"] == 1


def test_users_limits_hold_and_nobody_waits_behind_another(start_smtpd: StartSmtpd, place: Place) -> None:
    gate = place.root / "gate"
    os.mkfifo(gate, 0o666)
    gate.chmod(0o666)
    smtpd = start_smtpd(
        "mda limit max-session 3\nmda limit max-session-per-user 2\n" + config(place, f'mda "/bin/cat {gate}"')
    )
    for _ in range(5):
        smtpd.send("bob@here.test")
    until(lambda: smtpd.stats()["mda.envelope"] == 5, "five deliveries")
    assert smtpd.stats()["mda.running"] == 2
    smtpd.send("eve@here.test")
    until(lambda: smtpd.stats()["mda.running"] == 3, "three running")
    assert smtpd.stats()["mda.pending"] == 3
    with gate.open("w"):
        until(lambda: smtpd.stats()["mda.running"] == 3, "they run on")

    def open_gate() -> bool:
        os.close(os.open(gate, os.O_RDWR | os.O_NONBLOCK))
        return at_rest(smtpd)

    until(open_gate, "rest")
    assert smtpd.stats()["mda.delivery.ok"] == 6


# ---- mbox files


def test_mail_is_appended_to_an_mbox_file(start_smtpd: StartSmtpd, place: Place) -> None:
    path = place.home("bob") / "saved"
    place.forward("bob", f"{path}\n")
    smtpd = start_smtpd(config(place, "maildir"))
    smtpd.send("bob@here.test", text="Subject: 1\r\n\r\nFrom here\r\nand on\r\nFrom there\r\n")
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 1, "delivery")
    smtpd.send("bob@here.test", text="Subject: 2\r\n\r\nsecond")
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 2, "delivery")
    one, two = place.mbox(path)
    assert (one["Subject"], two["Subject"]) == ("1", "2")
    assert one["Return-Path"] == "<a@sender.test>"
    assert one.get_from().startswith("a@sender.test ")
    assert one.get_payload() == ">From here\nand on\n>From there\n"
    assert path.stat().st_uid == UID
    assert not path.with_name("saved.lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can deliver into /var/mail")
def test_the_system_mailbox(start_smtpd: StartSmtpd, place: Place) -> None:
    user = f"seatbelt-{os.getpid()}"
    path = Path("/var/mail") / user
    smtpd = start_smtpd(config(place, "mbox", user))
    try:
        smtpd.send(f"{user}@here.test")
        until(path.exists, "delivery")
        until(lambda: at_rest(smtpd), "rest")
        assert [message["Subject"] for message in place.mbox(path)] == ["hi"], smtpd.log()
        assert path.stat().st_uid == UID
    finally:
        path.unlink(missing_ok=True)


# ---- programs


def script(place: Place, text: str) -> Path:
    return place.file("program", f"#!/bin/sh\n{text}\n", 0o755)


def test_a_program_gets_the_message_and_the_environment(start_smtpd: StartSmtpd, place: Place) -> None:
    program = script(place, 'for word; do echo "<$word>"; done > "$HOME/words"; env > "$HOME/env"; cat > "$HOME/mail"')
    words = "%{user.username} %{rcpt} 'two words' %{sender.domain} a%%b $HOME;id"
    smtpd = start_smtpd(config(place, f'mda "{program} {words}"'))
    smtpd.send("Bob+tag@here.test", text="Subject: hi\r\n\r\nhello\r\n")
    home = place.home("bob")
    until(lambda: at_rest(smtpd) and (home / "mail").exists(), "delivery")
    expected = ["bob", "Bob+tag@here.test", "two words", "sender.test", "a%b", "$HOME;id"]
    assert (home / "words").read_text().splitlines() == [f"<{word}>" for word in expected]
    found = dict(line.split("=", 1) for line in (home / "env").read_text().splitlines())
    assert found.pop("PWD") == str(home)
    found.pop("_", None)
    found.pop("OLDPWD", None)
    found.pop("SHLVL", None)
    assert found.pop("PATH").startswith("/usr/bin:/bin")
    assert found == {
        "DOMAIN": "here.test",
        "EXTENSION": "tag",
        "HOME": str(home),
        "LOCAL": "Bob+tag",
        "LOGNAME": "bob",
        "RECIPIENT": "Bob+tag@here.test",
        "SENDER": "a@sender.test",
        "SHELL": "/bin/sh",
        "USER": "bob",
    }
    text = (home / "mail").read_text()
    assert text.startswith("Return-Path: <a@sender.test>\nDelivered-To: Bob+tag@here.test\nReceived:")
    assert text.endswith("Subject: hi\n\nhello\n")
    assert (home / "mail").stat().st_uid == UID


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("echo first; echo the reason; exit 75", "451 4.3.0 the reason"),
        ("exit 71", "451 4.3.0 system error"),
        ("kill -9 $$", "451 4.3.0 killed by SIGKILL"),
        ("while :; do echo flood; done", "451 4.3.0 killed by SIGPIPE: flood"),
    ],
)
def test_what_may_pass_is_tried_again(start_smtpd: StartSmtpd, place: Place, text: str, status: str) -> None:
    smtpd = start_smtpd(config(place, f'mda "{script(place, text)}"'))
    smtpd.send("bob@here.test")
    assert status_of(smtpd) == status


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("echo over quota >&2; exit 77", b"550 5.7.0 over quota"),
        ("exit 67", b"550 5.1.1 user unknown"),
        ("exit 1", b"550 5.3.0 exit status 1"),
    ],
)
def test_what_will_not_pass_is_bounced(start_smtpd: StartSmtpd, place: Place, text: str, status: bytes) -> None:
    program = script(place, text)
    smtpd = start_smtpd(
        LISTEN
        + place.userbase("bob", "eve")
        + f'action "local" mda "{program}" userbase <users>\naction "home" maildir userbase <users>\n'
        + MATCH
        + 'match for domain "sender.test" action "home"\n'
    )
    smtpd.send("bob@here.test", sender="eve@sender.test")
    until(lambda: place.mail("eve"), "the bounce")
    assert status in place.mail("eve")[0]


def test_a_program_that_is_not_there_is_no_loss(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(config(place, 'mda "/no/such/program"'))
    smtpd.send("bob@here.test")
    assert status_of(smtpd) == "451 4.3.0 cannot run /no/such/program: No such file or directory"


def test_a_program_need_not_read_its_mail(start_smtpd: StartSmtpd, place: Place) -> None:
    smtpd = start_smtpd(config(place, 'mda "/bin/true"'))
    smtpd.send("bob@here.test", text="Subject: long\r\n\r\n" + "x" * 70 + "\r\n" * 20000)
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 1, "delivery")


def test_a_program_that_hangs_is_killed_with_what_it_started(start_smtpd: StartSmtpd, place: Place) -> None:
    program = script(place, "trap '' TERM; sleep 1000 & echo $! > $HOME/child; wait; wait")
    smtpd = start_smtpd(config(place, f'mda "{program}"'), change="delivery.MDA_TIMEOUT_S = 0.3; mda.KILL_WAIT_S = 0.2")
    smtpd.send("bob@here.test")
    assert status_of(smtpd) == "451 4.4.7 the delivery program took too long and was killed"
    child = int((place.home("bob") / "child").read_text())
    until(lambda: not psutil.pid_exists(child), "the end of its child")


def test_an_address_can_inject_nothing_into_a_command(start_smtpd: StartSmtpd, place: Place) -> None:
    program = script(place, 'for word; do echo "<$word>"; done > "$HOME/words"')
    smtpd = start_smtpd(
        LISTEN
        + place.userbase("bob")
        + 'table v { "@here.test" = bob }\n'
        + f'action "local" mda "{program} %{{dest.user}}" virtual <v> userbase <users>\n'
        + MATCH
    )
    smtpd.send('"; touch x; $(id) `id`"@here.test')
    until(lambda: at_rest(smtpd) and (place.home("bob") / "words").exists(), "delivery")
    assert (place.home("bob") / "words").read_text() == "<; touch x; :(id) :id:>\n"
    smtpd.send("-rf@here.test")
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 2, "delivery")
    assert (place.home("bob") / "words").read_text() == "<:rf>\n"


def anybody_may_run(path: Path) -> bool:
    links = [path, path.resolve()]
    return os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for link in links for parent in link.parents)


@pytest.mark.parametrize("action", ["maildir", 'mda "/bin/dd of=Maildir"'])
def test_a_wrapper_runs_the_delivery(start_smtpd: StartSmtpd, place: Place, action: str) -> None:
    program = script(place, 'echo "$0 $1" > wrapped; shift; exec "$@"')
    smtpd = start_smtpd(
        LISTEN
        + place.userbase("bob")
        + f'mda wrapper "w" "{program} %{{user.username}} %{{mda}}"\n'
        + f'action "local" {action} userbase <users> wrapper "w"\n'
        + MATCH
    )
    smtpd.send("bob@here.test")
    home = place.home("bob")
    if action == "maildir" and not anybody_may_run(Path(sys.executable)):
        assert "4.3.5" in status_of(smtpd)  # our agent is a program then, and Python is where this user cannot go
        assert (home / "wrapped").exists()
        return
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 1, "delivery")
    assert (home / "wrapped").read_text() == f"{program} bob\n"
    text = place.mail("bob")[0] if (home / "Maildir").is_dir() else (home / "Maildir").read_bytes()
    assert text.startswith(b"Return-Path: <a@sender.test>\nDelivered-To: bob@here.test\n")


# ---- leaks


@pytest.mark.parametrize(
    "action", ["maildir", 'mda "/bin/cat"', 'mda "/bin/true"', "mda \"/bin/sh -c 'exit 75'\"", 'mda "/no/program"']
)
def test_deliveries_leave_no_descriptor_and_no_process(start_smtpd: StartSmtpd, place: Place, action: str) -> None:
    smtpd = start_smtpd(config(place, action))

    def deliver(count: int) -> list[int]:
        smtpd.smtpctl("remove", "all")
        before = smtpd.stats().get("mda.session.total", 0)
        for _ in range(count):
            smtpd.send("bob@here.test", "eve@here.test")
        until(lambda: smtpd.stats().get("mda.session.total", 0) == before + 2 * count, "deliveries")
        until(lambda: at_rest(smtpd), "rest")
        return [len(smtpd.descriptors(role)) for role in ("parent", "delivery", "lookup", "queue")]

    first = deliver(3)
    assert deliver(12) == first
    children = psutil.Process(smtpd.process.pid).children(recursive=True)
    assert len(children) == len(smtpd.family) - 1
    assert smtpd.stats()["parent.mda"] == 0


@pytest.mark.parametrize("action", ["maildir", 'mda "/bin/true"'])
def test_deliveries_leave_no_object(
    start_smtpd: StartSmtpd, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    directory = tmp_path / "agent"
    directory.mkdir()
    directory.chmod(0o1777)
    for name, value in agent.environment(directory).items():
        monkeypatch.setenv(name, value)
    place.forward("bob", "\\bob, eve\n")
    smtpd = start_smtpd(config(place, action))
    roles = {process.pid: process.cmdline()[0] for process in smtpd.family}

    def deliver(count: int) -> dict[str, int]:
        before = smtpd.stats().get("mda.delivery.ok", 0)
        with smtpd.smtp() as client:
            for _ in range(count):
                client.sendmail("a@sender.test", ["bob@here.test"], "Subject: hi\r\n\r\nhello\r\n")
        until(lambda: smtpd.stats().get("mda.delivery.ok") == before + 2 * count, "deliveries")
        until(lambda: at_rest(smtpd), "rest")
        readings = agent_probe.ask(directory, list(roles)).readings
        return {roles[pid]: reading.blocks for pid, reading in readings.items()}

    deliver(60)
    before = deliver(10)
    after = deliver(60)
    assert len(after) == len(roles), "every process answers, whoever and wherever it is"
    grown = {role: after[role] - before[role] for role in after}
    assert all(growth < 60 for growth in grown.values()), grown  # less than one object a message


# ---- crashes


@pytest.mark.parametrize("role", ["delivery", "parent", "queue"])
def test_a_crash_after_a_delivery_and_before_its_report_is_a_duplicate_and_no_loss(
    start_smtpd: StartSmtpd, place: Place, role: str
) -> None:
    program = script(place, 'cat > "$HOME/mail.$$"; test -e $HOME/died || { touch $HOME/there; exec sleep 1000; }')
    smtpd = start_smtpd(config(place, f'mda "{program}"'))
    smtpd.send("bob@here.test", text="Subject: once\r\n\r\nor twice\r\n")
    home = place.home("bob")
    until((home / "there").exists, "the delivery")
    os.kill(smtpd.process.pid if role == "parent" else smtpd.pid_of(role), signal.SIGKILL)
    smtpd.process.wait(20)
    psutil.wait_procs(smtpd.family, timeout=20)
    (home / "died").touch()
    smtpd.start()
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 1, "the second delivery")
    texts = {path.read_text().partition("Received")[2] for path in home.glob("mail.*")}
    assert len(list(home.glob("mail.*"))) == 2
    assert len(texts) == 1
    until(lambda: not list(smtpd.spool.glob("queue/*/*/*")), "an empty queue")


def test_users_and_aliases_of_a_database(start_smtpd: StartSmtpd, place: Place) -> None:
    path = place.file("db.sqlite", "")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(
            f"""CREATE TABLE users (name, uid, gid, home); CREATE TABLE aliases (name, value);
            CREATE TABLE domains (name); INSERT INTO domains VALUES ('here.test');
            INSERT INTO users VALUES ('bob', {UID}, {GID}, '{place.home("bob")}');
            INSERT INTO aliases VALUES ('info@here.test', 'bob')"""
        )
        place.file(
            "sqlite.conf",
            f"dbpath {path}\nquery_userinfo SELECT uid, gid, home FROM users WHERE name = ?\n"
            "query_alias SELECT value FROM aliases WHERE name = ?\n"
            "query_domain SELECT name FROM domains WHERE name = ?\n",
        )
        smtpd = start_smtpd(
            f"{LISTEN}table db sqlite:{place.root}/sqlite.conf\n"
            'action "local" maildir virtual <db> userbase <db>\nmatch from any for domain <db> action "local"\n'
        )
        smtpd.send("info@here.test")
        until(lambda: place.mail("bob"), "delivery")
        database.execute("BEGIN EXCLUSIVE")
        with smtpd.smtp() as client:
            client.ehlo()
            client.mail("a@sender.test")
            assert client.rcpt("info@here.test") == (451, b"4.3.0 Temporary failure: a table does not answer")
            database.execute("ROLLBACK")
            assert client.rcpt("info@here.test")[0] == 250
            assert client.rcpt("x@there.test")[0] == 550


def test_users_of_a_passwd_file(start_smtpd: StartSmtpd, place: Place) -> None:
    place.file("passwd", f"# mail users\nbob:*:{UID}:{GID}:Bob:{place.home('bob')}:/bin/false\n")
    smtpd = start_smtpd(
        f'{LISTEN}table users passwd:{place.root}/passwd\naction "local" maildir userbase <users>\n{MATCH}'
    )
    smtpd.send("bob@here.test")
    until(lambda: place.mail("bob"), "delivery")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        smtpd.send("eve@here.test")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can deliver as somebody else")
def test_one_user_delivers_for_all(start_smtpd: StartSmtpd, place: Place) -> None:
    """Virtual users need no account: whoever the recipient, `nobody` delivers."""
    path = place.home("all") / "%{dest.domain}" / "%{dest.user:strip}"
    smtpd = start_smtpd(f'{LISTEN}action "local" maildir "{path}" user nobody\n{MATCH}')
    smtpd.send("zoe+x@here.test", "ann@here.test")
    until(lambda: len(list(place.home("all").glob("here.test/*/new/*"))) == 2, "deliveries")
    assert {path.parent.parent.name for path in place.home("all").rglob("new/*")} == {"zoe", "ann"}
