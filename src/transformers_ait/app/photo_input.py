"""Gradio's picture input, without its own opening of files."""

from abc import ABCMeta
from typing import Any

import gradio as gr


def _path(self: Any, payload: Any) -> str | None:
    return None if payload is None else payload.path


# Gradio's own input opens the file to see whether it is a picture, and shows a path on the server where it is not; the
# page says more. Its metaclass would write a .pyi file beside this module, for the sake of events that this class does
# not add, so that is left out.
PhotoInput: Any = ABCMeta.__new__(
    type(gr.Image),
    "PhotoInput",
    (gr.Image,),
    {
        "__module__": __name__,
        "__doc__": "As `gradio.Image`, but gives the path of any file that was uploaded.",
        "preprocess": _path,
        "get_block_name": lambda self: "image",
    },
)
