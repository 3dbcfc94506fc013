"""Mail into programs: what they get, what they may do, and what is made of their end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.processes.daemon import Smtpd, until
from tests.processes.delivery.test_local_delivery import LISTEN, MATCH, at_rest, config, status_of
from tests.processes.local import UID, Place, script

StartSmtpd = Callable[..., Smtpd]


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
