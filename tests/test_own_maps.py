"""Maps of a user's own, in columns of any name, through plain `datasets`."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from transformers_ait.image_inputs_ait import native_map
from transformers_ait.map_kinds_ait import MAP_KINDS

HEIGHT, WIDTH = 12, 16
KINDS = {"range": "depth", "parts": "classes", "shape": "normals"}


@pytest.mark.parametrize("palette", [False, True])
def test_image_folder_gives_maps_unaltered(tmp_path: Path, palette: bool) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "train"
    folder.mkdir()
    depth = rng.integers(0, 65_535, (HEIGHT, WIDTH)).astype(np.uint16)
    classes = rng.integers(0, 255, (HEIGHT, WIDTH)).astype(np.uint8)
    vectors = rng.normal(size=(HEIGHT, WIDTH, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    normals = np.rint((vectors + 1) * 127.5).astype(np.uint8)
    labels = Image.fromarray(classes)
    if palette:
        labels = labels.convert("P")
        labels.putpalette(rng.integers(0, 255, 768).tolist())
    files = {"range": Image.fromarray(depth), "parts": labels, "shape": Image.fromarray(normals)}
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.jpg")
    for name, image in files.items():
        image.save(folder / f"{name}.png")
    line = {"file_name": "a.jpg"} | {f"{name}_file_name": f"{name}.png" for name in files}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    for streaming in (False, True):
        options = {"split": "train", "streaming": streaming, "cache_dir": str(tmp_path / "cache")}
        row = next(iter(datasets.load_dataset("imagefolder", data_dir=str(tmp_path), **options)))
        assert row.keys() == {"image", "range", "parts", "shape"}
        assert row["range"].mode.startswith("I;16") and row["parts"].mode == ("P" if palette else "L")
        for name, pixels in (("range", depth), ("parts", classes), ("shape", normals)):
            np.testing.assert_array_equal(np.asarray(row[name]), pixels)
        read = {name: native_map(row[name], MAP_KINDS[kind], name).numpy() for name, kind in KINDS.items()}
        np.testing.assert_allclose(read["range"] * 1000, depth, rtol=1e-6)
        np.testing.assert_array_equal(read["parts"], classes)
        np.testing.assert_allclose(np.moveaxis(read["shape"], 0, -1), vectors, atol=0.01)
