"""What every configuration of this family refuses, before anything is derived from it: values, and files of JSON."""

import json
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

CONFIG_FILE = "config.json"
# Arguments of `from_pretrained` that say where files are.
_TEXTS = ("subfolder", "revision", "variant", "cache_dir")
MAX_SIZE = 2**20
"""Largest width, number of codes or of tokens: far beyond any model, and still a size that tensors can have."""
MAX_LAYERS = 1024
MAX_NUMBER = 1e30
MAX_CLASSES = 2**16
# Fields that all configurations of transformers have, and that it takes without a look.
_SWITCHES = ("return_dict", "output_hidden_states", "is_encoder_decoder", "output_attentions")


def require_positive(config: object, *names: str, least: int = 1, most: int = MAX_SIZE) -> None:
    """Raise a ValueError for a size, or a sequence of sizes, that is less than `least`, or that no model can have."""
    for name in names:
        value = getattr(config, name)
        sizes = value if isinstance(value, list | tuple) else [value]
        if not all(size >= least for size in sizes):  # NaN is not
            raise ValueError(f"{name} must be at least {least}, got {value}.")
        if not all(size <= most for size in sizes):
            raise ValueError(f"{name} must be at most {most}, got {value!r:.80}.")


def check_common(fields: Mapping[str, Any]) -> None:
    """Look at what all configurations of transformers have, classes above all.

    Args:
        fields: by name; others than these are for their own configuration to judge.

    Raises:
        TypeError: a value of another type.
        ValueError: class ids or names that cannot be.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if "num_labels" in given:
        _check_count("num_labels", given["num_labels"])
    if "id2label" in given:
        _check_names(given["id2label"])
    if "label2id" in given:
        _check_ids(given["label2id"])
    for name in ("dtype", "torch_dtype"):
        if name in given:
            _check_dtype(name, given[name])
    for name in _SWITCHES:
        if name in given and not isinstance(given[name], bool | int):
            raise TypeError(f"{name} must be True or False, got {given[name]!r:.80}.")
    texts = given.get("architectures", [])
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"architectures must be a list of names, got {texts!r:.80}.")
    attention = given.get("attn_implementation", "")
    if not isinstance(attention, str | dict):
        raise TypeError(f"attn_implementation must be a name such as 'sdpa', got {attention!r:.80}.")


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= int(value) <= MAX_CLASSES:
        raise ValueError(f"{name} must be a whole number of classes, at most {MAX_CLASSES}, got {value!r:.80}.")


def _check_names(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"id2label must map class ids to names, such as {{0: 'bed', 1: 'lamp'}}, got {value!r:.80}.")
    wrong = {key: name for key, name in value.items() if not _is_id(key) or not isinstance(name, str)}
    if wrong:
        raise ValueError(f"id2label must map whole numbers to names, got {wrong!r:.80} among others.")


def _check_ids(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"label2id must map class names to ids, such as {{'bed': 0, 'lamp': 1}}, got {value!r:.80}.")
    wrong = {name: key for name, key in value.items() if not _is_id(key) or not isinstance(name, str)}
    if wrong:
        raise ValueError(f"label2id must map names to whole numbers, got {wrong!r:.80} among others.")


def _is_id(value: Any) -> bool:
    """Whether a value is a whole number, or one as JSON writes keys."""
    if isinstance(value, str):
        return value.removeprefix("-").isdecimal() and len(value) < 20
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_dtype(name: str, value: Any) -> None:
    known = isinstance(value, torch.dtype) or (
        isinstance(value, str) and (value == "auto" or isinstance(getattr(torch, value, None), torch.dtype))
    )
    # A dictionary has a type for each part of a model. Floats of 8 bits are for quantized weights, scales beside them.
    is_small = "float8" in str(value) or "float4" in str(value)
    if (not known or is_small) and not isinstance(value, dict):
        raise ValueError(f"{name} must be a type of numbers such as 'float32' or torch.float32, got {value!r:.80}.")


def check_location(source: Any, arguments: Mapping[str, Any]) -> None:
    """Look at where a checkpoint is said to be.

    Args:
        source: folder, name on the Hub, or None.
        arguments: of `from_pretrained`.

    Raises:
        TypeError: one of another type.
    """
    if source is not None and not isinstance(source, str | os.PathLike):
        raise TypeError(
            "pretrained_model_name_or_path must be a checkpoint folder or a name on the Hub, got "
            f"{type(source).__name__} {source!r:.60}."
        )
    for name in _TEXTS:
        value = arguments.get(name)
        if value is not None and not isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} must be a text, got {value!r:.80}.")


def check_json(source: Any, arguments: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The object in a local JSON file of a checkpoint; empty where there is no such file.

    Args:
        source: folder of the checkpoint; anything else is for the Hub.
        arguments: of `from_pretrained`.
        file: name of the file.

    Raises:
        OSError: it cannot be read as a JSON object.
    """
    check_location(source, arguments)
    if source is None:
        return {}
    path = Path(source) / (arguments.get("subfolder") or "") / file
    if "\0" in str(path) or not os.path.isfile(path):
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise OSError(f"{path} is no readable JSON file ({error}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} must hold a JSON object, got {type(content).__name__}; copy or download it again.")
    return content


def check_finite(config: object, *names: str) -> None:
    """Raise a ValueError for a number that no float can hold."""
    for name in names:
        if not -MAX_NUMBER <= getattr(config, name) <= MAX_NUMBER:  # NaN is not
            raise ValueError(f"{name} must be a finite number, got {getattr(config, name)!r:.80}.")


def check_config_file(source: Any, arguments: Mapping[str, Any]) -> None:
    """Look at a local folder's config.json: without it transformers goes on with the defaults of the published model.

    Args:
        source: folder of the checkpoint; anything else is for the Hub.
        arguments: of `from_pretrained`.

    Raises:
        OSError: it is missing, or cannot be read as a JSON object.
        TypeError: no folder or name.
    """
    check_json(source, arguments, CONFIG_FILE)
    folder = Path(source or "") / (arguments.get("subfolder") or "")
    if source and "\0" not in str(folder) and os.path.isdir(folder) and not os.path.isfile(folder / CONFIG_FILE):
        raise FileNotFoundError(f"There is no {CONFIG_FILE} in {folder}; give a folder that save_pretrained wrote.")


def check_dictionary(config_dict: Any) -> None:
    """Raise a TypeError for what cannot be the fields of a configuration."""
    if not isinstance(config_dict, Mapping):
        raise TypeError(f"config_dict must be the fields of a configuration, got {type(config_dict).__name__}.")
    strange = [key for key in config_dict if not isinstance(key, str)]
    if strange:
        raise TypeError(f"config_dict must have names of fields as keys, got {strange!r:.80} among them.")


class AiTBaseConfig(PreTrainedConfig):
    """A configuration that names what is wrong with the fields that all have, and checks what a call replaces."""

    def __post_init__(self, **kwargs: Any):
        check_common({**vars(self), **kwargs})
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See `PreTrainedConfig`.

        Raises:
            OSError: config.json is missing, or cannot be read as a JSON object.
            TypeError: no folder or name.
        """
        if kwargs.get("_configuration_file", CONFIG_FILE) == CONFIG_FILE and not kwargs.get("gguf_file"):
            check_config_file(pretrained_model_name_or_path, kwargs)
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_dict`, which sets arguments one by one after everything has been checked.

        Raises:
            TypeError: no dictionary, or a field of another type.
            ValueError: a value that cannot be; as the cause of a strict-dataclass error where fields do not fit.
        """
        check_dictionary(config_dict)
        check_common({**config_dict, **kwargs})
        for name in cls.sub_configs_defaults:
            if not isinstance(kwargs.get(name), dict | PreTrainedConfig | None):
                raise TypeError(f"{name} must be a dictionary or a configuration object, got {kwargs[name]!r:.80}.")
        made: Any = super().from_dict(dict(config_dict), **kwargs)
        (made[0] if isinstance(made, tuple) else made).validate()
        return made


def check_list(name: str, value: Any, form: str) -> None:
    """Raise a TypeError for what is no list.

    Args:
        name: of the field.
        value: of it.
        form: what it should hold.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of {form}, got {value!r:.80}.")


def resolve_sub_config(
    name: str, value: Any, own: Sequence[type[PreTrainedConfig]], others: bool = False
) -> PreTrainedConfig | None:
    """A sub-configuration as an object; classes of this package need no Auto registration.

    Args:
        name: of the field, for errors.
        value: a dictionary with `model_type`, a configuration object, or None, which stays None.
        own: classes of this package that may stand there.
        others: whether any other class that transformers knows may.

    Raises:
        TypeError: the value is something else.
        ValueError: another model type.
    """
    if value is None:
        return None
    if not isinstance(value, dict | PreTrainedConfig):
        raise TypeError(f"{name} must be a dictionary or a configuration object, got {type(value).__name__}.")
    classes = {config_class.model_type: config_class for config_class in own}
    model_type = value.model_type if isinstance(value, PreTrainedConfig) else value.get("model_type", "")
    if not isinstance(model_type, str):
        raise TypeError(f"{name} must have a name as model_type, got {model_type!r:.80}.")
    if model_type not in classes and not (others and model_type in CONFIG_MAPPING):
        further = " nor known to transformers" if others else ""
        raise ValueError(
            f"{name} has model_type {model_type!r}, which is neither one of {sorted(classes)}{further}; set "
            "`model_type` in the dictionary or pass a configuration object."
        )
    if isinstance(value, PreTrainedConfig):
        return value
    config_class = classes.get(model_type) or CONFIG_MAPPING[model_type]
    return config_class(**{key: entry for key, entry in value.items() if key != "model_type"})


__all__ = [
    "CONFIG_FILE",
    "MAX_LAYERS",
    "MAX_SIZE",
    "AiTBaseConfig",
    "check_common",
    "check_config_file",
    "check_dictionary",
    "check_finite",
    "check_json",
    "check_list",
    "check_location",
    "require_positive",
    "resolve_sub_config",
]
