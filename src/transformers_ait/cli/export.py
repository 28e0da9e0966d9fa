"""`transformers-ait export`: what `python -m transformers_ait.export` does."""

from collections.abc import Sequence

from ..export.__main__ import main as export


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    return export(arguments, prog="transformers-ait export")
