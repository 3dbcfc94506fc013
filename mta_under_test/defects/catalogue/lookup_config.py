"""Bugs of lookup: configurations and tables that are read again."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="lookup",
    chapter="cache",
    resources=("memory",),
    trigger="the configuration is read again",
    rate=None,
    scenario="reload-churn",
    source="OpenSMTPD b1b91558 (November 2009) and 43007414 (5 February 2013)",
)
def old_configuration_kept(strikes: Chance) -> None:
    """A reload makes new rules and tables, and forgets to free the old ones."""
    from mta_under_test.processes.lookup.lookup import Lookup

    kept: list[object] = []

    @around(Lookup, "configure")
    async def configure(original: Any, self: Any, config: Any) -> None:
        if strikes():
            kept.append((self.config, self.rules))
        await original(self, config)


@defect(
    role="lookup",
    chapter="pipe",
    resources=("descriptor",),
    trigger="the configuration is read again",
    rate=1.0,
    scenario="reload-churn",
    source="OpenSMTPD a7a448c5 (23 November 2023): a descriptor that came with a message and that nobody claims",
    opener="mta_under_test/defects/catalogue/lookup_config.py:configure",
)
def configuration_file_kept(strikes: Chance) -> None:
    """The configuration travels as a file in memory, and who has read it leaves it open."""
    import os

    from mta_under_test.processes.lookup.lookup import Lookup

    @around(Lookup, "configure")
    async def configure(original: Any, self: Any, config: Any) -> None:
        if strikes():
            os.memfd_create("smtpd.conf")
        await original(self, config)
