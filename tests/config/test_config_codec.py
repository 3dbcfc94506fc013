"""A configuration survives its way to another process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mta_under_test.config import load
from mta_under_test.config.codec import decode, encode

CONFIGURATION = """
table users { "bob" = "1000:1000:/home/bob" }
table list { a, b }
table aliases file:aliases
table nets { 10.0.0.0/8 }
filter "no" phase connect match src <nets> reject "550 go away"
filter "prog" proc-exec "/bin/prog -v"
filter "both" chain { "no", "prog" }
mda wrapper "w" "/bin/nice %{mda}"
mda limit max-session 3
mta limit session-mail-max 5
mta limit for domain example.org max-conn-per-host 3
smtp max-message-size 1M
queue ttl 2d
listen on 127.0.0.1 port 2525 tag T filter "both"
action "mbox" mbox alias <aliases>
action "maildir" maildir "~/M" junk userbase <users> wrapper "w"
action "mda" mda "/bin/cat" user nobody ttl 1h
action "lmtp" lmtp "/run/lmtp" rcpt-to
action "expand" expand-only alias <aliases>
action "forward" forward-only
action "relay" relay host smtp+tls://label@mail.example.org:587 auth <users> helo us.example.org
match from any for domain example.org action "relay"
match ! from local mail-from regex "x.*" for any reject
match for any action "maildir"
"""


def test_every_kind_of_statement_comes_back_the_same(tmp_path: Path) -> None:
    (tmp_path / "aliases").write_text("a: b\n")
    (tmp_path / "smtpd.conf").write_text(CONFIGURATION)
    config = load(tmp_path / "smtpd.conf")
    assert len(config.actions) == 7
    found = decode(encode(config))
    assert found == config
    assert {name: type(action) for name, action in found.actions.items()} == {
        name: type(action) for name, action in config.actions.items()
    }
    assert type(found) is type(config)


@pytest.mark.parametrize("text", [b"", b"\xc0", b"{}", msgspec.msgpack.encode({"path": 3})])
def test_anything_else_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(text)
