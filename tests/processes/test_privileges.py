"""Who the processes are, and what they can reach."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from harness.remote_mx.process import RemoteMX
from mta_under_test.processes import privileges
from mta_under_test.processes.mda.format import Job
from mta_under_test.processes.mda.mda import End, Refused, _user_of
from mta_under_test.processes.parent.parent import ROLES
from tests.processes.daemon import CONFIGURATION, Smtpd, until
from tests.processes.delivery.test_local_delivery import LISTEN, MATCH, at_rest, config
from tests.processes.local import UID, Place

ROOTS_PYTHON = "from tests.processes import roots_python"
StartSmtpd = Callable[..., Smtpd]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")


def ids(pid: int) -> dict[str, list[int]]:
    """Uid, Gid (real, effective, saved, file system), Groups, NoNewPrivs and capabilities of a process."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    found = {name: value.split() for name, _, value in lines}
    return {name: [int(word) for word in found[name]] for name in ("Uid", "Gid", "Groups", "NoNewPrivs")} | {
        "CapEff": [int(found["CapEff"][0], 16)]
    }


@root_only
def test_parent_alone_is_root(smtpd: Smtpd) -> None:
    nobody = pwd.getpwnam("nobody")
    assert ids(smtpd.process.pid)["Uid"] == [0] * 4
    for role in ROLES:
        found = ids(smtpd.pid_of(role))
        assert found["Uid"] == [nobody.pw_uid] * 4, role
        assert found["Gid"] == [nobody.pw_gid] * 4, role
        assert found["Groups"] == [nobody.pw_gid], role
        assert found["NoNewPrivs"] == [1], role
        assert found["CapEff"] == [0], role


@root_only
def test_every_role_but_lookup_lives_where_it_can_reach_no_file(smtpd: Smtpd) -> None:
    for role in ROLES:
        root = os.readlink(f"/proc/{smtpd.pid_of(role)}/root")
        if role == "lookup":
            assert root == "/"
        elif role == "queue":
            assert root == str(smtpd.spool)
        else:
            assert root.endswith(" (deleted)"), role
            assert not os.listdir(f"/proc/{smtpd.pid_of(role)}/root")
        # Queue has its own directories open for an instant, to fsync them.
        directories = [link for link in smtpd.descriptors(role) if Path(link).is_dir()]
        outside = [link for link in directories if role != "queue" or not link.startswith(f"{root}/")]
        assert not outside, f"{role} holds a way out"


@root_only
def test_mail_comes_and_goes_without_rights(smtpd: Smtpd, mx: RemoteMX) -> None:
    mx.set_policy("refusing", "rcpt=550")
    smtpd.send("x@refused.test", text="Message-ID: <1@sender.test>\r\n\r\n\r\n")
    until(lambda: mx.ledger().bounced, "a bounce")
    mx.set_policy("refusing", "")
    smtpd.send("x@accepted.test", text="Message-ID: <2@sender.test>\r\n\r\n\r\n")
    until(lambda: mx.ledger().delivered, "delivery")
    until(smtpd.at_rest, "rest")
    assert smtpd.smtpctl("show", "stats").returncode == 0
    assert smtpd.smtpctl("log", "verbose").returncode == 0
    assert "rror" not in smtpd.log()


@root_only
def test_nothing_is_loaded_any_more_by_those_without_rights(start_smtpd: StartSmtpd, place: Place) -> None:
    """Python may be installed where root alone can read; what a new configuration needs is there beforehand too."""
    head = LISTEN + place.userbase("bob") + 'action "local" maildir userbase <users>\n'
    smtpd = start_smtpd(head + 'match from local for local action "local"\n', change=ROOTS_PYTHON)
    smtpd.send("bob@localhost")
    until(lambda: place.mail("bob"), "delivery")
    with closing(sqlite3.connect(place.root / "domains.sqlite")) as database:
        database.execute("create table domains (name text)")
        database.execute("insert into domains values ('here.test')")
        database.commit()
    place.file(
        "sqlite.conf", f"dbpath {place.root}/domains.sqlite\nquery_domain select name from domains where name=?\n"
    )
    (smtpd.directory / "smtpd.conf").write_text(
        f'{head}table domains sqlite:{place.root}/sqlite.conf\nmatch from any for domain <domains> action "local"\n'
    )
    assert smtpd.smtpctl("reload").stderr == ""
    smtpd.send("bob@here.test")
    until(lambda: len(place.mail("bob")) == 2, "delivery by the new rules")
    assert "No module" not in smtpd.log()


@root_only
def test_the_spool_is_queues_and_nobody_elses(smtpd: Smtpd) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    modes = {path.name: (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) for path in smtpd.spool.iterdir()}
    assert modes.pop("offline") == (0, 0o1777)
    assert set(modes.values()) == {(nobody, 0o700)}
    assert (smtpd.spool.stat().st_uid, stat.S_IMODE(smtpd.spool.stat().st_mode)) == (0, 0o751)
    assert stat.S_IMODE(smtpd.socket.stat().st_mode) == 0o600


@root_only
def test_a_spool_of_roots_is_handed_over(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports), "--user", "root")
    assert ids(smtpd.pid_of("queue"))["Uid"] == [0] * 4
    mx.set_policy("refusing", "rcpt=450")
    smtpd.send("x@refused.test", text="Message-ID: <1@sender.test>\r\n\r\n\r\n")
    until(lambda: smtpd.stats().get("scheduler.delivery.tempfail"), "a temporary failure")
    smtpd.stop()
    mx.set_policy("refusing", "")
    smtpd._arguments = ()
    smtpd.start()
    assert ids(smtpd.pid_of("queue"))["Uid"] != [0] * 4
    smtpd.try_again()
    until(lambda: mx.ledger().delivered, "delivery")


@root_only
def test_a_user_of_ones_choice(start_smtpd: StartSmtpd, mx: RemoteMX) -> None:
    user = next(entry for entry in pwd.getpwall() if entry.pw_uid not in (0, UID))
    smtpd = start_smtpd(CONFIGURATION.format(**mx.ports), "--user", user.pw_name)
    assert {ids(smtpd.pid_of(role))["Uid"][0] for role in ROLES} == {user.pw_uid}


@root_only
def test_a_delivery_has_the_users_rights_and_no_others(start_smtpd: StartSmtpd, place: Place) -> None:
    program = place.file(
        "program", "#!/bin/sh\nid -u > ids; id -g >> ids; id -G >> ids\nls /proc/self/fd > fds\numask > mask\n", 0o755
    )
    smtpd = start_smtpd(config(place, f'mda "{program}"'))
    smtpd.send("bob@here.test")
    until(lambda: at_rest(smtpd) and smtpd.stats().get("mda.delivery.ok"), "delivery")
    home = place.home("bob")
    assert set((home / "ids").read_text().split()) == {str(UID)}
    assert (home / "fds").read_text().split() == ["0", "1", "2", "3"], "3 is what ls reads the directory with"
    assert (home / "mask").read_text() == "0077\n"


@root_only
def test_mail_is_never_delivered_as_root(start_smtpd: StartSmtpd, place: Place) -> None:
    marker = place.root / "ran"
    smtpd = start_smtpd(
        LISTEN
        + place.userbase("eve")
        + f'table roots {{ "admin" = "0:0:{place.root}" }}\n'
        + f'action "local" mda "/usr/bin/touch {marker}" userbase <roots>\n'
        + 'action "home" maildir userbase <users>\n'
        + MATCH
        + 'match for domain "sender.test" action "home"\n'
    )
    smtpd.send("admin@here.test", sender="eve@sender.test")
    until(lambda: place.mail("eve"), "the bounce")
    assert b"not allowed to deliver to: root" in place.mail("eve")[0]
    assert not marker.exists()


def test_an_alias_runs_programs_as_nobody(start_smtpd: StartSmtpd, place: Place) -> None:
    out = place.root / "out"
    out.mkdir()
    out.chmod(0o777)
    program = place.file("program", f"#!/bin/sh\nid -u > {out}/uid\n", 0o755)
    smtpd = start_smtpd(f'{LISTEN}table a {{ pipe = "|{program}" }}\naction "local" expand-only alias <a>\n{MATCH}')
    smtpd.send("pipe@here.test")
    until(lambda: smtpd.stats().get("mda.delivery.ok") == 1, "delivery")
    assert int((out / "uid").read_text()) == UID


@root_only
def test_an_ordinary_user_runs_it_all_as_himself(place: Place, tmp_path: Path) -> None:
    """Nothing is dropped, mail is delivered as this user only. In a process of that user's: needs no account."""
    code = (
        "from mta_under_test.processes import privileges;"
        "from mta_under_test.processes.mda.mda import _user_of, Refused;"
        "from mta_under_test.processes.mda.format import Job; import os, sys; os.setresgid(65534, 65534, 65534);"
        "os.setresuid(65534, 65534, 65534); print(privileges.plan(None));"
        "job = dict(action='a', sender='', rcpt='', dest='', user='u', gid=1, directory='/');"
        "print(_user_of(Job(uid=65534, **job)).uid)\n"
        "for call in (lambda: _user_of(Job(uid=1, **job)), lambda: privileges.plan('root')):\n"
        "    try: call()\n"
        "    except (Refused, privileges.PrivilegeError) as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "None",
        "65534",
        "smtpd does not run as root: it cannot deliver as user 1",
        "smtpd: --user root: only root can start smtpd for somebody else",
    ], done.stderr


def test_a_user_that_is_not_there_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "smtpd.conf").write_text(f'{LISTEN}action "a" maildir\nmatch for any action "a"\n')
    done = subprocess.run(
        [sys.executable, "-m", "mta_under_test.smtpd", "-d", "-f", tmp_path / "smtpd.conf"]
        + ["--spool", tmp_path / "spool", "--socket", tmp_path / "sock", "--user", "no-such-user"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "smtpd: --user no-such-user: no such user\n"


def test_stopping_waits_for_a_delivery_and_leaves_no_process(start_smtpd: StartSmtpd, place: Place) -> None:
    program = place.file("program", "#!/bin/sh\nsleep 1000 & echo $! > child; wait\n", 0o755)
    smtpd = start_smtpd(config(place, f'mda "{program}"'))
    smtpd.send("bob@here.test")
    child = place.home("bob") / "child"
    until(lambda: child.exists() and child.read_text(), "the program")
    smtpd.stop()
    until(lambda: not psutil.pid_exists(int(child.read_text())), "the end of its child")
    assert list(smtpd.spool.glob("queue/*/*/*")), "the mail is still owed"


@root_only
def test_a_program_dies_with_its_parent(start_smtpd: StartSmtpd, place: Place) -> None:
    sleep = shutil.which("sleep")
    smtpd = start_smtpd(config(place, f'mda "{sleep} 1000"'))
    smtpd.send("bob@here.test")
    parent = psutil.Process(smtpd.process.pid)
    until(lambda: len(parent.children()) == len(ROLES) + 1, "the program")
    (child,) = [one for one in parent.children() if one not in smtpd.family]
    until(lambda: child.cmdline()[:1] == [sleep], "the program")
    parent.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "its end")


@root_only
def test_what_is_handed_over_is_no_link(tmp_path: Path) -> None:
    """A link in a spool of root's stays a link to somebody else's file."""
    outside = tmp_path / "outside"
    outside.write_text("secret")
    spool = tmp_path / "spool"
    (spool / "queue").mkdir(parents=True)
    (spool / "queue" / "link").symlink_to(outside)
    privileges.own_spool(spool, privileges.NOBODY)
    assert outside.stat().st_uid == 0
    assert (spool / "queue" / "link").lstat().st_uid == privileges.NOBODY.uid
    other = spool / "queue" / "planted"
    other.write_text("x")
    os.chown(other, 0, 0)
    privileges.own_spool(spool, privileges.NOBODY)
    assert other.stat().st_uid == 0, "what queue could have planted is not touched"


def test_root_is_refused_whatever_delivery_says() -> None:
    job = Job(action="a", sender="", rcpt="", dest="", user="root", uid=0, gid=0, directory="/root")
    with pytest.raises(Refused) as caught:
        _user_of(job)
    assert caught.value.end in (End.REFUSED, End.REFUSED_NOW)
