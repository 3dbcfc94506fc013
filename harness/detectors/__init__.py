"""Judge, never observe: from a run record to a verdict. Pure: no clock, no /proc, no randomness.

`verdict.judge(record)` is the whole; its `decided` tells the experiment when no further memory round is
needed. Each detector states its error rates and the test that measures them. The run's alpha is shared: 0.4 of it
for what is counted (`identities`), 0.1 for the daemon's own counters (`balance`), 0.5 for memory (`growth`); invariants
and what a message may weigh (`footprint`) need none.
"""
