"""One recipient, and the deliveries that it means."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping

import pytest

from mta_under_test.config import (
    Action,
    ExpandOnlyAction,
    ForwardOnlyAction,
    LocalAction,
    MaildirAction,
    RelayAction,
)
from mta_under_test.processes.lookup.expansion import MAX_DEPTH, MAX_NODES, Expansion, Local, Remote, Undeliverable
from mta_under_test.tables import Entry, Table, UserInfo
from tests.processes.daemon import Smtpd, until
from tests.processes.delivery.test_local_delivery import LISTEN, MATCH
from tests.processes.local import UID, Place

RELAY = RelayAction(name="relay")


class World:
    """Users are bob, eve, root; example.org is local, example.net is relayed to, all else refused."""

    def __init__(self, action: LocalAction, **tables: Mapping[str, str]) -> None:
        self.action = action
        self.forwards = tables.pop("forwards", {})
        self._tables = {
            name: Table(name, [Entry(key, value) for key, value in entries.items()]) for name, entries in tables.items()
        }

    def action_for(self, recipient: str) -> Action | None:
        return {"example.org": self.action, "example.net": RELAY}.get(recipient.partition("@")[2])

    def table(self, name: str) -> Table:
        return self._tables[name]

    def user(self, action: LocalAction, name: str) -> UserInfo | None:
        return UserInfo(name, 1, 1, "/") if name in ("bob", "eve", "root") else None

    async def forward(self, user: UserInfo) -> str:
        return self.forwards.get(user.name, "")

    def include(self, path: str) -> str:
        return {"/list": "bob\neve, x@example.net\n"}[path]


PLAIN = MaildirAction(name="local")
ALIASED = MaildirAction(name="local", alias="aliases")
VIRTUAL = MaildirAction(name="local", virtual="virtual")


def expand(world: World, recipient: str) -> list[str]:
    """The deliveries as text: who, with which tag, or what is run as whom."""
    found = asyncio.run(Expansion(world, "+").run(recipient, world.action))
    texts = []
    for one in found:
        if isinstance(one, Remote):
            texts.append(f"relay {one.dest}")
        else:
            assert isinstance(one, Local)
            texts.append(" ".join(filter(None, (one.user, one.subaddress and f"+{one.subaddress}", one.exec))))
    return sorted(texts)


@pytest.mark.parametrize(
    ("recipient", "found"),
    [
        ("Bob@example.org", ["bob"]),
        ("bob+Tag@example.org", ["bob +tag"]),
        ("hostmaster@example.org", ["bob"]),
        ("HostMaster+x@example.org", ["bob"]),
        ("all@example.org", ["bob", "eve", "relay x@example.net"]),
        ("list@example.org", ["bob", "eve", "relay x@example.net"]),
        ("root@example.org", ["bob", "root"]),
        ("plain@example.org", ["bob"]),
        ("away@example.org", ["relay y@example.net"]),
        ("here@example.org", ["bob"]),
        ("pipe@example.org", ["|/bin/cat -v"]),
        ("file@example.org", ["/var/archive", "bob"]),
        ("twice@example.org", ["bob"]),
    ],
)
def test_aliases(recipient: str, found: list[str]) -> None:
    aliases = {
        "hostmaster": "webmaster",
        "webmaster": "bob",
        "all": "bob, eve, x@example.net",
        "list": ":include:/list",
        "root": "root, bob",
        "plain": r"\bob",
        "bob+special": "eve",
        "away": "y@example.net",
        "here": "hostmaster@example.org",
        "pipe": '"|/bin/cat -v"',
        "file": "/var/archive, bob",
        "twice": "bob, hostmaster, bob",
    }
    assert expand(World(ALIASED, aliases=aliases), recipient) == found


@pytest.mark.parametrize(
    ("recipient", "refusal"),
    [
        ("nobody@example.org", "550 5.1.1 Invalid recipient: <nobody@example.org>"),
        ("gone@example.org", "550 5.7.1 She has moved, to nobody knows where"),
        ("short@example.org", "550 5.1.1 no more"),
        ("later@example.org", "451 4.1.1 come back"),
        ("half@example.org", "550 5.1.1 Invalid recipient: <half@example.org>"),
        ("foreign@example.org", "550 5.1.1 Invalid recipient: <x@elsewhere.test>"),
        ("a@example.org", "550 5.4.6 Aliasing loop: <a@example.org>"),
        ("bad@example.org", "451 4.3.5 Temporary failure: <bad@example.org> cannot be expanded now"),
    ],
)
def test_refusals(recipient: str, refusal: str) -> None:
    aliases = {
        "gone": "error:550 5.7.1 She has moved, to nobody knows where",
        "short": "error: no more",
        "later": "error:451 come back",
        "half": "bob, nobody",
        "foreign": "x@elsewhere.test",
        "a": "b",
        "b": "c@example.org",
        "c": "a",
        "bad": "two words",
    }
    with pytest.raises(Undeliverable) as caught:
        expand(World(ALIASED, aliases=aliases), recipient)
    assert str(caught.value) == refusal


@pytest.mark.parametrize(
    ("recipient", "found"),
    [
        ("info@example.org", ["bob"]),
        ("info+tag@example.org", ["bob"]),
        ("sales@example.org", ["eve", "relay x@example.net"]),
        ("postmaster@example.org", ["root"]),
        ("any@example.org", ["eve"]),
    ],
)
def test_virtual_domains(recipient: str, found: list[str]) -> None:
    virtual = {
        "info@example.org": "bob",
        "sales@example.org": "eve, x@example.net",
        "postmaster": "root",
        "@example.org": "eve",
    }
    assert expand(World(VIRTUAL, virtual=virtual), recipient) == found


def test_an_address_that_no_virtual_entry_knows_is_refused() -> None:
    with pytest.raises(Undeliverable, match=r"550 5\.1\.1"):
        expand(World(VIRTUAL, virtual={"info@example.org": "bob"}), "bob@example.org")


@pytest.mark.parametrize(
    ("forward", "found"),
    [
        ("", ["bob"]),
        ("# nothing yet\n", ["bob"]),
        ("x@example.net", ["relay x@example.net"]),
        ("\\bob, x@example.net\n", ["bob", "relay x@example.net"]),
        ("bob\n", ["bob"]),
        ("bob@example.org\n", ["bob"]),
        ("eve", ["|/bin/eves"]),
        ("|/usr/bin/vacation bob\n/home/bob/archive", ["bob /home/bob/archive", "bob |/usr/bin/vacation bob"]),
    ],
)
def test_forward_files(forward: str, found: list[str]) -> None:
    if found == ["|/bin/eves"]:
        found = ["eve |/bin/eves"]
    world = World(PLAIN, forwards={"bob": forward, "eve": "|/bin/eves"})
    assert expand(world, "bob@example.org") == found


@pytest.mark.parametrize("forward", [":include:/etc/shadow", "error:550 no", "two words"])
def test_what_a_forward_file_may_not_say(forward: str) -> None:
    with pytest.raises(Undeliverable, match=r"451 4\.3\.5"):
        expand(World(PLAIN, forwards={"bob": forward}), "bob@example.org")


def test_two_users_who_forward_to_each_other_are_a_loop() -> None:
    with pytest.raises(Undeliverable, match=r"550 5\.4\.6"):
        expand(World(PLAIN, forwards={"bob": "eve", "eve": "bob"}), "bob@example.org")


def test_depth_and_breadth_have_ends() -> None:
    chain = {f"a{number}": f"a{number + 1}" for number in range(MAX_DEPTH)} | {f"a{MAX_DEPTH - 1}": "bob"}
    world = World(ALIASED, aliases=chain)
    assert expand(world, "a1@example.org") == ["bob"]
    with pytest.raises(Undeliverable, match=r"550 5\.4\.6 Aliases are nested too deeply"):
        expand(world, "a0@example.org")
    many = ", ".join(f"u{number}@example.net" for number in range(MAX_NODES))
    world = World(ALIASED, aliases={"many": many, "fewer": many.partition(", ")[2]})
    assert len(expand(world, "fewer@example.org")) == MAX_NODES - 1
    with pytest.raises(Undeliverable, match=r"550 5\.2\.4"):
        expand(world, "many@example.org")


@pytest.mark.parametrize("alias", ["bob", "/var/mail/x", "|/bin/cat", "bob, x@example.net"])
def test_forward_only_takes_remote_addresses_and_nothing_else(alias: str) -> None:
    world = World(ForwardOnlyAction(name="f", alias="aliases"), aliases={"a": alias, "ok": "x@example.net"})
    assert expand(world, "ok@example.org") == ["relay x@example.net"]
    with pytest.raises(Undeliverable, match=r"550 5\.1\.1"):
        expand(world, "a@example.org")


def test_expand_only_takes_what_an_alias_names_and_no_mailbox() -> None:
    world = World(ExpandOnlyAction(name="e", alias="aliases"), aliases={"a": "|/bin/cat, x@example.net", "b": "bob"})
    assert expand(world, "a@example.org") == ["relay x@example.net", "|/bin/cat"]
    with pytest.raises(Undeliverable, match=r"550 5\.1\.1"):
        expand(world, "b@example.org")


def test_an_action_with_a_user_takes_everybody() -> None:
    assert expand(World(MaildirAction(name="local", user="vmail")), "anybody+tag@example.org") == ["anybody +tag"]


# ---- in the daemon


def rcpt(smtpd: Smtpd, recipient: str) -> tuple[int, bytes]:
    with smtpd.smtp() as client:
        client.ehlo()
        client.mail("a@sender.test")
        return client.rcpt(recipient)


def queued(smtpd: Smtpd) -> list[tuple[str, str]]:
    """Type and destination of each envelope."""
    fields = [line.split("|") for line in smtpd.smtpctl("show", "queue").stdout.splitlines()]
    return sorted((field[2], field[6]) for field in fields)


def configuration(place: Place, more: str = "", options: str = "") -> str:
    return (
        LISTEN
        + place.userbase("bob", "eve")
        + more
        + f'action "local" maildir userbase <users> {options}\naction "out" relay host smtp://127.0.0.1:9\n'
        + MATCH
        + 'match from local for domain "far.test" action "out"\n'
    )


@pytest.fixture(scope="module")
def plain(lasting_place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smtpd]:
    """A daemon for tests that send nothing. What a home has is looked at anew for every recipient."""
    smtpd = Smtpd(tmp_path_factory.mktemp("smtpd"), configuration(lasting_place))
    yield smtpd
    smtpd.stop()


@pytest.fixture
def held(start_smtpd: Callable[..., Smtpd], place: Place) -> Callable[[str], Smtpd]:
    """A daemon that delivers nothing."""

    def start(more: str, options: str = "") -> Smtpd:
        smtpd = start_smtpd(configuration(place, more, options))
        smtpd.smtpctl("pause", "mda")
        smtpd.smtpctl("pause", "mta")
        return smtpd

    return start


def test_one_recipient_becomes_local_and_remote_envelopes(held: Callable[..., Smtpd], place: Place) -> None:
    place.forward("bob", "\\bob\nx@far.test, eve\n")
    smtpd = held("table aliases { team = bob }\n", "alias <aliases>")
    smtpd.send("team@here.test")
    until(lambda: len(queued(smtpd)) == 3, "three envelopes")
    assert queued(smtpd) == [("mda", "team@here.test"), ("mda", "team@here.test"), ("mta", "x@far.test")]
    (remote,) = [line for line in smtpd.smtpctl("show", "queue").stdout.splitlines() if "|mta|" in line]
    text = smtpd.smtpctl("show", "envelope", remote.split("|")[0]).stdout
    assert "sender: a@sender.test\n" in text
    assert "rcpt: team@here.test\n" in text
    # In files of their own, once they are no longer in the journal alone.
    files = (smtpd.spool / "queue").rglob
    until(lambda: sum("mda-user" in path.read_text() for path in files("????????????????")) == 2, "two with a user")


@pytest.mark.parametrize(
    ("text", "mode", "status"),
    [
        ("x@far.test", 0o600, 250),
        ("x@far.test", 0o620, 451),
        ("x@far.test", 0o602, 451),
        ("x" * 4096, 0o600, 451),
        ("x@nowhere.test", 0o600, 550),
        ("two words", 0o600, 451),
    ],
)
def test_a_forward_file_is_believed_only_when_it_is_its_owners(
    plain: Smtpd, lasting_place: Place, text: str, mode: int, status: int
) -> None:
    lasting_place.forward("bob", text, mode)
    before = {role: len(plain.descriptors(role)) for role in ("parent", "lookup")}
    for _ in range(3):
        assert rcpt(plain, "bob@here.test")[0] == status
    # Fewer may be: something of the test before was perhaps about to close.
    until(lambda: all(len(plain.descriptors(role)) <= before[role] for role in before), "no more")


def test_a_forward_file_is_read_with_the_users_rights(plain: Smtpd, lasting_place: Place) -> None:
    path = lasting_place.forward("eve", "x@far.test", 0o000)
    assert rcpt(plain, "eve@here.test")[0] == 451
    path.unlink()
    os.mkfifo(path)
    os.chown(path, UID, -1)
    assert rcpt(plain, "eve@here.test")[0] == 451
    path.unlink()
    assert rcpt(plain, "eve@here.test")[0] == 250
    home = lasting_place.home("eve")
    home.chmod(home.stat().st_mode | 0o1000)
    assert rcpt(plain, "eve@here.test")[0] == 451


def test_lists_in_files_and_virtual_users_in_passwd_and_sqlite(held: Callable[..., Smtpd], place: Place) -> None:
    place.file("team", "bob, eve\n")
    place.file("virtual", f"team@here.test :include:{place.root}/team\n@here.test eve\n")
    smtpd = held(f"table v file:{place.root}/virtual\n", "virtual <v>")
    smtpd.send("team@here.test", "other@here.test")
    until(lambda: len(queued(smtpd)) == 3, "three envelopes")
    place.file("team", "")
    assert rcpt(smtpd, "team@here.test")[0] == 550
    (place.root / "team").unlink()
    assert rcpt(smtpd, "team@here.test")[0] == 451


def test_tables_are_updated_at_runtime(held: Callable[..., Smtpd], place: Place) -> None:
    aliases = place.file("aliases", "team: bob\n", 0o600)
    smtpd = held(f"table aliases file:{aliases}\ntable inline {{ a = b }}\n", "alias <aliases>")
    assert rcpt(smtpd, "team@here.test")[0] == 250
    assert rcpt(smtpd, "crew@here.test")[0] == 550
    aliases.write_text("crew: bob\n")
    assert rcpt(smtpd, "crew@here.test")[0] == 550
    assert smtpd.smtpctl("update", "table", "aliases").stdout == "command succeeded\n"
    assert rcpt(smtpd, "crew@here.test")[0] == 250
    aliases.write_text("crew: bob\nteam:\n")
    done = smtpd.smtpctl("update", "table", "aliases")
    assert done.returncode == 1
    assert "aliases:2: no value for 'team'" in done.stderr
    aliases.unlink()
    assert "No such file" in smtpd.smtpctl("update", "table", "aliases").stderr
    assert "no table <none>" in smtpd.smtpctl("update", "table", "none").stderr
    assert "written in the configuration" in smtpd.smtpctl("update", "table", "inline").stderr
    assert rcpt(smtpd, "crew@here.test")[0] == 250
    before = [len(smtpd.descriptors(role)) for role in ("parent", "lookup", "control")]
    for _ in range(5):
        smtpd.smtpctl("update", "table", "aliases")
    until(lambda: [len(smtpd.descriptors(role)) for role in ("parent", "lookup", "control")] == before, "no more")
