"""The torture harness catches what it is for, and draws the same cases from the same seed."""

import os
import random
import signal

import numpy as np
import pytest
from torture import annotations, commands, files, models, pictures
from torture.__main__ import jobs_of, main
from torture.case import Case, Kind, Place, Refused, run_command
from torture.judge import Limits, generator, run_case, verdict
from torture.kinds import KINDS
from torture.report import failures, markdown, table
from torture.workers import run_all

MIB = 2**20


def refuse(message, error=ValueError):
    """A call that ends in an error."""

    def call():
        raise error(message)

    return call


def half_written(place):
    def call():
        (place.outputs / "model.safetensors").write_bytes(b"half")
        raise ValueError("size must be positive.")

    return call


def swallow_everything():
    while True:
        try:
            signal.pause()
        except Exception:
            continue


def deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.pause()


PLANTED = {
    "good": (lambda place: lambda: None, None),
    "refused": (lambda place: refuse("size must be positive."), None),
    "another type": (lambda place: refuse("size", KeyError), "the error is a KeyError"),
    "unnamed": (lambda place: refuse("must be positive."), "the message names none of size"),
    "empty": (lambda place: refuse(""), "the message names none of size"),
    "half-written": (half_written, "it left out/model.safetensors"),
    "crash": (lambda place: os.abort, "the process died, exit code -6"),
    "exit": (lambda place: lambda: os._exit(3), "the process died, exit code 3"),
    "hoard": (lambda place: lambda: np.ones(90 * MIB, np.uint8), "it takes more than 0.0625 GiB"),
    "hoard, hidden": (lambda place: hide_memory_error, "it takes more than 0.0625 GiB"),
    "reserve": (lambda place: lambda: np.empty(90 * MIB, np.uint8), "it takes more than 0.0625 GiB"),
    "usage": (lambda place: lambda: run_command(lambda words: 2, ["x"]), "the message names none of size"),
    "traceback": (lambda place: lambda: run_command(refuse_words, ["size"]), "the error is a Escaped"),
}


def hide_memory_error():
    try:
        np.ones(2**40, np.uint8)
    except MemoryError as error:
        raise ValueError("size is damaged.") from error


def refuse_words(words):
    raise ValueError(f"{words} of size")


def planted(name, build):
    return Kind(lambda rng, place: Case(f"{name} {rng.random():.6f}", build(place), ("size",)), 1)


@pytest.fixture
def run(tmp_path):
    """Function that runs jobs of planted kinds in a process of their own."""

    def function(jobs, kinds, seconds=8.0):
        return list(run_all(jobs, kinds, 0, tmp_path, Limits(seconds=seconds, bytes=64 * MIB)))

    return function


@pytest.mark.slow
def test_every_planted_fault_is_caught_and_the_run_goes_on(run):
    kinds = {name: planted(name, build) for name, (build, _) in PLANTED.items()}
    outcomes = run([(name, 0) for name in kinds], kinds)
    assert {outcome.kind: outcome.failure for outcome in outcomes} == {name: why for name, (_, why) in PLANTED.items()}
    assert all("KeyError" in outcome.where for outcome in outcomes if outcome.kind == "another type")
    text = markdown(outcomes, 0, 1.0, "python", Limits())
    assert (
        "KeyError 1" in text
        and len(failures(outcomes, 0)) == 11
        and table(outcomes)[-1].startswith("| all | 13 | 11 |")
    )


def test_a_hang_is_caught_though_the_case_swallows_errors(run):
    outcomes = run([("hang", 0)], {"hang": planted("hang", lambda place: swallow_everything)}, seconds=0.3)
    assert outcomes[0].failure == "it takes more than 0.3 s" and outcomes[0].result == "Hang"


def test_a_process_that_is_deaf_to_signals_is_killed(run, monkeypatch):
    monkeypatch.setattr("torture.workers.GRACE", 0.2)
    kinds = {"deaf": planted("deaf", lambda place: deaf), "good": planted("good", lambda place: lambda: None)}
    outcomes = run([("deaf", 0), ("good", 1)], kinds, seconds=0.5)
    assert "deaf to signals" in outcomes[0].failure and outcomes[1].failure is None


def test_complete_files_may_stay_where_a_case_says_so(run):
    def build(rng, place):
        def call():
            np.save(place.outputs / "whole.npy", np.zeros(3))
            (place.outputs / "half.npy").write_bytes(b"\x93NUMPY")
            raise OSError("size")

        return Case("files", call, ("size",), keeps_complete=True)

    assert run([("files", 0)], {"files": Kind(build, 1)})[0].failure == "it left out/half.npy"


def test_an_earlier_file_must_stay(run):
    def build(rng, place):
        path = place.outputs / "earlier"
        path.write_text("x")
        return Case("files", lambda: (path.unlink(), refuse("size")()), ("size",))

    assert run([("files", 0)], {"files": Kind(build, 1)})[0].failure == "it left out/earlier removed"


def test_a_traceback_in_a_message_is_no_message():
    case = Case("x", lambda: None, ("size",))
    said = Refused(2, "Traceback (most recent call last):\n size")
    assert verdict(said, case, 0, "", Limits()) == "the command ends in a traceback"
    assert verdict(Refused(2, "error: size"), case, 0, "", Limits()) is None


CHEAP = {
    "images": pictures.image_case,
    "settings": pictures.setting_case,
    "depth-maps": pictures.map_case,
    "coco": annotations.coco_or_categories,
    "configurations": models.config_case,
    "recipes": commands.recipe_case,
    "motion-files": files.motion_case,
}


@pytest.mark.parametrize("name", CHEAP)
def test_the_same_seed_draws_the_same_cases(name, tmp_path):
    def drawn(seed):
        cases = []
        for number in range(12):
            place = Place(tmp_path / f"{seed}-{random.random()}", tmp_path)
            cases.append(CHEAP[name](generator(name, seed, number), place).what.replace(str(place.folder), ""))
        return cases

    first = drawn(1)
    assert first == drawn(1) and first != drawn(2) and len(set(first)) > 6


def test_outcomes_are_those_of_the_number_alone(tmp_path):
    def outcome(number):
        found = run_case("coco", KINDS, 3, number, tmp_path, tmp_path, Limits())
        return found.what, found.result, found.message

    forwards = [outcome(number) for number in range(20)]
    assert [outcome(number) for number in reversed(range(20))] == forwards[::-1]


def test_cases_are_shared_out_whole():
    for cases in (15, 500, 10_000):
        jobs = jobs_of(KINDS, cases)
        assert len(jobs) == cases and {name for name, _ in jobs} == set(KINDS)


def test_a_few_real_cases_in_a_run(tmp_path, capsys):
    report = tmp_path / "report.md"
    assert main(["--kinds", "settings,recipes", "--cases", "40", "--report", str(report)]) == 0
    assert "40 cases" in capsys.readouterr().out and "| all | 40 | 0 |" in report.read_text()


def test_unknown_kinds_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--kinds", "x"])
    assert "unknown x" in capsys.readouterr().err
