"""smtpd.conf: what valid files mean, and exactly what is said about broken ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mta_under_test.config import (
    Config,
    ConfigError,
    Criterion,
    ExpandOnlyAction,
    ForwardOnlyAction,
    Listener,
    LmtpAction,
    MaildirAction,
    Match,
    MboxAction,
    MdaAction,
    RelayAction,
    RelayHost,
    TableSpec,
    load,
)

LISTEN = "listen on 127.0.0.1\n"
Configure = Callable[..., Config]


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Load a text as smtpd.conf, with other files beside it; paths in errors are relative."""
    monkeypatch.chdir(tmp_path)

    def configure(text: str, **files: str) -> Config:
        (tmp_path / "smtpd.conf").write_text(text)
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_text(content)
        return load(Path("smtpd.conf"))

    return configure


# ---- what is valid


def test_the_defaults(configure: Configure) -> None:
    config = configure(LISTEN)
    assert config == Config(
        path=Path("smtpd.conf"), hostname=socket.gethostname(), listeners=(Listener("127.0.0.1", 25),)
    )
    assert (config.queue_ttl_s, config.bounce_warn_s) == (4 * 86400, (4 * 3600,))
    assert (config.max_message_bytes, config.max_mails, config.max_rcpt) == (35 * 2**20, 100, 1000)


@pytest.mark.parametrize(
    ("options", "listener"),
    [
        ("port 0", Listener("127.0.0.1", 0)),
        ("port 65535 tag in", Listener("127.0.0.1", 65535, tag="in")),
        ("port smtp", Listener("127.0.0.1", 25)),
        ("inet4 port submission", Listener("127.0.0.1", 587)),
        ('mask-src hostname "mx.example.org"', Listener("127.0.0.1", 25, hostname="mx.example.org", mask_src=True)),
        ("hostname mx.example.org tag 'x y'", Listener("127.0.0.1", 25, "x y", "mx.example.org")),
    ],
)
def test_listen(configure: Configure, options: str, listener: Listener) -> None:
    assert configure(f"listen on 127.0.0.1 {options}").listeners == (listener,)


@pytest.mark.parametrize(
    ("where", "address"),
    [("::1", "::1"), ('"::1"', "::1"), ("lo inet4", "127.0.0.1"), ("localhost inet4", "127.0.0.1")],
)
def test_listen_on_an_interface_a_host_or_an_address(configure: Configure, where: str, address: str) -> None:
    assert configure(f"listen on {where} port 0").listeners == (Listener(address, 0),)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("relay", RelayAction(name="a")),
        ("relay host mx.example.org", RelayAction(name="a", host=RelayHost("mx.example.org"))),
        ("relay host smtp://127.0.0.1:2525", RelayAction(name="a", host=RelayHost("127.0.0.1", 2525))),
        ('relay host "smtp+notls://[::1]:26"', RelayAction(name="a", host=RelayHost("::1", 26, "smtp+notls"))),
        ("relay helo mx.example.org src 127.0.0.2", RelayAction(name="a", helo="mx.example.org", src="127.0.0.2")),
        ('relay src "::1"', RelayAction(name="a", src="::1")),
        ("mbox", MboxAction(name="a")),
        ("mbox alias <people> ttl 90s", MboxAction(name="a", alias="people", ttl_s=90)),
        ("maildir", MaildirAction(name="a", path="~/Maildir")),
        ('maildir "~/M" junk user vmail', MaildirAction(name="a", path="~/M", junk=True, user="vmail")),
        ("maildir junk virtual <people>", MaildirAction(name="a", junk=True, virtual="people")),
        ('lmtp "/run/lmtp" rcpt-to', LmtpAction(name="a", destination="/run/lmtp", rcpt_to=True)),
        ("lmtp localhost:24 userbase <people>", LmtpAction(name="a", destination="localhost:24", userbase="people")),
        ('mda "/bin/filter %{sender}" ttl 2m', MdaAction(name="a", command="/bin/filter %{sender}", ttl_s=120)),
        ("forward-only", ForwardOnlyAction(name="a")),
        ("expand-only alias <people>", ExpandOnlyAction(name="a", alias="people")),
    ],
)
def test_action(configure: Configure, text: str, action: object) -> None:
    tables = 'table people { bob = robert }\ntable addresses { 127.0.0.2, "::1" }\n'
    assert configure(f'{LISTEN}{tables}action "a" {text}').actions == {"a": action}


FROM_LOCAL = Criterion("from", "local")
FOR_LOCAL = Criterion("for", "local")


@pytest.mark.parametrize(
    ("text", "criteria"),
    [
        ("", [FROM_LOCAL, FOR_LOCAL]),
        ("from any for any", [Criterion("from", "any"), Criterion("for", "any")]),
        ("for any ! from local", [Criterion("for", "any"), Criterion("from", "local", negated=True)]),
        ("!from socket", [Criterion("from", "socket", negated=True), FOR_LOCAL]),
        ("from src <nets>", [Criterion("from", table="nets"), FOR_LOCAL]),
        ("from src regex <names>", [Criterion("from", table="names", regex=True), FOR_LOCAL]),
        ("! for domain <names>", [Criterion("for", table="names", negated=True), FROM_LOCAL]),
        (
            "tag <names> ! helo <names> auth",
            [
                Criterion("tag", table="names"),
                Criterion("helo", table="names", negated=True),
                Criterion("auth", "yes"),
                FROM_LOCAL,
                FOR_LOCAL,
            ],
        ),
        (
            "mail-from <names> rcpt-to regex <names>",
            [
                Criterion("mail-from", table="names"),
                Criterion("rcpt-to", table="names", regex=True),
                FROM_LOCAL,
                FOR_LOCAL,
            ],
        ),
        (
            "! from mail-from <names> for rcpt-to <names>",
            [
                Criterion("from", "any"),
                Criterion("mail-from", table="names", negated=True),
                Criterion("for", "any"),
                Criterion("rcpt-to", table="names"),
            ],
        ),
        ("! from auth", [Criterion("from", "any"), Criterion("auth", "yes", negated=True), FOR_LOCAL]),
    ],
)
def test_match(configure: Configure, text: str, criteria: list[Criterion]) -> None:
    given_tables = "table nets { 10.0.0.0/8 }\ntable names { x }\naction go relay\n"
    config = configure(f"{LISTEN}{given_tables}match {text} action go\nmatch {text} reject")
    assert config.matches == (Match(tuple(criteria), "go"), Match(tuple(criteria), None))


def test_a_table_in_place_is_a_table_without_a_name(configure: Configure) -> None:
    config = configure(f'{LISTEN}match from src {{ 10.0.0.1, "::1" }} for domain x.org reject')
    (rule,) = config.matches
    assert [config.tables[criterion.table].entries for criterion in rule.criteria] == [
        {"10.0.0.1": None, "::1": None},
        {"x.org": None},
    ]


def test_tables(configure: Configure, tmp_path: Path) -> None:
    config = configure(
        f"""{LISTEN}
        table list {{ a, b
            c, # a comment
            "d e" }}
        table map {{ a = 1, b => "x, y"
            "*" = z }}
        table near file:near.txt
        table far file:{tmp_path}/near.txt
        table slash "{tmp_path}/near.txt"
        table old static:near.txt
        table empty {{ lone }}
        """,
        near_txt="x\n",
    )
    assert config.tables == {
        "list": TableSpec("list", dict.fromkeys(("a", "b", "c", "d e"))),
        "map": TableSpec("map", {"a": "1", "b": "x, y", "*": "z"}),
        "near": TableSpec("near", path=Path("near.txt")),
        "far": TableSpec("far", path=tmp_path / "near.txt"),
        "slash": TableSpec("slash", path=tmp_path / "near.txt"),
        "old": TableSpec("old", path=Path("near.txt")),
        "empty": TableSpec("empty", {"lone": None}),
    }


def test_settings(configure: Configure) -> None:
    config = configure(
        f"{LISTEN}queue ttl 90m\nbounce warn-interval 1h, 2d\n"
        "smtp max-message-size 64K\nsmtp limit max-rcpt 7 max-mails 3"
    )
    assert (config.queue_ttl_s, config.bounce_warn_s) == (5400, (3600, 172800))
    assert (config.max_message_bytes, config.max_mails, config.max_rcpt) == (65536, 3, 7)
    assert configure(f"{LISTEN}smtp max-message-size 1000").max_message_bytes == 1000


def test_macros_comments_and_continued_lines(configure: Configure) -> None:
    config = configure(
        """\
# a comment that goes on \\
listen on nowhere
addr = "127.0.0.1"   # text
options="port 0 tag 'x y'"
nets = "{ 10.0.0.0/8, 192.0.2.0/24 }"
p = 2525
listen \\
    on $addr $options
listen on $addr port $p
match from src $nets for any reject
"""
    )
    assert config.listeners == (Listener("127.0.0.1", 0, "x y"), Listener("127.0.0.1", 2525))
    assert [list(spec.entries) for spec in config.tables.values()] == [["10.0.0.0/8", "192.0.2.0/24"]]


def test_quotes(configure: Configure) -> None:
    config = configure(LISTEN + 'table t { "a\\"b", \'c"d\', "e\\\\f", "g\\h", "i\nj", "tls", "$x#{}" }')
    assert list(config.tables["t"].entries) == ['a"b', 'c"d', "e\\\\f", "g\\h", "ij", "tls", "$x#{}"]


def test_line_ends_of_other_systems_and_none_at_the_end(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "dos").write_bytes(b"listen on 127.0.0.1 \\\r\n port 0\r\nqueue ttl 1d")
    config = load(tmp_path / "dos")
    assert (config.listeners[0].port, config.queue_ttl_s) == (0, 86400)


def test_include(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.conf").write_text('include "b.conf"\ntable t file:t.txt\n')
    (tmp_path / "sub" / "b.conf").write_text("listen on $addr port 0")
    (tmp_path / "sub" / "t.txt").write_text("x\n")
    config = configure('addr = 127.0.0.1\ninclude "sub/a.conf"\ninclude "sub/b.conf"\n')
    assert len(config.listeners) == 2
    assert config.tables["t"].path == Path("sub/t.txt")


# ---- what is not

BROKEN = [
    ("listen onn 127.0.0.1", 'smtpd.conf:1:8: expected "on", got "onn"'),
    ("listen", 'smtpd.conf:1:7: expected "on", got end of line'),
    ('listen "on" 127.0.0.1', 'smtpd.conf:1:8: expected "on", got "on" in quotes'),
    ("listen on", 'smtpd.conf:1:10: expected "socket" or a string, got end of line'),
    (
        "listen on 127.0.0.1 prot 25",
        'smtpd.conf:1:21: expected "hostname", "inet4", "inet6", "mask-src", "port", "tag" or end of line, got "prot"',
    ),
    ("listen on 127.0.0.1 port -1", 'smtpd.conf:1:26: "-1" is not a port; ports are 0 to 65535'),
    ("listen on 127.0.0.1 port 65536", 'smtpd.conf:1:26: "65536" is not a port; ports are 0 to 65535'),
    ("listen on 127.0.0.1 port gopherz", 'smtpd.conf:1:26: unknown service "gopherz"; write the port as a number'),
    ("listen on 127.0.0.1 port 25 port 26", 'smtpd.conf:1:29: "port" is given twice'),
    ("listen on 127.0.0.1 inet6", 'smtpd.conf:1:11: "127.0.0.1" has no address of IP version 6'),
    ("listen on 127.0.0.1 tls", 'smtpd.conf:1:21: "tls" is not supported yet'),
    ("listen on 127.0.0.1 tag x auth-optional", 'smtpd.conf:1:27: "auth-optional" is not supported yet'),
    ("listen on socket", 'smtpd.conf:1:11: "listen on socket" is not supported yet'),
    (
        "listen on relay",
        'smtpd.conf:1:11: expected "socket" or a string, got "relay"; it is a reserved word, which must be quoted to '
        "be a name",
    ),
    ("listen on /tmp/x", "smtpd.conf:1:11: unexpected /; text that begins with it must be quoted"),
    ("listen on \0", "smtpd.conf:1:11: unexpected character '\\x00'"),
    ('listen on "a', "smtpd.conf:1:11: the quoted string has no end"),
    ("listen on $addr", 'smtpd.conf:1:11: macro "addr" is not defined'),
    (
        'x = "a ; b"\nlisten on $x',
        "smtpd.conf:2:11: in the value of $x: unexpected ;; text that begins with it must be quoted",
    ),
    ('x = "port 99999"\nlisten on 127.0.0.1 $x', 'smtpd.conf:2:21: "99999" is not a port; ports are 0 to 65535'),
    ('"a b" = c', 'smtpd.conf:1:1: "a b" is no name for a macro; it can have letters, digits and "_"'),
    ("", 'smtpd.conf: nothing to listen on; write "listen on" and an address'),
    ("# only\n", 'smtpd.conf: nothing to listen on; write "listen on" and an address'),
    (
        "expire 4d",
        'smtpd.conf:1:8: expected "=", got "4d"',
    ),
    (
        "= x",
        'smtpd.conf:1:1: expected "action", "bounce", "include", "listen", "match", "queue", "smtp", "table" or a '
        'string, got "="',
    ),
    ("pki mx cert x", 'smtpd.conf:1:1: "pki" is not supported yet'),
    ("filter x phase connect match rdns reject", 'smtpd.conf:1:1: "filter" is not supported yet'),
    ("queue compression", 'smtpd.conf:1:7: "compression" is not supported yet'),
    ("queue ttl 4", 'smtpd.conf:1:11: expected a string, got "4"'),
    ("queue ttl 4w", 'smtpd.conf:1:11: "4w" is not a duration; write a positive number and s, m, h or d, as in 4d'),
    ("queue ttl 0d", 'smtpd.conf:1:11: "0d" is not a duration; write a positive number and s, m, h or d, as in 4d'),
    ("bounce warn-interval 1h, 2h, 3h, 4h, 5h", "smtpd.conf:1:38: more than 4 delays"),
    (
        "smtp max-message-size 35X",
        'smtpd.conf:1:23: "35X" is not a size; write a positive number and nothing, K, M, G or T, as in 35M',
    ),
    ("smtp limit max-foo 5", 'smtpd.conf:1:12: unknown limit "max-foo"; there is max-mails, max-rcpt'),
    ("smtp limit max-rcpt 0", "smtpd.conf:1:21: max-rcpt is 0; it can be 1 or more"),
    (
        "action a rely",
        'smtpd.conf:1:10: expected "expand-only", "forward-only", "lmtp", "maildir", "mbox", "mda" or "relay", '
        'got "rely"',
    ),
    ("action a relay tls", 'smtpd.conf:1:16: "tls" is not supported yet'),
    ("action a relay host smtps://x", 'smtpd.conf:1:21: "smtps://x": relaying over smtps is not supported yet'),
    (
        "action a relay host gopher://x",
        'smtpd.conf:1:21: "gopher://x": unknown protocol "gopher"; there is smtp, smtp+notls, smtp+tls, smtps, lmtp',
    ),
    ("action a relay host smtp://x:0", 'smtpd.conf:1:21: "smtp://x:0": "0" is not a port; ports are 1 to 65535'),
    ("action a relay host smtp://me@x", 'smtpd.conf:1:21: "smtp://me@x": a label is for smtps and smtp+tls only'),
    (
        'action a relay host "x y"',
        'smtpd.conf:1:21: "x y" is not a relay; write [proto://[label@]]host[:port], as in smtp://mail.example.org:25',
    ),
    ("action a relay host <t>", 'smtpd.conf:1:21: "host" with a table is not supported yet'),
    ("action a relay backup", 'smtpd.conf:1:16: "backup" is not supported yet'),
    ("action a relay mail-from x", 'smtpd.conf:1:16: "mail-from" is not supported yet'),
    ("action a relay src { ::1 }", 'smtpd.conf:1:20: "src" with a table is not supported yet'),
    ("action a relay src mx.org", "smtpd.conf:1:20: 'mx.org' does not appear to be an IPv4 or IPv6 address"),
    ("action a mbox user x", 'smtpd.conf:1:15: "user" has no meaning with "mbox"'),
    (
        "table t { a = b }\naction a mbox alias <t> virtual <t>",
        'smtpd.conf:2:25: "alias" and "virtual" exclude each other',
    ),
    ("action a mbox\naction a relay", 'smtpd.conf:2:8: action "a" is defined twice'),
    ("action a mbox alias <none>", "smtpd.conf:1:22: unknown table <none>"),
    ("table t { a }\naction a mbox alias <t>", "smtpd.conf:2:22: <t> is a list, and a mapping is needed here"),
    ("match action a", 'smtpd.conf:1:14: unknown action "a"'),
    ("action go relay\nmatch action gone", 'smtpd.conf:2:14: unknown action "gone"; there is go'),
    ("table t { a }\nmatch for domain <u> reject", "smtpd.conf:2:19: unknown table <u>; there is t"),
    ("table t { a = b }\nmatch for domain <t> reject", "smtpd.conf:2:19: <t> is a mapping, and a list is needed here"),
    ("match from src { 10.0.0.1, lan } reject", "smtpd.conf:1:16: 'lan' is neither an address nor a network"),
    (
        "match helo regex '(' reject",
        "smtpd.conf:1:18: '(' is not a regular expression: missing ), unterminated subpattern at position 0",
    ),
    ("match from any from local reject", 'smtpd.conf:1:16: "from" is given twice in this rule'),
    ("match mail-from a from mail-from b reject", 'smtpd.conf:1:19: "mail-from" is given twice in this rule'),
    ("match tls reject", 'smtpd.conf:1:7: "tls" is not supported yet'),
    ("match from rdns reject", 'smtpd.conf:1:12: "rdns" is not supported yet'),
    ("match auth <users> reject", 'smtpd.conf:1:7: "auth" with users is not supported yet'),
    (
        "match from everybody reject",
        'smtpd.conf:1:12: expected "any", "auth", "local", "mail-from", "socket" or "src", got "everybody"',
    ),
    (
        "match from any",
        'smtpd.conf:1:15: expected "!", "action", "auth", "for", "from", "helo", "mail-from", "rcpt-to", "reject" or '
        '"tag", got end of line',
    ),
    ("table t { a, }", 'smtpd.conf:1:14: expected a string, got "}"'),
    ("table t { a = b, c }", 'smtpd.conf:1:20: expected "=", got "}"'),
    (
        "table t { a\n\nlisten on 127.0.0.1",
        'smtpd.conf:3:1: expected ",", "=", "}" or a string, got "listen"; it is a reserved word, which must be '
        "quoted to be a name",
    ),
    ("table t { a, a = b }", 'smtpd.conf:1:16: expected ",", "}" or a string, got "="'),
    ("table t { a = b, a = c }", 'smtpd.conf:1:18: "a" is given twice'),
    ("table t { a }\ntable t { b }", 'smtpd.conf:2:7: table "t" is defined twice'),
    ("table t ldap:x", 'smtpd.conf:1:9: tables of type "ldap" are not supported yet; there is "file:" and a path'),
    ("table t file:", 'smtpd.conf:1:9: "file:" has no path; write file: and the path of the file'),
    ("table t file:none.txt", "smtpd.conf:1:9: none.txt: cannot read the table: No such file or directory"),
    ('include "none.conf"', 'smtpd.conf:1:9: cannot include "none.conf": No such file or directory'),
    ('include "smtpd.conf"', 'smtpd.conf:1:9: cannot include "smtpd.conf": it includes itself'),
    ('include "."', 'smtpd.conf:1:9: cannot include ".": Is a directory'),
]


@pytest.mark.parametrize(
    ("text", "error"), BROKEN, ids=[text[:40].encode("unicode_escape").decode() for text, _ in BROKEN]
)
def test_a_mistake_is_named_with_its_place(configure: Configure, text: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        configure(text)
    listening = [line for line in str(raised.value).splitlines() if "nothing to listen on" not in line]
    assert (listening or [str(raised.value)]) == [error]


def test_a_host_that_nobody_knows(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        ConfigError, match=r'^smtpd.conf:1:11: "eth99" is neither an interface nor a host that can be fo'
    ):
        configure("listen on eth99")


def test_every_mistake_is_told_in_one_pass(configure: Configure) -> None:
    with pytest.raises(ConfigError) as raised:
        configure(
            """\
listen on 127.0.0.1 port 99999
listen onn 127.0.0.1
table t { a, b
match from any for anybody action nowhere
action x relay host ftp://y
    queue ttl never
include "good.conf"
""",
            good_conf="action y rely\nlisten on\n",
        )
    assert [error.split(": ")[0] for error in raised.value.errors] == [
        "smtpd.conf:1:26",
        "smtpd.conf:2:8",
        "smtpd.conf:4:1",
        "smtpd.conf:4:20",
        "smtpd.conf:5:21",
        "smtpd.conf:6:15",
        "good.conf:1:10",
        "good.conf:2:10",
    ]
    assert str(raised.value) == "\n".join(raised.value.errors)


def test_a_wrong_statement_makes_no_mistakes_of_its_neighbours(configure: Configure) -> None:
    with pytest.raises(ConfigError) as raised:
        configure(f"{LISTEN}table t file:none\naction a relay host x:y\nmatch for domain <t> action a\n")
    assert len(raised.value.errors) == 2


def test_bad_entries_of_a_table_file_are_named(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"^smtpd.conf:3:17: nets:2: 'lan' is neither an address nor a network$"):
        configure(f"{LISTEN}table nets file:nets\nmatch from src <nets> reject", nets="10.0.0.1\nlan\n")


def test_a_circle_of_includes(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r'^b.conf:1:9: cannot include "a.conf": it includes itself$'):
        configure(f'{LISTEN}include "a.conf"', a_conf='include "b.conf"', b_conf='include "a.conf"')


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}/x: cannot read the configuration: No such file or directory$"):
        load(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"listen\nlisten \xff")
    with pytest.raises(ConfigError, match=f"^{tmp_path}/x:2:8: byte 0xff is not UTF-8$"):
        load(tmp_path / "x")


def test_mistakes_without_end_have_an_end(configure: Configure) -> None:
    with pytest.raises(ConfigError) as raised:
        configure("listen\n" * 1000)
    assert len(raised.value.errors) == 50


def test_a_macro_bomb_does_not_eat_the_memory(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="a statement of more than 100000 words"):
        configure("x = '" + "a " * 50000 + "'\ntable t { $x $x $x }")


WORDS = (
    "listen on 127.0.0.1 port 0 tag action relay host smtp://x:2 match from for any local domain src { } < > ! , = => "
    "reject table t a file:x include queue ttl 4d smtp limit max-rcpt 5 bounce warn-interval 1h tls regex auth # \\ $m "
    '\n \\\n " \' maildir mbox alias backup mx mail-from rcpt-to m = "x\0" \u00e9 99999999999999999999 -1'
)
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS.split(" ")), max_size=30).map(" ".join).map(str.encode),
    st.text(max_size=80).map(lambda text: text.encode(errors="replace")),
    st.binary(max_size=80),
)


@given(TEXTS)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_a_config_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.conf"
    path.write_bytes(content)
    with mock.patch("socket.getaddrinfo", side_effect=socket.gaierror(socket.EAI_NONAME, "no network in tests")):
        try:
            listeners: object = load(path).listeners
        except ConfigError as error:
            listeners = all(line.startswith(os.fspath(path)) for line in error.errors) and error.errors
    assert listeners
