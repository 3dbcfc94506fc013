"""What the remote MX refuses, as a text that fits on a command line: `rcpt=550`, `mail=451/3 end@slow.test=stall:2`.

Rules stand between blanks or commas. Each is PHASE[@DOMAIN]=ACTION[/N]:

    PHASE   connect, ehlo, mail, rcpt, data, or end (of the data)
    DOMAIN  in mail the sender's, in rcpt the recipient's, in data and end that of any accepted recipient
    ACTION  a code from 400 to 599; drop (reset the connection); fin (close it without a word);
            stall (never answer), stall:SECONDS (answer late); accept
    N       only every N-th time that the rule is met, counted over all sessions: refusals are exact, never random

Rules with a domain are asked before those without, otherwise in the order written; the first whose turn it is decides,
and where none does, the answer is yes. `ehlo` is about EHLO only, so that 5xx makes a client fall back to HELO.
Three more settings: `messages=N` closes a session without a word when its N-th transaction is over; `quit-after=N`
answers 421 to the MAIL that comes after N transactions; and `spare=N` accepts every N-th transaction, counted over all
sessions, whatever the rules say, so that a client which gives up after so many refusals in a row goes on.

Pure: no clock, no sockets, no randomness. The same questions in the same order get the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, cast, get_args

Phase = Literal["connect", "ehlo", "mail", "rcpt", "data", "end"]
Kind = Literal["accept", "refuse", "drop", "fin", "stall"]

PHASES: tuple[Phase, ...] = get_args(Phase)
_WITH_DOMAIN: tuple[Phase, ...] = ("mail", "rcpt", "data", "end")
_RULE = re.compile(
    r"(?P<phase>[a-z]+)(?:@(?P<domain>[^=@/]+))?=(?P<action>[a-z0-9]+)(?::(?P<seconds>[0-9.]+))?(?:/(?P<every>\d+))?"
)
_SETTING = re.compile(r"(messages|quit-after|spare)=(.*)")
_SYNTAX = "a rule is PHASE[@DOMAIN]=ACTION[/N], as rcpt=550, mail=451/3 or end@slow.test=stall:2"


class PolicyError(ValueError):
    """Not a policy; the text names the rule and what is allowed there."""


@dataclass(frozen=True)
class Action:
    kind: Kind
    code: int = 0  # of a refusal
    seconds: float | None = None  # of a stall; None: for good

    def __str__(self) -> str:
        if self.kind == "refuse":
            return str(self.code)
        return self.kind if self.seconds is None else f"{self.kind}:{self.seconds:g}"


ACCEPT = Action("accept")


@dataclass(frozen=True)
class Rule:
    phase: Phase
    action: Action
    domain: str = ""  # in small letters; "" for any
    every: int = 1

    def about(self, phase: Phase, domains: Collection[str]) -> bool:
        return self.phase == phase and (not self.domain or self.domain in domains)

    def __str__(self) -> str:
        at = f"@{self.domain}" if self.domain else ""
        every = f"/{self.every}" if self.every > 1 else ""
        return f"{self.phase}{at}={self.action}{every}"


@dataclass(frozen=True)
class Policy:
    """`str(policy)` gives a text that `parse` reads back."""

    rules: tuple[Rule, ...] = ()
    messages: int | None = None  # transactions, after which the session is closed
    quit_after: int | None = None  # transactions, after which MAIL is answered 421
    spare: int | None = None  # every so many-th transaction is accepted

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Raises PolicyError."""
        rules: list[Rule] = []
        settings: dict[str, int] = {}
        for word in text.replace(",", " ").split():
            setting = _SETTING.fullmatch(word)
            if setting is None:
                rules.append(_rule(word))
                continue
            name, value = setting.groups()
            if name in settings:
                raise PolicyError(f"{word}: {name} is given twice")
            settings[name] = _count(word, value)
        return cls(tuple(rules), settings.get("messages"), settings.get("quit-after"), settings.get("spare"))

    def __str__(self) -> str:
        words = [str(rule) for rule in self.rules]
        if self.messages is not None:
            words.append(f"messages={self.messages}")
        if self.quit_after is not None:
            words.append(f"quit-after={self.quit_after}")
        if self.spare is not None:
            words.append(f"spare={self.spare}")
        return " ".join(words)


class Decisions:
    """A policy in use: remembers how often each of its rules was met."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._rules = sorted(policy.rules, key=lambda rule: not rule.domain)
        self._met = [0] * len(self._rules)
        self._transactions = 0

    def spares(self) -> bool:
        """Whether the transaction that begins now is accepted, so that its rules need not be asked."""
        self._transactions += 1
        return self.policy.spare is not None and self._transactions % self.policy.spare == 0

    def decide(self, phase: Phase, domains: Collection[str] = ()) -> Action:
        """What to do now. `domains` in small letters. A rule is met when it is asked and is about this."""
        for index, rule in enumerate(self._rules):
            if rule.about(phase, domains):
                self._met[index] += 1
                if self._met[index] % rule.every == 0:
                    return rule.action
        return ACCEPT


def _rule(word: str) -> Rule:
    found = _RULE.fullmatch(word)
    if found is None:
        raise PolicyError(f"{word}: {_SYNTAX}")
    if found["phase"] not in PHASES:
        raise PolicyError(f"{word}: no phase {found['phase']!r}; there are {', '.join(PHASES)}")
    phase = cast(Phase, found["phase"])
    if found["domain"] and phase not in _WITH_DOMAIN:
        raise PolicyError(f"{word}: {phase} knows no domain yet; {', '.join(_WITH_DOMAIN)} do")
    every = _count(word, found["every"]) if found["every"] else 1
    return Rule(phase, _action(word, found["action"], found["seconds"]), (found["domain"] or "").lower(), every)


def _action(word: str, name: str, seconds: str | None) -> Action:
    if name == "stall" and seconds is not None:
        try:
            return Action("stall", seconds=float(seconds))
        except ValueError as error:
            raise PolicyError(f"{word}: {seconds} is not a number of seconds") from error
    if seconds is not None:
        raise PolicyError(f"{word}: only stall takes seconds")
    if name in ("accept", "drop", "fin", "stall"):
        return Action(cast(Kind, name))
    if re.fullmatch(r"[45]\d\d", name):
        return Action("refuse", int(name))
    raise PolicyError(
        f"{word}: {name!r} is no action; use a code from 400 to 599, drop, fin, stall, stall:SECONDS or accept"
    )


def _count(word: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value) or int(value) < 1:
        raise PolicyError(f"{word}: {value!r} is not a number from 1")
    return int(value)
