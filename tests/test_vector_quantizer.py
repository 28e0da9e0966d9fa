"""The codebook: assignment, lookups, straight-through gradient, and its moving averages on one and two processes."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from transformers_ait import AiTVQVAEConfig, AiTVQVAEModel
from transformers_ait.vector_quantizer import VectorQuantizer, code_usage

BUFFERS = ("codebook", "ema_cluster_size", "ema_sums")


def make_quantizer(num_codes=7, code_dim=3, decay=0.9, epsilon=0.1):
    """A quantizer whose smoothing is strong enough to be seen."""
    quantizer = VectorQuantizer(num_codes, code_dim, decay, epsilon)
    generator = torch.Generator().manual_seed(0)
    quantizer.codebook.normal_(generator=generator)
    quantizer.ema_sums.normal_(generator=generator)
    quantizer.ema_cluster_size.zero_()
    return quantizer


def nearest(vectors, codebook):
    return np.array([np.argmin([((v - c) ** 2).sum() for c in codebook]) for v in vectors])


def reference_training(batches, codebook, sums, decay, epsilon, keep_raw_sizes=False, assign_with_new=False):
    """Hand-written loop over codes and vectors, in the order of the published description; flags plant mistakes."""
    codebook, sums = codebook.astype(np.float64), sums.astype(np.float64)
    num_codes = len(codebook)
    sizes = np.zeros(num_codes)
    previous = codebook
    for vectors in batches:
        codes = nearest(vectors, previous if assign_with_new else codebook)
        previous = codebook
        for k in range(num_codes):
            members = vectors[codes == k]
            sizes[k] = decay * sizes[k] + (1 - decay) * len(members)
            sums[k] = decay * sums[k] + (1 - decay) * members.sum(0)
        total = sizes.sum()
        smoothed = (sizes + epsilon) / (total + num_codes * epsilon) * total
        codebook = sums / smoothed[:, None]
        sizes = sizes if keep_raw_sizes else smoothed
    return {"codebook": codebook, "ema_cluster_size": sizes, "ema_sums": sums}


def largest_deviation(quantizer, reference):
    return max(np.abs(getattr(quantizer, name).numpy() - reference[name]).max() for name in BUFFERS)


@pytest.mark.parametrize(
    "mistake", [None, {"keep_raw_sizes": True}, {"assign_with_new": True}, {"decay": 0.89}, {"epsilon": 0.11}]
)
def test_moving_averages_follow_the_published_order(mistake):
    quantizer = make_quantizer().train()
    settings = {"decay": quantizer.decay, "epsilon": quantizer.epsilon} | (mistake or {})
    batches = [torch.randn(20, 3) for _ in range(4)]
    start = quantizer.codebook.numpy().copy(), quantizer.ema_sums.numpy().copy()
    for batch in batches:
        quantizer(batch)
    deviation = largest_deviation(quantizer, reference_training([b.numpy() for b in batches], *start, **settings))
    assert deviation < 1e-5 if mistake is None else deviation > 1e-3


def test_assignment_is_the_nearest_code():
    quantizer = make_quantizer(num_codes=32, code_dim=5)
    vectors = torch.randn(4, 6, 5)
    codes = quantizer.assign(vectors)
    expected = nearest(vectors.reshape(-1, 5).double().numpy(), quantizer.codebook.double().numpy())
    assert codes.shape == (4, 6) and codes.dtype == torch.int64
    assert np.array_equal(codes.flatten().numpy(), expected)


def test_lookups_agree_and_probabilities_average():
    quantizer = make_quantizer()
    codes = torch.tensor([[1, 6], [0, 3]])
    one_hot = torch.nn.functional.one_hot(codes, 7).float()
    assert torch.equal(quantizer.soft_lookup(one_hot), quantizer.lookup(codes))
    mean = quantizer.soft_lookup(torch.full((7,), 1 / 7))
    assert torch.allclose(mean, quantizer.codebook.mean(0), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_forward_returns_codes_of_the_old_codebook_and_passes_the_gradient_straight_through(training):
    quantizer = make_quantizer().train(training)
    before = copy.deepcopy(quantizer)
    vectors = torch.randn(2, 5, 3, requires_grad=True)
    straight_through, quantized, codes = quantizer(vectors)
    assert torch.equal(codes, before.assign(vectors))
    assert torch.equal(quantized, before.lookup(codes)) and not quantized.requires_grad
    assert torch.allclose(straight_through, quantized, atol=1e-6)
    weight = torch.randn_like(vectors)
    (straight_through * weight).sum().backward()
    assert torch.equal(vectors.grad, weight)
    moved = [not torch.equal(getattr(quantizer, name), getattr(before, name)) for name in BUFFERS]
    assert moved == [training] * 3


def test_update_is_float32_under_mixed_precision():
    plain, mixed = make_quantizer(), make_quantizer()
    vectors = torch.randn(1000, 3)
    codes = plain.assign(vectors)
    plain.collect(vectors, codes)
    plain.apply_update()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixed.assign(vectors), codes)
        mixed.collect(vectors, codes)
        mixed.apply_update()
    assert all(torch.equal(getattr(plain, name), getattr(mixed, name)) for name in BUFFERS)


def test_deferred_updates_see_all_forward_passes_as_one():
    whole, parts, hasty = (make_quantizer().train() for _ in range(3))
    parts.deferred = True
    vectors = torch.randn(30, 3)
    whole(vectors)
    start = parts.codebook.clone()
    for part in vectors.split(10):
        parts(part)
        hasty(part)
    assert torch.equal(parts.codebook, start)
    parts.apply_update()
    for name in BUFFERS:
        assert torch.allclose(getattr(parts, name), getattr(whole, name), atol=1e-6), name
        assert not torch.allclose(getattr(hasty, name), getattr(whole, name), atol=1e-4), name
    parts.apply_update()
    assert torch.allclose(parts.codebook, whole.codebook, atol=1e-6), "without new vectors nothing moves"


def test_dead_codes_move_onto_encoder_outputs_and_living_ones_stay():
    quantizer = make_quantizer()
    quantizer.ema_cluster_size.copy_(torch.tensor([0.0, 5.0, 0.4, 2.0, 0.0, 1.0, 9.0]))
    before = copy.deepcopy(quantizer)
    vectors = 50 + torch.randn(20, 3)
    assert quantizer.restart_dead_codes(vectors, 1.0, torch.Generator().manual_seed(0)) == 3
    dead = torch.tensor([0, 2, 4])
    assert all((vectors == code).all(1).any() for code in quantizer.codebook[dead])
    assert torch.equal(quantizer.ema_sums[dead], quantizer.codebook[dead])
    assert quantizer.ema_cluster_size[dead].tolist() == [1, 1, 1]
    living = torch.tensor([1, 3, 5, 6])
    assert all(torch.equal(getattr(quantizer, name)[living], getattr(before, name)[living]) for name in BUFFERS)
    assert quantizer.restart_dead_codes(vectors, 1.0) == 0


def training_forwards(maps, steps=3):
    """Codebook buffers of a tokenizer after a few training forwards over the same maps."""
    torch.manual_seed(0)
    config = AiTVQVAEConfig(
        image_size=16, downsample_ratio=4, hidden_size=4, num_resnet_blocks=1, num_codes=6, code_dim=4
    )
    model = AiTVQVAEModel(config).train()
    for _ in range(steps):
        model(maps)
    return {name: getattr(model.quantizer, name).clone() for name in BUFFERS}


def run_process(rank, folder):
    """One of two processes, with its half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    maps = torch.load(f"{folder}/maps.pt")
    buffers = training_forwards(maps.chunk(2)[rank])
    quantizer = make_quantizer()
    quantizer.restart_dead_codes(torch.full((4, 3), float(rank)), min_cluster_size=1.0)
    torch.save(buffers | {"restarted": quantizer.codebook}, f"{folder}/buffers{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_codebook_of_one(tmp_path):
    maps = 5 * torch.rand(4, 1, 16, 16)
    torch.save(maps, tmp_path / "maps.pt")
    mp.spawn(run_process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"buffers{rank}.pt") for rank in range(2))
    assert (first["restarted"] == 0).all() and (second["restarted"] == 0).all(), "all take what the first one draws"
    whole, half = training_forwards(maps), training_forwards(maps[:2])
    for name in BUFFERS:
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], whole[name], atol=1e-5), name
        assert not torch.allclose(half[name], whole[name], atol=1e-3), (
            f"{name}: half the batch must not pass for all of it"
        )


def test_a_learned_codebook_is_moved_by_its_gradient_alone():
    quantizer = VectorQuantizer(7, 3, learned=True).train()
    torch.nn.init.normal_(quantizer.codebook)
    torch.nn.init.zeros_(quantizer.ema_cluster_size)
    assert set(quantizer.state_dict()) == {"codebook", "ema_cluster_size"}
    vectors, before = torch.randn(20, 3, requires_grad=True), quantizer.codebook.detach().clone()
    straight_through, quantized, codes = quantizer(vectors)
    assert torch.equal(quantizer.codebook, before) and quantizer.ema_cluster_size.sum() > 0
    assert torch.equal(quantized, before[codes])
    (gradient,) = torch.autograd.grad(straight_through.sum(), vectors, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(vectors))
    (gradient,) = torch.autograd.grad(quantized.sum(), quantizer.codebook)
    assert torch.equal(gradient[:, 0], torch.bincount(codes, minlength=7).float())
    assert quantizer.restart_dead_codes(vectors.detach(), min_cluster_size=1e3) == 7


def test_usage_counts_codes_and_weighs_their_frequencies():
    used, perplexity = code_usage(torch.tensor([[0, 0, 3], [3, 5, 5]]), num_codes=12)
    assert used.item() == pytest.approx(3 / 12) and perplexity.item() == pytest.approx(3)
    used, perplexity = code_usage(torch.tensor([1, 1, 1, 2]), num_codes=4)
    assert used.item() == pytest.approx(0.5)
    assert perplexity.item() == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
