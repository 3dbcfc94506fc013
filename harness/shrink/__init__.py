"""`seatbelt shrink`: the smallest dialogue that still leaks.

`ddmin` is the algorithm, `dialogue` what it takes apart, `oracle` the real run that says whether it still leaks,
`command` what the command line calls. The first two are pure.
"""
