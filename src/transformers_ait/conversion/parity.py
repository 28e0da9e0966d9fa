"""The converter's proof: probes of a converted model, with answers computed by the plain formulas on ORIGINAL tensors.

A probe holds an input, how to put it to a model, and the expected output. Each part of the model gets its own input,
so that deviations do not add up and tolerances can be tight. Once built, probes need the original tensors no more: the
same ones are put to the model before it is saved and after it is reloaded.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..configuration_ait import TASK_IDS
from ..decoding_tokens import DecodingRequest, decode_autoregressively, decode_in_parallel, decode_together
from ..modeling_ait_swinv2 import Workspace
from ..sequence_ait import map_grammar, object_grammar
from .key_map import NameMap
from .original_config import HEADS
from .plain.backbone import (
    plain_patch_embedding,
    plain_patch_merging,
    plain_shift_mask,
    plain_swin_block,
    relative_tables,
)
from .plain.decoder import plain_decoder_logits, plain_encoder_memory, plain_sine_table
from .plain.layers import Tensors, plain_layer_norm, select
from .plain.prediction import plain_decode_depth, plain_decode_objects
from .plain.vqvae import plain_vqvae_decode, plain_vqvae_decode_soft, plain_vqvae_features, plain_vqvae_quantise

# Relative to the largest expected magnitude. A part is one layer or block; a chain is many of them.
PART_TOLERANCE = 1e-5
CHAIN_TOLERANCE = 1e-4
BUFFER_TOLERANCE = 1e-3  # stored tables are dropped, so half precision will do to recognise them
DECODED_STEPS = 3
DECODED_OBJECT_TOKENS = 8  # a whole header, three mask codes or the next object's box
LAYER_NORM_WEIGHT = re.compile(
    r"(backbone|transformer)\.(.*\.)?(norm\d?|stem_ln|encout_ln|proj_ln|proj_mlp_ln)\.weight"
)
# Inputs of LayerNorms are this small, so that their variance is of the order of the epsilons and these show.
SMALL = 1e-3


class ParityError(ValueError):
    """A converted model does not compute what the original tensors say."""


@dataclass(frozen=True)
class Probe:
    """A question to a converted model, with the answer.

    Args:
        name: what is asked.
        run: computes the model's answer; expects float32 and evaluation mode.
        expected: the answer from the original tensors.
        tolerance: allowed deviation, relative to the largest expected magnitude.
    """

    name: str
    run: Callable[[Any], Tensor]
    expected: Tensor
    tolerance: float = PART_TOLERANCE


@dataclass(frozen=True)
class Comparison:
    """One line of the proof.

    Args:
        name: what was compared.
        deviation: largest absolute difference over the largest expected magnitude.
        tolerance: what is allowed.
    """

    name: str
    deviation: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the tolerance; NaN is not."""
        return self.deviation <= self.tolerance


@torch.no_grad()
def compare(model: PreTrainedModel, probes: list[Probe]) -> list[Comparison]:
    """Put every probe to a model; an answer of another shape deviates infinitely."""
    result = []
    for probe in probes:
        actual, expected = probe.run(model).double(), probe.expected.double()
        deviation = float("inf")
        if actual.shape == expected.shape:
            deviation = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
        result.append(Comparison(probe.name, deviation, probe.tolerance))
    return result


def require_parity(comparisons: list[Comparison], when: str) -> None:
    """Raise ParityError, with the failed lines, unless every comparison passed."""
    failed = [comparison for comparison in comparisons if not comparison.passed]
    if failed or not comparisons:
        raise ParityError(
            f"{len(failed)} of {len(comparisons)} comparisons failed {when}: the model does not compute what the "
            f"original tensors say. Nothing was kept.\n{format_table(failed)}"
        )


def format_table(comparisons: list[Comparison]) -> str:
    """One line per comparison: verdict, deviation, tolerance, name."""
    rows = [f"{'':6}  {'deviation':>9}  {'allowed':>9}  compared"]
    rows += [
        f"{'ok' if c.passed else 'FAILED':6}  {c.deviation:9.1e}  {c.tolerance:9.1e}  {c.name}" for c in comparisons
    ]
    return "\n".join(rows)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _run_block(of: Callable[[Any], Any], stage: int, block: int, x: Tensor, model: Any) -> Tensor:
    return of(model).stages[stage].blocks[block](x, Workspace())


def _run_patch_merging(of: Callable[[Any], Any], stage: int, x: Tensor, model: Any) -> Tensor:
    return of(model).stages[stage].downsample(x)


def _backbone_probes(tensors: Tensors, backbone: Mapping[str, Any], of: Callable[[Any], Any]) -> Iterator[Probe]:
    """Every layer on its own, and the whole."""
    side = 4 * backbone["window_size"][0]
    # Two windows side by side in the first stage, padded ones in the others, and no square.
    image = _uniform(1, 3, side, side + 4 * (side // 12))
    x = plain_patch_embedding(tensors, image)
    yield Probe("backbone: patch embedding", lambda model: of(model).embeddings(image), x)
    for stage, depth in enumerate(backbone["depths"]):
        mask = plain_shift_mask(backbone, stage, x)
        for block in range(depth):
            run = partial(_run_block, of, stage, block, x)
            x = plain_swin_block(tensors, backbone, stage, block, x, mask)
            yield Probe(f"backbone: stage {stage}, block {block}", run, x)
        if stage + 1 < len(backbone["depths"]):
            merged = plain_patch_merging(tensors, stage, x)
            yield Probe(f"backbone: stage {stage}, patch merging", partial(_run_patch_merging, of, stage, x), merged)
            x = merged
    name = f"backbone.norm{len(backbone['depths']) - 1}"
    if f"{name}.weight" in tensors:
        feature = plain_layer_norm(tensors, name, x, 1e-6).permute(0, 3, 1, 2)
        yield Probe("backbone: whole", lambda m: of(m)(image).feature_maps[-1], feature, CHAIN_TOLERANCE)


def _layer_norm_probes(tensors: Tensors, names: NameMap) -> Iterator[Probe]:
    """All LayerNorms of a part at small variance, as one probe."""
    for part, epsilon in (("backbone.", 1e-6), ("transformer.", 1e-5)):
        inputs, outputs = {}, []
        for name, ours in names.items():
            if name in tensors and name.startswith(part) and LAYER_NORM_WEIGHT.fullmatch(name):
                x = SMALL * _normal(4, len(tensors[name]))
                inputs[ours.removesuffix(".weight")] = x
                outputs.append(plain_layer_norm(tensors, name.removesuffix(".weight"), x, epsilon).flatten())
        if inputs:
            expected = torch.cat(outputs)
            name = f"{part}*: {len(inputs)} LayerNorms at small variance"
            yield Probe(name, partial(_run_modules, inputs), expected, CHAIN_TOLERANCE)


def _run_modules(inputs: Mapping[str, Tensor], model: nn.Module) -> Tensor:
    return torch.cat([model.get_submodule(path)(x).flatten() for path, x in inputs.items()])


def dropped_buffer_probes(tensors: Tensors, original: Mapping[str, Any]) -> Iterator[Probe]:
    """Stored buffers that the configuration determines, against what it determines."""
    if "transformer.enc_embed" in tensors:
        stored = tensors["transformer.enc_embed"].clone()
        table = plain_sine_table(*stored.shape[1:])
        yield Probe("dropped buffer: sine table", lambda _: stored.flatten(0, 2), table, BUFFER_TOLERANCE)
    backbone = original["backbone"]
    for stage, windows in enumerate(zip(backbone["window_size"], backbone["pretrain_window_size"], strict=True)):
        name = f"backbone.layers.{stage}.blocks.0.attn.relative_coords_table"
        if name in tensors:
            table, _ = relative_tables(*windows, torch.device("cpu"), torch.float32)
            coordinates = tensors[name].flatten(0, 2).clone()
            name = f"dropped buffer: coordinates, stage {stage}"
            yield Probe(name, partial(_recall, coordinates), table, BUFFER_TOLERANCE)


def _recall(stored: Tensor, model: nn.Module) -> Tensor:
    return stored


def _encoder_probes(tensors: Tensors, original: Mapping[str, Any]) -> Iterator[Probe]:
    """The memory of a random map of the model's size."""
    transformer = original["transformer"]
    feature = _normal(1, transformer["in_chans"], transformer["n_rows"], transformer["n_cols"])
    memory = plain_encoder_memory(tensors, original, feature)
    yield Probe("encoder: memory", lambda model: model.model.encoder(feature), memory, CHAIN_TOLERANCE)


def _run_decoder(ids: Tensor, memory: Tensor, task_id: int, model: Any) -> Tensor:
    """Logits of a token sequence, all positions at once."""
    decoder = model.model.decoder
    inputs = decoder.inputs(F.embedding(ids, decoder.token_embeddings), task_id)
    return decoder.logits(decoder(inputs, memory))


def _run_decoder_steps(ids: Tensor, memory: Tensor, task_id: int, model: Any) -> Tensor:
    """Logits of a token sequence, one cached step after the other."""
    decoder = model.model.decoder
    inputs = decoder.inputs(F.embedding(ids, decoder.token_embeddings), task_id)
    cache = decoder.start_cache(memory, inputs.shape[1])
    steps = [decoder.logits(decoder.step(inputs[:, i], cache, i)) for i in range(inputs.shape[1])]
    return torch.stack(steps, dim=1)


def _run_depth_decoding(memory: Tensor, model: Any) -> Tensor:
    """Logits of the first depth codes, decoded as the model's configuration says."""
    config = model.config
    grammar = map_grammar(config.vocabulary.depth_codes, DECODED_STEPS, config.soft_feedback)
    requests = [DecodingRequest(TASK_IDS["depth"], grammar)]
    decode = decode_in_parallel if config.parallel else decode_together
    return torch.stack(decode(model.model.decoder, memory, requests)[0].step_logits, dim=1)


def _run_object_decoding(task: str, memory: Tensor, model: Any) -> Tensor:
    """Logits of the first tokens of an object sequence, decoded greedily, side by side."""
    config = model.config
    tokens = config.tokens_per_object[task]
    grammar = object_grammar(config.vocabulary, config.num_objects, tokens, config.soft_feedback)
    decoded = decode_autoregressively(model.model.decoder, memory, TASK_IDS[task], grammar[:DECODED_OBJECT_TOKENS])
    return torch.cat(decoded.step_logits, dim=1)


def _decoder_probes(tensors: Tensors, original: Mapping[str, Any]) -> Iterator[Probe]:
    """Logits of each task, and the first steps of decoding it."""
    transformer = original["transformer"]
    memory = _normal(2, transformer["n_rows"] * transformer["n_cols"], transformer["d_model"])
    ids = torch.randint(transformer["num_vocal"], (2, 5), generator=torch.Generator().manual_seed(0))
    embedded = tensors["transformer.voc_embed"][ids]
    for head in original["task_heads"]:
        task_id = TASK_IDS[HEADS[head]]
        expected = plain_decoder_logits(tensors, original, memory, task_id, embedded)
        for how, run in (("all positions", _run_decoder), ("cached steps", _run_decoder_steps)):
            name = f"decoder: logits, {how}, task {HEADS[head]}"
            yield Probe(name, partial(run, ids, memory, task_id), expected, CHAIN_TOLERANCE)
        if head == "depth":
            _, expected = plain_decode_depth(tensors, original, memory, steps=DECODED_STEPS)
            yield Probe("decoder: first depth codes", partial(_run_depth_decoding, memory), expected, CHAIN_TOLERANCE)
        else:
            steps = plain_decode_objects(tensors, original, memory, head, DECODED_OBJECT_TOKENS)
            name, run = f"decoder: first tokens of {HEADS[head]}", partial(_run_object_decoding, HEADS[head], memory)
            yield Probe(name, run, torch.cat(steps, dim=1), CHAIN_TOLERANCE)


@torch.no_grad()
def vqvae_probes(
    name: str, tensors: Tensors, ratio: int, use_norm: bool, tau: float, of: Callable[[Any], Any] = lambda m: m
) -> list[Probe]:
    """Probes of a VQ-VAE.

    Args:
        name: what to call it.
        tensors: original tensors without prefix.
        ratio: downsample ratio.
        use_norm: whether the original maps [0, 1] to [-1, 1].
        tau: factor on logits in the soft decode.
        of: finds the VQ-VAE in the model that is asked.
    """
    channels = tensors["encoder.0.weight"].shape[1]
    scale = 1 if use_norm else 10
    x = F.interpolate(scale * _uniform(1, channels, 3, 4), scale_factor=ratio, mode="bilinear")
    vectors = plain_vqvae_features(tensors, x, use_norm)
    codes = plain_vqvae_quantise(tensors, vectors)
    logits = _normal(1, len(tensors["_vq_vae._embedding"]), 3, 4)
    decoded = plain_vqvae_decode(tensors, codes, use_norm)
    soft_decoded = plain_vqvae_decode_soft(tensors, logits, tau, use_norm)
    return [
        Probe(f"{name}: encoder", lambda model: of(model).encoder(2 * x - 1 if use_norm else x), vectors),
        Probe(f"{name}: codes", lambda model: of(model).encode(x), codes),
        Probe(f"{name}: hard decode", lambda model: of(model).decode(codes), decoded),
        Probe(f"{name}: soft decode", lambda model: of(model).decode_soft(logits), soft_decoded),
    ]


def _tokenizer_probes(tensors: Tensors, original: Mapping[str, Any]) -> Iterator[Probe]:
    tokenizers = {"depth": lambda model: model.depth_tokenizer, "insseg": lambda model: model.mask_tokenizer}
    for head, of in tokenizers.items():
        vqvae = select(tensors, f"{head}_head.vqvae.")
        if vqvae:
            settings = original["task_heads"][head]["vae_cfg"]
            ratio = round(settings["mask_size"] / settings["token_length"] ** 0.5)
            use_norm, tau = settings.get("use_norm", True), settings.get("tau", 1.0)
            yield from vqvae_probes(f"{HEADS[head]} VQ-VAE", vqvae, ratio, use_norm, tau, of)


@torch.no_grad()
def backbone_probes(tensors: Tensors, original: Mapping[str, Any], names: NameMap) -> list[Probe]:
    """Probes of a backbone that stands alone.

    Args:
        tensors: original tensors under their names in a task-solver (`backbone.*`).
        original: original configuration with the section `backbone`.
        names: original name -> our name.
    """
    return [*_backbone_probes(tensors, original["backbone"], lambda m: m), *_layer_norm_probes(tensors, names)]


@torch.no_grad()
def task_solver_probes(tensors: Tensors, original: Mapping[str, Any], names: NameMap) -> list[Probe]:
    """Probes of every part of a task-solver whose original tensors are there.

    Args:
        tensors: original tensors under their names in a task-solver.
        original: original model configuration.
        names: original name -> our name.
    """
    probes = [*_backbone_probes(tensors, original["backbone"], lambda model: model.model.backbone)]
    if "transformer.input_proj.weight" in tensors:
        probes += _encoder_probes(tensors, original)
    if "transformer.decoder.blocks.0.norm1.weight" in tensors:
        probes += _decoder_probes(tensors, original)
    return [*probes, *_tokenizer_probes(tensors, original), *_layer_norm_probes(tensors, names)]
