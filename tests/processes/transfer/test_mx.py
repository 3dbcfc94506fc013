"""Mail finds its way by the DNS: the best host first, the next one when it is down, and every reason not to go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes.daemon import Smtpd, until
from tests.processes.internet import HOME, Internet

StartSmtpd = Callable[..., Smtpd]

CONFIGURATION = """
listen on 127.0.0.1 port 0 hostname "relay.test"
{statements}
action "home" relay host smtp://127.0.0.1:{home}
action "out" relay {options}
match from any for domain "sender.test" action "home"
match from any for any action "out"
"""


def message(number: int) -> str:
    return f"Message-ID: <{number}@sender.test>\r\nSubject: {number}\r\n\r\nhello\r\n"


@pytest.fixture
def internet() -> Iterator[Internet]:
    with Internet("a", "b") as internet:
        yield internet


@pytest.fixture
def start(start_smtpd: StartSmtpd, internet: Internet, tmp_path: Path) -> Callable[..., Smtpd]:
    def start(options: str = "", statements: str = "") -> Smtpd:
        configuration = CONFIGURATION.format(home=internet.mx.ports[HOME], options=options, statements=statements)
        return start_smtpd(configuration, *internet.arguments(tmp_path))

    return start


def said(smtpd: Smtpd, domain: str) -> str:
    """What became of mail for a domain."""
    lines = smtpd.smtpctl("show", "hoststats").stdout.splitlines()
    return next((line.split("|", 2)[2] for line in lines if line.startswith(f"{domain}|")), "")


def test_the_best_exchanger_gets_the_mail(start: Callable[..., Smtpd], internet: Internet) -> None:
    internet.zone(to={"MX": ["20 b.mx.test.", "10 a.mx.test."]})
    smtpd = start()
    smtpd.send("x@to.test", text=message(1))
    until(lambda: internet.accepted() == {"a": 1}, "delivery to the best host")


@pytest.mark.parametrize("trouble", ["down", "refuses connections"])
def test_the_next_exchanger_gets_it_when_the_best_is_not_there(
    start: Callable[..., Smtpd], internet: Internet, trouble: str
) -> None:
    if trouble == "down":
        internet.zone(to={"MX": ["10 down.mx.test.", "20 b.mx.test."]})
    else:
        internet.zone(to={"MX": ["10 a.mx.test.", "20 b.mx.test."]})
        internet.mx.set_policy("a", "connect=421")
    smtpd = start()
    smtpd.send("x@to.test", text=message(1))
    until(lambda: internet.accepted() == {"b": 1}, "delivery to the second host")
    assert " -D" not in smtpd.smtpctl("show", "routes").stdout
    assert "ND" in smtpd.smtpctl("show", "routes").stdout
    smtpd.send("x@to.test", text=message(2))
    until(lambda: internet.accepted() == {"b": 2}, "delivery to the second host, without trying the first one")
    assert smtpd.stats()["mta.session.total"] == 3


def test_without_mx_the_domain_itself_is_the_exchanger(start: Callable[..., Smtpd], internet: Internet) -> None:
    internet.zone(to={"A": [internet.addresses["b"]]})
    start().send("x@to.test")
    until(lambda: internet.accepted() == {"b": 1}, "delivery to the domain's own host")


def test_an_address_literal_needs_no_dns(start: Callable[..., Smtpd], internet: Internet) -> None:
    start().send(f"x@[{internet.addresses['a']}]")
    until(lambda: internet.accepted() == {"a": 1}, "delivery to the address")
    assert internet.dns.questions() == []


def test_aliases_are_followed(start: Callable[..., Smtpd], internet: Internet) -> None:
    internet.zone(to={"CNAME": ["other.test."]}, other={"MX": ["10 alias.test."]}, alias={"CNAME": ["a.mx.test."]})
    start().send("x@to.test")
    until(lambda: internet.accepted() == {"a": 1}, "delivery behind two aliases")


@pytest.mark.parametrize(
    ("records", "status"),
    [
        ({"MX": ["0 ."]}, "556 5.1.10 to.test does not accept mail (null MX)"),
        (None, "550 5.1.2 no such domain: to.test"),
        (
            {"MX": ["10 relay.test.", "20 a.mx.test."]},
            "554 5.4.6 mail for to.test loops back to this server (relay.test)",
        ),
    ],
)
def test_mail_that_can_go_nowhere_comes_back(
    start: Callable[..., Smtpd], internet: Internet, records: object, status: str
) -> None:
    internet.zone(**({"to": records} if records else {}))
    smtpd = start()
    smtpd.send("x@to.test", text=message(1))
    until(lambda: "1@sender.test" in internet.mx.ledger().bounced, "a bounce")
    assert said(smtpd, "to.test") == status
    until(smtpd.at_rest, "rest")
    assert smtpd.stats()["scheduler.envelope"] == 0


@pytest.mark.parametrize("trouble", ["SERVFAIL", "TIMEOUT"])
def test_trouble_with_the_dns_passes(start: Callable[..., Smtpd], internet: Internet, trouble: str) -> None:
    internet.zone(to=trouble)
    smtpd = start()
    smtpd.send("x@to.test", text=message(1))
    until(
        lambda: "451 4.4.3 cannot resolve to.test now" in smtpd.smtpctl("show", "queue").stdout, "a temporary failure"
    )
    internet.zone(to={"MX": ["10 a.mx.test."]})
    smtpd.try_again()
    until(lambda: internet.accepted() == {"a": 1}, "delivery once the DNS works again")


def test_a_backup_relays_to_better_hosts_only(start: Callable[..., Smtpd], internet: Internet) -> None:
    internet.zone(to={"MX": ["10 down.mx.test.", "20 backup.test.", "30 a.mx.test."]})
    smtpd = start('backup mx "backup.test"')
    smtpd.send("x@to.test")
    until(lambda: "451 4.4.1" in smtpd.smtpctl("show", "queue").stdout, "a temporary failure")
    assert internet.accepted() == {}
    internet.zone(to={"MX": ["10 b.mx.test.", "20 backup.test.", "30 a.mx.test."]})
    smtpd.try_again()
    until(lambda: internet.accepted() == {"b": 1}, "delivery to the better host")


def test_a_backup_is_called_as_the_server_where_nothing_is_said(
    start: Callable[..., Smtpd], internet: Internet
) -> None:
    internet.zone(to={"MX": ["20 relay.test.", "30 a.mx.test."]})
    smtpd = start("backup")
    smtpd.send("x@to.test")
    until(lambda: said(smtpd, "to.test"), "a temporary failure")
    assert said(smtpd, "to.test") == "451 4.4.4 no mail exchanger of to.test is better than relay.test"


def test_a_table_names_the_host_of_a_domain(start: Callable[..., Smtpd], internet: Internet) -> None:
    smtpd = start(
        "domain <hosts>", f'table hosts {{ "to.test" = "smtp://b.mx.test:{internet.port}", "bad.test" = "ftp://x" }}'
    )
    smtpd.send("x@TO.test", "y@to.test")
    until(lambda: internet.accepted() == {"b": 1}, "one transaction to the table's host")
    smtpd.send("x@other.test", "x@bad.test")
    until(lambda: len(smtpd.smtpctl("show", "queue").stdout.splitlines()) == 2, "two that stay")
    until(lambda: "other.test is not in table <hosts>" in smtpd.smtpctl("show", "queue").stdout, "its reason")
    assert "unknown protocol" in smtpd.smtpctl("show", "queue").stdout


def test_a_smarthost_is_a_name_in_the_dns_too(start: Callable[..., Smtpd], internet: Internet) -> None:
    internet.zone(smart={"A": [internet.address_of_nobody, internet.addresses["a"]], "MX": ["10 b.mx.test."]})
    start(f"host smtp://smart.test:{internet.port}").send("x@to.test")
    until(lambda: internet.accepted() == {"a": 1}, "delivery to an address of the smarthost, not to its exchanger")


@pytest.mark.parametrize(("family", "host"), [("inet4", "four"), ("inet6", "six")])
def test_a_family_may_be_chosen(start_smtpd: StartSmtpd, tmp_path: Path, family: str, host: str) -> None:
    with Internet("four", ipv6=["six"]) as internet:
        internet.zone(to={"MX": ["10 four.mx.test.", "10 six.mx.test."]})
        configuration = CONFIGURATION.format(home=internet.mx.ports[HOME], options="", statements=f"mta limit {family}")
        smtpd = start_smtpd(configuration, *internet.arguments(tmp_path))
        for number in range(4):
            smtpd.send("x@to.test", text=message(number))
        until(lambda: internet.accepted() == {host: 4}, f"delivery over {family}")
