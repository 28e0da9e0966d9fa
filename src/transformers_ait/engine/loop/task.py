"""What the loop needs to know of what it trains."""

from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from .sampling import Sample
from .streaming import RowStream


class TrainingTask(Protocol):
    """What the loop needs to know of a model and its data."""

    @property
    def model(self) -> PreTrainedModel:
        """The model to train."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows of training data."""
        ...

    @property
    def stream(self) -> RowStream | None:
        """Training data to read in order, None where rows have numbers."""
        ...

    @property
    def eval_counts(self) -> dict[str, int]:
        """Rows of evaluation data by the recipe's section."""
        ...

    def sample(self, index: Any) -> Sample:
        """One augmented training sample, of a row's number or of an encoded row of the stream.

        Randomness comes from torch's default generator.
        """
        ...

    def collate(self, samples: list[Sample]) -> Sample:
        """A batch of samples."""
        ...

    def weight(self, batch: Sample) -> Tensor:
        """What a micro-batch's loss is normalised by, such as its number of valid pixels.

        A scalar, or one value per task where the loss is a sum of several that are normalised each on its own.
        """
        ...

    def loss(self, model: nn.Module, batch: Sample, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and named scalars to log.

        The loss is normalised by `weight` averaged over processes, times `share`: the weight of this micro-batch over
        the mean weight of the micro-batches that are accumulated together, task by task.
        """
        ...

    def after_step(self, batches: list[Sample], step: int, steps: int) -> None:
        """Called after optimiser step `step` (counted from 1) of `steps`, with this process's micro-batches."""
        ...

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> tuple[dict[str, float], Image.Image | None]:
        """Metrics on the evaluation data, the same in every process, and a picture in the main process."""
        ...

    def save(self, model: PreTrainedModel, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write the trained model, and whatever is needed to use it, as `from_pretrained` reads it."""
        ...
