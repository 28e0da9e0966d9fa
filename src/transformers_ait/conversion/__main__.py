"""Convert an original AiT checkpoint to a folder of this family, or back.

python -m transformers_ait.conversion --checkpoint ait.pth --config ait-swinv2-base-depth --output ait-depth
python -m transformers_ait.conversion --checkpoint vae-oid.npz --config paligemma-vqvae-mask --output paligemma-masks
python -m transformers_ait.conversion --checkpoint ait-depth --reverse --output ait.pth
"""

import argparse
import sys
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError

from .converter import convert
from .parity import ParityError
from .reverser import reverse

PROGRAM = "python -m transformers_ait.conversion"


def build_parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """Command-line options; `prog` is what the help calls the program."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    parser.add_argument(
        "--checkpoint", required=True, help="original file, .pth, .pt, .safetensors or .npz; with --reverse a folder"
    )
    parser.add_argument(
        "--config",
        help="name of a folder of hub_configs, path of such a folder, or a JSON file with an original configuration "
        "(a task-solver's `model`, a VQ-VAE's own, or `backbone` alone)",
    )
    parser.add_argument("--vqvae-depth", help="file of the depth VQ-VAE, if the checkpoint holds none")
    parser.add_argument("--vqvae-mask", help="file of the mask VQ-VAE, if the checkpoint holds none")
    parser.add_argument("--output", required=True, help="folder to write; with --reverse a .pth or .safetensors file")
    parser.add_argument("--reverse", action="store_true", help="write an original-layout checkpoint from a folder")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Run the command line; returns the exit status, 0 only after parity and a reload."""
    parser = build_parser(prog)
    options = parser.parse_args(arguments)
    if not options.reverse and options.config is None:
        parser.error("--config is required: a name of hub_configs or an original JSON configuration")
    try:
        if options.reverse:
            print(f"Written to {reverse(options.checkpoint, options.output)}.")
        else:
            print(convert(options.checkpoint, options.config, options.output, options.vqvae_depth, options.vqvae_mask))
    except (OSError, ValueError, TypeError, StrictDataclassError, ParityError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
