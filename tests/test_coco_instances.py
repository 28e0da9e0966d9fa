"""`coco_instances`: official and other layouts, LVIS, zips, the cache, and bad input."""

import json
import os
import socket
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from transformers_ait.data import COCOInstances, COCOInstancesConfig
from transformers_ait.data.image_files import NamedImage

CATEGORIES = [{"id": 7, "name": "train"}, {"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}]
POLYGON = [[2.0, 2.0, 9.5, 2.0, 9.5, 8.25]]
CROWD = {"counts": [4, 3, 377], "size": [16, 24]}


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (16, 24, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def annotation_content(numbers: range) -> dict:
    """Objects for every second image: two polygons and a crowd, not grouped by image."""
    images = [{"id": 10 * i, "file_name": f"{i:012d}.jpg", "width": 24, "height": 16} for i in numbers]
    common = {"bbox": [2.0, 2.0, 7.5, 6.25], "area": 23.4375, "iscrowd": 0, "segmentation": POLYGON}
    chosen = [image["id"] for image in images[::2]]
    annotations = [{**common, "id": 1000 + i, "image_id": i, "category_id": 90} for i in chosen]
    annotations += [{**common, "id": 2000 + i, "image_id": i, "category_id": 1} for i in chosen]
    crowd = {"bbox": [0, 4, 1, 3], "area": 3, "iscrowd": 1, "segmentation": CROWD, "category_id": 7}
    annotations += [{**crowd, "id": 3000 + i, "image_id": i} for i in chosen]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Official layout: five training and four validation images."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for name, numbers in (("train2017", range(5)), ("val2017", range(100, 104))):
        (root / name).mkdir()
        for number in numbers:
            picture(number).save(root / name / f"{number:012d}.jpg")
        write(root, annotation_content(numbers), name)
    return root


def annotation_path(root: Path, name: str = "train2017") -> Path:
    return root / "annotations" / f"instances_{name}.json"


def write(root: Path, content: object, name: str = "train2017") -> None:
    annotation_path(root, name).write_text(json.dumps(content))


@pytest.fixture
def load(root: Path, tmp_path: Path):
    """`load_dataset` of the fixture's folder with its own cache."""

    def function(**options):
        settings = {"data_dir": str(root), "cache_dir": str(tmp_path / "cache")} | options
        return datasets.load_dataset("coco_instances", **settings)

    return function


def require_agreement(split, annotation_file: Path, folder: Path) -> int:
    """Compare with what pycocotools reads; returns the number of objects."""
    coco = COCO(str(annotation_file))
    labels = split.features["objects"]["category"].feature
    assert labels.names == [category["name"] for category in coco.loadCats(sorted(coco.getCatIds()))]
    assert [row["image_id"] for row in split.remove_columns("image")] == list(coco.imgs)
    count = 0
    for row in split:
        image = coco.imgs[row["image_id"]]
        assert [row[key] for key in ("file_name", "width", "height")] == [
            image[key] for key in ("file_name", "width", "height")
        ]
        assert row["image"].size == (row["width"], row["height"])
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(folder / row["file_name"])))
        expected = coco.loadAnns(coco.getAnnIds(row["image_id"]))
        objects = row["objects"]
        for key in ("id", "category_id", "bbox", "area", "iscrowd"):
            assert objects[key] == [item[key] for item in expected]
        assert labels.int2str(objects["category"]) == [coco.cats[item["category_id"]]["name"] for item in expected]
        assert [json.loads(text) for text in objects["segmentation"]] == [item["segmentation"] for item in expected]
        count += len(expected)
    return count


def test_official_layout(load, root: Path) -> None:
    splits = load()
    assert list(splits) == ["train", "validation"]
    assert require_agreement(splits["train"], annotation_path(root), root / "train2017") == 9
    assert require_agreement(splits["validation"], annotation_path(root, "val2017"), root / "val2017") == 6
    row = splits["train"][2]
    assert row["objects"]["category"] == [2, 0, 1], "person, train, toothbrush: contiguous in order of COCO's ids"
    assert splits["train"][1]["objects"]["bbox"] == []


def test_cache_holds_paths_only(load, root: Path) -> None:
    raw = load(split="train").cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert raw == {"bytes": None, "path": str(root / "train2017" / "000000000000.jpg")}


def test_images_without_objects_can_be_skipped(load) -> None:
    splits = load(skip_images_without_objects=True)
    assert splits["train"]["image_id"][:] == [0, 20, 40] and splits["validation"]["image_id"][:] == [1000, 1020]


def test_streaming_and_several_processes_give_the_same_rows(tmp_path: Path, load) -> None:
    root = tmp_path / "many"
    (root / "images").mkdir(parents=True)
    for number in range(70):
        picture(number).save(root / "images" / f"{number:012d}.jpg")
    (root / "a.json").write_text(json.dumps(annotation_content(range(70))))
    options = {"data_dir": str(root), "train_annotations": "a.json", "train_images": "images", "split": "train"}
    rows = list(load(**options))
    stream = load(**options, streaming=True)
    assert stream.num_shards == 2 and len(rows) == 70
    assert isinstance(stream.features["image"], NamedImage)
    assert list(stream) == rows
    assert list(load(**options, num_proc=2, cache_dir=str(tmp_path / "other"))) == rows


@pytest.mark.parametrize("prefix", ["", "train2017/"])
def test_zip_stays_packed(load, root: Path, tmp_path: Path, prefix: str) -> None:
    expected = list(load(split="train"))
    with zipfile.ZipFile(root / "train2017.zip", "w") as archive:
        archive.mkdir("train2017")
        for path in (root / "train2017").iterdir():
            archive.write(path, prefix + path.name)
            path.unlink()
    (root / "train2017").rmdir()
    before = set(tmp_path.rglob("*.jpg"))
    for options in ({}, {"streaming": True}, {"num_proc": 2}):
        assert list(load(split="train", **options)) == expected
    assert set(tmp_path.rglob("*.jpg")) == before
    raw = load(split="train").cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert raw["bytes"].startswith(b"\xff\xd8") and raw["path"] == f"{root}/train2017.zip/{prefix}000000000000.jpg"


def test_zip_and_annotations_from_a_url(load, root: Path, monkeypatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("/remote/images.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for path in (root / "train2017").iterdir():
            archive.write(path, path.name)
    memory.pipe("/remote/a.json", annotation_path(root).read_bytes())
    options = {"train_annotations": "memory://remote/a.json", "train_images": "memory://remote/images.zip"}
    remote = load(data_dir=None, **options, streaming=True, split="train")
    assert list(remote) == list(load(split="train"))
    with pytest.raises(ValueError, match="train_images must be a local folder or a .zip, got 'memory://remote'"):
        load(data_dir=None, **{**options, "train_images": "memory://remote"})


def test_lvis(load, root: Path) -> None:
    """URLs in place of file names, images from both official folders, no iscrowd, and two more columns."""
    content = annotation_content(range(2))
    for image, place in zip(content["images"], ("train2017/000000000003.jpg", "val2017/000000000101.jpg"), strict=True):
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/{place}"
        image |= {"neg_category_ids": [1, 7], "not_exhaustive_category_ids": []}
    for item in content["annotations"]:
        del item["iscrowd"]
    write(root, content, "lvis")
    options = {"validation_annotations": str(annotation_path(root, "lvis")), "validation_images": str(root)}
    split = load(data_dir=None, **options)["validation"]
    assert split["file_name"][:] == ["train2017/000000000003.jpg", "val2017/000000000101.jpg"]
    np.testing.assert_array_equal(split[1]["image"], np.asarray(Image.open(root / split[1]["file_name"])))
    assert split[0]["objects"]["iscrowd"] == [0, 0, 0]
    assert split[0]["neg_category_ids"] == [1, 7] and split[0]["not_exhaustive_category_ids"] == []
    assert "neg_category_ids" not in load()["train"].features


def test_nothing_is_asked_of_the_network(load, monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("a request to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.load.increase_load_count", refuse)
    assert len(load()["train"]) == 5


def test_cache_notices_changed_files(load, root: Path) -> None:
    first = load()["train"]
    assert load()["train"].cache_files == first.cache_files
    content = annotation_content(range(5))
    content["annotations"][0]["bbox"] = [1, 2, 3, 4]
    write(root, content)
    assert load()["train"][0]["objects"]["bbox"][0] == [1, 2, 3, 4]
    folders = {load()["train"].cache_files[0]["filename"]}
    picture(99).save(root / "train2017" / "000000000000.jpg")
    os.utime(root / "train2017" / "000000000000.jpg", ns=(1, 1))
    folders.add(load()["train"].cache_files[0]["filename"])
    content["categories"] = [{**category, "name": category["name"].upper()} for category in CATEGORIES]
    write(root, content)
    write(root, {**annotation_content(range(100, 104)), "categories": content["categories"]}, "val2017")
    split = load()["train"]
    folders.add(split.cache_files[0]["filename"])
    assert len(folders) == 3
    assert split.features["objects"]["category"].feature.names == ["PERSON", "TRAIN", "TOOTHBRUSH"]


def test_replaced_zip_is_read_anew(load, root: Path) -> None:
    options = {"train_images": "images.zip", "split": "train"}
    for shift in (0, 50):
        with zipfile.ZipFile(root / "new.zip", "w") as archive:
            for number in range(5):
                picture(number + shift).save(root / "temporary.jpg")
                archive.write(root / "temporary.jpg", f"{number:012d}.jpg")
        os.replace(root / "new.zip", root / "images.zip")
        pixels = np.asarray(load(**options)[1]["image"])
        picture(1 + shift).save(root / "temporary.jpg")
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(root / "temporary.jpg")))


def test_split_without_files_is_left_out(load, root: Path) -> None:
    (root / "val2017").rename(root / "elsewhere")
    assert list(load()) == ["train"]
    with pytest.raises(FileNotFoundError, match="validation_images: .*val2017.zip does not exist"):
        load(validation_annotations="annotations/instances_val2017.json")
    assert list(load(validation_images="elsewhere")) == ["train", "validation"]
    annotation_path(root).unlink()
    with pytest.raises(FileNotFoundError, match="no split in data_dir=.*expected annotations/instances_train2017.json"):
        load()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data_dir": None}, ValueError, "coco_instances needs data_dir"),
        ({"data_dir": "no/such/folder"}, FileNotFoundError, "data_dir must be an existing local folder"),
        ({"data_dir": None, "train_images": "x"}, ValueError, "train_annotations and train_images belong together"),
        ({"train_annotations": "no.json"}, FileNotFoundError, "train_annotations: .*no.json does not exist"),
        ({"train_images": "no"}, FileNotFoundError, "train_images: .*no does not exist"),
        ({"train_images": "annotations/instances_train2017.json"}, ValueError, "must be a folder or a .zip file"),
        ({"skip_images_without_objects": 1}, TypeError, "skip_images_without_objects must be True or False"),
        ({"data_files": "*.jpg"}, ValueError, "takes data_dir"),
    ],
)
def test_bad_options(load, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(**options)


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_images_are_named(load, root: Path, streaming: bool) -> None:
    for number in (1, 2, 3, 4):
        (root / f"train2017/{number:012d}.jpg").unlink()
    message = (
        r"4 of 5 files are missing in .*train2017: 000000000001.jpg, 000000000002.jpg, 000000000003.jpg and 1 more"
        r".*instances_train2017.json names them"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load(streaming=streaming)


def change(**values) -> dict:
    """The training annotations with values of the first object replaced; None removes one."""
    content = annotation_content(range(5))
    changed = {key: value for key, value in (content["annotations"][0] | values).items() if value is not None}
    return {**content, "annotations": [changed, *content["annotations"][1:]]}


GOOD = annotation_content(range(5))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "is no COCO instance file: it has no list 'images', only list"),
        ({"images": GOOD["images"]}, r"it has no list 'annotations', only \['images'\]"),
        ({**GOOD, "images": []}, "has no images: an empty split"),
        ({**GOOD, "images": GOOD["images"] * 2}, "5 of 10 image ids occur more than once; namely 0, 10, 20 and 2 more"),
        ({**GOOD, "images": [{"id": 1, "width": 3, "height": 4}]}, "1 of 1 images have neither file_name nor coco_url"),
        ({**GOOD, "categories": CATEGORIES + CATEGORIES[:1]}, "category ids occur more than once; namely 7"),
        (change(image_id=77), r"1 of 9 annotations have an unknown image_id; annotations 1000 \(image_id 77\)"),
        (change(category_id=2), r"1 of 9 annotations have an unknown category_id; annotations 1000 \(category_id 2\)"),
        (change(bbox=[1, 2, 3]), "1 of 9 annotations have a bbox that is not x, y, width, height; ids 1000"),
        (change(bbox=[1, 2, 3, "4"]), "1 of 9 annotations have a bbox that is not x, y, width, height; ids 1000"),
        (change(bbox=[1, 2, 3, 10**400]), "1 of 9 annotations have a bbox that is not"),
        (change(iscrowd=[0]), "1 of 9 annotations have an iscrowd that is neither 0 nor 1; ids 1000"),
        (change(id=2**63), "entry 0 of 'annotations' has no valid id"),
        (change(segmentation=None), "entry 0 of 'annotations' has no valid segmentation"),
        (change(id="a"), "entry 0 of 'annotations' has no valid id"),
        (change(id=1020), "1 of 9 annotation ids occur more than once"),
    ],
)
def test_bad_annotation_files(load, root: Path, content: object, message: str, streaming: bool) -> None:
    write(root, content)
    with pytest.raises(ValueError, match=message) as caught:
        load(streaming=streaming)
    assert "instances_train2017.json" in str(caught.value)


def test_invalid_json(load, root: Path) -> None:
    path = annotation_path(root)
    path.write_text(path.read_text()[:200])
    with pytest.raises(ValueError, match="instances_train2017.json is not valid JSON .*truncated"):
        load()
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="instances_train2017.json is not valid JSON"):
        load()


def test_no_object_left(load, root: Path) -> None:
    write(root, {**GOOD, "annotations": []})
    assert len(load()["train"]) == 5
    with pytest.raises(ValueError, match="has no object, so skip_images_without_objects=True leaves an empty split"):
        load(skip_images_without_objects=True)


def test_splits_must_share_their_categories(load, root: Path) -> None:
    write(
        root, {**annotation_content(range(100, 104)), "categories": [*CATEGORIES, {"id": 2, "name": "car"}]}, "val2017"
    )
    with pytest.raises(ValueError, match=r"define different categories \(1 entries differ, first \(2, 'car'\)\)"):
        load()


def test_images_must_have_their_annotated_size(load, root: Path) -> None:
    picture(2).resize((12, 8)).save(root / "train2017" / "000000000002.jpg")
    with pytest.raises(ValueError, match="000000000002.jpg is 12 x 8, but its annotations are made for 24 x 16"):
        load()


def test_truncated_image_is_named_before_and_on_access(load, root: Path) -> None:
    split = load(split="train")
    path = root / "train2017" / "000000000003.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(OSError, match="train2017/000000000003.jpg cannot be decoded .*truncated"):
        split[3]
    for streaming in (False, True):
        with pytest.raises(OSError, match="train2017/000000000003.jpg cannot be decoded"):
            load(streaming=streaming)


def test_truncation_is_found_in_every_file(load, root: Path) -> None:
    for number in range(40):
        picture(number).save(root / "train2017" / f"{number:012d}.jpg")
    write(root, annotation_content(range(40)))
    path = root / "train2017" / "000000000009.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    load(streaming=True)  # the sample does not hold it
    with pytest.raises(OSError, match=r"1 of 40 images are broken: .*000000000009.jpg"):
        load()


def test_damaged_zip(load, root: Path) -> None:
    archive = root / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (root / "train2017").iterdir():
            file.write(path, path.name)
    content = bytearray(archive.read_bytes())
    content[200] ^= 1
    archive.write_bytes(content)
    with pytest.raises(OSError, match=r"images.zip/\d+.jpg is damaged"):
        load(train_images="images.zip")
    archive.write_bytes(content[:-300])
    with pytest.raises(OSError, match="images.zip is no complete zip archive"):
        load(train_images="images.zip")


def test_cache_folder_depends_on_every_option(root: Path, tmp_path: Path) -> None:
    def folder(**options) -> str:
        return COCOInstances(data_dir=str(root), cache_dir=str(tmp_path / "cache"), **options).cache_dir

    assert folder() == folder(train_images="train2017")
    assert len({folder(), folder(skip_images_without_objects=True), folder(train_images="val2017")}) == 3


def test_config_checks_itself() -> None:
    with pytest.raises(FileNotFoundError, match="data_dir"):
        COCOInstancesConfig(data_dir="s3://bucket/coco")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("annotations", "images", "sizes"),
    [
        ("coco_small/instances.json", "coco_small/images", (50, 459)),
        ("penn_fudan/train/instances.json", "penn_fudan/train/images", (136, 335)),
    ],
)
def test_real_images_agree_with_pycocotools(
    shared_dir: Path, tmp_path: Path, annotations: str, images: str, sizes: tuple[int, int]
) -> None:
    data = shared_dir / "data"
    if not (data / annotations).is_file():
        pytest.skip(f"no real data: {data / annotations} does not exist")
    options = {"validation_annotations": annotations, "validation_images": images, "cache_dir": str(tmp_path)}
    split = datasets.load_dataset("coco_instances", data_dir=str(data), split="validation", **options)
    assert (len(split), require_agreement(split, data / annotations, data / images)) == sizes
