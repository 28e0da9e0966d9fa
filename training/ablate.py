"""Check a claim: variants over base recipes with seeds, and one table with intervals of paired differences.

    python training/ablate.py training/suites/soft-tokens.yaml --dry-run     # what is left, and how long it takes
    python training/ablate.py training/suites/soft-tokens.yaml               # train, measure, print the table
    python training/ablate.py training/suites/*.yaml --cache /shared/runs    # any number of processes and machines
    python training/ablate.py training/suites/soft-tokens.yaml --table       # the table of what is done, no training
    python training/ablate.py training/suites/*.yaml --publish               # finished runs into docs/evidence
    python training/ablate.py --page                                         # docs/evidence.md from those

Every training and measurement is kept under CACHE by its content, so that suites share what is the same, and a
process that is started again goes on where the last one stopped, from the last checkpoint of a run that was killed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from transformers_ait.engine.ablation.estimate import estimate
from transformers_ait.engine.ablation.page import publish, write_page
from transformers_ait.engine.ablation.plan import measurements
from transformers_ait.engine.ablation.report import markdown_table, write_report
from transformers_ait.engine.ablation.runs import RunCache, run_all
from transformers_ait.engine.ablation.suite import Suite, load_suite
from transformers_ait.engine.ablation.tables import make_table
from transformers_ait.engine.recipes.reading import RecipeError

REPOSITORY = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", type=Path, metavar="SUITE", help="YAML files, see training/suites")
    parser.add_argument("--cache", type=Path, default=Path("runs/ablation"), help="folder of runs (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds in place of the suite's")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="say what is left and how long it takes")
    what.add_argument("--table", action="store_true", help="print the table of what is done")
    what.add_argument("--publish", action="store_true", help="copy records of finished runs to EVIDENCE")
    what.add_argument("--page", action="store_true", help="write EVIDENCE.md and its pictures from EVIDENCE")
    parser.add_argument("--evidence", type=Path, default=REPOSITORY / "docs/evidence", help="of published records")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say; 2 is what the user can correct."""
    parsed = build_parser().parse_args(arguments)
    disable_progress_bar()
    try:
        if parsed.page:
            print(f"wrote {write_page(parsed.evidence, REPOSITORY / 'training/suites')}")
            return 0
        if not parsed.suites:
            raise RecipeError("Name a suite, a YAML file such as those in training/suites.")
        for suite in [load_suite(path, parsed.seeds) for path in parsed.suites]:
            _handle(suite, RunCache(parsed.cache), parsed)
    except (RecipeError, OSError, FloatingPointError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def _handle(suite: Suite, cache: RunCache, parsed: argparse.Namespace) -> None:
    wanted = measurements(suite)
    if parsed.publish:
        print(f"{suite.name}: wrote {publish(suite, cache, parsed.evidence) or 'nothing, no run is finished'}")
        return
    if parsed.dry_run:
        print(f"{suite.name}: {estimate(wanted, cache)}")
        return
    if not parsed.table:
        run_all(wanted, cache, lambda line: print(f"{suite.name}: {line}", flush=True))
    table = make_table(suite, cache.measurement)
    print(f"\n{markdown_table(table)}")
    if not parsed.table:
        print(f"wrote {os.path.relpath(write_report(table, cache.folder / 'tables'))}")


if __name__ == "__main__":
    sys.exit(main())
