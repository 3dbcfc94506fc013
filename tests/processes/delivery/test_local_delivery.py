"""Mail into maildirs, mboxes, programs and LMTP servers of this machine."""

from __future__ import annotations

import os
import smtplib
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

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

    def told() -> list[str]:
        return [line.rsplit("|", 1)[1] for line in smtpd.smtpctl("show", "queue").stdout.splitlines()]

    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail") and any(told()), "a temporary failure")
    (status,) = told()
    return status


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
    until(smtpd.spool_is_empty, "an empty spool")
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
    smtpd.try_again()
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


# ---- users from elsewhere


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
