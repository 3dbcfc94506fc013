"""Format specifiers: what they stand for, and what an address cannot do with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_under_test.processes.mda.format import FormatError, Job, arguments, fill

JOB = Job(
    action="local",
    sender="Eve+x@Sender.test",
    rcpt="team@here.test",
    dest="Bob+tag@Here.test",
    user="bob",
    uid=1,
    gid=1,
    directory="/home/bob",
)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("~/Maildir", "/home/bob/Maildir"),
        ("a~/b", "a~/b"),
        ("%{user.username}", "bob"),
        ("%{user.directory}/x", "/home/bob/x"),
        ("%{sender}", "Eve+x@Sender.test"),
        ("%{sender.user}|%{sender.domain}", "Eve+x|Sender.test"),
        ("%{rcpt}", "team@here.test"),
        ("%{DEST.User}", "Bob+tag"),
        ("%{dest.user:strip}", "Bob"),
        ("%{dest:strip|lowercase}", "bob@here.test"),
        ("%{dest.domain:uppercase}", "HERE.TEST"),
        ("%{mbox.from}", "Eve+x@Sender.test"),
        ("%{rcpt.user[0]}", "t"),
        ("%{rcpt.user[1:2]}", "ea"),
        ("%{rcpt.user[2:]}", "am"),
        ("%{rcpt.user[:1]}", "te"),
        ("%{rcpt.user[-2:]}", "am"),
        ("%{rcpt.user[-1]}", "m"),
        ("%{rcpt.user[0:-1]}", "tea"),
        ("%{rcpt.user[0:99]:uppercase}", "TEAM"),
        ("100%% %{user.username}%", "100% bob%"),
    ],
)
def test_specifiers(text: str, filled: str) -> None:
    assert fill(text, JOB, "+") == filled


def test_a_bounce_has_a_sender_after_all() -> None:
    job = Job(action="a", sender="", rcpt="", dest="", user="bob", uid=1, gid=1, directory="/")
    assert fill("%{mbox.from} <%{sender}> <%{sender.domain[0:2]}>", job, "+") == "MAILER-DAEMON <> <>"


@pytest.mark.parametrize(
    "text",
    ["%{nothing}", "%{user}", "%{rcpt.user", "%{rcpt:twist}", "%{rcpt.user[9]}", "%{rcpt[]}", "%{rcpt[a]}", "%{}"],
)
def test_what_is_no_specifier_is_an_error(text: str) -> None:
    with pytest.raises(FormatError):
        fill(text, JOB, "+")


def test_commands_are_split_before_they_are_filled() -> None:
    job = Job(action="a", sender="", rcpt='"two words"@x', dest="-f@x", user="b", uid=1, gid=1, directory="/h")
    assert arguments("/bin/x '%{rcpt.user} y' %{dest.user} -%{dest.user} %{dest.user:raw}", job, "+") == [
        "/bin/x",
        "two words y",
        ":f",
        "--f",
        "-f",
    ]


def test_a_wrapped_command_stays_a_list() -> None:
    assert arguments("nice %{mda} sh '-c=%{mda}'", JOB, "+", ["/bin/a b", "c"]) == [
        "nice",
        "/bin/a b",
        "c",
        "sh",
        "-c='/bin/a b' c",
    ]


@pytest.mark.parametrize("command", ["", "'open", "a\0b"])
def test_what_is_no_command(command: str) -> None:
    with pytest.raises(FormatError):
        arguments(command, JOB, "+")


@given(st.text(max_size=40), st.sampled_from(["user.username", "sender.user", "rcpt", "dest.user", "dest.domain"]))
def test_no_address_leaves_its_directory_or_its_argument(value: str, name: str) -> None:
    job = Job(
        action="a", sender=f"{value}@x", rcpt=value, dest=f"{value}@{value}", user=value, uid=1, gid=1, directory="/h"
    )
    path = fill(f"/mail/%{{{name}}}/%{{{name}:lowercase}}/new", job, "+")
    assert path.startswith("/mail/")
    assert path.count("/") == 4
    assert not {"..", "."} & set(path.split("/"))
    assert "\0" not in path
    (program, argument, last) = arguments(f"prog %{{{name}}} end", job, "+")
    assert (program, last) == ("prog", "end")
    assert not argument.startswith("-")
