"""Checkpoints of `transformers.Trainer`, complete or absent, and resumed runs that log what unbroken ones do."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..loop.checkpoints import MANIFEST, latest_checkpoint, write_manifest
from ..run_files import RunKeys, checkpoints_in, drop_old, explain_full_disk, remove_partial, replace_folder

PREFIX = f"{PREFIX_CHECKPOINT_DIR}-"
POSE_KEYS = RunKeys("output", "training.save_total_limit", "--resume true", PREFIX)


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint in a folder, None if there is none.

    Earlier versions wrote no manifest; of their checkpoints the last one that `Trainer` finished counts.
    """
    found = checkpoints_in(folder, PREFIX)
    if any((path / MANIFEST).exists() for path in found):
        return latest_checkpoint(folder, PREFIX)
    return next((path for path in reversed(found) if (path / TRAINER_STATE_NAME).is_file()), None)


class WholeCheckpointsTrainer(Trainer):
    """`Trainer` that writes a checkpoint beside its place and moves it there when it is whole.

    By itself it writes into the place, and a kill leaves a checkpoint that looks like the last. It also forgets the
    losses since the last log line, so that the first line of a resumed run would be the mean of fewer steps.

    Args:
        options: of `Trainer`.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._partial: Path | None = None
        self._resumed: Path | None = None
        self.add_callback(_LossesGoOn(self))

    def train(self, resume_from_checkpoint: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Train; a checkpoint to go on from is a path."""
        self._resumed = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        if self._resumed is not None and self.args.should_save:
            remove_partial(self._resumed.parent, PREFIX)
            self._drop_old(self._resumed)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._partial is None else str(self._partial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As `Trainer` does, but whole: what it writes is moved to its place at the end."""
        folder = Path(super()._get_output_dir(trial))
        name, partial = f"{PREFIX}{self.state.global_step}", folder / ".partial"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
            remove_partial(folder, PREFIX)
        self.accelerator.wait_for_everyone()
        self._partial = partial
        try:
            with explain_full_disk(folder, partial, keys=POSE_KEYS):
                super()._save_checkpoint(model, trial)
                self._write_losses(partial / name)
        finally:
            self._partial = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if self.state.best_model_checkpoint == str(partial / name):
                self.state.best_model_checkpoint = str(folder / name)
            with explain_full_disk(folder, partial, keys=POSE_KEYS):
                self.state.save_to_json(str(partial / name / TRAINER_STATE_NAME))
                write_manifest(partial / name, self.args.world_size)
            replace_folder(partial / name, folder / name)
            shutil.rmtree(partial)
            self._drop_old(folder / name)
        self.accelerator.wait_for_everyone()

    def _drop_old(self, last: Path) -> None:
        """All checkpoints before the last but the best, `save_total_limit` of them together."""
        limit = self.args.save_total_limit
        if limit is not None and limit > 0:
            drop_old(last.parent, last, limit, PREFIX, also=self.state.best_model_checkpoint)

    def _losses_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"losses_{self.args.process_index}.json"

    def _write_losses(self, checkpoint: Path) -> None:
        """This process's losses since the last log line; float32 as it is."""
        losses = {"sum": self._tr_loss.item(), "logged_at": self._globalstep_last_logged}
        self._losses_file(checkpoint).write_text(json.dumps(losses) + "\n")

    def restore_losses(self) -> None:
        """Go on with the losses of the checkpoint, where it holds them."""
        if self._resumed is None or not self._losses_file(self._resumed).exists():
            return
        losses = json.loads(self._losses_file(self._resumed).read_text())
        self._tr_loss.fill_(losses["sum"])
        self._globalstep_last_logged = losses["logged_at"]


class _LossesGoOn(TrainerCallback):
    """Restores the losses where `Trainer` has set them to 0."""

    def __init__(self, trainer: WholeCheckpointsTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **options: Any
    ) -> None:
        self.trainer.restore_losses()
