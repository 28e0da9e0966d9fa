"""The benchmark: timing, the table of promised numbers, every part on tiny models, and agreement with plain."""

import argparse
import importlib
import time

import pytest
import torch

from transformers_ait.decoding_tokens import decode_autoregressively
from transformers_ait.sequence_ait import object_grammar

# Published sizes, millions of parameters, of the checkpoints that benchmarks/speed/rivals.py names; ZoeDepth's,
# published as 345, is that of the class in transformers.
RIVAL_PARAMETERS = {
    "Depth-Anything-V2 Base": 97.5,
    "Depth-Anything-V2 Small": 24.8,
    "DPT-large": 343,
    "GLPN": 61.2,
    "ZoeDepth": 343.8,
    "Mask2Former Swin-B": 107,
    "RF-DETR-Seg XLarge": 38.1,
    "EoMT Large": 316,
}


@pytest.fixture
def script(repository, monkeypatch):
    """Function that imports a module of benchmarks/speed/."""
    monkeypatch.syspath_prepend(str(repository))
    return lambda name: importlib.import_module(f"benchmarks.speed.{name}")


@pytest.fixture
def tiny_setting(script):
    """One round of tiny models on the CPU, in float32."""
    return script("setting").Setting(torch.device("cpu"), torch.float32, rounds=1, tiny=True)


@pytest.fixture
def measured(script, tiny_setting):
    """Function that measures a part on tiny models."""

    @torch.no_grad()
    def measure(part, setting=tiny_setting):
        return script("__main__").PARTS[part](setting)

    return measure


@pytest.mark.slow
@torch.no_grad()
def test_plain_objects_agree_with_ours_under_the_same_draws(script):
    models = script("models")
    model = models.build(tiny=True, parallel=False)
    decoder = model.model.decoder
    tensors, config = models.original_form(model)
    grammar = object_grammar(model.config.vocabulary, 2, tokens_per_object=7, soft=True)
    memory = torch.randn(2, 9, decoder.config.hidden_size)
    generator = torch.Generator().manual_seed(0)
    decoded = decode_autoregressively(decoder, memory, 1, grammar, 0.9, generator)

    def deviation(draws):
        plain = script("plain").plain_decode_objects_cached(tensors, config, memory, 1, grammar, 0.9, draws)
        pairs = zip(decoded.step_logits, plain, strict=True)
        return max((ours[:, : x.shape[1]] - x).abs().max().item() for ours, x in pairs)

    assert deviation(torch.rand(len(grammar), generator=torch.Generator().manual_seed(0))) < 1e-4
    # Planted error: other draws, so other objects.
    assert deviation(torch.rand(len(grammar), generator=torch.Generator().manual_seed(1))) > 1e-2


@pytest.mark.parametrize("parallel", [False, True])
def test_depth_of_the_timed_models_depends_on_the_image(script, parallel):
    model = script("models").build(tiny=True, parallel=parallel)
    image = torch.rand(1, 3, 96, 96)
    noise = torch.randn_like(model.get_encoder_memory(image))
    expected, other = model.generate(image), model.generate(image, encoder_memory=noise)
    assert (expected.predicted_depth - other.predicted_depth).abs().max() > 0.1


def test_runs_are_warmed_up_and_then_take_turns(script, tiny_setting):
    calls = []
    setting = script("setting").replace(tiny_setting, rounds=3)
    runs = {name: lambda name=name: calls.append(name) or name for name in "AB"}
    timed = script("timing").interleave("turns", runs, setting)
    assert "".join(calls) == "AB" + "AB" * 3
    assert [(one.result, len(one.seconds)) for one in timed.values()] == [("A", 3), ("B", 3)]
    calls.clear()
    script("timing").interleave("turns", runs, setting, warm_up=False)
    assert "".join(calls) == "AB" * 3


def test_a_comparison_sees_speed_and_deviation(script, tiny_setting):
    def slow():
        time.sleep(0.05)
        return torch.zeros(2)

    compare = script("timing").compare
    found = compare("x", slow, lambda: torch.tensor([0.0, 0.25]), tiny_setting, floor=2)
    assert found.ratio > 2 and found.deviation == 0.25
    assert found.cells()[0] == "x" and found.cells()[4:] == ["2x", "2.5e-01"]
    assert compare("x", slow, lambda: torch.ones(3), tiny_setting, agree=False).deviation is None


def test_rate_is_a_share_of_the_matrix_product_of_the_same_rounds(script, tiny_setting):
    timing = script("timing")
    timed = {"ours": timing.Timed(None, [1, 2, 60]), "product": timing.Timed(None, [3])}
    share = script("plain").ceiling_share(timed, {"backbone": 100, "product": 300})
    assert share == pytest.approx(50)  # 50 per second beside 100
    product, flops = timing.matrix_product(tiny_setting)
    assert timing.count_flops(product) == flops


@pytest.mark.slow
def test_peak_counts_neither_earlier_peaks_nor_what_was_held_before(script, tiny_setting):
    memory = script("memory")
    if not memory.PROCESS_STATUS.exists():
        pytest.skip("peak memory is read from /proc")
    held = torch.ones(50_000_000)
    (held * 2 + held * 3).sum()  # an earlier peak of 400 MB beyond
    peak = memory.measure_peak(lambda: torch.ones(50_000_000), tiny_setting)
    assert 0.19 < peak.beyond < 0.25
    assert peak.total > peak.beyond + 0.2


def test_a_failing_process_is_an_error(script, tiny_setting, tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    broken.write_text("raise SystemExit('no such side')")
    with pytest.raises(RuntimeError, match="no such side"):
        script("memory").peak_in_process("broken", "plain", tiny_setting)


def test_targets_say_what_is_reached(script, tiny_setting):
    report = script("report")
    more = report.Target("speed", "plain", "speed", floor=2, aim=4)
    less = report.Target("time", "plain", "time", floor=1.15, aim=1.05, at_most=True)
    assert [more.reached(value) for value in (1.9, 2, 4)] == ["no", "floor", "aim"]
    assert [less.reached(value) for value in (1.2, 1.1, 1.0)] == ["no", "floor", "aim"]
    lines = report.targets_table({"backbone": report.Measured(3.81, "a note")}, tiny_setting)
    assert len(lines) == len(report.TARGETS) + 2
    assert "| 3.5x | 5x | 3.81x (a note) | floor |" in lines[2]
    assert sum("needs a GPU" in line for line in lines) == 2
    assert sum("not measured (part " in line for line in lines) == len(report.TARGETS) - 3


@pytest.mark.parametrize(
    "rates, worst, curve",
    [
        ({1: 10, 2: 12, 4: 12}, 1, "grows"),
        ({1: 10, 2: 9.5, 4: 9.1}, 0.91, "level"),
        ({1: 10, 2: 9.5, 4: 8.9}, 0.89, "falls"),
        ({1: 10, 2: 20, 4: 15}, 0.75, "falls"),
        ({1: 10}, 1, "grows"),
    ],
)
def test_a_curve_is_held_against_its_best_smaller_batch(script, rates, worst, curve):
    scaling = script("scaling")
    assert scaling.worst_step(rates) == pytest.approx(worst)
    assert scaling.verdict(worst).startswith(curve)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["components", "plain", "rivals", "scaling"])
def test_every_part_measures_what_the_table_asks_of_it(script, measured, part):
    found = measured(part)
    asked = {t.key for t in script("report").TARGETS if t.part == part and not t.needs_gpu}
    assert asked <= found.measured.keys()
    assert all(number.value > 0 for number in found.measured.values())
    assert "nan" not in "\n".join(found.lines)


@pytest.mark.slow
def test_operators_are_sorted_into_kinds_and_their_times_add_up(script, measured):
    operators = script("operators")
    named = {
        "aten::addmm": "linear layers",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention kernel",
        "aten::native_layer_norm": "norms",
        "aten::copy_": "copies and gathers",
        "aten::add_": "sums and products by element",
        "aten::view": operators.OTHER,
    }
    assert {name: operators.kind_of(name) for name in named} == named
    rows = {row[1].strip(): row[2:-1] for row in (line.split("|") for line in measured("operators").lines[4:])}
    shares = {name: float(cells[2].split()[0]) for name, cells in rows.items()}
    assert shares.pop("all") == 100 and sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert rows["linear layers"][3].strip() and not rows[operators.OTHER][3].strip()


@pytest.mark.slow
def test_compile_part_compiles_and_reports_the_time_of_it(measured):
    rows = [line.split("|") for line in measured("compile").lines if "steps" in line or "backbone" in line]
    assert len(rows) == 2
    assert all(float(row[5].split()[0]) >= 1 for row in rows), "the first call compiles, which takes seconds"


@pytest.mark.slow
def test_components_run_in_bfloat16_with_tokenizers_in_float32(script, measured, tiny_setting):
    setting = script("setting").replace(tiny_setting, dtype=torch.bfloat16)
    model = setting.place(script("models").build(tiny=True, parallel=True))
    kinds = [{parameter.dtype for parameter in part.parameters()} for part in (model.model, model.depth_tokenizer)]
    assert kinds == [{torch.bfloat16}, {torch.float32}]
    lines = measured("components", setting).lines
    assert {"| backbone ", "| post-process "} <= {line[: line.find("|", 1)] for line in lines}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_part_runs_on_a_gpu(script, measured):
    setting = script("setting").Setting(torch.device("cuda"), torch.bfloat16, rounds=1, tiny=True)
    found = {part: measured(part, setting) for part in script("__main__").PARTS}
    assert {"gpu_parallel", "gpu_autoregressive"} <= found["scaling"].measured.keys()


@pytest.mark.slow
def test_rivals_have_their_published_sizes(script):
    rivals = script("rivals")
    for rival in (*rivals.DEPTH_RIVALS, *rivals.SEGMENTATION_RIVALS):
        # RF-DETR changes weights while it is built, which needs real ones.
        with torch.device("cpu" if "RF-DETR" in rival.name else "meta"):
            count = sum(parameter.numel() for parameter in rival.build(tiny=False).parameters())
        assert count / 1e6 == pytest.approx(RIVAL_PARAMETERS[rival.name], rel=0.0025), rival.name


def test_unfit_arguments_are_refused(script):
    setting = script("setting")
    parser = argparse.ArgumentParser()
    setting.add_arguments(parser, rounds=3)
    with pytest.raises(ValueError, match="--rounds must be at least 1, got 0"):
        setting.setting_of(parser.parse_args(["--rounds", "0"]))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cuda needs"):
            setting.setting_of(parser.parse_args(["--device", "cuda"]))
    with pytest.raises(argparse.ArgumentTypeError, match="unknown parts"):
        script("__main__").chosen_parts("plain,riwals")
