"""`transformers-ait convert`: what `python -m transformers_ait.conversion` does."""

from collections.abc import Sequence

from ..conversion.__main__ import main as convert


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    return convert(arguments, prog="transformers-ait convert")
