"""The Received field: its words, and that it can be read back as a header field."""

from __future__ import annotations

import email
import re

import pytest

from mta_under_test.wire.received import protocol, received


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"extended": False}, "SMTP"),
        ({"extended": True}, "ESMTP"),
        ({"extended": True, "secure": True}, "ESMTPS"),
        ({"extended": True, "secure": True, "authenticated": True}, "ESMTPSA"),
        ({"extended": True, "utf8": True}, "UTF8SMTP"),
        ({"extended": True, "utf8": True, "authenticated": True}, "UTF8SMTPA"),
        ({"extended": True, "utf8": True, "secure": True, "authenticated": True}, "UTF8SMTPSA"),
    ],
)
def test_the_protocol_words_of_rfc_3848_and_6531(facts: dict[str, bool], word: str) -> None:
    assert protocol(**facts) == word


def field(**changes: object) -> str:
    facts: dict[str, object] = {
        "helo": "client.test",
        "rdns": "host.test",
        "address": "192.0.2.7",
        "hostname": "mx.test",
        "protocol": "ESMTP",
        "message_id": "00c0ffee",
        "recipient": "a@b.test",
    }
    text = received(**{**facts, **changes})  # type: ignore[arg-type]
    value = email.message_from_bytes(text + b"\r\n")["Received"]
    return re.sub(r"\s+", " ", value)


def test_it_says_from_whom_by_whom_how_and_for_whom() -> None:
    assert field().startswith(
        "from client.test (host.test [192.0.2.7]) by mx.test (Seatbelt) with ESMTP id 00c0ffee for <a@b.test>; "
    )
    assert " (host.test [IPv6:2001:db8::1]) " in field(address="2001:db8::1")
    assert field(address="", rdns="", helo="localhost").startswith("from localhost ([local]) by mx.test ")


def test_what_is_not_to_be_told_is_left_out() -> None:
    assert field(hides_source=True).startswith("by mx.test ")
    assert " for " not in field(recipient="")
