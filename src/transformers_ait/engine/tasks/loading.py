"""Splits of a recipe's dataset: as rows on disk, as a stream, or the first rows of a stream."""

import re
from itertools import islice
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from ...data import SyntheticRooms  # noqa: F401 - importing the package registers its builders
from ..loop.streaming import RowStream
from ..recipes.reading import RecipeError
from ..recipes.sections import DataRecipe


def load_rows(recipe: DataRecipe, split: str) -> datasets.Dataset:
    """A split as rows on disk; of a streamed dataset its first `eval_limit` rows, held encoded.

    Raises:
        RecipeError: the dataset or split does not exist, or the split has no rows.
    """
    if recipe.streaming:
        stream = load_stream(recipe, split)
        parts = (row for shard in range(stream.num_shards) for row in stream.read(shard, 0))
        rows = datasets.Dataset.from_list(list(islice(parts, recipe.eval_limit)), features=stream.features)
    else:
        rows = _load(recipe, split)
    if len(rows) == 0:
        raise RecipeError(f"data.dataset {recipe.dataset!r} has no rows in split {split!r}; name another split.")
    return rows


def load_stream(recipe: DataRecipe, split: str) -> RowStream:
    """A split as a stream.

    Raises:
        RecipeError: the dataset or split does not exist.
    """
    return RowStream(_load(recipe, split, streaming=True))


def _load(recipe: DataRecipe, split: str, streaming: bool = False) -> Any:
    # Nothing is prepared for a stream, so that processes to prepare it, which `datasets` would refuse, mean nothing.
    options = {name: value for name, value in recipe.options.items() if not (streaming and name == "num_proc")}
    try:
        return datasets.load_dataset(recipe.dataset, split=split, streaming=streaming, **options)
    except (ValueError, TypeError, OSError, DatasetsError) as error:
        # Where rows are made, `datasets` wraps what went wrong.
        reason = str(error.__cause__ or error if isinstance(error, DatasetsError) else error)
        unknown = re.search(r"unexpected keyword argument '(\w+)'|doesn't have a '(\w+)' key", reason)
        if unknown:
            reason = f"data.options.{unknown[1] or unknown[2]} is no option of it; leave it out"
        raise RecipeError(f"data.dataset {recipe.dataset!r}, split {split!r}, cannot be loaded: {reason}") from error
