"""The architecture as a test: who may import whom, what remote code allows, docstrings, sizes."""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "transformers_ait"

# Modules that ship with checkpoints. Each imports modules of lower levels alone; a new module must be listed here.
LEVELS = (
    {
        "token_vocabulary",
        "token_pruning",
        "losses_pose",
        "hypotheses_pose",
        "map_kinds_ait",
        "kept_tensors_ait",
        "attention_ait",
        "layer_states_ait",
        "outputs_ait",
        "distributed_ait",
        "mask_geometry_ait",
        "image_bands_ait",
        "image_windows_ait",
        "image_settings_ait",
        "configuration_checks_ait",
        "coco_annotations_ait",
    },
    {
        *("loading_ait", "vector_quantizer", "configuration_token_decoder", "configuration_tokenizers"),
        *("token_recovery", "hourglass", "decoding_cache_ait", "configuration_ait_swinv2"),
    },
    {"configuration_unipixtask", "found_objects_ait", "instance_annotations_ait"},
    {"configuration_dense_tasks", "configuration_hourglass_pose", "image_inputs_ait", "pretrained_ait"},
    {"configuration_ait", "modeling_hourglass_pose", "processing_hourglass_pose"},
    {
        "configuration_plain_dense",
        "modeling_ait_vqvae",
        "modeling_bin_tokenizer",
        "window_attention_ait",
        "modeling_token_decoder",
        "sequence_ait",
        "image_processing_ait_dense",
        "image_processing_ait_instance",
    },
    {"image_processing_ait_depth", "decoding_tokens", "losses_ait", "modeling_ait_swinv2", "feature_restoration"},
    {"modeling_ait_base"},
    {"modeling_plain_dense"},
    {"teachers_ait"},
    {"teacher_loading_ait"},
    {"modeling_dense_decoder"},
    {"prediction_ait"},
    {"modeling_ait"},
)
# Never shipped: they may import everything above, except where the next table says otherwise.
NOT_SHIPPED = {
    *("__init__", "__main__", "remote_code", "optimization", "paligemma_tokens", "hourglass_images", "video_smoothing"),
    *("visualization", "visualization_colors", "visualization_objects", "visualization_panel", "visualization_pose"),
}
PACKAGES = {"data", "metrics", "conversion", "engine", "export", "cli", "app"}
# `data` and `metrics` know no models; of the package they may use these helpers alone.
WITHOUT_MODELS = {"data": {"mask_geometry_ait", "map_kinds_ait"}, "metrics": {"mask_geometry_ait", "map_kinds_ait"}}

# The parts of `engine`: each imports only parts that stand before it.
ENGINE_ORDER = ("run_files", "recipes", "reporting", "loop", "tasks", "evaluation", "ablation")

REQUIREMENTS = {"torch", "torchvision", "transformers", "timm", "numpy", "PIL", "huggingface_hub", "safetensors"}
# Of the standard library, what runs other programs or code, or reaches over the network, has no place in remote code.
REFUSED = {"ctypes", "ftplib", "http", "marshal", "multiprocessing", "runpy", "shelve", "socket", "subprocess"}
REFUSED |= {"code", "smtplib", "socketserver", "ssl", "urllib", "webbrowser", "xmlrpc"}
# Modules that are looked for at run time, under a constant name; without them the call says what to install.
OPTIONAL = {"pycocotools.mask"}
# What transformers' dynamic module loader takes for a relative import, wherever it stands.
LOADER_PATTERN = re.compile(r"^\s*(?:import\s+\.(\S+)\s*$|from\s+\.(\S+)\s+import)", re.MULTILINE)

LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
SHIPPED = sorted(path for path in PACKAGE.glob("*.py") if path.stem in LEVEL_OF)
ALL = sorted(PACKAGE.rglob("*.py"))


def relative(path):
    return str(path.relative_to(PACKAGE))


def imports(source):
    """(level of dots, module, names) of every import, lazy ones included; 0 dots are absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)


def imported_of_package(path, source):
    """First component, below the package, of every import of this package's own code."""
    depth = len(path.relative_to(PACKAGE).parts)
    for dots, module, names in imports(source):
        if dots == 0 and module.split(".")[0] == "transformers_ait":
            parts = module.split(".")[1:]
        elif dots == depth:
            parts = module.split(".") if module else []
        else:
            continue
        yield from [parts[0]] if parts else names


def remote_code_violations(source):
    """What would keep a shipped module from loading as remote code."""
    found = []
    for dots, module, names in imports(source):
        root = module.split(".")[0]
        if dots > 1 or (dots == 1 and "." in module):
            found.append(f"not a flat relative import: {'.' * dots}{module}")
        if dots == 1 and not module:
            found.append(f"`from . import {', '.join(names)}` is saved but does not load")
        if dots == 0 and root == "transformers_ait":
            found.append(f"absolute import of the package: {module}")
        if dots == 0 and root not in REQUIREMENTS | sys.stdlib_module_names | {"transformers_ait"}:
            found.append(f"becomes an install requirement: {module}")
        if dots == 0 and root in REFUSED:
            found.append(f"reaches beyond its own: {module}")
        if "*" in names:
            found.append(f"star import of {module}")
    found += [f"runs or imports what is not written: {call}" for call in dynamic_code(source)]
    written = sorted(module for dots, module, _ in imports(source) if dots == 1 and module)
    seen = sorted(a or b for a, b in LOADER_PATTERN.findall(source))
    if written != seen:
        found.append(f"the loader sees imports of {seen}, the code has {written}")
    return found


def dynamic_code(source):
    """Calls that import by a name, or run text."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        is_method = isinstance(node.func, ast.Attribute) and name in ("eval", "compile")  # of models, and `re`
        if name not in ("import_module", "__import__", "exec", "eval", "compile") or is_method:
            continue
        first = node.args[0] if node.args else None
        if name != "import_module" or not isinstance(first, ast.Constant) or first.value not in OPTIONAL:
            yield ast.unparse(node)


def level_violations(name, source):
    path = PACKAGE / f"{name}.py"
    return [
        f"level {LEVEL_OF[name]} imports {other}"
        for other in imported_of_package(path, source)
        if LEVEL_OF.get(other, len(LEVELS)) >= LEVEL_OF[name]
    ]


def engine_violations(path, source):
    """Imports of a later part of `engine`, or of one that ENGINE_ORDER does not list."""
    parts = path.relative_to(PACKAGE / "engine").with_suffix("").parts
    found = []
    for dots, module, names in imports(source):
        if dots != len(parts) or dots == 0:
            continue
        for part in [module.split(".")[0]] if module else names:
            if part not in ENGINE_ORDER[: ENGINE_ORDER.index(parts[0])]:
                found.append(f"{'/'.join(parts)} imports {part}")
    return found


def undocumented(source):
    """Public classes, functions and methods without docstring."""

    def visit(body, prefix):
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{prefix}{node.name}.")

    tree = ast.parse(source)
    return ([] if ast.get_docstring(tree) else ["module"]) + list(visit(tree.body, ""))


def test_every_module_has_its_place():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules <= LEVEL_OF.keys() | NOT_SHIPPED, "list new modules in this file, at their level"
    assert packages <= PACKAGES
    folders = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/*.py")}
    assert folders == packages, "a folder without __init__.py is not installed"
    assert sum(map(len, LEVELS)) == len(LEVEL_OF)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_imports_point_down_the_levels(path):
    assert level_violations(path.stem, path.read_text()) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_modules_load_as_remote_code(path):
    assert remote_code_violations(path.read_text()) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_configurations_keep_their_annotations(path):
    """Strict validation of configurations vanishes under postponed annotations."""
    if path.stem.startswith("configuration_"):
        assert "annotations" not in [name for dots, module, names in imports(path.read_text()) for name in names]


@pytest.mark.parametrize("folder", WITHOUT_MODELS)
def test_data_and_metrics_import_no_model_code(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        allowed = WITHOUT_MODELS[folder] | {folder}
        assert set(imported_of_package(path, path.read_text())) <= allowed, relative(path)


def test_imports_of_the_engine_follow_its_order():
    for path in (PACKAGE / "engine").rglob("*.py"):
        if path.parent != PACKAGE / "engine" or path.stem != "__init__":
            assert engine_violations(path, path.read_text()) == []
    assert engine_violations(PACKAGE / "engine" / "loop" / "trainer.py", "from ..tasks.dense import DenseTask")
    assert engine_violations(PACKAGE / "engine" / "run_files.py", "from .loop.task import TrainingTask")


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_public_names_are_documented(path):
    assert undocumented(path.read_text()) == []


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_files_and_functions_stay_short(path):
    source = path.read_text()
    assert len(source.splitlines()) < 600
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    assert [n.name for n in functions if n.end_lineno - n.lineno + 1 > 60] == []


def test_offsets_are_added_in_the_token_map_alone():
    """`.start` and `.stop` of an id range in arithmetic mean that somebody computes ids by hand."""
    for path in SHIPPED:
        if path.stem == "token_vocabulary":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
                sides = [side for side in (node.left, node.right) if isinstance(side, ast.Attribute)]
                assert not any(side.attr in ("start", "stop") for side in sides), f"{path.stem}:{node.lineno}"


@pytest.mark.parametrize(
    "name, line",
    [
        ("token_vocabulary", "from .modeling_ait import AiTModel"),
        ("modeling_ait_vqvae", "from .modeling_ait_swinv2 import AiTSwinV2Backbone"),
        ("configuration_ait", "def f():\n    from .sequence_ait import map_grammar"),
        ("decoding_tokens", "from .optimization import parameter_groups"),
        ("losses_ait", "from .unlisted import something"),
    ],
)
def test_upward_imports_are_noticed(name, line):
    assert level_violations(name, line)


@pytest.mark.parametrize(
    "source",
    [
        "from . import attention_ait",
        "from .data.loading import load",
        "from ..elsewhere import x",
        "import transformers_ait",
        "from transformers_ait.token_vocabulary import IdRange",
        "import pycocotools",
        '"""Usage:\n\n    from .modeling_ait import AiTModel\n"""',
        "from .attention_ait import *",
        "import subprocess",
        "from urllib.request import urlopen",
        "import importlib\nimportlib.import_module(name)",
        "exec(text)",
    ],
)
def test_what_breaks_remote_code_is_noticed(source):
    assert remote_code_violations(source)


def test_missing_docstrings_are_noticed():
    source = (
        '"""Module."""\nclass A:\n    """A."""\n    def method(self): ...\n    def _private(self): ...\ndef f(): ...\n'
    )
    assert undocumented(source) == ["A.method", "f"]
