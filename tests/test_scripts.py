"""The scripts in training/ and benchmarks/ that no other test runs, through their real command lines."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def script(repository, tmp_path):
    def run(name, *arguments):
        return call([str(repository / "training" / name), *map(str, arguments)], tmp_path)

    return run


@pytest.fixture
def benchmark(repository):
    def run(module, *arguments):
        return call(["-m", module, *map(str, arguments)], repository)

    return run


def call(command, folder):
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_benchmark_writes_a_report(benchmark, tmp_path):
    output = benchmark(
        "benchmarks.speed", "--tiny", "--rounds", 1, "--parts", "plain,memory", "--output", tmp_path / "report.md"
    )
    report = (tmp_path / "report.md").read_text()
    assert "| backbone |" in report and "allocator" in report and report.strip() in output
    deviations = [
        float(line.split("|")[6]) for line in report.splitlines() if line.count("e-") and line.startswith("|")
    ]
    assert deviations and max(deviations) < 1e-4


@pytest.mark.slow
def test_training_benchmark_weighs_and_counts(benchmark, tmp_path):
    output = benchmark("benchmarks.speed.training", "--tiny", "--rounds", 1, "--output", tmp_path / "report.md")
    assert "| training step |" in output and "of plain" in output and output.count("samples/s") == 2
    row = next(line for line in output.splitlines() if line.startswith("| training step |") and "e-" in line)
    assert float(row.split("|")[6]) < 1e-4


@pytest.mark.slow
def test_demo_draws_both_scenes(script, tmp_path):
    pytest.importorskip("skimage")
    output = script("demo.py", "--output", tmp_path / "demo.png")
    assert "motorcycle" in output and "RMSE" in output and "pre" in output
    assert "true ones with mask IoU" in output
    assert (tmp_path / "demo.png").stat().st_size > 50_000


@pytest.mark.slow
def test_evaluate_prints_soft_hard_and_constant(script, repository, tmp_path):
    folder = repository / "hub_configs" / "ait-tiny-rooms-depth"
    output = script("evaluate.py", folder, "--rooms", 4, "--batch-size", 2, "--output", tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics) == 4 and "| constant |" in output
    assert all(set(row) >= {"d1", "rmse", "silog"} for row in metrics.values())


@pytest.mark.slow
def test_augmentations_are_drawn(script, tmp_path):
    assert "wrote" in script("show_augmentation.py", "--output", tmp_path / "augmentation.png")
    assert (tmp_path / "augmentation.png").stat().st_size > 50_000
