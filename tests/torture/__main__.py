"""Bad and odd input to everything public.

python -m tests.torture                                     # 10,000 cases
python -m tests.torture --cases 500 --seed 3
python -m tests.torture --kinds images,recipes --cases 200
python -m tests.torture --kinds images --only 17            # one case again, with its traceback

Run from the root of the repository. Exit status: 0 no case failed, 1 some did.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Before anything of Hugging Face is imported: nothing may be downloaded, whatever a case asks for.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_DATASETS_OFFLINE="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tqdm import tqdm

from .case import Kind
from .judge import Limits, Outcome
from .report import failures, markdown, table
from .workers import Job, run_all


def build_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="over all kinds; default: 10000")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--kinds", help="some kinds, with commas between; default: all")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="that case alone, of the one kind of --kinds")
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown to write")
    return parser


def jobs_of(kinds: Mapping[str, Kind], cases: int) -> list[Job]:
    """So many cases, shared out among the kinds; at least one of each."""
    counts = dict.fromkeys(kinds, 1)
    for _ in range(cases - len(kinds)):
        # The kind that is furthest behind its share gets the next one.
        behind = min(kinds, key=lambda name: counts[name] / kinds[name].share)
        counts[behind] += 1
    return [(name, number) for name, count in counts.items() for number in range(count)]


def chosen_kinds(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Kind]:
    """The kinds that a command line names."""
    from .kinds import KINDS  # here, so that a mistyped command takes no time

    names = list(KINDS) if options.kinds is None else options.kinds.split(",")
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        parser.error(f"--kinds: unknown {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if options.only is not None and len(names) != 1:
        parser.error("--only needs the one kind of the case in --kinds")
    return {name: KINDS[name] for name in names}


def run(jobs: Sequence[Job], kinds: Mapping[str, Kind], seed: int, limits: Limits) -> list[Outcome]:
    """All outcomes, under a progress bar."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="torture-session-") as folder:
        session = Path(folder)
        for name, kind in kinds.items():
            (session / name).mkdir()
            kind.prepare(session / name)
        with tqdm(total=len(jobs), unit="case", disable=None) as bar:
            failed = 0
            for outcome in run_all(jobs, kinds, seed, session, limits):
                outcomes.append(outcome)
                failed += outcome.failure is not None
                bar.set_postfix_str(f"{outcome.kind}, {failed} failed")
                bar.update()
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    kinds = chosen_kinds(parser, options)
    jobs = jobs_of(kinds, options.cases) if options.only is None else [(next(iter(kinds)), options.only)]
    start = time.perf_counter()
    outcomes = run(jobs, kinds, options.seed, Limits())
    seconds = time.perf_counter() - start
    failed = failures(outcomes, options.seed, with_traceback=options.only is not None)
    print(*table(outcomes), *failed, sep="\n")
    print(f"{len(outcomes)} cases in {seconds:.0f} s, {sum(x.failure is not None for x in outcomes)} failed")
    if options.only is not None:
        print(*(f"{x.what}: {x.result}: {x.message}" for x in outcomes), sep="\n")
    if options.report is not None:
        command = f"python -m tests.torture {' '.join(sys.argv[1:] if arguments is None else arguments)}".strip()
        options.report.write_text(markdown(outcomes, options.seed, seconds, command, Limits()))
    return int(any(outcome.failure is not None for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
