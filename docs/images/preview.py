"""Make the screenshots of the preview again: `uv run --extra dev python docs/images/preview.py`.

After docs/images/make.py, one of whose outputs is shown; Chromium is the one that the tests use.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from segray.cli import main
from tests.debian import chromium

ROOT = Path(__file__).parents[2]
HERE = ROOT / "docs/images"
OUT = ROOT / "out/readme-images"
NUCLEI = ROOT / "tests/data/nuclei"
SHORTER = """(segray.get("images") || []).forEach((each) => {
    each.address = each.address.replace(/^.*\\/tests\\//, "tests/");
})"""
"""Addresses without the folder in which this was made."""
SIZE = {"width": 1160, "height": 700}


def run(*arguments: str | Path) -> None:
    """Run a segray command.

    Raises:
        RuntimeError: it did not end with exit code 0.
    """
    if main([str(each) for each in arguments]) != 0:
        raise RuntimeError(f"segray {arguments[0]} failed")


def outputs() -> None:
    """Make what is shown and is not there yet."""
    for name, threshold in (("nuclei", "0.5"), ("nuclei-0.8", "0.8")):
        model = ("--weights", "nuclei-small", "--score-threshold", threshold)
        run("annotate", NUCLEI / "images", *model, "--output", OUT / name)
    truth = ("--labels", NUCLEI / "instances.json", "--output", OUT / "scores")
    run("evaluate", "--predictions", OUT / "nuclei", *truth)
    for runs in (["nuclei"], ["nuclei", "nuclei-0.8"], ["kampala"], ["scores"]):
        run("preview", *(OUT / name for name in runs), "--output", OUT / f"page-{'-and-'.join(runs)}")


def shot(browser: Browser, page: str, name: str, scheme: str, act: Callable[[Page], object]) -> None:
    """Save a screenshot of a page after some action."""
    shown = browser.new_page(color_scheme="dark" if scheme == "dark" else "light", viewport=SIZE)
    shown.goto((OUT / page / "index.html").as_uri())
    shown.wait_for_timeout(800)
    shown.evaluate(SHORTER)
    act(shown)
    shown.wait_for_timeout(1_500)
    with Image.open(io.BytesIO(shown.screenshot())) as image:
        image.convert("RGB").save(HERE / f"{name}.jpg", quality=80, optimize=True)
    shown.close()


def hovered(page: Page, card: int, x: float, y: float) -> None:
    """Open an image and point at a place of it, in shares of its sides."""
    page.locator(".card").nth(card).click()
    page.wait_for_timeout(1_000)
    box = page.locator(".sheet, .leaflet-image-layer").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def curves(page: Page) -> None:
    """Scroll to the first plots."""
    page.locator("h2", has_text="Precision and recall, masks").evaluate("each => each.scrollIntoView()")


def screenshots() -> None:
    """Save all of them."""
    program, environment = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(program), env={**os.environ, **environment}, args=["--no-sandbox"]
        )
        shot(browser, "page-nuclei", "preview-list", "light", lambda page: None)
        shot(browser, "page-kampala", "preview-scene", "dark", lambda page: hovered(page, 0, 0.64, 0.74))
        shot(
            browser,
            "page-nuclei-and-nuclei-0.8",
            "preview-two",
            "dark",
            lambda page: hovered(page, 0, 0.2, 0.15),
        )
        shot(browser, "page-scores", "preview-scores", "light", curves)
        browser.close()


if __name__ == "__main__":
    outputs()
    screenshots()
