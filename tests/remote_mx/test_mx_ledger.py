"""The remote MX's books: what counts as refused, what is a duplicate, and whom a bounce is about."""

from __future__ import annotations

import pytest

from harness.remote_mx.ledger import KEPT_BYTES, Account, Ledger, Transaction, returned_message_id
from mta_under_test.wire import dsn

OUR_BOUNCE = (
    dsn.opening(
        "failed",
        hostname="target.test",
        sender="bob@sender.test",
        recipients=[dsn.Recipient("c@refused.test", "550 5.1.1 No such user", "failed")],
        report_id="b1",
        arrival=0,
    )
    + b"Received: from x\r\nMessage-Id: <original@load>\r\nSubject: x"
    + dsn.closing("b1", "target.test")
)
POSTFIX_BOUNCE = b"""\
Return-Path: <>\r
From: MAILER-DAEMON@mail.test (Mail Delivery System)\r
Content-Type: multipart/report; report-type=delivery-status; boundary="X"\r
Message-Id: <the-bounce@mail.test>\r
\r
--X\r
Content-Description: Notification\r
\r
I'm sorry.\r
--X\r
Content-Type: message/delivery-status\r
\r
Final-Recipient: rfc822; c@refused.test\r
Action: %s\r
\r
--X\r
Content-Description: Undelivered Message\r
Content-Type: message/rfc822\r
\r
Message-ID:\r
 <original@load>\r
\r
Message-ID: <quoted@in.the.body>\r
--X--\r
"""
QMAIL_BOUNCE = (
    b"Message-ID: <b@q>\r\n\r\nHi. This is qmail.\r\n\r\n--- Below this line\r\n\r\nMessage-Id: <original@load>\r\n"
)


@pytest.mark.parametrize(
    ("bounce", "returned"),
    [
        (OUR_BOUNCE, "original@load"),
        (POSTFIX_BOUNCE % b"failed", "original@load"),
        (POSTFIX_BOUNCE % b"delayed", ""),
        (QMAIL_BOUNCE, "original@load"),
        (b"Message-ID: <own@id>\r\n\r\nnothing returned\r\n", ""),
        (b"\r\nMessage-ID: <body@only>\r\n", "body@only"),
        (b"", ""),
    ],
)
def test_a_bounce_tells_which_message_it_returns(bounce: bytes, returned: str) -> None:
    assert returned_message_id(bounce) == returned


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def account(ledger: Ledger) -> Account:
    return ledger.account("mx")


def deliver(account: Account, message: bytes, *recipients: str, sender: str = "a@b.test") -> None:
    account.begin(sender)
    for recipient in recipients:
        account.accept_recipient(recipient)
    assert account.transaction is not None
    account.transaction.body(message)
    account.deliver()
    account.end()


def test_delivered_by_message_id_and_recipient(ledger: Ledger, account: Account) -> None:
    deliver(account, b"Subject: x\r\nmessage-id: <1@x>\r\n\r\nbody\r\n", "c@d.test", "e@d.test")
    deliver(account, b"Message-ID: <2@x>\r\n\r\n", "c@d.test")
    deliver(account, b"Subject: none\r\n\r\nMessage-ID: <3@x>\r\n", "c@d.test")
    report = ledger.report()
    assert report.delivered == {"1@x": ["c@d.test", "e@d.test"], "2@x": ["c@d.test"]}
    assert (report.without_id, report.duplicated, report.bounced) == (1, set(), set())
    assert report.listeners["mx"].accepted == 3


def test_the_same_message_twice_is_a_duplicate_only_for_the_same_recipient(ledger: Ledger, account: Account) -> None:
    deliver(account, b"Message-ID: <1@x>\r\n\r\n", "c@d.test")
    deliver(account, b"Message-ID: <1@x>\r\n\r\n", "e@d.test")
    assert ledger.report().duplicated == set()
    deliver(ledger.account("other"), b"Message-ID: <1@x>\r\n\r\n", "c@d.test")
    assert ledger.report().duplicated == {"1@x"}
    assert ledger.report().delivered == {"1@x": ["c@d.test", "e@d.test", "c@d.test"]}


def test_only_the_null_sender_sends_bounces(ledger: Ledger, account: Account) -> None:
    deliver(account, OUR_BOUNCE, "bob@sender.test", sender="postmaster@target.test")
    assert ledger.report().bounced == set()
    deliver(account, OUR_BOUNCE, "bob@sender.test", sender="")
    assert ledger.report().bounced == {"original@load"}


def refused(transaction: Transaction, *recipients: bool, whole: bool = False) -> str:
    for accepted in recipients:
        (transaction.accepted if accepted else transaction.refused).append("c@d.test")
    transaction.whole_refused = whole
    return transaction.fate


def test_a_bounce_that_is_refused_for_good_has_told_its_story(ledger: Ledger, account: Account) -> None:
    for returned in (False, True):
        account.begin("")
        account.accept_recipient("bob@sender.test")
        assert account.transaction is not None
        account.transaction.body(OUR_BOUNCE)
        account.refuse_whole("554 no", returned=returned)
        account.end()
        assert ledger.report().bounced == ({"original@load"} if returned else set())
    assert not ledger.report().delivered


def test_a_message_is_refused_when_nobody_gets_it() -> None:
    assert refused(Transaction(""), False, False) == "refused"
    assert refused(Transaction(""), whole=True) == "refused"
    assert refused(Transaction(""), True, whole=True) == "refused"
    assert refused(Transaction(""), True, False) == "abandoned"  # RSET before DATA
    assert refused(Transaction("")) == "abandoned"


def test_a_transaction_is_counted_once_when_it_is_over(ledger: Ledger, account: Account) -> None:
    totals = ledger.listener("mx")
    account.begin("a@b.test")
    account.refuse_recipient("c@d.test", "550 no")
    account.refuse_recipient("e@d.test", "550 no")
    assert (totals.refused_recipients, totals.refused_messages) == (2, 0)
    assert account.end() is not None
    assert account.end() is None
    assert totals.refused_messages == 1


def test_sessions_and_their_transactions(ledger: Ledger) -> None:
    accounts = [ledger.account("mx") for _ in range(3)]
    for number, account in enumerate(accounts):
        for _ in range(number):
            account.begin("")
            account.end()
    accounts[0].close(dropped=True)
    accounts[1].close(dropped=False)
    totals = ledger.listener("mx")
    assert (totals.sessions, totals.open_sessions, totals.dropped_sessions) == (3, 1, 1)
    assert (totals.transactions, totals.most_transactions_in_a_session) == (3, 2)


def test_a_huge_message_is_measured_and_not_kept() -> None:
    transaction = Transaction("")
    for _ in range(10):
        transaction.body(b"x" * KEPT_BYTES)
    assert transaction.size_bytes == 10 * KEPT_BYTES
    assert len(transaction.kept) == KEPT_BYTES
