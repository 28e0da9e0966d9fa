import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, TimmBackboneConfig

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction
from transformers_ait.conversion.key_map import task_solver_names
from transformers_ait.conversion.original_config import ait_config_from_original
from transformers_ait.optimization import (
    constant,
    cosine_decay,
    exponential_decay,
    is_decayed,
    linear_decay,
    make_scheduler,
    parameter_groups,
    step_decay,
    with_warmup,
)

GOLDENS = Path(__file__).parent / "goldens"
NAMES = [path.stem for path in sorted(GOLDENS.glob("*.json")) if "optimizer" in json.loads(path.read_text())]


def golden_model(name):
    figures = json.loads((GOLDENS / f"{name}.json").read_text())
    config = ait_config_from_original(figures["config"])
    return AiTForDenseAndInstancePrediction(config), task_solver_names(config), figures["optimizer"]


def rates_and_decays(groups):
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}


def deviations(groups, names, expected, lr, weight_decay):
    ours = rates_and_decays(groups)
    wrong = set(ours) ^ {names[name] for name in expected}
    for original, figures in expected.items():
        rate, decay = ours.get(names[original], (None, None))
        right = rate == pytest.approx(lr * figures["lr_scale"], rel=1e-9)
        if not right or decay != (weight_decay if figures["decay"] else 0.0):
            wrong.add(names[original])
    return wrong


def test_there_are_goldens_of_every_kind():
    assert {"depth_ar_soft", "depth_parallel", "detection", "instance_soft", "joint"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_groups_match_the_original(name):
    model, names, expected = golden_model(name)
    # The goldens' layer decay can be read off the last block of the backbone.
    last = max(key for key in expected if re.match(r"backbone\.layers\.3\.blocks", key))
    layer_decay = expected[last]["lr_scale"]
    groups = parameter_groups(model, lr=3e-4, weight_decay=0.05, layer_decay=layer_decay)
    assert deviations(groups, names, expected, 3e-4, 0.05) == set()
    torch.optim.AdamW(groups)


@pytest.mark.slow
def test_comparison_sees_planted_errors():
    model, names, expected = golden_model("depth_parallel")
    wrong = deviations(parameter_groups(model, 1.0, 0.05, 0.8), names, expected, 1.0, 0.05)
    assert any("patch" in name or "embeddings.projection" in name for name in wrong)
    model.model.decoder.extra = nn.Linear(2, 2)
    assert deviations(parameter_groups(model, 1.0, 0.05, 0.9), names, expected, 1.0, 0.05) >= {
        "model.decoder.extra.weight"
    }


def test_wrapped_models_and_bare_backbones_have_the_same_scales():
    model, _, _ = golden_model("depth_ar_soft")
    whole = rates_and_decays(parameter_groups(model, 1.0, 0.1, 0.9))

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    wrapped = rates_and_decays(parameter_groups(Wrapper(model), 1.0, 0.1, 0.9))
    assert wrapped == {f"module.{name}": value for name, value in whole.items()}
    bare = rates_and_decays(parameter_groups(model.model.backbone, 1.0, 0.1, 0.9))
    prefix = "model.backbone."
    assert bare == {name.removeprefix(prefix): x for name, x in whole.items() if name.startswith(prefix)}


def test_every_trainable_parameter_is_in_one_group_and_frozen_ones_in_none():
    model, _, _ = golden_model("joint")
    groups = parameter_groups(model, 1.0, 0.1, 0.9)
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert not any("tokenizer" in name for name in names)
    assert all(len(group["params"]) == len(group["param_names"]) for group in groups)


def with_backbone(backbone_config, stride):
    return AiTForDenseAndInstancePrediction(
        AiTConfig(
            backbone_config=backbone_config,
            feature_stride=stride,
            image_size=64,
            depth_tokenizer_config={"model_type": "ait_vqvae", "image_size": 64, "hidden_size": 4, "code_dim": 8},
            decoder_config={"hidden_size": 16, "num_attention_heads": 2, "num_decoder_layers": 1},
        )
    )


def test_timm_backbone_without_groups_has_one_rate():
    config = TimmBackboneConfig(backbone="resnet18", use_pretrained_backbone=False, out_indices=[-1])
    model = with_backbone(config, 32)
    assert {group["lr"] for group in parameter_groups(model, 1.0, 0.1, 0.5)} == {1.0}


def test_timm_backbone_with_groups_decays_towards_the_input():
    import timm

    class Model(nn.Module):
        config = PreTrainedConfig()

        def __init__(self):
            super().__init__()
            self.backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=3)
            self.head = nn.Linear(4, 4)

    rates = {name: rate for name, (rate, _) in rates_and_decays(parameter_groups(Model(), 1.0, 0.1, 0.5)).items()}
    blocks = [rates[f"backbone.blocks.{i}.mlp.fc1.weight"] for i in range(3)]
    assert blocks[0] * 4 == blocks[1] * 2 == blocks[2] < 1
    assert rates["backbone.patch_embed.proj.weight"] == blocks[0] / 2
    assert rates["head.weight"] == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((0, 0.1, 0.9), "lr"), ((1e-3, -1, 0.9), "weight_decay"), ((1e-3, 0.1, 0), "layer_decay"), ((1e-3, 0, 1.1), "1")],
)
def test_arguments_out_of_range(arguments, named):
    with pytest.raises(ValueError, match=named):
        parameter_groups(nn.Linear(2, 2), *arguments)


def test_vectors_are_not_decayed():
    assert is_decayed("x.weight", nn.Parameter(torch.zeros(2, 2)))
    assert not is_decayed("x.weight", nn.Parameter(torch.zeros(2)))


def test_schedules_at_hand_computed_steps():
    depth = with_warmup(step_decay([18180]), 500, 0.1)
    assert [depth(0), depth(250), depth(500), depth(18179)] == pytest.approx([0.1, 0.55, 1, 1])
    assert depth(18180) == pytest.approx(0.1)
    linear = with_warmup(linear_decay(1000, 0.01), 100, 0.1)
    assert [linear(0), linear(500), linear(1000), linear(2000)] == pytest.approx([0.1, 0.505, 0.01, 0.01])
    assert linear(50) == pytest.approx((1 - 0.99 * 0.05) * 0.55)
    cosine = with_warmup(cosine_decay(1000, 1 / 300), 500, 1e-3)
    assert [cosine(0), cosine(1000)] == pytest.approx([1e-3, 1 / 300])
    assert cosine(500) == pytest.approx((1 + 1 / 300) / 2)
    drops = exponential_decay(500, 0.98)
    assert [drops(499), drops(500), drops(1000)] == pytest.approx([1, 0.98, 0.9604])
    assert with_warmup(constant(), 0, 0.5)(0) == 1


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_schedules_agree_with_pytorch(final):
    def rates(make):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = make(optimizer)
        result = []
        for _ in range(21):
            result.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return result

    theirs = torch.optim.lr_scheduler
    assert rates(lambda o: make_scheduler(o, cosine_decay(20, final))) == pytest.approx(
        rates(lambda o: theirs.CosineAnnealingLR(o, 20, eta_min=final)), abs=1e-9
    )
    assert rates(lambda o: make_scheduler(o, linear_decay(20, final))) == pytest.approx(
        rates(lambda o: theirs.LinearLR(o, 1.0, final, 20)), abs=1e-9
    )
    assert rates(lambda o: make_scheduler(o, step_decay([5, 9], 0.3))) == pytest.approx(
        rates(lambda o: theirs.MultiStepLR(o, [5, 9], 0.3))
    )


def test_scheduler_keeps_the_ratio_of_the_groups():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.5)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = make_scheduler(optimizer, linear_decay(10, 0.0))
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.6, 0.3])
