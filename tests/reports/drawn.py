"""A small record with everything that a report has to show, and with what a hostile target would put into it."""

from __future__ import annotations

from reports.record import (
    Descriptor,
    Dose,
    Finding,
    Judgement,
    Memory,
    Process,
    RunRecord,
    Samples,
    Snapshot,
    TargetInfo,
    Tested,
    Verdict,
    Work,
)

HOSTILE = "<script>alert(1)</script>&\x1b[31m\x00`@user`|"


def record(verdict: Verdict = "leak") -> RunRecord:
    finding = Finding(
        resource="descriptor", kind="file", label=HOSTILE, role="transfer", pids=[7], count=296, unit="refused message",
        rate=0.987, low=0.966, high=0.996, confidence=1.0, first_dose=1, examples=[f"/spool/{HOSTILE}"],
        opened_at=["mta_under_test/spool/disk.py:184 in message_fd (queue)"], dose_units=[20, 40], survivors=[19, 39],
        message=f"transfer keeps {HOSTILE} open", advice="look at refusal, RSET and flush",
    )  # fmt: skip
    doses = [
        Dose(
            Work(sessions=2, messages=22, messages_per_session_in=11.0), units=20, began=1.0, ended=2.0, drained_s=0.5,
            response_ms={"p50": 1.5, "p99": 7.0},
            snapshot=Snapshot(processes=[
                Process(7, 1, "transfer", memory=Memory(private_dirty=4096), descriptors=[
                    Descriptor(3, "tcp", "socket:[1]", state="ESTABLISHED", local="127.0.0.1:1", peer="127.0.0.1:2"),
                    *(Descriptor(10 + n, "file", f"/spool/{HOSTILE}{n}", inode=n, deleted=True) for n in range(held)),
                ]),
            ]),
        )
        for held in (0, 19, 1200)
    ]  # fmt: skip
    return RunRecord(
        scenario="rejected-reuse",
        target=TargetInfo("embedded", "0.1.0", ["transfer-fd-leak"]),
        verdict=verdict,
        reasons=["the scenario promises 300 messages; there were 3"] if verdict == "inconclusive" else [],
        findings=[finding] if verdict == "leak" else [],
        tested=[Tested("descriptor", "file", "transfer", "count", "leak" if verdict == "leak" else "clean")],
        judgement=Judgement(unit="refused message"),
        began="2026-11-24T07:12:58+00:00",
        command="seatbelt run --defect 'transfer-fd-leak'",
        doses=doses,
        samples=Samples(rows=[(0.1 * n, 7, 10 + n, 1 << 20) for n in range(9)]),
    )
