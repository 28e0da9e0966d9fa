"""Train the task-solver for detection or instance segmentation.

    python training/run_instance.py training/recipes/tiny-rooms-detection.yaml --run.output runs/detection
    python training/run_instance.py training/recipes/tiny-rooms-instance.yaml \\
        --model.mask_tokenizer runs/vqvae-masks/model --model.initialize_from runs/detection/model \\
        --run.output runs/instance
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml \\
        training/run_instance.py training/recipes/tiny-rooms-detection.yaml --run.output runs/detection

Every key of the recipe can be overridden; --help lists them. `--run.resume true` goes on with an interrupted run.
"""

from transformers_ait.engine.recipes.reading import run_from_command_line
from transformers_ait.engine.recipes.scripts import InstanceRecipe
from transformers_ait.engine.tasks.instances import train_instance

if __name__ == "__main__":
    run_from_command_line(InstanceRecipe, train_instance, __doc__)
