"""Outcomes counted, as text and as Markdown."""

import platform
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .judge import GIB, Limits, Outcome

MIB = 2**20


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Rows of a Markdown table: a kind each, with cases, failures, time, memory, and how often each result came."""
    lines = [
        "| kind | cases | failed | accepted | errors by type | seconds | slowest (s) | peak (MiB) |",
        "|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        lines.append(_row(kind, [outcome for outcome in outcomes if outcome.kind == kind]))
    return [*lines, _row("all", outcomes)]


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    errors = Counter(outcome.result for outcome in outcomes if outcome.result != "accepted")
    listed = ", ".join(f"{error} {count}" for error, count in errors.most_common())
    cells = (
        name,
        str(len(outcomes)),
        str(sum(outcome.failure is not None for outcome in outcomes)),
        str(sum(outcome.result == "accepted" for outcome in outcomes)),
        listed,
        f"{sum(outcome.seconds for outcome in outcomes):.1f}",
        f"{max((outcome.seconds for outcome in outcomes), default=0):.2f}",
        f"{max((outcome.peak for outcome in outcomes), default=0) / MIB:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def failures(outcomes: Sequence[Outcome], seed: int, with_traceback: bool = False) -> list[str]:
    """A line for every failed case, with the command that repeats it."""
    lines = []
    for outcome in outcomes:
        if outcome.failure is not None:
            lines.append(
                f"{outcome.kind} {outcome.number}: {outcome.failure}: {outcome.what} -> {outcome.result}: "
                f"{outcome.message} [python -m tests.torture --seed {seed} --kinds {outcome.kind} "
                f"--only {outcome.number}]"
            )
            lines += [outcome.where] if with_traceback and outcome.where else []
    return lines


def markdown(outcomes: Sequence[Outcome], seed: int, seconds: float, command: str, limits: Limits) -> str:
    """The report that is committed."""
    failed = failures(outcomes, seed)
    lines = [
        "# Torture",
        "",
        "Bad and odd input to everything public, by seeded numbers (`make torture`, `tests/torture`). A case fails",
        "where an error is of another type than ValueError, TypeError, OSError or a strict dataclass's, or names",
        f"neither the argument nor the file; where it takes over {limits.seconds:g} s or {limits.bytes / GIB:g} GiB;",
        "where the process dies; and where an error leaves something half-written.",
        "",
        f"- date: {_said('date', '-u')}",
        f"- command: `{command}`",
        f"- machine: {_processor()}, {platform.system()} {platform.release()}",
        f"- versions: Python {platform.python_version()}, {_versions()}",
        f"- seed {seed}; {len(outcomes)} cases in {seconds:.0f} s, {len(outcomes) / max(seconds, 1e-9):.0f} per "
        f"second; {len(failed)} failed",
        "",
        *table(outcomes),
        "",
    ]
    if failed:
        lines += ["Failed:", "", *(f"- {line}" for line in failed), ""]
    return "\n".join(lines)


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", text)
    return f"{found[1] if found else platform.machine()}, {text.count('processor')} cores, one process"


def _versions() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}"
