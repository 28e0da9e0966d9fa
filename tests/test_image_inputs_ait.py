"""Maps of every accepted type to their native form."""

import numpy as np
import pytest
import torch
from dense_map_cases import KINDS, NUM_CLASSES, maps_of, photo
from PIL import Image

from transformers_ait.image_inputs_ait import native_map, native_maps
from transformers_ait.map_kinds_ait import MAP_KINDS


def pil_normals(normals):
    return Image.fromarray(((normals.movedim(0, -1) + 1) * 127.5).round().to(torch.uint8).numpy())


@pytest.mark.parametrize("task", KINDS)
def test_kinds_of_maps(task, tmp_path):
    truth = maps_of(20, 30)[task]
    kind = MAP_KINDS[KINDS[task]]
    forms = [truth, truth.numpy(), np.ascontiguousarray(truth.numpy()[..., ::-1])[..., ::-1]]
    if task == "semantic":
        ids = truth.numpy()
        forms += [ids.astype(dtype) for dtype in (np.uint8, np.uint16, np.int32)]
        forms += [Image.fromarray(ids.astype(dtype)) for dtype in (np.uint8, np.uint16, np.int32)]
        palette = Image.fromarray(ids.astype(np.uint8)).convert("P")
        palette.putpalette(list(range(255, -1, -1)) * 3)  # colours that are no ids
        palette.putdata(ids.flatten().tolist())
        palette.save(tmp_path / "ids.png")
        forms.append(Image.open(tmp_path / "ids.png"))
        assert forms[-1].mode == "P"
    elif task == "depth":
        millimetres = Image.fromarray((truth * 1000).round().to(torch.int32).numpy().astype(np.uint16))
        forms += [truth.double(), Image.fromarray(truth.numpy()), millimetres]
    elif task == "normals":
        forms += [truth.movedim(0, -1), truth.movedim(0, -1).numpy(), pil_normals(truth)]
    else:
        forms += [truth.double()]
    for form in forms:
        native = native_map(form, kind, "map")
        assert native.shape == truth.shape and native.dtype == truth.dtype
        stored = isinstance(form, Image.Image) and task in ("depth", "normals")
        torch.testing.assert_close(native, truth, atol=0.01 if stored else 1e-7, rtol=0, equal_nan=True)
        kind.check(native[None], NUM_CLASSES if task == "semantic" else len(native), "map")
    one_channel = (
        native_map(Image.fromarray(truth[0].float().numpy()), MAP_KINDS["values"], "map") if truth.ndim == 3 else None
    )
    assert one_channel is None or one_channel.shape == (1, 20, 30)


def test_normals_of_8_bits_have_length_1_or_none():
    grey = torch.zeros(3, 4, 5)
    grey[2, 0] = 1
    native = native_map(pil_normals(grey), MAP_KINDS["normals"], "map")
    torch.testing.assert_close(native[:, 0].norm(dim=0), torch.ones(5))
    assert (native[:, 1:] == 0).all()
    raw = torch.from_numpy(np.array(pil_normals(grey))).movedim(-1, 0) / 127.5 - 1
    assert (raw[:, 1:] != 0).all(), "grey 128 is not quite 0, so the rule matters"


BAD_MAPS = [
    ("depth", np.ones((20, 30), np.uint16), TypeError, r"has dtype uint16, but depth is .*`depth / 1000.0`"),
    ("depth", np.full((20, 30), np.nan), ValueError, "must be finite and not negative"),
    ("depth", np.ones((1, 20, 30)), ValueError, r"has shape \(1, 20, 30\).*'depth' is \(height, width\)"),
    ("depth", Image.new("L", (30, 20)), TypeError, "PIL image of mode 'L'; use 16-bit millimetres"),
    ("normals", torch.full((3, 20, 30), 0.5), ValueError, "vectors of length 1.*got a length of 0.866"),
    ("normals", photo(20, 30), TypeError, "has dtype uint8, but normals are floating-point"),
    ("normals", torch.zeros(4, 20, 30), ValueError, r"'normals' is \(3, height, width\)"),
    ("normals", torch.zeros(20, 30), ValueError, r"has shape \(20, 30\)"),
    ("normals", Image.new("L", (30, 20)), TypeError, "mode 'L'; use 8-bit RGB"),
    ("semantic", torch.zeros(20, 30), TypeError, "has dtype torch.float32, but classes are integer ids"),
    ("semantic", torch.full((20, 30), -1), ValueError, "class ids.*got -1"),
    ("semantic", torch.full((20, 30), 300), ValueError, r"class ids in \[0, 255\), and 255 where invalid, got 300"),
    ("semantic", Image.new("RGB", (30, 20)), TypeError, "mode 'RGB'; use class ids in mode 'L', 'P'"),
    ("albedo", np.full((2, 20, 30), np.inf), ValueError, "must be finite; mark pixels without a value by NaN"),
    ("albedo", Image.new("RGB", (30, 20)), TypeError, "mode 'RGB'; use mode 'F', 'L', 'I;16' or 'I'"),
    ("albedo", "map.png", TypeError, "must be a PIL image, NumPy array or torch tensor, got str"),
    ("albedo", torch.zeros(2, 21, 30), ValueError, r"has shape \(2, 21, 30\), but its upright image is 20 x 30"),
]


@pytest.mark.parametrize(("task", "bad", "error", "message"), BAD_MAPS)
def test_bad_maps_are_refused_by_name(task, bad, error, message):
    good = maps_of(20, 30)[task]
    kind, images = MAP_KINDS[KINDS[task]], [torch.zeros(3, 20, 30)] * 2
    native_maps([good, good], images, kind, "maps")
    with pytest.raises(error, match=rf"^maps\[1\] .*{message}"):
        native_maps([good, bad], images, kind, "maps")
