"""quantiles: the few distribution functions that the detectors need, typed.

Owns: the late import of `scipy.special` (a fifth of a second; `scipy.stats` takes four times as long), so that
`seatbelt --help` does not pay for it. Never: looks at a record.
"""

from __future__ import annotations

TWO_SIDED = 0.95  # the level of every interval that is reported


def student_quantile(probability: float, freedom: float) -> float:
    """The t for which P(T <= t) = `probability`, with `freedom` degrees of freedom."""
    from scipy import special  # type: ignore[import-untyped]

    return float(special.stdtrit(freedom, probability))


def student_tail(t: float, freedom: float) -> float:
    """P(T > t): the false-alarm rate of a one-sided test that has just passed at `t`."""
    from scipy import special

    return float(special.stdtr(freedom, -t))


def binomial_interval(count: int, trials: int) -> tuple[float, float]:
    """Clopper-Pearson: the exact 95 % interval of a proportion. `trials` must be positive, `count` at most `trials`."""
    from scipy import special

    tail = (1 - TWO_SIDED) / 2
    low = 0.0 if count == 0 else float(special.betaincinv(count, trials - count + 1, tail))
    high = 1.0 if count == trials else float(special.betaincinv(count + 1, trials - count, 1 - tail))
    return low, high


def poisson_interval(count: int, exposure: float) -> tuple[float, float]:
    """Garwood: the exact 95 % interval of events per unit of `exposure`, which must be positive."""
    from scipy import special

    tail = (1 - TWO_SIDED) / 2
    low = 0.0 if count == 0 else float(special.gammaincinv(count, tail))
    return low / exposure, float(special.gammaincinv(count + 1, 1 - tail)) / exposure


def poisson_below(count: int, mean: float) -> float:
    """P(N < `count`) for a Poisson of this mean; `count` must be positive."""
    from scipy import special

    return float(special.gammaincc(count, mean))
