"""The kill harness notices what it is for: a damaged checkpoint, half a model, a bit that differs, a run that fails."""

import hashlib
import json
import os
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torture_kill import rounds
from torture_kill.__main__ import main, shares
from torture_kill.processes import Process, RunError, after, counting, killed_before, run_whole, seeded, soon_after_seen
from torture_kill.saves import check_and_repeat, visible_state
from torture_kill.scripts import SCRIPTS
from torture_kill.state import MANIFEST, broken_promises, damage, differences, final_state


def write_run(folder, values=(1.0, 2.0)):
    """What a run leaves, in small."""
    checkpoint = folder / "checkpoints" / "step-00000002"
    (folder / "model").mkdir(parents=True)
    checkpoint.mkdir(parents=True)
    for place in (folder / "model", checkpoint):
        save_file({"weight": torch.tensor(values)}, place / "model.safetensors")
    torch.save({"exp_avg": torch.tensor(values)}, checkpoint / "optimizer.bin")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.iterdir()}
    (checkpoint / MANIFEST).write_text(json.dumps({"files": files}))
    (folder / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (folder / "metrics.json").write_text('{"step": 2}')
    return checkpoint


def test_runs_are_alike_or_differ_in_a_bit(tmp_path):
    write_run(tmp_path / "a" / "run")
    write_run(tmp_path / "b" / "run")
    write_run(tmp_path / "c" / "run", values=(1.0, 2.0000002))
    first, same, other = (final_state(tmp_path / name / "run") for name in "abc")
    assert differences(first, same) == []
    names = [".checkpoints/step-00000002/model.safetensors", ".checkpoints/step-00000002/optimizer.bin"]
    found = differences(first, other)
    assert [any(x.startswith(name) for x in found) for name in (*names, ".model/model.safetensors")] == [True] * 3
    (tmp_path / "b" / "run" / ".model.tmp").write_text("left")
    assert differences(first, final_state(tmp_path / "b" / "run")) == ["." + ".model.tmp"]


def test_bits_count_not_values():
    nan, other = torch.tensor(float("nan")), torch.tensor(-0.0)
    assert differences(nan, nan.clone()) == [] and differences(torch.tensor(0.0), other) == [""]
    assert differences(torch.ones(2), torch.ones(2, dtype=torch.float64)) == [""]
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == [".a.1"] and differences([1], [1, 2]) == [""]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


PLANTED = {
    "cut weights": (lambda c: cut(c / "model.safetensors"), "model.safetensors has changed or is cut off"),
    "a file is missing": (lambda c: (c / "optimizer.bin").unlink(), "optimizer.bin is missing"),
    "a file too many": (lambda c: (c / "half").write_text(""), "half is not in the manifest"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), f"has no {MANIFEST}"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_damaged_checkpoint_is_noticed(tmp_path, fault):
    checkpoint = write_run(tmp_path / "run")
    whole = final_state(tmp_path / "run")
    assert damage(checkpoint) == [] == broken_promises(tmp_path / "run", "step-*", whole)
    plant, words = PLANTED[fault]
    plant(checkpoint)
    assert [words in problem for problem in broken_promises(tmp_path / "run", "step-*", whole)] == [True]


def test_half_a_model_and_cut_files_are_noticed(tmp_path):
    write_run(tmp_path / "run")
    run, whole = tmp_path / "run", final_state(tmp_path / "run")
    cut(run / "model" / "model.safetensors")
    (run / "metrics.json").write_text("")
    (run / "log.jsonl").write_text('{"step": 1\n{"step": 2}\n{"ste')
    found = broken_promises(run, "step-*", whole)
    assert len(found) == 3 and found[1:] == ["metrics.json is cut off", "log.jsonl, line 1 is cut off"]
    (run / "model" / "model.safetensors").unlink()
    assert "model: .model.safetensors" in broken_promises(run, "step-*", whole)


@pytest.fixture
def in_files(tmp_path):
    """Task that writes ten files, one after the other, each beside its place first."""

    def task():
        for number in range(10):
            (tmp_path / "out" / "part").write_text("x")
            os.replace(tmp_path / "out" / "part", tmp_path / "out" / str(number))

    (tmp_path / "out").mkdir()
    return task


def test_a_kill_comes_before_the_operation_that_it_names(in_files, tmp_path):
    counts, out = tmp_path / "counts", tmp_path / "out"
    run_whole(counting(in_files, out, counts), tmp_path / "log")
    assert counts.read_text() == "20"
    for path in out.iterdir():
        path.unlink()
    ended = Process(killed_before(in_files, out, 8), tmp_path / "log").wait()
    assert ended.killed and sorted(x.name for x in out.iterdir()) == ["0", "1", "2", "part"]


def test_kills_at_a_time_and_at_a_sight(tmp_path):
    def wait():
        (tmp_path / "seen").write_text("")
        signal.pause()

    assert Process(wait, tmp_path / "log").wait(after(0.05)).killed
    assert Process(wait, tmp_path / "log").wait(soon_after_seen(tmp_path, "se*", 1, 0.01)).killed


def test_a_run_that_fails_says_why(tmp_path):
    def fail():
        raise ValueError("the reason")

    with pytest.raises(RunError, match="the reason"):
        run_whole(fail, tmp_path / "log")


@pytest.fixture
def planted_script(monkeypatch):
    """Function that puts a task in place of the training scripts, and makes every kill one at an operation."""

    def put(task):
        monkeypatch.setattr(rounds, "run_script", lambda name, words: task())
        monkeypatch.setattr(rounds, "MOMENTS", ("operation",))

    return put


def once_more(run, whole):
    """A run that goes on, but in the other bits if it was killed."""
    again = (run / "model").exists() or any(run.parent.glob("run/part*"))
    run.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        (run / f"part{number}").write_text("again" if again and not whole else "x")


@pytest.mark.parametrize("good", [True, False])
def test_a_run_that_does_not_come_back_the_same_is_noticed(tmp_path, planted_script, good):
    place = tmp_path / "round"
    run_whole(lambda: once_more(tmp_path / "whole" / "run", True), tmp_path / "log")
    whole = rounds.Whole(final_state(tmp_path / "whole" / "run"), 1.0, 4)
    planted_script(partial(once_more, place / "run", good))
    place.mkdir()
    outcome = rounds.run_round("vqvae", tmp_path, place, whole, seeded(1), most=1)
    assert len(outcome.kills) == 1 and bool(outcome.problems) != good
    assert good or outcome.problems[0].startswith("differs: .part")


def test_half_of_a_saved_folder_is_noticed(tmp_path):
    folder = tmp_path / "saved"

    def save():
        (folder / "out").mkdir(parents=True)
        for name in "ab":
            (folder / "out" / name).write_text(name)

    save()
    whole = visible_state(folder)
    (folder / "out" / "b").unlink()
    assert check_and_repeat(save, folder, whole, tmp_path / "log") == ["half of the folder is there: ['out/a']"]
    assert visible_state(folder) == whole and check_and_repeat(save, folder, whole, tmp_path / "log") == []


def test_kills_are_shared_out_whole():
    counts = shares(100, dict.fromkeys(SCRIPTS, 2) | {"save": 1})
    assert sum(counts.values()) == 100 and counts["save"] in (5, 6) and min(counts[name] for name in SCRIPTS) >= 11
    assert shares(3, {"a": 1, "b": 1}) == {"a": 2, "b": 1} and shares(5, {}) == {}


def test_unknown_scripts_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--scripts", "x"])
    assert "unknown x" in capsys.readouterr().err
