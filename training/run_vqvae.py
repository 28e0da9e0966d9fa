"""Train a tokenizer (VQ-VAE) of depth maps, or of instance masks.

    python training/run_vqvae.py training/recipes/vqvae-tiny-rooms-depth.yaml --run.output runs/vqvae
    python training/run_vqvae.py training/recipes/vqvae-tiny-rooms-masks.yaml --run.output runs/vqvae-masks
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml \\
        training/run_vqvae.py training/recipes/vqvae-tiny-rooms-depth.yaml --run.output runs/vqvae --optim.lr 1e-3

Every key of the recipe can be overridden; --help lists them. `--run.resume true` goes on with an interrupted run.
"""

from transformers_ait.engine.recipes import VQVAERecipe, run_from_command_line
from transformers_ait.engine.vqvae_training import train_vqvae

if __name__ == "__main__":
    run_from_command_line(VQVAERecipe, train_vqvae, __doc__)
