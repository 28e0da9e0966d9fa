"""Exports: files that compute what the model computes, at any batch, and nothing on disk when they do not."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from transformers_ait import (
    AiTDenseImageProcessor,
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTInstanceImageProcessor,
)
from transformers_ait.export import ExportError, driver, export_checkpoint, exporter, programs
from transformers_ait.export.__main__ import main

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "export.md"
DEPTH_BOUND = 1e-4  # metres; the export's own check allows ten times as much
NORMALIZED = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module", autouse=True)
def onnx():
    """onnx, and with it these tests where the packages of the extra are installed."""
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    return pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def small(tiny_backbone_config, tiny_decoder_config):
    """Settings of a small model with shifted windows and without."""
    backbone = tiny_backbone_config(embed_dim=4, depths=(2, 1), num_heads=(1, 2))
    return {"backbone_config": backbone, "decoder_config": tiny_decoder_config(num_encoder_layers=1)}


@pytest.fixture(scope="module")
def save(tiny_model, tmp_path_factory, small):
    """Function that saves a small model with its image processor; returns the folder."""

    def write(dtype=torch.float32, **overrides):
        folder = tmp_path_factory.mktemp("checkpoint") / "model"
        model = tiny_model(**(small | overrides))
        model.to(dtype).save_pretrained(folder)
        if model.config.default_task in model.config.dense:
            kinds = {task: spec.kind for task, spec in model.config.dense.items()}
            of_depth = kinds == {"depth": "depth"}
            processor_class = AiTDepthImageProcessor if of_depth else AiTDenseImageProcessor
            settings = {"size": {"height": 32, "width": 32}, "num_windows": 1, "do_flip_augment": False}
            processor_class(**settings, **NORMALIZED, map_kinds=kinds).save_pretrained(folder)
        else:
            size = {"height": 32, "width": 32}
            AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=size).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="module")
def objects(tiny_vqvae_config):
    """Settings of an instance model."""
    tokenizer = tiny_vqvae_config(
        image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False
    )
    settings = {"tasks": ("instance",), "mask_tokenizer_config": tokenizer, "depth_tokenizer_config": None}
    return settings | {"num_objects": 2}


@pytest.fixture(scope="module")
def parallel(save, tmp_path_factory):
    """Checkpoint and ONNX export of a parallel depth model."""
    folder = save(parallel=True)
    output = tmp_path_factory.mktemp("exported") / "parallel"
    export_checkpoint(folder, output)
    return folder, output


@pytest.fixture(scope="module")
def autoregressive(save, tmp_path_factory):
    """Checkpoint and ONNX export of an autoregressive depth model."""
    folder = save()
    output = tmp_path_factory.mktemp("exported") / "autoregressive"
    export_checkpoint(folder, output)
    return folder, output


def load(folder):
    return AiTForDenseAndInstancePrediction.from_pretrained(folder, dtype=torch.float32)


def torch_parts(folder, task="depth"):
    """Settings and parts of an export to torch files."""
    settings = json.loads((folder / "export.json").read_text())
    parts = exporter.build_parts(load(folder.parent / "model"), task, None)
    return settings, {name: programs.open_part(folder / file, parts[name]) for name, file in settings["files"].items()}


def batches(side=32):
    return [torch.rand(count, 3, side, side) for count in (1, 2, 5)]


def nothing_left(output):
    return not output.exists() and not list(output.parent.glob(f".{output.name}*"))


# --- depth ------------------------------------------------------------------------------------------------------------


def check_depth(folder, settings, parts):
    model = load(folder)
    for images in batches():
        expected = model.generate(images, "depth").predicted_depth.numpy()
        depth = driver.predict_depth(parts, settings, images.numpy())
        assert depth.dtype == np.float32 and expected.std() > 0.01
        assert np.abs(depth - expected).max() < DEPTH_BOUND


@pytest.mark.slow
def test_parallel_onnx(parallel):
    folder, output = parallel
    assert sorted(file.name for file in output.iterdir()) == ["depth.onnx", "export.json", "preprocessor_config.json"]
    check_depth(folder, *driver.load_parts(output))


@pytest.mark.slow
def test_autoregressive_onnx(autoregressive):
    folder, output = autoregressive
    names = ["detokenizer.onnx", "encoder.onnx", "export.json", "preprocessor_config.json", "step.onnx"]
    assert sorted(file.name for file in output.iterdir()) == names
    check_depth(folder, *driver.load_parts(output))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"parallel": True}, id="parallel"),
        pytest.param({}, id="soft"),
        pytest.param({"soft_feedback": False, "soft_decode": False}, id="hard"),
    ],
)
def test_torch(overrides, save):
    folder = save(**overrides)
    output = folder.parent / "exported"
    export_checkpoint(folder, output, file_format="torch")
    assert {file.suffix for file in output.iterdir()} == {".pt2", ".json"}
    check_depth(folder, *torch_parts(output))


@pytest.mark.slow
def test_timm_backbone(save, tiny_decoder_config):
    backbone = {"model_type": "timm_backbone", "backbone": "test_efficientnet", "out_indices": [-1]}
    folder = save(parallel=True, backbone_config=backbone, feature_stride=32)
    export_checkpoint(folder, folder.parent / "exported", file_format="torch")
    check_depth(folder, *torch_parts(folder.parent / "exported"))


@pytest.mark.slow
def test_bin_tokenizer(save, bin_tokenizer_config):
    folder = save(parallel=True, depth_tokenizer_config=bin_tokenizer_config)
    export_checkpoint(folder, folder.parent / "exported", file_format="torch")
    check_depth(folder, *torch_parts(folder.parent / "exported"))


@pytest.mark.slow
def test_fixed_batch_of_a_half_precision_checkpoint(save):
    folder = save(torch.bfloat16, parallel=True)
    assert load_file(folder / "model.safetensors")["model.decoder.output_bias"].dtype == torch.bfloat16
    export_checkpoint(folder, folder.parent / "exported", file_format="torch", batch=2)
    settings, parts = torch_parts(folder.parent / "exported")
    assert settings["batch"] == 2
    one, two, _ = batches()
    expected = load(folder).generate(two, "depth").predicted_depth.numpy()  # in float32
    assert np.abs(driver.predict_depth(parts, settings, two.numpy()) - expected).max() < DEPTH_BOUND
    with pytest.raises(AssertionError, match="Guard failed"):
        driver.predict_depth(parts, settings, one.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ait-tiny-rooms-depth", "ait-tiny-rooms-instance"])
def test_shipped_checkpoints(name, repository, tmp_path):
    report = export_checkpoint(repository / "hub_configs" / name, tmp_path / "out")
    assert max(deviation.maximum for deviation in report.deviations) < DEPTH_BOUND


# --- other maps -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tiny_vqvae_config):
    """Settings of a model of depth, normals and classes, whose grids of codes differ."""
    names = ["wall", "floor", "lamp"]
    labels = dict(enumerate(names))
    normals = tiny_vqvae_config(map_kind="normals", num_codes=9, tau=0.8)
    classes = tiny_vqvae_config(map_kind="classes", id2label=labels, num_codes=7, downsample_ratio=16)
    tables = [
        {"name": "normals", "kind": "normals", "tokenizer_config": normals},
        {"name": "semantic", "kind": "classes", "tokenizer_config": classes},
    ]
    return {"dense_tasks": tables, "tasks": ("depth", "normals", "semantic"), "id2label": labels}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "channels", "parallel"),
    [("semantic", 3, True), ("normals", 3, False), ("normals", 3, True)],
)
def test_the_map_that_was_asked_for(task, channels, parallel, save, several):
    folder = save(**several, parallel=parallel)
    output = folder.parent / "exported"
    export_checkpoint(folder, output, file_format="torch", task=task)
    settings, parts = torch_parts(output, task)
    assert set(parts) == ({task} if parallel else {"encoder", "step", "detokenizer"})
    entry = settings["outputs"][f"predicted_{task}"]
    assert entry["shape"] == ["batch", channels, 32, 32]
    assert entry.get("class_names") == (["wall", "floor", "lamp"] if task == "semantic" else None)
    model = load(folder)
    for images in batches():
        expected = model.generate(images, task).dense_maps[task].numpy()
        found = driver.predict_map(parts, settings, images.numpy())
        assert found.shape == (len(images), channels, 32, 32) and expected.std() > 0.01
        assert np.abs(found - expected).max() < DEPTH_BOUND
    # The check that the export makes is one that another task's map does not pass.
    name = task if parallel else "detokenizer"
    spoilt = parts | {name: lambda arrays: {output: x[:, ::-1] for output, x in parts[name](arrays).items()}}
    with pytest.raises(ExportError, match=f"predicted_{task} deviate"):
        exporter.check_parts(model, task, spoilt, settings, 2)


# --- objects ----------------------------------------------------------------------------------------------------------


def check_objects(folder, settings, parts, task):
    model = load(folder)
    for images in batches():
        expected = model.generate(images, task, top_p=0.0)
        found = driver.predict_objects(parts, settings, images.numpy())
        assert np.array_equal(found["class_labels"], expected.class_labels)
        assert np.allclose(found["boxes"], expected.boxes)
        assert np.allclose(found["scores"], expected.scores, atol=1e-4)
        assert ("mask_values" in found) == (task == "instance")
        if task == "instance":
            assert np.allclose(found["mask_values"], expected.mask_values, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("soft", [True, False])
def test_instances(soft, save, objects):
    folder = save(**objects, soft_feedback=soft, soft_decode=soft)
    assert main([str(folder), "--output", str(folder.parent / "exported"), "--format", "torch"]) == 0
    check_objects(folder, *torch_parts(folder.parent / "exported", "instance"), "instance")


@pytest.mark.slow
def test_detection(save):
    folder = save(tasks=("detection",), depth_tokenizer_config=None)
    export_checkpoint(folder, folder.parent / "exported", file_format="torch")
    check_objects(folder, *torch_parts(folder.parent / "exported", "detection"), "detection")


@pytest.mark.slow
def test_instances_onnx(save, objects):
    folder = save(**objects)
    export_checkpoint(folder, folder.parent / "exported")
    check_objects(folder, *driver.load_parts(folder.parent / "exported"), "instance")


# --- what lies beside the files ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_metadata_says_how_to_preprocess(parallel):
    folder, output = parallel
    entry = json.loads((output / "export.json").read_text())["input"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) * entry["rescale_factor"]
    pixels = (pixels - np.array(entry["mean"])[:, None, None]) / np.array(entry["std"])[:, None, None]
    expected = AutoImageProcessor.from_pretrained(output)(image, return_tensors="np")["pixel_values"][0]
    assert list(expected.shape) == entry["shape"][1:] and np.allclose(pixels, expected, atol=1e-5)


@pytest.mark.slow
def test_documented_code_is_the_drivers_and_runs(autoregressive):
    folder, output = autoregressive
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert blocks[0] == Path(driver.__file__).read_text()
    scope: dict = {"__name__": "documented"}
    exec(blocks[0], scope)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8))
    image.save(output / "photo.png")
    exec(blocks[1].replace("ait-depth-onnx", str(output)).replace("photo.jpg", str(output / "photo.png")), scope)
    (output / "photo.png").unlink()
    size = (32, 32)
    pixels = AutoImageProcessor.from_pretrained(folder)(
        image.resize(size, Image.Resampling.BILINEAR), return_tensors="pt"
    )
    expected = load(folder).generate(pixels["pixel_values"], "depth").predicted_depth.clamp(min=1e-3)
    assert np.abs(scope["depth"] - expected.numpy()).max() < DEPTH_BOUND


# --- errors -----------------------------------------------------------------------------------------------------------


def damage(onnx, file):
    """Flip the sign of the largest weight of an ONNX file."""
    model = onnx.load(file)
    largest = max(model.graph.initializer, key=lambda entry: len(entry.raw_data))
    largest.raw_data = (-np.frombuffer(largest.raw_data, np.float32)).tobytes()
    onnx.save(model, file)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "step", "detokenizer"])
def test_a_flipped_weight_is_caught(part, autoregressive, onnx, tmp_path):
    folder, output = autoregressive
    model = load(folder)
    settings, parts = driver.load_parts(output)
    assert exporter.check_parts(model, "depth", parts, settings, 2)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((output / f"{part}.onnx").read_bytes())
    damage(onnx, damaged)
    with pytest.raises(ExportError, match="at most 0.001 is allowed"):
        exporter.check_parts(model, "depth", parts | {part: driver.load_part(damaged)}, settings, 2)


@pytest.mark.slow
def test_not_a_number_is_caught(parallel):
    folder, output = parallel
    settings, parts = driver.load_parts(output)
    broken = {"depth": lambda arrays: {"predicted_depth": parts["depth"](arrays)["predicted_depth"] * np.nan}}
    with pytest.raises(ExportError, match="deviate by nan"):
        exporter.check_parts(load(folder), "depth", broken, settings, 1)


@pytest.mark.slow
def test_a_deviating_export_leaves_nothing(save, monkeypatch, capsys):
    folder = save(parallel=True)
    output = folder.parent / "exported"
    write = exporter.write_part

    def write_another(name, part, *arguments):
        with torch.no_grad():
            part.module.model.model.decoder.output_bias[-1] += 0.05
        path = write(name, part, *arguments)
        with torch.no_grad():
            part.module.model.model.decoder.output_bias[-1] -= 0.05
        return path

    monkeypatch.setattr(exporter, "write_part", write_another)
    assert main([str(folder), "--output", str(output), "--format", "torch"]) == 1
    assert "predicted_depth deviate by" in capsys.readouterr().err
    assert nothing_left(output)


@pytest.mark.slow
def test_what_cannot_be_exported(save, monkeypatch):
    folder = save(parallel=True)

    def data_dependent(self, pixel_values):
        return pixel_values if pixel_values.sum() > 0 else -pixel_values

    monkeypatch.setattr("transformers_ait.export.modules.ParallelMap.forward", data_dependent)
    with pytest.raises(ExportError, match=r"The depth cannot be exported .* a fixed batch \(--batch N\)"):
        export_checkpoint(folder, folder.parent / "exported", file_format="torch")
    assert nothing_left(folder.parent / "exported")


def set_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.encoder.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


MISTAKES = {
    "initialisation": (
        lambda folder: set_config(folder, initialization_only=True),
        [],
        "ValueError: .* initialisation",
    ),
    "family": (lambda folder: set_config(folder, model_type="ait_vqvae"), [], "ValueError: .*'ait_vqvae'; only 'ait'"),
    "weights": (drop_a_weight, [], "OSError: 1 weights are missing .*model.encoder.norm.weight"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), [], "OSError: .*"),
    "processor": (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        [],
        "FileNotFoundError: .*save the image",
    ),
    "task": (lambda folder: None, ["--task", "instance"], r"ValueError: --task must be one of \['depth'\].*'instance'"),
    "batch": (lambda folder: None, ["--batch", "0"], "ValueError: --batch must be at least 1.* got 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, save, capsys):
    spoil, options, message = MISTAKES[name]
    folder = save(parallel=True)
    spoil(folder)
    output = folder.parent / "exported"
    assert main([str(folder), "--output", str(output), "--format", "torch", *options]) == 1
    printed = capsys.readouterr().err.strip()
    assert re.fullmatch(f"{message}.*", printed.splitlines()[-1])
    assert nothing_left(output)


@pytest.mark.slow
def test_folders(parallel, tmp_path, capsys):
    folder, output = parallel
    assert main([str(tmp_path / "absent"), "--output", str(tmp_path / "out")]) == 1
    assert "FileNotFoundError: There is no" in capsys.readouterr().err
    before = {file: file.read_bytes() for file in output.iterdir()}
    assert main([str(folder), "--output", str(output)]) == 1
    assert "FileExistsError" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in output.iterdir()}


@pytest.mark.slow
def test_missing_packages(parallel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "onnxscript" else True)
    assert main([str(parallel[0]), "--output", str(tmp_path / "out")]) == 1
    assert "needs onnxscript; run `pip install transformers_ait[export]`" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--format must be one of"):
        export_checkpoint(parallel[0], tmp_path / "out", file_format="tflite")


# --- damage and odd arguments -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": "x"}, "--batch must be at least 1 and at most 65536, .* got 'x'"),
        ({"batch": 2**70}, "--batch must be at least 1 and at most 65536"),
        ({"batch": True}, "--batch must be at least 1"),
        ({"file_format": []}, r"--format must be one of \['onnx', 'torch'\], got \[\]"),
    ],
)
def test_arguments_of_other_types(parallel, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_checkpoint(parallel[0], tmp_path / "new", **arguments)
    assert nothing_left(tmp_path / "new")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"{", OSError, "export.json is no readable JSON file"),
        (b"\xff", OSError, "export.json is no readable JSON file"),
        (b"[]", ValueError, "export.json must hold `files`, .* got None"),
        (b'{"files": {"depth": 5}}', ValueError, "export.json must hold `files`"),
        (b'{"files": {"depth": "gone.onnx"}}', FileNotFoundError, "There is no .*gone.onnx, which export.json names"),
    ],
)
def test_damaged_settings_of_an_export(parallel, tmp_path, content, error, message):
    folder = shutil.copytree(parallel[1], tmp_path / "copy")
    (folder / "export.json").write_bytes(content)
    with pytest.raises(error, match=message):
        driver.load_parts(folder)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"x" * 500])
def test_damaged_programs(parallel, tmp_path, content):
    folder = shutil.copytree(parallel[1], tmp_path / "copy")
    path = next(folder.glob("*.onnx"))
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{path.name} is no program that onnxruntime can read"):
        driver.load_parts(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pixels", "error", "message"),
    [
        (5, TypeError, "pixel_values must be a float32 array, got int"),
        (np.zeros((1, 3, 32, 32)), TypeError, "pixel_values must be a float32 array, got float64"),
        (np.zeros((3, 32, 32), np.float32), ValueError, r"pixel_values must be \(batch, 3, height, width\)"),
        (np.zeros((1, 3, 32, 31), np.float32), ValueError, r"cannot take pixel_values float32 \(1, 3, 32, 31\)"),
    ],
)
def test_odd_pixels(parallel, pixels, error, message):
    settings, parts = driver.load_parts(parallel[1])
    with pytest.raises(error, match=message):
        driver.predict_map(parts, settings, pixels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"outputs": 5}, {"outputs": {}}, {"outputs": {"x": {}}}, {"task": []}, {"task": "x"}]
)
def test_odd_settings(parallel, change):
    settings, parts = driver.load_parts(parallel[1])
    with pytest.raises(ValueError, match=f"export.json must (hold|name as) `{next(iter(change))}`"):
        driver.predict_map(parts, settings | change, np.zeros((1, 3, 32, 32), np.float32))
