"""The command `transformers-ait`: files against the Python API's results, names, damage, and the other subcommands."""

import json
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import GOLDENS, original_config, original_tensors
from PIL import Image
from pycocotools.coco import COCO
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from transformers_ait import AiTDenseImageProcessor, AiTInstanceImageProcessor
from transformers_ait.cli import writing
from transformers_ait.cli.inputs import find_sources, read_frames
from transformers_ait.cli.predictor import SEED
from transformers_ait.data import render_room
from transformers_ait.image_inputs_ait import native_map
from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.visualization import MASK_OPACITY, colorize_map, draw_instances
from transformers_ait_command import COMMANDS, main

TRAINING = Path(__file__).parents[1] / "training"
ORIENTATION = 0x0112


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


def loaded(folder):
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    return AutoImageProcessor.from_pretrained(folder), model


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def room(number=2_000_000_029, height=96, width=128):
    return Image.fromarray(render_room(number, height=height, width=width).image)


@pytest.fixture
def photos(tmp_path):
    """Two photographs of different sizes, and their folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    room().save(folder / "wide.png")
    room(7, 90, 60).save(folder / "high.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def small(tiny_model, tiny_vqvae_config, tmp_path_factory):
    """Folder of a tiny parallel model with depth and a task that no line of the package has heard of."""
    folder = tmp_path_factory.mktemp("models") / "small"
    heights = tiny_vqvae_config(map_kind="values", num_channels=2).to_dict()
    table = [{"name": "height", "kind": "values", "tokenizer_config": heights}]
    tiny_model(dense_tasks=table, tasks=("depth", "height"), parallel=True).save_pretrained(folder)
    kinds = {"depth": "depth", "height": "values"}
    AiTDenseImageProcessor(size={"height": 32, "width": 32}, map_kinds=kinds).save_pretrained(folder)
    return folder


# Formats


@pytest.mark.slow
def test_maps_in_every_format_are_those_of_the_python_interface(photos, repository, tmp_path):
    folder, output = repository / "hub_configs" / "ait-lite-nyu", tmp_path / "out"
    given = [photos / "wide.png", "--model", folder, "--output", output, "--formats", "colour,overlay,png16,npy"]
    assert predict(*given, "--device", "cpu") == 0
    processor, model = loaded(folder)
    image = Image.open(photos / "wide.png")
    outputs = model(**processor(image, return_tensors="pt"))
    maps = processor.post_process_dense(outputs, [(image.height, image.width)])[0]
    assert list(maps) == ["depth", "normals", "semantic"]
    for task, expected in maps.items():
        spec = model.config.dense[task]
        np.testing.assert_allclose(np.load(output / f"wide.{task}.npy"), expected, atol=1e-6)
        colours = colorize_map(expected, spec.kind, spec.class_names)
        assert np.abs(pixels(output / f"wide.{task}.colour.png").astype(int) - colours).max() <= 1
        blended = np.asarray(Image.blend(image, Image.fromarray(colours), MASK_OPACITY)).astype(int)
        assert np.abs(pixels(output / f"wide.{task}.overlay.png") - blended).max() <= 1
    assert not (output / "wide.normals.16bit.png").exists()
    with Image.open(output / "wide.depth.16bit.png") as stored:
        assert (native_map(stored, MAP_KINDS["depth"], "depth") - maps["depth"]).abs().max() <= 0.0005 + 1e-6
    np.testing.assert_array_equal(pixels(output / "wide.semantic.16bit.png"), maps["semantic"])


def test_sixteen_bits_hold_millimetres_and_ids():
    depth = torch.tensor([[0.0, -1.0, float("nan")], [1.2344, 1.2346, 90.0]])
    assert writing.sixteen_bits(depth, MAP_KINDS["depth"]).tolist() == [[0, 0, 0], [1234, 1235, 65535]]
    assert writing.sixteen_bits(torch.tensor([[3, 254]]), MAP_KINDS["classes"]).tolist() == [[3, 254]]
    with pytest.raises(ValueError, match="no 16-bit form"):
        writing.sixteen_bits(torch.zeros(3, 2, 2), MAP_KINDS["normals"])


@pytest.mark.slow
def test_objects_are_those_of_the_python_interface(photos, repository, tmp_path):
    folder, output = repository / "hub_configs" / "ait-tiny-rooms-instance", tmp_path / "out"
    assert predict(photos, "--model", folder, "--output", output, "--threshold", 0.3, "--batch-size", 2) == 0
    assert files_of(output) == ["high.instance.overlay.png", "instance.coco.json", "wide.instance.overlay.png"]
    coco = COCO(output / "instance.coco.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["high.jpg", "wide.png"]
    processor, model = loaded(folder)
    classes = {index: index for index in model.config.id2label}
    assert {entry["id"]: entry["name"] for entry in coco.loadCats(coco.getCatIds())} == model.config.id2label
    for number, name in ((1, "high.jpg"), (2, "wide.png")):
        image = Image.open(photos / name)
        inputs, sizes = processor(image, return_tensors="pt"), [(image.height, image.width)]
        outputs = model.generate(**inputs, generator=torch.Generator().manual_seed(SEED))
        expected = processor.post_process_coco(outputs, [number], classes, sizes, 0.3)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            assert one["category_id"] == other["category_id"] and one["iscrowd"] == 0
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-3)
            mask = coco.annToMask(one)
            assert mask.shape == sizes[0] and mask.sum() == one["area"]
        segments = processor.post_process_instance_segmentation(
            outputs, 0.3, target_sizes=sizes, return_binary_maps=True
        )[0]
        names = [model.config.id2label[info["label_id"]] for info in segments["segments_info"]]
        scores = [info["score"] for info in segments["segments_info"]]
        drawn = np.asarray(draw_instances(image, names, scores, segments["segmentation"]))
        assert np.mean(pixels(output / f"{Path(name).stem}.instance.overlay.png") != drawn) < 0.01


@pytest.mark.slow
def test_all_tasks_of_a_joint_checkpoint(photos, repository, tmp_path):
    output = tmp_path / "out"
    model = repository / "hub_configs" / "ait-tiny-rooms"
    assert predict(photos / "wide.png", "--model", model, "--output", output, "--dtype", "bfloat16") == 0
    assert files_of(output) == [
        *("detection.coco.json", "instance.coco.json", "wide.depth.16bit.png", "wide.depth.colour.png"),
        *("wide.detection.overlay.png", "wide.instance.overlay.png", "wide.normals.colour.png", "wide.normals.npy"),
        *("wide.semantic.16bit.png", "wide.semantic.colour.png"),
    ]
    found = COCO(output / "detection.coco.json").dataset["annotations"]
    assert found and all(entry["area"] == entry["bbox"][2] * entry["bbox"][3] for entry in found)
    assert (
        "segmentation" not in found[0]
        and "segmentation" in json.loads((output / "instance.coco.json").read_text())["annotations"][0]
    )


@pytest.mark.slow
def test_a_task_of_ones_own_is_written_by_its_kind(photos, small, tmp_path):
    assert predict(photos, "--model", small, "--output", tmp_path / "out", "--tasks", "height") == 0
    assert [name for name in files_of(tmp_path / "out") if "wide" in name] == [
        "wide.height.colour.png",
        "wide.height.npy",
    ]
    assert np.load(tmp_path / "out" / "wide.height.npy").shape == (2, 96, 128)
    together = ["--tasks", "height", "--formats", "npy", "--batch-size", 2]
    assert predict(photos, "--model", small, "--output", tmp_path / "pairs", *together) == 0
    for name in ("wide", "high"):
        alone, batched = (np.load(tmp_path / folder / f"{name}.height.npy") for folder in ("out", "pairs"))
        np.testing.assert_allclose(alone, batched, atol=1e-4)


def test_photographs_are_upright_and_opaque(small, tmp_path):
    image = room()
    exif = image.getexif()
    exif[ORIENTATION] = 6  # turn right to see it
    image.save(tmp_path / "turned.png", exif=exif)
    image.rotate(-90, expand=True).save(tmp_path / "upright.png")
    image.convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    output = ["--model", small, "--output", tmp_path / "out", "--tasks", "depth", "--formats", "npy,overlay"]
    assert predict(*sorted(tmp_path.glob("*.png")), *output) == 0
    maps = {name: np.load(tmp_path / "out" / f"{name}.depth.npy") for name in ("turned", "upright", "rgba", "deep")}
    assert maps["turned"].shape == (128, 96) and maps["rgba"].shape == maps["deep"].shape == (96, 128)
    np.testing.assert_array_equal(maps["turned"], maps["upright"])


# Which files, and what they are called


def keys(*inputs, **settings):
    sources, problems = find_sources(list(map(str, inputs)), **settings)
    return {source.file_name: source.key for source in sources}, problems


@pytest.fixture
def tree(tmp_path):
    """Files with names that could collide; find_sources does not look inside."""
    names = ["a/x.jpg", "a/y.png", "b/x.jpg", "b/x.png", "b/clip.mp4", "b/deep/z.JPG", "b/.hidden.jpg", "b/notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_names_do_not_collide(tree):
    assert keys(tree / "a") == ({"x.jpg": "x", "y.png": "y"}, [])
    assert keys(tree / "a" / "x.jpg", tree / "b" / "x.jpg")[0] == {"a/x.jpg": "a/x", "b/x.jpg": "b/x"}
    assert keys(tree / "b")[0] == {"clip.mp4": "clip.mp4", "x.jpg": "x.jpg", "x.png": "x.png"}
    assert keys(tree / "b", recursive=True)[0]["deep/z.JPG"] == "deep/z"
    assert keys(tree / "a", tree / "a" / "x.jpg", tree / "*" / "y.png")[0] == {"x.jpg": "x", "y.png": "y"}


def test_inputs_that_name_nothing(tree):
    found, problems = keys(tree / "q*.jpg", tree / "none.jpg", tree, tree / "b" / "notes.txt")
    assert list(found) == ["b/notes.txt"] or list(found) == ["notes.txt"]
    ends = ["nothing matches", "no such file or folder", "no photographs or videos in it; --recursive looks into"]
    assert all(end in problem for end, problem in zip(ends, problems, strict=True))


def test_outputs_inside_the_input_are_not_read(tree):
    assert "deep/z.JPG" not in keys(tree / "b", recursive=True, output=tree / "b" / "deep")[0]
    assert keys(tree / "a", output=tree)[0]


def write_video(path, images):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = images[0].size
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def test_videos_are_turned_as_their_files_say(tmp_path):
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    picture[:, 32:] = 255
    write_video(tmp_path / "clip.mp4", [Image.fromarray(picture)])
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    start = content.index(b"tkhd") + 44  # the matrix of the track header, ISO 14496-12
    content[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "clip.mp4").write_bytes(content)
    (source,), _ = find_sources([str(tmp_path / "clip.mp4")])
    (frame,) = read_frames(source, lambda _: True)
    upper, lower = np.split(np.asarray(frame.image).mean(-1), 2)  # a quarter turn to the right
    assert frame.image.size == (48, 64) and upper.mean() < 20 and lower.mean() > 235


def test_frames_of_a_video(small, tmp_path, capsys):
    write_video(tmp_path / "clip.mp4", [Image.new("RGB", (64, 48), (grey, grey, grey)) for grey in (40, 120, 200)])
    (source,), _ = find_sources([str(tmp_path / "clip.mp4")])
    frames = list(read_frames(source, lambda key: not key.endswith("1")))
    assert [frame.key for frame in frames] == ["clip.mp4/000000", "clip.mp4/000002"]
    assert [round(np.asarray(frame.image).mean() / 40) for frame in frames] == [1, 5]
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    given = [tmp_path / "clip.mp4", tmp_path / "broken.mp4", "--model", small, "--output", tmp_path / "out"]
    assert predict(*given, "--tasks", "depth", "--formats", "png16") == 1
    assert files_of(tmp_path / "out") == [f"clip.mp4/00000{number}.depth.16bit.png" for number in range(3)]
    error = capsys.readouterr().err
    assert "broken.mp4: cannot be read as a video" in error and "clip.mp4:" not in error


def read_video(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return container.streams.video[0].average_rate, [
            x.to_ndarray(format="rgb24") for x in container.decode(video=0)
        ]


@pytest.mark.slow
def test_a_smoothed_video_as_files_and_as_a_video(small, tmp_path, capsys):
    """Every other frame is a little brighter, and its map a little different."""
    still = room(height=48, width=62)
    write_video(tmp_path / "clip.avi", [still.point(lambda x, more=3 * (n % 2): x + more) for n in range(5)])
    given = [tmp_path / "clip.avi", "--model", small, "--output", tmp_path / "out", "--tasks", "depth"]
    assert predict(*given, "--smooth", "2", "--formats", "npy,video") == 0
    printed = capsys.readouterr().out
    assert "clip.avi, change of what does not move, from frame to frame: depth" in printed and "5 images" in printed
    single = tmp_path / "single"
    assert predict(*given[:3], "--output", single, "--tasks", "depth", "--formats", "npy") == 0
    maps = [[np.load(x) for x in sorted(folder.rglob("*.npy"))] for folder in (tmp_path / "out", single)]
    assert len(maps[0]) == len(maps[1]) == 5
    change = [np.mean([np.abs(x - y).mean() for x, y in pairwise(of)]) for of in maps]
    assert 0 < change[0] < 0.7 * change[1]
    rate, shown = read_video(tmp_path / "out" / "clip.avi.depth.mp4")
    low, high = maps[0][0].min(), maps[0][0].max()
    expected = colorize_map(torch.from_numpy(maps[0][4]), "depth", None, float(low), float(high))
    assert rate == 5 and len(shown) == 5 and shown[0].shape == (48, 62, 3)
    assert np.corrcoef(shown[4].ravel(), expected.ravel())[0, 1] > 0.9  # in colours at half the resolution
    # What exists stays.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    assert predict(*given, "--smooth", "0", "--formats", "npy,video") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "->" in printed and "->" not in capsys.readouterr().out


@pytest.mark.slow
def test_videos_and_photographs_in_one_run(small, photos, tmp_path):
    for name in ("a.mp4", "c.mp4"):
        write_video(tmp_path / name, [room(height=48, width=64)] * 3)
    given = [
        tmp_path / "a.mp4",
        photos / "high.jpg",
        tmp_path / "c.mp4",
        "--model",
        small,
        "--output",
        tmp_path / "out",
    ]
    assert predict(*given, "--smooth", "4", "--tasks", "height", "--formats", "npy,video", "--batch-size", "2") == 0
    frames = [f"{name}.mp4/00000{number}.height.npy" for name in "ac" for number in range(3)]
    videos = ["a.mp4.height.mp4", "c.mp4.height.mp4"]
    assert files_of(tmp_path / "out") == sorted([*frames, *videos, "photos/high.height.npy"])


def test_a_video_that_cannot_be_written_leaves_nothing(small, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("No space left on device")

    write_video(tmp_path / "clip.mp4", [room(height=48, width=64)] * 2)
    monkeypatch.setattr(writing.VideoFile, "add", full)
    given = [tmp_path / "clip.mp4", "--model", small, "--output", tmp_path / "out", "--tasks", "depth"]
    assert predict(*given, "--formats", "video") == 1
    assert "No space left" in capsys.readouterr().err and files_of(tmp_path / "out") == []


def test_videos_without_the_library_are_refused(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mov").touch()
    assert predict(tmp_path / "clip.mov", "--model", small, "--output", tmp_path / "out") == 2
    assert "transformers_ait[video]" in capsys.readouterr().err


# What goes wrong


def test_unreadable_files_are_named_and_the_rest_goes_on(photos, small, tmp_path, capsys):
    whole = (photos / "high.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").touch()
    (tmp_path / "text.txt").write_text("no picture")
    nothing = tmp_path / "q*.jpg"
    given = [photos, tmp_path / "text.txt", nothing, "--model", small, "--output", tmp_path / "out"]
    assert predict(*given, "--tasks", "depth", "--formats", "png16", "--batch-size", 3) == 1
    assert files_of(tmp_path / "out") == ["photos/high.depth.16bit.png", "photos/wide.depth.16bit.png"]
    output, error = capsys.readouterr()
    named = ("cut.jpg: cannot be read", "empty.png: cannot be read", "text.txt: cannot be read", f"{nothing}: nothing")
    assert all(words in error for words in named) and "wide" not in error
    assert "2 images predicted" in output and "3 of 5 files could not be read" in output


def test_without_any_input_nothing_is_loaded(tmp_path, capsys):
    assert predict(tmp_path / "q*.jpg", "--model", tmp_path / "none", "--output", tmp_path / "out") == 1
    assert "nothing matches" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_existing_files_stay(photos, small, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "wide.depth.npy").write_text("mine")
    given = [photos, "--model", small, "--output", output, "--tasks", "depth", "--formats", "npy,png16"]
    assert predict(*given) == 0 and (output / "wide.depth.npy").read_text() == "mine"
    assert (output / "wide.depth.16bit.png").exists() and "2 images predicted" in capsys.readouterr().out
    assert predict(*given) == 0 and "0 images predicted" in capsys.readouterr().out
    assert predict(*given, "--overwrite") == 0 and np.load(output / "wide.depth.npy").shape == (96, 128)


def test_existing_annotations_stay(photos, tiny_model, tiny_decoder_config, tmp_path, capsys):
    model, output = tmp_path / "objects", tmp_path / "out"
    decoder = tiny_decoder_config(max_positions=48)
    tiny_model(tasks=("detection",), decoder_config=decoder).save_pretrained(model)
    side = {"height": 32, "width": 32}
    AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=side).save_pretrained(model)
    given = [photos, "--model", model, "--output", output, "--formats", "coco"]
    output.mkdir()
    (output / "detection.coco.json").write_text("mine")
    assert predict(*given) == 2 and "detection.coco.json exists" in capsys.readouterr().err
    assert (output / "detection.coco.json").read_text() == "mine"
    assert predict(*given, "--overwrite") == 0 and files_of(output) == ["detection.coco.json"]
    assert len(COCO(output / "detection.coco.json").getImgIds()) == 2


@pytest.mark.parametrize("formats", ["npy", "npy,overlay"])
def test_what_cannot_be_written_leaves_nothing(photos, small, tmp_path, monkeypatch, capsys, formats):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    assert predict(photos, "--model", small, "--output", tmp_path / "out", "--formats", formats) == 1
    assert files_of(tmp_path / "out") == [] and "No space left" in capsys.readouterr().err


def test_annotations_are_complete_or_absent(tmp_path):
    config = type("Config", (), {"id2label": {0: "cup"}, "dense": {}})
    result = {"category_id": 0, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    with pytest.raises(KeyboardInterrupt), writing.PredictionWriter(tmp_path, config, {"boxes": ("coco",)}) as writer:
        writer.coco["boxes"].add("x.jpg", (10, 20), [result])
        raise KeyboardInterrupt
    assert files_of(tmp_path) == []
    with writing.PredictionWriter(tmp_path, config, {"boxes": ("coco",)}) as writer:
        writer.coco["boxes"].add("x.jpg", (10, 20), [result, result])
        writer.coco["boxes"].add("y.jpg", (10, 20), [])
    coco = COCO(tmp_path / "boxes.coco.json")
    assert coco.getImgIds() == [1, 2] and [entry["area"] for entry in coco.loadAnns(coco.getAnnIds())] == [12.0, 12.0]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--tasks", "depth,normals"], "does not do normals; its tasks are depth, height"),
        (["--formats", "jpeg"], "--formats knows colour, overlay, png16, npy, coco, video, got 'jpeg'"),
        (["--formats", "video"], "none is among the inputs"),
        (["--smooth", "3"], "none is among the inputs"),
        (["--smooth", "-1"], "must be at least 0"),
        (["--formats", "coco"], "(depth, height) can be written as coco"),
        (["--output", "photos"], "is an input too"),
        (["--output", "photos/wide.png"], "is a file"),
        (["--model", "photos"], "config.json"),
        (["--device", "nonsense"], "'nonsense' is no device"),
        (["--batch-size", "0"], "at least 1"),
        (["--threshold", "2"], "[0, 1]"),
    ],
)
def test_wrong_usage(photos, small, tmp_path, monkeypatch, capsys, extra, words):
    monkeypatch.chdir(tmp_path)
    given = ["photos", "--model", small, "--output", "out", *extra]
    try:
        status = predict(*given)
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and files_of(photos) == ["high.jpg", "wide.png"]


# The other subcommands


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and f"usage: transformers-ait {command}" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["vqvae", "dense", "depth", "instance", "joint", "pose"])
def test_every_task_of_training_lists_its_keys(task, capsys):
    assert main(["train", task, "--help"]) == 0
    assert "\nKeys:\n  --" in capsys.readouterr().out


def test_the_help_loads_nothing():
    code = "import sys, transformers_ait_command as c; c.build_parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("arguments", [[], ["predct"], ["train", "walking"]])
def test_unknown_commands_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and ("TASK" if arguments[:1] == ["train"] else "COMMAND") in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "transformers_ait.cli.evaluate", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["evaluate", "folder"]) == 2
    assert "pip install 'transformers_ait[train]'" in capsys.readouterr().err


@pytest.mark.slow
def test_train_trains(tmp_path):
    options = {"height": 32, "width": 48, "num_train": 4, "num_validation": 2, "num_test": 0}
    recipe = str(TRAINING / "recipes" / "vqvae-tiny-rooms-depth.yaml")
    short = ["--run.steps=1", "--run.batch_size=2", "--run.log_every=1", "--run.panels=1", "--data.in_memory=true"]
    config = ["--model.config", "{image_size: 32, downsample_ratio: 8, num_codes: 16, code_dim: 8}"]
    data = ["--data.options", json.dumps({**options, "cache_dir": str(tmp_path / "cache")})]
    assert main(["train", "vqvae", recipe, "--run.output", str(tmp_path / "run"), *short, *config, *data]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["train", "vqvae", str(tmp_path / "none.yaml")])
    assert stop.value.code == 2


def test_evaluate_evaluates(small, tmp_path, capsys):
    given = ["--rooms", "2", "--height", "40", "--width", "56", "--output", str(tmp_path / "metrics.json")]
    assert main(["evaluate", str(small), "--task", "depth", *given]) == 0
    assert "| model |" in capsys.readouterr().out
    assert any("parallel" in name for name in json.loads((tmp_path / "metrics.json").read_text()))


def test_convert_converts(tmp_path, capsys):
    checkpoint, settings = tmp_path / "original.pth", tmp_path / "original.json"
    torch.save(original_tensors("vqvae_mask"), checkpoint)
    settings.write_text(json.dumps(original_config("vqvae_mask")))
    given = ["--checkpoint", str(checkpoint), "--config", str(settings), "--output", str(tmp_path / "folder")]
    assert GOLDENS.is_dir() and main(["convert", *given]) == 0
    assert (tmp_path / "folder" / "config.json").is_file()


def test_export_exports(small, tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 1
    assert "none" in capsys.readouterr().err
