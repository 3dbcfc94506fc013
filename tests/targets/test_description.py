"""Descriptions of servers: what they say is done, and a mistake is told with file, line and key."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.targets import TargetError, description
from harness.targets.choice import Settings, choose
from harness.targets.command import Command
from tests.probes.probed import until

SERVER = Path(__file__).parents[1] / "servers" / "prefork.py"
PORTS = {"refusing": 2001, "home": 2002}
WHOLE = f"""\
# Everything that a description can say.
about = "a server of the tests"
version = ["{{python}}", "-c", "print('7.1'); print('and more')"]
start = [
    "sh", "-c", "env > {{dir}}/environment; exec {{python}} {SERVER} {{port}} --workers 2",
]
ports = ["admin"]
relays = true
offers = ["local"]
mailboxes = "{{dir}}/mail"
hurry = ["touch", "{{dir}}/hurried"]
start_timeout_s = 10
still_s = 0.1
patience_s = 0.3

[environment]
WHERE = "{{relay_port}} {{home_port}} {{admin_port}} {{here}} {{state}}"

[files]
"etc/server.conf" = '''
[files]
listen = {{port}}
literal = {{{{port}}}} {{ a b }}
'''

[queue]
command = ["cat", "{{dir}}/queue"]
line = '^msg'

[roles]
'^prefork: (\\w+)' = 'the \\1'

[operations]
reload = ["sh", "-c", "echo {{pid}} > {{dir}}/reloaded"]
fail = ["sh", "-c", "echo no such thing >&2; exit 3"]
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return written


@pytest.fixture
def target(write: Write, tmp_path: Path) -> Iterator[Command]:
    run = tmp_path / "run"
    run.mkdir()
    (run / "queue").write_text("")
    command = Command(run, PORTS, server=description.read(write(WHOLE)))
    command.start()
    yield command
    command.stop()


def test_what_it_says_is_done(target: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (target.name, target.version) == ("mine", "7.1")
    assert target.mailboxes == run / "mail"
    environment = dict(line.partition("=")[::2] for line in (run / "environment").read_text().splitlines())
    relay, home, admin, here, state = environment["WHERE"].split()
    assert (relay, home, here) == ("2001", "2002", str(tmp_path))
    assert int(admin) not in (0, target.address[1])
    configuration = (run / "etc" / "server.conf").read_text()
    assert f"listen = {target.address[1]}\nliteral = {{port}} {{ a b }}\n" in configuration
    assert target.role_of("prefork: worker") == "the worker"
    target.hurry()
    assert (run / "hurried").exists()
    target.operate("reload")
    assert int((run / "reloaded").read_text()) == target.root_pid
    assert Path(state).stat().st_mode & 0o1777 == 0o1777
    target.stop()
    assert not Path(state).exists()


def test_its_queue_tool_says_what_it_owes(target: Command, tmp_path: Path) -> None:
    queue = tmp_path / "run" / "queue"
    until(lambda: not target.rest().busy, "rest")
    queue.write_text("id sender\nmsg1 a\nmsg2 b\n")
    until(lambda: target.rest().busy == {"messages not passed on": 2}, "two are on their way")
    until(lambda: not target.rest().busy, "patience ends")
    assert target.rest().backlog == 2
    queue.unlink()
    with pytest.raises(TargetError, match=r"queue\.command: cat '\{dir\}/queue': status 1; cat: "):
        until(lambda: target.rest().busy, "it cannot be asked")


def test_its_queue_directory_says_which_messages(write: Write, tmp_path: Path) -> None:
    server = description.read(write('start = ["true", "{port}"]\n[queue]\ndirectory = "{dir}/spool"\n'))
    target = Command(tmp_path, PORTS, server=server)
    (tmp_path / "spool" / "deferred").mkdir(parents=True)
    (tmp_path / "spool" / "deferred" / "1").write_text("whatever\nMessage-ID: <1@sender.test>\n\n")
    assert target.owed() == {"1@sender.test"}
    target.stop()


def test_a_queue_in_which_directories_come_and_go_is_counted(write: Write, tmp_path: Path) -> None:
    server = description.read(write('start = ["true", "{port}"]\n[queue]\ndirectory = "{dir}/spool"\n'))
    target = Command(tmp_path, PORTS, server=server)
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            for name in "abcdefgh":
                (tmp_path / "spool" / name).mkdir(parents=True)
            for name in "abcdefgh":
                (tmp_path / "spool" / name).rmdir()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        assert all(target.owed() == set() for _ in range(500))
    finally:
        over.set()
        churning.join()


def test_a_command_of_its_that_fails_is_told(target: Command) -> None:
    with pytest.raises(TargetError, match=r"operations\.fail: .*: status 3; no such thing"):
        target.operate("fail")
    with pytest.raises(TargetError, match="nobody here can 'trace'"):
        target.operate("trace")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("start = [", "Invalid value (at end of document)"),
        ("relays = true\n", "Object missing required field `start`"),
        ('start = "server {port}"\n', ":1: start: Expected `array`, got `str`"),
        ('\n\nstart = ["{port}"]\nstrat = 1\n', ":4: strat: no such key; there is start, name, about,"),
        (
            'start = ["{port}"]\n[queue]\nlines = ""\n',
            ":3: queue.lines: no such key; there is command, line, directory",
        ),
        ('start = ["{port}"]\n[environment]\nA = 1\n', ":2: environment: Expected `str`, got `int`"),
        ('start = ["{port}"]\noffers = ["tsl"]\n', ":2: offers: Invalid enum value 'tsl'"),
        ("start = []\n", ":1: start: is empty"),
        ('start = ["{port}"]\nports = ["my-http"]\n', ":2: ports: 'my-http' makes no placeholder"),
        ('start = ["server"]\n', ":1: start: has no {port}"),
        ('start = ["{prot}"]\n', ":1: start: no placeholder {prot}; there is {port}, {relay_port}"),
        ('start = ["{port}"]\n[files]\nx = """\nstart = {pid}\n"""\n', ":3: files.x: no placeholder {pid}"),
        (
            "start = ['{port}']\n[files]\nx = '''\n[roles]\n'''\n[roles]\n'wor(ker' = 'x'\n",
            ":7: roles.wor(ker: no regular",
        ),
    ],
)
def test_a_mistake_is_told_with_file_line_and_key(write: Write, text: str, told: str) -> None:
    path = write(text)
    with pytest.raises(TargetError) as error:
        description.load(str(path))
    assert str(error.value).startswith(str(path))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_description_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no server called 'aiosmtp'; did you mean aiosmtpd\? There is: aiosmtpd, "):
        description.load("aiosmtp")
    with pytest.raises(TargetError, match=r"none\.toml: No such file or directory"):
        description.load(str(tmp_path / "none.toml"))


def test_those_that_come_with_seatbelt_are_read(tmp_path: Path) -> None:
    assert {"aiosmtpd", "qpsmtpd"} <= set(description.names())
    for name in description.names():
        server = description.load(name)
        assert server.name == name
        assert server.about.startswith(name)
    assert description.load("qpsmtpd").is_relay
    assert not description.load("aiosmtpd").is_relay


def test_a_scenario_gets_what_the_description_offers_and_nothing_else(write: Write) -> None:
    path = str(write(WHOLE))
    assert choose(None, Settings(server=path, needs=("local",), relays=True))
    for settings, words in (
        (Settings(server=path, needs=("local", "tls")), "needs tls, which mine is not"),
        (Settings(server="aiosmtpd", relays=True), "needs a server that relays to {relay_port}, which aiosmtpd"),
        (Settings(server=path, command="x {port}"), "--command and --server are two targets"),
    ):
        with pytest.raises(TargetError, match=re.escape(words)):
            choose(None, settings)


@pytest.mark.parametrize(
    ("word", "said", "is_relay"),
    [
        ("{relay_port}", "", True),
        ("", "", False),
        ("{relay_port}", "relays = false\n", False),
        ("", "relays = true\n", True),
    ],
)
def test_it_relays_if_it_says_so_or_is_told_where_to(write: Write, word: str, said: str, is_relay: bool) -> None:
    assert description.read(write(f'start = ["server", "{{port}}", "{word}"]\n{said}')).is_relay == is_relay


def test_one_that_is_not_installed_says_how_to_get_it(write: Write, tmp_path: Path) -> None:
    install = 'install = "apt-get install it"\n'
    for text, words in (
        ('start = ["no-such-program", "{port}"]\n', "cannot run 'no-such-program'"),
        (f'start = ["true", "{{port}}"]\nversion = ["{sys.executable}", "-c", "import it"]\n', "No module named 'it'"),
    ):
        server = description.read(write(install + text))
        with pytest.raises(TargetError, match=rf"{words}.*\(to install it: apt-get install it\)"):
            Command(tmp_path, PORTS, server=server).start()
