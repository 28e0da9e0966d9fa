"""The benchmark's plain object decoding: the same draws on both sides, and a comparison that would notice errors."""

import pytest
import torch

from transformers_ait.decoding_tokens import decode_autoregressively
from transformers_ait.sequence_ait import object_grammar


@pytest.fixture
def benchmark(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "training"))
    import benchmark

    return benchmark


@torch.no_grad()
def test_plain_objects_agree_with_ours_under_the_same_draws(benchmark):
    model = benchmark.build(tiny=True, parallel=False)
    decoder = model.model.decoder
    decoder.token_embeddings.mul_(5)
    tensors, config = benchmark.original_form(model)
    grammar = object_grammar(model.config.vocabulary, 2, tokens_per_object=7, soft=True)
    memory = torch.randn(2, 9, decoder.config.hidden_size)
    generator = torch.Generator().manual_seed(0)
    decoded = decode_autoregressively(decoder, memory, 1, grammar, 0.9, generator)

    def deviation(draws):
        plain = benchmark.plain_decode_objects_cached(tensors, config, memory, 1, grammar, 0.9, draws)
        pairs = zip(decoded.step_logits, plain, strict=True)
        return max((ours[:, : x.shape[1]] - x).abs().max().item() for ours, x in pairs)

    assert deviation(torch.rand(len(grammar), generator=torch.Generator().manual_seed(0))) < 1e-4
    # Planted error: other draws, so other objects.
    assert deviation(torch.rand(len(grammar), generator=torch.Generator().manual_seed(1))) > 1e-2
