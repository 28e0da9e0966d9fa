"""Runs of ablations: each once among many processes, taken over from those that ended, resumed after a kill."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from transformers_ait.engine.ablation import claims, runs
from transformers_ait.engine.ablation.claims import try_claim
from transformers_ait.engine.ablation.estimate import estimate
from transformers_ait.engine.ablation.plan import measurements
from transformers_ait.engine.ablation.runs import RunCache, changed_configuration, run_all
from transformers_ait.engine.ablation.scripts import SCRIPTS
from transformers_ait.engine.ablation.suite import load_suite

ROOMS = {"height": 32, "width": 32, "num_train": 4, "num_validation": 2, "num_test": 0}
RECIPE = {
    "model": {"config": {"image_size": 32, "hidden_size": 4, "downsample_ratio": 8, "num_codes": 8, "code_dim": 4}},
    "patch_mask": {"ratio": 0.5, "patch_size": 4},
    "data": {"dataset": "synthetic_rooms", "options": ROOMS, "in_memory": True},
    "optim": {"lr": 1.0e-3},
    "run": {"output": "x", "steps": 3, "batch_size": 2, "checkpoint_every": 20, "eval_every": 9999, "panels": 0},
}


@pytest.fixture
def suite_file(tmp_path):
    (tmp_path / "vqvae.yaml").write_text(yaml.safe_dump(RECIPE))
    suite = {
        "title": "Rates",
        "claim": "A claim.",
        "metric": "rmse",
        "seeds": [0, 1],
        "steps": {"tokenizer": {"script": "vqvae", "recipe": "vqvae.yaml"}},
        "evaluate": "tokenizer",
        "baseline": "slow",
        "variants": {
            "slow": None,
            "fast": {"set": {"tokenizer": {"optim.lr": 1.0e-2}}},
            "half": {"config": {"tau": 0.5}},
        },
    }
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


@pytest.fixture
def fake_work(monkeypatch, tmp_path):
    """Trainings and measurements that only write a line to a file that all processes share, slowly."""
    diary = tmp_path / "diary"

    def note(line):
        descriptor = os.open(diary, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)
        time.sleep(0.05)

    def train(recipe):
        (folder := tmp_path / recipe.run.output / "model").mkdir(parents=True)
        (folder / "config.json").write_text('{"tau": 1.0}')
        note(f"train {recipe.run.output}")

    def measure(settings):
        config = json.loads((settings.folders[0] / "config.json").read_text())
        note(f"measure {config}")
        constant = SimpleNamespace(folder=None, task="depth", name="constant", metrics={"rmse": 2.0})
        own = SimpleNamespace(folder="x", task="depth", name="x", metrics={"rmse": config["tau"]})
        return [own, constant]

    monkeypatch.setitem(SCRIPTS, "vqvae", replace(SCRIPTS["vqvae"], train=train))
    monkeypatch.setattr(runs, "run_evaluation", measure)
    monkeypatch.setattr(runs, "wait_for_others", lambda: time.sleep(0.02))
    return diary


def test_many_processes_do_each_run_once(suite_file, fake_work, tmp_path):
    wanted, cache = measurements(load_suite(suite_file)), RunCache(tmp_path / "cache")
    assert str(estimate(wanted, cache)).startswith("4 trainings and 6 measurements are left")
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=run_all, args=(wanted, cache, lambda _: None)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    lines = fake_work.read_text().splitlines()
    trained = [line for line in lines if line.startswith("train")]
    assert len(trained) == len(set(trained)) == 4
    assert lines.count("measure {'tau': 0.5}") == 2 and lines.count("measure {'tau': 1.0}") == 4
    assert all(cache.measurement(measurement.key)["figures"]["rmse"] in (0.5, 1.0) for measurement in wanted)
    assert not list((tmp_path / "cache/claims").iterdir())
    assert str(estimate(wanted, cache)).startswith("0 trainings and 0 measurements")
    run_all(wanted, cache, lambda _: None)
    assert fake_work.read_text().splitlines() == lines


def test_an_error_leaves_no_claim_behind(suite_file, fake_work, tmp_path, monkeypatch):
    wanted, cache = measurements(load_suite(suite_file)), RunCache(tmp_path / "cache")

    def fail(recipe):
        raise FloatingPointError("The loss is nan.")

    with monkeypatch.context() as planted:
        planted.setitem(SCRIPTS, "vqvae", replace(SCRIPTS["vqvae"], train=fail))
        with pytest.raises(FloatingPointError):
            run_all(wanted, cache, lambda _: None)
    run_all(wanted, cache, lambda _: None)
    assert len(fake_work.read_text().splitlines()) == 10


def test_claims_of_processes_that_ended_are_taken_over(tmp_path):
    path = tmp_path / "claims/key"
    with try_claim(path) as claim:
        assert claim is not None and try_claim(path) is None
    assert not path.exists()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert ended.wait() == 0
    path.write_text(json.dumps({"host": claims._host(), "pid": ended.pid, "id": "x"}))
    with try_claim(path) as claim:
        assert claim is not None
    # Of another machine only time tells.
    for content in (json.dumps({"host": "elsewhere", "pid": 1, "id": "x"}), "", "[]"):
        path.write_text(content)
        assert try_claim(path) is None
        os.utime(path, (time.time() - 999,) * 2)
        with try_claim(path) as claim:
            assert claim is not None and try_claim(path) is None
    assert not list(path.parent.iterdir())


def test_a_claim_that_changed_hands_is_put_back(tmp_path):
    path = tmp_path / "key"
    path.write_text("of the new owner")
    assert claims._remove(path, "of the old owner") is False
    assert path.read_text() == "of the new owner" and [x.name for x in tmp_path.iterdir()] == ["key"]


def test_a_claim_is_touched_while_work_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    path = tmp_path / "key"
    with try_claim(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_changed_configuration_leaves_the_model_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"tau": 1.0, "inner": {"a": 1, "b": 2}}')
    (tmp_path / "model.safetensors").write_text("weights")
    with changed_configuration(tmp_path, {"inner": {"a": 3}}) as folder:
        assert json.loads((folder / "config.json").read_text()) == {"tau": 1.0, "inner": {"a": 3, "b": 2}}
        assert (folder / "model.safetensors").read_text() == "weights"
    assert not folder.exists() and '"a": 1' in (tmp_path / "config.json").read_text()
    assert (tmp_path / "model.safetensors").exists()
    with changed_configuration(tmp_path, {}) as folder:
        assert folder == tmp_path


@pytest.mark.slow
def test_kill_in_the_middle_loses_no_more_than_a_checkpoint_interval(repository, suite_file, tmp_path):
    changed = "recipe: vqvae.yaml\n    set: {run.steps: 100, run.checkpoint_every: 10}"
    suite_file.write_text(suite_file.read_text().replace("recipe: vqvae.yaml", changed))
    script = [sys.executable, str(repository / "training/ablate.py"), str(suite_file), "--seeds", "0"]
    killed = subprocess.Popen(
        [*script, "--cache", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (found := list(tmp_path.glob("killed/trained/*/checkpoints/step-*"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert found and not list(tmp_path.glob("killed/trained/*/training.json"))
    wanted, figures = measurements(load_suite(suite_file, seeds=[0])), []
    for name, resumed in (("killed", 1), ("whole", 0)):
        lines = []
        run_all(wanted, RunCache(tmp_path / name), lines.append)
        assert sum("resumed" in line for line in lines) == resumed, lines
        figures.append([RunCache(tmp_path / name).measurement(x.key)["figures"] for x in wanted])
    assert len(figures[0]) == 3 and figures[0] == figures[1]
    logs = [path.read_text().count('"split": "eval"') for path in tmp_path.glob("killed/trained/*/log.jsonl")]
    assert logs == [1, 1]
