"""Suites, keys, statistics, tables and pages of ablations; who runs what is in test_ablation_runs."""

import importlib.util
import json
import math
import random

import pytest
import yaml

from transformers_ait.engine.ablation.page import publish, published_table, write_page
from transformers_ait.engine.ablation.plan import content_key, measurements, plan
from transformers_ait.engine.ablation.report import difference_text, markdown_table, write_report
from transformers_ait.engine.ablation.runs import RunCache
from transformers_ait.engine.ablation.statistics import paired_difference, student_t_quantile, summarize
from transformers_ait.engine.ablation.suite import SuiteError, load_suite, required_steps
from transformers_ait.engine.ablation.tables import make_table
from transformers_ait.engine.recipes.reading import RecipeError

RECIPE = {
    "data": {"dataset": "synthetic_rooms", "options": {"num_train": 4}},
    "optim": {"lr": 1.0e-3},
    "run": {"output": "runs/x", "steps": 3, "batch_size": 2},
}
SUITE = {
    "title": "A title",
    "claim": "Less is more.",
    "metric": "rmse",
    "unit": "m",
    "seeds": [0, 1, 2],
    "steps": {
        "tokenizer": {"script": "vqvae", "recipe": "vqvae.yaml"},
        "model": {"script": "depth", "recipe": "depth.yaml", "set": {"model.depth_tokenizer": "${tokenizer}"}},
    },
    "evaluate": "model",
    "ceiling": "tokenizer",
    "baseline": "plain",
    "variants": {
        "plain": None,
        "soft": {"config": {"soft_decode": True}, "expect": "better"},
        "slow": {"set": {"tokenizer": {"optim.lr": 1.0e-4}}, "expect": "worse"},
    },
}


@pytest.fixture
def write(tmp_path):
    """Write a suite with changes by dotted key, None of which removes it, and its recipes; returns its path."""
    for name in ("vqvae", "depth"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(RECIPE))

    def written(changes=None, name="suite"):
        values = json.loads(json.dumps(SUITE))
        for dotted, value in (changes or {}).items():
            *path, last = dotted.split("/")
            place = values
            for part in path:
                place = place[part]
            place[last] = value
            if value is ...:
                del place[last]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return written


def fake_records(suite, figures):
    """Records of measurements; `figures` gives a variant's value per seed, ceilings are 0.5."""
    found = {}
    for run in plan(suite):
        if run.ceiling is not None:
            found[run.ceiling.key] = {"figures": {suite.metric: 0.5}, "constants": {}}
        if run.seed < len(figures[run.variant]):
            value = figures[run.variant][run.seed]
            constants = {"constant": {suite.metric: 3.0}, "constant, median": {suite.metric: 2.5}}
            found[run.result.key] = {"figures": {suite.metric: value}, "constants": constants}
    return found


def test_quantiles_are_those_of_the_tables():
    # Two-sided 95 % of printed tables.
    for degrees, quantile in {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 30: 2.0423}.items():
        assert student_t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-4)
    assert student_t_quantile(0.5, 7) == pytest.approx(0, abs=1e-12)


def test_statistics_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 3, 4, 7, 8, 51):
        for probability in (0.6, 0.9, 0.975, 0.999):
            expected = stats.t.ppf(probability, degrees)
            assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9)
    source = random.Random(0)
    first, second = ({seed: source.gauss(1, 0.3) for seed in range(5)} for _ in range(2))
    found = paired_difference(first, second)
    test = stats.ttest_rel(list(first.values()), list(second.values()))
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9)


def test_difference_is_paired_by_seed_as_written_out():
    values, baseline = {0: 1.0, 1: 2.0, 2: 4.0, 9: 100.0}, {2: 3.0, 1: 1.5, 0: 0.0, 8: 0.0}
    found = paired_difference(values, baseline)  # differences 1, 0.5, 1
    deviation = math.sqrt((2 * (1 / 6) ** 2 + (1 / 3) ** 2) / 2)
    assert found.count == 3 and found.mean == pytest.approx(2.5 / 3)
    assert found.half_width == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)
    # Planted errors: n in place of n - 1, the normal distribution, or unpaired seeds are not what is returned.
    wrong = (4.302653 * deviation * math.sqrt(2 / 3) / math.sqrt(3), 1.96 * deviation / math.sqrt(3))
    assert all(abs(found.half_width - x) > 0.05 for x in wrong)
    shifted = paired_difference({0: 2.0, 1: 4.0, 2: 1.0}, baseline)
    assert shifted.half_width != pytest.approx(found.half_width, rel=0.1)


def test_one_seed_has_no_interval():
    assert summarize([2.0]).deviation is None
    found = paired_difference({0: 2.0}, {0: 1.0})
    assert found.interval is None and "no interval" in difference_text(found)
    assert paired_difference({0: 2.0}, {1: 1.0}) is None
    with pytest.raises(ValueError, match="at least one"):
        summarize([])
    for probability, degrees in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="probability|degrees"):
            student_t_quantile(probability, degrees)


def test_keys_follow_from_the_content_alone(write):
    def keys(changes=None, **options):
        return [run.result.key for run in plan(load_suite(write(changes), **options))]

    first = keys()
    assert first == keys() and len(set(first)) == 9
    reordered = dict(reversed([*RECIPE["data"].items()]))
    assert content_key(RECIPE) == content_key(dict(reversed([*(RECIPE | {"data": reordered}).items()])))
    assert content_key({"a": 1.0}) == content_key({"a": 1}) != content_key({"a": 1.5})
    # What is learned does not depend on where it lies, how often it is logged, and what the page says of it.
    same = {"title": "Another", "steps/model/set": {"model.depth_tokenizer": "${tokenizer}", "run.output": "elsewhere"}}
    assert keys(same) == first
    same = {"steps/model/set": {"model.depth_tokenizer": "${tokenizer}", "run.log_every": 7, "data.in_memory": True}}
    assert keys(same) == first
    # Another seed, or another tokenizer, is another model.
    assert not set(first) & set(keys(seeds=[7, 8, 9]))
    other = keys({"steps/tokenizer/set": {"optim.lr": 0.5}})
    assert set(other) & set(first) == set(first[2::3])  # "slow" sets the rate itself
    assert not set(first) & set(keys({"data": {"split": "test"}}))


def test_variants_share_what_is_the_same(write):
    suite = load_suite(write())
    trainings = {x.key: x for measurement in measurements(suite) for x in measurement.training.chain()}
    assert sorted(training.name for training in trainings.values()) == ["model"] * 6 + ["tokenizer"] * 6
    runs = {(run.variant, run.seed): run for run in plan(suite)}
    assert runs["plain", 0].result.training == runs["soft", 0].result.training
    assert runs["plain", 0].result.key != runs["soft", 0].result.key
    assert runs["plain", 0].ceiling == runs["soft", 0].ceiling != runs["slow", 0].ceiling
    chain = runs["slow", 1].result.training.chain()
    assert [x.name for x in chain] == ["tokenizer", "model"] and chain[0].values["optim"]["lr"] == 1e-4
    assert chain[1].values["model"]["depth_tokenizer"] == f"${{{chain[0].key}}}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "rsme"}, ["metric", "rsme", "rmse"]),
        ({"colour": 1}, ["colour", "Keys", "claim"]),
        ({"claim": ...}, ["claim is missing"]),
        ({"seeds": [1, 1]}, ["seeds", "[1, 1]"]),
        ({"seeds": []}, ["seeds", "[]"]),
        ({"seeds": 3}, ["seeds", "3"]),
        ({"baseline": "none"}, ["baseline", "none", "plain"]),
        ({"evaluate": "nothing"}, ["variants.plain.evaluate", "nothing", "tokenizer"]),
        ({"steps/model/script": "train"}, ["steps.model.script", "train", "vqvae"]),
        ({"steps/model/recipe": ...}, ["steps.model.recipe is missing"]),
        ({"steps/model/set": {"model.depth_tokenizer": "${other}"}}, ["model", "${other}", "tokenizer"]),
        ({"steps/tokenizer/set": {"data.dataset": "${model}"}}, ["circle", "tokenizer"]),
        ({"variants/soft/expect": "great"}, ["variants.soft.expect", "great", "better"]),
        ({"variants/soft/sets": {}}, ["variants.soft.sets", "set"]),
        ({"variants/slow/set": {"tokeniser": {}}}, ["variants.slow.set", "tokeniser"]),
        ({"variants/slow/set": {"tokenizer": {"optim.rate": 1}}}, ["optim.rate", "'slow'", "'tokenizer'"]),
        ({"variants/slow/set": {"tokenizer": {"optim.lr": "fast"}}}, ["optim.lr", "'slow'", "fast"]),
        ({"data": {"rows": 3}}, ["data.rows", "limit"]),
        ({"variants": {}}, ["variants", "section"]),
    ],
)
def test_bad_suites_get_errors_that_name_the_key(write, changes, words):
    with pytest.raises(RecipeError) as error:
        load_suite(write(changes))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_files_that_are_missing_or_no_suite(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="suites"):
        load_suite(tmp_path / "nothing.yaml")
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        load_suite(write({"steps/model/recipe": "none.yaml"}))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SuiteError, match="section"):
        load_suite(tmp_path / "list.yaml")
    with pytest.raises(SuiteError, match="seeds"):
        load_suite(write(), seeds=[-1])


@pytest.mark.slow
def test_table_and_verdicts(write, tmp_path):
    suite = load_suite(write())
    figures = {"plain": [1.0, 1.2, 1.1], "soft": [0.9, 1.11, 1.0], "slow": [1.0, 1.3, 1.0]}
    records = fake_records(suite, figures)
    table = make_table(suite, records.get)
    text = markdown_table(table)
    assert "| plain | 1.100 ± 0.100 | - | - | 0.500 ± 0.000 | 3 of 3 |" in text
    assert "-0.097 [-0.111, -0.082] | holds |" in text
    assert "| slow | 1.100 ± 0.173 | +0.000 [-0.248, +0.248] | undecided" in text
    assert "constant reaches 2.500" in text and table.missing == 0
    reports = {
        path.suffix: path.read_bytes() for path in (write_report(table, tmp_path / "t"), tmp_path / "t/suite.svg")
    }
    write_report(table, tmp_path / "t")
    assert reports[".svg"] == (tmp_path / "t/suite.svg").read_bytes() and b"NaN" not in reports[".svg"]
    found = json.loads((tmp_path / "t/suite.json").read_text())
    assert found["variants"]["soft"]["interval"] == pytest.approx([-0.1110, -0.0823], abs=1e-4)
    # Of a figure that should be large, the same difference is against the claim.
    larger = load_suite(write({"metric": "d1"}))
    assert "does not hold: the opposite" in markdown_table(make_table(larger, fake_records(larger, figures).get))
    alike = load_suite(write({"variants/soft/expect": "alike", "variants/slow/expect": "alike"}))
    verdicts = [line.verdict for line in make_table(alike, fake_records(alike, figures).get).lines]
    assert verdicts == ["", "differs: better", "alike: no difference shown"]


def test_what_is_not_run_is_said(write):
    suite = load_suite(write())
    nothing = make_table(suite, {}.get)
    assert not nothing.is_started and nothing.missing == 9 and markdown_table(nothing).count("not run yet") >= 5
    part = make_table(suite, fake_records(suite, {"plain": [1.0], "soft": [0.5], "slow": []}).get)
    text = markdown_table(part)
    assert part.missing == 7 and "1 of 3" in text and "0 of 3" in text
    assert "-0.500 (no interval with fewer than 2 seeds)" in text


def test_published_records_give_the_page(write, tmp_path):
    suite = load_suite(write())
    cache, evidence = RunCache(tmp_path / "cache"), tmp_path / "evidence"
    (tmp_path / "cache/measured").mkdir(parents=True)
    figures = {"plain": [1.0, 1.2, 1.1], "soft": [0.9, 1.11, 1.0], "slow": [1.0, 1.3]}
    common = {"date": "2026-01-02T03:04:05+00:00", "machine": "A", "threads": 1, "seconds": 60.0}
    for key, record in fake_records(suite, figures).items():
        content = {"key": key, **common, **record}
        (tmp_path / f"cache/measured/{key}.json").write_text(json.dumps(content))
    assert publish(suite, cache, evidence).read_text().count("\n") == 14
    assert publish(suite, RunCache(tmp_path / "empty"), evidence).read_text().count("\n") == 14  # kept
    assert published_table(suite, evidence).missing == 1
    suites = tmp_path / "training/suites"
    suites.mkdir(parents=True)
    (suites / "introduction.md").write_text("# Intro\n")
    for name in ("suite", "vqvae", "depth"):
        (suites / f"{name}.yaml").write_text((tmp_path / f"{name}.yaml").read_text())
    for name in ("vqvae", "depth"):  # recipes lie deeper than suites
        (suites / "recipes").mkdir(exist_ok=True)
        (suites / f"{name}.yaml").rename(suites / f"recipes/{name}.yaml")
    text = (suites / "suite.yaml").read_text()
    text = text.replace("recipe: vqvae", "recipe: recipes/vqvae").replace("recipe: depth", "recipe: recipes/depth")
    (suites / "suite.yaml").write_text(text)
    (suites / "later.yaml").write_text(text.replace("A title", "Later on"))
    page = write_page(evidence, suites).read_text()
    assert "python training/ablate.py training/suites/suite.yaml" in page and "![A title" in page
    assert "[Less is more.](#a-title) | soft: holds" in page and "**Unfinished:** 1 runs" in page
    assert "14 runs, 14 minutes in all, on A, 1 thread; 2026-01-02." in page
    assert "| [Less is more.](#later-on) | not run yet |" in page and "**Not run yet.**" in page


@pytest.mark.slow
def test_suites_of_the_project_are_valid(repository):
    paths = sorted((repository / "training/suites").glob("*.yaml"))
    assert len(paths) >= 10
    places = [load_suite(path).place for path in paths]
    assert len(set(places)) == len(places)
    for path in paths:
        suite = load_suite(path)
        finished = published_table(suite, repository / "docs/evidence").missing == 0
        assert len(suite.seeds) >= 3 and suite.paper and (suite.reading or not finished)
        for variant in suite.variants.values():
            for name in required_steps(suite, variant):
                assert suite.steps[name].values["run"]["checkpoint_every"] <= 100


@pytest.mark.slow
def test_committed_page_is_what_its_records_give(repository, tmp_path):
    """Byte for byte; pictures as far as the same matplotlib drew them."""
    matplotlib = pytest.importorskip("matplotlib")
    evidence = tmp_path / "docs/evidence"
    evidence.mkdir(parents=True)
    for path in (repository / "docs/evidence").glob("*.jsonl"):
        (evidence / path.name).write_text(path.read_text())
    assert (
        write_page(evidence, repository / "training/suites").read_bytes()
        == (repository / "docs/evidence.md").read_bytes()
    ), "run python training/ablate.py --page"
    for path in sorted(evidence.glob("tables.json")) + sorted(evidence.glob("*.svg")):
        committed = (repository / "docs/evidence" / path.name).read_text()
        if path.suffix == ".json" or f"Matplotlib v{matplotlib.__version__}" in committed:
            assert path.read_text() == committed, path.name


def test_command_line(repository, write, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("ablate", repository / "training/ablate.py")
    ablate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ablate)
    path, cache = str(write()), str(tmp_path / "cache")
    assert ablate.main([path, "--dry-run", "--cache", cache]) == 0
    assert "12 trainings and 15 measurements are left, about" in capsys.readouterr().out
    assert ablate.main([path, "--table", "--seeds", "0", "1", "--cache", cache]) == 0
    assert "0 of 2" in capsys.readouterr().out
    for arguments, word in (
        ([], "Name a suite"),
        (["none.yaml"], "none.yaml"),
        ([str(write({"metric": "x"}))], "metric"),
    ):
        assert ablate.main([*arguments, "--dry-run"]) == 2
        assert word in capsys.readouterr().err
