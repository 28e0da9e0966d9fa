"""What transformers' ModelTesterMixin checks of any model's saving and loading: see `docs/transformers-checks.md`.

The tests are named after the checks.
"""

import copy
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging
from transformers_checks_cases import (
    CLASSES,
    STORED,
    each,
    equal,
    flat,
    make_case,
    run,
)

from transformers_ait import AiTForDenseAndInstancePrediction, AiTPlainDenseModel


@pytest.fixture
def case(request, tiny_config, tiny_backbone_config, tiny_vqvae_config, bin_tokenizer_config, images, depths):
    """The case that the test is parametrised with."""
    bins = copy.deepcopy(bin_tokenizer_config)
    return make_case(request.param, tiny_config, tiny_backbone_config, tiny_vqvae_config, bins, images, depths)


# --- saving and loading ---


@pytest.mark.slow
@each(*STORED)
def test_save_load(case, tmp_path):
    model = case.model()
    before = run(model, case.inputs)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file() and not (tmp_path / "generation_config.json").exists()
    loaded = case.kind.from_pretrained(tmp_path).eval()
    assert equal(before, run(loaded, case.inputs))
    loaded.save_pretrained(tmp_path)  # with what loading has added to the configuration
    assert equal(before, run(case.kind.from_pretrained(tmp_path), case.inputs))


@pytest.mark.slow
@each(*STORED)
def test_from_pretrained_no_checkpoint(case):
    state = case.model().state_dict()
    loaded = case.kind.from_pretrained(None, config=copy.deepcopy(case.config), state_dict=state).state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[name], loaded[name]) for name in state)


@pytest.mark.slow
@each("parallel", "vqvae")
def test_keep_in_fp32_modules(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    kept = [rf"(?:^|\.){name}(?:\.|$)" for name in case.kind._keep_in_fp32_modules_strict]
    for dtype in (torch.float16, torch.bfloat16):
        state = case.kind.from_pretrained(tmp_path, dtype=dtype).state_dict().items()
        wanted = {name: torch.float32 if any(re.search(x, name) for x in kept) else dtype for name, _ in state}
        assert {name: tensor.dtype for name, tensor in state} == wanted
        assert torch.float32 in wanted.values()


@pytest.mark.slow
@each(*STORED)
def test_load_contiguous_weights(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    assert all(p.is_contiguous() for p in case.kind.from_pretrained(tmp_path).parameters())


@pytest.mark.slow
@each(*STORED)
def test_can_init_all_missing_weights(case, monkeypatch):
    """Weights that no checkpoint has are as those of a new model, and none of them stays on the meta device."""
    initialize = PreTrainedModel._initialize_weights

    def seeded(*args, **kwargs):
        torch.default_generator.manual_seed(0)  # torch.manual_seed also looks for accelerators, a thousand times here
        initialize(*args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", seeded)
    new = case.kind(copy.deepcopy(case.config))
    loaded = case.kind.from_pretrained(None, config=copy.deepcopy(case.config), state_dict={})
    assert not [name for name, x in [*loaded.named_parameters(), *loaded.named_buffers()] if x.is_meta]
    different = [name for name, x in new.state_dict().items() if not torch.equal(x, loaded.state_dict()[name])]
    assert different == []


@pytest.mark.slow
@each(*STORED)
def test_init_weights_can_init_buffers(case, monkeypatch):
    with torch.device("meta"):
        model = case.kind(copy.deepcopy(case.config))
    model.to_empty(device="cpu")
    model.init_weights()
    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", lambda *args, **kwargs: None)
    expected = dict(case.kind(copy.deepcopy(case.config)).named_buffers())
    found = dict(model.named_buffers())
    # The tokenizers' codebooks are drawn at random.
    fixed = [name for name in expected if "quantizer" not in name]
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in fixed)


@pytest.mark.slow
@each(*STORED)
def test_all_tensors_are_parameter_or_buffer(case):
    """Nothing that a forward pass needs stays behind on the meta device."""
    with torch.device("meta"):
        model = case.kind(copy.deepcopy(case.config)).eval()
    model.to_empty(device="cpu")
    model.init_weights()
    assert flat(run(model, case.inputs))


@pytest.mark.slow
@each("parallel")
def test_correct_missing_keys(case, tmp_path):
    case.model().base_model.save_pretrained(tmp_path)
    _, info = case.kind.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and all("tokenizer" in name for name in info["missing_keys"])


@pytest.mark.slow
@each(*STORED)
def test_can_use_safetensors(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    loaded, info = case.kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.slow
@each(*STORED)
def test_tied_weights_keys(case):
    """Nothing is tied: ids enter and leave through one parameter."""
    model = case.model()
    places = [x.data_ptr() for x in model.state_dict().values() if x.numel()]
    assert len(set(places)) == len(places) and not model._tied_weights_keys


@pytest.mark.slow
@each("parallel", "plain", "vqvae", "backbone")
def test_model_weights_reload_no_missing_tied_weights(case, tmp_path):
    """Of a file without any weight, every parameter is missed."""
    model = case.model()
    model.save_pretrained(tmp_path)
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = case.kind.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(model.state_dict())


@pytest.mark.slow
@each("solver", "plain", "vqvae")
def test_torch_save_load(case, tmp_path):
    state = case.model().state_dict()
    torch.save(state, tmp_path / "state.bin")
    loaded = torch.load(tmp_path / "state.bin", weights_only=True)
    assert all(torch.equal(x, loaded[name]) for name, x in state.items())


@pytest.mark.slow
@each("solver", "backbone", "vqvae")
def test_can_be_initialized_on_meta(case):
    with torch.device("meta"):
        assert all(p.is_meta for p in case.kind(copy.deepcopy(case.config)).parameters())


@pytest.mark.slow
@each("solver", "backbone", "vqvae")
def test_cannot_load_with_meta_device_context_manager(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
        case.kind.from_pretrained(tmp_path)


@pytest.mark.slow
@each("vqvae", "backbone")
def test_bc_torch_dtype(case, tmp_path):
    case.model().save_pretrained(tmp_path)
    for dtype in ("float16", torch.bfloat16, "auto"):
        old, new = (case.kind.from_pretrained(tmp_path, **{name: dtype}) for name in ("torch_dtype", "dtype"))
        assert [p.dtype for p in old.parameters()] == [p.dtype for p in new.parameters()]


@pytest.mark.slow
@each("parallel", "plain")
def test_sharded_saving_and_variants(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path, max_shard_size="5KB", variant="half")
    assert len([*tmp_path.glob("model.half-*.safetensors")]) > 1
    loaded = case.kind.from_pretrained(tmp_path, variant="half")
    assert equal(run(model, case.inputs), run(loaded, case.inputs))


# --- loading with other classes ---


def detector_folder(case, folder):
    model = case.model()
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
@each("detector")
def test_load_with_mismatched_shapes(case, tmp_path):
    detector_folder(case, tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        case.kind.from_pretrained(tmp_path, num_labels=5)


@pytest.mark.slow
@each("detector")
def test_can_load_ignoring_mismatched_shapes(case, tmp_path):
    """Class ids stand amid the vocabulary: their rows alone start anew, and classes of the same name keep theirs."""
    model = detector_folder(case, tmp_path)
    names = {0: "chair", 1: "dog", 2: "floor", 3: "cat"}
    with CaptureLogger(logging.get_logger("transformers_ait")) as capture:
        loaded, info = case.kind.from_pretrained(
            tmp_path, id2label=names, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert sorted(name for name, *_ in info["mismatched_keys"]) == [
        "model.decoder.output_bias",
        "model.decoder.token_embeddings",
    ]
    assert "['dog', 'cat'] are new" in capture.out and "['chair', 'floor'] are kept" in capture.out
    assert loaded.config.id2label == names and loaded.config.label2id["cat"] == 3 and loaded.config.num_labels == 4
    before, after = model.state_dict(), loaded.state_dict()
    tables = [name for name, *_ in info["mismatched_keys"]]
    assert all(torch.equal(x, after[name]) for name, x in before.items() if name not in tables)
    old, new = model.config.vocabulary, loaded.config.vocabulary
    for name in tables:
        a, b = before[name], after[name]
        for rows in ("coordinates", "mask_codes", "depth_codes"):
            assert torch.equal(a[getattr(old, rows).rows], b[getattr(new, rows).rows])
        assert torch.equal(a[[old.noise, old.end_of_sequence]], b[[new.noise, new.end_of_sequence]])
        kept_before, kept_after = a[old.classes.rows][[2, 1]], b[new.classes.rows][[0, 2]]
        assert torch.equal(kept_before, kept_after)
    assert loaded(**case.inputs).class_labels.max() < 4
    labels = [case.labels["instance_labels"][0] | {"class_labels": torch.tensor([3, 1])}] * 2
    assert loaded(**case.inputs, instance_labels=labels).loss.isfinite()


@pytest.mark.slow
@each("detector")
def test_mismatched_shapes_have_properly_initialized_weights(case, tmp_path):
    detector_folder(case, tmp_path)
    loaded = case.kind.from_pretrained(tmp_path, num_labels=40, ignore_mismatched_sizes=True)
    assert loaded.config.id2label[39] == "LABEL_39"
    new = loaded.model.decoder.token_embeddings[loaded.config.vocabulary.classes.rows]
    std = loaded.config.decoder_config.initializer_range
    assert 0.5 * std < new.std() < 1.5 * std and not loaded.model.decoder.output_bias[12:40].any()


@pytest.mark.slow
@each("plain")
def test_new_semantic_classes_keep_all_but_the_last_convolution(case, tmp_path):
    model = detector_folder(case, tmp_path)
    names = {0: "road", 1: "sky", 2: "car", 3: "tree"}
    loaded, info = AiTPlainDenseModel.from_pretrained(
        tmp_path, id2label=names, num_labels=4, ignore_mismatched_sizes=True, output_loading_info=True
    )
    changed = sorted(name for name, *_ in info["mismatched_keys"])
    assert changed == ["heads.semantic.output.bias", "heads.semantic.output.weight"]
    after = loaded.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in model.state_dict().items() if name not in changed)
    assert loaded.config.num_labels == 4 and loaded.config.dense["semantic"].class_names == [*names.values()]
    assert loaded(**case.inputs).dense_maps["semantic"].max() < 4


@pytest.mark.slow
def test_classes_of_a_tokenizer_cannot_be_renumbered(tiny_config, tmp_path):
    """Semantic classes of a task-solver are the channels of its frozen tokenizer."""
    tokenizer = {"image_size": 32, "downsample_ratio": 8, "hidden_size": 4, "num_codes": 12, "code_dim": 6}
    tasks = [{"name": "semantic", "kind": "classes", "class_names": ["a", "b"], "tokenizer_config": tokenizer}]
    AiTForDenseAndInstancePrediction(tiny_config(dense_tasks=tasks)).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="tokenizer that was trained on these classes"):
        AiTForDenseAndInstancePrediction.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)


@pytest.mark.slow
@each("detector")
def test_num_labels_must_agree_with_id2label(case, tmp_path):
    detector_folder(case, tmp_path)
    with pytest.raises(ValueError, match="num_labels=5"):
        case.kind.from_pretrained(tmp_path, num_labels=5, id2label=CLASSES)
