"""Judge, never observe: from a run record to a verdict. Pure: no clock, no /proc, no randomness.

`verdict.judge(record)` is the whole; `verdict.decided(record)` tells the experiment when no further memory round
is needed. Each detector states its error rates and the test that measures them. The run's alpha is shared: half for
what is counted (`identities`), half for memory (`growth`); invariants need none.
"""
