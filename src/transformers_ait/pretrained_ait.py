"""What every model of this family answers alike to transformers: attention choices, arguments, operations, resizing."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, TransformersKwargs

from .loading_ait import CheckedLoading

# A training step's backward pass takes about twice the operations of its forward pass.
PASSES_PER_STEP = 3


class AiTBaseModel(CheckedLoading, PreTrainedModel):
    """A model that runs attention written out ("eager") or through PyTorch's fused kernels ("sdpa")."""

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers guesses this from the source text, where it looks for its own attention interface.
        return True

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """See `PreTrainedModel`.

        Raises:
            ValueError: an implementation other than "eager" and "sdpa".
        """
        _refuse_flash(self, requested_attention)
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        # Before transformers looks for the package, and suggests to install it.
        _refuse_flash(self, attn_implementation)
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def check_kwargs(self, kwargs: Mapping[str, Any]) -> None:
        """Let further arguments of a forward pass through that transformers hands to any model, and no others.

        Models of transformers swallow every name. Here a misspelt `depth_label` would predict where it should train.

        Raises:
            TypeError: a name that is none of `TransformersKwargs`.
        """
        unknown = sorted(kwargs.keys() - TransformersKwargs.__optional_keys__ - TransformersKwargs.__required_keys__)
        if unknown:
            raise TypeError(
                f"{type(self).__name__}.forward() got unexpected keyword arguments {unknown}; see its docstring for "
                "those that it takes, and leave out what a dataset or a processor adds to them."
            )

    def as_asked(self, output: ModelOutput, return_dict: bool | None) -> Any:
        """The output, or the tuple of its fields that are not None; None leaves it to `config.return_dict`."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def floating_point_ops(self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """Operations of a training step.

        Matrix products, convolutions and attention of one forward pass, counted once per image shape without computing
        anything, times 3 for forward and backward pass. (Trainer's own figure takes every pixel for a token; see
        docs/own-trainer.md for how it takes this one.)

        Args:
            input_dict: arguments of `forward`.
            exclude_embeddings: has no effect, since looking up embeddings takes no products.
        """
        images = input_dict[self.main_input_name]
        what = self._counted_pass(input_dict)
        counts = self.__dict__.setdefault("_operations", {})
        key = (tuple(images.shape[1:]), repr(what))
        if key not in counts:
            counts[key] = self._count_operations(images, what)
        return PASSES_PER_STEP * len(images) * counts[key]

    def _count_operations(self, images: Tensor, what: Any) -> int:
        from torch.utils.flop_counter import FlopCounterMode  # takes a while to import

        # Without content, and with gradients, so that nothing is kept for later passes.
        with torch.device("meta"), torch.enable_grad():
            twin: Any = type(self)(copy.deepcopy(self.config)).eval()
            with FlopCounterMode(display=False) as counter:
                twin._run_counted(torch.empty(1, *images.shape[1:]), what)
        return counter.get_total_flops()

    def _counted_pass(self, input_dict: Mapping[str, Any]) -> Any:
        """What of a forward pass's arguments decides about its operations, beside the images."""
        return None

    def _run_counted(self, images: Tensor, what: Any) -> None:
        self(images)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Not possible: the vocabulary follows from the configuration.

        Raises:
            NotImplementedError: always; the message says how to come to other classes.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no free vocabulary: its ids follow from the configuration's bins, classes and "
            "codes. For other classes use from_pretrained(folder, id2label=..., label2id=..., "
            "ignore_mismatched_sizes=True)."
        )


def _refuse_flash(model: PreTrainedModel, requested: str | None) -> None:
    if requested is not None and "flash" in requested:
        raise ValueError(
            f"attn_implementation={requested!r} is not possible for {type(model).__name__}: a learned position bias is "
            "added to the backbone's attention scores, which flash attention cannot do. Leave it at 'sdpa': in half "
            "precision on a GPU, PyTorch takes its own flash kernel for encoder and decoder, which have no bias. A "
            "backbone of another family can have it: attn_implementation={'backbone_config': 'flash_attention_2'}."
        )


__all__ = ["AiTBaseModel"]
