"""The model card of a trained model, filled from its recipe and its last evaluation."""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from ...modeling_dense_decoder import DenseDecoderModel
from ...modeling_plain_dense import AiTPlainDenseModel
from ..recipes.reading import recipe_dict
from ..recipes.tokenizers import INSTANCE_TASK
from ..run_files import replace_text

CARD_FILE = "README.md"
PLACEHOLDER = "PATH/TO/"
AGREEMENT = "agreement_"
"""What figures against a model's maps, in place of labels, begin with."""
_SCRIPTS = {
    "VQVAERecipe": "run_vqvae.py",
    "DenseDecoderRecipe": "run_dense_decoder.py",
    "DenseRecipe": "run_dense.py",
    "DepthRecipe": "run_depth.py",
    "InstanceRecipe": "run_instance.py",
    "JointRecipe": "run_joint.py",
}
_STARTS = ("backbone_weights", "initialize_from", "finetune", "depth_tokenizer", "mask_tokenizer", "teacher")
_SECTIONS = ("data", "instance_data", "depth_data")
_PAPER = '"All in Tokens", [arXiv 2301.02229](https://arxiv.org/abs/2301.02229)'
_DENSE_DECODER_PAPER = '"Unifying Pixel-Labeling Vision Tasks by Sequence Modeling", a TMLR submission'


@dataclass(frozen=True)
class _Words:
    """What a card calls an object task, or a kind of maps.

    Args:
        name: of the task; None is the task's own name.
        pipeline: that serves it, None if there is none.
        values: what a tokenizer takes and gives.
        call: what the pipeline is called with beside the image.
        result: what of the pipeline's result is the prediction.
        limit: what its predictions do not say.
    """

    name: str | None
    pipeline: str | None = None
    values: str = ""
    call: str = ""
    result: str = ""
    limit: str | None = None


_OBJECTS = {
    "instance": _Words("instance segmentation", "image-segmentation"),
    "detection": _Words("detection", "object-detection"),
}
_KINDS = {
    "depth": _Words(
        "monocular depth estimation",
        "depth-estimation",
        "depth maps in metres, 0 = invalid",
        result='["predicted_depth"]',
        limit="Depth is in metres as the training data's cameras see it; other cameras shift its scale.",
    ),
    "normals": _Words(
        "surface normals",
        values="unit vectors (x right, y down, z ahead), the zero vector = invalid",
        limit="Normals are in the camera's axes: x right, y down, z ahead.",
    ),
    "classes": _Words(
        "semantic segmentation", "image-segmentation", "maps of classes, one channel each", call=', subtask="semantic"'
    ),
    "values": _Words(None, values="maps of real values, NaN = invalid"),
    "mask": _Words(None, values="instance masks in [0, 1], cropped to their boxes"),
}


@dataclass(frozen=True)
class RunFacts:
    """What a card says of a run beside its recipe.

    Args:
        steps: optimiser steps done.
        metrics: of the last evaluation; where a run has several tasks, every name starts with its task.
        eval_rows: rows of evaluation data by the recipe's section: "data", or "instance_data" and "depth_data".
        processes: number of processes.
        accumulation: forward passes of each process per step.
        mixed_precision: "no", "fp16" or "bf16".
        hardware: what each process ran on.
    """

    steps: int
    metrics: Mapping[str, float]
    eval_rows: Mapping[str, int]
    processes: int
    accumulation: int
    mixed_precision: str
    hardware: str


def run_facts(
    accelerator: Accelerator, steps: int, metrics: Mapping[str, float], eval_rows: Mapping[str, int]
) -> RunFacts:
    """Facts of a run on this machine; the arguments are those of `RunFacts`."""
    return RunFacts(
        steps=steps,
        metrics=metrics,
        eval_rows=eval_rows,
        processes=accelerator.num_processes,
        accumulation=accelerator.gradient_accumulation_steps,
        mixed_precision=accelerator.mixed_precision,
        hardware=_hardware(accelerator.device),
    )


def write_model_card(folder: Path, model: PreTrainedModel, recipe: Any, facts: RunFacts) -> Path:
    """Write `README.md` beside a trained model; paths of the machine are reduced to their last part.

    Args:
        folder: what `save_pretrained` wrote.
        model: the trained model, a tokenizer, a task-solver or the plain baseline, not wrapped.
        recipe: what it was trained by.
        facts: of the run.

    Returns:
        The card's path.
    """
    name = PurePosixPath(portable(recipe.run.output)).name
    parts = [
        _front_matter(model, recipe),
        f"# {name}\n\n{_introduction(model, recipe)}",
        "## Use\n\nIn this folder:\n\n" + _usage(model),
        "## Training\n\n" + _training(recipe, facts),
        "## Results\n\n" + _results(model, recipe, facts),
        "## Limits\n\n" + _limits(model, recipe, facts),
    ]
    path = folder / CARD_FILE
    replace_text(path, "\n\n".join(parts) + "\n")
    return path


def portable(value: Any) -> Any:
    """A recipe's value with every absolute path, or one that leaves its folder, reduced to its last part.

    Args:
        value: text, or any nesting of lists and dictionaries; other values come back as they are.
    """
    if isinstance(value, Mapping):
        return {key: portable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [portable(entry) for entry in value]
    # Chains such as zip://*.png::/data/images.zip hold a path in each link.
    return "::".join(_portable_path(link) for link in value.split("::")) if isinstance(value, str) else value


def _portable_path(text: str) -> str:
    path = re.sub("^file://", "", text)
    windows = PureWindowsPath(path)
    if windows.drive:
        return windows.name
    parts = PurePosixPath(path).parts
    leaves = bool(parts) and (parts[0].startswith(("/", "~")) or ".." in parts)
    return PurePosixPath(path).name if leaves else path


def _front_matter(model: PreTrainedModel, recipe: Any) -> str:
    pipelines = [_words(model, task).pipeline for task in _tasks(model)]
    names = [portable(section["dataset"]) for section in _data_sections(recipe).values()]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipelines[0] if pipelines else None,
        tags=list(dict.fromkeys(["ait", *(name for name in pipelines if name)])),
        datasets=list(dict.fromkeys(names)),
    )
    return f"---\n{data.to_yaml()}\n---"


def _tasks(model: PreTrainedModel) -> list[str]:
    """Tasks of a model, the default one first; none of a tokenizer."""
    return sorted(getattr(model.config, "tasks", ()), key=lambda task: task != model.config.default_task)


def _words(model: PreTrainedModel, task: str) -> _Words:
    return _OBJECTS[task] if task in _OBJECTS else _KINDS[model.config.dense[task].kind]


def _is_plain(model: PreTrainedModel) -> bool:
    return isinstance(model, AiTPlainDenseModel)


def _is_dense_decoder(model: PreTrainedModel) -> bool:
    return isinstance(model, DenseDecoderModel)


def _introduction(model: PreTrainedModel, recipe: Any) -> str:
    tasks = _tasks(model)
    size = f"- size: {sum(x.numel() for x in model.parameters()):,} parameters"
    if _is_dense_decoder(model):
        words, config = _KINDS[model.config.kind.name], model.config
        return "\n".join(
            [
                f"Dense decoder of UniPixTask for {words.name or 'maps of values'} ({_DENSE_DECODER_PAPER}): images to "
                "codes, codes to maps through the frozen head of a trained task model.",
                "",
                f"- input: {config.image_size} x {config.image_size}",
                *_tokenizer_lines(model)[1:],
                f"- teacher: `{portable(config.teacher_name)}`, {config.teacher_config['model_type']}, fingerprint "
                f"{config.teacher_fingerprint[:12]}",
                size,
            ]
        )
    if not tasks:
        words = _KINDS[model.config.kind.name]
        return "\n".join(
            [f"VQ-VAE tokenizer of {words.values} for AiT ({_PAPER}).", "", *_tokenizer_lines(model), size]
        )
    *first, last = (_words(model, task).name or f"maps of {task}" for task in tasks)
    names = f"{', '.join(first)} and {last}" if first else last
    what, paper = "AiT task-solver", _PAPER
    if _is_plain(model):
        what = "Plain convolutional decoders, a baseline of AiT,"
    elif any(spec.tokenizer_config.encodes_images for spec in model.config.dense.values()):
        what, paper = "AiT task-solver, as UniPixTask's sequence learner,", f"{_PAPER}, and {_DENSE_DECODER_PAPER}"
    size += f"{'' if _is_plain(model) else ', frozen tokenizers included'}; stored as {recipe.run.save_dtype}"
    return "\n".join([f"{what} for {names} ({paper}).", "", *_solver_lines(model), size])


def _tokenizer_lines(model: PreTrainedModel) -> list[str]:
    config = model.config
    return [
        f"- input and output: {config.num_channels} x {config.image_size} x {config.image_size}",
        f"- tokens: {config.grid_size} x {config.grid_size} codes of a {config.num_codes}-entry codebook of width "
        f"{config.code_dim}",
    ]


def _solver_lines(model: PreTrainedModel) -> list[str]:
    config = model.config
    lines = [f"- input: {config.image_size} x {config.image_size}", f"- backbone: {_backbone(config.backbone_config)}"]
    if _is_plain(model):
        return [*lines, f"- one decoder of width {config.hidden_size} for each task"]
    decoder = config.decoder_config
    lines[-1] += f", stride {config.feature_stride}"
    lines.append(
        f"- encoder of {decoder.num_encoder_layers} and decoder of {decoder.num_decoder_layers} blocks of width "
        f"{decoder.hidden_size}; {'parallel' if config.parallel else 'autoregressive'} decoding"
    )
    for task in _tasks(model):
        if task in config.dense:
            lines.append(f"- {task}: {_codes(config.dense[task].tokenizer_config)}")
        else:
            masks = f", masks of {_codes(config.mask_tokenizer_config)}" if task == INSTANCE_TASK else ""
            lines.append(f"- {task}: {config.num_objects} objects of {config.num_labels} classes{masks}")
    feedback, decode = ("soft" if soft else "hard" for soft in (config.soft_feedback, config.soft_decode))
    if config.dense or INSTANCE_TASK in config.tasks:
        lines.append(f"- {feedback} tokens fed back, {decode} decode")
    return lines


def _codes(tokenizer: Any) -> str:
    kinds = {"ait_vqvae": "VQ-VAE", "ait_bin_tokenizer": "linear bins", "dense_decoder": "dense decoder"}
    side, size = tokenizer.grid_size, tokenizer.image_size
    return f"{side} x {side} of {tokenizer.num_codes} codes ({kinds[tokenizer.model_type]}) for {size} x {size} pixels"


def _backbone(config: Any) -> str:
    if config.model_type != "ait_swinv2":
        return str(getattr(config, "backbone", None) or config.model_type)
    return f"SwinV2, width {config.embed_dim}, depths {list(config.depths)}, windows {list(config.window_sizes)}"


def _usage(model: PreTrainedModel) -> str:
    """Code that runs in the model's folder, where there is a photo.jpg."""
    config, tasks = model.config, _tasks(model)
    piped = [] if _is_plain(model) else [task for task in tasks if _words(model, task).pipeline]
    if _is_dense_decoder(model):
        lines = _usage_of_dense_decoder()
    elif tasks:
        lines = ["import transformers_ait", "from transformers import pipeline"] if piped else []
        for task in piped:
            words = _words(model, task)
            processor = "" if task == config.default_task else f', image_processor="./{task}"'
            lines.append(f'{task}_pipeline = pipeline("{words.pipeline}", model="."{processor})')
            lines.append(f'{task} = {task}_pipeline("photo.jpg"{words.call}){words.result}')
        lines += _usage_of_maps(model, [task for task in tasks if task not in piped])
    else:
        shape = f"1, {config.num_channels}, {config.image_size}, {config.image_size}"
        lines = [
            "import torch",
            "from transformers_ait import AiTVQVAEModel",
            'tokenizer = AiTVQVAEModel.from_pretrained(".")',
            f"maps = tokenizer.decode(tokenizer.encode(torch.rand({shape})))",
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _usage_of_dense_decoder() -> list[str]:
    return [
        "from PIL import Image",
        "from transformers_ait import AiTDenseImageProcessor, DenseDecoderModel",
        'model = DenseDecoderModel.from_pretrained(".")',
        'processor = AiTDenseImageProcessor.from_pretrained(".")',
        'image = Image.open("photo.jpg").convert("RGB")',
        'views = processor(image, return_tensors="pt")["pixel_values"].flatten(0, -4)  # windows of the image',
        "codes = model.encode(views)",
        "maps = model.decode(codes)  # of each window, in tokenizer form",
    ]


def _usage_of_maps(model: PreTrainedModel, tasks: list[str]) -> list[str]:
    """Lines for tasks that no pipeline serves."""
    if not tasks:
        return []
    name = type(model).__name__
    folder = "." if model.config.default_task in model.config.dense else f"./{tasks[0]}"
    wanted = "" if _is_plain(model) else f", task={json.dumps(tasks)}"
    return [
        "from PIL import Image",
        f"from transformers_ait import AiTDenseImageProcessor, {name}",
        f'model = {name}.from_pretrained(".").eval()',
        f'processor = AiTDenseImageProcessor.from_pretrained("{folder}")',
        'image = Image.open("photo.jpg").convert("RGB")',
        'pixel_values = processor(image, return_tensors="pt")["pixel_values"]',
        f"outputs = model(pixel_values{wanted})",
        f"maps = processor.post_process_dense(outputs, [(image.height, image.width)])[0]  # {', '.join(tasks)}",
    ]


def _training(recipe: Any, facts: RunFacts) -> str:
    run = recipe.run
    libraries = ("torch", "transformers", "transformers_ait")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    micro = run.batch_size // (facts.processes * facts.accumulation)
    lines = [
        f"- {facts.steps:,} steps of {run.batch_size} samples, seed {run.seed}",
        f"- {facts.processes} process(es), {facts.accumulation} forward pass(es) of {micro} samples per step and "
        f"process, mixed precision: {facts.mixed_precision}",
        f"- each process on {facts.hardware}",
        f"- {versions}, Python {platform.python_version()}",
    ]
    for name in _STARTS:
        start = getattr(recipe.model, name, None)
        if start is not None:
            lines.append(f"- {name.replace('_', ' ')}: `{portable(start)}`")
    for task, folder in getattr(recipe.model, "tokenizers", {}).items():
        lines.append(f"- tokenizer of {task}: `{portable(folder)}`")
    values = _portable_recipe(recipe)
    text = yaml.safe_dump(values, sort_keys=False).rstrip()
    return (
        f"```bash\n{_command(recipe, facts)}\n```\n\n"
        + "\n".join(lines)
        + f"\n\n<details>\n<summary>recipe.yaml</summary>\n\n```yaml\n{text}\n```\n\n</details>"
    )


def _portable_recipe(recipe: Any) -> dict[str, Any]:
    values = portable(recipe_dict(recipe))
    values["run"]["resume"] = False
    return values


def _command(recipe: Any, facts: RunFacts) -> str:
    """Command line that repeats the run from the card's recipe."""
    launcher = "python" if facts.processes == 1 else f"torchrun --nproc_per_node {facts.processes}"
    words = [launcher, f"training/{_SCRIPTS[type(recipe).__name__]}", "recipe.yaml"]
    if recipe.run.mixed_precision is None and facts.mixed_precision != "no":
        words.append(f"--run.mixed_precision {facts.mixed_precision}")
    before, after = _leaves(recipe_dict(recipe)), _leaves(_portable_recipe(recipe))
    moved = [key for key in before if before[key] != after[key] and not key.startswith("run.")]
    words += [f"--{key} {_placeholder(before[key], after[key])}" for key in moved]
    return " \\\n    ".join([" ".join(words[:3]), *words[3:]])


def _placeholder(before: Any, after: Any) -> str:
    """A value as the command line takes it; where the card does not tell the path, what to write in its place."""
    if isinstance(after, list):
        return "'[" + ", ".join(_placeholder(*pair) for pair in zip(before, after, strict=True)) + "]'"
    return str(after) if before == after else f"{PLACEHOLDER}{after}"


def _leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists are values, as the command line gives them whole."""
    if not isinstance(values, Mapping):
        return {prefix: list(values) if isinstance(values, tuple) else values}
    parts = (_leaves(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items())
    return {key: value for part in parts for key, value in part.items()}


def _data_sections(recipe: Any) -> dict[str, dict[str, Any]]:
    """Sections of data by name; a joint recipe has two."""
    values = recipe_dict(recipe)
    return {name: values[name] for name in _SECTIONS if name in values}


def _results(model: PreTrainedModel, recipe: Any, facts: RunFacts) -> str:
    """A table for every task."""
    if not facts.metrics:
        return "The run ended without an evaluation."
    sections, tables = _data_sections(recipe), []
    objects = [task for task in _tasks(model) if task in _OBJECTS]
    maps = [task for task in _tasks(model) if task not in _OBJECTS]
    tasks = {"data": _tasks(model), "instance_data": objects, "depth_data": maps}
    for section, data in sections.items():
        alone = len(_tasks(model)) < 2
        for task in [""] if alone else tasks[section]:
            prefix = f"{task}_" if task else ""
            metrics = {name.removeprefix(prefix): x for name, x in facts.metrics.items() if name.startswith(prefix)}
            # Names of tasks may begin alike.
            longer = [f"{other}_" for other in tasks[section] if other.startswith(prefix) and task]
            metrics = {name: x for name, x in metrics.items() if not f"{prefix}{name}".startswith(tuple(longer))}
            cells = {"task": task} if len(tasks[section]) > 1 else {}
            cells |= {"dataset": portable(data["dataset"]), "split": data["eval_split"]}
            cells |= {"rows": str(facts.eval_rows[section])} | {name: f"{x:.4g}" for name, x in metrics.items()}
            table = [list(cells), ["---"] * len(cells), list(cells.values())]
            tables.append("\n".join("| " + " | ".join(row) + " |" for row in table))
    return f"The last evaluation of the training, after step {facts.steps:,}:\n\n" + "\n\n".join(tables)


def _limits(model: PreTrainedModel, recipe: Any, facts: RunFacts) -> str:
    """Where the numbers come from, and what they do not say."""
    weights = "the last weights" if recipe.run.ema is None else "the weights' moving average"
    lines = [
        f"- One run with one seed ({recipe.run.seed}): no error bars.",
        f"- The numbers are those of the validation during training, of {weights} in training precision; "
        "`training/evaluate.py` applies the full protocol.",
    ]
    limits = {name: data["eval_limit"] for name, data in _data_sections(recipe).items()}
    lines += [
        f"- Only the first {facts.eval_rows[name]} rows of the evaluation data were used."
        for name, limit in limits.items()
        if limit is not None and facts.metrics
    ]
    if _is_dense_decoder(model):
        lines.append(
            "- It looks at the image, so its numbers are a prediction's; `agreement_` ones measure it against its "
            "teacher, `teacher_` ones the teacher against the labels. A sequence learner that predicts its codes stays "
            "below it."
        )
    elif not _tasks(model):
        lines.append(
            "- A tokenizer predicts nothing: the numbers are of true maps after encoding and decoding, the ceiling "
            "that it sets to a task-solver."
        )
    if any(name.partition(AGREEMENT)[1] for name in facts.metrics) and _tasks(model):
        lines.append(
            f"- `{AGREEMENT}` figures compare with the maps of the dense decoders whose codes it learns, others with "
            "labels."
        )
    limits_of_tasks = (_words(model, task).limit for task in _tasks(model))
    lines += dict.fromkeys(f"- {limit}" for limit in limits_of_tasks if limit)
    lines.append("- No license is named: the data and the weights that the training started from have a say in it.")
    return "\n".join(lines)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"one {device.type} device"
    described = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", described.read_text()) if described.is_file() else None
    return f"a CPU ({found[1] if found else platform.machine()}), {torch.get_num_threads()} thread(s)"
