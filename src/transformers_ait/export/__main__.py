"""Export a checkpoint to ONNX or torch.export files, checked against the model.

python -m transformers_ait.export ait-p-depth --output ait-p-depth-onnx
python -m transformers_ait.export ait-depth --output ait-depth-torch --format torch --batch 1
"""

import argparse
import sys
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from .exporter import export_checkpoint
from .programs import SUFFIXES, ExportError

PROGRAM = "python -m transformers_ait.export"


def build_parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """Command-line options; `prog` is what the help calls the program."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="checkpoint folder of this family, with its preprocessor_config.json")
    parser.add_argument("--output", required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--format", choices=sorted(SUFFIXES), default="onnx", help="onnx, or torch for .pt2 files")
    parser.add_argument("--task", help="a task of the checkpoint; without it the default one")
    parser.add_argument("--batch", type=int, help="fixed number of images at a time; without it any number")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Run the command line; returns the exit status, 0 only after the check."""
    options = build_parser(prog).parse_args(arguments)
    verbosity = logging.get_verbosity()
    # Whatever matters ends in an error below; the rest, such as timm's own choice of attention, nobody has to act on.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        print(
            export_checkpoint(
                options.folder, options.output, file_format=options.format, task=options.task, batch=options.batch
            )
        )
    except (OSError, ValueError, TypeError, ImportError, StrictDataclassError, ExportError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        logging.set_verbosity(verbosity)
    return 0


if __name__ == "__main__":
    sys.exit(main())
