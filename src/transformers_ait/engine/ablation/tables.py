"""Figures of a suite's finished runs: lines of a table, with paired differences and verdicts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .plan import PlannedRun, plan
from .statistics import Difference, Summary, paired_difference, summarize
from .suite import Suite, Variant

Lookup = Callable[[str], Mapping[str, Any] | None]
"""Key of a measurement to its record, None before it is done."""

NO_INTERVAL = "no interval with fewer than 2 seeds"


@dataclass(frozen=True)
class Line:
    """One variant.

    Args:
        variant: the variant.
        values: figure by seed, of the runs that are done.
        ceiling: of the tokenizer's reconstruction of the truth; None without one.
        difference: from the baseline, None of the baseline itself and before any pair is done.
        verdict: whether what the claim expects is seen; "" where it expects nothing.
    """

    variant: Variant
    values: Mapping[int, float]
    summary: Summary | None
    ceiling: Summary | None
    difference: Difference | None
    verdict: str


@dataclass(frozen=True)
class Table:
    """A suite's lines.

    Args:
        suite: the suite.
        lines: one per variant.
        missing: runs that are not done.
        constant: figure of the best constant prediction on the same data, where it is known.
    """

    suite: Suite
    lines: list[Line]
    missing: int
    constant: float | None

    @property
    def is_started(self) -> bool:
        """Whether any run is done."""
        return any(line.values for line in self.lines)


def make_table(suite: Suite, lookup: Lookup) -> Table:
    """Lines of a suite from the measurements that are done.

    Args:
        suite: the suite.
        lookup: finds their records.
    """
    runs = plan(suite)
    results = {(run.variant, run.seed): lookup(run.result.key) for run in runs}
    values = {
        name: {seed: float(record["figures"][suite.metric]) for seed in suite.seeds if (record := results[name, seed])}
        for name in suite.variants
    }
    lines = [_line(suite, variant, values, runs, lookup) for variant in suite.variants.values()]
    missing = sum(record is None for record in results.values())
    return Table(suite, lines, missing, _constant(suite, [x for x in results.values() if x]))


def _line(
    suite: Suite, variant: Variant, values: Mapping[str, Mapping[int, float]], runs: list[PlannedRun], lookup: Lookup
) -> Line:
    own = values[variant.name]
    ceilings = {
        run.seed: record["figures"][suite.metric]
        for run in runs
        if run.variant == variant.name and run.ceiling is not None and (record := lookup(run.ceiling.key))
    }
    difference = None
    if variant.name != suite.baseline:
        difference = paired_difference(own, values[suite.baseline])
    return Line(
        variant,
        own,
        summarize(list(own.values())) if own else None,
        summarize(list(ceilings.values())) if ceilings else None,
        difference,
        _verdict(variant, difference, suite.larger_is_better),
    )


def _verdict(variant: Variant, difference: Difference | None, larger_is_better: bool) -> str:
    if variant.expect is None or difference is None:
        return ""
    if difference.interval is None:
        return NO_INTERVAL
    low, high = difference.interval if larger_is_better else tuple(-x for x in reversed(difference.interval))
    if variant.expect == "alike":
        return "alike: no difference shown" if low <= 0 <= high else f"differs: {'better' if low > 0 else 'worse'}"
    if variant.expect == "worse":
        low, high = -high, -low
    if low > 0:
        return "holds"
    if high < 0:
        return "does not hold: the opposite"
    return "undecided: right direction" if low + high > 0 else "undecided: wrong direction"


def _constant(suite: Suite, records: list[Mapping[str, Any]]) -> float | None:
    """The best constant of the first run; all runs of a suite are measured on the same rows as a rule."""
    for record in records:
        found = [
            figures[suite.metric]
            for name, figures in record["constants"].items()
            if figures.get(suite.metric) is not None and (":" not in name or name.startswith(f"{suite.task}:"))
        ]
        if found:
            return float((max if suite.larger_is_better else min)(found))
    return None
