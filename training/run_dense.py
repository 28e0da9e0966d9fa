"""Train one model for any set of dense tasks: depth, normals, classes, or whatever a configuration names.

    python training/run_dense.py training/recipes/tiny-rooms-dense-parallel.yaml --run.output runs/dense \\
        --model.tokenizers '{depth: runs/vqvae/model, normals: runs/vqvae-normals/model,
        semantic: runs/vqvae-classes/model}'
    python training/run_dense.py training/recipes/plain-nyu-dense.yaml --data.options.data_dir nyu_depth_v2 \\
        --run.output runs/plain-nyu

A task is an entry of `model.config.dense_tasks`; its maps are the dataset's column that `data.columns` names, or that
is called like it. Its tokenizer is a `model` folder of run_vqvae.py, or an earlier model with the same task.
`model.plain: true` trains the baseline without tokens on the same data.

Every key of the recipe can be overridden; --help lists them. `--run.resume true` goes on with an interrupted run.
"""

from transformers_ait.engine.recipes.reading import run_from_command_line
from transformers_ait.engine.recipes.scripts import DenseRecipe
from transformers_ait.engine.tasks.dense import train_dense

if __name__ == "__main__":
    run_from_command_line(DenseRecipe, train_dense, __doc__)
