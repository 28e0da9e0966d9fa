"""docs/evidence.md: published records of runs, and the page with tables and pictures that they give."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..run_files import replace_text
from .plan import measurements
from .report import draw_table, markdown_table, table_json
from .runs import RunCache
from .suite import Suite, load_suite
from .tables import Table, make_table

INTRODUCTION_FILE = "introduction.md"


def publish(suite: Suite, cache: RunCache, folder: Path) -> Path | None:
    """Copy the records of a suite's finished runs to `NAME.jsonl`, a record per line; the file, None without any.

    Args:
        suite: the suite.
        cache: where its runs are.
        folder: of published records; what stands there of runs that the cache lacks is kept.
    """
    path = folder / f"{suite.name}.jsonl"
    known = {record["key"]: record for record in read_records(path)}
    kept: dict[str, Mapping[str, Any]] = {}
    for measurement in measurements(suite):
        record = cache.measurement(measurement.key) or known.get(measurement.key)
        if record is None:
            continue
        for training in measurement.training.chain():
            trained = cache.training(training.key) or known.get(training.key)
            if trained is not None:
                kept[training.key] = trained
        kept[measurement.key] = record
    if not kept:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, "".join(json.dumps(record, sort_keys=True) + "\n" for record in kept.values()))
    return path


def read_records(path: Path) -> list[dict[str, Any]]:
    """Published records of a file; none where it is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def published_table(suite: Suite, folder: Path) -> Table:
    """A suite's table of published records."""
    return make_table(suite, {record["key"]: record for record in read_records(folder / f"{suite.name}.jsonl")}.get)


def write_page(evidence: Path, suites: Path) -> Path:
    """Write the page beside the folder of records, and tables and pictures into it; returns the page.

    Args:
        evidence: folder of published records, such as docs/evidence.
        suites: folder of suites, with the page's introduction.

    Raises:
        FileNotFoundError: the introduction is missing.
        SuiteError: a suite is not valid.
    """
    loaded = sorted((load_suite(path) for path in suites.glob("*.yaml")), key=lambda suite: (suite.place, suite.name))
    tables = [published_table(suite, evidence) for suite in loaded]
    evidence.mkdir(parents=True, exist_ok=True)
    sections = [_section(table, evidence, suites) for table in tables]
    page = evidence.with_suffix(".md")
    introduction = (suites / INTRODUCTION_FILE).read_text()
    replace_text(page, "\n".join([introduction, _overview(tables), *sections]))
    replace_text(evidence / "tables.json", json.dumps([table_json(table) for table in tables], indent=1) + "\n")
    return page


def _overview(tables: list[Table]) -> str:
    rows = ["## Overview", "", "| claim | what is seen |", "|---|---|"]
    for table in tables:
        seen = [f"{line.variant.name}: {line.verdict}" for line in table.lines if line.verdict]
        text = "; ".join(seen) or ("not finished" if table.is_started and table.missing else "not run yet")
        rows.append(f"| [{table.suite.claim}](#{_anchor(table.suite.title)}) | {text} |")
    return "\n".join(rows) + "\n"


def _anchor(title: str) -> str:
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in "_- ")
    return kept.replace(" ", "-")


def _section(table: Table, evidence: Path, suites: Path) -> str:
    suite = table.suite
    place = f"{suites.parent.name}/{suites.name}/{suite.name}.yaml"
    parts = [f"## {suite.title}", f"**Claim.** {suite.claim}"]
    if suite.paper:
        parts.append(f"**Published.** {suite.paper.strip()}")
    parts.append(f"```bash\npython training/ablate.py {place}\n```")
    if not table.is_started:
        return "\n\n".join([*parts, "**Not run yet.** The command runs it."]) + "\n"
    picture = evidence / f"{suite.name}.svg"
    draw_table(table, picture)
    parts.append(markdown_table(table).strip())
    if table.missing:
        parts.append(f"**Unfinished:** {table.missing} runs of this suite have not been run yet.")
    parts.append(f"![{suite.title}: figures of every seed]({evidence.name}/{picture.name})")
    if suite.reading:
        parts.append(suite.reading.strip())
    parts.append(_machines(suite, evidence))
    return "\n\n".join(parts) + "\n"


def _machines(suite: Suite, evidence: Path) -> str:
    """Where and when the records were made, and how long they took."""
    records = read_records(evidence / f"{suite.name}.jsonl")
    seconds = sum(record["seconds"] or 0 for record in records)
    days = sorted({record["date"][:10] for record in records})
    machines = sorted({f"{record['machine']}, {record['threads']} thread" for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{len(records)} runs, {seconds / 60:.0f} minutes in all, on {'; '.join(machines)}; {when}."
