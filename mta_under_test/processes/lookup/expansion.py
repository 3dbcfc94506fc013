"""From one recipient to the deliveries that it means: rules, aliases, virtual domains, `.forward`, over and over.

Owns: one recipient's tree of nodes, and its limits. What it needs to know of the world it asks `World` for, so that
the walk is the same over real users and over a test's. lka_session.c of OpenSMTPD is the model: a node that was there
before is not walked twice, and any node that fails fails the recipient, so that nobody is told 250 for half of a list.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple, Protocol

from mta_under_test.config import Action, ExpandOnlyAction, ForwardOnlyAction, LocalAction, RelayAction
from mta_under_test.tables import Table, TableError, UserInfo
from mta_under_test.tables.expansion import BadNode, Node, NodeKind, alias_of, parse_nodes, virtual_of
from mta_under_test.wire.address import split_address

MAX_DEPTH = 10  # EXPAND_DEPTH
MAX_NODES = 100

logger = logging.getLogger("smtpd")


class Undeliverable(Exception):
    """The recipient is refused; the text is a reply: `code enhanced text`."""


class Remote(NamedTuple):
    action: RelayAction
    dest: str


class Local(NamedTuple):
    action: LocalAction
    dest: str
    user: str = ""
    exec: str = ""  # `/file` or `|command`
    subaddress: str = ""


class World(Protocol):
    """What the walk asks. Each may raise Undeliverable, and TableError, which is a temporary failure."""

    def action_for(self, recipient: str) -> Action | None:
        """What the rules say of an address that the recipient was expanded to; None to reject it."""
        ...

    def table(self, name: str) -> Table: ...

    def user(self, action: LocalAction, name: str) -> UserInfo | None: ...

    async def forward(self, user: UserInfo) -> str:
        """The text of the user's `.forward`, "" when there is none."""
        ...

    def include(self, path: str) -> str: ...


class _Place(NamedTuple):
    """A node, and how the walk came to it."""

    node: Node
    depth: int
    action: LocalAction | None  # of the address that it stands for; None for an address
    dest: str  # that address
    user: str = ""  # the user whose alias or .forward said it
    owner: str = ""  # the user whose .forward said it: programs run as this one


class Expansion:
    def __init__(self, world: World, delimiter: str) -> None:
        self._world = world
        self._delimiter = delimiter
        self._pending: deque[_Place] = deque()
        self._seen: set[tuple[NodeKind, str, str, bool]] = set()
        self._met_again = False
        self._deliveries: list[Local | Remote] = []

    async def run(self, recipient: str, action: Action) -> list[Local | Remote]:
        """Every delivery of `recipient`, whose action the rules have chosen. Raises Undeliverable."""
        try:
            self._address(_Place(Node(NodeKind.ADDRESS, recipient), 0, None, recipient), action)
            while self._pending:
                await self._walk(self._pending.popleft())
        except TableError as error:
            logger.warning("<%s>: %s", recipient, error)
            raise Undeliverable("451 4.3.0 Temporary failure: a table does not answer") from error
        if not self._deliveries:
            code = "550 5.4.6 Aliasing loop" if self._met_again else "550 5.2.4 Mailing list expansion problem"
            raise Undeliverable(f"{code}: <{recipient}>")
        return self._deliveries

    async def _walk(self, place: _Place) -> None:
        node = place.node
        match node.kind:
            case NodeKind.ADDRESS:
                action = self._world.action_for(node.text)
                if action is None:
                    raise Undeliverable(f"550 5.1.1 Invalid recipient: <{node.text}>")
                self._address(place, action)
            case NodeKind.USER:
                await self._user(place)
            case NodeKind.INCLUDE:
                self._add(place, self._world.include(node.text), "included file")
            case NodeKind.ERROR:
                raise Undeliverable(_reply(node.text))
            case NodeKind.FILE | NodeKind.PROGRAM:
                assert place.action is not None
                if isinstance(place.action, ForwardOnlyAction):
                    raise Undeliverable(f"550 5.1.1 Invalid recipient: <{place.dest}>")
                command = node.text if node.kind is NodeKind.FILE else f"|{node.text}"
                self._deliveries.append(Local(place.action, place.dest, place.owner, command))

    def _address(self, place: _Place, action: Action) -> None:
        address = place.node.text
        if isinstance(action, RelayAction):
            self._deliveries.append(Remote(action, address))
            return
        assert isinstance(action, LocalAction)
        local, domain = split_address(address)
        local = local.lower()
        here = place._replace(action=action, dest=address)
        if not action.virtual:
            self._follow(here, Node(NodeKind.USER, local))
            return
        found = virtual_of(self._world.table(action.virtual), local, domain.lower(), self._delimiter)
        if found is None:
            raise Undeliverable(f"550 5.1.1 Invalid recipient: <{address}>")
        self._add(here, found, f"virtual address {address}")

    async def _user(self, place: _Place) -> None:
        """An alias is looked for first, then the user, then the user's .forward; each says more, or nothing."""
        action, name = place.action, place.node.text
        assert action is not None
        itself = place.node.final or name == place.user  # `root: root, me`: a copy for root's own mailbox
        if action.alias and not itself:
            found = alias_of(self._world.table(action.alias), name, self._delimiter)
            if found is not None:
                self._add(place._replace(user=name), found, f"alias {name}")
                return
        name, _, tag = name.partition(self._delimiter)
        if not action.user or action.userbase:
            user = self._world.user(action, name)
            if user is None:
                raise Undeliverable(f"550 5.1.1 Invalid recipient: <{place.dest}>")
            if not itself and name != place.owner:
                text = await self._world.forward(user)
                if self._add(place._replace(user=name, owner=name), text, f".forward of {name}"):
                    return
        if isinstance(action, ForwardOnlyAction | ExpandOnlyAction):
            raise Undeliverable(f"550 5.1.1 Invalid recipient: <{place.dest}>")
        self._deliveries.append(Local(action, place.dest, name, "", tag))

    def _add(self, parent: _Place, text: str, source: str) -> int:
        """Follow what `text` says; returns how many targets that is."""
        try:
            nodes = parse_nodes(text)
            if parent.owner and (bad := [node for node in nodes if node.kind in (NodeKind.INCLUDE, NodeKind.ERROR)]):
                raise BadNode(f"{bad[0].kind.value}: cannot stand in a .forward")
        except BadNode as error:
            logger.warning("%s: %s", source, error)
            raise Undeliverable(f"451 4.3.5 Temporary failure: <{parent.dest}> cannot be expanded now") from error
        for node in nodes:
            self._follow(parent, node)
        return len(nodes)

    def _follow(self, parent: _Place, node: Node) -> None:
        if parent.depth >= MAX_DEPTH:
            raise Undeliverable(f"550 5.4.6 Aliases are nested too deeply: <{parent.dest}>")
        # The same user again, but said by its own alias or .forward, is another thing: its mailbox.
        itself = node.final or (node.kind is NodeKind.USER and node.text == parent.user)
        action = "" if node.kind is NodeKind.ADDRESS or parent.action is None else parent.action.name
        key = (node.kind, node.text, action, itself)
        if key in self._seen:
            self._met_again = True
            return
        if len(self._seen) >= MAX_NODES:
            raise Undeliverable(f"550 5.2.4 Mailing list expansion problem: <{parent.dest}>")
        self._seen.add(key)
        self._pending.append(parent._replace(node=node, depth=parent.depth + 1))


def _reply(text: str) -> str:
    """The text of `error:` as a reply: `550 5.1.1 text`, whatever of it was written."""
    code, _, rest = text.partition(" ")
    if len(code) != 3 or not code.isdecimal() or code[0] not in "45":
        return f"550 5.1.1 {text}"
    enhanced, _, words = rest.partition(" ")
    if enhanced.count(".") == 2 and enhanced.replace(".", "").isdecimal() and enhanced.startswith(code[0]):
        return f"{code} {enhanced} {words}"
    return f"{code} {code[0]}.1.1 {rest}"
