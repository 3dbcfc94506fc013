from __future__ import annotations

import json
import os
import re
import sys

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from probed import HOLDS_EVERYTHING, line, python, until

from harness.probes import processes
from harness.probes.processes import default_role, roles_by_pattern

PR_SET_NAME = 15
FAMILY = """
import json, os, queue, sys, threading
pids = queue.Queue()
def fork(then):
    # In a thread of its own that goes on living: the kernel files the child under it.
    def run():
        pid = os.fork()
        if pid == 0:
            then()
            os._exit(0)
        pids.put(pid)
        sys.stdin.read()
    threading.Thread(target=run).start()
    return pids.get()
out, into = os.pipe()
def parent():
    grandchild = os.fork()
    if grandchild == 0:
        os.read(0, 1)
        os._exit(0)
    os.write(into, b"%d" % grandchild)
    os.read(0, 1)
child = fork(parent)
grandchild = int(os.read(out, 20))
zombie = fork(lambda: None)
print(json.dumps({"child": child, "grandchild": grandchild, "zombie": zombie}), flush=True)
"""


def test_the_tree_has_children_of_every_thread_and_zombies() -> None:
    with python("-c", FAMILY) as root:
        family = json.loads(line(root))
        found = processes.tree(root.pid)
        assert found[0] == root.pid
        assert sorted(found[1:]) == sorted(family.values())
        assert found.index(family["child"]) < found.index(family["grandchild"])
        until(lambda: getattr(processes.stat(family["zombie"]), "state", "") == "Z", "the child has ended")
        child = processes.read(family["child"], default_role)
        zombie = processes.read(family["zombie"], default_role)
        me = processes.read(root.pid, default_role)
        assert child is not None
        assert zombie is not None
        assert me is not None
        assert (child.ppid, zombie.ppid, zombie.state, zombie.title) == (root.pid, root.pid, "Z", zombie.role)
        assert me.threads == 3
        assert FAMILY in me.title


def test_without_the_kernels_list_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_kernel_lists_children", lambda: False)
    with python("-c", FAMILY) as root:
        family = json.loads(line(root))
        assert sorted(processes.tree(root.pid)) == sorted([root.pid, *family.values()])


def test_nobody_there() -> None:
    nobody = 2**22 + 1  # above PID_MAX_LIMIT
    assert processes.tree(nobody) == []
    assert processes.stat(nobody) is None
    assert processes.read(nobody, default_role) is None


def test_the_start_time_is_that_of_the_process() -> None:
    with python("-c", "import sys; print(flush=True); sys.stdin.read()") as process:
        line(process)
        found = processes.stat(process.pid)
        assert found is not None
        ticks = os.sysconf("SC_CLK_TCK")
        assert abs(found.started / ticks + psutil.boot_time() - psutil.Process(process.pid).create_time()) < 1.5
        assert found.started == getattr(processes.stat(process.pid), "started", None)


def test_a_name_that_looks_like_the_end_of_a_name() -> None:
    set_name = f"import ctypes, sys; ctypes.CDLL(None).prctl({PR_SET_NAME}, b'a) Z 1 (b'); print(flush=True)"
    with python("-c", f"{set_name}; sys.stdin.read()") as process:
        line(process)
        found = processes.stat(process.pid)
        assert found is not None
        assert (found.comm, found.ppid) == ("a) Z 1 (b", os.getpid())
        assert found.state in "SR"


def test_a_title_set_by_the_process_is_its_role() -> None:
    code = "import sys, setproctitle; setproctitle.setproctitle('smtpd: pony express'); print(flush=True)"
    with python("-c", f"{code}; sys.stdin.read()") as process:
        line(process)
        found = processes.read(process.pid, default_role)
        assert found is not None
        assert (found.title, found.role) == ("smtpd: pony express", "pony express")


def test_without_a_title_the_name_of_the_program_is_the_role() -> None:
    found = processes.read(os.getpid(), lambda title: title)
    assert found is not None
    with open("/proc/self/comm") as comm:  # noqa: PTH123
        assert found.role == comm.read().rstrip("\n")
    assert found.title.startswith(sys.argv[0]) or "pytest" in found.title


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("smtpd: transfer", "transfer"),
        ("/usr/sbin/smtpd: [priv]", "priv"),
        ("nginx: worker process", "worker process"),
        ("imap-login: proxying [192.0.2.1 TLS]", "proxying"),
        ("worker: 12", "12"),
        ("qmgr -l -t unix -u", "qmgr -l -t unix -u"),
        ("python3 server.py http://host: 25", "python3 server.py http://host: 25"),
        ("smtpd:", "smtpd:"),
        ("", ""),
    ],
)
def test_default_role(title: str, role: str) -> None:
    assert default_role(title) == role


@settings(deadline=None)
@given(st.text(max_size=40))
def test_a_role_is_part_of_its_title(title: str) -> None:
    assert default_role(title) in title
    assert bool(default_role(title)) == bool(title)


def test_roles_by_pattern() -> None:
    role_of = roles_by_pattern([(r"^(qmgr|pickup|cleanup)\b", r"\1"), (r"\bmaster\b", "master")])
    assert role_of("qmgr -l -t unix -u") == "qmgr"
    assert role_of("/usr/lib/postfix/sbin/master -w") == "master"
    assert role_of("smtpd: transfer") == "transfer"
    with pytest.raises(re.error):
        roles_by_pattern([("(", "x")])


def test_bytes_that_are_not_utf_8_stay_distinguishable() -> None:
    assert processes.text(b"caf\xe9") == "caf\\xe9"


@pytest.mark.parametrize(
    ("arguments", "role"),
    [
        (("-X", "dev", "-u", str(HOLDS_EVERYTHING), "/tmp"), "holds_everything.py"),
        (("-m", "json.tool"), "json.tool"),
        (("-c", "import sys; sys.stdin.read()"), "python"),
    ],
)
def test_what_an_interpreter_runs_is_its_role(arguments: tuple[str, ...], role: str) -> None:
    with python(*arguments) as process:

        def role_now() -> str:
            found = processes.read(process.pid, default_role)
            return found.role.rstrip(".0123456789") if found is not None else ""

        until(lambda: role_now() == role, f"it has begun, as {role}")
