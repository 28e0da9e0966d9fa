"""Make the pictures of docs/app.md, from a page that runs already.

transformers-ait app --port 7860
python tests/browser/screenshots.py http://127.0.0.1:7860 docs
"""

import io
import sys
from pathlib import Path
from shutil import which

from conftest import BROWSERS, FLAGS, PATIENCE
from PIL import Image
from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1240, "height": 930}
QUALITY = 82
POINTS_SECONDS = 20  # for drawing without a GPU


def hover(page: Page, view: str, across: float, down: float) -> None:
    """Put the pointer over a view, at shares of its width and height."""
    box = page.locator(f"#view-{view} .ait-view").bounding_box()
    page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    page.locator(f"#view-{view} .ait-tip.shown").wait_for()


def save(page: Page, path: Path) -> None:
    """Write what is seen as a JPEG."""
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").save(path, quality=QUALITY)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def main() -> None:
    """Visit, and write."""
    address, folder = sys.argv[1], Path(sys.argv[2])
    path = next(filter(None, map(which, BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("#examples img").first.click()
        page.locator("#view-depth-depth .ait-view").wait_for()
        hover(page, "depth-depth", 0.8, 0.75)
        save(page, folder / "app-depth.jpg")
        page.locator("#examples img").last.click()
        page.get_by_role("tab", name="Objects", exact=True).click()
        page.locator("#view-instance-objects .ait-view").wait_for()
        hover(page, "instance-objects", 0.6, 0.75)
        save(page, folder / "app-objects.jpg")
        page.get_by_role("tab", name="Depth in 3-D", exact=True).click()
        page.wait_for_timeout(POINTS_SECONDS * 1000)
        save(page, folder / "app-points.jpg")
        browser.close()


if __name__ == "__main__":
    main()
