"""Loading of checkpoints that are damaged, incomplete or of another model: errors that name the file and the fix."""

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

from .configuration_checks_ait import check_common, check_config_file, check_json


class UnfitWeightsError(OSError, RuntimeError):
    """Weights that are not of the configuration beside them; a RuntimeError too, as which transformers raises it."""


class CheckedLoading:
    """Before `PreTrainedModel` among the bases of a model: `from_pretrained` with errors that name the file."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """See `PreTrainedModel.from_pretrained`.

        Raises:
            OSError: the configuration or the weights are missing, damaged, or of another model.
            TypeError: an argument of another type.
            ValueError: an argument that cannot be.
        """
        source = pretrained_model_name_or_path
        _check_arguments(kwargs)
        if kwargs.get("config") is None:
            check_config_file(source, kwargs)
        for file in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
            check_index(check_json(source, kwargs, file), file)
        try:
            return super().from_pretrained(source, *model_args, **kwargs)  # type: ignore[misc]
        except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
            raise OSError(
                f"The weights of {source} are damaged or incomplete ({_first_line(error)}); copy or download them "
                "again."
            ) from error
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise
            raise UnfitWeightsError(
                f"The weights of {source} are not those of its configuration ({_first_line(error)}); is config.json "
                "the one that they were saved with? For other classes pass ignore_mismatched_sizes=True."
            ) from error


def check_index(index: Mapping[str, Any], file: str) -> None:
    """Raise an OSError for a table of weight files that is none.

    Args:
        index: what the file holds; empty where there is none.
        file: its name.
    """
    if not index:
        return
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise OSError(f"{file} must hold a weight_map from tensors to files, got {files!r:.80}; copy it again.")
    if not isinstance(index.get("metadata"), dict):
        raise OSError(f"{file} must hold an object as metadata, got {index.get('metadata')!r:.80}; copy it again.")


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    check_common(arguments)
    settings = arguments.get("config")
    if settings is not None and not isinstance(settings, PreTrainedConfig | str | os.PathLike):
        raise TypeError(f"config must be a configuration, or a folder that holds one, got {settings!r:.80}.")
    config = arguments.get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    if config is not None and method is None:
        raise TypeError(
            f"quantization_config must be one of transformers' quantization configurations, got {config!r:.80}."
        )
    tensors = arguments.get("state_dict")
    if tensors is not None and not isinstance(tensors, Mapping):
        raise TypeError(f"state_dict must map names to tensors, got {type(tensors).__name__}.")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]


__all__ = ["CheckedLoading", "UnfitWeightsError", "check_index"]
