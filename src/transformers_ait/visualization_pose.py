"""Pictures and animations of lifted poses: the joints that were given, and the skeleton they became."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data.skeleton import BONES, JOINT_NAMES
from .visualization_colors import INK, MUTED, matplotlib_module

LEFT_COLOR, RIGHT_COLOR, MIDDLE_COLOR = "#d1495b", "#2e6f95", INK
MOMENTS = 5
TILE = 1.9  # inches
DPI = 110
VIEW = {"elev": 12.0, "azim": 55.0}
GIF_FRAMES = 60
GIF_SECONDS = 4.0


def pose_panel(
    keypoints: Sequence[Tensor], poses: Sequence[Tensor], truths: Sequence[Tensor] | None = None, moments: int = MOMENTS
) -> Image.Image:
    """Moments of videos: a row of the joints as they were given, below it the lifted skeletons from the side.

    Args:
        keypoints: (T, 17, 2 or 3) of every video, as the processor prepares them.
        poses: (T, 17, 3) metres in the camera's axes, root at 0.
        truths: the same, drawn in grey behind them.
        moments: how many, evenly over each video.
    """
    figure = _figure(moments, 2 * len(poses))
    for number, (joints, lifted) in enumerate(zip(keypoints, poses, strict=True)):
        true = None if truths is None else truths[number]
        for column, frame in enumerate(_places(len(lifted), moments)):
            cell = 2 * number * moments + column + 1
            _draw_flat(figure.add_subplot(2 * len(poses), moments, cell), joints[frame], f"frame {frame}")
            axes = figure.add_subplot(2 * len(poses), moments, cell + moments, projection="3d")
            _draw_pose(axes, lifted[frame], None if true is None else true[frame], _reach(lifted, true))
    return _rendered(figure)


def animate_poses(keypoints: Tensor, poses: Tensor, truth: Tensor | None, path: str | Path) -> Path:
    """Write an animated GIF of a lifted video beside the joints it came from.

    Args:
        keypoints: (T, 17, 2 or 3), as the processor prepares them.
        poses: (T, 17, 3) metres in the camera's axes, root at 0.
        truth: the same, drawn in grey behind it; None without.
        path: of the file.
    """
    frames, reach = [], _reach(poses, truth)
    places = _places(len(poses), min(len(poses), GIF_FRAMES))
    for frame in places:
        figure = _figure(2, 1)
        _draw_flat(figure.add_subplot(1, 2, 1), keypoints[frame], "given", _flat_limits(keypoints))
        axes = figure.add_subplot(1, 2, 2, projection="3d")
        _draw_pose(axes, poses[frame], None if truth is None else truth[frame], reach)
        axes.set_title("lifted" if truth is None else "lifted (truth grey)", fontsize=7, color=MUTED, pad=0)
        frames.append(_rendered(figure).quantize(64))
    duration = round(1000 * GIF_SECONDS / len(places))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return Path(path)


def _figure(columns: int, rows: int) -> Any:
    figure = matplotlib_module("figure").Figure((columns * TILE, rows * TILE), dpi=DPI, facecolor="white")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.97, 0.02, 0.06)
    return figure


def _rendered(figure: Any) -> Image.Image:
    canvas, file = matplotlib_module("backends.backend_agg").FigureCanvasAgg(figure), BytesIO()
    canvas.print_png(file)
    return Image.open(file).convert("RGB")


def _places(length: int, count: int) -> list[int]:
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def _flat_limits(keypoints: Tensor) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a square that holds all joints."""
    points = keypoints[..., :2].reshape(-1, 2)
    low, high = points.amin(0), points.amax(0)
    middle, half = (low + high) / 2, 0.55 * (high - low).max().item()
    return middle[0].item() - half, middle[0].item() + half, middle[1].item() + half, middle[1].item() - half


def _draw_flat(axes: Any, joints: Tensor, title: str, limits: tuple[float, ...] | None = None) -> None:
    for start, end in BONES:
        axes.plot(*joints[[start, end], :2].T.tolist(), color=_color(end), linewidth=1.4)
    axes.axis(limits or _flat_limits(joints[None]))
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=7, color=MUTED, pad=0)


def _draw_pose(axes: Any, pose: Tensor, truth: Tensor | None, reach: float) -> None:
    """Skeleton with the camera's depth as the horizontal axis ahead, and up as up."""
    for drawn, width in ((truth, 1.2), (pose, 1.6)):
        if drawn is None:
            continue
        points = torch.stack([drawn[:, 0], drawn[:, 2], -drawn[:, 1]], -1)
        for start, end in BONES:
            color = "#bbbbbb" if drawn is truth else _color(end)
            axes.plot(*points[[start, end]].T.tolist(), color=color, linewidth=width)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
    axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
    axes.tick_params(length=0)
    axes.view_init(**VIEW)
    axes.set_box_aspect((1, 1, 1), zoom=1.25)


def _reach(poses: Tensor, truth: Tensor | None) -> float:
    """Half of the side of a cube that holds all poses."""
    return max(x.abs().max().item() for x in (poses, truth) if x is not None)


def _color(joint: int) -> str:
    side = JOINT_NAMES[joint].partition("_")[0]
    return {"left": LEFT_COLOR, "right": RIGHT_COLOR}.get(side, MIDDLE_COLOR)
