"""Losses and every gradient of the fast formulation against the plain one's, element by element."""

import pytest
import torch

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction
from transformers_ait.conversion.key_map import invert, task_solver_names
from transformers_ait.conversion.original_config import original_from_ait_config
from transformers_ait.conversion.plain.backbone import plain_backbone
from transformers_ait.conversion.plain.decoder import plain_encoder_memory
from transformers_ait.conversion.plain.prediction import plain_depth_losses

FROZEN = "depth_head.vqvae."
SIZE = 96


@pytest.fixture
def build(enliven):
    """Function that builds a small depth model of stride 32, as the original's, without dropout."""

    def build(parallel=False):
        backbone = {
            "model_type": "ait_swinv2",
            "embed_dim": 8,
            "num_heads": [1, 2, 4, 8],
            "depths": [2, 2, 2, 2],
            "window_sizes": [6, 6, 6, 3],
            "pretrained_window_sizes": [4, 4, 4, 2],
            "drop_path_rate": 0.0,
        }
        tokenizer = {"model_type": "ait_vqvae", "image_size": SIZE, "hidden_size": 2, "code_dim": 8}
        config = AiTConfig(
            backbone_config=backbone,
            depth_tokenizer_config=tokenizer,
            decoder_config={"dropout": 0.0, "drop_path_rate": 0.0, "num_encoder_layers": 2, "num_decoder_layers": 2},
            image_size=SIZE,
            parallel=parallel,
            soft_feedback=not parallel,
        )
        return enliven(AiTForDenseAndInstancePrediction(config), scale=0.05)

    return build


@pytest.fixture
def images():
    return torch.rand(2, 3, SIZE, SIZE)


@pytest.fixture
def depths():
    return torch.rand(2, SIZE, SIZE) * 8 + 1


def plain_gradients(model, images, depths):
    """Loss and gradients by the plain formulas, under the model's own names."""
    names = task_solver_names(model.config)
    ours = invert(names)
    weights = {
        ours[name]: tensor.clone().requires_grad_(tensor.is_floating_point() and not ours[name].startswith(FROZEN))
        for name, tensor in model.state_dict().items()
        if name in ours
    }
    config = original_from_ait_config(model.config)
    memory = plain_encoder_memory(weights, config, plain_backbone(weights, config, images))
    loss = plain_depth_losses(weights, config, memory, depths)["depth_loss"]
    loss.backward()
    return loss.item(), {name: weights[ours[name]].grad for name in model.state_dict() if name in ours}


def deviation(model, images, depths):
    """Largest difference of loss and gradients, relative to the largest entry of each tensor."""
    loss, expected = plain_gradients(model, images, depths)
    model.zero_grad()
    output = model(images, depth_labels=depths)
    output.loss.backward()
    worst = abs(output.loss.item() - loss) / loss
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and expected.get(name) is not None:
            scale = expected[name].abs().max().clamp(min=1e-3)
            worst = max(worst, ((parameter.grad - expected[name]).abs().max() / scale).item())
            compared += 1
    assert compared > 100
    return worst


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    "how", ["as it is", "after inference", "checkpointed", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_gradients_are_those_of_the_plain_formulation(build, images, depths, parallel, how):
    model = build(parallel)
    if how == "after inference":  # what inference keeps must not be learned from
        model.generate(images)
    elif how == "checkpointed":
        model.train().gradient_checkpointing_enable()
    elif how == "compiled":
        torch._dynamo.reset()
        for part in (model.model.backbone, model.model.encoder, model.model.decoder):
            part.compile(fullgraph=True, backend="eager")
    assert deviation(model, images, depths) < 1e-4


def test_a_wrong_gradient_would_be_noticed(build, images, depths):
    model = build()
    model.model.backbone.stages[0].blocks[0].attention.logit_scale.register_hook(lambda gradient: gradient * 1.01)
    assert deviation(model, images, depths) > 1e-3
