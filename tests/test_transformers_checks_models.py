"""What transformers' ModelTesterMixin checks of any model's passes and training: see `docs/transformers-checks.md`.

The tests are named after the checks.
"""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput
from transformers_checks_cases import (
    ATTENTIVE,
    CHECKPOINTING,
    NAMES,
    STORED,
    TRAINABLE,
    each,
    equal,
    flat,
    make_case,
    run,
    train_step,
)

TOLERANCE = 1e-5


@pytest.fixture
def case(request, tiny_config, tiny_backbone_config, tiny_vqvae_config, bin_tokenizer_config, images, depths):
    """The case that the test is parametrised with."""
    bins = copy.deepcopy(bin_tokenizer_config)
    return make_case(request.param, tiny_config, tiny_backbone_config, tiny_vqvae_config, bins, images, depths)


# --- what a forward pass takes and gives ---


@each(*NAMES)
def test_determinism(case):
    model = case.model()
    assert equal(run(model, case.inputs), run(model, case.inputs))


@each(*NAMES)
def test_batching_equivalence(case):
    model = case.model()
    asked = {} if case.kind.__name__ == "AiTBinTokenizer" else {"output_hidden_states": True}
    batch = run(model, case.inputs, **asked)
    single = run(model, {name: x[:1] for name, x in case.inputs.items()}, **asked)
    for whole, part in zip(flat(batch), flat(single), strict=True):
        if whole.ndim and whole.is_floating_point():
            assert (whole[:1] - part).abs().max() < TOLERANCE


@each(*NAMES)
def test_forward_signature_and_model_main_input_name(case):
    names = [*inspect.signature(case.kind.forward).parameters]
    assert names[1] == case.kind.main_input_name == "pixel_values"


@each(*NAMES)
def test_model_outputs_equivalence(case):
    model = case.model()
    bare = case.kind.__name__ == "AiTBinTokenizer"
    for labels in ({}, case.labels):
        if labels and case.kind.__name__ == "AiTModel":
            continue  # a base model takes none
        for asked in [{}] if bare else [{}, {"output_hidden_states": True, "output_attentions": True}]:
            as_dict = run(model, case.inputs | labels, **asked)
            as_tuple = run(model, case.inputs | labels, return_dict=False, **asked)
            assert isinstance(as_dict, ModelOutput) and type(as_tuple) is tuple
            assert equal(as_dict.to_tuple(), as_tuple)
    model.config.return_dict = False
    assert type(run(model, case.inputs)) is tuple


STATES = {
    "solver": ("encoder_hidden_states", "decoder_hidden_states"),
    "model": ("hidden_states",),
    "plain": ("encoder_hidden_states",),
}
WEIGHTS = {
    "solver": ("encoder_attentions", "decoder_attentions", "cross_attentions"),
    "model": ("attentions",),
    "plain": ("encoder_attentions",),
}


@each("solver", "parallel", "detector", "model", "plain", "backbone", "vqvae")
def test_hidden_states_output(case):
    model = case.model()
    kind = case.kind.__name__
    solver = kind == "AiTForDenseAndInstancePrediction"
    fields = STATES["solver" if solver else "plain" if kind == "AiTPlainDenseModel" else "model"]
    plain = run(model, case.inputs)
    assert all(getattr(plain, name) is None for name in fields)
    output = run(model, case.inputs, output_hidden_states=True)
    layers = {"AiTVQVAEModel": 3 + 1}.get(kind, 3)  # two layers, or a stem and two stages
    assert [len(getattr(output, name)) for name in fields] == [layers] * len(fields)
    assert equal(plain.to_tuple(), [getattr(output, name) for name in plain])
    model.config.output_hidden_states = True
    assert equal(output, run(model, case.inputs))


@each(*ATTENTIVE, "plain")
def test_attention_outputs(case):
    model = case.model()
    kind = case.kind.__name__
    solver = kind == "AiTForDenseAndInstancePrediction"
    fields = WEIGHTS["solver" if solver else "plain" if kind == "AiTPlainDenseModel" else "model"]
    plain, output = run(model, case.inputs), run(model, case.inputs, output_attentions=True)
    blocks = 4 if kind in ("AiTSwinV2Backbone", "AiTPlainDenseModel") else 2
    for name in fields:
        weights = getattr(output, name)
        assert getattr(plain, name) is None and len(weights) == blocks
        assert all((x.sum(-1) - 1).abs().max() < TOLERANCE and x.min() >= 0 for x in weights)
    assert equal(plain.to_tuple(), [getattr(output, name) for name in plain], 1e-3)  # the softmax is written out
    # As an attribute it needs written-out attention, which transformers itself checks.
    with pytest.raises(ValueError, match="eager"):
        model.config.output_attentions = True
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    if kind == "AiTPlainDenseModel":
        assert equal(getattr(output, fields[0]), getattr(run(model, case.inputs), fields[0]), 1e-3)
    else:
        assert equal(output, run(model, case.inputs), 1e-3)


@each("solver", "parallel", "detector")
def test_states_of_decoding_are_those_of_its_steps(case):
    """The last hidden states give the very logits that the steps gave, soft feedback or not."""
    model = case.model()
    output = run(model, case.inputs, output_hidden_states=True, output_attentions=True)
    hidden, decoder, tokens = output.decoder_hidden_states[-1], model.model.decoder, model.config.vocabulary
    if output.code_logits is not None:
        rows = tokens.codes(model._resolve_tasks(None, None)[0]).rows
        found = decoder.logits(hidden[:, : output.code_logits.shape[1]], rows)
        assert (found - output.code_logits).abs().max() < 1e-4
    else:
        coordinates = decoder.logits(hidden[:, 0], tokens.coordinates.rows).argmax(-1)
        model.config.top_p = 0
        greedy = run(model, case.inputs)
        assert torch.equal(tokens.coordinates.to_ids(coordinates), greedy.sequences[:, 0])
    length, memory = hidden.shape[1], model.config.grid_size**2
    assert output.cross_attentions[0].shape[2:] == (length, memory)
    assert output.decoder_attentions[0].shape[2:] == (length, length)
    assert not output.decoder_attentions[0].triu(1).any()


@each("parallel")
def test_states_of_tasks_in_one_pass_are_those_of_each_alone(case):
    model, asked = case.model(), {"output_hidden_states": True, "output_attentions": True}
    both = run(model, case.inputs, **asked)
    alone = [run(model, case.inputs, task=task, **asked) for task in model.config.dense]
    for layer in range(2):
        hidden = torch.cat([x.decoder_hidden_states[layer] for x in alone], dim=1)
        assert (both.decoder_hidden_states[layer] - hidden).abs().max() < TOLERANCE
        cross = torch.cat([x.cross_attentions[layer] for x in alone], dim=2)
        assert (both.cross_attentions[layer] - cross).abs().max() < TOLERANCE
        length = alone[0].decoder_attentions[layer].shape[-1]
        own = both.decoder_attentions[layer]
        assert (own[..., :length, :length] - alone[0].decoder_attentions[layer]).abs().max() < TOLERANCE
        assert not own[..., length:, :length].any() and not own[..., :length, length:].any()


def test_views_stand_in_the_second_axis(tiny_model, images):
    views = torch.stack((images, images.flip(3)), dim=1)
    output = run(tiny_model(), {"pixel_values": views}, output_hidden_states=True, output_attentions=True)
    assert output.encoder_hidden_states[0].shape == output.decoder_hidden_states[0].shape == (3, 2, 16, 16)
    assert output.cross_attentions[0].shape == (3, 2, 2, 16, 16)


@each("solver", "backbone", "model")
def test_retain_grad_hidden_states_attentions(case):
    model = case.model()
    labels = case.labels if case.kind.__name__ == "AiTForDenseAndInstancePrediction" else {}
    output = model(**case.inputs, **labels, output_hidden_states=True, output_attentions=True)
    names = [name for name in output if name.endswith(("hidden_states", "attentions"))]
    states = [getattr(output, name)[0] for name in names]
    for state in states:
        state.retain_grad()
    whole = [x for x in flat(output[next(iter(output))]) if x.requires_grad][-1] if not labels else output.loss
    whole.sum().backward()
    assert states and all(state.grad is not None and state.grad.abs().sum() > 0 for state in states)


@each(*NAMES)
def test_arguments_of_any_model_are_taken_and_misspelt_ones_refused(case):
    model = case.model()
    assert equal(run(model, case.inputs), run(model, case.inputs, num_items_in_batch=torch.tensor(3)))
    if case.kind.__name__ != "AiTSwinV2Backbone":  # which is called like any AutoBackbone
        with pytest.raises(TypeError, match="depth_label"):
            model(**case.inputs, depth_label=None)


@each("solver", "plain", "vqvae", "backbone", "model")
def test_model_get_set_embeddings(case):
    model = case.model()
    entrance = model.get_input_embeddings()
    seen = []
    entrance.register_forward_hook(lambda module, inputs, output: seen.append(output))
    run(model, case.inputs)
    assert len(seen) == 1 and isinstance(seen[0], Tensor) and model.get_output_embeddings() is None
    if hasattr(model, "model"):
        model = model.model
    twin = copy.deepcopy(entrance)
    model.set_input_embeddings(twin)
    assert model.get_input_embeddings() is twin


@each("solver", "model", "plain")
def test_resize_tokens_embeddings(case):
    with pytest.raises(NotImplementedError, match="id2label"):
        case.model().resize_token_embeddings(100)


@each(*NAMES)
def test_model_is_small(case):
    assert sum(p.numel() for p in case.model().parameters()) < 1_000_000


# --- attention implementations ---


@each(*ATTENTIVE)
def test_eager_matches_sdpa_inference(case):
    model = case.model()
    assert model.config._attn_implementation == "sdpa"
    fused = run(model, case.inputs)
    model.set_attn_implementation("eager")
    assert equal(fused, run(model, case.inputs), 1e-3)


@each(*STORED)
@pytest.mark.parametrize("name", ["flash_attention_2", "kernels-community/flash-attn2"])
def test_flash_attention_is_refused_with_a_reason(case, name, tmp_path):
    model = case.model()
    assert not model._supports_flash_attn and not model._supports_flex_attn and model._supports_sdpa
    with pytest.raises(ValueError, match="position bias"):
        model.set_attn_implementation(name)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="position bias"):
        case.kind.from_pretrained(tmp_path, attn_implementation=name)


@each("solver", "backbone")
def test_flex_attention_is_refused(case):
    with pytest.raises(ValueError, match="flex_attention"):
        case.model().set_attn_implementation("flex_attention")


@each(*ATTENTIVE)
def test_can_set_attention_dynamically(case):
    model = case.model()
    for wanted in ("eager", "sdpa"):
        model.set_attn_implementation(wanted)
        found = {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
        assert found == {wanted}
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")
    assert model.config._attn_implementation == "sdpa"


@each("solver")
def test_can_set_attention_dynamically_composite_model(case):
    model = case.model()
    model.set_attn_implementation({"backbone_config": "eager", "": "sdpa"})
    assert model.config._attn_implementation == "sdpa"
    assert model.model.backbone.config._attn_implementation == "eager"


@each("solver", "backbone")
def test_config_attn_implementation_setter(case):
    config = copy.deepcopy(case.config)
    config._attn_implementation = "eager"
    parts = [config, *(getattr(config, name) for name in config.sub_configs)]
    assert {part._attn_implementation for part in parts if part is not None} == {"eager"}


@each("solver", "plain")
def test_internal_model_config_and_subconfig_are_same(case):
    model = case.model()
    holder = getattr(model, "model", model)
    assert holder.backbone.config is model.config.backbone_config


# --- training ---


@each(*TRAINABLE)
def test_training(case):
    model = case.model()
    found = train_step(model, case)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() <= free and all(x.isfinite().all() for x in found.values())
    # A depth model's decoder has rows and layers for every id; none of its modules is left out.
    assert {name.rsplit(".", 1)[0] for name in free} == {name.rsplit(".", 1)[0] for name in found}


@each(*CHECKPOINTING)
@pytest.mark.parametrize("settings", [None, {"use_reentrant": True}])
def test_training_gradient_checkpointing(case, settings):
    model = case.model()
    expected = train_step(model, case)
    calls = []
    layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    next(layer.children()).register_forward_pre_hook(lambda *args: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    if settings == {"use_reentrant": True}:
        model.enable_input_require_grads()
    found = train_step(model, case)
    assert len(calls) == 2 and found.keys() == expected.keys()
    assert max((found[name] - expected[name]).abs().max() for name in found) < TOLERANCE


@each(*CHECKPOINTING, "model", "backbone")
def test_gradient_checkpointing_enable_disable(case):
    model = case.model()
    assert case.kind.supports_gradient_checkpointing and not model.is_gradient_checkpointing
    for switch, state in ((model.gradient_checkpointing_enable, True), (model.gradient_checkpointing_disable, False)):
        switch()
        layers = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        assert model.is_gradient_checkpointing is state
        assert layers and all(m.gradient_checkpointing is state for m in layers)


@each("solver", "model", "plain", "backbone", "vqvae")
def test_enable_input_require_grads(case):
    model = case.model()
    model.requires_grad_(False)
    model.enable_input_require_grads()
    model.train()
    output = model(**case.inputs, **(case.labels if case.kind.__name__ != "AiTModel" else {}))
    assert any(x.requires_grad for x in flat(output))
    model.disable_input_require_grads()


@each("solver")
def test_states_with_gradient_checkpointing(case):
    model = case.model().train()
    expected = model(**case.inputs, **case.labels, output_hidden_states=True, output_attentions=True)
    model.gradient_checkpointing_enable()
    output = model(**case.inputs, **case.labels, output_hidden_states=True, output_attentions=True)
    assert len(output.cross_attentions) == 2 and equal(output, expected, TOLERANCE)
    output.loss.backward()
    assert len(output.cross_attentions) == 2


# --- operations, devices, graphs ---


@each("parallel", "vqvae")
def test_floating_point_ops(case):
    model = case.model()
    batch = case.inputs | case.labels
    one = model.floating_point_ops(batch)
    twice = {name: torch.cat((x, x)) if isinstance(x, Tensor) else x for name, x in batch.items()}
    assert one > 0 and model.floating_point_ops(twice) == 2 * one


@each("solver", "plain")
def test_device_map(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    for device_map in ("cpu", "auto"):
        loaded = case.kind.from_pretrained(tmp_path, device_map=device_map)
        if {p.device.type for p in loaded.parameters()} == {"cpu"}:
            assert equal(run(model, case.inputs), run(loaded, case.inputs))
    names = {type(m).__name__ for m in model.modules()}
    assert set(case.kind._no_split_modules) & names


@each("solver", "plain")
def test_disk_offload_of_the_backbone(case, tmp_path):
    """What has its weights read by others' code (the decoder's tables, the tokenizers) stays where it is."""
    model = case.model()
    model.save_pretrained(tmp_path / "model")
    places = {name: "cpu" for name, _ in model.named_children()}
    prefix = "model." if "model" in places else ""
    if prefix:
        del places["model"]
        places |= {"model.encoder": "cpu", "model.decoder": "cpu"}
    places[f"{prefix}backbone"] = "disk"
    loaded = case.kind.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload")
    assert {p.device.type for p in loaded.get_submodule(f"{prefix}backbone").parameters()} == {"meta"}
    assert equal(run(model, case.inputs), run(loaded, case.inputs), TOLERANCE)


@pytest.mark.slow
@each("backbone", "model")
def test_torch_export(case):
    model = case.model()
    with torch.no_grad():
        expected = model(**case.inputs).to_tuple()
        program = torch.export.export(model, (), {**case.inputs, "return_dict": False})
        assert equal(program.module()(**case.inputs, return_dict=False), expected, TOLERANCE)


@pytest.mark.slow
@each("backbone", "model")
def test_torch_compile_with_states(case):
    model = case.model()
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected = run(model, case.inputs, **asked)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert equal(run(compiled, case.inputs, **asked), expected, TOLERANCE)


@each(*NAMES)
def test_modules_are_registered(case):
    """No list or dictionary hides a module from `parameters()`."""
    for module in case.model().modules():
        for value in vars(module).values():
            entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            if value not in (module._modules, module._parameters, module._buffers):
                assert not any(isinstance(entry, nn.Module) for entry in entries)
