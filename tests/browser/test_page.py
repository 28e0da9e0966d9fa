"""The page in a browser: what a visitor does and sees. Files are compared with those of `transformers-ait predict`.

Run with `make test-browser`.
"""

import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from transformers_ait.data import render_room
from transformers_ait_command import main

pytestmark = pytest.mark.browser

ROOMS = "ait-tiny-rooms"
HEIGHT, WIDTH = 96, 128
CAMERA_CLICKS = 20
CAMERA_PLAYS = "document.querySelector('#photo video')?.videoWidth > 0"
OTHER_SIZE = (112, 80)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Folder of two rendered rooms of different sizes, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(render_room(2_000_000_029, height=HEIGHT, width=WIDTH).image).save(folder / "wide.png")
    Image.fromarray(render_room(2_000_000_006, height=OTHER_SIZE[1], width=OTHER_SIZE[0]).image).save(
        folder / "other.png"
    )
    (folder / "broken.png").write_bytes((folder / "wide.png").read_bytes()[:2000])
    (folder / "words.jpg").write_text("These are words.\n")
    return folder


@pytest.fixture(scope="session")
def predicted(photos, repository, tmp_path_factory):
    """Folder of what `predict` writes of the two rooms."""
    folder = tmp_path_factory.mktemp("predicted")
    model = str(repository / "hub_configs" / ROOMS)
    given = [str(photos / "wide.png"), str(photos / "other.png"), "--model", model, "--output", str(folder)]
    assert main(["predict", *given, "--formats", "png16,npy,coco", "--threshold", "0.3", "--device", "cpu"]) == 0
    return folder


def choose_model(page, label):
    page.locator("#checkpoint input").click()
    page.get_by_role("option", name=label, exact=True).click()


def upload(page, path):
    page.locator("#photo input[type=file]").set_input_files(str(path))


def wait_for_picture(page, width, height, task="depth-depth"):
    page.locator(f'#view-{task} .ait-view[data-pixels="{height},{width}"]').wait_for(state="attached")


def open_tab(page, title):
    page.get_by_role("tab", name=title, exact=True).click()


def hover(page, x, y, task="depth-depth"):
    """What is read at the middle of a pixel of a picture of `WIDTH` x `HEIGHT`: the words, and the pixel's position."""
    view = page.locator(f"#view-{task} .ait-view")
    box = view.bounding_box()
    page.mouse.move(box["x"] + (x + 0.5) / WIDTH * box["width"], box["y"] + (y + 0.5) / HEIGHT * box["height"])
    tip = view.locator(".ait-tip.shown")
    tip.wait_for()
    return tip.locator("b").inner_text(), tip.locator("small").inner_text()


def metres(page, x, y):
    words, place = hover(page, x, y)
    assert place == f"x {x}, y {y}"
    return float(re.fullmatch(r"(\d+\.\d\d) m", words)[1])


def picture_of(page, task="depth-depth"):
    return page.locator(f"#view-{task} .ait-view img").get_attribute("src")


def set_slider(page, name, value):
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def download(page, button, folder):
    with page.expect_download() as waiting:
        page.locator(f"#{button}").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def count_of(page, task="instance-objects"):
    return int(page.locator(f"#view-{task} .ait-count b").inner_text().split()[0])


def colors_of(picture):
    """How many colours a screenshot has."""
    return len(np.unique(np.array(Image.open(io.BytesIO(picture)).convert("RGB")).reshape(-1, 3), axis=0))


@pytest.fixture
def room_page(open_page, photos):
    """The page with the first room, in all tasks of the joint checkpoint."""
    page = open_page()
    choose_model(page, ROOMS)
    upload(page, photos / "wide.png")
    wait_for_picture(page, WIDTH, HEIGHT)
    return page


def test_an_upload_gives_every_task(room_page):
    titles = ["Depth", "Depth in 3-D", "Normals", "Semantic classes", "Objects", "Boxes"]
    assert [tab for tab in room_page.get_by_role("tab").all_inner_texts() if tab] == titles
    line = room_page.locator("#status").inner_text().replace("\n", " ")
    assert re.search(rf"{WIDTH} × {HEIGHT} +{ROOMS} on CPU +preparing \S+ m?s +model \S+ m?s +post-processing", line)
    for title, task in (("Normals", "normals-normals"), ("Semantic classes", "semantic-classes")):
        open_tab(room_page, title)
        words, place = hover(room_page, 40, 70, task)
        assert words and place == "x 40, y 70"
        assert ("faces" in words) == (title == "Normals")
    assert "floor" in room_page.locator("#view-semantic-classes .ait-chips").inner_text()


def test_the_pointer_reads_metres(room_page, predicted):
    depth = np.load(predicted / "wide.depth.npy")
    for x, y in ((0, 0), (5, 90), (64, 48), (100, 20), (127, 95)):
        assert metres(room_page, x, y) == pytest.approx(depth[y, x], abs=0.01)


def test_sliders_change_the_colours_and_not_the_metres(room_page):
    before, picture = metres(room_page, 64, 48), picture_of(room_page)
    ticks = room_page.locator("#view-depth-depth .ait-ticks")
    set_slider(room_page, "near-depth-depth", 1)
    # Gradio loses a change that comes while it answers the one before.
    ticks.filter(has_text=re.compile(r"^\s*1\.00 m")).wait_for()
    set_slider(room_page, "far-depth-depth", 2)
    ticks.filter(has_text=re.compile(r"^\s*1\.00 m.*2\.00 m\s*$", re.S)).wait_for()
    assert picture_of(room_page) != picture and metres(room_page, 64, 48) == before
    room_page.locator("#fit-depth-depth").click()
    room_page.wait_for_function(
        "(src) => document.querySelector('#view-depth-depth .ait-view img').src === src", arg=picture
    )
    room_page.locator("#near-depth-depth input[type=range]").press("ArrowRight")  # as one drags it
    room_page.wait_for_function(
        "(src) => document.querySelector('#view-depth-depth .ait-view img').src !== src", arg=picture
    )
    assert metres(room_page, 64, 48) == before


def test_downloads_are_what_predict_writes(room_page, predicted, tmp_path):
    path = download(room_page, "png16-depth-depth", tmp_path)
    assert path.name == "wide.depth.16bit.png" and path.read_bytes() == (predicted / path.name).read_bytes()
    with Image.open(path) as image:
        assert image.mode.startswith("I") and image.size == (WIDTH, HEIGHT)
        millimetres = np.array(image)
    assert np.abs(millimetres / 1000 - np.load(predicted / "wide.depth.npy")).max() <= 0.0006
    path = download(room_page, "npy-depth-depth", tmp_path)
    assert path.read_bytes() == (predicted / "wide.depth.npy").read_bytes()


def test_a_threshold_changes_the_number_of_objects(room_page, predicted, tmp_path):
    open_tab(room_page, "Objects")
    wait_for_picture(room_page, WIDTH, HEIGHT, "instance-objects")
    annotations = json.loads((predicted / "instance.coco.json").read_text())
    expected = [
        x for x in annotations["annotations"] if x["image_id"] == 1 + (annotations["images"][0]["width"] != WIDTH)
    ]
    assert count_of(room_page) == sum(x["score"] >= 0.5 for x in expected)
    set_slider(room_page, "threshold-instance-objects", 0.3)
    room_page.locator("#view-instance-objects .ait-count", has_text=f"{len(expected)} object").wait_for()
    found = json.loads(download(room_page, "coco-instance-objects", tmp_path).read_text())
    assert found["images"][0]["file_name"] == "wide.png" and len(found["annotations"]) == len(expected)
    assert [x["segmentation"] for x in found["annotations"]] == [x["segmentation"] for x in expected]
    set_slider(room_page, "threshold-instance-objects", 1)
    room_page.locator("#view-instance-objects .ait-count", has_text="0 objects").wait_for()
    set_slider(room_page, "threshold-instance-objects", 0.05)
    room_page.wait_for_function(
        "(n) => parseInt(document.querySelector('#view-instance-objects .ait-count b').innerText) >= n",
        arg=len(expected),
    )


def test_point_clouds_are_shown_and_load(room_page, predicted, tmp_path):
    import trimesh

    widths = []
    open_tab(room_page, "Depth in 3-D")
    for fov in (60, 90):
        if fov != 60:
            set_slider(room_page, "fov-depth-depth in 3-D".replace(" ", "\\ "), fov)
        button = room_page.locator(f'a[href*="wide.depth.{fov}deg.glb"]').first
        button.wait_for(state="attached")
        path = download(room_page, "glb-depth-depth\\ in\\ 3-D", tmp_path)
        assert path.name == f"wide.depth.{fov}deg.glb"
        (cloud,) = trimesh.load(path).geometry.values()
        assert len(cloud.vertices) == WIDTH * HEIGHT
        depth = np.load(predicted / "wide.depth.npy")
        np.testing.assert_allclose(np.sort(-cloud.vertices[:, 2]), np.sort(depth.ravel()), atol=1e-3)
        widths.append(np.ptp(cloud.vertices[:, 0]))
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(3), rel=1e-3)  # tan 45 / tan 30
    canvas, deadline = room_page.locator("#view-depth-depth\\ in\\ 3-D canvas"), time.monotonic() + 60
    while (colors := colors_of(canvas.screenshot())) < 200:  # drawn at last
        assert time.monotonic() < deadline, colors


@pytest.mark.parametrize("name", ["broken.png", "words.jpg"])
def test_a_broken_file_gets_a_message_and_the_page_goes_on(open_page, photos, name):
    page = open_page()
    upload(page, photos / name)
    page.locator("#status .ait-error").wait_for()
    assert f"{name} cannot be read as an image" in page.locator("#status").inner_text()
    choose_model(page, ROOMS)
    upload(page, photos / "wide.png")
    wait_for_picture(page, WIDTH, HEIGHT)
    assert metres(page, 64, 48) > 0
    upload_again(page, photos / name)
    page.locator("#status .ait-error").wait_for()
    assert not page.locator("#tabs").is_visible()  # nothing of the picture before is left to be mistaken for this one's


def upload_again(page, path):
    page.locator("#photo button[aria-label='Remove Image']").first.click()
    page.locator("#status .ait-empty").wait_for()
    upload(page, path)


def test_two_visitors_see_their_own_pictures(open_page, photos, predicted, tmp_path):
    pages = {"wide": open_page(), "other": open_page()}
    for page in pages.values():
        choose_model(page, ROOMS)
    for name, page in pages.items():  # the second comes while the first is being predicted
        upload(page, photos / f"{name}.png")
    wait_for_picture(pages["wide"], WIDTH, HEIGHT)
    wait_for_picture(pages["other"], *OTHER_SIZE)
    for name, page in pages.items():
        set_slider(page, "near-depth-depth", 1)
        page.locator("#view-depth-depth .ait-ticks", has_text="1.00 m").wait_for()
        path = download(page, "png16-depth-depth", tmp_path)
        assert path.name == f"{name}.depth.16bit.png" and path.read_bytes() == (predicted / path.name).read_bytes()
    depth = np.load(predicted / "wide.depth.npy")
    assert metres(pages["wide"], 64, 48) == pytest.approx(depth[48, 64], abs=0.01)
    size = f"{OTHER_SIZE[0]} × {OTHER_SIZE[1]}"
    assert size in pages["other"].locator("#status").inner_text()
    assert size not in pages["wide"].locator("#status").inner_text()


def test_an_example_brings_its_model(open_page):
    page = open_page()
    page.locator("#examples img").last.click()
    wait_for_picture(page, 640, 480)
    assert page.locator("#checkpoint input").input_value() == ROOMS
    open_tab(page, "Boxes")
    page.locator("#examples img").first.click()
    wait_for_picture(page, 512, 512)
    assert page.locator("#checkpoint input").input_value() == "ait-lite-nyu"
    assert page.locator("#view-depth-depth").is_visible()  # the model has no boxes, so the first of its tabs opens
    choose_model(page, "ait-tiny-rooms-instance")  # predicts the picture that is there
    page.locator("#view-instance-objects .ait-count").wait_for()


def take_photograph(page):
    """Clicks what the camera shows, again where that comes back: Gradio mounts it anew while it sets the page up."""
    access = page.locator("#photo").get_by_text("Click to Access Webcam")
    shutter = page.locator("#photo").get_by_title("capture photo")
    taken = page.locator("#photo img[data-testid='detailed-image'], #photo .image-frame img").first
    for _ in range(CAMERA_CLICKS):
        if taken.is_visible():
            return
        if access.is_visible():
            access.dispatch_event("click")
        elif page.evaluate(CAMERA_PLAYS):  # before, the shutter does nothing
            shutter.dispatch_event("click")
        page.wait_for_timeout(2000)
    raise AssertionError(f"no photograph after {CAMERA_CLICKS} clicks: {page.locator('#photo').inner_html()}")


def test_the_camera_takes_a_picture(open_page):
    page = open_page()
    page.locator("#photo button[aria-label='Capture from camera']").click()
    take_photograph(page)
    page.locator("#view-depth-depth .ait-view").wait_for()
    assert "ait-lite-nyu on CPU" in page.locator("#status").inner_text()
