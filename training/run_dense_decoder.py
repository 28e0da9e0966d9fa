"""Train a dense decoder (UniPixTask) by a trained task model, on images without labels.

    python training/run_dense_decoder.py training/recipes/dense-decoder-tiny-rooms-depth.yaml \\
        --run.output runs/dense-decoder
    python training/run_dense_decoder.py training/recipes/dense-decoder-tiny-rooms-depth.yaml \\
        --data.dataset imagefolder --data.options '{data_dir: my_pictures}' --data.eval_split 'train[:20]' \\
        --run.output runs/dense-decoder

`model.teacher` is the `model` folder of a run of run_dense.py with `model.plain`, or a DPT, Depth-Anything, UperNet,
SegFormer, MaskFormer or Mask2Former checkpoint, a folder or a name on the Hub. The data needs the column `image` alone;
`data.columns` names labels that evaluation also measures against.

Every key of the recipe can be overridden; --help lists them. `--run.resume true` goes on with an interrupted run.
"""

from transformers_ait.engine.recipes.dense_decoder import DenseDecoderRecipe
from transformers_ait.engine.recipes.reading import run_from_command_line
from transformers_ait.engine.tasks.dense_decoder import train_dense_decoder

if __name__ == "__main__":
    run_from_command_line(DenseDecoderRecipe, train_dense_decoder, __doc__)
