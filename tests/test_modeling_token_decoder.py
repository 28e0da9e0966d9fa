"""Encoder and token decoder: the sine table, and what must not matter (caches, batches, attention kernels)."""

import math

import pytest
import torch
import torch._dynamo.testing

from transformers_ait.modeling_token_decoder import sine_table

TOLERANCE = 1e-5


@pytest.fixture
def decoder(tiny_model):
    return tiny_model().model.decoder


@pytest.fixture
def memory():
    return torch.randn(3, 16, 16)


@pytest.fixture
def inputs(decoder):
    return decoder.inputs(torch.randn(3, 9, 16), task_id=2)


def test_sine_table_against_its_formula():
    size, width = 3, 8
    table = sine_table(size, width)
    assert table.shape == (size * size, width)
    for row in range(size):
        for column in range(size):
            expected = []
            for position in (row, column):
                for pair in range(width // 4):
                    angle = position / 10000 ** (2 * pair / (width / 2))
                    expected += [math.sin(angle), math.cos(angle)]
            assert table[row * size + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_decoder_inputs_are_task_embedding_then_tokens_each_with_its_position(decoder):
    tokens = torch.randn(3, 4, 16)
    inputs = decoder.inputs(tokens, task_id=1)
    positions = decoder.position_embeddings[1]
    assert inputs.shape == (3, 5, 16)
    assert torch.equal(inputs[1, 0], decoder.task_embeddings[1, 0] + positions[0])
    assert torch.equal(inputs[1, 3], tokens[1, 2] + positions[3])


@torch.no_grad()
def test_cached_steps_equal_one_pass(decoder, inputs, memory):
    whole = decoder(inputs, memory)
    cache = decoder.start_cache(memory, max_length=10)
    steps = torch.stack([decoder.step(inputs[:, i], cache, i) for i in range(10)], dim=1)
    assert (steps - whole).abs().max() < TOLERANCE
    # Planted error: a step that does not see its past.
    cache = decoder.start_cache(memory, max_length=10)
    blind = torch.stack([decoder.step(inputs[:, i], decoder.start_cache(memory, 10), 0) for i in range(10)], dim=1)
    assert (blind - whole)[:, 1:].abs().max() > 1e-2


@torch.no_grad()
def test_position_sees_its_past_alone(decoder, inputs, memory):
    whole = decoder(inputs, memory)
    changed = inputs.clone()
    changed[:, 6] += torch.randn(16)  # not a constant, which the LayerNorms would remove
    moved = (decoder(changed, memory) - whole).abs().amax(dim=(0, 2))
    assert (moved[:6] == 0).all() and (moved[6:] > 1e-4).all()


@torch.no_grad()
def test_batched_equals_single(decoder, inputs, memory):
    single = torch.cat([decoder(inputs[i : i + 1], memory[i : i + 1]) for i in range(3)])
    assert (decoder(inputs, memory) - single).abs().max() < TOLERANCE


@torch.no_grad()
def test_eager_equals_fused_attention(tiny_model, inputs, memory):
    model = tiny_model()
    maps = torch.randn(2, 16, 4, 4)
    fused = model.model.decoder(inputs, memory), model.model.encoder(maps)
    model.set_attn_implementation("eager")
    assert model.model.decoder.blocks[0].self_attention.config._attn_implementation == "eager"
    assert (model.model.decoder(inputs, memory) - fused[0]).abs().max() < TOLERANCE
    assert (model.model.encoder(maps) - fused[1]).abs().max() < TOLERANCE


@torch.no_grad()
def test_rows_of_logits_are_a_slice_of_all_logits(decoder):
    hidden = torch.randn(2, 5, 16)
    everything = decoder.logits(hidden)
    assert everything.shape == (2, 5, 33)
    expected = hidden @ decoder.token_embeddings.T + decoder.output_bias
    assert torch.allclose(everything, expected, atol=1e-5)
    assert torch.allclose(decoder.logits(hidden, slice(7, 19)), everything[..., 7:19], atol=1e-5)


@torch.no_grad()
def test_memory_and_queries_share_one_layer_norm(decoder, inputs, memory):
    before = decoder(inputs, memory)
    scaled = decoder(inputs, 3 * memory + 0.5)  # a LayerNorm of the memory undoes this
    assert (scaled - before).abs().max() < 1e-3
    decoder.blocks[0].norm2.weight.mul_(1.5)
    keys, _ = decoder.blocks[0].memory_keys_values(memory)
    decoder.blocks[0].norm2.weight.div_(1.5)
    assert (decoder.blocks[0].memory_keys_values(memory)[0] - keys).abs().max() > 1e-2


def test_gradient_checkpointing_changes_nothing(tiny_model, images, depths):
    model = tiny_model().train()
    results = []
    for _ in range(2):
        model.zero_grad()
        model(images, depth_labels=depths).loss.backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_enable()
        assert all(block.gradient_checkpointing for block in model.model.decoder.blocks)
    assert results[0].keys() == results[1].keys()
    assert all(torch.allclose(results[0][n], results[1][n], rtol=1e-4, atol=1e-5) for n in results[0])


def test_dropout_and_drop_path_act_in_training_alone(tiny_model, tiny_decoder_config, images):
    model = tiny_model(decoder_config=tiny_decoder_config(dropout=0.3, drop_path_rate=0.3))
    with torch.no_grad():
        assert torch.equal(model.get_encoder_memory(images), model.get_encoder_memory(images))
        model.train()
        assert not torch.equal(model.get_encoder_memory(images), model.get_encoder_memory(images))


@torch.no_grad()
def test_step_leaves_its_input_and_drops_nothing(tiny_model, tiny_decoder_config, inputs, memory):
    decoder = tiny_model(decoder_config=tiny_decoder_config(dropout=0.5, drop_path_rate=0.5)).model.decoder
    before, results = inputs.clone(), []
    for training in (False, True):
        cache = decoder.eval().start_cache(memory, max_length=1)
        results.append(decoder.train(training).step(inputs[:, 0], cache, 0))
    assert torch.equal(inputs, before)
    assert torch.equal(*results)


@torch.no_grad()
def test_weights_are_prepared_anew_for_every_run(decoder, inputs, memory):
    before = decoder.step(inputs[:, 0], decoder.start_cache(memory, 1), 0)
    for name in ("self_attention.query", "self_attention.value", "cross_attention.query", "mlp.fc1"):
        decoder.blocks[0].get_submodule(name).weight.mul_(1.5)
    after = decoder.step(inputs[:, 0], decoder.start_cache(memory, 1), 0)
    assert (after - before).abs().max() > 1e-3
    assert (after - decoder(inputs[:, :1], memory)[:, 0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_half_precision_steps_stay_near_one_pass(tiny_model, inputs, memory, implementation):
    model = tiny_model().to(torch.bfloat16)
    if implementation == "eager":
        model.set_attn_implementation("eager")
    decoder, inputs, memory = model.model.decoder, inputs.bfloat16(), memory.bfloat16()
    cache = decoder.start_cache(memory, max_length=10)
    steps = torch.stack([decoder.step(inputs[:, i], cache, i) for i in range(10)], dim=1)
    assert steps.dtype == torch.bfloat16
    whole = tiny_model().model.decoder(inputs.float(), memory.float())
    assert (steps.float() - whole).abs().mean() < 0.03 * whole.abs().mean()


def test_replaced_layers_are_refused_rather_than_ignored(decoder, memory):
    layer = decoder.blocks[1].mlp.fc2
    decoder.blocks[1].mlp.fc2 = torch.nn.Sequential(layer)  # as an adapter would wrap it
    with pytest.raises(TypeError, match="Sequential.*Merge"):
        decoder.start_cache(memory, 1)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_step_is_one_graph_for_every_position(decoder, inputs, memory, batch):
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(decoder.step, fullgraph=True, dynamic=True, backend=graphs)
    caches = [decoder.start_cache(memory[:batch], max_length=10) for _ in range(2)]
    for i in range(10):
        expected = decoder.step(inputs[:batch, i], caches[0], i)
        assert (compiled(inputs[:batch, i], caches[1], i) - expected).abs().max() < TOLERANCE
    assert graphs.frame_count == 1


@pytest.mark.slow
@torch.no_grad()
def test_step_compiles_to_one_graph(decoder, inputs, memory):
    compiled = torch.compile(decoder.step, fullgraph=True, dynamic=True)
    caches = [decoder.start_cache(memory, max_length=10) for _ in range(2)]
    for i in range(4):
        expected = decoder.step(inputs[:, i], caches[0], i)
        assert (compiled(inputs[:, i], caches[1], i) - expected).abs().max() < 1e-4
