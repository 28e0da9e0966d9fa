"""Train one task-solver for objects and dense tasks, with their trained VQ-VAEs.

    python training/run_joint.py training/recipes/tiny-rooms-joint.yaml \\
        --model.mask_tokenizer runs/vqvae-masks/model --model.depth_tokenizer runs/vqvae/model \\
        --model.initialize_from runs/instance/model --run.output runs/joint
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml \\
        training/run_joint.py training/recipes/joint-base.yaml \\
        --instance_data.options.data_dir coco --depth_data.options.data_dir nyu_depth_v2 \\
        --depth_data.options.train_list nyu_train.txt --model.mask_tokenizer runs/vqvae-coco-masks/model \\
        --model.depth_tokenizer runs/vqvae-nyu-depth/model --model.initialize_from runs/detection-base/model

A step holds images of objects and of maps at the recipe's ratio, the same ones at any number of processes; those of
maps train all dense tasks in one pass. `model` in the run's folder serves the pipelines of all tasks: the folder's own
image processor is that of the default task, others lie in folders named like their tasks.

Every key of the recipe can be overridden; --help lists them. `--run.resume true` goes on with an interrupted run.
"""

from transformers_ait.engine.recipes.joint import JointRecipe
from transformers_ait.engine.recipes.reading import run_from_command_line
from transformers_ait.engine.tasks.joint import train_joint

if __name__ == "__main__":
    run_from_command_line(JointRecipe, train_joint, __doc__)
