"""Means, standard deviations, and Student-t intervals of paired differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
MIN_SEEDS = 2  # a spread needs two values
LARGEST_QUANTILE = 1e7


@dataclass(frozen=True)
class Summary:
    """Values of some seeds.

    Args:
        mean: their mean.
        deviation: standard deviation with n - 1; None of a single value.
        count: how many there are.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """Paired difference of two variants over the seeds that both have.

    Args:
        mean: of the differences.
        half_width: half of the 95 % interval around it; None with fewer than two seeds, where there is no interval.
        count: pairs.
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, None where there is no interval."""
        if self.half_width is None:
            return None
        return self.mean - self.half_width, self.mean + self.half_width


def summarize(values: Sequence[float]) -> Summary:
    """Mean and standard deviation.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("values must hold at least one number, got none.")
    mean = math.fsum(values) / len(values)
    if len(values) < MIN_SEEDS:
        return Summary(mean, None, len(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Summary(mean, math.sqrt(variance), len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Difference of two variants, seed by seed; None without a common seed.

    Args:
        values: figure by seed.
        baseline: the same of what it is compared with.
    """
    pairs = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not pairs:
        return None
    summary = summarize(pairs)
    if summary.deviation is None:
        return Difference(summary.mean, None, 1)
    error = summary.deviation / math.sqrt(summary.count)
    quantile = student_t_quantile((1 + CONFIDENCE) / 2, summary.count - 1)
    return Difference(summary.mean, quantile * error, summary.count)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: in [0.5, 1).
        degrees: of freedom, at least 1.

    Raises:
        ValueError: an argument out of range, or a quantile above 1e7.
    """
    if not 0.5 <= probability < 1:
        raise ValueError(f"probability must lie in [0.5, 1), got {probability}.")
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}.")
    wanted, low, high = 2 * probability - 1, 0.0, 1.0
    while _central_probability(high, degrees) < wanted:
        low, high = high, 2 * high
        if high > LARGEST_QUANTILE:
            raise ValueError(f"probability {probability} is too close to 1 for {degrees} degrees of freedom.")
    for _ in range(80):
        middle = (low + high) / 2
        below = _central_probability(middle, degrees) < wanted
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def _central_probability(t: float, degrees: int) -> float:
    """P(|T| < t), by the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine_squared = math.cos(angle) ** 2
    odd = degrees % 2 == 1
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for factor in range(1 + odd, degrees, 2):
        total += term
        term *= cosine_squared * factor / (factor + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
