"""Figures of checkpoint folders on a dataset, as a Markdown table with a row per model, and as files.

    python training/evaluate.py hub_configs/ait-tiny-rooms-depth
    python training/evaluate.py runs/vqvae/model runs/depth/model runs/parallel/model --output results
    python training/evaluate.py runs/depth/model --dataset nyu_depth_v2 --options '{"data_dir": "nyu"}' \\
        --baseline-split train --output results
    accelerate launch --config_file training/accelerate_configs/multi_gpu.yaml \\
        training/evaluate.py runs/instance/model --dataset coco_instances --options '{"data_dir": "coco"}' \\
        --dtype bf16 --output results

It is `transformers-ait evaluate`; --help says what the tables and the files hold.
"""

import sys

from transformers_ait.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
