"""Images with dense maps: rows that do not fit are named, and every form of a column gives the same native maps."""

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from transformers_ait.data.augmentation_dense import dense_training_transform, map_training_transform
from transformers_ait.engine.loop.streaming import RowStream
from transformers_ait.engine.recipes.reading import RecipeError
from transformers_ait.engine.recipes.sections import DataRecipe
from transformers_ait.engine.tasks.dense import augmented_dense_sample
from transformers_ait.engine.tasks.dense_data import (
    DenseRows,
    StreamedDenseRows,
    evaluate_maps,
    explain_crop,
    has_valid_pixels,
    load_dense_rows,
)
from transformers_ait.map_kinds_ait import MAP_KINDS

DEPTH = {"depth": MAP_KINDS["depth"]}
ALL = {**DEPTH, "normals": MAP_KINDS["normals"], "semantic": MAP_KINDS["classes"], "flow": MAP_KINDS["values"]}
FEATURES = datasets.Features({"image": datasets.Image(), "depth": datasets.Image()})
HEIGHT, WIDTH = 12, 16


def table(count, image_size=(40, 32), depth_size=(40, 32)):
    images = [Image.new("RGB", image_size)] * count
    depths = [Image.fromarray(np.full(depth_size[::-1], 1000, dtype=np.uint16))] * count
    return datasets.Dataset.from_dict({"image": images, "depth": depths}, FEATURES)


def maps_of_all_kinds():
    """A row with a column of each kind, flow as nested lists, and its native maps; a hole in each."""
    rng = np.random.default_rng(0)
    millimetres = rng.integers(500, 5000, (HEIGHT, WIDTH)).astype(np.uint16)
    vectors = rng.normal(size=(HEIGHT, WIDTH, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    colours = np.rint((vectors + 1) * 127.5).astype(np.uint8)
    ids = rng.integers(0, 5, (HEIGHT, WIDTH)).astype(np.uint8)
    flow = rng.normal(size=(2, HEIGHT, WIDTH)).astype(np.float32)
    millimetres[3, 4], colours[3, 4], ids[3, 4], flow[:, 3, 4] = 0, 128, 255, np.nan
    vectors[3, 4] = 0
    features = datasets.Features(
        {
            **{name: datasets.Image() for name in ("image", "metres", "normals", "semantic")},
            "flow": datasets.Array3D((2, HEIGHT, WIDTH), "float32"),
        }
    )
    image = Image.fromarray(np.repeat(ids[..., None], 3, -1))
    pictures = {"metres": millimetres, "normals": colours, "semantic": ids}
    columns = {"image": [image], **{name: [Image.fromarray(pixels)] for name, pixels in pictures.items()}}
    rows = datasets.Dataset.from_dict({**columns, "flow": [flow]}, features)
    native = {
        "depth": torch.from_numpy(millimetres / 1000.0).float(),
        "normals": torch.from_numpy(vectors).permute(2, 0, 1).float(),
        "semantic": torch.from_numpy(ids).long(),
        "flow": torch.from_numpy(flow),
    }
    return rows, native


def same(found, expected):
    return found.shape == expected.shape and torch.allclose(found, expected, atol=0.01, equal_nan=True)


@pytest.mark.parametrize("form", ["plain", "in_memory", "streamed"])
def test_columns_of_every_kind_become_native_maps(form):
    rows, native = maps_of_all_kinds()
    columns = {"depth": "metres"}
    if form == "streamed":
        stream = RowStream(rows.to_iterable_dataset())
        found, index = StreamedDenseRows(stream, ALL, columns), next(stream.read(0, 0))
    else:
        found, index = DenseRows(rows, ALL, columns, in_memory=form == "in_memory"), 0
    for _ in range(2):  # the second time from memory
        maps = found.maps(index)
        assert list(maps) == list(ALL)
        assert all(same(maps[task], native[task]) for task in ALL), form
        assert all(maps[task].dtype == native[task].dtype for task in ALL)
    assert found.image(index).shape == (3, HEIGHT, WIDTH)


def test_maps_are_cut_and_resized_to_values_that_are_there():
    rows, native = maps_of_all_kinds()
    found = DenseRows(rows, ALL, {"depth": "metres"}, crop_columns=(2, 10), size=(6, 4)).maps(0)
    rows_taken, columns_taken = torch.arange(6) * 2 + 1, torch.arange(4) * 2 + 3  # nearest to the centres
    for task, expected in native.items():
        assert same(found[task], expected[..., rows_taken[:, None], columns_taken]), task
    # The comparison sees maps that are off by a pixel.
    assert not same(found["semantic"], native["semantic"][rows_taken[:, None], columns_taken - 1])


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"image_size": (24, 20), "depth_size": (24, 20)}, r"row 1 \(20 x 24 and 20 x 24 pixels\).*32.*train_size"),
        ({"depth_size": (48, 40)}, r"row 1 \(32 x 40 and 40 x 48 pixels\).*one size"),
    ],
)
def test_rows_that_cannot_be_cropped_are_named(sizes, words):
    transform = dense_training_transform(32, DEPTH)
    augmented_dense_sample(DenseRows(table(2), DEPTH), 1, transform)
    with pytest.raises(RecipeError, match=words):
        augmented_dense_sample(DenseRows(table(2, **sizes), DEPTH), 1, transform)


def test_streamed_rows_have_no_number():
    depth = torch.ones(8, 8)
    with pytest.raises(RecipeError, match=r"training a streamed row \(8 x 8 pixels\)"), explain_crop({}, depth):
        map_training_transform(16, MAP_KINDS["depth"])(depth)


def test_columns_outside_the_image_are_refused():
    assert DenseRows(table(1), DEPTH, crop_columns=[30, 99]).map(0, "depth").shape == (32, 10)
    with pytest.raises(RecipeError, match=r"train_columns \[40, 50\] lie outside an image of 40 columns"):
        DenseRows(table(1), DEPTH, crop_columns=[40, 50]).image(0)
    rows, _ = maps_of_all_kinds()
    flow = DenseRows(rows, {"flow": ALL["flow"]}, crop_columns=[16, 20])
    with pytest.raises(RecipeError, match="outside an image of 16 columns"):
        flow.map(0, "flow")


def test_columns_that_do_not_fit_are_named():
    with pytest.raises(RecipeError, match=r"no column \['normals'\].*\['image', 'depth'\].*data\.columns"):
        DenseRows(table(1), {"normals": MAP_KINDS["normals"]})
    with pytest.raises(RecipeError, match=r"data\.columns names \['normal'\], but the maps to read are \['depth'\]"):
        DenseRows(table(1), DEPTH, {"normal": "depth"})
    with pytest.raises(TypeError, match=r"image of row 0 is a PIL image of mode 'RGB'"):
        DenseRows(table(1), DEPTH, {"depth": "image"}).map(0, "depth")


@pytest.mark.parametrize("empty", ["train_split", "eval_split"])
def test_empty_splits_are_refused(monkeypatch, empty):
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, streaming: table(0 if split == "bare" else 2))
    with pytest.raises(RecipeError, match="'some' has no rows in split 'bare'"):
        load_dense_rows(DataRecipe("some", **{empty: "bare"}), DEPTH)


def test_what_goes_wrong_in_a_builder_is_told(monkeypatch):
    def load(*_, **__):
        try:
            raise OSError("a.png is truncated")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(RecipeError, match=r"cannot be loaded: a\.png is truncated"):
        load_dense_rows(DataRecipe("some"), DEPTH)


@pytest.mark.parametrize("task", list(ALL))
def test_images_without_a_valid_pixel_are_known(task):
    rows, native = maps_of_all_kinds()
    kind = ALL[task]
    labels = torch.stack([native[task], torch.full_like(native[task], kind.invalid), native[task]])
    labels[2, ..., 1:, :] = kind.invalid
    assert has_valid_pixels(labels, kind).tolist() == [True, False, True]


def test_figures_of_every_task_over_rows_without_valid_pixels():
    _, native = maps_of_all_kinds()
    channels = {"depth": 1, "normals": 3, "semantic": 5, "flow": 2}
    empty = {task: torch.full_like(native[task], ALL[task].invalid) for task in ALL}

    def predict(indices, error=0.0):
        truth = [native if index != 1 else empty for index in indices]
        wrong = native | {"flow": native["flow"].nan_to_num() + error, "semantic": native["semantic"].clamp(max=4)}
        return [wrong] * len(indices), truth

    accelerator = Accelerator(cpu=True)
    figures = evaluate_maps(3, predict, ALL, channels, 2, accelerator)
    assert figures["depth"]["rmse"] == figures["flow"]["rmse"] == 0 and figures["semantic"]["miou"] == 1
    assert figures["normals"]["mean_angle"] == pytest.approx(0, abs=0.1)
    figures = evaluate_maps(3, lambda indices: predict(indices, 0.5), ALL, channels, 2, accelerator)
    assert figures["flow"]["mae"] == pytest.approx(0.5) and figures["depth"]["rmse"] == 0


FLOATS, INTEGERS = (datasets.List(datasets.List(datasets.Value(x))) for x in ("float32", "int64"))


def _row(value, **features):
    columns = {"image": [Image.new("RGB", (4, 3))], "h": [value]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image()} | features))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_pictures_of_integers_are_values(dtype):
    pixels = np.array([[0, 1, 2, 3]] * 3, dtype=dtype)
    if dtype == np.int32:
        pixels[0, 0] = 70_000  # which 16 bits would turn into 4,464
    rows = DenseRows(_row(Image.fromarray(pixels), h=datasets.Image()), {"h": MAP_KINDS["values"]})
    assert rows.map(0, "h").tolist() == [pixels.tolist()]


def test_missing_numbers_of_a_list_are_invalid_and_integers_are_values():
    rows = DenseRows(
        _row([[1.5, None], [2.5, 3.5]], h=FLOATS),
        {"h": MAP_KINDS["values"]},
    )
    found = rows.map(0, "h")
    assert found.shape == (1, 2, 2) and found.isnan().tolist() == [[[False, True], [False, False]]]
    rows = DenseRows(_row([[1, 2]], h=INTEGERS), {"h": MAP_KINDS["values"]})
    assert rows.map(0, "h").tolist() == [[[1.0, 2.0]]]


def test_two_tasks_of_one_column_keep_their_own_form_in_memory():
    data = _row([[1.0, 2.0]], h=FLOATS)
    kinds = {"metres": MAP_KINDS["depth"], "numbers": MAP_KINDS["values"]}
    rows = DenseRows(data, kinds, dict.fromkeys(kinds, "h"), in_memory=True)
    assert [tuple(rows.map(0, task).shape) for task in (*kinds, *kinds)] == [(1, 2), (1, 1, 2)] * 2
