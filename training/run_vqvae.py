"""Train a tokenizer (VQ-VAE) of maps of one kind - depth, normals, classes, values - or of instance masks.

    python training/run_vqvae.py training/recipes/vqvae-tiny-rooms-depth.yaml --run.output runs/vqvae
    python training/run_vqvae.py training/recipes/vqvae-tiny-rooms-masks.yaml --run.output runs/vqvae-masks
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml \\
        training/run_vqvae.py training/recipes/vqvae-tiny-rooms-depth.yaml --run.output runs/vqvae --optim.lr 1e-3

The kind is `model.config.map_kind`; its maps are the dataset's column that `data.columns` gives the kind, such as
`{classes: semantic}`, or that is called like it.

Every key of the recipe can be overridden; --help lists them. `--run.resume true` goes on with an interrupted run.
"""

from transformers_ait.engine.recipes.reading import run_from_command_line
from transformers_ait.engine.recipes.scripts import VQVAERecipe
from transformers_ait.engine.tasks.vqvae import train_vqvae

if __name__ == "__main__":
    run_from_command_line(VQVAERecipe, train_vqvae, __doc__)
