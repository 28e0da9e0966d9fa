"""How long a suite will take, from what earlier runs took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .plan import Measurement, Training
from .runs import RunCache
from .scripts import SCRIPTS

SECONDS_PER_MEASUREMENT = 5.0


@dataclass(frozen=True)
class Estimate:
    """What is left of a suite.

    Args:
        trainings: that are missing.
        measurements: that are missing.
        seconds: about how long they take in one process.
        measured: whether every kind of training has been timed in this cache.
    """

    trainings: int
    measurements: int
    seconds: float
    measured: bool

    def __str__(self) -> str:
        source = "as earlier runs took here" if self.measured else "by default times; nothing like it has run here yet"
        return (
            f"{self.trainings} trainings and {self.measurements} measurements are left, about "
            f"{self.seconds / 60:.0f} minutes in one process ({source})."
        )


def estimate(wanted: Sequence[Measurement], cache: RunCache) -> Estimate:
    """What is left of some measurements, and for how long.

    Args:
        wanted: the measurements.
        cache: with the finished runs.
    """
    left = [measurement for measurement in wanted if cache.measurement(measurement.key) is None]
    chains = {training.key: training for x in left for training in x.training.chain()}
    trainings = [training for training in chains.values() if cache.training(training.key) is None]
    records = cache.records()
    rates = [_rate(training, records) for training in trainings]
    seconds = sum(
        training.steps * (SCRIPTS[training.script].seconds_per_step if rate is None else rate)
        for training, rate in zip(trainings, rates, strict=True)
    )
    measured = all(rate is not None for rate in rates)
    return Estimate(len(trainings), len(left), seconds + SECONDS_PER_MEASUREMENT * len(left), measured)


def _rate(training: Training, records: Sequence[dict[str, Any]]) -> float | None:
    """Seconds per step of finished trainings of the same name, else of the same script."""
    timed = [record for record in records if record["seconds"] and record["steps"]]
    for field in ("name", "script"):
        alike = [record for record in timed if record[field] == getattr(training, field)]
        if alike:
            return float(sum(x["seconds"] for x in alike) / sum(x["steps"] for x in alike))
    return None
