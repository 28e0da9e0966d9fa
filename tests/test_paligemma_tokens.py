"""PaliGemma's mask tokenizer and text: against NumPy references (paligemma_cases), and round trips."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paligemma_cases import random_arrays, reference_decode, reference_encode
from PIL import Image

from transformers_ait import (
    AiTVQVAEConfig,
    AiTVQVAEModel,
    PaliGemmaDetection,
    format_detections,
    from_instances,
    parse_detections,
    to_instances,
)
from transformers_ait.conversion import converter
from transformers_ait.conversion.__main__ import main
from transformers_ait.conversion.checkpoint import CheckpointError, read_checkpoint
from transformers_ait.mask_geometry_ait import paste_masks

NAME = "paligemma-vqvae-mask"
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "paligemma.md"
# Of vae-oid.npz, as its Git LFS pointer in zsxkib/cog-paligemma2-10b-mix says; NumPy writes these names in as many.
PUBLISHED_BYTES = 8479556
EXAMPLE = (
    "<loc0256><loc0102><loc0768><loc0512> <seg087><seg041><seg010><seg108><seg055><seg003><seg119><seg027>"
    "<seg068><seg114><seg014><seg037><seg029><seg063><seg048><seg104> cat ; <loc0100><loc0600><loc0400><loc0900> dog"
)


@pytest.fixture(scope="module")
def arrays():
    return random_arrays()


@pytest.fixture(scope="module")
def published(arrays, tmp_path_factory):
    """A file with the names, shapes and size of the published one."""
    path = tmp_path_factory.mktemp("published") / "vae-oid.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    """The file, converted by the command line."""
    output = tmp_path_factory.mktemp("converted") / "paligemma-masks"
    assert main(["--checkpoint", str(published), "--config", NAME, "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AiTVQVAEModel.from_pretrained(folder).eval()


def deviation(tokenizer, arrays):
    """Largest difference of decoded masks, relative to the reference's largest value."""
    codes = np.random.default_rng(1).integers(0, 128, (3, 16))
    expected = np.stack([reference_decode(arrays, row) for row in codes])
    with torch.no_grad():
        decoded = 2 * tokenizer.decode(torch.from_numpy(codes).view(3, 4, 4))[:, 0] - 1
    return np.abs(decoded.numpy() - expected).max() / np.abs(expected).max()


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_the_layout_is_that_of_the_published_file(published):
    assert published.stat().st_size == PUBLISHED_BYTES, "names, shapes or types differ from the published file's"


def test_decoded_masks_are_the_references(tokenizer, arrays):
    assert deviation(tokenizer, arrays) < 1e-5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("_vq_vae._embedding", lambda a: a.reshape(4, 32, 512).transpose(1, 0, 2).reshape(128, 512)),
        ("decoder.0.bias", lambda a: a + 0.01),
        ("decoder.2.net.2.weight", lambda a: a.transpose(1, 0, 2, 3)),
        ("decoder.4.weight", lambda a: a.transpose(1, 0, 2, 3)),
        ("decoder.8.weight", lambda a: a[:, :, ::-1]),
        ("decoder.10.weight", lambda a: a.transpose(0, 1, 3, 2)),
    ],
)
def test_a_planted_error_shows(name, change, tokenizer, arrays):
    assert deviation(tokenizer, arrays | {name: change(arrays[name])}) > 1e-3


def test_codes_are_the_references(tokenizer, arrays):
    masks = np.random.default_rng(2).random((3, 4, 4)).repeat(16, 1).repeat(16, 2).astype(np.float32)
    codes = tokenizer.encode(torch.from_numpy(masks)[:, None]).flatten(1)
    assert codes.tolist() == [reference_encode(arrays, mask).tolist() for mask in masks]
    assert codes.unique().numel() > 4


def test_the_folder_says_whose_masks_it_is_for(folder, repository):
    assert (
        "OpenImages" in (folder / "README.md").read_text()
        and "holds no weights" not in (folder / "README.md").read_text()
    )
    config, same = (
        AiTVQVAEConfig.from_pretrained(repository / "hub_configs" / name) for name in (NAME, "ait-vqvae-mask")
    )
    assert config.to_dict() == same.to_dict()


def test_a_wrong_name_map_is_noticed(published, tmp_path, monkeypatch, capsys):
    def swapped(config):
        names = dict(right(config))
        names["decoder.2.net.0.weight"], names["decoder.2.net.2.weight"] = (
            names["decoder.2.net.2.weight"],
            names["decoder.2.net.0.weight"],
        )
        return names

    right = converter.vqvae_names
    monkeypatch.setattr(converter, "vqvae_names", swapped)
    assert main(["--checkpoint", str(published), "--config", NAME, "--output", str(tmp_path / "folder")]) == 1
    assert "ParityError" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["encoder.", "decoder.4.", "encoder.0.", "_vq_vae._embedding", "_vq_vae._ema"])
def test_missing_tensors_are_named(prefix, arrays, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **{name: array for name, array in arrays.items() if not name.startswith(prefix)})
    assert main(["--checkpoint", str(tmp_path / "a.npz"), "--config", NAME, "--output", str(tmp_path / "folder")]) == 1
    error = capsys.readouterr().err
    first = next(name for name in arrays if name.startswith(prefix))
    assert error.startswith("CheckpointError") and "is missing" in error and "download it again" in error
    assert first in error or prefix in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_misshapen_tensor_is_named(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays | {"decoder.6.weight": arrays["decoder.4.weight"]})
    with pytest.raises(
        CheckpointError, match=r"decoder.6.weight has shape \(128, 128, 4, 4\), expected \(128, 64, 4, 4"
    ):
        converter.convert(tmp_path / "a.npz", NAME, tmp_path / "folder")


@pytest.mark.parametrize("damage", ["truncated", "empty", "web page", "flipped byte", "pickle", "text", "plain array"])
def test_damaged_files(damage, published, tmp_path, capsys):
    path = tmp_path / "a.npz"
    content = bytearray(published.read_bytes())
    if damage == "pickle":
        np.savez(path, a=np.array([{}], dtype=object))
    elif damage == "text":
        np.savez(path, a=np.array(["a"]))
    elif damage == "plain array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    else:
        content[len(content) // 2] ^= 255
        shown = {"truncated": content[: len(content) // 2], "empty": b"", "web page": b"<html>not found"}
        path.write_bytes(shown.get(damage, content))
    with pytest.raises(CheckpointError, match="damaged, incomplete or of another kind"):
        read_checkpoint(path)
    assert main(["--checkpoint", str(path), "--config", NAME, "--output", str(tmp_path / "folder")]) == 1
    assert "download it again" in capsys.readouterr().err and not (tmp_path / "folder").exists()


def test_a_compressed_file_and_doubles_are_read(arrays, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=arrays["decoder.12.weight"].astype(np.float64))
    assert zipfile.is_zipfile(tmp_path / "a.npz")
    read = read_checkpoint(tmp_path / "a.npz")["a"]
    assert read.dtype == torch.float32 and np.array_equal(read.numpy(), arrays["decoder.12.weight"])


# --- text ------------------------------------------------------------------------------------------------------------


def bins(low, high):
    return st.lists(st.integers(low, high), min_size=2, max_size=2).map(sorted)


LABELS = st.text(st.characters(exclude_characters=";<>", exclude_categories=("Cs",)), max_size=12).map(str.strip)
CODES = st.none() | st.lists(st.integers(0, 127), min_size=16, max_size=16).map(tuple)
DETECTIONS = st.builds(
    lambda label, xs, ys, codes: PaliGemmaDetection(
        label, tuple(v / 1023 for v in (xs[0], ys[0], xs[1], ys[1])), codes
    ),
    LABELS,
    bins(0, 1023),
    bins(0, 1023),
    CODES,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(DETECTIONS, max_size=4))
def test_text_round_trip(detections):
    assert parse_detections(format_detections(detections)) == detections
    assert parse_detections(f"segment cat\n{format_detections(detections)}<eos>") == detections


PIECES = [*"; a\n<>", "<loc0001>", "<loc0500>" * 4, "<loc1024>", "<seg007>", "<seg007>" * 16, "<seg128>", "<loc1>"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.characters()).map("".join))
def test_no_text_is_an_error(text):
    for label, box, codes in parse_detections(text):
        assert label == label.strip() and all(0 <= side <= 1 for side in box)
        assert codes is None or len(codes) == 16


def test_an_example():
    cat, dog = parse_detections(EXAMPLE)
    assert cat.box == (102 / 1023, 256 / 1023, 512 / 1023, 768 / 1023), "y1 x1 y2 x2 in the text, xyxy here"
    assert cat.label == "cat" and cat.codes[:3] == (87, 41, 10) and cat.codes[-1] == 104
    assert dog == ("dog", (600 / 1023, 100 / 1023, 900 / 1023, 400 / 1023), None)
    assert format_detections([cat, dog]) == EXAMPLE


LOCATIONS = "<loc0000><loc0100><loc0200><loc0300>"
BOX = (100 / 1023, 0.0, 300 / 1023, 200 / 1023)
MASK = "".join(f"<seg{code:03d}>" for code in range(16))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{LOCATIONS}{MASK}", [("", BOX, tuple(range(16)))]),
        (f"{LOCATIONS} a{LOCATIONS} b", [("a", BOX, None), ("b", BOX, None)]),
        ("detect cat", []),
        ("", []),
        (f"{LOCATIONS} {MASK[8:]} cat", [("cat", BOX, None)]),
        (f"{LOCATIONS} {MASK}<seg001> cat", [("cat", BOX, None)]),
        (f"{LOCATIONS} {MASK.replace('<seg015>', '<seg128>')} cat", [("cat", BOX, None)]),
        (f"{LOCATIONS} {MASK.replace('<seg015>', '<seg15>')} cat", [("cat", BOX, None)]),
        (f"{MASK} cat ; {LOCATIONS} dog", [("dog", BOX, None)]),
        (f"<loc0001>{LOCATIONS} cat ; {LOCATIONS} dog", [("dog", BOX, None)]),
        (f"{LOCATIONS} dog ; <loc0001><loc0002><loc0003>", [("dog", BOX, None)]),
        (f"<loc1024><loc0100><loc0200><loc0300> cat ; {LOCATIONS} dog", [("dog", BOX, None)]),
        (f"<loc00000><loc0100><loc0200><loc0300> cat ; {LOCATIONS} dog", [("dog", BOX, None)]),
        (f"{LOCATIONS} dog ; <loc0001><lo", [("dog", BOX, None)]),
    ],
)
def test_text_that_is_not_whole(text, expected):
    assert parse_detections(text) == expected


def test_what_is_left_out_is_reported(monkeypatch):
    said = []
    monkeypatch.setattr("transformers_ait.paligemma_tokens.logger.warning", said.append)
    parse_detections(f"segment cat\n{LOCATIONS}{MASK} cat<eos>")
    assert said == []
    parse_detections(f"<loc0001> cat ; {LOCATIONS}<seg001> dog")
    assert "left out: '<loc0001> cat '" in said[0] and "its box is kept" in said[1] and len(said) == 2


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        (("a;b", BOX, None), "label must not hold"),
        (("a", (0.5, 0.0, 0.4, 1.0), None), "box must be"),
        (("a", (0.0, 0.0, float("nan"), 1.0), None), "box must be"),
        (("a", BOX, [0] * 15), "codes must be 16"),
        (("a", BOX, [128] * 16), "codes must be 16"),
    ],
)
def test_what_cannot_be_written(detection, message):
    with pytest.raises(ValueError, match=message):
        format_detections([detection])


def test_boxes_are_clipped_to_the_image():
    assert format_detections([("a", (-0.1, 0.25, 1.2, 1.0), None)]) == "<loc0256><loc0000><loc1023><loc1023> a"


# --- pixels ----------------------------------------------------------------------------------------------------------


def blob_tokenizer(tokenizer, monkeypatch, values):
    """The tokenizer, giving a mask (64, 64) around [0, 1] whatever the codes."""
    monkeypatch.setattr(tokenizer, "decode", lambda codes: values.expand(len(codes), 1, 64, 64))
    return tokenizer


def smooth_blob(seed):
    noise = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    noise = torch.nn.functional.interpolate(noise, (64, 64), mode="bicubic")
    return (0.5 + noise[0, 0]).clamp(0, 1)


def test_objects_in_pixels(tokenizer, arrays):
    found = to_instances(EXAMPLE, tokenizer, (480, 640))
    assert found["labels"] == ["cat", "dog"]
    scale = torch.tensor([640, 480, 640, 480]) / 1023
    expected = torch.tensor([[102.0, 256, 512, 768], [600, 100, 900, 400]]) * scale
    torch.testing.assert_close(found["boxes"], expected)
    assert found["masks"].shape == (2, 480, 640) and found["masks"].dtype == torch.bool
    assert not found["masks"][1].any()
    inside = reference_decode(arrays, np.array(parse_detections(EXAMPLE)[0].codes)) > 0
    # Every pixel of the decoded mask at its centre, away from the frame.
    rows = (expected[0, 1] + (torch.arange(1, 63) + 0.5) / 64 * (expected[0, 3] - expected[0, 1])).long()
    columns = (expected[0, 0] + (torch.arange(1, 63) + 0.5) / 64 * (expected[0, 2] - expected[0, 0])).long()
    agreement = (found["masks"][0][rows][:, columns].numpy() == inside[1:-1, 1:-1]).mean()
    assert agreement > 0.9 and 0.02 < inside.mean() < 0.98
    outside = found["masks"][0].clone()
    outside[120:361, 63:321] = False
    assert not outside.any()


@pytest.mark.parametrize("box", [(100, 150, 700, 890), (0, 0, 1023, 1023), (500, 341, 560, 400), (682, 341, 700, 1000)])
def test_pasting_is_that_of_the_published_evaluation(box, tokenizer, monkeypatch):
    """There: sides rounded down, Pillow's bilinear resizing, inside where the value exceeds 0."""
    values = smooth_blob(box[0])
    text = "".join(f"<loc{side:04d}>" for side in box) + MASK
    found = to_instances(text, blob_tokenizer(tokenizer, monkeypatch, values), (480, 640))
    y1, x1, y2, x2 = (int(side / 1023 * size) for side, size in zip(box, (480, 640) * 2, strict=True))
    resized = Image.fromarray((2 * values - 1).numpy()).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)
    expected = torch.zeros(480, 640, dtype=torch.bool)
    expected[y1:y2, x1:x2] = torch.from_numpy(np.asarray(resized) > 0)
    assert (found["masks"][0] ^ expected).sum() <= 1 and expected.any()
    ours = paste_masks(values[None], found["boxes"], 480, 640)
    assert (ours[0] ^ expected).sum() > 0.005 * expected.sum(), "our own pasting is another"


def test_empty_and_inverted_boxes_are_left_out(tokenizer):
    text = f"<loc0100><loc0100><loc0100><loc0200>{MASK} a ; <loc0200><loc0100><loc0100><loc0200> b ; {LOCATIONS} c"
    found = to_instances(text, tokenizer, (50, 60))
    assert found["labels"] == ["c"] and found["masks"].shape == (1, 50, 60)
    found = to_instances("nothing", tokenizer, (50, 60))
    assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, 50, 60) and found["labels"] == []


def test_boxes_alone_need_no_tokenizer():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 45.0], [0.0, 0.0, 64.0, 48.0]])
    text = from_instances(["a thing", ""], boxes, (48, 64))
    assert text == "<loc0426><loc0160><loc0959><loc0480> a thing ; <loc0000><loc0000><loc1023><loc1023>"
    found = to_instances(text, None, (48, 64))
    assert set(found) == {"boxes", "labels"} and found["labels"] == ["a thing", ""]
    torch.testing.assert_close(found["boxes"], boxes, atol=64 / 2046, rtol=0)


def test_training_text_of_masks(tokenizer, arrays):
    """Codes of the crop at the rounded box, resized with Pillow, which antialiases as TensorFlow does."""
    masks = torch.zeros(2, 300, 400, dtype=torch.bool)
    masks[0, 20:250, 30:200] = True
    masks[0, 60:120, 80:150] = False
    masks[1, 5:20, 100:131] = torch.rand(15, 31) > 0.3
    boxes = torch.tensor([[20.3, 10.7, 350.6, 280.2], [99.0, 4.0, 131.2, 21.0]])
    detections = parse_detections(from_instances(["a", "b"], boxes, (300, 400), masks, tokenizer))
    for detection, mask, (x1, y1, x2, y2) in zip(
        detections, masks, ((20, 11, 351, 280), (99, 4, 131, 21)), strict=True
    ):
        crop = Image.fromarray(mask[y1:y2, x1:x2].numpy().astype(np.float32))
        crop = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR))
        assert detection.codes == tuple(reference_encode(arrays, crop).tolist())
    assert detections[0].codes != detections[1].codes


def test_an_object_of_less_than_a_pixel(tokenizer):
    masks = torch.ones(2, 30, 40, dtype=torch.bool)
    boxes = torch.tensor([[10.1, 10.1, 10.3, 10.3], [39.8, 29.8, 40.0, 30.0]])
    codes = [detection.codes for detection in parse_detections(from_instances("ab", boxes, (30, 40), masks, tokenizer))]
    whole = tokenizer.encode(torch.ones(1, 1, 64, 64)).flatten().tolist()
    assert codes == [tuple(whole)] * 2
    assert from_instances([], torch.zeros(0, 4), (30, 40), masks[:0], tokenizer) == ""


def test_what_does_not_fit(tokenizer, tiny_vqvae_config):
    boxes, masks = torch.tensor([[0.0, 0.0, 5.0, 5.0]]), torch.ones(1, 30, 40)
    with pytest.raises(ValueError, match="one row per label"):
        from_instances(["a", "b"], boxes, (30, 40))
    with pytest.raises(ValueError, match="masks need a tokenizer"):
        from_instances(["a"], boxes, (30, 40), masks)
    with pytest.raises(ValueError, match=r"masks must be \(1, 40, 30\)"):
        from_instances(["a"], boxes, (40, 30), masks, tokenizer)
    other = AiTVQVAEModel(tiny_vqvae_config())
    with pytest.raises(ValueError, match="16 of 128 codes, got one of depth with 16 of 12"):
        to_instances(EXAMPLE, other, (30, 40))
    with pytest.raises(ValueError, match="paligemma-vqvae-mask"):
        from_instances(["a"], boxes, (30, 40), masks, other)


def test_the_documents_code(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        exec(block, scope)
    assert scope["found"]["masks"].shape == (2, 480, 640) and scope["found"]["labels"] == ["cat", "dog"]
    assert scope["suffix"] == "<loc0256><loc0102><loc0767><loc0512> cat"
    command = re.search(r"```sh\npython -m transformers_ait.conversion (.*?)\n```", DOCUMENT.read_text())[1]
    assert f"--config {NAME} --output paligemma-masks" in command
