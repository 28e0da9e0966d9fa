"""No path of the package loads a pickle: by its source, and by poisoned files at every public entry."""

import ast
import pickle
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from transformers_ait import AiTForDenseAndInstancePrediction, AiTVQVAEModel
from transformers_ait.conversion.converter import convert
from transformers_ait.data.restricted_npz import read_member
from transformers_ait.engine.loop.checkpoints import MANIFEST, load_checkpoint, save_checkpoint, write_manifest
from transformers_ait.engine.recipes.reading import RecipeError
from transformers_ait.engine.recipes.tokenizers import load_tokenizer
from transformers_ait.engine.tasks.initialization import initialize_from, load_backbone_weights

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "training").rglob("*.py")])
PICKLE_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# An error of torch.load, which any module may name; and the one that restricts what a pickle may name.
HARMLESS = {"UnpicklingError"}
RESTRICTED = {"restricted_npz.py": {"Unpickler"}}


def dotted(node):
    """`a.b.c` of an expression; empty if it is none."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def is_constant(call, name, value):
    return any(x.arg == name and isinstance(x.value, ast.Constant) and x.value.value is value for x in call.keywords)


def unsafe(source, name="x.py"):
    """What in a source may load a pickle, or run what a file says."""
    found, allowed = [], HARMLESS | RESTRICTED.get(name, set())
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = {alias.name.split(".")[0] for alias in node.names} & PICKLE_MODULES - {"pickle"}
            found += [f"imports {module}" for module in modules]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLE_MODULES:
            found.append(f"imports from {node.module}")
        if isinstance(node, ast.Attribute) and dotted(node.value) in PICKLE_MODULES and node.attr not in allowed:
            found.append(f"uses {dotted(node)}")
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if called in ("torch.load", "torch.hub.load_state_dict_from_url") and not is_constant(
            node, "weights_only", True
        ):
            found.append(f"{called} without weights_only=True")
        if any(x.arg == "weights_only" and not is_constant(node, "weights_only", True) for x in node.keywords):
            found.append(f"{called} with another weights_only")
        if any(x.arg == "allow_pickle" and not is_constant(node, "allow_pickle", False) for x in node.keywords):
            found.append(f"{called} with allow_pickle")
        if called in ("yaml.load", "yaml.load_all"):
            loaders = [dotted(x.value) for x in node.keywords if x.arg == "Loader"]
            found += [] if loaders in (["_Loader"], ["yaml.SafeLoader"]) else [f"{called} with {loaders}"]
        if called in ("eval", "exec", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "pandas.read_pickle"):
            found.append(f"calls {called}")
    return found


@pytest.mark.parametrize(
    "planted",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "np.load(path, allow_pickle=True)",
        "import pickle; pickle.load(file)",
        "import pickle; pickle.Unpickler(file)",
        "from pickle import load",
        "import joblib",
        "from joblib import load",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_the_audit_sees(planted):
    assert unsafe(planted)


def test_the_audit_lets_pass_what_is_safe():
    assert unsafe("torch.load(p, weights_only=True); np.load(p); model.eval(); yaml.load(t, Loader=_Loader)") == []


@pytest.mark.slow
def test_no_source_loads_a_pickle():
    found = {str(path.relative_to(REPOSITORY)): unsafe(path.read_text(), path.name) for path in SOURCES}
    assert len(found) > 100 and {path: problems for path, problems in found.items() if problems} == {}
    # The loader of recipes that the audit lets pass.
    assert (
        "class _Loader(yaml.SafeLoader)" in (REPOSITORY / "src/transformers_ait/engine/recipes/reading.py").read_text()
    )


class Poison:
    """An object whose unpickling writes a file."""

    def __init__(self, victim):
        self.victim = str(victim)

    def __reduce__(self):
        return (_strike, (self.victim,))


def _strike(victim):
    Path(victim).write_text("struck")
    return {}


@pytest.fixture
def victim(tmp_path):
    """A file that only code of a poisoned file would write."""
    path = tmp_path / "struck"
    yield path
    assert not path.exists(), "code from a file has run"


def test_the_poison_works(tmp_path):
    pickle.loads(pickle.dumps(Poison(tmp_path / "struck")))
    assert (tmp_path / "struck").exists()


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_the_converter_refuses(tmp_path, victim, suffix, wrapped):
    path = tmp_path / f"poison{suffix}"
    content = {"state_dict": {"a": Poison(victim)}} if wrapped else Poison(victim)
    if suffix == ".npz":
        np.savez(path, a=np.array([content], dtype=object))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="refused|not a readable"):
        convert(path, "ait-vqvae-depth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def poisoned_folder(tmp_path, victim, config):
    folder = tmp_path / "poisoned"
    folder.mkdir()
    config.save_pretrained(folder)
    torch.save({"weight": torch.ones(2), "x": Poison(victim)}, folder / "pytorch_model.bin")
    return folder


def test_models_refuse(tmp_path, victim, tiny_config, tiny_vqvae_config):
    for number, (model, config) in enumerate(
        [(AiTForDenseAndInstancePrediction, tiny_config()), (AiTVQVAEModel, tiny_vqvae_config())]
    ):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(Exception, match=r"(?i)weights.only|pytorch_model|no file named"):
            model.from_pretrained(poisoned_folder(tmp_path / str(number), victim, config))


def test_what_runs_start_from_refuses(tmp_path, victim, tiny_config, tiny_model):
    folder = poisoned_folder(tmp_path, victim, tiny_config())
    with pytest.raises(Exception, match=r"(?i)weights.only|pytorch_model|no file named|safetensors"):
        initialize_from(tiny_model(), str(folder))
    with pytest.raises(Exception, match=r"(?i)weights.only|pytorch_model|no file named|tokenizer"):
        load_tokenizer(str(folder), "model.depth_tokenizer", "depth")


class Counter:
    """Something that is registered for checkpoints, as the loop's progress is."""

    def state_dict(self):
        return {"step": 1}

    def load_state_dict(self, state):
        self.step = state["step"]


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"])
def test_resumed_runs_refuse(tmp_path, victim, name):
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    accelerator.prepare(model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    accelerator.register_for_checkpointing(Counter())
    checkpoint = save_checkpoint(accelerator, tmp_path, 1, keep=1)
    load_checkpoint(accelerator, checkpoint)
    assert (checkpoint / name).exists()
    torch.save({"step": Poison(victim)}, checkpoint / name)
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, 1)
    with pytest.raises(RecipeError, match="refused"):
        load_checkpoint(accelerator, checkpoint)


def test_backbone_weights_refuse(tmp_path, victim):
    torch.save({"a": Poison(victim)}, tmp_path / "poison.pth")
    model = AiTForDenseAndInstancePrediction.__new__(AiTForDenseAndInstancePrediction)
    torch.nn.Module.__init__(model)
    model.model = torch.nn.Module()
    model.model.backbone = torch.nn.Module()
    model.model.backbone._backbone = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="refused"):
        load_backbone_weights(model, str(tmp_path / "poison.pth"))


def test_data_refuses(tmp_path, victim):
    root = tmp_path / "pairs"
    for part in ("images", "depth"):
        (root / part).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "images" / "a.png")
    np.save(root / "depth" / "a.npy", np.array([Poison(victim)], dtype=object), allow_pickle=True)
    with pytest.raises(Exception) as caught:
        datasets.load_dataset("depth_folders", data_dir=str(root), cache_dir=str(tmp_path / "cache"), split="train")
    assert "a.npy" in f"{caught.value} {caught.value.__cause__}"


def test_human36m_refuses(tmp_path, victim):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("positions.npy", "w") as file:
        np.save(file, np.array([Poison(victim)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="asks for"):
        read_member(str(tmp_path / "x.npz"), "positions")
