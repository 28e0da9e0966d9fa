"""Run notebooks from top to bottom and save them with what they show.

    python notebooks/run.py                      # all of them; what `make notebooks` runs
    python notebooks/run.py quickstart train     # some

Pictures are kept as JPEG, so that the files stay small. A notebook in which a cell fails is not saved.
"""

import base64
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent
MOST_PIXELS = 1300  # of a picture's width
JPEG_QUALITY = 85


def run(path: Path) -> None:
    """Execute a notebook in its folder and save it in place."""
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=3600, record_timing=False, resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            shrink_picture(output)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def shrink_picture(output: nbformat.NotebookNode) -> None:
    """Replace the PNG of a cell's output by a JPEG, and the description of an object in memory by a word."""
    data = output.get("data", {})
    if "image/png" not in data:
        return
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    if picture.width > MOST_PIXELS:
        size = MOST_PIXELS, round(picture.height * MOST_PIXELS / picture.width)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    output.data = nbformat.NotebookNode(
        {"image/jpeg": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "<picture>"}
    )


def main() -> None:
    """Run the notebooks named on the command line, or all."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        start, path = time.perf_counter(), FOLDER / f"{name}.ipynb"
        run(path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1024:.0f} KB", flush=True)


if __name__ == "__main__":
    main()
