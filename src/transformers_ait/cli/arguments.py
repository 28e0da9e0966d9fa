"""Types of options that several subcommands have."""

import argparse
from collections.abc import Callable


def whole_number(least: int, largest: int | None = None) -> Callable[[str], int]:
    """An `argparse` type: integers from `least` to `largest`, both included; None is no upper limit."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least or (largest is not None and value > largest):
            limits = f"at least {least}" if largest is None else f"from {least} to {largest}"
            raise argparse.ArgumentTypeError(f"must be {limits}, got {text}")
        return value

    return integer
