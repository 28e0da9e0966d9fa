"""Original configuration dictionaries to the configurations of this package, and back.

Everything that changes a result is carried. An entry that this package cannot represent, or does not know, is an error
that names it. The original writes VQ-VAEs in two dialects: in a VQ-VAE's own configuration `hidden_dim` is the FIRST
width and `num_tokens` the number of codes; inside a task-solver (`vae_cfg`) `hidden_dim` is the FINAL width.
"""

import math
from collections.abc import Mapping
from typing import Any

from ..configuration_ait import TASK_IDS, AiTConfig, AiTSwinV2Config, AiTVQVAEConfig
from ..configuration_token_decoder import AiTTokenDecoderConfig

HEADS = {"det": "detection", "insseg": "instance", "depth": "depth"}
STRIDE = 32
# Entries that only say from which file a training starts.
WHERE_TRAINING_STARTS = ("init_cfg", "pretrained")
NUM_TASK_SLOTS = 4

_REQUIRED = object()


class _Section:
    """One dictionary of an original configuration, of which every entry must be read."""

    def __init__(self, name: str, values: Any):
        if not isinstance(values, Mapping):
            raise TypeError(f"{name} of the original configuration must be a dictionary, got {values!r}.")
        self.name = name
        self.unread = dict(values)

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """Read an entry; without a default it must be there."""
        if key not in self.unread and default is _REQUIRED:
            raise ValueError(f"{self.name} of the original configuration lacks {key!r}.")
        return self.unread.pop(key, default)

    def expect(self, **fixed: Any) -> None:
        """Read entries that, if present, may only have the one value this package implements."""
        for key, value in fixed.items():
            found = self.unread.pop(key, value)
            if found != value:
                raise ValueError(f"{self.name}.{key} is {found!r}; only {value!r} can be represented.")

    def skip(self, *keys: str) -> None:
        """Read entries that change no result."""
        for key in keys:
            self.unread.pop(key, None)

    def expect_empty(self, *keys: str) -> None:
        """Read entries that change no result as long as they are empty."""
        for key in keys:
            if found := self.unread.pop(key, None):
                raise ValueError(f"{self.name}.{key} is {found!r}; only an empty one can be represented.")

    def close(self) -> None:
        """Reject what nobody read."""
        if self.unread:
            raise ValueError(
                f"{self.name} of the original configuration has entries of unknown meaning: {self.unread}. Remove "
                "those that change no result."
            )


def backbone_config_from_original(original: Mapping[str, Any]) -> AiTSwinV2Config:
    """`AiTSwinV2Config` of an original `backbone` section; raises ValueError for what it cannot represent."""
    section = _Section("backbone", original)
    depths = section.take("depths")
    section.expect(type="SwinV2TransformerRPE2FC", ape=False, patch_norm=True, patch_size=4, mlp_ratio=4, in_chans=3)
    section.expect(qkv_bias=True, qk_scale=None, drop_rate=0, attn_drop_rate=0, frozen_stages=-1)
    last = len(depths) - 1
    if (outputs := list(section.take("out_indices", [last]))) != [last]:
        raise ValueError(f"backbone.out_indices is {outputs}; only the last stage, {[last]}, can be represented.")
    section.skip("pretrain_img_size", "use_checkpoint", "with_cp", *WHERE_TRAINING_STARTS)
    config = AiTSwinV2Config(
        embed_dim=section.take("embed_dim"),
        depths=depths,
        num_heads=section.take("num_heads"),
        window_sizes=section.take("window_size"),
        pretrained_window_sizes=section.take("pretrain_window_size"),
        shift_windows=section.take("use_shift"),
        drop_path_rate=section.take("drop_path_rate"),
    )
    section.close()
    return config


def _tokenizer_config(name: str, original: Mapping[str, Any], ignore_zero: bool) -> AiTVQVAEConfig:
    """Read the task-solver's dialect (`vae_cfg`)."""
    section = _Section(f"{name}.vae_cfg", original)
    section.expect(type="VQVAE", freeze=True)
    section.skip(*WHERE_TRAINING_STARTS)
    side, tokens, final_width = section.take("mask_size"), section.take("token_length"), section.take("hidden_dim")
    grid = math.isqrt(tokens)
    if grid**2 != tokens or side % grid or 2 * final_width % (side // grid):
        raise ValueError(
            f"{name}.vae_cfg has token_length {tokens}, mask_size {side} and hidden_dim {final_width}: token_length "
            "must be a square whose root divides mask_size, and twice hidden_dim a multiple of the quotient."
        )
    config = AiTVQVAEConfig(
        image_size=side,
        hidden_size=2 * final_width // (side // grid),
        downsample_ratio=side // grid,
        num_resnet_blocks=section.take("num_resnet_blocks"),
        num_codes=section.take("num_embeddings"),
        code_dim=section.take("embedding_dim"),
        symmetric_range=section.take("use_norm", True),
        ignore_zero=ignore_zero,
        tau=section.take("tau", 1.0),
    )
    section.close()
    return config


def vqvae_config_from_original(original: Mapping[str, Any]) -> AiTVQVAEConfig:
    """`AiTVQVAEConfig` of a VQ-VAE's own training configuration; raises ValueError for what it cannot represent."""
    section = _Section("the VQ-VAE section", original)
    section.expect(train_objective="regression", residul_type="v1")
    section.skip("max_value", *WHERE_TRAINING_STARTS)
    loss = section.take("loss_type")
    if loss not in ("mse", "mse_ignore_zero"):
        raise ValueError(f"loss_type is {loss!r}; only 'mse' and 'mse_ignore_zero' can be represented.")
    config = AiTVQVAEConfig(
        image_size=section.take("image_size"),
        num_channels=section.take("channels"),
        hidden_size=section.take("hidden_dim"),
        downsample_ratio=section.take("downsample_ratio"),
        num_resnet_blocks=section.take("num_resnet_blocks"),
        num_codes=section.take("num_tokens"),
        code_dim=section.take("codebook_dim"),
        symmetric_range=section.take("use_norm"),
        ignore_zero=loss == "mse_ignore_zero",
    )
    section.close()
    return config


def _decoder_config(section: _Section) -> AiTTokenDecoderConfig:
    section.expect(type="ARTransformer", pos_enc="sine", pred_eos=False)
    section.skip(*WHERE_TRAINING_STARTS)
    return AiTTokenDecoderConfig(
        hidden_size=section.take("d_model"),
        num_attention_heads=section.take("nhead"),
        intermediate_size=section.take("dim_feedforward"),
        num_encoder_layers=section.take("num_encoder_layers"),
        num_decoder_layers=section.take("num_decoder_layers"),
        dropout=section.take("drop_out"),
        drop_path_rate=section.take("drop_path"),
        num_tasks=NUM_TASK_SLOTS,
        max_positions=section.take("dec_length"),
    )


def _vocabulary_fields(section: _Section) -> dict[str, int]:
    """Sizes of the ranges; the spare range is what `num_vocal` leaves over."""
    bins, classes = section.take("num_bins"), section.take("num_classes")
    mask_codes, depth_codes = section.take("num_embeddings"), section.take("num_embeddings_depth")
    total, used = section.take("num_vocal"), bins + 1 + classes + 2 + mask_codes + depth_codes
    if total < used:
        raise ValueError(f"transformer.num_vocal is {total}, but coordinates, classes, specials and codes take {used}.")
    return {
        "num_bins": bins,
        "num_labels": classes,
        "num_mask_codes": mask_codes,
        "num_depth_codes": depth_codes,
        "num_spare_tokens": total - used,
    }


def _object_head(name: str, section: _Section, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """Fields of a detection or instance head."""
    section.expect(
        num_bins=vocabulary["num_bins"],
        num_classes=vocabulary["num_labels"],
        coord_norm="abs",
        sync_cls_avg_factor=True,
        seq_aug=True,
    )
    fields = {"coordinate_scale": section.take("norm_val"), "num_objects": section.take("num_query")}
    if name == "det":
        return {**fields, "detection_loss_weight": section.take("loss_weight")}
    return {
        **fields,
        "instance_loss_weight": section.take("loss_weight"),
        "mask_code_weight": section.take("mask_weight"),
        "instance_aux_weight": section.take("decoder_loss_weight", AiTConfig.instance_aux_weight),
        "max_aux_objects": section.take("max_obj_decoderloss", AiTConfig.max_aux_objects),
        "mask_tokenizer_config": _tokenizer_config("insseg", section.take("vae_cfg"), ignore_zero=False),
    }


def _depth_head(section: _Section, vocabulary: Mapping[str, int], soft_decode: bool) -> dict[str, Any]:
    """Fields of the depth head, whose offset and soft decode must agree with the transformer's."""
    offset = vocabulary["num_bins"] + 1 + vocabulary["num_labels"] + 2 + vocabulary["num_mask_codes"]
    section.expect(depth_token_offset=offset, soft_vae=soft_decode)
    return {
        "depth_loss_weight": section.take("loss_weight"),
        "depth_aux_weight": section.take("decoder_loss_weight", AiTConfig.depth_aux_weight),
        "depth_tokenizer_config": _tokenizer_config("depth", section.take("vae_cfg"), ignore_zero=True),
    }


def _head_fields(heads: Mapping[str, Any], vocabulary: Mapping[str, int], soft_decode: bool) -> dict[str, Any]:
    """Fields of all task heads; two heads must not want different values of one field."""
    fields: dict[str, Any] = {}
    for name, values in heads.items():
        if name not in HEADS:
            raise ValueError(f"task_heads of the original configuration has {name!r}; known are {sorted(HEADS)}.")
        section = _Section(f"task_heads.{name}", values)
        section.expect(type={"det": "DetHead", "insseg": "InsSegHead", "depth": "DepthHead"}[name])
        section.expect(task_id=TASK_IDS[HEADS[name]])
        section.skip(*WHERE_TRAINING_STARTS)
        section.expect_empty("train_cfg", "test_cfg")
        is_depth = name == "depth"
        read = _depth_head(section, vocabulary, soft_decode) if is_depth else _object_head(name, section, vocabulary)
        section.close()
        clash = {key for key in read if key in fields and fields[key] != read[key]}
        if clash:
            raise ValueError(f"task_heads.{name} and another head differ in {sorted(clash)}; one model has one value.")
        fields |= read
    return fields


def _image_size(section: _Section, padto: int) -> int:
    rows, columns = section.take("n_rows"), section.take("n_cols")
    if rows != columns or padto not in (0, rows * STRIDE):
        raise ValueError(
            f"transformer.n_rows, n_cols and padto must describe one square image, got {rows}, {columns} and {padto}; "
            f"padto must be 0 or {STRIDE} * n_rows."
        )
    return rows * STRIDE


def ait_config_from_original(original: Mapping[str, Any]) -> AiTConfig:
    """Configuration of a task-solver from the original dictionary (`backbone`, `transformer`, `task_heads`, `padto`).

    Args:
        original: as under `model` in an original configuration file.

    Returns:
        The configuration; its default task is the first head.

    Raises:
        ValueError: an entry is missing, unknown, or has a value that this package cannot represent.
        TypeError: a section is no dictionary.
    """
    model, transformer = _Section("model", original), _Section("transformer", original.get("transformer"))
    model.expect(type="AiT")
    model.skip("transformer", *WHERE_TRAINING_STARTS)
    model.expect_empty("train_cfg", "test_cfg")
    backbone = backbone_config_from_original(model.take("backbone"))
    transformer.expect(in_chans=backbone.num_features)
    vocabulary = _vocabulary_fields(transformer)
    soft_decode = transformer.take("soft_vae")
    heads = model.take("task_heads")
    config = AiTConfig(
        backbone_config=backbone,
        decoder_config=_decoder_config(transformer),
        image_size=_image_size(transformer, model.take("padto", 0)),
        tasks=[HEADS.get(name, name) for name in heads],
        soft_feedback=transformer.take("soft_transformer"),
        soft_decode=soft_decode,
        parallel=transformer.take("parallel", False),
        top_p=transformer.take("top_p"),
        **_model_fields(vocabulary),
        **_head_fields(heads, vocabulary, soft_decode),
    )
    transformer.close()
    model.close()
    return config


def _model_fields(vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """Vocabulary sizes; 80 classes are COCO's, which is the configuration's default, others have no names."""
    named = vocabulary["num_labels"] == 80
    return {key: value for key, value in vocabulary.items() if key != "num_labels" or not named}


# --- the way back ---------------------------------------------------------------------------------------------------


def _require(where: str, config: Any, **fixed: Any) -> None:
    for key, value in fixed.items():
        found = getattr(config, key, None)
        if found != value:
            raise ValueError(f"{where}.{key} is {found!r}; an original configuration can only express {value!r}.")


def original_from_backbone_config(config: AiTSwinV2Config) -> dict[str, Any]:
    """Original `backbone` section; raises ValueError for a backbone that the original cannot express."""
    _require("backbone_config", config, model_type="ait_swinv2", patch_size=4, mlp_ratio=4)
    _require("backbone_config", config, layer_norm_eps=1e-6, num_channels=3)
    return {
        "type": "SwinV2TransformerRPE2FC",
        "pretrain_img_size": 192,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": list(config.window_sizes),
        "use_shift": list(config.shift_windows),
        "pretrain_window_size": list(config.pretrained_window_sizes),
        "ape": False,
        "drop_path_rate": config.drop_path_rate,
        "patch_norm": True,
        "use_checkpoint": False,
        "out_indices": [len(config.depths) - 1],
        "init_cfg": None,
    }


def _original_tokenizer(name: str, config: Any, ignore_zero: bool) -> dict[str, Any]:
    _require(name, config, model_type="ait_vqvae", num_channels=1, ignore_zero=ignore_zero)
    return {
        "type": "VQVAE",
        "use_norm": config.symmetric_range,
        "token_length": config.num_tokens,
        "mask_size": config.image_size,
        "embedding_dim": config.code_dim,
        "hidden_dim": config.final_width,
        "num_resnet_blocks": config.num_resnet_blocks,
        "num_embeddings": config.num_codes,
        "freeze": True,
        "tau": config.tau,
        "pretrained": None,
    }


def original_from_vqvae_config(config: AiTVQVAEConfig) -> dict[str, Any]:
    """A VQ-VAE's own original training configuration."""
    return {
        "image_size": config.image_size,
        "num_resnet_blocks": config.num_resnet_blocks,
        "downsample_ratio": config.downsample_ratio,
        "num_tokens": config.num_codes,
        "codebook_dim": config.code_dim,
        "hidden_dim": config.hidden_size,
        "use_norm": config.symmetric_range,
        "channels": config.num_channels,
        "train_objective": "regression",
        "max_value": 10.0 if config.ignore_zero else 1.0,
        "residul_type": "v1",
        "loss_type": "mse_ignore_zero" if config.ignore_zero else "mse",
    }


def _original_transformer(config: AiTConfig) -> dict[str, Any]:
    decoder = config.decoder_config
    _require("decoder_config", decoder, num_tasks=NUM_TASK_SLOTS, layer_norm_eps=1e-5)
    return {
        "type": "ARTransformer",
        "in_chans": config.backbone_config.num_features,
        "d_model": decoder.hidden_size,
        "drop_path": decoder.drop_path_rate,
        "drop_out": decoder.dropout,
        "nhead": decoder.num_attention_heads,
        "dim_feedforward": decoder.intermediate_size,
        "num_encoder_layers": decoder.num_encoder_layers,
        "num_decoder_layers": decoder.num_decoder_layers,
        "num_vocal": config.vocabulary.size,
        "num_bins": config.num_bins,
        "num_classes": config.num_labels,
        "num_embeddings": config.num_mask_codes,
        "num_embeddings_depth": config.num_depth_codes,
        "dec_length": decoder.max_positions,
        "n_rows": config.grid_size,
        "n_cols": config.grid_size,
        "pos_enc": "sine",
        "pred_eos": False,
        "soft_vae": config.soft_decode,
        "soft_transformer": config.soft_feedback,
        "top_p": config.top_p,
        "parallel": config.parallel,
    }


def _original_head(config: AiTConfig, name: str) -> dict[str, Any]:
    if name == "depth":
        return {
            "type": "DepthHead",
            "task_id": TASK_IDS["depth"],
            "loss_weight": config.depth_loss_weight,
            "depth_token_offset": config.vocabulary.depth_codes.start,
            "vae_cfg": _original_tokenizer("depth_tokenizer_config", config.depth_tokenizer_config, ignore_zero=True),
            "soft_vae": config.soft_decode,
            "decoder_loss_weight": config.depth_aux_weight,
        }
    head: dict[str, Any] = {
        "type": "DetHead" if name == "det" else "InsSegHead",
        "task_id": TASK_IDS[HEADS[name]],
        "loss_weight": config.detection_loss_weight if name == "det" else config.instance_loss_weight,
        "num_classes": config.num_labels,
        "num_bins": config.num_bins,
        "coord_norm": "abs",
        "norm_val": config.coordinate_scale,
        "sync_cls_avg_factor": True,
        "seq_aug": True,
        "num_query": config.num_objects,
    }
    if name == "insseg":
        head["vae_cfg"] = _original_tokenizer("mask_tokenizer_config", config.mask_tokenizer_config, ignore_zero=False)
        head["mask_weight"] = config.mask_code_weight
        head["decoder_loss_weight"] = config.instance_aux_weight
        head["max_obj_decoderloss"] = config.max_aux_objects
    return head


def original_from_ait_config(config: AiTConfig) -> dict[str, Any]:
    """The original dictionary of a task-solver.

    `ait_config_from_original` of the result is `config` again, but for class names.

    Raises:
        ValueError: the configuration has something that the original cannot express (another backbone, say).
    """
    _require("config", config, feature_stride=STRIDE)
    head_names = {task: name for name, task in HEADS.items()}
    pads = "depth" in config.tasks and config.depth_tokenizer_config.image_size < config.image_size
    return {
        "type": "AiT",
        "padto": config.image_size if pads else 0,
        "backbone": original_from_backbone_config(config.backbone_config),
        "transformer": _original_transformer(config),
        "task_heads": {head_names[task]: _original_head(config, head_names[task]) for task in config.tasks},
    }
