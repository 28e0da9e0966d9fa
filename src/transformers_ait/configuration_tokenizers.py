"""Configurations of the tokenizers, for maps of every kind."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_checks_ait import MAX_LAYERS, AiTBaseConfig, check_common, check_finite, require_positive
from .map_kinds_ait import IGNORED_CLASS, MAP_KINDS, MapKind


class MapTokenizer:
    """What every tokenizer configuration derives from its kind of map, image size and downsample ratio.

    Attributes:
        encodes_images: whether codes are made of images, in place of maps.
    """

    encodes_images = False
    image_size: int
    downsample_ratio: int
    map_kind: str | None
    num_channels: int | None
    id2label: Any
    label2id: Any

    @property
    def kind(self) -> MapKind:
        """What the maps' values mean."""
        return MAP_KINDS[self.map_kind]  # type: ignore[index]

    def _settle_channels(self, kwargs: dict[str, Any]) -> None:
        """Find the channels, and for classes their names, from what is given.

        Raises:
            ValueError: the kind is unknown.
        """
        if self.map_kind not in (None, *MAP_KINDS):
            raise ValueError(f"map_kind must be one of {sorted(MAP_KINDS)}, got {self.map_kind!r}.")
        if self.num_channels is None:
            self.num_channels = self.kind.channels or (len(self.id2label) if self.id2label else 1)
        if self.kind.has_scores and self.id2label is None:
            kwargs.setdefault("num_labels", self.num_channels)
        elif self.kind.has_scores and self.label2id is None:
            self.label2id = {name: int(index) for index, name in self.id2label.items()}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the channels; only of tokenizers of classes."""
        return [self.id2label[index] for index in range(self.num_channels)]  # type: ignore[arg-type]

    @property
    def grid_size(self) -> int:
        """Side of the square grid of tokens."""
        return self.image_size // self.downsample_ratio

    @property
    def num_tokens(self) -> int:
        """Tokens of one map."""
        return self.grid_size**2

    def validate_map_kind(self):
        """The channels must be the kind's own."""
        require_positive(self, "num_channels")
        # Older configurations have no kind, and any number of channels.
        if self.map_kind is not None and self.kind.channels not in (None, self.num_channels):
            raise ValueError(
                f"num_channels must be {self.kind.channels} for maps of kind {self.kind.name!r}, got "
                f"{self.num_channels}; leave it out."
            )
        channels: int = self.num_channels or 0
        if self.kind.has_scores and sorted(self.id2label) != list(range(channels)):
            raise ValueError(
                f"id2label must name each of the {self.num_channels} channels, counted from 0, got the ids "
                f"{sorted(self.id2label)}; leave num_channels out."
            )
        if self.kind.has_scores and channels > IGNORED_CLASS:
            raise ValueError(
                f"num_channels must be at most {IGNORED_CLASS} classes, as that id is invalid, got {self.num_channels}."
            )

    def validate_grid(self):
        """The image must be a whole number of tokens wide."""
        require_positive(self, "image_size", "downsample_ratio", "num_codes")
        if self.image_size % self.downsample_ratio:
            raise ValueError(
                f"image_size must be a multiple of downsample_ratio ({self.downsample_ratio}), got {self.image_size}."
            )


@strict
class AiTVQVAEConfig(MapTokenizer, AiTBaseConfig):
    """VQ-VAE tokenizer of one kind of map, such as depth or box-cropped masks (AiT, arXiv 2301.02229).

    Args:
        map_kind: a key of `MAP_KINDS`; None is "depth" where `ignore_zero` is set, else "mask". Classes take their
            names from `id2label`.
        image_size: side of the square input in pixels.
        num_channels: channels of the input; None is what the kind says, one per class for classes, else 1.
        value_scale: what "values" are divided by on the way in and multiplied with on the way out; their typical size.
        hidden_size: width of the FIRST convolution; doubles with every further halving of the map.
        downsample_ratio: pixels per token and axis, a power of two.
        num_resnet_blocks: residual blocks at the lowest resolution, in encoder and decoder each.
        num_codes: codebook size.
        code_dim: width of a code vector.
        symmetric_range: input in [0, 1] is mapped to [-1, 1] and the output back (masks).
        ignore_zero: what says "depth" where there is no `map_kind`.
        commitment_cost: weight of the commitment loss.
        ema_decay: decay of the codebook's moving averages.
        ema_epsilon: Laplace smoothing of the cluster sizes.
        tau: factor on code logits before the softmax of a soft decode (paper's inverse temperature).
    """

    model_type = "ait_vqvae"

    map_kind: str | None = None
    image_size: int = 480
    num_channels: int | None = None
    value_scale: float | int = 1.0
    hidden_size: int = 16
    downsample_ratio: int = 32
    num_resnet_blocks: int = 2
    num_codes: int = 128
    code_dim: int = 512
    symmetric_range: bool = False
    ignore_zero: bool = True
    commitment_cost: float | int = 0.25
    ema_decay: float | int = 0.99
    ema_epsilon: float = 1e-5
    tau: float | int = 1.0

    def __post_init__(self, **kwargs):
        check_common({**vars(self), **kwargs})  # before channels are taken from the classes
        self._settle_channels(kwargs)
        super().__post_init__(**kwargs)

    @property
    def kind(self) -> MapKind:
        """What the maps' values mean."""
        return MAP_KINDS[self.map_kind or ("depth" if self.ignore_zero else "mask")]

    def validate_value_scale(self):
        """Only real values have a scale."""
        check_finite(self, "value_scale", "commitment_cost", "ema_decay", "ema_epsilon", "tau")
        if not self.value_scale > 0 or (self.value_scale != 1 and self.kind.name != "values"):
            raise ValueError(
                f"value_scale must be positive, and 1 for maps of kind {self.kind.name!r}, got {self.value_scale}."
            )

    def validate_downsample_ratio(self):
        """Each convolution halves the map, so the ratio is a power of two, at least 2."""
        if self.downsample_ratio < 2 or self.downsample_ratio & (self.downsample_ratio - 1):
            raise ValueError(f"downsample_ratio must be a power of two >= 2, got {self.downsample_ratio}.")

    def validate_widths(self):
        """Nothing can be less than one channel wide; there may be no residual block."""
        require_positive(self, "hidden_size", "code_dim")
        require_positive(self, "num_resnet_blocks", least=0, most=MAX_LAYERS)

    @property
    def num_downsamples(self) -> int:
        """Number of stride-2 convolutions."""
        return int(math.log2(self.downsample_ratio))

    @property
    def final_width(self) -> int:
        """Channels at the lowest resolution."""
        return self.hidden_size * self.downsample_ratio // 2


@strict
class AiTBinTokenizerConfig(MapTokenizer, AiTBaseConfig):
    """The paper's baseline tokenizer, for every kind of map: shrink it bilinearly and bin it linearly.

    A token of classes is the majority class of its cell; one of normals a bin of x and y, with z from the length.

    Args:
        map_kind: a key of `MAP_KINDS`, except "mask".
        image_size: side of the square map in pixels.
        num_channels: channels of the map; None is what the kind says, one per class for classes, else 1.
        downsample_ratio: pixels per token and axis.
        num_codes: number of bins; None is 128 for depth and for values of one channel, 32 x 32 for normals, one per
            class. Values of C channels need a number to the power of C.
        min_value: lower end of the first bin; depth starts at 0 metres.
        max_value: upper end of the last bin, metres for depth.
        tau: factor on code logits before the softmax of a soft decode.
    """

    model_type = "ait_bin_tokenizer"

    map_kind: str = "depth"
    image_size: int = 480
    num_channels: int | None = None
    downsample_ratio: int = 32
    num_codes: int | None = None
    min_value: float | int = 0.0
    max_value: float | int = 10.0
    tau: float | int = 1.0

    def __post_init__(self, **kwargs):
        check_common({**vars(self), **kwargs})  # before channels are taken from the classes
        self._settle_channels(kwargs)
        several = self.num_channels != 1 and self.kind.channels is None and not self.kind.has_scores
        if self.num_codes is None and several:
            raise ValueError(
                f"num_codes must be given for values of {self.num_channels} channels, a number of bins per channel to "
                f"the power of {self.num_channels}."
            )
        if self.num_codes is None:
            self.num_codes = self.num_channels if self.kind.has_scores else self._default_side**self.num_axes
        super().__post_init__(**kwargs)

    @property
    def num_axes(self) -> int:
        """Channels that are binned: of normals x and y, of other real values all."""
        return 2 if self.kind.name == "normals" else self.num_channels  # type: ignore[return-value]

    @property
    def bins_per_axis(self) -> int:
        """Bins of each binned channel."""
        return round(self.num_codes ** (1 / self.num_axes))  # type: ignore[operator]

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower end of the first and upper end of the last bin of each binned channel."""
        return (-1.0, 1.0) if self.kind.name == "normals" else (self.min_value, self.max_value)

    @property
    def _default_side(self) -> int:
        return 32 if self.kind.name == "normals" else 128

    def validate_bins(self):
        """Bins need a range, classes one bin each, and several channels equally many."""
        if self.map_kind == "mask":
            raise ValueError("map_kind must not be 'mask': bins are for dense maps; masks have a VQ-VAE.")
        check_finite(self, "min_value", "max_value", "tau")
        if not self.min_value < self.max_value:
            raise ValueError(f"max_value must exceed min_value {self.min_value}, got {self.max_value}.")
        if self.kind.has_scores and self.num_codes != self.num_channels:
            raise ValueError(f"num_codes must be the number of classes {self.num_channels}, got {self.num_codes}.")
        if not self.kind.has_scores and self.bins_per_axis**self.num_axes != self.num_codes:
            raise ValueError(
                f"num_codes must be a number of bins per channel to the power of {self.num_axes}, got {self.num_codes}."
            )
