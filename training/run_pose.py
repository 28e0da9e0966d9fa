"""Train pose lifting: 2-D joints of videos to 3-D, with fewer frames in the middle of the model.

    python training/run_pose.py training/recipes/pose-tiny.yaml
    accelerate launch training/run_pose.py training/recipes/pose-mixste-hourglass.yaml \\
        --data.options.data_dir human36m

`transformers.Trainer` does the training; `training.*` are its arguments. The data is any data set with the columns
`keypoints` (T, J, 2) pixels, `joints` (T, J, 3) metres, `width` and `height`: `synthetic_motions`, `mocap` and
`human36m` of this package, or your own.

Every key of the recipe can be overridden; --help lists them. `--resume true` goes on with an interrupted run.
"""

from transformers_ait.engine.recipes.reading import run_from_command_line
from transformers_ait.engine.tasks.pose import PoseRecipe, train_pose

if __name__ == "__main__":
    run_from_command_line(PoseRecipe, train_pose, __doc__)
