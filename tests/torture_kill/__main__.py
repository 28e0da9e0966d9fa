"""Kill -9 over every training script and every save, and faults of disk and data.

python -m tests.torture_kill                                          # 100 kills, all faults
python -m tests.torture_kill --kills 7 --scripts vqvae --faults none  # a short form
python -m tests.torture_kill --kills 40 --seed 3 --report FILE

Run from the root of the repository, on Linux. Exit status: 0 all holds, 1 it does not. Runs are forked from one process
that has imported everything; of each script's kills, those of `--subprocesses` are real starts of Python.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Before anything of Hugging Face is imported.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_DATASETS_OFFLINE="1")
os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")

from tqdm import tqdm


def build_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture_kill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="over all scripts and saves; default: 100")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--scripts", help="some scripts or saves, with commas between; default: all")
    parser.add_argument("--faults", help="some faults, with commas between, or none; default: all")
    parser.add_argument("--subprocesses", type=int, default=2, help="further kills of real processes; default: 2")
    parser.add_argument("--folder", type=Path, help="empty folder to work in, which stays; default: a temporary one")
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown to write")
    return parser


def _chosen(parser: argparse.ArgumentParser, text: str | None, known: Sequence[str], option: str) -> list[str]:
    names = list(known) if text is None else [] if text == "none" else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"{option}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def shares(kills: int, weights: Mapping[str, int]) -> dict[str, int]:
    """So many kills, shared out by weights."""
    counts = dict.fromkeys(weights, 0)
    for _ in range(kills if counts else 0):
        # The one that is furthest behind its share gets the next kill.
        counts[min(counts, key=lambda name: (counts[name] + 1) / weights[name])] += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    # Here, so that --help takes no time.
    from . import session

    tqdm.monitor_interval = 0  # its thread would be lost by a fork
    names = _chosen(parser, options.scripts, list(session.WEIGHTS), "--scripts")
    faults = _chosen(parser, options.faults, session.FAULTS, "--faults")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="torture-kill-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"--folder {folder} is not empty")
        kills = shares(options.kills, {name: session.WEIGHTS[name] for name in names})
        outcomes = session.run(folder, kills, faults, options.subprocesses, options.seed)
    seconds = time.perf_counter() - start
    words = " ".join(sys.argv[1:] if arguments is None else arguments)
    text = session.markdown(outcomes, f"python -m tests.torture_kill {words}".strip(), seconds)
    print(text)
    if options.report is not None:
        options.report.write_text(text)
    return int(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
