"""The kinds of dense maps: forms, validity, losses against their definitions, flips, what views are averaged in."""

import math

import pytest
import torch
import torch.nn.functional as F

from transformers_ait.map_kinds_ait import IGNORED_CLASS, MAP_KINDS, resize_labels

DENSE = ["depth", "normals", "classes", "values"]
CHANNELS = {"depth": 1, "normals": 3, "classes": 4, "values": 2}


def native(name, batch=2, height=6, width=8):
    """Labels of a kind, a few pixels of each image invalid, and where they are valid."""
    valid = torch.rand(batch, height, width) > 0.2
    if name == "depth":
        return torch.rand(batch, height, width).add(0.5) * valid, valid
    if name == "normals":
        return F.normalize(torch.randn(batch, 3, height, width), dim=1) * valid[:, None], valid
    if name == "classes":
        return torch.randint(4, (batch, height, width)).masked_fill(~valid, IGNORED_CLASS), valid
    return torch.randn(batch, 2, height, width).masked_fill(~valid[:, None], math.nan), valid


@pytest.mark.parametrize("name", DENSE)
def test_tokenizer_form_and_validity(name):
    kind, (labels, valid) = MAP_KINDS[name], native(name)
    kind.check(labels, CHANNELS[name], "labels")
    kind.check_shape(labels, (2, 6, 8), CHANNELS[name], "labels")
    maps = kind.to_tokenizer(labels, CHANNELS[name])
    assert maps.shape == (2, CHANNELS[name], 6, 8) and maps.dtype == torch.float32
    assert torch.equal(kind.valid(maps)[:, 0], valid)
    assert kind.fill(maps).isfinite().all() and (kind.fill(maps)[~valid[:, None].expand_as(maps)] == 0).all()


@pytest.mark.parametrize("name", DENSE)
def test_what_is_invalid_is_padded_with(name):
    kind, (labels, _) = MAP_KINDS[name], native(name)
    padded = F.pad(labels, (0, 3), value=kind.invalid)
    assert not kind.valid(kind.to_tokenizer(padded, CHANNELS[name]))[..., -3:].any()


@pytest.mark.parametrize("name", DENSE)
def test_losses_ignore_invalid_pixels_and_are_zero_without_any_valid_one(name):
    kind, (labels, valid) = MAP_KINDS[name], native(name)
    target = kind.to_tokenizer(labels, CHANNELS[name])
    decoded = torch.rand(target.shape).add(0.5).requires_grad_()
    other = decoded.detach() + 9 * ~valid[:, None]
    for loss in (
        lambda x: kind.reconstruction_loss(x, target, kind.valid(target)),
        lambda x: kind.auxiliary_loss(x, target),
    ):
        assert loss(decoded).item() == pytest.approx(loss(other).item(), rel=1e-6)
        assert loss(decoded + 0.3 * torch.rand(target.shape)).item() != pytest.approx(loss(decoded).item(), rel=1e-3)
    nothing = kind.to_tokenizer(torch.full_like(labels, kind.invalid), CHANNELS[name])
    loss = kind.reconstruction_loss(decoded, nothing, kind.valid(nothing)) + kind.auxiliary_loss(decoded, nothing)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and decoded.grad.isfinite().all()


def test_losses_against_their_definitions():
    (labels, valid), kind = native("normals"), MAP_KINDS["normals"]
    decoded = torch.randn(2, 3, 6, 8)
    cosine = (decoded * labels).sum(1) / decoded.norm(dim=1)
    assert kind.auxiliary_loss(decoded, labels).item() == pytest.approx((1 - cosine)[valid].mean().item(), rel=1e-5)
    square = (decoded - labels).square().mean(1)[valid].mean()
    assert kind.reconstruction_loss(decoded, labels, kind.valid(labels)).item() == pytest.approx(
        square.item(), rel=1e-5
    )

    (labels, valid), kind = native("classes"), MAP_KINDS["classes"]
    scores = torch.randn(2, 4, 6, 8)
    expected = F.cross_entropy(scores, labels, ignore_index=IGNORED_CLASS)
    assert kind.auxiliary_loss(scores, kind.to_tokenizer(labels, 4)).item() == pytest.approx(expected.item(), rel=1e-5)

    (labels, valid), kind = native("values"), MAP_KINDS["values"]
    decoded = torch.randn(2, 2, 6, 8)
    error = (decoded - labels).abs().mean(1)[valid].mean()
    assert kind.auxiliary_loss(decoded, labels).item() == pytest.approx(error.item(), rel=1e-5)


@pytest.mark.parametrize("name", DENSE)
def test_flipping_twice_changes_nothing(name):
    kind, (labels, _) = MAP_KINDS[name], native(name)
    assert torch.equal(kind.flip(kind.flip(labels)).nan_to_num(), labels.nan_to_num())


def test_a_flip_negates_a_normals_x():
    normals, _ = native("normals")
    flipped = MAP_KINDS["normals"].flip(normals)
    assert torch.equal(flipped[:, 0], -normals[:, 0].flip(-1)) and torch.equal(flipped[:, 1:], normals[:, 1:].flip(-1))
    assert not torch.equal(flipped, normals.flip(-1))  # what a plain flip would give


def test_finished_maps():
    depth = MAP_KINDS["depth"].finish(torch.tensor([[-1.0, 2.0]]), (2, 4))
    assert depth.shape == (2, 4) and depth.min().item() == pytest.approx(1e-3)
    normals = MAP_KINDS["normals"].finish(torch.randn(3, 4, 4), (8, 6))
    assert normals.shape == (3, 8, 6) and torch.allclose(normals.norm(dim=0), torch.ones(8, 6))
    ids = torch.randint(4, (3, 5))
    scores = MAP_KINDS["classes"].to_average(5 * MAP_KINDS["classes"].to_tokenizer(ids[None], 4))[0]
    assert torch.equal(MAP_KINDS["classes"].finish(scores, None), ids)
    assert MAP_KINDS["classes"].finish(scores, (6, 10)).shape == (6, 10)


def test_class_scores_are_averaged_as_probabilities():
    """One very sure view does not outvote two others, as it would if scores were averaged."""
    views = torch.tensor([[100.0, 0.0], [0.0, 5.0], [0.0, 5.0]])[..., None, None]
    assert MAP_KINDS["classes"].to_average(views).mean(0).argmax() == 1
    assert views.mean(0).argmax() == 0


@pytest.mark.parametrize(
    "name, labels, message",
    [
        ("depth", torch.tensor([[[-1.0]]]), "finite and not negative"),
        ("depth", torch.tensor([[[math.nan]]]), "finite and not negative"),
        ("normals", torch.tensor([0.0, 0.0, 1.2])[None, :, None, None], "length 1.*got a length of 1.2"),
        ("normals", torch.full((1, 3, 1, 1), math.nan), "length 1.*got a length of nan"),
        ("classes", torch.tensor([[[4]]]), r"class ids in \[0, 4\), and 255 where invalid, got 4"),
        ("classes", torch.tensor([[[-100]]]), "got -100"),
        ("classes", torch.tensor([[[1.0]]]), "integer class ids, got torch.float32"),
        ("values", torch.full((1, 2, 1, 1), math.inf), "finite"),
    ],
)
def test_impossible_values_are_named(name, labels, message):
    with pytest.raises(ValueError, match=f"my maps must be .*{message}"):
        MAP_KINDS[name].check(labels, CHANNELS[name], "my maps")


def test_unfit_shapes_are_named():
    message = r"x must be \(batch, channels, height, width\).*\(1, 3, 4, 4\), got \(1, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        MAP_KINDS["normals"].check_shape(torch.zeros(1, 4, 4), (1, 4, 4), 3, "x")


def test_labels_are_resized_to_the_nearest_pixel():
    ids = torch.randint(255, (2, 5, 7))
    assert torch.equal(resize_labels(ids, (10, 14)), ids.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert resize_labels(ids, (3, 4)).dtype == ids.dtype
