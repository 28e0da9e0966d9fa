"""The page: a photograph on the left, what a checkpoint makes of it on the right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before Gradio is imported, which asks its maker for news otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from .checkpoints import Checkpoint, Result
from .panels import CloudPanel, Panel, Updates, panels_of
from .photo_input import PhotoInput
from .views import message, status_line

HERE = Path(__file__).parent
PHOTOGRAPHS, ROOMS = ("ait-lite-nyu",), ("ait-tiny-rooms", "ait-tiny-rooms-instance", "ait-tiny-rooms-depth")
HOUR = 3600
MAX_UPLOAD = "50mb"
HEAD = (
    '<div class="ait-head"><h1>All in Tokens</h1><p>One picture in; depth, surfaces, classes and objects out. '
    "Nothing leaves the computer that runs this page.</p></div>"
)
EMPTY = (
    '<div class="ait-empty"><b>Choose a picture</b><span>Drop a photograph on the left, take one with the camera, or '
    "click one of the examples. The result appears here, and the pointer reads values out of it.</span></div>"
)


@dataclass(frozen=True)
class Example:
    """A picture that comes with the package.

    Args:
        file: in the folder `examples`.
        suits: checkpoints that were trained on its like, by label; the first that is there is chosen.
    """

    file: str
    suits: tuple[str, ...]

    @property
    def path(self) -> str:
        """Of the file."""
        return str(HERE / "examples" / self.file)


EXAMPLES = (
    Example("astronaut.jpg", PHOTOGRAPHS),
    Example("coffee.jpg", PHOTOGRAPHS),
    Example("bedroom.jpg", ROOMS),
    Example("dining-room.jpg", ROOMS),
)


class Page:
    """Components and what they do.

    Args:
        checkpoints: at least one, with different labels.
        max_side: pixels; larger photographs are made smaller. 0 is no limit.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], max_side: int = 0) -> None:
        self.checkpoints = {checkpoint.label: checkpoint for checkpoint in checkpoints}
        self.max_side = max_side
        self.panels = panels_of([checkpoint.config for checkpoint in checkpoints])
        with gr.Blocks(
            title="All in Tokens", analytics_enabled=False, fill_width=True, delete_cache=(HOUR // 6, HOUR)
        ) as self.blocks:
            # A session's result goes with its tab, at the latest after an hour without a new one.
            self.state = gr.State(None, time_to_live=HOUR, delete_callback=_discard)
            self.open_tab = gr.State("")
            self.is_unread = gr.State(False)
            gr.HTML(HEAD)
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    self._build_inputs()
                with gr.Column(scale=7, min_width=420):
                    self._build_results()
            self._connect()

    def _build_inputs(self) -> None:
        self.photo = PhotoInput(
            label="Picture",
            sources=["upload", "webcam", "clipboard"],
            type="filepath",
            image_mode=None,
            height=320,
            elem_id="photo",
        )
        labels = list(self.checkpoints)
        self.checkpoint = gr.Dropdown(
            labels,
            value=labels[0],
            label="Model",
            info="A model is good at pictures like those it was trained on; the examples choose theirs.",
            visible=len(labels) > 1,
            elem_id="checkpoint",
        )
        self.examples = gr.Dataset(
            label="Examples",
            components=["image"],
            samples=[[example.path] for example in EXAMPLES],
            type="index",
            elem_id="examples",
        )

    def _build_results(self) -> None:
        self.status = gr.HTML(EMPTY, elem_id="status")
        with gr.Column(visible=False) as self.results:
            first = next(iter(self.checkpoints.values()))
            with gr.Tabs(elem_id="tabs") as self.tabs:
                for panel in self.panels:
                    visible = panel.suits(first.config)
                    with gr.Tab(panel.title, id=panel.name, visible=visible, elem_id=f"tab-{panel.name}") as panel.tab:
                        panel.build()

    def _connect(self) -> None:
        components = [component for panel in self.panels for component in _components(panel)]
        tabs = [panel.tab for panel in self.panels]
        shown = [self.state, self.is_unread, self.open_tab, self.status, self.results, self.tabs, *tabs, *components]
        given = [self.photo, self.checkpoint, self.state, self.open_tab]
        # One prediction at a time: two would share the cores, and each take as long as both one after the other. What a
        # visitor chooses meanwhile comes next; the picture is no output, so that it can be replaced meanwhile.
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "always_last"}
        model |= {"outputs": shown, "show_progress_on": self.status, "api_visibility": "private"}
        fast: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        chosen = self.examples.click(
            self.choose_example, [self.examples, self.checkpoint], [self.photo, self.checkpoint], **fast
        )
        predictions = [
            gr.on([self.photo.input, self.checkpoint.input], self.predict, given, **model),
            chosen.then(self.predict, given, **model),
        ]
        for prediction in predictions:
            # What cannot be read goes, so that the next file can be dropped in its place.
            prediction.then(lambda unread: None if unread else gr.skip(), self.is_unread, self.photo, **fast)
        self.photo.clear(self.clear, self.state, shown, **fast)
        for panel in self.panels:
            panel.connect(self.state)
            if isinstance(panel, CloudPanel):
                for prediction in predictions:
                    panel.follow(prediction, self.state, self.open_tab)
            panel.tab.select(lambda name=panel.name: name, None, self.open_tab, **fast)

    def predict(self, path: str | None, label: str, previous: Result | None, open_tab: str) -> Updates:
        """All that the page shows of a picture.

        Args:
            path: of the picture; None where there is none.
            label: of the checkpoint.
            previous: result of the session, whose files go.
            open_tab: name of the panel that is looked at.
        """
        checkpoint = self.checkpoints[label]
        if path is None or (previous is not None and previous.is_of(path, checkpoint)):
            return self._tabs(label, open_tab)
        try:
            result = checkpoint.predict(Path(path), self.max_side)
        except OSError as error:
            text = f"{Path(path).name} {error}."
            gr.Warning(text)
            return self.clear(previous) | {self.is_unread: True, self.status: message(text, is_error=True)}
        _discard(previous)
        sizes = result.photo.size, result.original_size
        updates: Updates = {
            self.state: result,
            self.status: status_line(*sizes, result.seconds, label, checkpoint.device.type.upper()),
            self.results: gr.Column(visible=True),
        }
        tabs = self._tabs(label, open_tab)
        for panel in self.panels:
            if panel.suits(checkpoint.config):
                updates |= panel.show(result)
        return updates | tabs

    def choose_example(self, index: int, label: str) -> tuple[str, str]:
        """Path of an example, and label of a checkpoint that suits it, the chosen one if it does.

        Args:
            index: of the example.
            label: of the checkpoint that is chosen.
        """
        example = EXAMPLES[index]
        fitting = [name for name in example.suits if name in self.checkpoints]
        return example.path, fitting[0] if fitting and label not in fitting else label

    def clear(self, previous: Result | None) -> Updates:
        """The page without a picture.

        Args:
            previous: result of the session, whose files go.
        """
        _discard(previous)
        return {self.state: None, self.status: EMPTY, self.results: gr.Column(visible=False)}

    def _tabs(self, label: str, open_tab: str) -> Updates:
        """Which tabs there are, and the one to look at: the same as before where the checkpoint has it."""
        config = self.checkpoints[label].config
        names = [panel.name for panel in self.panels if panel.suits(config)]
        updates: Updates = {panel.tab: gr.Tab(visible=panel.name in names) for panel in self.panels}
        updates[self.is_unread] = False
        if open_tab not in names:
            updates |= {self.tabs: gr.Tabs(selected=names[0]), self.open_tab: names[0]}
        return updates

    def launch(self, **settings: Any) -> Any:
        """Serve the page without links to anywhere; see `gradio.Blocks.launch` for settings and what it returns."""
        script = (HERE / "page.js").read_text()
        # Fonts by name: those of Gradio's themes come from a server.
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        return self.blocks.launch(
            theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **fonts),
            css_paths=HERE / "page.css",
            head=f"<script>{script}</script>",
            share=False,
            quiet=True,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            allowed_paths=[str(HERE / "examples")],
            **settings,
        )


def _components(panel: Panel) -> list[Any]:
    """What of a panel a result fills."""
    return [x for x in vars(panel).values() if isinstance(x, gr.components.Component)] + list(
        getattr(panel, "buttons", ())
    )


def _discard(result: Result | None) -> None:
    if result is not None:
        result.discard()
