"""Time this package against a plain formulation of the same model and against other models, and print ratios.

    python -m benchmarks.speed                       # what `make bench` runs: base sizes, all threads
    python -m benchmarks.speed --threads 1           # on one thread
    python -m benchmarks.speed --parts plain,memory  # some of its parts
    python -m benchmarks.speed --device cuda         # the default where there is a GPU; float32 and bfloat16
    python -m benchmarks.speed --tiny --rounds 1     # a smoke test that takes seconds

Whatever is compared runs interleaved, A B A B. Weights are random; only speed and agreement are looked at. The parts:

- plain: against `transformers_ait.conversion.plain`, in float32, and the backbone in bfloat16
- rivals: against depth and segmentation models of transformers
- components: where the time of a depth prediction goes
- operators: where the time of the backbone goes
- compile: torch.compile of the backbone and of a decoding step
- memory: peak memory beside the plain formulation's
- scaling: images per second at batch 1 to 32

Writes `benchmarks/<hardware>-<threads>t-<date>.md`, which begins with the promised numbers beside the measured ones.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from . import compile, components, footprint, operators, plain, rivals, scaling
from .report import Part, full_report, report_path, write_report
from .setting import DTYPES, Setting, add_arguments, setting_of

PARTS: dict[str, Callable[[Setting], Part]] = {
    "plain": plain.measure,
    "rivals": rivals.measure,
    "components": components.measure,
    "operators": operators.measure,
    "compile": compile.measure,
    "memory": footprint.measure,
    "scaling": scaling.measure,
}


def chosen_parts(text: str) -> list[str]:
    """Names of parts, separated by commas.

    Raises:
        argparse.ArgumentTypeError: an unknown name.
    """
    names = text.split(",")
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown parts {unknown}; there are {','.join(PARTS)}.")
    return names


def run_parts(names: list[str], setting: Setting, output: Path) -> str:
    """Run parts one after the other, say how long each took, and write the report so far after each.

    Returns:
        The whole report.
    """
    parts: list[Part] = []
    text = ""
    for name in names:
        print(f"--- {name}", flush=True)
        start = time.perf_counter()
        with torch.no_grad():
            parts.append(PARTS[name](setting))
        print(f"--- {name} took {time.perf_counter() - start:.0f} s", flush=True)
        text = full_report(parts, setting)
        write_report(text, output)
    return text


def main() -> None:
    """Parse arguments, run, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=3)
    parser.add_argument("--parts", type=chosen_parts, default=list(PARTS), help="default: all, separated by commas")
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        default=None,
        help="of rivals, components and scaling; default: float32 on a CPU, bfloat16 on a GPU",
    )
    arguments = parser.parse_args()
    setting = setting_of(arguments)
    output = arguments.output or report_path(setting)
    text = run_parts(arguments.parts, setting, output)
    print(f"\n{text}\nWritten to {output}.")


if __name__ == "__main__":
    main()
