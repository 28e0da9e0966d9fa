"""Tabs of the page, one for each task: components, what a result puts into them, and what their sliders do.

A panel keeps nothing of any visitor: results come from the session and go back to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gradio as gr
from torch import Tensor

from ..cli.predictor import FoundObjects
from ..cli.writing import NPY, PNG16, map_formats
from ..map_kinds_ait import MAP_KINDS, MapKind
from .checkpoints import MIN_SCORE, Result, above
from .point_cloud import DEFAULT_FOV, coloured_points, glb
from .views import map_view, objects_view, value_range

Updates = dict[Any, Any]
OBJECTS = "objects"
BACKGROUND = (0.09, 0.1, 0.12, 1.0)
"""Of point clouds: gaps between points disturb less where it is dark."""
LIVE = {"show_progress": "hidden", "trigger_mode": "always_last", "concurrency_limit": 8, "api_visibility": "private"}
"""Of events that a slider sends while it moves: the last one counts, and nothing may flicker."""
SLIDER_STEP = 0.05
MAP_ORDER = {"depth": 0, "normals": 1, "classes": 2}
DEFAULT_SCORE = 0.5
CAMERA = (90, 88)
"""Degrees around and down of the first look at a point cloud: along the camera's axis."""
STEP_BACK = 2.2
"""The first look is from so many times as far as the camera stood, so that points of neighbouring pixels touch."""


class Panel(ABC):
    """A tab of one task of one kind.

    Args:
        task: its name.
        kind: name of its kind of map, or `OBJECTS`.
        part: what of the task it shows, where a task has several tabs.
    """

    def __init__(self, task: str, kind: str, part: str = "") -> None:
        self.task, self.kind = task, kind
        self.name = f"{task}-{kind}{part}"
        words = task.replace("_", " ").capitalize()
        # "Semantic" alone would not say what of.
        names = " classes" if kind == "classes" and "class" not in words.lower() else ""
        self.title = f"{words}{names}{part}"
        self.tab: Any = None

    @abstractmethod
    def build(self) -> None:
        """Make the components, inside of the tab."""

    @abstractmethod
    def show(self, result: Result) -> Updates:
        """Values of the components for a new result.

        Args:
            result: whose checkpoint has the task.
        """

    def connect(self, state: Any) -> None:  # noqa: B027 (some panels have no sliders)
        """Set up what happens when sliders move.

        Args:
            state: the session's result.
        """

    def suits(self, config: Any) -> bool:
        """Whether a checkpoint has this task in this kind."""
        if self.task not in (config.tasks or ()):
            return False
        return (config.dense[self.task].kind if self.task in config.dense else OBJECTS) == self.kind


class MapPanel(Panel):
    """Normals, classes or values."""

    def build(self) -> None:
        """A view, and a button per file."""
        self.view = gr.HTML(elem_id=f"view-{self.name}")
        self.formats = [name for name in (PNG16, NPY) if name in map_formats(MAP_KINDS[self.kind])]
        with gr.Row():
            self.buttons = _buttons(self.name, self.formats)

    def show(self, result: Result) -> Updates:
        """The map in its colours, and its files."""
        values, spec = _map(result, self.task), result.checkpoint.config.dense[self.task]
        files = {
            button: str(result.write(self.task, name)) for name, button in zip(self.formats, self.buttons, strict=True)
        }
        return {self.view: map_view(values, MAP_KINDS[self.kind], spec.class_names), **files}


class DepthPanel(MapPanel):
    """Depth, with the limits of its colours."""

    def build(self) -> None:
        """As of other maps, with two sliders."""
        self.view = gr.HTML(elem_id=f"view-{self.name}")
        with gr.Row():
            self.near = _metres("Near (light), metres", f"near-{self.name}")
            self.far = _metres("Far (dark), metres", f"far-{self.name}")
        self.formats = [PNG16, NPY]
        with gr.Row():
            self.fit = gr.Button("Fit colours to the picture", size="sm", elem_id=f"fit-{self.name}")
            self.buttons = _buttons(self.name, self.formats)

    def show(self, result: Result) -> Updates:
        """The map in colours of its own range, and its files."""
        low, high = value_range(_map(result, self.task), self._kind)
        top = round(max(1, math.ceil(high / SLIDER_STEP)) * SLIDER_STEP, 2)
        sliders = {
            self.near: gr.Slider(minimum=0, maximum=top, value=round(low, 2)),
            self.far: gr.Slider(minimum=0, maximum=top, value=round(high, 2)),
        }
        return super().show(result) | sliders

    def connect(self, state: Any) -> None:
        """Sliders colour anew, without running the model."""
        for slider in (self.near, self.far):
            slider.input(self._colour, [state, self.near, self.far], self.view, **LIVE)
        self.fit.click(self._fitted, state, [self.view, self.near, self.far], **LIVE)

    @property
    def _kind(self) -> MapKind:
        return MAP_KINDS[self.kind]

    def _colour(self, result: Result | None, near: float, far: float) -> Any:
        if result is None or not self.suits(result.checkpoint.config):
            return gr.skip()
        low, high = sorted((near, far))
        limits = (low, max(high, low + SLIDER_STEP))  # sliders that meet leave two colours
        return map_view(_map(result, self.task), self._kind, None, limits)

    def _fitted(self, result: Result | None) -> Any:
        if result is None or not self.suits(result.checkpoint.config):
            return gr.skip(), gr.skip(), gr.skip()
        updates = self.show(result)
        return updates[self.view], updates[self.near], updates[self.far]


class CloudPanel(Panel):
    """The points of a depth map in space."""

    def __init__(self, task: str, kind: str) -> None:
        super().__init__(task, kind, " in 3-D")

    def build(self) -> None:
        """A viewer, the field of view, a button."""
        self.viewer = gr.Model3D(show_label=False, height=500, clear_color=BACKGROUND, elem_id=f"view-{self.name}")
        gr.HTML('<div class="ait-note">Drag to turn, scroll to come closer, drag with the right button to move.</div>')
        self.fov = gr.Slider(
            *(20, 120, DEFAULT_FOV),
            step=1,
            label="Field of view of the camera, in degrees from left to right",
            info="About 65 for the main camera of a phone, 40 to 50 for a standard lens. A wider view is a wider room.",
            elem_id=f"fov-{self.name}",
        )
        self.button = gr.DownloadButton("Download point cloud (.glb)", size="sm", elem_id=f"glb-{self.name}")

    def show(self, result: Result) -> Updates:
        """Nothing yet; points are made when the tab is looked at."""
        return {self.viewer: None, self.button: None}

    def follow(self, prediction: Any, state: Any, open_tab: Any) -> None:
        """Make the points of a new result where the tab is open already.

        Args:
            prediction: the event that made the result.
            state: the session's result.
            open_tab: name of the panel that is looked at.
        """
        given, outputs = [state, self.fov, open_tab], [self.viewer, self.button]
        prediction.then(self._points_if_open, given, outputs, api_visibility="private")

    def connect(self, state: Any) -> None:
        """Points are made when the tab opens, and when the field of view changes."""
        outputs = [self.viewer, self.button]
        self.tab.select(self.points, [state, self.fov], outputs, concurrency_limit=4, api_visibility="private")
        self.fov.input(self.points, [state, self.fov], outputs, **LIVE)

    def points(self, result: Result | None, fov: float) -> Any:
        """The file of the points, for the viewer and for the button.

        Args:
            result: of the session.
            fov: degrees.
        """
        if result is None or not self.suits(result.checkpoint.config):
            return gr.skip(), gr.skip()
        try:
            points, colors = coloured_points(result.photo, _map(result, self.task).float().numpy(), fov)
            content = glb(points, colors)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        path = result.folder / f"{result.name}.{self.task}.{fov:g}deg.glb"
        path.write_bytes(content)
        middle = -float(points[:, 2].min() + points[:, 2].max()) / 2  # what the viewer turns around
        return gr.Model3D(str(path), camera_position=(*CAMERA, STEP_BACK * middle)), str(path)

    def _points_if_open(self, result: Result | None, fov: float, open_tab: str) -> Any:
        return self.points(result, fov) if open_tab == self.name else (gr.skip(), gr.skip())


class ObjectsPanel(Panel):
    """Objects, those of a least score."""

    def __init__(self, task: str) -> None:
        super().__init__(task, OBJECTS)
        self.title = {"instance": "Objects", "detection": "Boxes"}.get(task, self.title)

    def build(self) -> None:
        """A view, a slider, a button."""
        self.view = gr.HTML(elem_id=f"view-{self.name}")
        self.threshold = gr.Slider(
            *(MIN_SCORE, 1, DEFAULT_SCORE),
            step=0.01,
            label="Least score of the objects that are shown",
            elem_id=f"threshold-{self.name}",
        )
        self.button = gr.DownloadButton("Download COCO annotations", size="sm", elem_id=f"coco-{self.name}")

    def show(self, result: Result) -> Updates:
        """The objects of the default score."""
        view, path = self._filtered(result, DEFAULT_SCORE)
        return {self.view: view, self.button: path, self.threshold: DEFAULT_SCORE}

    def connect(self, state: Any) -> None:
        """The slider filters, without running the model."""
        self.threshold.input(self._filtered, [state, self.threshold], [self.view, self.button], **LIVE)

    def _filtered(self, result: Result | None, threshold: float) -> Any:
        if result is None or not self.suits(result.checkpoint.config):
            return gr.skip(), gr.skip()
        found = result.predictions[self.task]
        assert isinstance(found, FoundObjects)
        kept = above(found, threshold)
        return objects_view(result.photo, kept), str(result.write_objects(self.task, kept))


def panels_of(configs: Sequence[Any]) -> list[Panel]:
    """A panel for every task that any of the checkpoints has, maps first.

    Args:
        configs: of the checkpoints.
    """
    found: dict[str, Panel] = {}
    for config in configs:
        for task in config.tasks or ():
            for panel in _panels(task, config.dense[task].kind if task in config.dense else OBJECTS):
                found.setdefault(panel.name, panel)
    return sorted(found.values(), key=lambda panel: (panel.kind == OBJECTS, MAP_ORDER.get(panel.kind, 9)))


def _panels(task: str, kind: str) -> list[Panel]:
    if kind == OBJECTS:
        return [ObjectsPanel(task)]
    if MAP_KINDS[kind].metric == "depth":
        return [DepthPanel(task, kind), CloudPanel(task, kind)]
    return [MapPanel(task, kind)]


def _map(result: Result, task: str) -> Tensor:
    values = result.predictions[task]
    assert isinstance(values, Tensor)
    return values


def _metres(label: str, elem_id: str) -> Any:
    return gr.Slider(0, 10, 0, step=SLIDER_STEP, label=label, elem_id=elem_id, min_width=180)


LABELS = {PNG16: "Download 16-bit PNG", NPY: "Download NumPy array"}


def _buttons(name: str, formats: Sequence[str]) -> list[Any]:
    return [gr.DownloadButton(LABELS[x], size="sm", elem_id=f"{x}-{name}") for x in formats]
