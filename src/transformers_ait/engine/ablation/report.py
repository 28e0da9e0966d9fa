"""A suite's table as Markdown, as JSON and as a plot."""

import json
from pathlib import Path
from typing import Any

from ..evaluation.inputs import require_package
from ..run_files import replace_text
from .statistics import Difference, Summary
from .tables import NO_INTERVAL, Line, Table

COLOURS = {"baseline": "#7a7a7a", "variant": "#00796b", "ceiling": "#c8c8c8"}


def markdown_table(table: Table) -> str:
    """Lines with mean and standard deviation, paired difference with its interval, and ceiling."""
    suite = table.suite
    arrow = "↑" if suite.larger_is_better else "↓"
    unit = f" ({suite.unit})" if suite.unit else ""
    with_ceiling = any(line.variant.ceiling for line in table.lines)
    head = ["variant", f"{suite.metric}{unit} {arrow}", f"beside “{suite.baseline}” [95 % interval]", "the claim"]
    head += ["tokenizer's ceiling"] * with_ceiling + ["seeds"]
    rows = [head, ["---"] * len(head)]
    for line in table.lines:
        row = [line.variant.name, summary_text(line.summary), _difference_text(table, line), line.verdict or "-"]
        row += [summary_text(line.ceiling) if line.variant.ceiling else "-"] * with_ceiling + [
            f"{len(line.values)} of {len(suite.seeds)}"
        ]
        rows.append(row)
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
    if table.constant is not None:
        text += f"\nA constant reaches {table.constant:.3f} on the same data.\n"
    return text


def summary_text(summary: Summary | None) -> str:
    """Mean and standard deviation."""
    if summary is None:
        return "not run yet"
    return f"{summary.mean:.3f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.3f}")


def _difference_text(table: Table, line: Line) -> str:
    if line.variant.name == table.suite.baseline:
        return "-"
    return "not run yet" if line.difference is None else difference_text(line.difference)


def difference_text(difference: Difference) -> str:
    """Difference with its interval, or that there is none."""
    if difference.interval is None:
        return f"{difference.mean:+.3f} ({NO_INTERVAL})"
    low, high = difference.interval
    return f"{difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def table_json(table: Table) -> dict[str, Any]:
    """The table's numbers by variant, for JSON."""
    lines = {}
    for line in table.lines:
        difference = line.difference
        lines[line.variant.name] = {
            "values": {str(seed): value for seed, value in sorted(line.values.items())},
            "mean": line.summary and line.summary.mean,
            "standard_deviation": line.summary and line.summary.deviation,
            "difference": difference and difference.mean,
            "interval": difference and difference.interval and list(difference.interval),
            "verdict": line.verdict,
            "ceiling": line.ceiling and line.ceiling.mean,
        }
    suite = table.suite
    return {
        "suite": suite.name,
        "metric": suite.metric,
        "baseline": suite.baseline,
        "seeds": list(suite.seeds),
        "missing_runs": table.missing,
        "constant": table.constant,
        "variants": lines,
    }


def draw_table(table: Table, path: Path) -> None:
    """An SVG: every seed's figure, means with their deviations, and the tokenizers' ceilings; the same bytes each time.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    require_package("matplotlib", "The plot of a suite")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    suite, shown = table.suite, [line for line in table.lines if line.summary is not None]
    with mpl.rc_context({"svg.hashsalt": suite.name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7, 0.9 + 0.34 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, line in enumerate(shown):
            assert line.summary is not None
            colour = COLOURS["baseline" if line.variant.name == suite.baseline else "variant"]
            if line.ceiling is not None:
                axes.plot(line.ceiling.mean, place, "|", color=COLOURS["ceiling"], markersize=16, markeredgewidth=3)
            axes.errorbar(line.summary.mean, place, xerr=line.summary.deviation or 0, fmt="D", color=colour, capsize=4)
            axes.plot(list(line.values.values()), [place] * len(line.values), ".", color=colour, alpha=0.5)
        axes.set_yticks(range(len(shown)), [line.variant.name for line in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        better = "larger" if suite.larger_is_better else "smaller"
        axes.set_xlabel(f"{suite.metric}{f' ({suite.unit})' if suite.unit else ''}, {better} is better")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        temporary = path.with_name(f".{path.name}.raw")
        figure.savefig(temporary, format="svg", metadata={"Date": None})
        # matplotlib ends lines with spaces.
        replace_text(path, "".join(f"{text.rstrip()}\n" for text in temporary.read_text().splitlines()))
        temporary.unlink()


def write_report(table: Table, folder: Path) -> Path:
    """Write `NAME.md`, `NAME.json` and `NAME.svg`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    name = table.suite.name
    replace_text(folder / f"{name}.json", json.dumps(table_json(table), indent=1) + "\n")
    if table.is_started:
        draw_table(table, folder / f"{name}.svg")
    replace_text(folder / f"{name}.md", f"# {table.suite.title}\n\n{markdown_table(table)}")
    return folder / f"{name}.md"
