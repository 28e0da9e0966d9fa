"""`ade20k`: rows of a miniature in the distributed layout, the names of its classes, and bad input."""

import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from transformers_ait.data import ADE20K, ADE20K_CLASSES
from transformers_ait.engine.recipes.reading import RecipeError
from transformers_ait.engine.recipes.sections import DataRecipe
from transformers_ait.engine.tasks.dense_data import load_dense_rows
from transformers_ait.image_inputs_ait import native_map
from transformers_ait.map_kinds_ait import MAP_KINDS

HEIGHT, WIDTH = 24, 32
# Some lines as the archive has them: synonyms, spaces around numbers and behind names.
LINES = {1: "1\t0.1576\t11664\t1172\twall", 8: "8\t0.0231\t1906\t199\tbed ", 22: "22 \t0.0074\t709\t75\twater"}
LINES[13] = "13\t0.0160\t5075\t526\tperson, individual, someone, somebody, mortal, soul"


def write_scene(root: Path, folder: str, name: str, ids: np.ndarray | None = None) -> None:
    seed = int(name[-4:])
    rng = np.random.default_rng(seed)
    if ids is None:  # every id from 0 to 150
        ids = rng.permutation(np.arange(HEIGHT * WIDTH) % 151).reshape(HEIGHT, WIDTH).astype(np.uint8)
    pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    for kind in ("images", "annotations"):
        (root / kind / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert("L" if seed == 3 else "RGB").save(root / "images" / folder / f"{name}.jpg")
    Image.fromarray(ids).save(root / "annotations" / folder / f"{name}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five training images, one of them grey, and two to validate on."""
    root = tmp_path / "ADEChallengeData2016"
    for number in range(1, 6):
        write_scene(root, "training", f"ADE_train_{number:08d}")
    for number in (1, 2):
        write_scene(root, "validation", f"ADE_val_{number:08d}")
    rows = [LINES.get(n, f"{n}\t0.0004\t52\t5\t{name}, more") for n, name in enumerate(ADE20K_CLASSES, 1)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 bathroom\n")
    (root / "images" / "training" / "Thumbs.db").write_bytes(b"left behind by a file manager")
    return root


@pytest.fixture
def load(root: Path, tmp_path: Path):
    """`load_dataset` of the fixture's folder with its own cache."""

    def function(**options):
        settings = {"data_dir": str(root), "cache_dir": str(tmp_path / "cache")} | options
        return datasets.load_dataset("ade20k", **settings)

    return function


def test_names_are_those_of_the_benchmark() -> None:
    assert len(ADE20K_CLASSES) == len(set(ADE20K_CLASSES)) == 150
    places = {"wall": 1, "sky": 3, "bed": 8, "person": 13, "car": 21, "sofa": 24, "desk": 34, "counter": 46, "path": 53}
    places |= {
        "pillow": 58,
        "toilet": 66,
        "stove": 72,
        "bus": 81,
        "truck": 84,
        "television": 90,
        "van": 103,
        "bag": 116,
    }
    places |= {"oven": 119, "bicycle": 128, "lake": 129, "vase": 136, "fan": 140, "crt screen": 142, "flag": 150}
    assert {name: ADE20K_CLASSES.index(name) + 1 for name in places} == places


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_the_files(load, root: Path, streaming: bool) -> None:
    splits = load(streaming=streaming)
    rows = {name: list(split) for name, split in splits.items()}
    assert {name: len(split) for name, split in rows.items()} == {"train": 5, "validation": 2}
    assert [row["name"] for row in rows["train"]] == [f"images/training/ADE_train_{n:08d}.jpg" for n in range(1, 6)]
    for row in [*rows["train"], *rows["validation"]]:
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(root / row["name"])))
        path = root / row["name"].replace("images", "annotations").replace(".jpg", ".png")
        expected = np.asarray(Image.open(path)).astype(int) - 1
        expected[expected < 0] = 255
        np.testing.assert_array_equal(np.asarray(row["semantic"]), expected)
        ids = native_map(row["semantic"], MAP_KINDS["classes"], "semantic")
        assert set(ids.unique().tolist()) == {*range(150), 255}


def test_training_reads_it(root: Path, tmp_path: Path) -> None:
    options = {"data_dir": str(root), "cache_dir": str(tmp_path / "cache")}
    kinds = {"semantic": MAP_KINDS["classes"]}
    train, validation = load_dense_rows(DataRecipe("ade20k", options=options), kinds)
    assert (len(train), len(validation)) == (5, 2)
    assert train.image(2).shape == (3, HEIGHT, WIDTH), "grey images get three channels"
    assert train.map(2, "semantic").shape == (HEIGHT, WIDTH)


def test_the_builder_knows_its_classes_and_notices_changes(load, root: Path, tmp_path: Path) -> None:
    builder = ADE20K(data_dir=str(root), cache_dir=str(tmp_path / "cache"))
    assert builder.config.class_names == list(ADE20K_CLASSES)
    assert len(load()["train"]) == 5
    write_scene(root, "training", "ADE_train_00000009", np.full((HEIGHT, WIDTH), 150, np.uint8))
    split = load()["train"]
    assert len(split) == 6 and set(np.asarray(split[5]["semantic"]).ravel()) == {149}
    shutil.rmtree(root / "images" / "training")
    shutil.rmtree(root / "annotations" / "training")
    assert list(load()) == ["validation"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data_dir": None}, ValueError, "ade20k needs data_dir"),
        ({"data_dir": "no/such/folder"}, FileNotFoundError, "data_dir must be an existing local folder"),
        ({"data_dir": 5}, TypeError, "data_dir must be a text, got 5"),
        ({"data_files": "*.jpg"}, ValueError, "takes data_dir"),
        ({"split": "test"}, ValueError, "test"),
    ],
)
def test_bad_options(load, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(**options)


def test_missing_files_are_named(load, root: Path) -> None:
    (root / "images" / "training" / "ADE_train_00000002.jpg").unlink()
    (root / "annotations" / "training" / "ADE_train_00000004.png").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load()
    message = str(caught.value)
    assert "2 of 10 files are missing" in message and str(root) in message and "unpack ADEChallengeData2016" in message
    assert "images/training/ADE_train_00000002.jpg, annotations/training/ADE_train_00000004.png" in message
    shutil.rmtree(root / "annotations")
    with pytest.raises(FileNotFoundError, match=r"no folder 'annotations' in data_dir=.* holds images, objectInfo150"):
        load()
    with pytest.raises(FileNotFoundError, match=r"no folder 'images' .* holds ADEChallengeData2016.*name the folder"):
        load(data_dir=str(root.parent))
    (root / "annotations").mkdir()
    shutil.rmtree(root / "images")
    (root / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in data_dir"):
        load()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full((HEIGHT, WIDTH), 151, np.uint8), r"training/ADE_train_00000002.png holds the id 151, .*1 to 150"),
        (np.full((HEIGHT, WIDTH), 255, np.uint8), "holds the id 255.*add 1 as uint8"),
        (np.zeros((HEIGHT - 1, WIDTH), np.uint8), "ADE_train_00000002.png is 32 x 23 but .* is 32 x 24"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "ADE_train_00000002.png has mode RGB.*_seg.png"),
    ],
)
def test_bad_annotations(load, root: Path, ids: np.ndarray, message: str, streaming: bool) -> None:
    write_scene(root, "training", "ADE_train_00000002", ids)
    with pytest.raises(ValueError, match=message):
        load(streaming=streaming)


def test_an_id_over_150_is_found_in_every_file(load, root: Path, tmp_path: Path) -> None:
    for number in range(10, 60):
        write_scene(
            root, "training", f"ADE_train_{number:08d}", np.full((HEIGHT, WIDTH), 150 + (number == 38), np.uint8)
        )
    load(streaming=True)  # the sample does not hold it
    with pytest.raises(datasets.exceptions.DatasetGenerationError) as caught:
        load()
    assert "ADE_train_00000038.png holds the id 151" in str(caught.value.__cause__)
    recipe = DataRecipe("ade20k", options={"data_dir": str(root), "cache_dir": str(tmp_path / "other")})
    with pytest.raises(RecipeError, match="data.dataset 'ade20k'.*ADE_train_00000038.png holds the id 151"):
        load_dense_rows(recipe, {"semantic": MAP_KINDS["classes"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-3], "must have a head line and 150 classes, and has 148 lines"),
        (lambda lines: lines[1:] + ["151\t0\t0\t0\tx"], "must have a head line"),
        (lambda lines: lines[:5] + [lines[6], lines[5]] + lines[7:], "line of class 5 .* end with 'tree', got '6 "),
        (lambda lines: [*lines[:9], "9\t0.0198", *lines[10:]], "line of class 9 .*'windowpane', got '9 0.0198'"),
    ],
)
def test_a_damaged_table_of_classes(load, root: Path, change, message: str) -> None:
    path = root / "objectInfo150.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=rf"objectInfo150\.txt.*{message}.*unpack ADEChallengeData2016"):
        load()


def test_a_table_of_classes_that_is_none(load, root: Path) -> None:
    path = root / "objectInfo150.txt"
    path.write_bytes(b"Idx\xff\xfe")
    with pytest.raises(ValueError, match=r"objectInfo150\.txt is no text in UTF-8"):
        load()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"objectInfo150\.txt does not exist"):
        load()


def test_truncated_files_are_named(load, root: Path) -> None:
    for path in ("images/training/ADE_train_00000001.jpg", "annotations/validation/ADE_val_00000001.png"):
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: len(content) // 2])
        with pytest.raises(OSError, match=f"{path.rpartition('/')[2]} cannot be decoded"):
            load()
        (root / path).write_bytes(content)
