"""What the controller and the load's process say to each other: one JSON object a line, each with its ``type``.

The controller orders, the process answers each order with one line: `Start` and `Aim` with `Ready`, `GiveDose` with a
`tally.Tally`, and each with `Failed`. There is no order to stop: the end of its standard input ends the process.
"""

from __future__ import annotations

import msgspec

from harness.load.tally import Tally


class FleetOrder(msgspec.Struct, frozen=True):
    """Workers that hold the sessions, instead of users of the load's own process."""

    host: str  # where the master listens for them
    port: int  # 0: any free one
    workers: int  # that are waited for
    local: bool = False  # and started here, as children of the load's process


class WebOrder(msgspec.Struct, frozen=True):
    """Locust's web UI with the Seatbelt page."""

    host: str
    port: int  # 0: any free one
    board: str  # path of the file that the page shows (harness.load.board)


class Start(msgspec.Struct, tag=True):
    """Aim the users at a mail server, and spawn them."""

    scenario: str  # name, or path of a .py file
    host: str
    port: int
    users: int
    seed: int
    fleet: FleetOrder | None = None
    web: WebOrder | None = None


class Aim(msgspec.Struct, tag=True):
    """From the next dose on the sessions are with another mail server; the users are those that there are."""

    host: str
    port: int


class GiveDose(msgspec.Struct, tag=True):
    """Hold the sessions of `units` units of dose `number`, from unit `first` on, and no others."""

    number: int
    units: int
    first: int
    timeout_s: float


class Ready(msgspec.Struct, tag=True):
    page: str = ""  # URL of the Seatbelt page


class Failed(msgspec.Struct, tag=True):
    text: str


Order = Start | Aim | GiveDose
Answer = Ready | Tally | Failed

decode_order = msgspec.json.Decoder(Order).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def line(message: Order | Answer) -> bytes:
    """The message as it is sent. JSON escapes line ends, so that none is inside."""
    return msgspec.json.encode(message) + b"\n"
