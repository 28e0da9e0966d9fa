"""The models that transformers' common checks are made on, tiny, with inputs and labels."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from transformers_ait import (
    AiTBinTokenizer,
    AiTForDenseAndInstancePrediction,
    AiTModel,
    AiTPlainDenseConfig,
    AiTPlainDenseModel,
    AiTSwinV2Backbone,
    AiTVQVAEModel,
    DenseDecoderConfig,
    DenseDecoderModel,
    describe_teacher,
)
from transformers_ait.outputs_ait import DenseMaps
from transformers_ait.teachers_ait import PlainTaskModel

NAMES = ("solver", "parallel", "detector", "learner", "model", "plain", "backbone", "vqvae", "bins", "dense_decoder")
# The others are stored as "parallel" is.
STORED = ("parallel", "learner", "plain", "backbone", "vqvae", "bins", "dense_decoder")
ATTENTIVE = ("solver", "parallel", "detector", "learner", "model", "backbone")
TRAINABLE = ("solver", "parallel", "detector", "learner", "plain", "vqvae", "dense_decoder")
CHECKPOINTING = ("solver", "parallel", "detector", "learner", "plain", "dense_decoder")
CLASSES = {0: "wall", 1: "floor", 2: "chair"}


@dataclass
class Case:
    """A kind of model: its class, a configuration, inputs of a prediction, and labels that make it a training."""

    kind: type
    config: Any
    inputs: dict[str, Tensor]
    labels: dict[str, Any]

    def model(self, seed: int = 0) -> Any:
        """A model with seeded weights, in evaluation mode."""
        torch.manual_seed(seed)
        return self.kind(self.config).eval()


def make_case(name, config, backbone_config, vqvae_config, bin_config, images, depths) -> Case:
    """A fresh case; what follows the name are conftest's fixtures."""
    images, depths = images[:2], depths[:2]
    pixels, depth_labels = {"pixel_values": images}, {"depth_labels": depths}
    if name in ("vqvae", "bins"):
        kind = AiTVQVAEModel if name == "vqvae" else AiTBinTokenizer
        return Case(kind, vqvae_config() if name == "vqvae" else bin_config, {"pixel_values": depths[:, None]}, {})
    if name == "backbone":
        return Case(AiTSwinV2Backbone, backbone_config(out_features=["stem", "stage1", "stage2"]), pixels, {})
    if name == "plain":
        tasks = [
            {"name": "depth", "kind": "depth"},
            {"name": "semantic", "kind": "classes", "class_names": [*CLASSES.values()]},
        ]
        backbone = backbone_config(out_features=["stage1", "stage2"])
        found = AiTPlainDenseConfig(backbone_config=backbone, dense_tasks=tasks, image_size=32, hidden_size=16)
        semantic = torch.randint(0, 3, (2, 32, 32))
        return Case(AiTPlainDenseModel, found, pixels, {"dense_labels": {"depth": depths, "semantic": semantic}})
    if name == "dense_decoder":
        found, teacher = dense_decoder_config(backbone_config)
        return Case(DenseDecoderModel, found, pixels, {"teacher_features": teacher.features(images)})
    if name == "learner":
        tokenizer = dense_decoder_config(backbone_config, has_encoder=False)[0]
        tasks = [{"name": "semantic", "kind": "classes", "tokenizer_config": tokenizer}]
        backbone = backbone_config(out_features=["stage1", "stage2"])
        found = config(dense_tasks=tasks, tasks=None, depth_tokenizer_config=None, feature_pyramid=True)
        found.backbone_config = backbone
        codes = torch.randint(0, tokenizer.num_codes, (2, 4, 4))
        return Case(AiTForDenseAndInstancePrediction, found, pixels, {"dense_codes": {"semantic": codes}})
    if name == "detector":
        boxes = torch.tensor([[2.0, 3.0, 12.0, 20.0], [5.0, 5.0, 30.0, 28.0]])
        labels = [{"boxes": boxes, "class_labels": torch.tensor([0, 2]), "seed": seed} for seed in range(2)]
        found = config(tasks=["detection"], id2label=CLASSES)
        return Case(AiTForDenseAndInstancePrediction, found, pixels, {"instance_labels": labels})
    if name == "parallel":
        tokenizer = {"image_size": 32, "downsample_ratio": 16, "hidden_size": 4, "num_resnet_blocks": 1, "code_dim": 6}
        tasks = [
            {"name": "normals", "kind": "normals", "tokenizer_config": tokenizer | {"num_codes": 9}},
            {"name": "depth", "tokenizer_config": vqvae_config(tau=0.8)},
        ]
        found = config(dense_tasks=tasks, parallel=True, depth_tokenizer_config=None, id2label=CLASSES)
        normals = torch.nn.functional.normalize(torch.randn(2, 3, 32, 32), dim=1)
        labels = {"dense_labels": {"depth": depths, "normals": normals}}
        return Case(AiTForDenseAndInstancePrediction, found, pixels, labels)
    return Case(AiTModel if name == "model" else AiTForDenseAndInstancePrediction, config(), pixels, depth_labels)


def dense_decoder_config(backbone_config, **overrides):
    """A dense decoder's configuration, and the teacher, plain decoders of classes, that it describes."""
    task = {"name": "semantic", "kind": "classes", "class_names": [*CLASSES.values()]}
    backbone = backbone_config(out_features=["stage1", "stage2"])
    plain = AiTPlainDenseConfig(backbone_config=backbone, dense_tasks=[task], image_size=32, hidden_size=16)
    teacher = PlainTaskModel(AiTPlainDenseModel(plain).eval())
    sizes = {"downsample_ratio": 8, "num_codes": 7, "code_dim": 4, "hidden_size": 16, "num_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 32, "num_groups": 4, "dropout": 0.0}
    fields = describe_teacher(teacher, 32) | sizes | {"backbone_config": backbone}
    return DenseDecoderConfig(**fields, **overrides), teacher


def each(*names):
    """Parametrise the fixture `case`."""
    return pytest.mark.parametrize("case", names, indirect=True)


def flat(output):
    """Every tensor of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, DenseMaps | dict):
        output = output.values()
    return [] if output is None else [tensor for entry in output for tensor in flat(entry)]


def equal(first, second, tolerance=0.0):
    """Whether two outputs hold tensors of the same shapes, and nowhere further apart than `tolerance`."""
    first, second = flat(first), flat(second)
    assert first and len(first) == len(second)
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and (a.float() - b.float()).abs().max() <= tolerance for a, b in pairs)


@torch.no_grad()
def run(model, inputs, **asked):
    """Output of a seeded forward pass."""
    torch.manual_seed(0)
    return model(**inputs, **asked)


def gradients(model):
    """Gradients by name, of what has one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train_step(model, case):
    """Gradients of a seeded training step."""
    torch.manual_seed(0)
    model.zero_grad()
    model.train()
    model(**case.inputs, **case.labels).loss.backward()
    return gradients(model)
