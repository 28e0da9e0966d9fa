"""What a case is: one call of something public, and what an error of it must name."""

import contextlib
import io
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Names = tuple[str, ...]


@dataclass
class Case:
    """One call.

    Args:
        what: one line that says what is odd; the same for the same number.
        call: what to try.
        names: an error's message must hold one of them, in any case of letters.
        keeps_complete: whether files that are whole may stay after an error, such as those of other inputs.
    """

    what: str
    call: Callable[[], Any]
    names: Names
    keeps_complete: bool = False


@dataclass
class Place:
    """Folders of a case.

    Args:
        folder: its own, empty; what it reads goes to `inputs`, what the call writes to `outputs`.
        session: what `prepare` of its kind wrote, shared by all cases, to read alone.
    """

    folder: Path
    session: Path
    inputs: Path = field(init=False)
    outputs: Path = field(init=False)

    def __post_init__(self) -> None:
        self.inputs, self.outputs = self.folder / "in", self.folder / "out"
        for path in (self.inputs, self.outputs):
            path.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        build: makes the case of a random generator.
        share: how many of all cases, relative to other kinds.
        prepare: writes what all cases read into an empty folder, once.
    """

    build: Callable[[random.Random, Place], Case]
    share: int
    prepare: Callable[[Path], None] = lambda folder: None


class Refused(Exception):
    """A command line that ended with an exit status and a message, as command lines do."""

    def __init__(self, status: Any, message: str):
        super().__init__(message)
        self.status = status


class Escaped(Exception):
    """An error of any type that a command line shows as a traceback."""


def run_command(main: Callable[[Sequence[str]], Any], words: Sequence[str]) -> Any:
    """Run a command line in this process.

    Raises:
        Escaped: it ended in a traceback.
        Refused: it ended with another status than 0.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
        except Exception as error:
            raise Escaped(f"{type(error).__name__}: {error}") from error
    if status not in (0, None):
        raise Refused(status, said.getvalue())
    return status


@contextlib.contextmanager
def arguments_of_process(words: Sequence[str]):
    """`sys.argv` for a script that reads it."""
    before = sys.argv
    sys.argv = [*words]
    try:
        yield
    finally:
        sys.argv = before
