"""Fewer tokens in the middle of trained image backbones, without training (arXiv 2311.12028 and 2210.01035)."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .hourglass import Hourglass
from .modeling_ait_swinv2 import AiTSwinV2Backbone, AiTSwinV2Block, Workspace
from .modeling_token_decoder import AiTEncoder
from .token_pruning import Pruned
from .token_recovery import NearestRecovery, SimilarityRecovery

IMAGE_RECOVERIES = ("similarity", "nearest")
# Keyword arguments of blocks that hold one entry per token, in a form that pruning would have to know.
TOKEN_ARGUMENTS = ("position_embeddings", "relative_position_bias", "rope")


@dataclass(frozen=True)
class _Plan:
    """Where tokens are pruned and recovered, and how; see `add_hourglass`."""

    before: int
    kept: int | Sequence[int]
    until: int | None
    selection: str
    recovery: str

    def until_block(self, count: int) -> int:
        """The end of the pruned blocks among so many; raises ValueError where they do not hold them."""
        until = count if self.until is None else self.until
        if not 0 <= self.before < until <= count:
            raise ValueError(
                f"before and until must be 0 <= before < until <= {count}, the number of blocks, got "
                f"before={self.before}, until={until}."
            )
        return until

    def hourglass(self, before: int, grid: Sequence[int], num_prefix: int) -> Hourglass:
        """The module, for a list of blocks in which block `before` is the first with fewer tokens."""
        return Hourglass([before], [self.kept], self.selection, grid=grid, num_prefix=num_prefix)

    def recovered(self, tokens: Tensor, pruned: Pruned, grid: Sequence[int], num_prefix: int) -> Tensor:
        """All tokens, those of the prefix as they came out of the blocks."""
        prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
        inner = Pruned(
            pruned.kept[:, num_prefix:] - num_prefix, pruned.before[:, num_prefix:], pruned.chosen[:, num_prefix:]
        )
        recover = SimilarityRecovery() if self.recovery == "similarity" else NearestRecovery(grid)
        return torch.cat([prefix, recover(patches, inner)], 1)


class HourglassHandle:
    """A wrapped model's way back.

    Args:
        undo: what takes the hourglass off.
    """

    def __init__(self, undo: Sequence[Callable[[], Any]]):
        self._undo = [*undo]

    def remove(self) -> None:
        """Make the model what it was; a second call does nothing."""
        while self._undo:
            self._undo.pop()()


def add_hourglass(
    model: PreTrainedModel,
    before: int,
    kept: int | Sequence[int],
    *,
    until: int | None = None,
    selection: str = "centroid",
    recovery: str = "similarity",
    stage: int = 2,
    num_prefix: int | None = None,
) -> HourglassHandle:
    """Let a trained model run with fewer tokens in the middle of its blocks; its weights and their names stay.

    It works on transformers' ViT-like models (ViT, DeiT, DINOv2 and whatever holds one list of blocks from tokens
    (B, N, C) to tokens), on one stage of `AiTSwinV2Backbone`, alone or in an AiT model, where the stage's map must be
    one window, and on the encoder of AiT models with a convolutional backbone, which has no
    tokens. Deviations from the whole model depend on it and on `kept`: measure them.

    Args:
        model: changed in place until the handle's `remove`.
        before: number of the block, counted from 0, that tokens are pruned before.
        kept: tokens in the middle, (rows, columns) of cells for "centroid" and "cell", else their number.
        until: tokens are recovered after block `until - 1`; None is after the last.
        selection: "centroid" replaces tokens by means of soft clusters; "cell", "density" and "uniform" pick some.
        recovery: "similarity" to the tokens before pruning, or the "nearest" kept token on the grid.
        stage: of the Swin backbone, counted from 0.
        num_prefix: leading tokens that are no patches (class, registers); None reads them off the configuration.

    Returns:
        What takes it off.

    Raises:
        ValueError: the settings do not go together or with the model, a feature map is taken from the pruned blocks, or
            the model is wrapped already. In a forward pass: a map is not one window, or kept cells exceed the grid.
        TypeError: the model has no such blocks.
    """
    if recovery not in IMAGE_RECOVERIES:
        raise ValueError(f"recovery must be one of {IMAGE_RECOVERIES}, got {recovery!r}.")
    swin = next((module for module in model.modules() if isinstance(module, AiTSwinV2Backbone)), None)
    plan = _Plan(before, kept, until, selection, recovery)
    return _wrap_vit(model, num_prefix, plan) if swin is None else _wrap_swin(swin, stage, plan)


class _SwinHourglass:
    """What a stage runs in place of its blocks."""

    def __init__(self, window: int, until: int, plan: _Plan):
        self.window, self.until, self.plan = window, until, plan
        self.hourglass = plan.hourglass(plan.before, (window, window), 0)

    def __call__(self, x: Tensor, blocks: Sequence[AiTSwinV2Block], workspace: Workspace) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        shape, window = x.shape, self.window
        if shape[1:3] != (window, window):
            raise ValueError(
                f"the hourglass needs a map that is one window of {window} x {window} tokens, got {shape[1]} x "
                f"{shape[2]}; give images of the size that the model is configured for."
            )

        def run(block: AiTSwinV2Block, tokens: Tensor, positions: Tensor) -> Tensor:
            if tokens.shape[1] < window * window:
                return block.forward_tokens(tokens, positions)
            return block(tokens.unflatten(1, (window, window)), workspace).flatten(1, 2)

        calls = [_bind(run, block) for block in blocks[: self.until]]
        positions = torch.arange(window * window, device=x.device)[None]
        tokens, pruned = self.hourglass(x.flatten(1, 2), calls, per_token={"positions": (positions, (1,))})
        x = self.plan.recovered(tokens, pruned, (window, window), 0).view(shape)
        for block in blocks[self.until :]:
            x = block(x, workspace)
        return x


def _bind(run: Callable[..., Tensor], block: nn.Module) -> Callable[..., Tensor]:
    return lambda tokens, positions: run(block, tokens, positions)


def _wrap_swin(
    backbone: AiTSwinV2Backbone,
    stage: int,
    plan: _Plan,
) -> HourglassHandle:
    config = backbone.config
    if not 0 <= stage < len(config.depths):
        raise ValueError(f"stage must lie in 0..{len(config.depths) - 1}, got {stage}.")
    target: Any = backbone.stages[stage]
    if config.shift_windows[stage]:
        raise ValueError(
            f"stage {stage} shifts its windows, so that its tokens do not all see each other; take another."
        )
    if target.hourglass is not None:
        raise ValueError(f"stage {stage} has an hourglass already; call its handle's remove() first.")
    until = plan.until_block(config.depths[stage])
    target.hourglass = _SwinHourglass(config.window_sizes[stage], until, plan)

    def undo() -> None:
        target.hourglass = None

    return HourglassHandle([undo])


def _wrap_vit(
    model: PreTrainedModel,
    num_prefix: int | None,
    plan: _Plan,
) -> HourglassHandle:
    encoder = next((module for module in model.modules() if isinstance(module, AiTEncoder)), None)
    grid = None if encoder is None else (encoder.grid_size, encoder.grid_size)
    blocks: Any = _find_blocks(model) if encoder is None else encoder.blocks
    until = plan.until_block(len(blocks))
    if encoder is None:
        _check_features(model, plan.before, until)
    if any(getattr(block, "_hourglass", False) for block in blocks):
        raise ValueError("the model has an hourglass already; call its handle's remove() first.")
    default = _prefix_of(model.config) if encoder is None else 0
    prefix = default if num_prefix is None else num_prefix
    plan.hourglass(0, grid or (10**6, 10**6), prefix)  # what does not go together is said now
    hooks = _BlockHooks(plan, prefix, grid)
    handles = [
        *([] if grid else [model.register_forward_pre_hook(hooks.note_grid, with_kwargs=True)]),
        blocks[plan.before].register_forward_pre_hook(hooks.prune, with_kwargs=True),
        blocks[until - 1].register_forward_hook(hooks.recover, prepend=True),  # before those that note hidden states
    ]
    first: Any = blocks[plan.before]
    first._hourglass = True
    return HourglassHandle([*(handle.remove for handle in handles), lambda: setattr(first, "_hourglass", False)])


class _BlockHooks:
    """Pruning before one block and recovery after another; what lies between belongs to the thread's forward pass."""

    def __init__(self, plan: _Plan, num_prefix: int, grid: tuple[int, int] | None):
        self.plan, self.num_prefix, self.grid = plan, num_prefix, grid
        self._pass = threading.local()

    def note_grid(self, model: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        """Rows and columns of patches of the images that come in."""
        images = arguments[0] if arguments else named.get("pixel_values")
        config: Any = model.config
        patch = config.patch_size
        sides = (patch, patch) if isinstance(patch, int) else patch
        self._pass.grid = tuple(size // side for size, side in zip(images.shape[-2:], sides, strict=True))  # type: ignore[union-attr]

    def prune(self, block: nn.Module, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Tokens of a block's call, pruned."""
        unknown = [name for name in TOKEN_ARGUMENTS if named.get(name) is not None]
        if unknown or any(isinstance(x, Tensor) for x in arguments[1:]) or named.get("attention_mask") is not None:
            raise ValueError(
                f"the blocks take {unknown or 'a mask'} beside the tokens, which pruning does not gather; use "
                "Hourglass with `per_token` around them."
            )
        tokens, grid = arguments[0], self._grid()
        if tokens.shape[1] != self.num_prefix + grid[0] * grid[1]:
            raise ValueError(
                f"images of {grid[0]} x {grid[1]} patches and num_prefix={self.num_prefix} do not make the "
                f"{tokens.shape[1]} tokens that there are; give num_prefix."
            )
        hourglass = self.plan.hourglass(0, grid, self.num_prefix)
        kept, self._pass.pruned = hourglass(tokens, [nn.Identity()])
        return (kept, *arguments[1:]), named

    def recover(self, block: nn.Module, arguments: tuple, output: Any) -> Any:
        """All tokens, in place of a block's output."""
        is_tuple = isinstance(output, tuple)
        tokens = output[0] if is_tuple else output
        tokens = self.plan.recovered(tokens, self._pass.pruned, self._grid(), self.num_prefix)
        self._pass.pruned = None
        return (tokens, *output[1:]) if is_tuple else tokens

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens behind the prefix."""
        return self.grid or self._pass.grid


def _find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The only list of as many modules as the configuration has layers."""
    count = getattr(model.config, "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(lists) != 1 or not hasattr(model.config, "patch_size"):
        raise TypeError(
            f"{type(model).__name__} is no ViT of transformers with one list of blocks, and holds no "
            "AiTSwinV2Backbone; convolutional backbones have no tokens to prune. Around other blocks, use Hourglass."
        )
    return lists[0]


def _check_features(model: PreTrainedModel, before: int, until: int) -> None:
    """Feature maps of a backbone must not come from blocks with fewer tokens."""
    indices = getattr(model.config, "out_indices", None) or ()
    places = {index: index % (model.config.num_hidden_layers + 1) for index in indices}
    pruned = [index for index, place in places.items() if before < place < until or before == place == 0]
    if hasattr(model, "out_features") and pruned:
        raise ValueError(
            f"feature maps {pruned} of out_indices {[*indices]} come from blocks with fewer tokens; prune between two "
            "of them by `before` and `until`, or take other out_indices."
        )


def _prefix_of(config: Any) -> int:
    """Class token, registers, and DeiT's token of distillation."""
    return 1 + (getattr(config, "num_register_tokens", 0) or 0) + (config.model_type == "deit")
