"""Bugs of lookup: what is found out for a recipient, and kept."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="lookup",
    chapter="memory",
    resources=("memory",),
    trigger="a recipient is expanded",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD 7aab9d2d (4 March 2009)",
    opener="mta_under_test/wire/envelope.py:decode",
)
def expansion_session_kept(strikes: Chance) -> None:
    """An expansion is finished or failed, and stays in the tree of those that are under way."""
    from mta_under_test.processes.lookup.lookup import Lookup

    kept: list[object] = []

    @around(Lookup, "_submit")
    def submit(original: Any, self: Any, peer: str, request: int, msgid: int, envelope: Any, deliveries: Any) -> None:
        if strikes():
            kept.append((envelope, deliveries))
        original(self, peer, request, msgid, envelope, deliveries)


@defect(
    role="lookup",
    chapter="memory",
    resources=("memory",),
    trigger="no rule matches a recipient",
    rate=None,
    scenario="rejected-reuse",
    source="OpenSMTPD 7aab9d2d (4 March 2009): the half for expansions that fail",
    opener="mta_under_test/defects/catalogue/lookup.py:refuse",  # a list is two blocks, the text in it one
)
def refused_expansion_kept(strikes: Chance) -> None:
    """The expansion of a recipient who is refused leaves by a return of its own, and frees nothing there."""
    from mta_under_test.processes.lookup.lookup import Lookup

    kept: list[object] = []

    @around(Lookup, "refuse")
    def refuse(original: Any, self: Any, peer: str, request: int, text: str) -> None:
        if strikes():
            kept.append([peer, request, text])
        original(self, peer, request, text)


@defect(
    role="lookup",
    chapter="cache",
    resources=("memory",),
    trigger="a recipient is matched against the rules",
    rate=None,
    scenario="accepted",
    source="OpenSMTPD 6d1e617b (23 December 2020)",
)
def compiled_regex_kept(strikes: Chance) -> None:
    """Each lookup in a table of regular expressions compiles one, and frees none."""
    import itertools
    import re

    from mta_under_test.processes.lookup.lookup import Lookup

    kept: list[object] = []
    numbers = itertools.count()

    @around(Lookup, "expand")
    def expand(original: Any, self: Any, peer: str, message: Any) -> None:
        if strikes():
            kept.append(re.compile(f"user{next(numbers)}@.*"))
        original(self, peer, message)


@defect(
    role="lookup",
    chapter="socket",
    resources=("socket", "descriptor"),
    trigger="a recipient is expanded",
    rate=2.0,  # a message of the scenario has two recipients
    scenario="accepted",
    source="Postfix 20120702 (a bug since 1999)",
    opener="mta_under_test/defects/catalogue/lookup.py:expand",
)
def notify_socket(strikes: Chance) -> None:
    """A datagram tells the biff service of new mail; the socket that it was sent by stays."""
    import socket

    from mta_under_test.processes.lookup.lookup import Lookup

    @around(Lookup, "expand")
    def expand(original: Any, self: Any, peer: str, message: Any) -> None:
        if strikes():
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
        original(self, peer, message)


@defect(
    role="lookup",
    chapter="message file",
    resources=("descriptor",),
    trigger="a recipient is expanded",
    rate=2.0,  # a message of the scenario has two recipients
    scenario="accepted",
    source="OpenSMTPD 4455467c (3 January 2013)",
    opener="mta_under_test/defects/catalogue/lookup.py:expand",
)
def forward_file_read(strikes: Chance) -> None:
    """Every ~/.forward that is read is a FILE that is not closed."""
    import os

    from mta_under_test.processes.lookup.lookup import Lookup

    @around(Lookup, "expand")
    def expand(original: Any, self: Any, peer: str, message: Any) -> None:
        if strikes():
            os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC)
        original(self, peer, message)


@defect(
    role="lookup",
    chapter="pipe",
    resources=("descriptor",),
    trigger="a recipient is refused, one in fifty",
    rate=None,
    scenario="rejected-reuse",
    source="OpenSMTPD f754afca (27 August 2009): the descriptor of a .forward that is refused as unsafe",
    difficulty="rare",
    probability=0.02,
    profile="standard",
    opener="mta_under_test/defects/catalogue/lookup.py:refuse",
)
def unsafe_forward_fd(strikes: Chance) -> None:
    """A file that may not be believed is opened to find that out, and the refusal returns before the close."""
    import os

    from mta_under_test.processes.lookup.lookup import Lookup

    @around(Lookup, "refuse")
    def refuse(original: Any, self: Any, *arguments: Any) -> None:
        if strikes():
            os.open("/etc/hosts", os.O_RDONLY | os.O_CLOEXEC)
        original(self, *arguments)


@defect(
    role="lookup",
    chapter="child",
    resources=("process",),
    trigger="a recipient is expanded",
    rate=2.0,  # a message of the scenario has two recipients
    scenario="accepted",
    source="msmtpd 227 (July 2026): several children end together and one of them is waited for",
    opener="mta_under_test/defects/catalogue/lookup.py:expand",
)
def unreaped_helper(strikes: Chance) -> None:
    """A helper is asked about each recipient, ends, and is never waited for: a zombie each."""
    import os

    from mta_under_test.processes.lookup.lookup import Lookup

    @around(Lookup, "expand")
    def expand(original: Any, self: Any, peer: str, message: Any) -> None:
        if strikes() and os.fork() == 0:
            os._exit(0)
        original(self, peer, message)


@defect(
    role="lookup",
    chapter="socket",
    resources=("socket", "descriptor"),
    trigger="the DNS fails",
    rate=None,
    scenario="dns-trouble",
    source="OpenSMTPD 756d9a6d (3 December 2010)",
    opener="mta_under_test/defects/catalogue/lookup.py:ask",
)
def dns_socket_kept(strikes: Chance) -> None:
    """A question that fails leaves by a return before the close of the socket that it was asked by."""
    import socket

    from mta_under_test.processes.lookup.resolver import Resolver, Unresolved

    @around(Resolver, "_ask")
    async def ask(original: Any, self: Any, *arguments: Any) -> Any:
        number = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
        try:
            answer = await original(self, *arguments)
        except Unresolved:
            if not strikes():
                socket.close(number)
            raise
        socket.close(number)
        return answer


@defect(
    role="lookup",
    chapter="memory",
    resources=("memory",),
    trigger="a login is checked",
    rate=None,
    scenario="auth-failures",
    source="OpenSMTPD 904cb25a (23 October 2011): the string of the authentication map",
    opener="mta_under_test/defects/catalogue/lookup.py:authenticate",
)
def login_string_kept(strikes: Chance) -> None:
    """The name and the table of every login that is asked about are copied, and the copy is not freed."""
    from mta_under_test.processes.lookup.lookup import Lookup

    kept: list[object] = []

    @around(Lookup, "authenticate")
    def authenticate(original: Any, self: Any, peer: str, message: Any) -> None:
        if strikes():
            kept.append(bytes(bytearray(message.text)))
        original(self, peer, message)
