"""python training/examples/finetune_depth_trainer.py hub_configs/ait-lite-nyu mydata runs/own-trainer 200"""

import sys

from datasets import load_dataset
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, Trainer, TrainingArguments

from transformers_ait.data import DepthFolders  # noqa: F401 - importing the package registers depth_folders
from transformers_ait.metrics import depth_metrics
from transformers_ait.prediction_ait import detokenize

start, data_dir, output, steps = sys.argv[1:]
processor, model = AutoImageProcessor.from_pretrained(start), AutoModelForDepthEstimation.from_pretrained(start)
rows = load_dataset("depth_folders", data_dir=data_dir, split="train").train_test_split(0.2, shuffle=False)
square, codes = (model.config.image_size,) * 2, model.config.vocabulary.codes("depth").rows


def collate(batch):
    """The middle square of every image, which the processor would otherwise squash, and of its depth map."""
    images = [ImageOps.fit(row["image"].convert("RGB"), square) for row in batch]
    maps = [ImageOps.fit(row["depth"], square, Image.Resampling.NEAREST) for row in batch]
    found = processor(images, {"depth": maps}, num_windows=1, do_flip_augment=False, return_tensors="pt")
    return {"pixel_values": found["pixel_values"], "depth_labels": found["dense_labels"]["depth"]}


def decode(outputs, labels):
    """Metres (B, S, S) of the logits, the last output beside a loss; a prediction where the model is parallel."""
    return detokenize(model.tokenizer("depth"), outputs[-1][..., codes], soft=True)[:, 0].clamp(min=1e-3)


options = TrainingArguments(output, max_steps=int(steps), learning_rate=3e-4, warmup_steps=20, report_to="none")
options.label_names, options.remove_unused_columns = ["depth_labels"], False
trainer = Trainer(
    model, options, collate, rows["train"], rows["test"], processor, compute_metrics=lambda x: depth_metrics(*x)
)
trainer.preprocess_logits_for_metrics = decode
for run in (trainer.evaluate, trainer.train, trainer.evaluate, trainer.save_model):
    print(run())
