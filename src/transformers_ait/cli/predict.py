"""Maps and objects of photographs, folders and videos, as files.

    transformers-ait predict photo.jpg --model hub_configs/ait-lite-nyu --output out
    transformers-ait predict photos "more/*.png" clip.mp4 --model FOLDER --output out --recursive
    transformers-ait predict photos --model FOLDER --output out --tasks depth,normals --formats npy,overlay

Every image gets files named after it, `photo.depth.colour.png` for instance; the frames of a video lie in a folder
with its name. Formats:

  colour    a picture of the map (PNG)
  overlay   the map over the photograph, or the objects with their classes (PNG)
  png16     16-bit PNG: depth in millimetres (at most 65.535 m), or class ids
  npy       the map as NumPy reads it: depth (H, W) in metres, normals (3, H, W), class ids (H, W), values (C, H, W)
  coco      one TASK.coco.json of all images: boxes and masks of objects, with scores
  video     of a video one VIDEO.TASK.mp4 in the colours of its first frame, or with the objects

By default a map is written as colour, and as png16 or else npy; objects as overlay and coco.

Files that exist stay as they are, and an image with all its files is not predicted again. What cannot be read is
named, and the rest goes on. Exit status: 0 all well, 1 something could not be read or written, 2 wrong usage.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging

from .arguments import whole_number
from .inputs import Frame, Source, find_sources, read_frames, video_library
from .predictor import Predictor
from .videos import Predicted, VideoSmoothing
from .writing import FORMATS, VIDEO, PredictionWriter, chosen_formats

DTYPES = ("auto", "float32", "float16", "bfloat16")


def build_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(
        prog="transformers-ait predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="photographs, videos, folders of them, patterns in quotes"
    )
    parser.add_argument("--model", required=True, metavar="FOLDER_OR_HUB_ID", help="checkpoint")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    parser.add_argument("--tasks", type=_names, metavar="A,B", help="some of the checkpoint's tasks; default: all")
    parser.add_argument("--formats", type=_names, metavar="A,B", help=f"some of {', '.join(FORMATS)}; default: above")
    parser.add_argument("--threshold", type=_share, default=0.5, help="least score of objects; default: 0.5")
    parser.add_argument("--device", type=device_named, default="auto", help="such as cpu, cuda:1; default: auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; default: auto, as stored")
    parser.add_argument("--batch-size", type=whole_number(1), default=1, help="images per forward pass; default: 1")
    parser.add_argument(
        "--smooth",
        type=whole_number(0),
        metavar="N",
        help="videos: average what does not move over N frames before and after, 3 for instance, and print how much "
        "maps flicker; 0 prints it alone",
    )
    parser.add_argument("--recursive", action="store_true", help="look into folders inside of folders")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status, see the module."""
    options = build_parser().parse_args(arguments)
    logging.disable_progress_bar()
    sources, problems = find_sources(options.inputs, options.recursive, options.output)
    for problem in problems:
        _complain(problem)
    if not sources:
        return 1
    try:
        predictor, writer = _prepared(options, sources)
    except (OSError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        _complain(str(error))
        return 2
    smoothing = None if options.smooth is None else VideoSmoothing(predictor.config, predictor.tasks, options.smooth)
    run = _Run(sources, writer, smoothing)
    try:
        with writer, tqdm(total=len(sources), unit="file", disable=None) as bar:
            run.predict(predictor, options.batch_size, options.threshold, bar)
    except ImportError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        _complain(str(error))
        return 1
    except torch.OutOfMemoryError as error:
        _complain(f"{error}; a smaller --batch-size needs less memory")
        return 1
    for line in smoothing.report if smoothing else []:
        print(line)
    print(run.summary(options.output))
    return 1 if problems or run.unreadable else 0


class _Run:
    """Reads, predicts and writes, and counts what happened.

    Args:
        sources: to read.
        writer: of the files.
        smoothing: of videos; None leaves every frame as it is.
    """

    def __init__(
        self, sources: Sequence[Source], writer: PredictionWriter, smoothing: VideoSmoothing | None = None
    ) -> None:
        self.sources, self.writer, self.smoothing = sources, writer, smoothing
        self.done = self.kept = self.unreadable = 0

    def predict(self, predictor: Predictor, batch_size: int, threshold: float, bar: tqdm) -> None:
        """Go through all sources, holding one batch of images at a time."""
        frames = self._frames(bar)
        while batch := list(islice(frames, batch_size)):
            images = [frame.image for frame in batch]
            predictions = predictor.predict(images, threshold, with_results=bool(self.writer.coco))
            for frame, of_image in zip(batch, predictions, strict=True):
                self._write(self.smoothing.feed(frame, of_image) if self.smoothing else [(frame, of_image)])
                self.done += 1
                bar.set_postfix_str(frame.file_name)
        self._write(self.smoothing.finish() if self.smoothing else [])

    def summary(self, folder: Path) -> str:
        """What happened, in a line."""
        parts = [f"{self.done} image{'' if self.done == 1 else 's'} predicted, in {folder}"]
        parts += [f"{self.kept} left as they were (--overwrite predicts them again)"] if self.kept else []
        parts += [f"{self.unreadable} of {len(self.sources)} files could not be read"] if self.unreadable else []
        return "; ".join(parts)

    def _write(self, predicted: Iterable[Predicted]) -> None:
        for frame, of_image in predicted:
            self.writer.write(frame, of_image)

    def _frames(self, bar: tqdm) -> Iterator[Frame]:
        for source in self.sources:
            try:
                yield from read_frames(source, self._is_read if source.is_video else self._is_wanted)
            except OSError as error:
                self.unreadable += 1
                _complain(f"{source.path}: {error}")
            bar.update()

    def _is_read(self, key: str) -> bool:
        """A frame is part of its video, and smoothed by its neighbours, whether or not their own files exist."""
        return self.smoothing is not None or bool(self.writer.videos) or self._is_wanted(key)

    def _is_wanted(self, key: str) -> bool:
        wanted = self.writer.is_wanted(key)
        self.kept += not wanted
        return wanted


def _prepared(options: argparse.Namespace, sources: Sequence[Source]) -> tuple[Predictor, PredictionWriter]:
    """Model and writer, after everything that can be wrong with the options has been checked."""
    output = options.output.resolve()
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output {options.output} is a file; name a folder")
    if any(Path(text).is_dir() and Path(text).resolve() == output for text in options.inputs):
        raise ValueError(f"--output {options.output} is an input too, whose pictures would be read again; name another")
    if any(source.is_video for source in sources):
        video_library()
    elif options.smooth is not None or VIDEO in (options.formats or ()):
        raise ValueError("--smooth and the format video are for videos, and none is among the inputs; leave them out")
    predictor = Predictor(options.model, options.tasks, options.device, options.dtype)
    formats = chosen_formats(predictor.config, predictor.tasks, options.formats)
    return predictor, PredictionWriter(options.output, predictor.config, formats, options.overwrite)


def _complain(message: str) -> None:
    tqdm.write(f"error: {message}", file=sys.stderr)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], got {text}")
    return value


def device_named(text: str) -> torch.device:
    """The device of a command line; "auto" is an accelerator where there is one.

    Raises:
        argparse.ArgumentTypeError: no device has this name.
    """
    if text == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device") from error
