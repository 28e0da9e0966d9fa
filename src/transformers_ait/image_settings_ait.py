"""Checks of what the image processors of this family are told, before anything is computed with it."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from transformers.image_utils import ChannelDimension, SizeDict, pil_torch_interpolation_mapping
from transformers.utils import TensorType

MAX_EDGE = 2**14
"""Pixels of a model's input; a batch of one with more would not fit into memory."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Look at settings that image processors have in common; None is for the processor to judge.

    Args:
        settings: by name, as given at construction or to a call.

    Raises:
        TypeError: a setting of another type.
        ValueError: a value that no processor can work with.
    """
    for name, value in settings.items():
        if value is not None:
            check = _CHECKS.get(name, _check_switch if name.startswith("do_") else None)
            if check is not None:
                check(name, value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_ | int):
        raise TypeError(f"{name} must be True or False, got {value!r:.80}.")


def _check_size(name: str, value: Any) -> None:
    """Sizes in any of the forms that transformers takes: a number, a pair, or by name."""
    if isinstance(value, Mapping | SizeDict):
        entries = [entry for entry in dict(value).values() if entry is not None]
    else:
        entries = [*value] if isinstance(value, list | tuple) else [value, value]
    forms = "{'height': 480, 'width': 480} or {'longest_edge': 640}"
    least = 1 if isinstance(value, Mapping | SizeDict) else 2
    if not least <= len(entries) <= 2 or not all(isinstance(x, Integral) and not isinstance(x, bool) for x in entries):
        raise ValueError(f"{name} must be whole pixels, such as {forms}, got {value!r:.80}.")
    if max(entries) > MAX_EDGE:
        raise ValueError(f"{name} must be at most {MAX_EDGE} pixels, got {value!r:.80}.")


def _check_statistics(name: str, value: Any) -> None:
    values = [*value] if isinstance(value, list | tuple) else [value]
    if not values or not all(map(is_number, values)):
        raise ValueError(f"{name} must be a finite number, or one per channel, got {value!r:.80}.")
    if name == "image_std" and 0 in values:
        raise ValueError(f"{name} must not be 0, which images are divided by, got {value!r:.80}.")


def _check_rescale_factor(name: str, value: Any) -> None:
    if not is_number(value) or value == 0:
        raise ValueError(f"{name} must be a finite number other than 0, such as 1 / 255, got {value!r:.80}.")


def _check_resample(name: str, value: Any) -> None:
    known = {int(x): x for x in pil_torch_interpolation_mapping}
    modes = [mode.value for mode in pil_torch_interpolation_mapping.values()]
    is_mode = value in modes if isinstance(value, str) else getattr(value, "value", None) in modes
    if not is_mode and not (isinstance(value, int) and value in known):
        listed = ", ".join(f"{number} ({x.name.lower()})" for number, x in known.items())
        raise ValueError(f"{name} must be one of {listed}, got {value!r:.80}.")


def _check_return_tensors(name: str, value: Any) -> None:
    try:
        TensorType(value)
    except ValueError as error:
        raise ValueError(f"{name} must be 'pt', 'np' or None, got {value!r:.80}.") from error


def _check_device(name: str, value: Any) -> None:
    try:
        usable = not torch.empty(0, device=value).is_meta
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{name} {value!r:.80} cannot be used ({reason}); name one such as 'cpu' or 'cuda:0'."
        ) from error
    if not usable:
        raise ValueError(f"{name} must hold values, got {value!r:.80}; name one such as 'cpu' or 'cuda:0'.")


def _check_data_format(name: str, value: Any) -> None:
    known = [ChannelDimension.FIRST.value, ChannelDimension.LAST.value]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r:.80}.")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(("size", "crop_size", "pad_size"), _check_size),
    **dict.fromkeys(("image_mean", "image_std"), _check_statistics),
    **dict.fromkeys(("data_format", "input_data_format"), _check_data_format),
    "rescale_factor": _check_rescale_factor,
    "resample": _check_resample,
    "return_tensors": _check_return_tensors,
    "device": _check_device,
}

__all__ = ["MAX_EDGE", "check_settings", "is_number"]
