"""What makes a whole model fast must not change its result: shared memory, torch.compile, memory formats, autocast."""

import pytest
import torch
import torch._dynamo.testing

TOLERANCE = 1e-4


@pytest.fixture
def joint_model(tiny_model, tiny_vqvae_config):
    """A model that does depth and instances."""
    mask_tokenizer = tiny_vqvae_config(
        image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False
    )
    return tiny_model(tasks=("instance", "depth"), mask_tokenizer_config=mask_tokenizer, num_objects=2)


def deviation(first, second):
    assert first.shape == second.shape
    return (first.float() - second.float()).abs().max().item()


def generator():
    return torch.Generator().manual_seed(0)


# --- one memory for several tasks ---


@pytest.mark.parametrize("task, field", [("depth", "predicted_depth"), ("instance", "mask_values")])
def test_given_memory_equals_the_images_own(joint_model, images, monkeypatch, task, field):
    expected = joint_model.generate(images, task, generator=generator())
    memory = joint_model.get_encoder_memory(images)
    monkeypatch.setattr(type(joint_model.model.backbone), "forward", None)  # whoever asks for it fails
    actual = joint_model.generate(images, task, generator=generator(), encoder_memory=memory)
    assert torch.equal(actual.sequences, expected.sequences)
    assert deviation(actual[field], expected[field]) < TOLERANCE
    with pytest.raises(TypeError):
        joint_model.generate(images, task)


def test_given_memory_decides(joint_model, images):
    other = joint_model.get_encoder_memory(images.flip(0))
    expected = joint_model.generate(images.flip(0), "depth").predicted_depth
    assert deviation(joint_model.generate(images, "depth", encoder_memory=other).predicted_depth, expected) < TOLERANCE


def test_views_share_a_memory_too(joint_model, images):
    views = torch.stack((images, images.flip(-1)), dim=1)
    memory = joint_model.get_encoder_memory(views.flatten(0, 1))
    expected = joint_model.generate(views, "depth").predicted_depth
    assert deviation(joint_model.generate(views, "depth", encoder_memory=memory).predicted_depth, expected) < TOLERANCE


@pytest.mark.parametrize("task", ["depth", "instance"])
def test_memory_of_other_images_is_refused(joint_model, images, task):
    with pytest.raises(ValueError, match=r"encoder_memory must be \(3, 16, 16\) for these images, got \(2, 16, 16\)"):
        joint_model.generate(images, task, encoder_memory=joint_model.get_encoder_memory(images[:2]))


@pytest.mark.parametrize("tasks", [None, ("depth", "instance"), ("depth",)])
def test_tasks_together_equal_tasks_alone(joint_model, images, monkeypatch, tasks):
    names = tasks or ("instance", "depth")
    expected = {task: joint_model.generate(images, task, generator=generator()) for task in names}
    calls, forward = [], type(joint_model.model.backbone).forward
    monkeypatch.setattr(
        type(joint_model.model.backbone), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    actual = joint_model.generate_tasks(images, tasks, generator=generator())
    assert list(actual) == list(names) and len(calls) == 1
    for task in names:
        assert actual[task].keys() == expected[task].keys()
        assert torch.equal(actual[task].sequences, expected[task].sequences)
        pairs = [(actual[task][key], expected[task][key]) for key in expected[task] if key != "dense_maps"]
        assert all(deviation(*pair) < TOLERANCE for pair in pairs)


def test_given_memory_and_smaller_images_serve_all_tasks(joint_model, images):
    small = images[..., :24, :20]
    memory = joint_model.get_encoder_memory(small)
    actual = joint_model.generate_tasks(small, encoder_memory=memory, top_p=0.0)
    assert actual["depth"].predicted_depth.shape == (3, 24, 20)
    expected = joint_model.generate(small, "instance", top_p=0.0)
    assert torch.equal(actual["instance"].sequences, expected.sequences)


@pytest.mark.parametrize(
    "tasks, message",
    [
        (("depth", "depth"), "task must be one of .* or different ones of them"),
        ((), "task must be one of .* or different ones of them"),
        (("detection",), "task must be one of"),
    ],
)
def test_unfit_tasks_are_named(joint_model, images, tasks, message):
    with pytest.raises(ValueError, match=message):
        joint_model.generate_tasks(images, tasks)


def test_tasks_together_are_for_single_views(joint_model, images):
    with pytest.raises(ValueError, match="windows and flips of dense tasks are for generate"):
        joint_model.generate_tasks(images[:, None])


@pytest.mark.parametrize("parallel", [False, True])
def test_memory_made_under_autocast_may_be_given_outside(tiny_model, images, parallel):
    model = tiny_model(parallel=parallel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = model.get_encoder_memory(images)
    expected = model.generate(images).predicted_depth
    actual = model.generate(images, encoder_memory=memory.bfloat16()).predicted_depth
    assert (actual - expected).norm() / expected.norm() < 0.05


# --- torch.compile ---


@pytest.fixture
def counted():
    """A backend that counts graphs and runs them as they are."""
    torch._dynamo.reset()
    yield torch._dynamo.testing.CompileCounterWithBackend("eager")
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
def test_model_compiles_in_place_without_graph_breaks(tiny_model, images, counted, parallel):
    model = tiny_model(parallel=parallel)
    expected = model.generate(images)
    parts = [model.model.backbone, model.model.encoder]
    if parallel:
        parts.append(model.model.decoder)
    for part in parts:
        part.compile(fullgraph=True, backend=counted)
    for _ in range(2):
        assert deviation(model.generate(images).predicted_depth, expected.predicted_depth) < TOLERANCE
    assert counted.frame_count == len(parts), "one graph each, and none anew in the second run"
    assert list(model.state_dict()) == list(tiny_model(parallel=parallel).state_dict())


@pytest.mark.slow
def test_training_step_compiles_without_graph_breaks(tiny_model, images, depths, counted):
    model = tiny_model().train()
    model(images, depth_labels=depths).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    parts = [model.model.backbone, model.model.encoder, model.model.decoder]
    for part in parts:
        part.compile(fullgraph=True, backend=counted)
    model(images, depth_labels=depths).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert deviation(parameter.grad, expected[name]) < TOLERANCE * (1 + expected[name].abs().max())
    assert counted.frame_count == len(parts)


@pytest.mark.parametrize("switch", ["compiled", "cuda_graphs"])
def test_parallel_models_take_no_steps_to_speed_up(tiny_model, images, switch):
    with pytest.raises(ValueError, match="compiled and cuda_graphs are for stepwise tasks"):
        tiny_model(parallel=True).generate(images, **{switch: True})


@pytest.mark.parametrize("task", ["depth", "instance"])
def test_cuda_graphs_are_refused_on_a_cpu(joint_model, images, task):
    with pytest.raises(ValueError, match="cuda_graphs needs the model on a CUDA device"):
        joint_model.generate(images, task, cuda_graphs=True)


@pytest.mark.slow
@pytest.mark.parametrize("task, field", [("depth", "predicted_depth"), ("instance", "mask_values")])
def test_compiled_steps_equal_plain_ones(joint_model, images, task, field):
    expected = joint_model.generate(images, task, generator=generator())
    actual = joint_model.generate(images, task, generator=generator(), compiled=True)
    assert torch.equal(actual.sequences, expected.sequences)
    assert deviation(actual[field], expected[field]) < TOLERANCE


# --- memory formats and precision ---


@pytest.mark.parametrize("parallel", [False, True])
def test_channels_last_changes_nothing(tiny_model, images, parallel):
    model = tiny_model(parallel=parallel)
    expected = model.generate(images).predicted_depth
    model = model.to(memory_format=torch.channels_last)
    actual = model.generate(images.to(memory_format=torch.channels_last)).predicted_depth
    assert deviation(actual, expected) < TOLERANCE


@pytest.mark.parametrize("parallel", [False, True])
def test_autocast_stays_near_float32(tiny_model, images, parallel):
    model = tiny_model(parallel=parallel)
    expected = model.generate(images).predicted_depth
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model.generate(images).predicted_depth
    assert actual.dtype == torch.float32
    assert 0 < (actual - expected).norm() / expected.norm() < 0.05
