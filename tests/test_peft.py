"""LoRA through PEFT on decoder and backbone: what learns, what is saved, and that merging changes nothing."""

import copy
import re
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

peft = pytest.importorskip("peft")

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "peft.md"
DECODER = r"model\.decoder\.blocks\.\d+\.(self|cross)_attention\.(query|value)"
BACKBONE = r"model\.backbone\.stages\.\d+\.blocks\.\d+\.attention\.(qkv|projection)"


def adapt(model, targets, **settings):
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, **settings))


def train(model, images, depths, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.train()(pixel_values=images, depth_labels=depths).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def depth(model, images):
    return model(pixel_values=images).predicted_depth


@pytest.mark.parametrize(
    "targets, parallel",
    [(DECODER, False), (BACKBONE, True), (f"({DECODER}|{BACKBONE})", False)],
    ids=["decoder", "backbone of a parallel model", "both"],
)
def test_train_save_load_and_merge(tiny_model, images, depths, targets, parallel, tmp_path):
    model = tiny_model(parallel=parallel)
    base, untouched = copy.deepcopy(model), depth(model, images)
    adapted = adapt(model, targets)
    losses = train(adapted, images, depths)
    assert len(set(losses)) == 3 and losses[-1] < losses[0]
    learnt = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert learnt == {name for name, p in adapted.named_parameters() if "lora_" in name}
    predicted = depth(adapted, images)
    assert (predicted - untouched).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path)
    assert not [*tmp_path.glob("model*.safetensors")]
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(depth(loaded, images), predicted)
    with loaded.disable_adapter():
        assert torch.equal(depth(loaded, images), untouched)
    merged = loaded.merge_and_unload().eval()
    assert type(merged) is type(model.eval()) and not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert (depth(merged, images) - predicted).abs().max() < 1e-5 * untouched.abs().max()


def test_decoding_steps_agree_with_the_teacher_forced_pass(tiny_model, images):
    """Steps read weights by themselves; the pass over what they fed goes through PEFT's layers."""
    adapted = adapt(tiny_model(), DECODER, use_dora=True, init_lora_weights=False).eval()
    output = adapted(pixel_values=images, output_hidden_states=True)
    rows = adapted.config.vocabulary.codes("depth").rows
    logits = adapted.get_base_model().model.decoder.logits(output.decoder_hidden_states[-1], rows)
    assert (logits - output.code_logits).abs().max() < 1e-4


def test_adapters_of_the_position_bias_are_not_kept_past_their_time(tiny_model, images):
    """Switching adapters changes no weight that the bias cache could notice."""
    targets = r"model\.backbone\..*\.position_mlp\.(0|2)"
    model = tiny_model()
    untouched = depth(model, images)
    adapted = adapt(model, targets, init_lora_weights=False).eval()
    first = depth(adapted, images)
    assert not torch.equal(first, untouched)
    with adapted.disable_adapter():
        assert torch.allclose(depth(adapted, images), untouched, atol=1e-6)
    assert torch.equal(depth(adapted, images), first)


@pytest.mark.slow
def test_trainer_trains_adapters(tiny_model, images, depths, tmp_path):
    samples = [{"pixel_values": a, "depth_labels": b} for a, b in zip(images, depths, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        label_names=["depth_labels"],
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="steps",
        save_steps=2,
        logging_steps=1,
    )
    adapted = adapt(tiny_model(), DECODER)
    with torch.no_grad():
        loss = adapted(pixel_values=images, depth_labels=depths).loss.item()
    trainer = Trainer(adapted, arguments, train_dataset=samples, eval_dataset=samples)
    trainer.train()
    # The loss is no sum that Trainer would have to scale.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=0.05)
    assert trainer.evaluate()["eval_loss"] > 0
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_document_s_example(tmp_path, monkeypatch, repository):
    block = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    (tmp_path / "hub_configs").symlink_to(repository / "hub_configs")
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(block, scope)
    assert scope["losses"][-1] < scope["losses"][0]
    with torch.no_grad():
        found = scope["merged"](pixel_values=scope["images"]).predicted_depth
    assert (found - scope["predicted"]).abs().max() < 1e-3
