"""symbols: which line of which source an address in a program is.

Owns: the way from a place in a file to file, line and function: the program's header tells its address there, and
addr2line(1) of binutils the line, inlined functions included. A program without debugging information has at least the
functions that its symbol tables name. Never: looks at a running process.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness.tracing import Line, Stack

TIMEOUT_S = 60.0
_LIBRARIES = re.compile(r"/(?:libc|libpthread|ld-linux[\w-]*|ld|libc-[\d.]+|ld-[\d.]+)\.so[\d.]*$")
_START = frozenset(  # of every program and thread
    {
        *("_start", "__libc_start_main", "__libc_start_main_impl", "__libc_start_call_main"),
        *("start_thread", "clone", "clone3", "__clone3"),
    }
)


class Frame(NamedTuple):
    """A place in a program or library: which instruction of the file comes next when the function goes on."""

    module: str  # path
    offset: int  # in the file


class Symbols:
    """Looks each place up once."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is where the target's paths begin."""
        self._root = root
        self._known: dict[Frame, list[Line]] = {}

    def stacks(self, found: Iterable[tuple[Frame, ...]]) -> dict[tuple[Frame, ...], Stack]:
        """Each of `found` as lines, without those of the C library, unless there are no others."""
        stacks = set(found)
        self._look_up({frame for stack in stacks for frame in stack})
        return {stack: list(self._lines(stack)) for stack in stacks}

    def _lines(self, stack: tuple[Frame, ...]) -> Iterator[Line]:
        own = [frame for frame in stack if not _LIBRARIES.search(frame.module)]
        for frame in own or stack:
            yield from (line for line in self._known[frame] if line[2] not in _START)

    def _look_up(self, frames: set[Frame]) -> None:
        by_module: defaultdict[str, list[Frame]] = defaultdict(list)
        for frame in frames - self._known.keys():
            by_module[frame.module].append(frame)
        for module, new in by_module.items():
            self._known |= dict(zip(new, self._of_module(module, new), strict=True))

    def _of_module(self, module: str, frames: list[Frame]) -> list[list[Line]]:
        path = self._root / module.lstrip("/")
        try:
            with path.open("rb") as file:
                program = ELFFile(file)
                # The address of the call is before the one to return to.
                addresses = [_address(program, frame.offset) - 1 for frame in frames]
                lines = _addr2line(path, addresses)
                names = _functions(program, set(addresses) - lines.keys())
        except (OSError, ELFError):
            return [[(f"{module}+{frame.offset:#x}", 0, "")] for frame in frames]
        return [
            lines.get(address) or [(f"{module}+{frame.offset:#x}", 0, names[address])]
            for frame, address in zip(frames, addresses, strict=True)
        ]


def _address(program: ELFFile, offset: int) -> int:
    """Where the program's header has a place of the file, before it is moved as a whole (elf(5), PT_LOAD)."""
    for segment in program.iter_segments("PT_LOAD"):
        if segment["p_offset"] <= offset < segment["p_offset"] + segment["p_filesz"]:
            return int(offset - segment["p_offset"] + segment["p_vaddr"])
    return offset


def _functions(program: ELFFile, addresses: set[int]) -> dict[int, str]:
    """The function that each address is within, by the symbol tables; "" where none says so."""
    if not addresses:
        return {}
    tables = [section for section in program.iter_sections() if isinstance(section, SymbolTableSection)]
    symbols = [
        (symbol["st_value"], symbol["st_size"], symbol.name)
        for table in tables
        for symbol in table.iter_symbols()
        if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"]
    ]
    return {
        address: next((name for value, size, name in symbols if value <= address < value + size), "")
        for address in addresses
    }


def _addr2line(path: Path, addresses: list[int]) -> dict[int, list[Line]]:
    """The lines of each address, innermost first; an address of which no line is known is left out.

    It prints ``0x…``, then two lines for each function, inlined ones first: name, and ``FILE:LINE (discriminator N)``.
    """
    if shutil.which("addr2line") is None:
        return {}
    command = ["addr2line", "--addresses", "--functions", "--demangle", "--inlines", "--exe", str(path)]
    try:
        done = subprocess.run(
            command,
            input="\n".join(map(hex, addresses)),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[int, list[Line]] = {}
    told = iter(done.stdout.splitlines())
    address = 0
    for line in told:
        if line.startswith("0x"):
            address = int(line, 16)
            continue
        where, _, number = next(told, "??:?").partition(" (")[0].rpartition(":")
        if number.isdecimal() and not where.startswith("?"):
            found.setdefault(address, []).append((where, int(number), line))
    return found
