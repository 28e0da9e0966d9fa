"""Cost of UniPixTask part by part, as the paper's tables 6 and 7: operations, parameters, images per second.

    python training/cost_table.py
    python training/cost_table.py --no-speed --output unipixtask-cost
    python training/cost_table.py --solver runs/solver/model --decoder runs/dense-decoder/model --device cuda

Weights are random, at the sizes of two folders with a `config.json`: a task-solver with one dense task whose tokenizer
is a dense decoder, and that dense decoder. Everything is counted twice:

- all of it: every product that PyTorch's counter knows, one multiply-add as one operation, with the caches of our
  decoding; parameters in millions.
- as the paper counts, which it does not say: multiply-adds of convolutions and linear layers, without the attention of
  transformers (counters by module miss all of `torch.nn.MultiheadAttention`, its projections included), decoding
  without a cache, so that step t runs over t tokens, no embeddings and norms, and parameters in 2^20. Its numbers of
  backbone and token decoder come out of this to the last digit.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction, DenseDecoderConfig, DenseDecoderModel

HUB_CONFIGS = Path(__file__).resolve().parents[1] / "hub_configs"
SOLVER, DECODER = HUB_CONFIGS / "unipixtask-swin-base-ade20k", HUB_CONFIGS / "dense-decoder-swin-base-ade20k"
BACKBONE, MEMORY, LEARNER = "backbone", "feature pyramid and encoder", "token decoder"
ENCODED, DECODED, HEAD = "encoded mapping", "decoded mapping", "task head"
WHOLE, DENSE = "UniPixTask", "dense decoder"
SUMS = {WHOLE: (BACKBONE, MEMORY, LEARNER, DECODED, HEAD), DENSE: (BACKBONE, ENCODED, DECODED, HEAD)}
# GFLOP and parameters: differences of the rows of table 7, which add one part after the other, and sums of table 6. Of
# the encoded mapping, what the dense decoder of table 6 has more than table 7's parts, whose head costs 0.8 there.
PAPER = {
    BACKBONE: (138.9, 82.6),
    LEARNER: (1009.2, 12.0),
    ENCODED: (1.0, 0.5),
    DECODED: (42.6, 36.9),
    HEAD: (4.8, 6.3),
    WHOLE: (1195.5, 137.8),
    DENSE: (183.3, 126.3),
}
COUNTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
# Of these the paper's counter saw nothing; a Swin's attention is linear layers that it saw.
UNSEEN = ("AiTAttention", "MaskFormerDetrSelfAttention", "MaskFormerDetrCrossAttention")


@dataclass(frozen=True)
class Cost:
    """What a part costs for one image.

    Args:
        gflop: 10^9 multiply-adds, all of them.
        parameters: in 10^6, all of them.
        paper_gflop: 10^9 multiply-adds as the paper counts.
        paper_parameters: in 2^20, likewise.
        seconds: None where no time was taken.
    """

    gflop: float
    parameters: float
    paper_gflop: float
    paper_parameters: float
    seconds: float | None = None

    def __add__(self, other: "Cost") -> "Cost":
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return Cost(
            self.gflop + other.gflop,
            self.parameters + other.parameters,
            self.paper_gflop + other.paper_gflop,
            self.paper_parameters + other.paper_parameters,
            seconds,
        )


@dataclass(frozen=True)
class Part:
    """A part of the model.

    Args:
        modules: whose parameters it has.
        run: does its work for one image.
        seen: does the work that the paper counts; None is `run`.
        factor: how often `seen` is done.
        operations: its multiply-adds; None counts those of `run`.
    """

    modules: Sequence[nn.Module]
    run: Callable[[], Any]
    seen: Callable[[], Any] | None = None
    factor: float = 1.0
    operations: Callable[[], int] | None = None


def build(folder: Path, config_class: Any, model_class: Any, device: str) -> Any:
    """A model with random weights of a folder's configuration."""
    with torch.device(device):
        return model_class(config_class.from_pretrained(folder)).eval()


def parts_of(solver: AiTForDenseAndInstancePrediction, dense: DenseDecoderModel) -> dict[str, Part]:
    """The parts of a model by name.

    Args:
        solver: with one dense task, whose tokenizer is a dense decoder.
        dense: the dense decoder, with its encoded mapping.

    Raises:
        ValueError: other models.
    """
    config: Any = solver.config
    task, encoder = config.default_task, dense.encoder
    if len(config.dense) != 1 or not config.dense[task].tokenizer_config.encodes_images or encoder is None:
        raise ValueError(
            "cost_table needs a task-solver of one dense task whose tokenizer is a dense decoder, and a dense decoder "
            f"with its encoded mapping, got tasks {list(config.dense)} and has_encoder={dense.config.has_encoder}."
        )
    image = torch.zeros(1, 3, config.image_size, config.image_size, device=dense.device)
    pyramid = [solver.model.pyramid] if solver.model.pyramid is not None else []
    length, side = config.sequence_length(task), dense.config.grid_size
    with torch.no_grad():
        own_maps, maps = solver.model.backbone(image).feature_maps, encoder.backbone(image).feature_maps
        memory = memory_of(solver, own_maps)
    vectors = image.new_zeros(1, side, side, dense.config.code_dim)
    features = tuple(image.new_zeros(1, *shape) for shape in dense.config.feature_shapes)
    encoded = [encoder.pyramid, encoder.compression, dense.quantizer]
    return {
        BACKBONE: Part([encoder.backbone], lambda: encoder.backbone(image)),
        MEMORY: Part([*pyramid, solver.model.encoder], lambda: memory_of(solver, own_maps)),
        LEARNER: Part(
            [solver.model.decoder],
            lambda: decode_greedily(solver, memory, length),
            # Step t of the paper's runs over t tokens: in all (length + 1) / 2 times what one pass over all does.
            lambda: solver.model.decoder(memory.new_zeros(1, length, memory.shape[2]), memory),
            (length + 1) / 2,
            lambda: decoding_operations(solver, memory, length),
        ),
        ENCODED: Part(encoded, lambda: nearest_codes(dense, maps)),
        DECODED: Part([dense.decoder], lambda: dense.decoder(vectors)),
        HEAD: Part([dense.head], lambda: dense.head(features, dense.config.image_size)),
    }


def memory_of(solver: AiTForDenseAndInstancePrediction, maps: Sequence[Tensor]) -> Tensor:
    """The decoder's memory (1, N, d) of backbone maps."""
    model = solver.model
    return model.encoder(maps[-1] if model.pyramid is None else model.pyramid(maps, solver.config.grid_size))


def decode_greedily(solver: AiTForDenseAndInstancePrediction, memory: Tensor, length: int) -> None:
    """The steps of a greedy decode with our caches."""
    decoder, rows = solver.model.decoder, _code_rows(solver)
    cache, x = decoder.start_cache(memory, length), memory.new_zeros(1, memory.shape[2])
    for position in range(length):
        picked = decoder.logits(decoder.step(x, cache, position), rows).argmax(-1)
        x = decoder.token_embeddings[rows][picked]


def decoding_operations(solver: AiTForDenseAndInstancePrediction, memory: Tensor, length: int) -> int:
    """Multiply-adds of `decode_greedily`: those of a step grow linearly, so that first and last one tell all."""
    decoder, rows = solver.model.decoder, _code_rows(solver)
    cache, x = decoder.start_cache(memory, length), memory.new_zeros(1, memory.shape[2])
    ends = [
        operations(lambda position=position: decoder.logits(decoder.step(x, cache, position), rows))  # type: ignore[misc]
        for position in (0, length - 1)
    ]
    return operations(lambda: decoder.start_cache(memory, length)) + length * sum(ends) // 2


def _code_rows(solver: AiTForDenseAndInstancePrediction) -> slice:
    config: Any = solver.config
    return config.vocabulary.codes(config.default_task).rows


def nearest_codes(dense: DenseDecoderModel, maps: Sequence[Tensor]) -> Tensor:
    """Distances of all code vectors to what the encoded mapping makes of backbone maps."""
    encoder: Any = dense.encoder
    vectors = encoder.compression(encoder.pyramid(maps, encoder.size)).permute(0, 2, 3, 1).flatten(0, 2)
    return vectors @ dense.quantizer.codebook.T


def product_flop(bias: Sequence[int], left: Sequence[int], right: Sequence[int], **kwargs: Any) -> int:
    """Operations of `addmm_`, the product in place of our decoding steps, which PyTorch's counter does not know."""
    return 2 * left[0] * left[1] * right[1]


def operations(run: Callable[[], Any]) -> int:
    """Multiply-adds of a call; PyTorch's counter takes each for two operations."""
    more: Any = {torch.ops.aten.addmm_: product_flop}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=more) as counter:
        run()
    return counter.get_total_flops() // 2


@contextmanager
def seen_layers(modules: Sequence[nn.Module], found: dict[nn.Module, int]) -> Iterator[None]:
    """Within, adds to `found` the multiply-adds of every convolution and linear layer that the paper's counter sees."""

    def note(layer: Any, inputs: Any, output: Tensor) -> None:
        if isinstance(layer, nn.ConvTranspose2d):  # every input meets every weight
            count = inputs[0].numel() * layer.weight[0].numel()
        else:
            count = output.numel() * layer.weight[0].numel()
        found[layer] = found.get(layer, 0) + count

    unseen = {
        layer
        for module in modules
        for inner in module.modules()
        if type(inner).__name__ in UNSEEN
        for layer in inner.modules()
    }
    layers = {x for module in modules for x in module.modules() if isinstance(x, COUNTED)} - unseen
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure(part: Part, timed: Part | None, rounds: int) -> Cost:
    """Cost of a part.

    Args:
        part: of models on the device "meta".
        timed: the same of models with weights; None takes no time.
        rounds: timed calls, of which the median counts.
    """
    found: dict[nn.Module, int] = {}
    with torch.no_grad(), seen_layers(part.modules, found):
        (part.seen or part.run)()
    weights = {p for module in part.modules for p in module.parameters()}
    return Cost(
        (operations(part.run) if part.operations is None else part.operations()) / 1e9,
        sum(p.numel() for p in weights) / 1e6,
        part.factor * sum(found.values()) / 1e9,
        sum(p.numel() for layer in found for p in layer.parameters()) / 2**20,
        None if timed is None else seconds(timed.run, rounds),
    )


def seconds(run: Callable[[], Any], rounds: int) -> float:
    """Median time of a call, after one that is not counted."""
    times = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def cost_table(solver: Path, decoder: Path, device: str | None, rounds: int = 3) -> dict[str, Cost]:
    """Cost of every part, then of the sums, by name.

    Args:
        solver: folder of a task-solver's configuration.
        decoder: folder of its dense decoder's configuration.
        device: to take times on; None takes none.
        rounds: timed calls per part.

    Raises:
        ValueError: other models, see `parts_of`.
    """

    def parts(where: str) -> dict[str, Part]:
        built = build(solver, AiTConfig, AiTForDenseAndInstancePrediction, where)
        return parts_of(built, build(decoder, DenseDecoderConfig, DenseDecoderModel, where))

    counted, timed = parts("meta"), {} if device is None else parts(device)
    costs = {name: measure(part, timed.get(name), rounds) for name, part in counted.items()}
    for name, (first, *others) in SUMS.items():
        total = costs[first]
        for other in others:
            total = total + costs[other]
        costs[name] = total
    return costs


def markdown(costs: dict[str, Cost], published: bool) -> str:
    """A table with a row per part, and the paper's numbers beside where the sizes are the published ones."""
    head = ["part", "GFLOP", "parameters (M)", "images/s", "GFLOP as the paper counts", "parameters likewise (2^20)"]
    head += ["paper: GFLOP", "paper: parameters"] if published else []
    rows = []
    for name, cost in costs.items():
        rate = "" if cost.seconds is None else f"{1 / cost.seconds:.2f}"
        row = [name, f"{cost.gflop:.1f}", f"{cost.parameters:.1f}", rate]
        row += [f"{cost.paper_gflop:.1f}", f"{cost.paper_parameters:.1f}"]
        paper = [f"{value:.1f}" for value in PAPER.get(name, ())] or ["", ""]
        rows.append(row + (paper if published else []))
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    if published:
        whole, (gflop, parameters) = costs[WHOLE], PAPER[WHOLE]
        shares = whole.paper_gflop / gflop - 1, whole.paper_parameters / parameters - 1
        lines += ["", "The whole against the paper's: {:+.1%} GFLOP, {:+.1%} parameters.".format(*shares)]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", type=Path, default=SOLVER, help="folder of the task-solver's config.json")
    parser.add_argument("--decoder", type=Path, default=DECODER, help="folder of the dense decoder's config.json")
    parser.add_argument("--device", default="cpu", help="to take times on (default: cpu)")
    parser.add_argument("--no-speed", action="store_true", help="count alone, on tensors without memory")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls per part, of which the median counts")
    parser.add_argument("--output", type=Path, help="also write OUTPUT.md and OUTPUT.json")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, take times, print the table, write the files."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    try:
        costs = cost_table(
            options.solver, options.decoder, None if options.no_speed else options.device, options.rounds
        )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = markdown(costs, published=(options.solver, options.decoder) == (SOLVER, DECODER))
    print(text)
    if options.output is not None:
        options.output.with_suffix(".md").write_text(f"{text}\n")
        rows = {name: asdict(cost) for name, cost in costs.items()}
        options.output.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
