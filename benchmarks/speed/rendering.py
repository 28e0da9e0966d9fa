"""Images per second of `synthetic_rooms`, rendered, encoded and written to the cache by several processes.

python -m benchmarks.speed.rendering --height 240 --width 320 --processes 2
"""

import argparse
import tempfile
import time

import datasets

import transformers_ait.data  # noqa: F401  (registers synthetic_rooms)


def main() -> None:
    """Render into a temporary cache and print the rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=1000)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    settings = {"height": arguments.height, "width": arguments.width, "num_train": arguments.rooms}
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        datasets.load_dataset(
            "synthetic_rooms",
            split="train",
            num_validation=0,
            num_test=0,
            cache_dir=cache,
            num_proc=arguments.processes,
            **settings,
        )
        seconds = time.perf_counter() - start
    print(
        f"{arguments.rooms / seconds:.1f} images/s at {arguments.height} x {arguments.width}, "
        f"{arguments.processes} processes, start-up included"
    )


if __name__ == "__main__":
    main()
