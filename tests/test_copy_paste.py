"""Pasting of objects, on hand-made samples whose pixels say where they came from."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from torchvision import tv_tensors

from transformers_ait.data.copy_paste import Backgrounds, paste_objects, some_objects
from transformers_ait.engine.recipes.reading import RecipeError
from transformers_ait.engine.recipes.scripts import InstanceAugmentationRecipe
from transformers_ait.engine.tasks.instance_data import ImageObjects
from transformers_ait.engine.tasks.instances import InstanceAugmentation


def sample(size, boxes, shade, labels=None):
    """An image of one shade, whose objects are rectangles of `shade` + 1, + 2, ..."""
    image = torch.full((3, *size), shade, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        masks[number, y0:y1, x0:x1] = True
        image[:, y0:y1, x0:x1] = shade + 1 + number
    return {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor(boxes).float().reshape(-1, 4), format="XYXY", canvas_size=size),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.tensor(labels if labels is not None else [shade] * len(boxes)),
    }


def all_of(found):
    return torch.ones(len(found["labels"]), dtype=torch.bool)


def test_pasted_objects_bring_pixels_box_mask_and_label():
    target, source = sample((20, 30), [(0, 0, 5, 5)], 10), sample((20, 30), [(8, 2, 12, 9), (20, 10, 29, 20)], 100)
    found = paste_objects(target, source, torch.tensor([False, True]))
    assert found["labels"].tolist() == [10, 100]
    assert found["boxes"].tolist() == [[0, 0, 5, 5], [20, 10, 29, 20]]
    assert (found["image"][:, found["masks"][1]] == 102).all()
    assert (found["image"][:, found["masks"][0]] == 11).all()
    assert not (found["image"] == 101).any()  # not chosen
    assert (found["image"] == 10).sum() == 3 * (20 * 30 - 25 - 90)
    assert {name: type(x) for name, x in found.items()} == {name: type(x) for name, x in target.items()}


def test_covered_objects_shrink_and_hidden_ones_go():
    target = sample((20, 20), [(0, 0, 10, 10), (10, 10, 14, 14), (15, 0, 20, 3)], 10, [1, 2, 3])
    source = sample((20, 20), [(5, 0, 14, 14)], 100)
    found = paste_objects(target, source, all_of(source))
    assert found["labels"].tolist() == [1, 3, 100]
    assert found["boxes"].tolist() == [[0, 0, 5, 10], [15, 0, 20, 3], [5, 0, 14, 14]]
    assert found["masks"].sum(dim=(1, 2)).tolist() == [50, 15, 126]
    assert not (found["masks"].sum(dim=0) > 1).any()


def test_untouched_boxes_keep_fractions_of_pixels():
    target, source = sample((20, 20), [(0, 0, 5, 5)], 10), sample((20, 20), [(10, 10, 15, 15)], 100)
    target["boxes"][0] = torch.tensor([0.25, 0.5, 4.75, 5.0])
    assert paste_objects(target, source, all_of(source))["boxes"][0].tolist() == [0.25, 0.5, 4.75, 5.0]


@pytest.mark.parametrize(
    ("size", "box", "places_at_least"),
    [
        ((8, 9), (1, 2, 7, 6), 10),
        ((40, 50), (20, 18, 26, 22), 10),
        ((40, 9), (1, 18, 7, 22), 10),
        ((20, 30), (1, 2, 7, 6), 1),
    ],
)
def test_sources_of_any_size_stay_whole_or_are_cut(size, box, places_at_least):
    target = sample((20, 30), [], 10)
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        source = sample(size, [box], 100)
        found = paste_objects(target, source, all_of(source))
        assert found["image"].shape == (3, 20, 30)
        assert ((found["image"][0] == 101) == found["masks"].any(dim=0)).all()
        for edges, mask in zip(found["boxes"].tolist(), found["masks"], strict=True):
            y, x = mask.nonzero().unbind(1)
            assert edges == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert mask.sum() > 0.2 * 24
            places.add(tuple(edges))
    assert len(places) >= places_at_least


def test_nothing_to_paste_changes_nothing():
    target, source = sample((20, 30), [(0, 0, 5, 5)], 10), sample((20, 30), [], 100)
    found = paste_objects(target, source, all_of(source))
    assert all(torch.equal(found[name], target[name]) for name in target)
    assert some_objects(0).shape == (0,)


def test_some_objects_are_one_at_least():
    torch.manual_seed(0)
    draws = torch.stack([some_objects(3) for _ in range(200)])
    assert draws.any(dim=1).all()
    assert 0.3 < draws.float().mean() < 0.7


def test_backgrounds_are_windows_of_the_pictures(tmp_path):
    (tmp_path / "inner").mkdir()
    slope = np.linspace(0, 255, 60).astype(np.uint8)
    Image.fromarray(np.tile(slope[None, :, None], (40, 1, 3))).save(tmp_path / "inner" / "slope.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    backgrounds = Backgrounds([str(tmp_path)])
    torch.manual_seed(0)
    drawn = [backgrounds.draw((32, 32)) for _ in range(20)]
    assert all(x["image"].shape == (3, 32, 32) and x["image"].dtype == torch.uint8 for x in drawn)
    assert all(len(x["labels"]) == len(x["boxes"]) == len(x["masks"]) == 0 for x in drawn)
    spans = [float(x["image"][0, 0, -1]) - float(x["image"][0, 0, 0]) for x in drawn]
    assert min(spans) < 0 < max(spans)  # flipped and not
    assert len({round(abs(x)) for x in spans}) > 5  # of several sizes


def test_backgrounds_by_pattern(tmp_path):
    for name in ("rgb_1.jpg", "depth_1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert [x.rsplit("/", 1)[1] for x in Backgrounds([str(tmp_path / "**" / "rgb_*.jpg")]).files] == ["rgb_1.jpg"]


def test_backgrounds_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no background at .*nowhere"):
        Backgrounds([str(tmp_path / "nowhere")])
    with pytest.raises(FileNotFoundError, match="no background"):
        Backgrounds([str(tmp_path)])
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be read"):
        Backgrounds([str(tmp_path)]).draw((8, 8))


def test_a_probability_of_backgrounds_needs_some():
    with pytest.raises(StrictDataclassClassValidationError, match="name folders of pictures in backgrounds"):
        InstanceAugmentationRecipe(background=0.5)


class _Rows:
    """Two images with one object each, as `InstanceRows` gives them."""

    stream = None

    def __len__(self):
        return 2

    def image(self, index):
        return sample((24, 24), [(4, 4, 20, 20)], 10 + 100 * index)["image"].as_subclass(torch.Tensor)

    def objects(self, index):
        found = sample((24, 24), [(4, 4, 20, 20)], 10 + 100 * index)
        return ImageObjects(found["boxes"], torch.tensor([index]), found["masks"])


def _augmented(seed, **options):
    torch.manual_seed(seed)
    recipe = InstanceAugmentationRecipe(**({"scale": [0.5, 1.0], "flip": 0.5} | options))
    return InstanceAugmentation(_Rows(), 24, recipe)(0)


def test_probabilities_of_augmentation(tmp_path):
    Image.new("RGB", (50, 40), (200, 0, 0)).save(tmp_path / "red.png")
    for seed in range(10):
        plain = _augmented(seed)
        assert plain[1]["class_labels"].tolist() == [0]
        moved, labels = _augmented(seed, background=1.0, backgrounds=[str(tmp_path)])
        assert moved.shape == (3, 24, 24) and labels["image_size"] == (24, 24)
        outside = ~labels["masks"].any(dim=0)
        assert (moved[0, outside] == 200).all() and (moved[1, outside] == 0).all()
        assert (moved[0, ~outside].float() - 11).abs().max() <= 1
        both = _augmented(seed, paste=1.0)[1]["class_labels"].tolist()
        assert both and both[-1] in (0, 1)
        coloured = _augmented(seed, colour=1.0)
        assert torch.equal(coloured[1]["masks"], plain[1]["masks"]) and not torch.equal(coloured[0], plain[0])


def test_pasting_from_a_stream_is_an_error():
    rows = _Rows()
    rows.stream = object()
    with pytest.raises(RecipeError, match=r"augmentation\.paste .* data\.streaming"):
        InstanceAugmentation(rows, 24, InstanceAugmentationRecipe(paste=0.5))
