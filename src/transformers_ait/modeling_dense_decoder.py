"""UniPixTask's dense decoder: images to codes (encoded mapping f), codes to the maps of a frozen task head (g)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_unipixtask import DenseDecoderConfig
from .distributed_ait import gather_over_processes
from .feature_restoration import Compression, DecodedMapping, FeaturePyramid, init_convolution
from .layer_states_ait import LayerStates
from .modeling_ait_base import build_backbone, entrance, pad_images
from .pretrained_ait import AiTBaseModel
from .teacher_loading_ait import build_task_head
from .teachers_ait import TaskModel
from .vector_quantizer import VectorQuantizer

SMALLEST_VARIANCE = 1e-6  # of a teacher's feature map, where errors are relative to it


@dataclass
class DenseDecoderOutput(ModelOutput):
    """Output of `DenseDecoderModel`.

    Args:
        loss: scalar, the weighted sum of the three that follow; with a teacher's features.
        feature_loss: scalar, mean squared error of the restored features.
        codebook_loss: scalar, of the code vectors; 0 where moving averages train them.
        commitment_loss: scalar, of the compressed features.
        maps: (B, C, S, S) in tokenizer form; without a teacher's features.
        codes: (B, h, w) int64.
        features: restored feature maps, each (B, channels, height, width) as in `config.feature_shapes`.
        hidden_states: of the two transformers, where asked for, each (B, positions, width).
        attentions: their attention weights, where asked for, each (B, heads, positions, positions).
    """

    loss: Tensor | None = None
    feature_loss: Tensor | None = None
    codebook_loss: Tensor | None = None
    commitment_loss: Tensor | None = None
    maps: Tensor | None = None
    codes: Tensor | None = None
    features: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class EncodedMapping(nn.Module):
    """Backbone, feature pyramid and compression: all of f before the nearest code (section 3.2)."""

    def __init__(self, config: DenseDecoderConfig):
        super().__init__()
        self.size = config.latent_size
        self.backbone = build_backbone(config.backbone_config)
        self.pyramid = FeaturePyramid(self.backbone.channels, config.hidden_size)
        self.compression = Compression(config)

    def forward(self, images: Tensor) -> Tensor:
        """z' (B, h, w, d) of images (B, 3, S, S)."""
        z = self.pyramid(self.backbone(images).feature_maps, self.size)
        return self.compression(z).permute(0, 2, 3, 1)


class DenseDecoderModel(AiTBaseModel):
    """Dense decoder of one task (UniPixTask, sections 3.2 and 3.3): a tokenizer that looks at the image.

    It has the interface of the other tokenizers, `encode`, `decode` and `decode_soft`, but `encode` takes images in
    place of maps. The task head is part of the model, frozen and always in evaluation mode. It is trained without
    labels, by the features of the task model that the head comes from:
    `model(images, teacher_features=teacher.features(images))`.
    """

    config: DenseDecoderConfig
    base_model_prefix = "dense_decoder"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AiTEncoderBlock", "AiTSwinV2Block"]
    # The losses below are means already; without this Trainer would scale them by the accumulation steps.
    accepts_loss_kwargs = False
    # Nearest codes want full precision, and so do moving averages over thousands of steps.
    _keep_in_fp32_modules_strict = ["quantizer"]

    def __init__(self, config: DenseDecoderConfig):
        super().__init__(config)
        if config.teacher_config is None:
            raise ValueError(
                "teacher_config must describe the task model that the task head comes from, got None; take it from "
                "describe_teacher(load_task_model(folder), image_size)."
            )
        self.encoder = EncodedMapping(config) if config.has_encoder else None
        learned = config.codebook_update == "gradient"
        sizes = config.num_codes, config.code_dim, float(config.ema_decay), config.ema_epsilon
        self.quantizer = VectorQuantizer(*sizes, learned=learned)
        self.decoder = DecodedMapping(config)
        self.head: TaskModel = build_task_head(copy.deepcopy(config.teacher_config), config.teacher_task)
        self.post_init()

    def train(self, mode: bool = True) -> "DenseDecoderModel":
        """Set training mode; the task head stays frozen and in evaluation mode."""
        super().train(mode)
        # Frozen again here, because from_pretrained makes new parameters, which require gradients.
        self.head.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init_convolution(module)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, VectorQuantizer):
            bound = module.num_codes**-1.0  # as van den Oord et al. (2017) start
            init.uniform_(module.codebook, -bound, bound)
            init.zeros_(module.ema_cluster_size)
            if not module.learned:
                init.copy_(module.ema_sums, module.codebook)

    def load_head(self, teacher: TaskModel) -> None:
        """Take the task head's weights from a trained task model.

        Args:
            teacher: with or without its backbone; it is not changed.
        """
        weights = teacher.model.state_dict()
        self.head.model.load_state_dict({name: weights[name] for name in self.head.model.state_dict()})

    def without_encoder(self) -> "DenseDecoderModel":
        """A model that only decodes, with the weights of this one: what a trained sequence learner needs."""
        config = copy.deepcopy(self.config)
        config.has_encoder = False
        twin = type(self)(config)
        weights = {name: x for name, x in self.state_dict().items() if not name.startswith("encoder.")}
        twin.load_state_dict(weights)
        # transformers decorates `to` in a way that type checkers do not see through.
        return twin.to(self.device).train(self.training)  # type: ignore[arg-type]

    def normalize(self, images: Tensor) -> Tensor:
        """Images ([B,] 3, H, W) in [0, 1] as `encode` takes them, with the teacher's mean and standard deviation."""
        if self.config.image_mean is None:
            return images
        mean, std = (images.new_tensor(x)[:, None, None] for x in (self.config.image_mean, self.config.image_std))
        return (images - mean) / std

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Codes (B, h, w) of images (B, 3, H, W) as the teacher takes them, zero-padded to the model's size.

        Raises:
            ValueError: the images are larger, or the model has no encoded mapping.
        """
        return self.quantizer.assign(self._encoder_vectors(pixel_values))

    def decode(self, codes: Tensor) -> Tensor:
        """Maps (B, C, S, S) in tokenizer form of codes (B, h, w): g(e)."""
        return self._decode_vectors(self.quantizer.lookup(codes))

    def decode_soft(self, logits: Tensor) -> Tensor:
        """Maps (B, C, S, S) of code logits (B, K, h, w), of expected code vectors (soft token, arXiv 2301.02229)."""
        probabilities = (logits.permute(0, 2, 3, 1) * self.config.tau).softmax(dim=-1)
        return self._decode_vectors(self.quantizer.soft_lookup(probabilities))

    def restore(self, codes: Tensor) -> tuple[Tensor, ...]:
        """The task head's feature maps of codes (B, h, w)."""
        return self.decoder(self.quantizer.lookup(codes).to(self._decoder_dtype))

    @torch.no_grad()
    def restart_dead_codes(self, pixel_values: Sequence[Tensor], min_cluster_size: float = 0.2) -> int:
        """Move unused codes onto encoder outputs of one step's images; returns how many. For training loops.

        Args:
            pixel_values: this process's micro-batches (B, 3, H, W), equally large in all processes.
            min_cluster_size: codes with a smaller moving-average cluster are moved.
        """
        vectors = [gather_over_processes(self._encoder_vectors(images).flatten(0, 2)) for images in pixel_values]
        return self.quantizer.restart_dead_codes(torch.cat(vectors), min_cluster_size)

    def forward(
        self,
        pixel_values: Tensor,
        teacher_features: Sequence[Tensor] | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> DenseDecoderOutput | tuple:
        """Training losses (equations 2 and 3) with a teacher's features, the predicted maps without.

        The norms of equation 2 are means over positions and code width; each feature map of equation 3 counts the same.

        Args:
            pixel_values: (B, 3, H, W), zero-padded at bottom and right to the model's size.
            teacher_features: what the teacher's backbone makes of the padded images, as in `config.feature_shapes`.
            return_dict: False returns a tuple.
            output_hidden_states: also return the transformers' hidden states.
            output_attentions: also return their attention weights; they then write the softmax out.
            kwargs: what transformers may hand to any model; it changes nothing here.

        Raises:
            TypeError: another argument, labels among them: a dense decoder is trained without.
            ValueError: images that are too large, features of other shapes, or a model without encoded mapping.
        """
        self._refuse_labels(kwargs)
        self.check_kwargs(kwargs)
        states = LayerStates.asked(self.config, output_hidden_states, output_attentions)
        vectors = self._encoder_vectors(pixel_values)
        straight_through, quantized, codes = self.quantizer(vectors)
        restored = self.decoder(straight_through.to(self._decoder_dtype), states)
        fields: dict[str, Any] = states.tuples(hidden_states="hidden_states", attentions="attentions")
        output = DenseDecoderOutput(codes=codes, features=restored, **fields)
        if teacher_features is None:
            output.maps = self.head(restored, self.config.image_size)
            return self.as_asked(output, return_dict)
        output.feature_loss = self._feature_loss(restored, teacher_features, len(pixel_values))
        output.commitment_loss = F.mse_loss(vectors, quantized.detach())
        output.codebook_loss = vectors.new_zeros(())
        if self.quantizer.learned:
            output.codebook_loss = F.mse_loss(quantized, vectors.detach())
        output.loss = (
            output.feature_loss
            + self.config.codebook_weight * output.codebook_loss
            + self.config.commitment_weight * output.commitment_loss
        )
        return self.as_asked(output, return_dict)

    def _run_counted(self, images: Tensor, what: Any) -> None:
        self.decoder(self._encoder_vectors(images))

    def get_input_embeddings(self) -> nn.Module:
        """The module that the image enters: the backbone's patch embedding or first convolution.

        Raises:
            NotImplementedError: no image enters a model without encoded mapping; transformers then passes on.
        """
        if self.encoder is None:
            raise NotImplementedError("This dense decoder has no encoded mapping (has_encoder is False).")
        return entrance(self.encoder.backbone)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's patch embedding, where it has one."""
        self._encoder.backbone.set_input_embeddings(value)

    @property
    def _encoder(self) -> EncodedMapping:
        if self.encoder is None:
            raise ValueError(
                "This dense decoder has no encoded mapping (has_encoder is False): it only decodes. Load the one that "
                "it was made of."
            )
        return self.encoder

    @property
    def _decoder_dtype(self) -> torch.dtype:
        return self.decoder.output.mix.weight.dtype

    def _encoder_vectors(self, pixel_values: Tensor) -> Tensor:
        encoder = self._encoder
        images = pad_images(pixel_values.to(self._decoder_dtype), self.config.image_size)
        return encoder(images)

    def _decode_vectors(self, vectors: Tensor) -> Tensor:
        return self.head(self.decoder(vectors.to(self._decoder_dtype)), self.config.image_size)

    def _feature_loss(self, restored: Sequence[Tensor], teacher_features: Sequence[Tensor], batch: int) -> Tensor:
        found = [tuple(x.shape) for x in teacher_features]
        expected = [(batch, *shape) for shape in self.config.feature_shapes]
        if found != expected:
            raise ValueError(
                f"teacher_features must have the shapes {expected} of this task head, got {found}; take them from the "
                "teacher that the dense decoder was made for, of the same images at its image_size."
            )
        losses = []
        for mine, true in zip(restored, teacher_features, strict=True):
            error = F.mse_loss(mine.float(), true.detach().float())
            scale = true.detach().float().var() if self.config.relative_features else None
            losses.append(error if scale is None else error / scale.clamp(min=SMALLEST_VARIANCE))
        return torch.stack(losses).mean()

    def _refuse_labels(self, kwargs: dict[str, Any]) -> None:
        labels = sorted(name for name in kwargs if "label" in name)
        if labels:
            raise TypeError(
                f"DenseDecoderModel is trained without labels, got {labels}; leave them out, and give the teacher's "
                "features of the images as teacher_features."
            )


__all__ = ["DenseDecoderModel", "DenseDecoderOutput"]
