"""A page in the browser: a picture in, depth, normals, classes and objects out.

    transformers-ait app                                     # in a clone, whose checkpoints it shows
    transformers-ait app --checkpoint runs/depth/model       # one of your own, or several
    transformers-ait app --checkpoint FOLDER --host 0.0.0.0 --port 8000 --device cuda

The page takes photographs by upload, from the clipboard and from the camera. Everything happens on the computer that
runs this command, and nothing is fetched from or sent to anywhere else. `--host 0.0.0.0` lets other computers in.
"""

import argparse
import importlib
import socket
import sys
from collections.abc import Sequence
from typing import Any

from transformers.utils import logging

from .arguments import whole_number
from .predict import DTYPES, device_named

HIGHEST_PORT = 65535
FIRST_PORT, LAST_PORT = 7860, 7959
MAX_SIDE = 2048
NEEDED = ("gradio", "trimesh", "matplotlib", "pycocotools", "datasets")
"""Packages of the extra `app`, as they are imported."""


def build_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        prog="transformers-ait app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER_OR_HUB_ID",
        help="one or more to choose from on the page; default: those that a clone of the repository holds",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1, this computer")
    parser.add_argument(
        "--port",
        type=whole_number(1, HIGHEST_PORT),
        help=f"to listen at; default: the first free one of {FIRST_PORT} to {LAST_PORT}",
    )
    parser.add_argument("--device", type=device_named, default="auto", help="such as cpu, cuda:1; default: auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; default: auto, as stored")
    parser.add_argument(
        "--max-side",
        type=whole_number(0),
        default=MAX_SIDE,
        metavar="PIXELS",
        help=f"pictures with a longer side are made smaller; 0 is no limit; default: {MAX_SIDE}",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Serve the page until it is interrupted; returns the exit status: 0 all well, 2 wrong usage.

    Args:
        arguments: words of the command line.
    """
    options = build_parser().parse_args(arguments)
    logging.disable_progress_bar()
    try:
        require_packages()
        port = free_port(options.host, options.port)
        checkpoints = load_checkpoints(options)
    except (OSError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from ..app.page import Page  # imports Gradio, which takes seconds

    page = Page(checkpoints, options.max_side)
    page.launch(server_name=options.host, server_port=port, inbrowser=options.open, prevent_thread_lock=True)
    names = ", ".join(checkpoint.label for checkpoint in checkpoints)
    print(f"{names} at http://{_shown(options.host)}:{port} (Ctrl+C ends it)", flush=True)
    try:
        page.blocks.block_thread()
    finally:
        page.blocks.close(verbose=False)
    return 0


def require_packages() -> None:
    """ImportError, which names the extra, where a package of the page is missing."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'The page needs {name}, which is optional: pip install "transformers_ait[app]".'
            ) from error


def load_checkpoints(options: argparse.Namespace) -> list[Any]:
    """The checkpoints of a command line, or those of the clone.

    Raises:
        OSError: one that is not there, or has no weights.
        ValueError: none are given and this is no clone, one twice, or one that predicts nothing from photographs.
    """
    from ..app.checkpoints import Checkpoint, labels_of, shipped_checkpoints

    names = options.checkpoint or shipped_checkpoints()
    if not names:
        raise ValueError(
            "--checkpoint is needed: this is no clone of the repository, whose hub_configs/ the page shows otherwise. "
            "Give a folder or a name on the Hub."
        )
    labels = labels_of(names)
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ValueError(f"--checkpoint {twice[0]} is given twice; name each once.")
    return [Checkpoint(*pair, options.device, options.dtype) for pair in zip(names, labels, strict=True)]


def free_port(host: str, port: int | None) -> int:
    """The port where it is free; None looks for one.

    Raises:
        OSError: the port is taken, or this computer has no such address.
    """
    reason: OSError | None = None
    for candidate in range(FIRST_PORT, LAST_PORT + 1) if port is None else (port,):
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, candidate))
            return candidate
        except OSError as error:
            reason = error
    where = f"port {port}" if port is not None else f"ports {FIRST_PORT} to {LAST_PORT}"
    raise OSError(f"cannot listen at --host {host}, {where} ({reason}); give another --port or --host")


def _shown(host: str) -> str:
    """An address that a browser on this computer finds."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host
