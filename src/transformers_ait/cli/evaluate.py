"""Figures of checkpoint folders on a dataset, as a Markdown table with a row per model, and as files.

    transformers-ait evaluate hub_configs/ait-tiny-rooms-depth
    transformers-ait evaluate runs/vqvae/model runs/depth/model runs/parallel/model --output results
    transformers-ait evaluate runs/depth/model --dataset nyu_depth_v2 --options '{"data_dir": "nyu"}' \\
        --baseline-split train --output results
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml \\
        -m transformers_ait evaluate runs/instance/model --dataset coco_instances --options '{"data_dir": "coco"}' \\
        --dtype bf16 --output results

Every dense task that the data has a column for gets a table (`--task` chooses one), then come the objects. Depth is
judged by nine metrics, each the mean over images; normals by angles, classes by mIoU and accuracies and real values
by errors, over the pixels of all images. Images go through the checkpoint's own image processor, which defines
windows and flips; on NYU Depth v2, rows 45:471 and columns 41:601 count. The last rows of a table predict one value
everywhere: the mean and the median of all true depths, the mean direction of normals, the most frequent class.
Objects are judged by the average precision of boxes, masks and boundaries, as COCO or LVIS defines it. A VQ-VAE is
judged by its reconstruction of the truth. Autoregressive models that decode softly appear twice, the second time with
hard tokens.

`--output DIR` gets results.json and results.md, and for each row of a table per_image.csv and worst.png (the images
with the worst RMSE, mean angle or mIoU, or with the lowest F1 of objects, counting scores of at least 0.3 and an IoU
of at least 0.5), for objects also predictions.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from ..engine.evaluation.inputs import EvaluationError, EvaluationSettings
from ..engine.evaluation.report import EvaluationRow, run_evaluation
from ..engine.recipes.reading import RecipeError
from ..engine.run_files import replace_text

ROOMS = "synthetic_rooms"


def build_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        prog="transformers-ait evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", help="checkpoint folders")
    parser.add_argument("--dataset", default=ROOMS, help="name for datasets.load_dataset")
    parser.add_argument("--split", help="default: test, of coco_instances validation")
    parser.add_argument("--options", type=json_object, default={}, help="further arguments of load_dataset, as JSON")
    parser.add_argument("--task", help="of models that do several; of a tokenizer the name of its maps")
    parser.add_argument("--columns", type=json_object, default={}, help="task to column of the truth, as JSON")
    parser.add_argument("--baseline-split", help="split whose mean and median are the constants; default: --split")
    parser.add_argument("--eval-crop", choices=("nyu", "none"), help="default: nyu for nyu_depth_v2")
    parser.add_argument("--annotations", help="annotation file of COCO or LVIS data that coco_instances did not read")
    parser.add_argument("--limit", type=int, help="evaluate the first so many rows")
    parser.add_argument("--batch-size", type=int, default=10, help="images per forward pass and process")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--soft-only", action="store_true", help="no rows with hard tokens of models made for soft ones"
    )
    parser.add_argument("--panels", type=int, default=6, help="images in worst.png")
    parser.add_argument("--output", type=Path, help="folder for the results, or FILE.json for the figures alone")
    parser.add_argument("--rooms", type=int, default=500, help=f"rooms of the split of {ROOMS}")
    parser.add_argument("--height", type=int, default=128, help=f"of {ROOMS}")
    parser.add_argument("--width", type=int, default=160, help=f"of {ROOMS}")
    return parser


def json_object(text: str) -> dict[str, Any]:
    """A dictionary written as JSON."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'must be an object such as {{"data_dir": "nyu"}}, got {text}')
    return value


def make_settings(arguments: argparse.Namespace) -> EvaluationSettings:
    """What the command line asks for."""
    names = ("folders", "dataset", "task", "columns", "baseline_split", "limit", "batch_size", "dtype", "soft_only")
    given = {name: getattr(arguments, name) for name in (*names, "panels", "annotations")}
    split = arguments.split or ("validation" if arguments.dataset == "coco_instances" else "test")
    options = arguments.options
    if arguments.dataset == ROOMS:
        counts = dict.fromkeys(("num_train", "num_validation", "num_test"), 0)
        counts |= {f"num_{name}": arguments.rooms for name in (split, arguments.baseline_split) if name}
        known = {name: count for name, count in counts.items() if name in ("num_train", "num_validation", "num_test")}
        options = {**known, "height": arguments.height, "width": arguments.width, "num_proc": 2, **options}
    crop = arguments.eval_crop == "nyu" or (arguments.eval_crop is None and arguments.dataset == "nyu_depth_v2")
    output = None if is_file(arguments.output) else arguments.output
    return EvaluationSettings(**given, split=split, options=options, nyu_crop=crop, output=output)


def is_file(output: Path | None) -> bool:
    """Whether only the figures are wanted."""
    return output is not None and output.suffix == ".json"


def write_figures(lines: list[EvaluationRow], path: Path) -> None:
    """The figures alone, by the names of the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({line.name: line.metrics for line in lines}, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate every folder and print the tables; returns 0, and raises SystemExit 2 for what the user can correct.

    Args:
        arguments: words of the command line; None takes those of this process.
    """
    options = build_parser().parse_args(arguments)
    logging.disable_progress_bar()
    try:
        lines = run_evaluation(make_settings(options))
    except (EvaluationError, RecipeError, OSError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    state = PartialState()
    if is_file(options.output) and state.is_main_process:
        write_figures(lines, options.output)
    state.destroy_process_group()
    return 0
