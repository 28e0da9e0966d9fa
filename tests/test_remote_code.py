"""Checkpoints that carry their code: loaded in a process that cannot import this package."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ait import AiTModel, AiTVQVAEModel, save_with_code

# Runs where importing the package raises, as if it were not installed.
LOADER = """
import sys
import torch
from PIL import Image


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_ait":
            raise ModuleNotFoundError("transformers_ait is not installed here")


sys.meta_path.insert(0, Blocker())
sys.path[:] = [entry for entry in sys.path if not entry.endswith("src")]
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForDepthEstimation, pipeline

folder, photograph, target = sys.argv[1:]
image = Image.open(photograph)
model = AutoModelForDepthEstimation.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pixel_values = processor(image, return_tensors="pt").pixel_values
labels = torch.linspace(1, 5, 32 * 32).view(1, 32, 32)
estimate = pipeline("depth-estimation", model=folder, trust_remote_code=True, device="cpu")
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(target + ".resaved")
again = AutoModelForDepthEstimation.from_pretrained(target + ".resaved", trust_remote_code=True)
torch.save(
    {
        "names": [type(model).__name__, type(processor).__name__, type(base).__name__],
        "config": AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type,
        "pixel_values": pixel_values,
        "predicted_depth": model(pixel_values).predicted_depth,
        "resaved": again(pixel_values).predicted_depth,
        "loss": model(pixel_values[:, 0], depth_labels=labels).loss.detach(),
        "memory": base(pixel_values[:, 0]).last_hidden_state.detach(),
        "piped": estimate(image)["predicted_depth"],
    },
    target,
)
assert not any(name.split(".")[0] == "transformers_ait" for name in sys.modules)
"""


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
    return path


def load_elsewhere(folder, photograph, tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    target = tmp_path / "result.pt"
    command = [sys.executable, "-c", LOADER, str(folder), str(photograph), str(target)]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(target)


@pytest.mark.slow
def test_checkpoint_with_code_needs_no_installation(tiny_model, tiny_processor, photograph, tmp_path):
    model, folder = tiny_model(), tmp_path / "checkpoint"
    save_with_code(model, folder, tiny_processor)
    loaded = load_elsewhere(folder, photograph, tmp_path)
    assert loaded["names"] == ["AiTForDenseAndInstancePrediction", "AiTDepthImageProcessor", "AiTModel"]
    assert loaded["config"] == "ait"
    inputs = tiny_processor(Image.open(photograph), return_tensors="pt")
    assert torch.equal(loaded["pixel_values"], inputs.pixel_values)
    expected = model(**inputs)
    assert torch.equal(loaded["predicted_depth"], expected.predicted_depth)
    assert torch.equal(loaded["resaved"], expected.predicted_depth)
    labels = torch.linspace(1, 5, 32 * 32).view(1, 32, 32)
    assert torch.equal(loaded["loss"], model(inputs.pixel_values[:, 0], depth_labels=labels).loss)
    assert torch.equal(loaded["memory"], model.get_encoder_memory(inputs.pixel_values[:, 0]))
    post_processed = tiny_processor.post_process_depth_estimation(expected, [(48, 64)])[0]["predicted_depth"]
    assert torch.equal(loaded["piped"], post_processed)


def test_later_saves_do_not_copy_code(tiny_model, tiny_processor, tmp_path):
    model = tiny_model()
    save_with_code(model, tmp_path / "with", tiny_processor)
    model.save_pretrained(tmp_path / "without")
    tiny_processor.save_pretrained(tmp_path / "without")
    assert list((tmp_path / "with").glob("modeling_ait*.py"))
    assert not list((tmp_path / "without").glob("*.py"))
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" in (tmp_path / "with" / name).read_text()
        assert "auto_map" not in (tmp_path / "without" / name).read_text()


def test_a_failed_save_leaves_nothing_behind_in_the_classes(tiny_model, tmp_path):
    model = tiny_model()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save_with_code(model, tmp_path / "file" / "folder")
    assert type(model)._auto_class is None and not hasattr(model.config, "auto_map")


@pytest.mark.parametrize("family", ["tokenizer", "base"])
def test_other_models_are_refused(tiny_vqvae_config, tiny_config, tmp_path, family):
    model = AiTVQVAEModel(tiny_vqvae_config()) if family == "tokenizer" else AiTModel(tiny_config())
    with pytest.raises(TypeError, match="AiT task-solver"):
        save_with_code(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
