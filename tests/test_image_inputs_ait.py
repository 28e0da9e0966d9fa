"""Maps of every accepted type to their native form."""

import numpy as np
import pytest
import torch
from dense_map_cases import KINDS, NUM_CLASSES, maps_of, photo
from PIL import Image

from transformers_ait import AiTDepthImageProcessor
from transformers_ait.image_inputs_ait import checked_target_sizes, native_map, native_maps
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


SIZE = {"height": 32, "width": 32}
BOMB = b"P6 60000 60000 255\n" + bytes(100)  # a PPM that says how large it is


@pytest.fixture
def processor():
    return AiTDepthImageProcessor(size=SIZE)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (Image.new("RGB", (0, 5)), ValueError, "images must have pixels, got a PIL image of 0 x 5"),
        (np.zeros((4, 6), "U3"), TypeError, "images must be of one of the dtypes bool, .* got <U3"),
        (np.zeros((4, 6), object), TypeError, "images must be of one of the dtypes"),
        (np.zeros((4, 6, 3), np.longdouble), TypeError, "images must be of one of the dtypes"),
        (
            torch.zeros(3, 4, 6, dtype=torch.float8_e4m3fn),
            TypeError,
            "images must be dense tensors .* got float8_e4m3fn",
        ),
        (torch.zeros(3, 4, 6, device="meta"), TypeError, "images must be dense tensors with content, .* on meta"),
        (torch.zeros(3, 4, 6).to_sparse(), TypeError, "images must be dense tensors"),
        (np.zeros((5, 5, 5)), ValueError, r"images must have 1, 3 or 4 channels, .* shape \(5, 5, 5\)"),
        (np.zeros((4, 6, 3), np.int64), TypeError, "images with transparency must be uint8"),
        ("missing.png", FileNotFoundError, "images: missing.png is no readable picture"),
        ("\0", OSError, "images: .* cannot be opened .*null byte"),
        ("x" * 3000, OSError, "images: .* cannot be opened .*too long"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_what_is_no_image_is_named(processor, image, error, message):
    with pytest.raises(error, match=message):
        processor(image)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "cannot be opened .*decompression bomb"),
        (b"RIFF\x20\0\0\0WEBPVP8 garbage", "is no readable picture|cannot be opened"),
        (b"", "is no readable picture"),
    ],
)
def test_files_that_are_no_pictures_are_named(processor, content, message, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"picture.png.*({message})"):
        processor(path)


def test_pictures_of_odd_modes_and_broken_exif_are_read(processor):
    for mode in ("La", "RGBa", "CMYK", "HSV", "I;16", "F", "1"):
        assert processor(Image.new(mode, (6, 4)), return_tensors="pt").pixel_values.shape == (1, 4, 3, 32, 32)
    broken = Image.new("RGB", (6, 4))
    broken.info["exif"] = b"Exif\0\0broken"
    assert processor(broken, return_tensors="pt").pixel_values.shape == (1, 4, 3, 32, 32)


@pytest.mark.parametrize(
    "value",
    [np.zeros((4, 6), "U3"), np.zeros((4, 6), object), torch.zeros(4, 6, device="meta"), torch.zeros(4, 6).to_sparse()],
)
def test_maps_without_numbers_are_named(value):
    with pytest.raises(TypeError, match="^map (has dtype|must be a dense tensor)"):
        native_map(value, MAP_KINDS["depth"], "map")


@pytest.mark.parametrize(
    "sizes", [5, 1.5, object, [(4, 1.5)], [(True, 4)], [(2**40, 4)], [("4", "4")], torch.tensor(5)]
)
def test_target_sizes_that_are_none(sizes):
    with pytest.raises((TypeError, ValueError), match="target_sizes"):
        checked_target_sizes(sizes, 1)


def test_maps_that_cannot_be_decoded_are_named(tmp_path):
    path = tmp_path / "depth.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9000, (64, 64)).astype(np.uint16)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(OSError, match="map is a picture that cannot be decoded"):
        native_map(Image.open(path), MAP_KINDS["depth"], "map")
