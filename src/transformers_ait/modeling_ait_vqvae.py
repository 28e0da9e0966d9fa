"""VQ-VAE tokenizer: maps of any kind to codes, codes or code probabilities back to maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_ait import AiTVQVAEConfig
from .distributed_ait import gather_over_processes
from .layer_states_ait import LayerStates
from .pretrained_ait import AiTBaseModel
from .vector_quantizer import VectorQuantizer


@dataclass
class AiTVQVAEOutput(ModelOutput):
    """Output of `AiTVQVAEModel`.

    Args:
        loss: scalar, reconstruction plus weighted commitment loss.
        reconstruction_loss: scalar.
        reconstruction: (B, C, H, W) in the input's range, not clipped.
        codes: (B, h, w) int64.
        hidden_states: of the encoder, where asked for: one map (B, width, h, w) per stride-2 convolution, the finest
            first, then one per residual block.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    reconstruction: Tensor | None = None
    codes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class AiTVQVAEResidualBlock(nn.Module):
    """`x + conv1x1(relu(conv3x3(relu(conv3x3(x)))))`, without norms."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        return x + self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


class AiTVQVAEEncoder(nn.Module):
    """Stride-2 convolutions, residual blocks, projection to the code width."""

    def __init__(self, config: AiTVQVAEConfig):
        super().__init__()
        widths = [config.num_channels, *(config.hidden_size * 2**i for i in range(config.num_downsamples))]
        self.downsample = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.blocks = nn.Sequential(*(AiTVQVAEResidualBlock(widths[-1]) for _ in range(config.num_resnet_blocks)))
        self.projection = nn.Conv2d(widths[-1], config.code_dim, 1)

    def forward(self, x: Tensor, states: LayerStates | None = None) -> Tensor:
        """(B, C, H, W) to (B, D, H / ratio, W / ratio); `states` gathers what it asks for."""
        states = states or LayerStates()
        for convolution in self.downsample:
            x = F.relu(convolution(x))
            states.note(x)
        for block in self.blocks:
            x = block(x)
            states.note(x)
        return self.projection(x)


class AiTVQVAEDecoder(nn.Module):
    """Projection from the code width, residual blocks, transposed convolutions."""

    def __init__(self, config: AiTVQVAEConfig):
        super().__init__()
        final = config.final_width
        widths = [final, *(final // 2**i for i in range(config.num_downsamples))]
        self.projection = nn.Conv2d(config.code_dim, final, 1)
        self.blocks = nn.Sequential(*(AiTVQVAEResidualBlock(final) for _ in range(config.num_resnet_blocks)))
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.output = nn.Conv2d(config.hidden_size, config.num_channels, 1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, C, h * ratio, w * ratio)."""
        x = self.blocks(F.relu(self.projection(x)))
        for convolution in self.upsample:
            x = F.relu(convolution(x))
        return self.output(x)


class AiTVQVAEModel(AiTBaseModel):
    """Tokenizer and detokenizer of one kind of map (AiT, arXiv 2301.02229).

    It is convolutional: it takes any `attn_implementation` that the task-solver around it has, and has no attentions.

    Maps go in and come out in tokenizer form (see `map_kinds_ait`): depth in metres, 0 = invalid; masks in [0, 1]; unit
    vectors; one-hot classes, which come out as scores. Reconstructions are not clipped.
    """

    config: AiTVQVAEConfig
    base_model_prefix = "vqvae"
    has_attentions = False
    # The loss below is a mean already; without this Trainer would scale it by the accumulation steps.
    accepts_loss_kwargs = False
    # Moving averages over thousands of steps do not survive half precision.
    _keep_in_fp32_modules_strict = ["quantizer"]

    def __init__(self, config: AiTVQVAEConfig):
        super().__init__(config)
        self.encoder = AiTVQVAEEncoder(config)
        self.quantizer = VectorQuantizer(config.num_codes, config.code_dim, config.ema_decay, config.ema_epsilon)
        self.decoder = AiTVQVAEDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # PyTorch's default for convolutions, which is what the original was trained from.
            fan_in = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight[:, 0].numel()
            bound = fan_in**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, VectorQuantizer):
            init.normal_(module.codebook)
            init.zeros_(module.ema_cluster_size)
            init.normal_(module.ema_sums)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Codes (B, h, w) of maps (B, C, H, W); H and W must be multiples of the downsample ratio."""
        return self.quantizer.assign(self._encoder_vectors(pixel_values))

    def decode(self, codes: Tensor) -> Tensor:
        """Maps (B, C, H, W) of codes (B, h, w): the hard decode."""
        return self._to_output_range(self._decode_vectors(self.quantizer.lookup(codes)))

    def decode_soft(self, logits: Tensor) -> Tensor:
        """Maps (B, C, H, W) of code logits (B, K, h, w): the soft decode (soft token, arXiv 2301.02229).

        The softmax runs over `tau * logits`; gradients flow through it and the decoder.
        """
        probabilities = (logits.permute(0, 2, 3, 1) * self.config.tau).softmax(dim=-1)
        return self._to_output_range(self._decode_vectors(self.quantizer.soft_lookup(probabilities)))

    @torch.no_grad()
    def restart_dead_codes(self, pixel_values: Sequence[Tensor], min_cluster_size: float = 0.2) -> int:
        """Move unused codes onto encoder outputs of one step's data; returns how many. For training loops.

        Args:
            pixel_values: this process's micro-batches (B, C, H, W), equally large in all processes.
            min_cluster_size: codes with a smaller moving-average cluster are moved.
        """
        vectors = [gather_over_processes(self._encoder_vectors(maps).flatten(0, 2)) for maps in pixel_values]
        return self.quantizer.restart_dead_codes(torch.cat(vectors), min_cluster_size)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> AiTVQVAEOutput | tuple:
        """Reconstruct maps; in training mode also update the codebook.

        Args:
            pixel_values: (B, C, H, W), possibly with patches set to 0 as augmentation.
            labels: (B, C, H, W), the unaltered maps; `pixel_values` when not given.
            return_dict: False returns a tuple.
            output_hidden_states: also return the encoder's maps.
            kwargs: what transformers may hand to any model, `output_attentions` among them, which changes nothing here.

        Raises:
            TypeError: another argument.
            ValueError: the shapes do not fit the downsample ratio or each other.
        """
        self.check_kwargs(kwargs)
        labels = pixel_values if labels is None else labels
        if labels.shape != pixel_values.shape:
            raise ValueError(
                f"labels must have the shape of pixel_values {tuple(pixel_values.shape)}, got {tuple(labels.shape)}."
            )
        states = LayerStates.asked(self.config, output_hidden_states, output_attentions=False)
        vectors = self._encoder_vectors(pixel_values, states)
        straight_through, quantized, codes = self.quantizer(vectors)
        decoded = self._decode_vectors(straight_through)
        reconstruction_loss = self._reconstruction_loss(decoded, labels)
        loss = reconstruction_loss + self.config.commitment_cost * F.mse_loss(vectors, quantized)
        output = AiTVQVAEOutput(
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            reconstruction=self._to_output_range(decoded),
            codes=codes,
            **states.tuples(hidden_states="hidden_states"),
        )
        return self.as_asked(output, return_dict)

    def _run_counted(self, images: Tensor, what: Any) -> None:
        self._decode_vectors(self._encoder_vectors(images))

    def get_input_embeddings(self) -> nn.Module:
        """The convolution that the map enters."""
        return self.encoder.downsample[0]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace that convolution."""
        self.encoder.downsample[0] = value

    def _encoder_vectors(self, pixel_values: Tensor, states: LayerStates | None = None) -> Tensor:
        ratio, channels = self.config.downsample_ratio, self.config.num_channels
        if (
            pixel_values.ndim != 4
            or pixel_values.shape[1] != channels
            or any(s % ratio for s in pixel_values.shape[2:])
        ):
            raise ValueError(
                f"pixel_values must be (batch, {channels}, height, width) with sides that are multiples of {ratio}, "
                f"got {tuple(pixel_values.shape)}; pad or crop the maps."
            )
        x = self.config.kind.fill(pixel_values).to(self.dtype)
        return self.encoder(self._to_input_range(x), states).permute(0, 2, 3, 1)

    def _decode_vectors(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors.permute(0, 3, 1, 2).to(self.dtype))

    def _to_input_range(self, maps: Tensor) -> Tensor:
        """What the network sees."""
        if self.config.symmetric_range:
            return 2 * maps - 1
        # Dividing dozens of channels by 1 takes a tenth of a training step.
        return maps if self.config.value_scale == 1 else maps / self.config.value_scale

    def _to_output_range(self, decoded: Tensor) -> Tensor:
        if self.config.symmetric_range:
            return (decoded + 1) / 2
        return decoded if self.config.value_scale == 1 else decoded * self.config.value_scale

    def _reconstruction_loss(self, decoded: Tensor, labels: Tensor) -> Tensor:
        target = labels.float()
        valid = self.config.kind.valid(target)
        return self.config.kind.reconstruction_loss(decoded.float(), self._to_input_range(target), valid)
