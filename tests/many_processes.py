"""Train tiny models of every task as one process, as two, and with accumulated gradients; for test_many_processes.py.

    python tests/many_processes.py FOLDER

A single import serves all: the processes are forked, before anything else has run, and find each other through gloo.
Results go to FOLDER/<how>/<case>.pt; those of planted errors to <case>-planted.pt.
"""

import os
import socket
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import datasets
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.optimizer import register_optimizer_step_pre_hook

from transformers_ait import (
    AiTConfig,
    AiTForDenseAndInstancePrediction,
    AiTPlainDenseConfig,
    AiTPlainDenseModel,
    AiTVQVAEConfig,
    AiTVQVAEModel,
    DenseDecoderConfig,
    DenseDecoderModel,
    describe_teacher,
)
from transformers_ait.distributed_ait import mean_over_processes
from transformers_ait.engine.loop.processes import make_accelerator
from transformers_ait.engine.loop.sampling import SeededSamples, process_share
from transformers_ait.engine.loop.trainer import train
from transformers_ait.engine.recipes.dense_decoder import DenseDecoderRecipe
from transformers_ait.engine.recipes.reading import build_recipe
from transformers_ait.engine.recipes.scripts import DenseRecipe, InstanceRecipe, VQVAERecipe
from transformers_ait.engine.reporting.log import LOG_FILE, read_log
from transformers_ait.engine.tasks.dense import DenseTask, build_dense_model
from transformers_ait.engine.tasks.dense_codes import ImageCodes
from transformers_ait.engine.tasks.dense_data import DenseRows
from transformers_ait.engine.tasks.dense_decoder import DenseDecoderTask
from transformers_ait.engine.tasks.instance_data import InstanceRows, evaluate_objects
from transformers_ait.engine.tasks.instances import InstanceTask, build_instance_model
from transformers_ait.engine.tasks.vqvae import VQVAEMapTask, VQVAEMaskTask
from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.metrics import depth_metrics_per_image
from transformers_ait.teachers_ait import PlainTaskModel

SIDE, HEIGHT, WIDTH = 32, 32, 40
NAMES = ["cup", "dog", "chair"]
WAYS = {"one": (1, 4), "two": (2, 2), "accumulated": (1, 1)}
"""How: processes, and samples per forward pass; a step has 4 samples everywhere."""
CASES = (
    *("vqvae-depth", "vqvae-classes", "vqvae-masks", "dense-decoder"),
    *("depth", "depth-soft", "dense", "learner", "detection", "instance"),
)
TOKENIZERS = CASES[:4]
BACKBONE = {
    "model_type": "ait_swinv2",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_sizes": [4, 4],
    "pretrained_window_sizes": [4, 4],
    "shift_windows": [True, True],
    "drop_path_rate": 0.0,
}
DECODER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "max_positions": 36,
    "dropout": 0.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.2,
}
BINS = {"model_type": "ait_bin_tokenizer", "image_size": SIDE, "downsample_ratio": 8}
KINDS = {"depth": "depth", "normals": "normals", "classes": "classes"}
MASKS = {"image_size": 16, "hidden_size": 4, "downsample_ratio": 8, "num_codes": 8, "code_dim": 8}
MASKS |= {"symmetric_range": True, "ignore_zero": False}
SOLVER = {"image_size": SIDE, "backbone_config": BACKBONE, "decoder_config": DECODER}


def map_rows(count, seed):
    """Images of ramps with depth, normals and classes to match; holes of very different shares.

    Some images have no depth at all, some no normals, some no classes.
    """
    rng = np.random.default_rng(seed)
    columns = {name: [] for name in ("image", *KINDS)}
    for number in range(count):
        ramp = np.linspace(0, 1, WIDTH)[None] * rng.uniform(0.5, 4) + rng.uniform(0.5, 3, (HEIGHT, 1))
        holes = rng.random(ramp.shape) < rng.uniform(0, 0.9)
        columns["depth"].append((np.where(holes, 0, ramp) * 1000 * (number != 3)).astype(np.uint16))
        columns["image"].append((np.stack([ramp * 30] * 3, -1) % 256).astype(np.uint8))
        vectors = np.stack([np.sin(ramp), np.zeros_like(ramp), -np.cos(ramp)], -1)
        vectors[holes | (number in (1, 4))] = 0
        columns["normals"].append(np.rint((vectors + 1) * 127.5).astype(np.uint8))
        columns["classes"].append(np.where(holes | (number == 6), 255, ramp.clip(0, 4)).astype(np.uint8))
    pictures = {name: [Image.fromarray(pixels) for pixels in column] for name, column in columns.items()}
    return datasets.Dataset.from_dict(pictures, datasets.Features(dict.fromkeys(columns, datasets.Image())))


def dense_rows(rows, kinds):
    """Training and evaluation rows with maps of some kinds, each a task of the same name."""
    return [DenseRows(table, {kind: MAP_KINDS[kind] for kind in kinds}, in_memory=True) for table in rows]


def object_rows(count, seed):
    """Images of none to four rectangles, one in each quarter."""
    rng = np.random.default_rng(seed)
    images, maps, objects = [], [], []
    for number in range(count):
        numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
        entries = {"id": [], "category": [], "bbox": [], "area": []}
        for index in range((number * 3 + 1) % 5):
            height, width = rng.integers(6, 14, 2)
            top, left = (index // 2) * 16 + rng.integers(0, 3), (index % 2) * 20 + rng.integers(0, 6)
            numbers[top : top + height, left : left + width] = index + 1
            entries["id"].append(index + 1)
            entries["category"].append(int(rng.integers(len(NAMES))))
            entries["bbox"].append([float(left), float(top), float(width), float(height)])
            entries["area"].append(float(height * width))
        pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 3)) + numbers[..., None] * 40
        images.append(Image.fromarray(pixels.astype(np.uint8)))
        maps.append(Image.fromarray(numbers))
        objects.append(entries)
    fields = {
        "id": datasets.List(datasets.Value("int64")),
        "category": datasets.List(datasets.ClassLabel(names=NAMES)),
        "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "area": datasets.List(datasets.Value("float32")),
    }
    features = datasets.Features({"image": datasets.Image(), "instance_map": datasets.Image(), "objects": fields})
    columns = {"image": images, "instance_map": maps, "objects": objects}
    return InstanceRows(datasets.Dataset.from_dict(columns, features), in_memory=True)


def recipe(recipe_class, folder, micro_batch, **sections):
    run = {"output": str(folder), "steps": 2, "batch_size": 4, "micro_batch": micro_batch, "log_every": 1, "panels": 0}
    # The last evaluation row fills up a share of two processes.
    data = {"dataset": "none", "eval_limit": 3, "eval_batch": 2}
    optim = {"lr": 1e-3, "schedule": {"name": "constant"}}
    return build_recipe(recipe_class, {"data": data, "optim": optim, "run": run, **sections}, "test")


def make_task(case, data, tokenizer, folder, micro_batch):
    """Recipe and task of a case."""
    set_seed(0)
    if case.startswith("vqvae"):
        kind = case.removeprefix("vqvae-")
        dense = {**MASKS, "map_kind": kind, "image_size": SIDE, "symmetric_range": False}
        config = MASKS if kind == "masks" else dense | ({"num_channels": 5} if kind == "classes" else {})
        # Restarted codes hide what was collected, so that only the maps of depth have them, and late.
        restart = {"every": 2, "until": 1.0} if kind == "depth" else {}
        its = recipe(VQVAERecipe, folder, micro_batch, patch_mask={"patch_size": 4}, restart=restart)
        task_class = VQVAEMaskTask if kind == "masks" else VQVAEMapTask
        rows = data[1] if kind == "masks" else dense_rows(data[0], [kind])
        model = AiTVQVAEModel(AiTVQVAEConfig(**config))
        with torch.no_grad():
            model.decoder.output.bias += 2 if kind == "depth" else 0  # metres; less than nothing is all the same
        return its, task_class(model, *rows, its)
    if case == "dense-decoder":
        return dense_decoder_task(data, folder, micro_batch)
    if case == "learner":
        return learner_task(data, folder, micro_batch)
    if case.startswith("d") and case != "detection":
        tasks = list(KINDS) if case == "dense" else ["depth"]
        bins = {"depth": {"num_codes": 8}, "normals": {"num_codes": 9}, "classes": {"num_channels": 5}}
        entries = [{"name": name, "kind": KINDS[name], "tokenizer_config": BINS | bins[name]} for name in tasks]
        config = {**SOLVER, "num_depth_codes": 8, "dense_tasks": entries, "soft_decode": case == "depth-soft"}
        its = recipe(DenseRecipe, folder, micro_batch, model={"config": config})
        return its, DenseTask(build_dense_model(its.model), *dense_rows(data[0], tasks), its)
    config = {**SOLVER, "tasks": [case], "num_bins": 10, "num_objects": 4, "num_mask_codes": 8}
    model = {"config": config, "mask_tokenizer": str(tokenizer) if case == "instance" else None}
    its = recipe(InstanceRecipe, folder, micro_batch, model=model, augmentation={"scale": [0.8, 1.2]})
    return its, InstanceTask(build_instance_model(its.model, NAMES), case, *data[1], its)


def dense_decoder_task(data, folder, micro_batch):
    """Recipe and task of a dense decoder, with a codebook of moving averages, which processes share."""
    task = {"name": "depth", "kind": "depth"}
    plain = AiTPlainDenseConfig(backbone_config=BACKBONE, dense_tasks=[task], image_size=SIDE, hidden_size=8)
    teacher = PlainTaskModel(AiTPlainDenseModel(plain).eval())
    sizes = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "num_groups": 2}
    sizes |= {"downsample_ratio": 8, "num_codes": 8, "code_dim": 4, "dropout": 0.0, "codebook_update": "ema"}
    config = DenseDecoderConfig(**describe_teacher(teacher, SIDE), **sizes, backbone_config=BACKBONE)
    model = DenseDecoderModel(config)
    model.load_head(teacher)
    its = recipe(DenseDecoderRecipe, folder, micro_batch, model={"teacher": "none"})
    train_rows, eval_rows = dense_rows(data[0], []), dense_rows(data[0], ["depth"])
    return its, DenseDecoderTask(model, teacher, train_rows[0], eval_rows[1], its)


def learner_task(data, folder, micro_batch):
    """Recipe and task of a model that learns depth of labels, and codes that a dense decoder makes of images."""
    source = dense_decoder_task(data, folder, micro_batch)[1].model.eval()
    far = {"name": "far", "kind": "depth", "tokenizer_config": source.without_encoder().config}
    entries = [{"name": "depth", "tokenizer_config": BINS | {"num_codes": 8}}, far]
    model = AiTForDenseAndInstancePrediction(
        AiTConfig(**SOLVER, num_depth_codes=8, dense_tasks=entries, soft_decode=False)
    )
    model.tokenizer("far").load_state_dict(source.without_encoder().state_dict())
    its = recipe(DenseRecipe, folder, micro_batch)
    rows = dense_rows(data[0], ["depth"])
    return its, DenseTask(model, *rows, its, ImageCodes({"far": source}))


@contextmanager
def planted_errors(task):
    """Errors that the comparison must see: each micro-batch and each process minds only itself."""

    def alike(trainer, batches):
        return torch.stack([torch.ones_like(task.weight(batch), dtype=torch.float32) for batch in batches])

    with ExitStack() as stack:
        stack.enter_context(patch("transformers_ait.engine.loop.trainer._Trainer._shares", alike))
        for module in ("modeling_ait", "engine.tasks.vqvae"):
            stack.enter_context(patch(f"transformers_ait.{module}.mean_over_processes", lambda tensor: tensor))
        stack.enter_context(patch("transformers_ait.vector_quantizer.sum_over_processes", lambda tensor: tensor))
        if hasattr(task.model, "quantizer"):
            task.model.quantizer.deferred = False
        yield


def run_case(case, data, tokenizer, folder, micro_batch, planted):
    """What a training leaves: gradients of its steps, log, codebook."""
    its, task = make_task(case, data, tokenizer, folder, micro_batch)
    if planted:
        task.num_eval = 1  # only what is learned is compared
    accelerator = make_accelerator(its.run)
    gradients = []

    def record(optimizer, *arguments):
        named = task.model.named_parameters()
        gradients.append({name: x.grad.clone() for name, x in named if x.grad is not None})

    handle = register_optimizer_step_pre_hook(record)
    with planted_errors(task) if planted else ExitStack():
        model = train(task, its, accelerator)
    handle.remove()
    result = {"gradients": gradients, "processes": accelerator.num_processes}
    if not planted and case == "vqvae-depth":
        result["naive evaluation"] = naive_evaluation(task, accelerator)
    if not planted and case == "detection":
        kinds = ("bbox", "segm", "boundary")
        result["objects"] = evaluate_objects(data[1][1], 3, jittered(data[1][1]), kinds, 2, accelerator)
    if accelerator.is_main_process:
        result["log"] = read_log(folder / LOG_FILE)
        weights = load_file(model / "model.safetensors")
        result["codebook"] = {name: x for name, x in weights.items() if "quantizer." in name and case in TOKENIZERS}
        torch.save(result, folder.with_suffix(".pt"))
    accelerator.wait_for_everyone()


def naive_evaluation(task, accelerator):
    """RMSE as the mean over processes of each one's mean, which counts the row that fills up twice."""
    task.model.eval()
    values = []
    for index in process_share(3, accelerator.process_index, accelerator.num_processes):
        target = task._eval_map(index)
        with torch.no_grad():
            prediction = task.model(target[None, None]).reconstruction[0, 0].clamp(min=1e-3)
        values.append(depth_metrics_per_image(prediction, target)[0]["rmse"])
    return mean_over_processes(torch.tensor(np.nanmean(values))).item()


def jittered(rows):
    """A detector that misses every third object, and whose boxes are off by an amount of their own."""

    def predict(indices):
        results = []
        for entry in rows.ground_truth(len(rows))["annotations"]:
            if entry["image_id"] in indices and entry["id"] % 3:
                shift = float(entry["image_id"] + entry["id"])
                box = [entry["bbox"][0] + shift, *entry["bbox"][1:]]
                score = 1 / (1 + entry["id"])
                kept = {key: entry[key] for key in ("image_id", "category_id", "segmentation")}
                results.append({**kept, "bbox": box, "score": score})
        return results

    return predict


def shard(data, folder, rank):
    """Gradients of a model cut into blocks as fsdp.yaml says, by torch's own FSDP, and those of a whole one."""
    gradients = {}
    for kind in ("whole", "sharded"):
        its, task = make_task("instance", data, folder / "tokenizer", folder / "unused", 2)
        if kind == "sharded":
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for module in task.model.modules():
                if type(module).__name__ in task.model._no_split_modules:
                    fully_shard(module, mesh=mesh)
            fully_shard(task.model, mesh=mesh)
        samples = [SeededSamples(task.sample, its.run.seed)[0, index] for index in (2 * rank + 1, 2 * rank + 2)]
        task.loss(task.model.train(), task.collate(samples), torch.ones(()))[0].backward()
        gradients[kind] = {name: x.grad for name, x in task.model.named_parameters() if x.grad is not None}
    result = {
        "own": {name: x.clone() for name, x in gradients["whole"].items()},
        "whole": {name: mean_over_processes(x) for name, x in gradients["whole"].items()},
        "parts": {name: x.to_local().numel() / x.numel() for name, x in gradients["sharded"].items()},
        "sharded": {name: x.full_tensor() for name, x in gradients["sharded"].items()},
    }
    if rank == 0:
        torch.save(result, folder / "two" / "sharding.pt")


def work(rank, way, data, folder, port):
    """One process of a way."""
    processes, micro_batch = WAYS[way]
    torch.set_num_threads(1)
    if processes > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {name: str(number) for name, number in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for planted in (False, True):
        for case in CASES:
            # A single forward pass has nothing to share, and what depth-soft adds is never exact.
            if planted and (way == "one" or case == "depth-soft"):
                continue
            name = f"{case}-planted" if planted else case
            run_case(case, data, folder / "tokenizer", folder / way / name, micro_batch, planted)
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    if processes > 1:
        shard(data, folder, rank)


def main(folder):
    """Everything, one way after the other."""
    torch.manual_seed(0)
    AiTVQVAEModel(AiTVQVAEConfig(**MASKS)).save_pretrained(folder / "tokenizer")
    data = ((map_rows(8, 0), map_rows(3, 1)), (object_rows(8, 0), object_rows(3, 1)))
    for way, (processes, _) in WAYS.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.start_processes(work, (way, data, folder, port), nprocs=processes, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
