"""Bugs of smtp with what it remembers of questions, answers, tasks and messages."""

from __future__ import annotations

from typing import Any

from mta_under_test.defects import Chance, around, defect


@defect(
    role="smtp",
    chapter="child",
    resources=("task", "memory"),
    trigger="any session ends",
    rate=1.0,
    scenario="connect-quit",
    source="OpenSMTPD f6e4a4cd (22 December 2008): a child that is reaped stays in the tree of children",
    opener="mta_under_test/processes/process.py:spawn",
)
def finished_tasks_kept(strikes: Chance) -> None:
    """What has ended stays in the table of what runs.

    parent reaped the mda child and left its entry in the tree by pid. The table was walked for each child that ended,
    so the daemon grew slower as well as larger.
    """
    from mta_under_test.processes.smtp.smtp import Smtp

    @around(Smtp, "_task_over")
    def task_over(original: Any, self: Any, task: Any) -> None:
        original(self, task)
        if strikes():
            self._tasks.add(task)


@defect(
    role="smtp",
    chapter="memory",
    resources=("memory",),
    trigger="an answer of another process",
    rate=None,
    scenario="accepted",
    source="maddy eb17a03 (September 2019): state objects that some paths do not close",
    opener=(
        "mta_under_test/ipc/messages.py:unpack "
        "mta_under_test/processes/process.py:ask "
        "mta_under_test/defects/catalogue/smtp_requests.py:settle"
    ),
)
def answered_questions_kept(strikes: Chance) -> None:
    """Who asked and was answered stays in the table of those who wait.

    maddy's dispatcher made a state for each check and closed it on the paths that somebody had thought of.
    """
    from mta_under_test.processes.smtp.smtp import Smtp

    answered: dict[int, object] = {}

    @around(Smtp, "_settle")
    def settle(original: Any, self: Any, answer: Any) -> None:
        if strikes():
            number = answer.integers[0]
            answered[number] = (self._asked.get(number), answer)
        original(self, answer)


@defect(
    role="smtp",
    chapter="tls memory",
    resources=("memory",),
    trigger="a second message in a session, and each one after it",
    rate=1.8,  # an object and its bytes; of ten messages in each session, one buffer is freed
    scenario="accepted",
    source="Exim 4.91 JH/21, JH/23 (b808677c8, dec766a19)",
    opener="mta_under_test/defects/catalogue/smtp_requests.py:mail",
)
def buffer_of_each_message(strikes: Chance) -> None:
    """A session's buffer came to be made for each message, and is freed where the session ends: the last one is.

    Exim allocated a TLS receive buffer whenever a message began; with several messages in one connection all but one
    were lost. Clients that send one message a connection never saw it. (Here the connection is a plain one.)
    """
    from mta_under_test.processes.smtp.session import Session

    lost: list[object] = []

    @around(Session, "_mail")
    async def mail(original: Any, self: Any, event: Any) -> Any:
        before, self.buffer = getattr(self, "buffer", None), bytearray(4096)
        if before is not None and strikes():
            lost.append(before)
        return await original(self, event)


@defect(
    role="smtp",
    chapter="memory",
    resources=("memory",),
    trigger="any command of a client",
    rate=None,
    scenario="slow-client",
    source="smtp-server 38a3190 (June 2026), OpenSMTPD 1b537371 (15 October 2014): what a client says, without a limit",
    opener="mta_under_test/wire/address.py:_mailbox mta_under_test/wire/command.py",
)
def dialogue_kept(strikes: Chance) -> None:
    """Each command is kept for a transcript that would go to postmaster if the session failed, and none does.

    What a client says was collected without a cap: header lines for the rewriting that comes at their end, a PROXY
    header that never ends. Sessions that go well leave theirs.
    """
    from mta_under_test.processes.smtp.session import Session

    transcripts: dict[int, list[object]] = {}

    @around(Session, "_answer")
    async def answer(original: Any, self: Any, event: Any) -> Any:
        if strikes():
            transcripts.setdefault(self.id, []).append(event)
        return await original(self, event)
