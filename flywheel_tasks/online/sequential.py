"""Intervals and p-values that stay honest however often one looks.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory
and asymptotic confidence sequences", Annals of Statistics 52(6), 2024 (arXiv 2103.06476), Theorem 2.2: with n
observations and a standard error s of the estimate, all intervals

    estimate +- s * sqrt((x + 1) / x * log((x + 1) / alpha^2)),    x = n * rho^2

hold at once with probability 1 - alpha, asymptotically. It is Robbins' normal mixture; its p-value is the mixture
sequential probability ratio test's (Johari, Koomen, Pekelis, Walsh, "Always valid inference", Operations Research
70(3), 2022). rho fixes where the sequence is tightest (there x = 7.9 at alpha = 0.05).

The theorem is about users who arrive one after the other. Here users who are already in also go on acting between
looks. The bound never lies below 3.03 standard errors at alpha = 0.05 (p = 0.00245, two-sided), so at up to 20 looks
the chance of a false alarm stays below 5% by the union bound alone, whatever the looks have to do with each other.
"""

import math


def rho(planned: float, alpha: float) -> float:
    """The parameter that makes the sequence tightest after ``planned`` observations (same source, eq. 10).

    Args:
        planned: number of observations, above zero.
        alpha: error rate.
    """
    spent = -2 * math.log(alpha)
    return math.sqrt((spent + math.log(spent + 1)) / planned)


def bound(n: float, planned: float, alpha: float) -> float:
    """Half-width of the interval, in standard errors.

    Args:
        n: observations so far, above zero.
        planned: at which the sequence is tightest.
        alpha: error rate over all looks.
    """
    x = n * rho(planned, alpha) ** 2
    return math.sqrt((x + 1) / x * (math.log(x + 1) - 2 * math.log(alpha)))


def pvalue(z: float, n: float, planned: float, alpha: float) -> float:
    """Always-valid p-value: the smallest error rate at which the sequence (rho as given) leaves out zero.

    Args:
        z: estimate over its standard error.
        n: observations so far.
        planned: at which the sequence is tightest.
        alpha: for which rho was chosen.
    """
    x = n * rho(planned, alpha) ** 2
    log_p = 0.5 * math.log(x + 1) - 0.5 * z * z * x / (x + 1)
    return math.exp(min(0.0, log_p))
