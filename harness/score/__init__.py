"""`seatbelt score`: the defect catalogue against the harness, and against the rules that people use today.

Owns: which runs are made (`cases`), how each is compared with the truth (`outcome`), the other rules (`rules`), and the
running (`runner`). Never: draws; `reports.score` does.
"""
