"""Dense image processor: labels of every kind, predicted views back to maps, settings, files, and errors."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_map_cases import KINDS, SIDE, expected_maps, maps_of, perfect_outputs, photo, scene, single_view, small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import ModelOutput

from transformers_ait import AiTDenseImageProcessor, AiTDepthImageProcessor, AiTInstanceImageProcessor

# Preprocessing


def test_labels_of_every_task_take_the_nearest_pixel():
    maps = maps_of(50, 71)
    features = single_view()(photo(50, 71), maps, return_tensors="pt")
    assert set(features) == {"pixel_values", "dense_labels"} and set(features["dense_labels"]) == set(KINDS)
    for task, labels in features["dense_labels"].items():
        assert labels.dtype == maps[task].dtype and labels.shape == (1, *maps[task].shape[:-2], SIDE, SIDE)
        channels = maps[task].reshape(-1, 50, 71).float()
        resized = [Image.fromarray(c.numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST) for c in channels]
        expected = torch.stack([torch.from_numpy(np.array(c)) for c in resized]).view(labels.shape[1:])
        torch.testing.assert_close(labels[0], expected.to(labels.dtype), atol=0, rtol=0, equal_nan=True)
        half_a_pixel_off = F.interpolate(channels[None], size=(SIDE, SIDE), mode="nearest").view(labels.shape[1:])
        assert not torch.allclose(labels[0].float(), half_a_pixel_off, equal_nan=True)


def test_forms_of_several_maps():
    images = [photo(20, 30), photo(20, 30, 1)]
    maps = maps_of(20, 30)
    expected = single_view()(images, {task: [m, m] for task, m in maps.items()}, return_tensors="pt")["dense_labels"]
    for pack in (tuple, torch.stack, lambda pair: torch.stack(pair).numpy()):
        given_maps = {task: pack([m, m]) for task, m in maps.items()}
        labels = single_view()(images, given_maps, return_tensors="pt")["dense_labels"]
        assert all(torch.equal(labels[t].nan_to_num(9), expected[t].nan_to_num(9)) for t in KINDS)
    one = single_view()(images[0], {"depth": maps["depth"]}, return_tensors="pt")
    assert torch.equal(one["dense_labels"]["depth"], expected["depth"][:1])


def test_labels_move_with_the_features():
    features = single_view(task="normals")(photo(20, 30), maps_of(20, 30), return_tensors="pt")
    moved = features.to("cpu", torch.float64)
    labels = moved["dense_labels"]
    assert moved is features and moved["pixel_values"].dtype == torch.float64
    assert {task: labels[task].dtype for task in KINDS} == {
        "semantic": torch.int64,
        "depth": torch.float64,
        "normals": torch.float64,
        "albedo": torch.float64,
    }
    assert {value.device.type for value in moved.to("meta")["dense_labels"].values()} == {"meta"}
    assert "dense_labels" not in single_view()(photo(20, 30), return_tensors="pt").to(torch.float16)


def test_return_types():
    maps = maps_of(20, 30)
    as_arrays = single_view()(photo(20, 30), maps, return_tensors="np")["dense_labels"]
    assert all(isinstance(value, np.ndarray) for value in as_arrays.values())
    as_lists = single_view()(photo(20, 30), maps)["dense_labels"]
    assert all(isinstance(value, list) and len(value) == 1 for value in as_lists.values())


def test_without_resizing_the_labels_stay():
    maps = maps_of(SIDE, SIDE)
    labels = single_view()(photo(SIDE, SIDE), maps, do_resize=False, return_tensors="pt")["dense_labels"]
    assert all(torch.equal(labels[t][0].nan_to_num(9), maps[t].nan_to_num(9)) for t in KINDS)


def test_unfit_maps_are_refused():
    maps = {"depth": torch.ones(20, 30)}
    for view in ({"num_windows": 2, "do_flip_augment": False}, {"num_windows": 1, "do_flip_augment": True}):
        with pytest.raises(ValueError, match="dense_maps need one view .* num_windows=1, do_flip_augment=False"):
            small(**view)(photo(20, 30), maps)
    with pytest.raises(ValueError, match=r"dense_maps\['depth'\] must hold one map per image, got 1 for 2"):
        single_view()([photo(20, 30)] * 2, maps)
    with pytest.raises(TypeError, match="dense_maps must map tasks to maps, got Tensor"):
        single_view()(photo(20, 30), maps["depth"])
    with pytest.raises(TypeError, match=r"dense_maps\['depth'\] must be one map or a list of maps, got float"):
        single_view()(photo(20, 30), {"depth": 3.0})
    with pytest.raises(ValueError, match=r"dense_maps has the tasks \['heights'\], but map_kinds is"):
        single_view()(photo(20, 30), {"heights": maps["depth"]})


# Post-processing: what a perfect model sees comes back


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(SIDE, 3 * SIDE), st.booleans(), st.integers(1, 3), st.booleans(), st.sampled_from(["smooth", "average"])
)
def test_what_a_perfect_model_sees_comes_back(length, portrait, num_windows, flip, blending):
    length = min(length, num_windows * SIDE)
    size = (length, SIDE) if portrait else (SIDE, length)
    image = scene(*size)
    processor = small(num_windows=num_windows, do_flip_augment=flip, window_blending=blending)
    outputs = perfect_outputs(processor(image, return_tensors="pt").pixel_values, num_windows)
    (result,) = processor.post_process_dense(SimpleNamespace(dense_maps=outputs), [size])
    expected = expected_maps(image)
    assert set(result) == set(KINDS)
    assert torch.equal(result["semantic"], expected["semantic"])
    for task in ("depth", "normals", "albedo"):
        assert result[task].dtype == torch.float32
        torch.testing.assert_close(result[task], expected[task], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(SIDE, 40), (40, SIDE)])
def test_planted_errors_of_views_are_noticed(size):
    image = scene(*size)
    expected = expected_maps(image)
    pixel_values = small()(image, return_tensors="pt").pixel_values

    def wrong(outputs, **settings_):
        (result,) = small(**settings_).post_process_dense(SimpleNamespace(dense_maps=outputs), [size])
        return {task for task in KINDS if not torch.allclose(result[task], expected[task], atol=1e-3)}

    assert wrong(perfect_outputs(pixel_values, 2)) == set()
    # A model that gives the unmirrored x for mirrored views.
    assert wrong(perfect_outputs(pixel_values, 2, negate_x=False)) == {"normals"}
    swapped = {task: maps[:, [1, 0, 2, 3]] for task, maps in perfect_outputs(pixel_values, 2).items()}
    assert wrong(swapped) == set(KINDS)
    unturned = {task: torch.cat([m[:, :2], m[:, :2]], 1) for task, m in perfect_outputs(pixel_values, 2).items()}
    assert wrong(unturned) == set(KINDS)


def test_results_have_the_sizes_of_the_images():
    sizes = [(50, 70), (90, 31), (24, 24)]
    images = [photo(*size, seed) for seed, size in enumerate(sizes)]
    processor = small()
    outputs = SimpleNamespace(dense_maps=perfect_outputs(processor(images, return_tensors="pt").pixel_values, 2))
    results = processor.post_process_dense(outputs, torch.tensor(sizes))
    for size, result in zip(sizes, results, strict=True):
        shapes = {task: tuple(value.shape) for task, value in result.items()}
        assert shapes == {"depth": size, "normals": (3, *size), "semantic": size, "albedo": (3, *size)}
        torch.testing.assert_close(result["normals"].norm(dim=0), torch.ones(size))
    alone = processor.post_process_dense(
        SimpleNamespace(dense_maps={t: m[1:2] for t, m in outputs.dense_maps.items()}), sizes[1:2]
    )
    assert all(torch.equal(alone[0][task], results[1][task]) for task in KINDS)


def test_without_views_the_predicted_size_is_kept():
    outputs = perfect_outputs(single_view()(photo(50, 70), return_tensors="pt").pixel_values, 1)
    (result,) = single_view().post_process_dense(SimpleNamespace(dense_maps=outputs))
    assert {tuple(value.shape[-2:]) for value in result.values()} == {(SIDE, SIDE)}
    assert torch.equal(result["semantic"], outputs["semantic"][0].argmax(0))
    (half,) = single_view().post_process_dense(
        SimpleNamespace(dense_maps={task: value.bfloat16() for task, value in outputs.items()})
    )
    assert {task: value.dtype for task, value in half.items()} == {
        task: torch.int64 if task == "semantic" else torch.float32 for task in outputs
    }


def test_probabilities_are_averaged_not_scores_or_votes():
    straight, mirrored = torch.tensor([[0.4, 1e-13, 0.6], [0.05, 0.8, 0.15]]).log()
    scores = torch.stack([straight, mirrored])[None, :, :, None, None].expand(1, 2, 3, SIDE, SIDE)
    processor = small(num_windows=1)
    (ids,) = processor.post_process_semantic_segmentation(ModelOutput(dense_maps={"semantic": scores}), [(SIDE, SIDE)])
    assert (ids == 1).all()
    assert (straight + mirrored).argmax() == 2, "the mean of the scores says otherwise"


def test_the_methods_of_single_kinds():
    processor, size = small(), (SIDE, 40)
    maps = perfect_outputs(processor(scene(*size), return_tensors="pt").pixel_values, 2)
    outputs = ModelOutput(dense_maps=maps)
    (everything,) = processor.post_process_dense(outputs, [size])
    (ids,) = processor.post_process_semantic_segmentation(outputs, [size])
    (normals,) = processor.post_process_normals(outputs, [size])
    (depth,) = processor.post_process_depth_estimation(outputs, [size])
    assert ids.dtype == torch.int64 and torch.equal(ids, everything["semantic"])
    assert set(normals) == {"normals"} and torch.equal(normals["normals"], everything["normals"])
    assert set(depth) == {"predicted_depth"} and torch.equal(depth["predicted_depth"], everything["depth"])
    # Outputs that know no dense_maps.
    (earlier,) = processor.post_process_depth_estimation(ModelOutput(predicted_depth=maps["depth"]), [size])
    assert torch.equal(earlier["predicted_depth"], everything["depth"])


def test_of_several_tasks_of_a_kind_the_own_one_counts():
    maps = {"near": torch.full((1, SIDE, SIDE), 1.0), "far": torch.full((1, SIDE, SIDE), 9.0)}
    kinds = {"far": "depth", "near": "depth"}
    for outputs in ({"dense_maps": maps}, {"dense_maps": maps, "predicted_depth": maps["near"]}):
        for task, expected in (("near", 1), ("far", 9), (None, 1)):
            processor = small(map_kinds=kinds, task=task)
            (result,) = processor.post_process_depth_estimation(SimpleNamespace(**outputs))
            assert (result["predicted_depth"] == expected).all()


@pytest.mark.parametrize(
    ("method", "outputs", "message"),
    [
        ("dense", {}, "dense_maps must hold tasks of map_kinds .*got None; call the model without labels"),
        ("dense", {"dense_maps": {}}, r"got \[\]"),
        ("dense", {"dense_maps": {"heights": torch.rand(1, SIDE, SIDE)}}, r"got \['heights'\].* set map_kinds"),
        ("normals", {"dense_maps": {"depth": torch.rand(1, SIDE, SIDE)}}, r"a 'normals' task, got \['depth'\]"),
        ("semantic_segmentation", {}, r"must hold a 'classes' task, got \[\]"),
        ("semantic_segmentation", {"predicted_depth": torch.rand(1, SIDE, SIDE)}, "a 'classes' task"),
        ("depth_estimation", {}, "outputs.predicted_depth must be .*got None; call the model without labels"),
        (
            "dense",
            {"dense_maps": {"depth": torch.rand(SIDE, SIDE)}},
            r"\['depth'\] must be \(B, S, S\) or \(B, V, S, S\)",
        ),
        (
            "normals",
            {"dense_maps": {"normals": torch.rand(1, 4, 4)}},
            r"\(B, C, S, S\) or \(B, V, C, S, S\), got shape",
        ),
        ("normals", {"dense_maps": {"normals": torch.rand(1, 4, 3, 4, 4)}}, "target_sizes is required"),
    ],
)
def test_unfit_outputs_are_refused(method, outputs, message):
    with pytest.raises(ValueError, match=message):
        getattr(small(), f"post_process_{method}")(SimpleNamespace(**outputs))


def test_other_views_than_the_processor_makes_are_refused():
    for shape, message in (((1, 3, 3, SIDE, SIDE), "has 3 views.*makes 4"), ((1, 4, 3, SIDE, 5), "views of 24 x 5")):
        outputs = ModelOutput(dense_maps={"normals": torch.rand(shape)})
        with pytest.raises(ValueError, match=rf"dense_maps\['normals'\] {message}|{message}"):
            small().post_process_dense(outputs, [(SIDE, SIDE)])


# Settings and files


def test_rows_of_tasks_follow_from_their_order(tmp_path):
    rows = {"depth": 2, "semantic": 3, "normals": 4, "albedo": 5}
    for task, row in rows.items():
        small(task=task).save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path)
        assert type(loaded) is AiTDenseImageProcessor and list(loaded.map_kinds) == list(KINDS)
        features = loaded([photo(20, 30)] * 2, return_tensors="pt")
        assert features["task_ids"].tolist() == [row, row]
    # What the base class would write is sorted, and another task would answer.
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    resorted = AiTDenseImageProcessor.from_dict(json.loads(json.dumps(stored, sort_keys=True)))
    assert resorted(photo(20, 30), task="semantic")["task_ids"] != [rows["semantic"]]
    assert "task_ids" not in small()(photo(20, 30))


@pytest.mark.parametrize(
    "processor",
    [
        small(num_windows=3, window_blending="average", task="albedo"),
        AiTDenseImageProcessor(),
        AiTDepthImageProcessor(window_blending="smooth"),
        AiTDepthImageProcessor(task="depth"),
        AiTInstanceImageProcessor(),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_each_processor_comes_back_as_itself(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor) and loaded.to_dict() == processor.to_dict()
    image = photo(50, 99)
    assert torch.equal(*(p(image, return_tensors="pt").pixel_values for p in (loaded, processor)))
    assert not issubclass(AiTInstanceImageProcessor, AiTDenseImageProcessor)


def test_folders_of_depth_processors_hold_what_they_always_held(tmp_path):
    AiTDepthImageProcessor().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {"map_kinds", "window_blending"}.isdisjoint(stored)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert (loaded.window_blending, loaded.map_kinds) == ("average", {"depth": "depth"})
    assert AiTDenseImageProcessor().window_blending == "smooth"
    views = torch.stack([torch.ones(1, 96, 96), torch.full((1, 96, 96), 2.0)], 1)
    for blending, most in (("average", 0.5), ("smooth", 2 / 64)):
        processor = AiTDepthImageProcessor(do_flip_augment=False, window_blending=blending)
        (result,) = processor.post_process_depth_estimation(ModelOutput(predicted_depth=views), [(96, 128)])
        assert most / 2 < result["predicted_depth"].diff().max() <= most


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"map_kinds": {"height": "elevation"}}, r"map_kinds must map every dense task to one of \['depth'"),
        ({"map_kinds": {"crops": "mask"}}, "got {'crops': 'mask'}"),
        ({"map_kinds": {}}, "map_kinds must map"),
        ({"map_kinds": {"instance": "classes"}}, "must not name .*'instance'"),
        ({"task": "heights"}, "task must be 'semantic' or 'depth' or 'normals' or 'albedo' or None, got 'heights'"),
        ({"window_blending": "linear"}, r"window_blending must be one of \['smooth', 'average'\], got 'linear'"),
        ({"num_windows": 0}, "num_windows must be an integer of at least 1, got 0"),
        ({"size": {"height": 32, "width": 48}}, "size must be a square"),
        ({"size": -1}, "size must be a square .* got {'height': -1, 'width': -1}"),
        ({"resample": -1}, r"resample must be one of 0 \(nearest\), .* got -1"),
        ({"do_pad": True}, "do_pad is not supported"),
    ],
)
def test_bad_settings_are_refused_at_construction_and_at_calls(setting, message):
    with pytest.raises(ValueError, match=message):
        small(**setting)
    with pytest.raises(ValueError, match=message):
        small()(photo(SIDE, SIDE), **setting)


def test_the_depth_processor_is_for_depth_alone():
    with pytest.raises(ValueError, match="map_kinds must be {'depth': 'depth'}.* use AiTDenseImageProcessor"):
        AiTDepthImageProcessor(map_kinds=KINDS)
    with pytest.raises(ValueError, match="task must be 'depth' or None, got 'normals'"):
        AiTDepthImageProcessor(task="normals")
