"""Train the task-solver for depth, with a trained VQ-VAE or the baseline tokenizer of bins.

    python training/run_depth.py training/recipes/tiny-rooms-depth.yaml \\
        --model.depth_tokenizer runs/vqvae/model --run.output runs/depth
    python training/run_depth.py training/recipes/tiny-rooms-depth-bins.yaml --run.output runs/depth-bins
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml \\
        training/run_depth.py training/recipes/tiny-rooms-depth-parallel.yaml \\
        --model.depth_tokenizer runs/vqvae/model --run.output runs/depth-parallel

It is run_dense.py for the task "depth", which names its tokenizer as `model.depth_tokenizer`.

Every key of the recipe can be overridden; --help lists them. `--run.resume true` goes on with an interrupted run.
"""

from transformers_ait.engine.recipes.reading import run_from_command_line
from transformers_ait.engine.recipes.scripts import DepthRecipe
from transformers_ait.engine.tasks.dense import train_dense

if __name__ == "__main__":
    run_from_command_line(DepthRecipe, train_dense, __doc__)
