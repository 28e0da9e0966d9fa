"""The page as `transformers-ait app` serves it, and Chromium to look at it with.

Nothing here is imported before a test asks for it: the default suite has neither Gradio nor Playwright.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # CI runs as root
    "--use-angle=swiftshader",  # WebGL without a GPU, for point clouds
    "--enable-unsafe-swiftshader",
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture
    "--use-fake-ui-for-media-stream",
)
PATIENCE = 90_000
"""Milliseconds; a prediction takes one to five seconds on an idle core, and CI's are not idle."""
START_SECONDS = 180


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Address of the page with the checkpoints of this clone, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "transformers_ait", "app", "--port", str(port), "--device", "cpu"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(log.parent / "files")}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=settings, cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + START_SECONDS
        while f":{port}" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; the tests skip where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(BROWSERS)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, server):
    """Function that opens the page for a visitor of its own; no visitor's browser may ask anybody else for anything."""
    contexts, foreign = [], []

    def is_foreign(url):
        return urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).hostname != "127.0.0.1"

    def visit(**settings):
        context = chromium.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True, **settings)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url) else None)
        page.goto(server)
        page.locator("#examples img").last.wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert foreign == []
