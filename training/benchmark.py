"""Time this package against a plain formulation of the same model, interleaved A B A B, and print ratios.

    python training/benchmark.py                       # what `make bench` runs: full base size, all threads
    python training/benchmark.py --threads 1           # decoding on one thread
    python training/benchmark.py --tiny --rounds 1     # a smoke test that takes seconds

The plain formulation is `transformers_ait.conversion.plain`: position bias evaluated in every block, softmax written
out, cross-attention keys recomputed at every step, cache by concatenation. Weights are random; only speed and
agreement are looked at. Writes `benchmarks/<hardware>-<date>.md`.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction
from transformers_ait.configuration_ait import TASK_IDS
from transformers_ait.conversion.key_map import invert, task_solver_names
from transformers_ait.conversion.original_config import original_from_ait_config
from transformers_ait.conversion.plain import (
    Cache,
    plain_backbone,
    plain_decode_depth,
    plain_decoder_step,
    plain_encoder_memory,
    plain_predict_depth,
    plain_start,
)
from transformers_ait.decoding_tokens import decode_autoregressively, decode_in_parallel, nucleus_choice
from transformers_ait.sequence_ait import TokenStep, depth_grammar, object_grammar

Run = Callable[[], Any]
INSTANCE_MEMORY = 400  # positions of a 640 x 640 image at stride 32


@dataclass
class Comparison:
    """Interleaved timings of two ways to compute one thing.

    Args:
        name: what is computed.
        plain: seconds of every round of the reference.
        ours: seconds of every round of this package.
        deviation: largest absolute difference of the results; None where they are not meant to agree.
        floor: the ratio that the project promises.
    """

    name: str
    plain: list[float]
    ours: list[float]
    deviation: float | None
    floor: float | None

    @property
    def ratio(self) -> float:
        """How many times as fast as the reference, by medians."""
        return statistics.median(self.plain) / statistics.median(self.ours)

    def row(self) -> str:
        """One line of the Markdown table."""
        deviation = "" if self.deviation is None else f"{self.deviation:.1e}"
        floor = "" if self.floor is None else f"{self.floor:g}x"
        medians = [f"{statistics.median(x) * 1000:.0f} ms" for x in (self.plain, self.ours)]
        return f"| {self.name} | {medians[0]} | {medians[1]} | {self.ratio:.2f}x | {floor} | {deviation} |"


def compare(
    name: str, plain: Run, ours: Run, rounds: int, floor: float | None = None, agree: bool = True
) -> Comparison:
    """Run both once to warm up (and to compare results), then `rounds` times in turn."""
    first, second = plain(), ours()
    deviation = (first - second).abs().max().item() if agree else None
    times: tuple[list[float], list[float]] = ([], [])
    for _ in tqdm(range(rounds), desc=name, leave=False):
        for run, seconds in zip((plain, ours), times, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    result = Comparison(name, *times, deviation, floor)
    print(result.row(), flush=True)
    return result


def tiny_config(parallel: bool) -> dict:
    """A model of the same structure that runs in milliseconds."""
    return {
        "backbone_config": {
            "model_type": "ait_swinv2",
            "embed_dim": 16,
            "depths": [2, 2, 2, 2],
            "num_heads": [1, 2, 4, 8],
            "window_sizes": [6, 6, 6, 3],
            "pretrained_window_sizes": [4, 4, 4, 2],
        },
        "depth_tokenizer_config": {"model_type": "ait_vqvae", "image_size": 96, "hidden_size": 2, "code_dim": 16},
        "image_size": 96,
        "parallel": parallel,
        "soft_feedback": not parallel,
    }


def build(tiny: bool, parallel: bool) -> AiTForDenseAndInstancePrediction:
    """A model with random weights in evaluation mode."""
    torch.manual_seed(0)
    config = AiTConfig(**(tiny_config(parallel) if tiny else {"parallel": parallel, "soft_feedback": not parallel}))
    return AiTForDenseAndInstancePrediction(config).eval()


def original_form(model: AiTForDenseAndInstancePrediction) -> tuple[dict[str, torch.Tensor], dict]:
    """The model's tensors under original names, and its original configuration, as the plain functions take them."""
    names = invert(task_solver_names(model.config))
    tensors = {names[name]: tensor for name, tensor in model.state_dict().items() if name in names}
    return tensors, original_from_ait_config(model.config)


def plain_decode_objects_cached(
    tensors: dict[str, torch.Tensor],
    config: dict,
    memory: torch.Tensor,
    task_id: int,
    grammar: Sequence[TokenStep],
    top_p: float,
    draws: torch.Tensor,
) -> list[torch.Tensor]:
    """The plain loop over an object sequence: cache by concatenation, the whole vocabulary multiplied at every step.

    Args:
        tensors: original tensors.
        config: original model configuration.
        memory: encoder memory (B, N, d).
        task_id: row of the task and position embeddings.
        grammar: one entry per position.
        top_p: nucleus of the positions that the grammar samples.
        draws: (L,) random numbers in [0, 1), one per position.

    Returns:
        Per step the logits (B, K) of what may stand there.
    """
    embeddings, positions = tensors["transformer.voc_embed"], tensors["transformer.dec_embed"][task_id]
    new = plain_start(tensors, task_id, memory.shape[0])
    cache: Cache | None = None
    collected = []
    for index, step in enumerate(grammar):
        logits, cache = plain_decoder_step(tensors, config, new, memory, cache)
        logits, rows = logits[:, -1, step.allowed.rows], embeddings[step.allowed.rows]
        choice = nucleus_choice(logits, top_p, draws[index]) if step.sampled else logits.argmax(dim=-1)
        following = torch.softmax(logits, dim=-1) @ rows if step.soft else rows[choice]
        new = (following + positions[(index + 1) % len(positions)])[:, None]
        collected.append(logits)
    return collected


def compare_objects(tiny: bool, rounds: int) -> Comparison:
    """Decode instances (nucleus on coordinates and classes, soft mask codes) with the same draws on both sides.

    The sampled rows of a random model's vocabulary are scaled up until the nucleus holds few candidates, as a trained
    model's does: among 600 nearly equal ones a rounding error would choose, and the two runs could not be compared.
    """
    model = build(tiny=True, parallel=False)  # a small backbone, which is not run, and the decoder in full size
    decoder, task = model.model.decoder, TASK_IDS["instance"]
    decoder.token_embeddings[: model.config.vocabulary.classes.stop].mul_(5)
    tensors, config = original_form(model)
    grammar = object_grammar(model.config.vocabulary, 2 if tiny else 100, tokens_per_object=21, soft=True)
    memory = torch.randn(1, INSTANCE_MEMORY, decoder.config.hidden_size)
    top_p = model.config.top_p

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def plain() -> torch.Tensor:
        draws = torch.rand(len(grammar), generator=seeded())
        return torch.cat(plain_decode_objects_cached(tensors, config, memory, task, grammar, top_p, draws), dim=1)

    def ours() -> torch.Tensor:
        decoded = decode_autoregressively(decoder, memory, task, grammar, top_p, seeded())
        pairs = zip(decoded.step_logits, grammar, strict=True)
        return torch.cat([logits[:, : step.allowed.size] for logits, step in pairs], dim=1)  # without the noise class

    return compare(f"instance decode, {len(grammar)} steps", plain, ours, rounds, floor=2.2)


@torch.no_grad()
def run_comparisons(tiny: bool, rounds: int) -> list[Comparison]:
    """All comparisons, slowest parts first."""
    model, parallel_model = build(tiny, parallel=False), build(tiny, parallel=True)
    tensors, config = original_form(model)
    parallel_tensors, parallel_config = original_form(parallel_model)
    size = model.config.image_size
    image = torch.rand(1, 3, size, size)
    memory = model.get_encoder_memory(image)
    length = model.config.sequence_length("depth")
    vocabulary, task = model.config.vocabulary, TASK_IDS["depth"]

    def decode(chosen: AiTForDenseAndInstancePrediction) -> torch.Tensor:
        run = decode_in_parallel if chosen.config.parallel else decode_autoregressively
        grammar = depth_grammar(vocabulary, length, chosen.config.soft_feedback)
        return torch.stack(run(chosen.model.decoder, memory, task, grammar).step_logits, dim=1)

    def plain_features() -> torch.Tensor:
        return plain_backbone(tensors, config, image)

    comparisons = [
        compare("backbone", plain_features, lambda: model.get_image_features(image), rounds, floor=3.5),
        compare(
            "memory (backbone + encoder)",
            lambda: plain_encoder_memory(tensors, config, plain_features()),
            lambda: model.get_encoder_memory(image),
            rounds,
        ),
        compare(
            f"autoregressive decode, {length} steps",
            lambda: plain_decode_depth(tensors, config, memory)[1],
            lambda: decode(model),
            rounds,
            floor=2.2,
        ),
        compare_objects(tiny, rounds),
        compare(
            f"parallel against autoregressive decode, {length} tokens, both ours",
            lambda: decode(model),
            lambda: decode(parallel_model),
            rounds,
            agree=False,
        ),
        compare(
            "depth end to end, autoregressive, one window",
            lambda: plain_predict_depth(tensors, config, image),
            lambda: model.generate(image).predicted_depth,
            rounds,
            floor=3,
        ),
        compare(
            "depth end to end, parallel, one window",
            lambda: plain_predict_depth(parallel_tensors, parallel_config, image),
            lambda: parallel_model.generate(image).predicted_depth,
            rounds,
        ),
    ]
    return comparisons


def hardware() -> str:
    """Processor name and core count, for the report's title and file name."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def report(comparisons: list[Comparison], rounds: int) -> str:
    """The Markdown report: conditions first, then the table."""
    allocator = {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")} or "default"
    return "\n".join(
        [
            f"# {hardware()}",
            "",
            f"- date: {datetime.date.today()}",
            f"- command: `python {' '.join(sys.argv)}`",
            f"- versions: Python {platform.python_version()}, torch {torch.__version__}",
            f"- threads: {torch.get_num_threads()}; dtype: float32; batch 1; allocator: {allocator}",
            f"- medians of {rounds} interleaved rounds (A B A B) after one warm-up each; random weights",
            "- plain: `transformers_ait.conversion.plain`; deviation: largest absolute difference of the two results",
            "",
            "| what | plain (A) | ours (B) | A / B | floor | deviation |",
            "|---|---|---|---|---|---|",
            *(comparison.row() for comparison in comparisons),
            "",
        ]
    )


def report_path(prefix: str = "") -> Path:
    """Where a report goes: benchmarks/<prefix><hardware>-<threads>t-<date>.md."""
    slug = "".join(c if c.isalnum() else "-" for c in hardware().lower()).replace("--", "-")
    return Path("benchmarks") / f"{prefix}{slug}-{torch.get_num_threads()}t-{datetime.date.today()}.md"


def main() -> None:
    """Parse arguments, run, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per comparison")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: all cores")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument(
        "--output", type=Path, default=None, help="report file; default: benchmarks/<hardware>-<date>.md"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    text = report(run_comparisons(arguments.tiny, arguments.rounds), arguments.rounds)
    output = arguments.output or report_path()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    print(f"\n{text}\nWritten to {output}.")


if __name__ == "__main__":
    main()
