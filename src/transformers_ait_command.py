"""The start of the command `transformers-ait`.

It lies outside the package, whose import loads torch: so the help, and a mistyped command, take a moment instead of
seconds. Each command is the module of its name in `transformers_ait.cli`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "predict": "maps and objects of photographs, folders and videos, as files",
    "app": "a page in the browser: a picture in, maps, objects and a point cloud out",
    "train": "train a model or a tokenizer by a recipe",
    "evaluate": "figures of checkpoints on a dataset",
    "convert": "original checkpoints to folders of this family, and back",
    "export": "checkpoints to ONNX or torch.export files",
}
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Options of the command itself; what follows the subcommand is the subcommand's."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="transformers-ait",
        usage="transformers-ait COMMAND ...",
        description="Depth, normals, classes and objects as soft tokens (AiT).",
        epilog=f"commands:\n{listed}\n\n`transformers-ait COMMAND --help` has the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 all well, 1 something failed, 2 wrong usage.

    Args:
        arguments: words after the command's name; None takes those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = build_parser().parse_args(given[:1]).command
    try:
        return importlib.import_module(f"transformers_ait.cli.{command}").main(given[1:])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("transformers_ait"):
            raise
        print(
            f"error: {command} needs the package {error.name}: pip install 'transformers_ait[train]'", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
