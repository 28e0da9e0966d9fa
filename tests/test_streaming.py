"""Streamed training data: what a pass reads, how readers share it, and that reading and training resume exactly."""

import itertools
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import transformers_ait.data  # noqa: F401 - registers synthetic_rooms
from transformers_ait.engine.loop.streaming import RowStream, StreamBatches, StreamPosition, StreamReader
from transformers_ait.engine.recipes.reading import RecipeError, load_recipe, recipe_dict
from transformers_ait.engine.recipes.scripts import InstanceRecipe, VQVAERecipe
from transformers_ait.engine.tasks.instances import train_instance
from transformers_ait.engine.tasks.vqvae import VQVAEMapTask, train_vqvae

ROWS, SHARDS, BUFFER = 57, 5, 8
START = StreamPosition()


@pytest.fixture(scope="module")
def stream():
    return RowStream(datasets.Dataset.from_dict({"x": list(range(ROWS))}).to_iterable_dataset(num_shards=SHARDS))


def take(stream, count, reader=0, readers=1, position=START, seed=0):
    return list(itertools.islice(StreamReader(stream, seed, BUFFER, reader, readers, position), count))


def numbers(taken):
    return [row["x"] for row, _, _ in taken]


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_readers_share_every_pass_without_loss(stream, readers):
    seen = []
    for reader in range(readers):
        taken = take(stream, 2 * ROWS, reader, readers)
        own = [x for (row, _, position), x in zip(taken, numbers(taken), strict=True)]
        # A pass ends where the position says that the next one begins.
        length = next(i for i, (_, _, position) in enumerate(taken) if position.epoch == 1) + 1
        seen += own[:length]
    assert sorted(seen) == list(range(ROWS))


def test_order_is_shuffled_anew_every_pass_and_depends_on_the_seed(stream):
    twice = numbers(take(stream, 2 * ROWS))
    assert sorted(twice[:ROWS]) == sorted(twice[ROWS:]) == list(range(ROWS))
    assert twice[:ROWS] != twice[ROWS:] and twice[:ROWS] != list(range(ROWS))
    assert twice == numbers(take(stream, 2 * ROWS)) != numbers(take(stream, 2 * ROWS, seed=1))


@pytest.mark.parametrize("readers", [1, 2])
def test_reading_goes_on_exactly_from_every_position(stream, readers):
    whole = take(stream, 130, 0, readers)
    for stop in range(0, 130, 7):
        rest = take(stream, 129 - stop, 0, readers, whole[stop][2])
        assert rest == whole[stop + 1 :], stop


def test_augmentation_seeds_belong_to_the_row_and_the_pass(stream):
    taken = take(stream, 2 * ROWS)
    seeds = [seed for _, seed, _ in taken]
    assert len(set(seeds)) == 2 * ROWS
    by_row = {row["x"]: seed for row, seed, _ in taken[:ROWS]}
    half = take(stream, 20, 1, 2)
    assert all(by_row[row["x"]] == seed for row, seed, position in half if position.epoch == 0)


def test_too_few_shards_are_refused(stream):
    with pytest.raises(RecipeError, match="at least one shard for each of 6 readers.*has 5"):
        take(stream, 1, 0, 6)


def test_an_empty_stream_is_refused():
    rows = datasets.Dataset.from_dict({"x": [1]}).to_iterable_dataset().filter(lambda row: False)
    with pytest.raises(RecipeError, match="finds no row"):
        take(RowStream(rows), 1)


def loader(stream, workers, positions, batches):
    data = StreamBatches(
        stream,
        lambda row: {"x": torch.tensor(stream.column(row, "x")), "draw": torch.rand(())},
        lambda samples: {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]},
        micro_batch=3,
        seed=0,
        buffer=BUFFER,
        rank=0,
        processes=1,
        positions=positions,
        batches=batches,
    )
    return DataLoader(data, batch_size=None, num_workers=workers, generator=torch.Generator())


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_go_on_exactly_though_workers_read_ahead(stream, workers):
    def run(positions, batches, count):
        positions, found = dict(positions), []
        for worker, position, batch in itertools.islice(loader(stream, workers, positions, batches), count):
            positions[worker] = position
            found.append((batch["x"].tolist(), batch["draw"].tolist()))
        return positions, found

    whole = run({}, 0, 25)[1]
    for stop in (1, 8, 13):
        positions, first = run({}, 0, stop)
        assert first + run(positions, stop, 25 - stop)[1] == whole
    assert run({}, 1, 24)[1] != whole[1:], "positions matter"


def test_pictures_stay_encoded_until_they_are_needed():
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [picture]}, features).to_iterable_dataset()
    stream = RowStream(rows)
    row = next(stream.read(0, 0))
    assert isinstance(row["image"], dict) and row["image"]["bytes"]
    assert np.array_equal(np.asarray(stream.column(row, "image")), np.asarray(picture))


# Training


RECIPES = Path(__file__).parents[1] / "training" / "recipes"
RUN = ["--run.batch_size=2", "--run.log_every=1", "--run.checkpoint_every=2", "--run.panels=0", "--data.streaming=true"]
SMALL = ["--model.config", "{image_size: 32, downsample_ratio: 8, num_codes: 16, code_dim: 8}"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Recipes whose data are rooms in three Parquet files, by name."""
    folder = tmp_path_factory.mktemp("parquet")
    sizes = {"height": 32, "width": 48, "num_train": 9, "num_validation": 0, "num_test": 0}
    rows = datasets.load_dataset("synthetic_rooms", split="train", cache_dir=str(folder / "cache"), **sizes)
    for number in range(3):
        rows.shard(3, number).to_parquet(folder / f"rooms-{number}.parquet")
    paths = [str(folder / f"rooms-{number}.parquet") for number in range(3)]
    options = {"data_files": {"train": paths, "validation": paths[:1]}, "cache_dir": str(folder / "cache")}
    changed = {}
    for name in ("vqvae-tiny-rooms-depth", "tiny-rooms-detection"):
        recipe = load_recipe(VQVAERecipe if "vqvae" in name else InstanceRecipe, [str(RECIPES / f"{name}.yaml")])
        values = recipe_dict(recipe) | {"data": {"dataset": "parquet", "options": options}}
        changed[name] = folder / f"{name}.yaml"
        changed[name].write_text(yaml.safe_dump(values))
    return changed


def vqvae_arguments(folder, files, *more):
    path = str(files["vqvae-tiny-rooms-depth"])
    run = [*RUN, "--run.steps=6", "--data.eval_limit=2", "--data.shuffle_buffer=2", "--run.output", str(folder)]
    return [path, *run, *SMALL, *more]


def train_streamed(folder, files, *more):
    train_vqvae(load_recipe(VQVAERecipe, vqvae_arguments(folder, files, *more)))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_training_resumes_in_the_middle_to_the_bit(files, tmp_path, monkeypatch, workers):
    more = [f"--data.num_workers={workers}"]
    train_streamed(tmp_path / "whole", files, *more)
    loss, calls = VQVAEMapTask.loss, []

    def breaking(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(VQVAEMapTask, "loss", breaking)
        train_streamed(tmp_path / "broken", files, *more)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train_streamed(tmp_path / "broken", files, *more, "--run.resume=true")
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    train_streamed(tmp_path / "other", files, *more, "--run.seed=1")
    assert (tmp_path / "other" / "log.jsonl").read_text() != logs[0]


@pytest.mark.slow
def test_a_streamed_run_keeps_its_readers(files, tmp_path):
    train_streamed(tmp_path / "run", files)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    with pytest.raises(RecipeError, match=r"1 processes with 1 readers each, now there are 1\s+with 2"):
        train_streamed(tmp_path / "run", files, "--run.resume=true", "--data.num_workers=2")


def test_objects_can_be_streamed(files, tmp_path):
    model = (
        "{image_size: 64, num_bins: 20, num_objects: 4, decoder_config: {hidden_size: 16, num_attention_heads: 2, "
        "intermediate_size: 32, num_encoder_layers: 1, num_decoder_layers: 1, max_positions: 20}}"
    )
    recipe = [str(files["tiny-rooms-detection"]), *RUN, "--run.steps=2", "--data.eval_limit=2"]
    start = ["--model.initialize_from", "null", "--model.config", model, "--run.output", str(tmp_path / "run")]
    folder = train_instance(load_recipe(InstanceRecipe, [*recipe, *start]))
    assert (folder / "config.json").exists()
    assert "box_AP" in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.eval_limit", "null"], "streaming needs eval_limit"),
        (["--run.steps=null", "--run.epochs=2"], "run.epochs needs training data of known length"),
        (["--maps=masks", "--model.config.ignore_zero=false"], "not for tokenizers of masks"),
        (["--data.num_workers=4"], "at least one shard for each of 4 readers"),
    ],
)
def test_what_streams_cannot_do_is_said(files, tmp_path, more, words):
    with pytest.raises(RecipeError, match=words):
        train_streamed(tmp_path / "run", files, *more)
