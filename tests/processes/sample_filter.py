"""A filter program (smtpd-filters(7)) for tests: decides by the sender's name, edits lines, writes down what it heard.

sample_filter.py LOG [TAG]
"""

from __future__ import annotations

import sys
from pathlib import Path


def say(line: str) -> None:
    sys.stdout.buffer.write(line.encode("latin-1") + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    log = Path(sys.argv[1]).open("a", buffering=1, encoding="latin-1")
    tag = sys.argv[2] if len(sys.argv) > 2 else "filtered"
    fresh: set[str] = set()
    for raw in sys.stdin.buffer:
        line = raw.decode("latin-1").rstrip("\n")
        log.write(line + "\n")
        fields = line.split("|")
        if fields[0] == "config":
            if fields[1] == "ready":
                for what in (
                    "filter|smtp-in|mail-from",
                    "filter|smtp-in|data-line",
                    "filter|smtp-in|commit",
                    "report|smtp-in|*",
                ):
                    say(f"register|{what}")
                say("register|ready")
                print("at your service", file=sys.stderr, flush=True)
        elif fields[0] == "filter":
            phase, session, token, rest = fields[4], fields[5], fields[6], "|".join(fields[7:])
            if phase == "data-line":
                edit(session, token, rest, tag, fresh)
            else:
                say(f"filter-result|{session}|{token}|{decision(phase, rest)}")


def decision(phase: str, value: str) -> str:
    if phase == "mail-from":
        match value.partition("@")[0]:
            case "reject":
                return "reject|550 5.7.1 the program says no"
            case "off":
                return "disconnect|421 4.7.0 the program says bye"
            case "junk":
                return "junk"
            case "old":
                return "rewrite|<new@sender.test>"
            case "die":
                sys.exit(3)
            case "nonsense":
                return "maybe"
    return "proceed"


def edit(session: str, token: str, line: str, tag: str, fresh: set[str]) -> None:
    if session not in fresh:
        fresh.add(session)
        say(f"filter-dataline|{session}|{token}|X-Program: {tag}")
    if line == ".":
        fresh.discard(session)
    if "secret" not in line:
        say(f"filter-dataline|{session}|{token}|{line.replace('quiet', 'LOUD')}")


if __name__ == "__main__":
    main()
