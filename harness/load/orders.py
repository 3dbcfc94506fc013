"""What the controller and the load's process say to each other: one JSON object a line, each with its ``type``.

The controller orders, the process answers each order with one line: `Start` with `Ready`, `GiveDose` with a
`tally.Tally`, and either with `Failed`. There is no order to stop: the end of its standard input ends the process.
"""

from __future__ import annotations

import msgspec

from harness.load.tally import Tally


class Start(msgspec.Struct, tag=True):
    """Aim the users at a mail server, and spawn them."""

    scenario: str  # name, or path of a .py file
    host: str
    port: int
    users: int
    seed: int


class GiveDose(msgspec.Struct, tag=True):
    """Hold the sessions of `units` units of dose `number`, from unit `first` on, and no others."""

    number: int
    units: int
    first: int
    timeout_s: float


class Ready(msgspec.Struct, tag=True):
    users: int


class Failed(msgspec.Struct, tag=True):
    text: str


Order = Start | GiveDose
Answer = Ready | Tally | Failed

decode_order = msgspec.json.Decoder(Order).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def line(message: Order | Answer) -> bytes:
    """The message as it is sent. JSON escapes line ends, so that none is inside."""
    return msgspec.json.encode(message) + b"\n"
