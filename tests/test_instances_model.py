"""Objects in the task-solver: losses of any batch, images without objects, limits, sampling, errors."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from transformers_ait import AiTForDenseAndInstancePrediction, AiTInstanceImageProcessor, contiguous_categories
from transformers_ait.conversion import convert
from transformers_ait.losses_ait import dice_and_squared_error

GOLDENS = Path(__file__).parent / "goldens"
OUTPUTS = ("boxes", "scores", "class_labels", "sequences", "mask_values", "code_logits")


def deviation(first, second):
    assert first.shape == second.shape
    return (first - second).abs().max().item()


@pytest.fixture
def object_model(tiny_model, tiny_vqvae_config, tiny_decoder_config):
    """Function that builds a lively model of instances and detection, 8 objects of 9 or 5 tokens."""

    def build(**overrides):
        mask_tokenizer = tiny_vqvae_config(
            image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False
        )
        settings = {
            "tasks": ("instance", "detection"),
            "mask_tokenizer_config": mask_tokenizer,
            "decoder_config": tiny_decoder_config(max_positions=80),
            "num_objects": 8,
            "top_p": 0.9,
        }
        return tiny_model(**(settings | overrides))

    return build


def label(count, seed=0):
    """Annotations of one image of 32 pixels: `count` rectangles with noisy masks."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 16
    boxes = torch.cat((corner, corner + 4 + torch.rand(count, 2, generator=generator) * 12), dim=1)
    masks = torch.rand(count, 32, 32, generator=generator) > 0.4
    return {"boxes": boxes, "class_labels": torch.arange(count) % 3, "masks": masks}


def ready(model, task, count, seed=0):
    """A label as ready sequences, so that nothing is drawn at random any more."""
    torch.manual_seed(seed)
    input_ids, target_ids, crops = model._object_sequence(label(count, seed), (32, 32), task)
    return {"input_ids": input_ids, "target_ids": target_ids, "mask_crops": crops}


# Losses of batches


def expected_loss(model, task, logits, labels):
    """The loss by its definition, in double precision, over all supervised tokens of the batch."""
    config, tokens = model.config, model.config.tokens_per_object[task]
    targets = torch.stack([entry["target_ids"] for entry in labels])
    losses = F.cross_entropy(logits.double().transpose(1, 2), targets, reduction="none", ignore_index=-100)
    is_code = torch.arange(targets.shape[1]) % tokens >= 5
    total = losses[:, ~is_code].sum() + config.mask_code_weight * losses[:, is_code].sum()
    if task == "instance" and config.soft_decode:
        classes = targets.unflatten(1, (-1, tokens))[..., 4]
        true = (classes >= config.vocabulary.classes.start) & (classes < config.vocabulary.classes.stop)
        codes = logits.unflatten(1, (-1, tokens))[true][:, 5:, config.vocabulary.mask_codes.rows]
        crops = torch.cat([entry["mask_crops"] for entry in labels])
        if len(crops):
            masks = model.mask_tokenizer.decode_soft(codes.transpose(1, 2).unflatten(2, (2, 2)))[:, 0]
            clipped = masks.clamp(0, 1)
            overlap = (2 * (clipped * crops).sum((1, 2)) + 1) / (clipped.sum((1, 2)) + crops.sum((1, 2)) + 1)
            auxiliary = (1 - overlap).mean() + (masks - crops).square().mean()
            count = (targets[:, is_code] != -100).sum()
            total = total + auxiliary * config.instance_aux_weight * count * config.mask_code_weight
    return total / max(int((targets != -100).sum()), 1)


@pytest.mark.parametrize("task", ["instance", "detection"])
@pytest.mark.parametrize("counts", [(3,), (3, 1), (5, 0, 8), (0,), (0, 0)])
@torch.no_grad()
def test_loss_is_the_mean_over_all_supervised_tokens(object_model, images, task, counts):
    model = object_model(instance_loss_weight=0.5, detection_loss_weight=2.0)
    labels = [ready(model, task, count, seed) for seed, count in enumerate(counts)]
    output = model(images[: len(counts)], task=task, instance_labels=labels)
    expected = expected_loss(model, task, output.logits, labels).item()
    assert output.loss.item() == pytest.approx(expected * {"instance": 0.5, "detection": 2.0}[task], rel=1e-4)
    supervised = torch.stack([entry["target_ids"] for entry in labels]) != -100
    tokens = model.config.tokens_per_object[task]
    assert supervised.sum() == sum(count * tokens + (8 - count) for count in counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detection", "instance_soft"])
@torch.no_grad()
def test_the_originals_loss_of_one_image_is_that_of_the_image_twice(name, tmp_path):
    stored, figures = load_file(GOLDENS / f"{name}.safetensors"), json.loads((GOLDENS / f"{name}.json").read_text())
    weights = {key.removeprefix("state_dict."): x for key, x in stored.items() if key.startswith("state_dict.")}
    torch.save({"state_dict": weights}, tmp_path / "original.pth")
    (tmp_path / "original.json").write_text(json.dumps(figures["config"]))
    convert(tmp_path / "original.pth", tmp_path / "original.json", tmp_path / "converted")
    model = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path / "converted")
    entry = {"input_ids": stored["input_seq"][0], "target_ids": stored["target_seq"][0]}
    if name == "instance_soft":
        entry["mask_crops"] = stored["gt_mask_crops_permuted"]
    for copies in (1, 2, 3):
        output = model(stored["pixel_values"].repeat(copies, 1, 1, 1), instance_labels=[entry] * copies)
        assert output.loss.item() == pytest.approx(figures["losses"]["loss_normalised"], rel=1e-5)


@torch.no_grad()
def test_batch_of_two_weighs_images_by_their_tokens(object_model, images):
    """Not the mean of two images' means, unless they hold equally much."""
    model = object_model()
    labels = [ready(model, "detection", count, count) for count in (7, 1)]
    both = model(images[:2], task="detection", instance_labels=labels).loss
    single = [
        model(image[None], task="detection", instance_labels=[entry]).loss
        for image, entry in zip(images, labels, strict=False)
    ]
    counts = [(entry["target_ids"] != -100).sum() for entry in labels]
    expected = (single[0] * counts[0] + single[1] * counts[1]) / sum(counts)
    assert both.item() == pytest.approx(expected.item(), rel=1e-5)
    assert both.item() != pytest.approx(((single[0] + single[1]) / 2).item(), rel=1e-3)


@torch.no_grad()
def test_auxiliary_loss_takes_the_first_objects_of_each_image(object_model, images):
    model = object_model(max_aux_objects=2)
    labels = [ready(model, "instance", 4), ready(model, "instance", 1, 1)]
    output = model(images[:2], task="instance", instance_labels=labels)
    codes = output.logits.unflatten(1, (8, 9))[..., 5:, model.config.vocabulary.mask_codes.rows]
    chosen = torch.cat((codes[0, :2], codes[1, :1]))
    masks = model.mask_tokenizer.decode_soft(chosen.transpose(1, 2).unflatten(2, (2, 2)))[:, 0]
    truth = torch.cat((labels[0]["mask_crops"][:2], labels[1]["mask_crops"]))
    expected = dice_and_squared_error(masks, truth).item()
    assert output.loss_dict["instance_aux"].item() == pytest.approx(expected, rel=1e-5)


def test_hard_models_have_no_auxiliary_loss(object_model, images):
    output = object_model(soft_decode=False)(images, task="instance", instance_labels=[label(2)] * 3)
    assert output.loss_dict["instance_aux"] == 0 and output.loss > 0


@pytest.mark.parametrize("task", ["instance", "detection"])
def test_images_without_objects_train_and_decode(object_model, images, task):
    model = object_model().train()
    output = model(images, task=task, instance_labels=[label(0)] * 3)
    assert output.loss.isfinite() and output.loss > 0, "noise objects are supervised"
    assert output.loss_dict[f"{task}_box_ce"] == 0 and output.loss_dict[f"{task}_class_ce"] > 0
    output.loss.backward()
    gradients = [p.grad for p in model.model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    decoded = model.eval().generate(torch.zeros_like(images), task=task)
    assert all(decoded[name].isfinite().all() for name in OUTPUTS if decoded.get(name) is not None)
    assert decoded.boxes.shape == (3, 8, 4)


@pytest.mark.parametrize("task", ["instance", "detection"])
def test_more_objects_than_fit_are_drawn_at_random(object_model, images, task):
    model = object_model()
    labels = label(30)
    labels["boxes"] = torch.stack([torch.tensor([i, i, i + 1.0, i + 2.0]) for i in range(30)])
    kept = set()
    for seed in range(4):
        torch.manual_seed(seed)
        _, targets, crops = model._object_sequence(labels, (32, 32), task)
        objects = targets.view(8, -1)
        assert (objects != -100).all(), "no room is left for noise"
        assert len(crops) == (8 if task == "instance" else 0)
        kept.add(tuple(objects[:, 0].tolist()))
    assert len(kept) == 4
    assert model(images[:1], task=task, instance_labels=[labels]).loss.isfinite()


def test_sequence_of_an_image_holds_its_objects(object_model):
    model, vocabulary = object_model(num_bins=320), object_model(num_bins=320).config.vocabulary
    labels = label(3)
    _, targets, crops = model._object_sequence(labels, (32, 32), "instance")
    objects = targets.view(8, 9)
    classes = vocabulary.classes.to_index(objects[:, 4])
    found = {
        (tuple(vocabulary.coordinates.to_index(row[:4]).tolist()), int(name))
        for row, name in zip(objects[:3], classes[:3], strict=True)
    }
    expected = {
        (tuple((box * 10).round().long().tolist()), int(name))
        for box, name in zip(labels["boxes"], labels["class_labels"], strict=True)
    }
    assert found == expected
    assert (objects[3:, 4] == vocabulary.noise).all() and crops.shape == (3, 8, 8)
    codes = model.mask_tokenizer.encode(crops[:, None]).flatten(1)
    assert torch.equal(vocabulary.mask_codes.to_index(objects[:3, 5:]), codes)


def test_noise_stays_in_the_unpadded_image(object_model):
    model = object_model(num_bins=320)
    labels = label(0) | {"image_size": torch.tensor([8, 16])}
    inputs, _, _ = model._object_sequence(labels, (32, 32), "detection")
    boxes = torch.cat((inputs, inputs[-1:])).view(8, 5)[:, :4]
    assert boxes[:, 0::2].max() <= 160 and boxes[:, 1::2].max() <= 80


def test_sequences_by_area_start_with_the_largest(object_model):
    labels = label(4)
    sides = labels["boxes"][:, 2:] - labels["boxes"][:, :2]
    model = object_model(object_order="area", num_bins=320)
    inputs, _, _ = model._object_sequence(labels, (32, 32), "detection")
    boxes = torch.cat((inputs, inputs[-1:])).view(-1, 5)[:4, :4]
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    assert areas == sorted(areas, reverse=True)
    assert areas[0] == pytest.approx(100 * sides.prod(dim=1).max().item(), rel=0.1)
    with pytest.raises(StrictDataclassError, match="(?s)object_order.*random.*area"):
        object_model(object_order="size")


def test_same_seed_same_loss(object_model, images):
    model = object_model()

    def loss(seed):
        torch.manual_seed(seed)
        return model(images, task="instance", instance_labels=[label(2), label(0), label(5)]).loss.item()

    assert loss(1) == loss(1) != loss(2)


@pytest.mark.slow
def test_training_learns_the_objects(object_model, images):
    model = object_model(soft_feedback=False, top_p=0)
    labels = [ready(model, "detection", 8, seed) for seed in range(3)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = model.train()(images, task="detection", instance_labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_processor_labels_train_the_model(object_model, shared_dir):
    folder = shared_dir / "data" / "coco_small"
    annotations = json.loads((folder / "instances.json").read_text())
    images = annotations["images"][:3]
    targets = [
        {"image_id": i["id"], "annotations": [a for a in annotations["annotations"] if a["image_id"] == i["id"]]}
        for i in images
    ]
    processor = AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
    mapping = contiguous_categories(annotations["categories"])
    names = dict(enumerate(category["name"] for category in annotations["categories"]))
    model = object_model(id2label=names, label2id={name: index for index, name in names.items()}).train()
    for task in ("instance", "detection"):
        processor.task = task
        inputs = processor(
            [folder / "images" / image["file_name"] for image in images],
            targets,
            mapping,
            return_segmentation_masks=task == "instance",
            return_tensors="pt",
        )
        output = model(**inputs)
        assert output.loss.isfinite() and f"{task}_box_ce" in output.loss_dict
        output.loss.backward()


CORNERS = {"cup": [2, 2, 9, 9], "dog": [10, 3, 20, 12]}


def annotated(image_id, *names):
    """Annotations of a 16 x 32 image with the named objects; "crowd" and "thin" hold nothing to learn."""
    entries = []
    for number, name in enumerate(names):
        left, top, right, bottom = CORNERS.get(name, [1, 1, 30, 15])
        polygon = [left, top, right, top, right, bottom, left, bottom]
        box = [left, top, right - left, 0 if name == "thin" else bottom - top]
        entry = {"id": 10 * image_id + number, "category_id": list(CORNERS).index(name) if name in CORNERS else 0}
        entries.append(entry | {"bbox": box, "iscrowd": int(name == "crowd"), "segmentation": [polygon]})
    return {"image_id": image_id, "annotations": entries}


@pytest.mark.parametrize("task", ["instance", "detection"])
@pytest.mark.parametrize(
    "names", [[()], [("crowd",)], [("thin", "crowd")], [(), ()], [("cup", "dog"), (), ("thin",)]], ids=str
)
def test_images_without_objects_go_all_the_way(object_model, task, names):
    """Annotations, processor, loss, gradients, decoding, results: alone and beside images that hold objects."""
    processor = AiTInstanceImageProcessor(
        size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}, task=task, do_normalize=False
    )
    pictures = [torch.rand(3, 16, 32) * 255 for _ in names]
    targets = [annotated(index, *entry) for index, entry in enumerate(names)]
    inputs = processor(pictures, targets, {0: 0, 1: 1}, return_tensors="pt")
    counts = [sum(name in CORNERS for name in entry) for entry in names]
    assert [len(entry["boxes"]) for entry in inputs["instance_labels"]] == counts
    model = object_model().train()
    output = model(**inputs)
    output.loss.backward()
    assert output.loss.isfinite() and output.loss_dict[f"{task}_class_ce"] > 0
    assert (output.loss_dict[f"{task}_box_ce"] > 0) == (sum(counts) > 0)
    assert all(p.grad.isfinite().all() for p in model.model.parameters() if p.grad is not None)
    decoded = model.eval().generate(inputs["pixel_values"], task=task)
    sizes = [(16, 32)] * len(names)
    assert len(processor.post_process_object_detection(decoded, 0.0, sizes)) == len(names)
    nothing = processor.post_process_object_detection(decoded, 1.1, sizes)
    assert all(found["boxes"].shape == (0, 4) for found in nothing)
    if task == "instance":
        assert len(processor.post_process_instance_segmentation(decoded, 0.0, target_sizes=sizes)) == len(names)
    assert processor.post_process_coco(decoded, range(len(names)), {0: 0, 1: 1, 2: 2}, sizes, threshold=1.1) == []


# Decoding


def assert_equal(first, second, tolerance=1e-4):
    for name in OUTPUTS:
        if first.get(name) is not None or second.get(name) is not None:
            assert deviation(first[name].float(), second[name].float()) < tolerance, name


@pytest.mark.parametrize("task", ["instance", "detection"])
@torch.no_grad()
def test_max_objects_cuts_the_sequence(object_model, images, task):
    model = object_model()
    everything = model.generate(images, task=task, top_p=0)
    assert everything.boxes.shape == (3, 8, 4)
    for limit in (1, 5, 8):
        fewer = model.generate(images, task=task, top_p=0, max_objects=limit)
        assert fewer.boxes.shape == (3, limit, 4)
        for name in ("boxes", "scores", "class_labels", "mask_values", "code_logits"):
            if everything.get(name) is not None:
                assert deviation(fewer[name], everything[name][:, :limit]) < 1e-4, name
        assert torch.equal(fewer.sequences, everything.sequences[:, : fewer.sequences.shape[1]])


@pytest.mark.parametrize("limit", [0, -1, 9])
def test_other_numbers_of_objects_are_refused(object_model, images, limit):
    with pytest.raises(ValueError, match=rf"max_objects must be between 1 and config.num_objects \(8\), got {limit}"):
        object_model().generate(images, task="instance", max_objects=limit)


@pytest.mark.parametrize("task", ["instance", "detection"])
@torch.no_grad()
def test_a_seed_gives_an_image_its_objects_whatever_the_batch(object_model, images, task):
    model = object_model()

    def sample(pixels, seed):
        return model.generate(pixels, task=task, generator=torch.Generator().manual_seed(seed))

    together = sample(images, 1)
    for index, image in enumerate(images):
        alone = sample(image[None], 1)
        for name in OUTPUTS:
            if together.get(name) is not None:
                assert deviation(alone[name][0].float(), together[name][index].float()) < 1e-4, name
    assert_equal(sample(images.flip(0), 1), type(together)(**{k: v.flip(0) for k, v in together.items()}))
    assert not torch.equal(sample(images, 2).sequences, together.sequences)


@torch.no_grad()
def test_greedy_is_a_nucleus_of_nothing(object_model, images):
    model = object_model(top_p=0)
    greedy = model.generate(images, task="instance")
    assert_equal(model(images, task="instance"), greedy)
    tiny = model.generate(images, task="instance", top_p=1e-6, generator=torch.Generator().manual_seed(3))
    assert_equal(tiny, greedy)
    wide = model.generate(images, task="instance", top_p=0.99, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(wide.sequences, greedy.sequences)


@torch.no_grad()
def test_decoded_ids_obey_the_grammar(object_model, images):
    model = object_model()
    vocabulary = model.config.vocabulary
    objects = model.generate(images, task="instance").sequences.unflatten(1, (8, 9))
    ranges = [vocabulary.coordinates] * 4 + [vocabulary.classes] + [vocabulary.mask_codes] * 4
    for position, allowed in enumerate(ranges):
        ids = objects[..., position]
        assert ids.min() >= allowed.start and ids.max() < allowed.stop


@torch.no_grad()
def test_stepwise_logits_equal_teacher_forced_ones(object_model, images):
    model = object_model(soft_feedback=False)
    output = model.generate(images, task="instance", top_p=0)
    entries = [{"input_ids": s[:-1], "target_ids": s, "mask_crops": torch.zeros(8, 8, 8)} for s in output.sequences]
    logits = model(images, task="instance", instance_labels=entries).logits.unflatten(1, (8, 9))
    vocabulary = model.config.vocabulary
    assert deviation(logits[..., 5:, vocabulary.mask_codes.rows], output.code_logits) < 1e-4
    at_class = torch.cat((logits[..., 4, vocabulary.classes.rows], logits[..., 4, vocabulary.noise, None]), dim=-1)
    scores = at_class.softmax(-1).gather(2, output.class_labels[..., None])[..., 0]
    assert deviation(scores, output.scores) < 1e-4
    best = logits[..., :4, vocabulary.coordinates.rows].argmax(-1)
    assert torch.equal(best, vocabulary.coordinates.to_index(output.sequences.unflatten(1, (8, 9))[..., :4]))


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": None}, r"need \['boxes', 'class_labels', 'masks'\].*missing \['boxes'\]"),
        ({"masks": None}, r"missing \['masks'\]"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes must be \(2, 4\), xyxy pixels"),
        ({"boxes": torch.tensor([[1.0, 1, 5, 5], [9, 1, 3, 5]])}, "x2 > x1 and y2 > y1; drop empty ones"),
        ({"boxes": torch.tensor([[1.0, 1, 5, 5], [3, 1, 3, 5]])}, "drop empty ones"),
        ({"boxes": torch.tensor([[1.0, 1, 5, 5], [1, 1, torch.inf, 5]])}, "boxes must be finite"),
        ({"class_labels": torch.tensor([0, 3])}, r"class_labels must lie in \[0, 3\), got \[0, 3\]"),
        ({"class_labels": torch.tensor([-1, 0])}, "class_labels must lie in"),
        ({"masks": torch.zeros(2, 16, 32)}, r"masks must be \(2, 32, 32\).* got \(2, 16, 32\)"),
        ({"masks": torch.zeros(1, 32, 32)}, r"masks must be \(2, 32, 32\)"),
    ],
)
def test_unfit_labels_are_named(object_model, images, change, message):
    entry = {name: value for name, value in (label(2) | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        object_model()(images[:1], task="instance", instance_labels=[entry])


def test_a_class_beyond_the_configuration_names_its_annotation(object_model, images):
    ids = {"image_id": torch.tensor(7), "annotation_ids": torch.tensor([40, 41])}
    entry = {**label(2), **ids, "class_labels": torch.tensor([0, 3])}
    with pytest.raises(ValueError, match=r"Annotation 41 of image 7 has class index 3, .*category_to_index does"):
        object_model()(images[:1], task="instance", instance_labels=[entry])


def test_labels_without_masks_are_for_detection(object_model, images):
    entry = {name: value for name, value in label(2).items() if name != "masks"}
    assert object_model()(images[:1], task="detection", instance_labels=[entry]).loss.isfinite()


def test_every_image_needs_its_labels(object_model, images):
    with pytest.raises(ValueError, match=r"one entry per image \(3\), got 2"):
        object_model()(images, task="instance", instance_labels=[label(1)] * 2)
