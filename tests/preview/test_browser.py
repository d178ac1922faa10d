"""The pages in a real Chromium, opened from disk: filtered, by keyboard, dark and light, on a phone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.preview import made
from tests.preview.conftest import Watched
from tests.preview.test_pages import preview

PHONE = {"viewport": {"width": 390, "height": 800}, "device_scale_factor": 2, "has_touch": True}


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The pages of a kind of run, made once; the sources are gone afterwards."""
    root, made_already = tmp_path_factory.mktemp("pages"), dict[str, Path]()

    def found(kind: str) -> Path:
        if kind not in made_already:
            folder, output = root / kind, root / kind / "page <1> #2"
            kinds: dict[str, Callable[[Path], Path]] = {"maps": made.labelled, "many": made.many}
            runs = [kinds.get(kind, made.annotated)(folder / "first run")]
            if kind == "two":
                runs.append(made.annotated(folder / "second run", less=2))
            more = ("--side", "256") if kind == "many" else ()
            assert preview(output, *runs, more=more) == 0
            shutil.rmtree(folder / "photos")
            made_already[kind] = output
        return made_already[kind]

    return found


def drawn(page: Page, selector: str) -> float:
    """The share of a canvas that is not clear."""
    script = """canvas => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return 4 * data.filter((value, at) => at % 4 === 3 && value > 0).length / data.length;
    }"""
    return float(page.locator(selector).first.evaluate(script))


def test_names_stay_text(browser: Browser, page_of: Callable[[str], Path]) -> None:
    with Watched(browser, page_of("one")) as page:
        expect(page.locator(".card")).to_have_count(6)
        assert {*page.locator(".card .name").all_text_contents()} == {*made.NAMES, "one.png", "two.png"}
        names = page.locator(".chip").all_inner_texts()
        assert {name.rpartition("\n")[0] or name for name in names} == {*made.CLASSES} or len(names) == 3
        for tab in page.get_by_role("tab").all():
            tab.click()
        page.get_by_role("tab", name="Rejected").click()
        expect(page.get_by_text("it ends early <i>1</i>")).to_be_visible()
        assert page.locator("main i:not(.bar):not(.swatch):not(.chip i), main b, main script").count() == 0
        assert page.title() == "first run: segray preview"


def test_filters_and_order(browser: Browser, page_of: Callable[[str], Path]) -> None:
    with Watched(browser, page_of("one")) as page:
        images = made.scripts(page_of("one"))["images"]
        order = sorted(images, key=lambda each: 2 if each["sureness"] is None else each["sureness"])
        names = [each["address"].rpartition("/")[2] for each in order]
        assert page.locator(".card .name").all_text_contents() == names
        page.locator("select[name=sort]").select_option("name")
        assert (
            page.locator(".card .name").first.text_content()
            == sorted(images, key=lambda each: each["address"])[0]["address"].rpartition("/")[2]
        )
        page.locator("input[name=low]").fill("0.95")
        kept = [each for each in images if any(bin_ in (19, 20) for bin_ in each["bins"][1::3])]
        expect(page.locator(".card")).to_have_count(len(kept))
        assert 0 < len(kept) < 6
        page.locator("input[name=people]").uncheck()
        expect(page.locator(".card")).to_have_count(
            len([each for each in images if 19 in each["bins"][1::3]])
        )
        page.locator("input[name=low]").fill("0")
        page.locator(".chip").nth(0).click()
        expect(page.locator(".card")).to_have_count(5)
        page.locator("input[name=text]").fill("one.p")
        expect(page.locator(".card")).to_have_count(1)
        assert page.locator(".count").inner_text() == "1 of 6 images"
        page.wait_for_timeout(500)
        before = drawn(page, ".card canvas")
        page.locator(".chip").nth(0).click()
        page.wait_for_timeout(500)
        assert drawn(page, ".card canvas") > 1.5 * before  # all three classes
        page.locator("input[name=text]").fill("nothing")
        expect(page.get_by_text("No image matches the filter.")).to_be_visible()


def test_one_image_by_keyboard_and_pointer(browser: Browser, page_of: Callable[[str], Path]) -> None:
    with Watched(browser, page_of("one"), color_scheme="dark") as page:
        page.locator("input[name=text]").fill(".")
        page.locator(".card").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        dialog = page.locator("dialog")
        expect(dialog).to_be_visible()
        title = dialog.locator("h2").inner_text()
        assert title == page.locator(".card .name").nth(1).text_content()
        expect(dialog.locator("tr[tabindex]")).to_have_count(6)
        scores = [
            float(each)
            for each in dialog.locator("tr[tabindex] td:nth-child(2)").all_inner_texts()
            if each[0].isdigit()
        ]
        assert scores == sorted(scores)
        box = dialog.locator(".sheet").bounding_box()
        assert box
        page.mouse.move(
            box["x"] + box["width"] * 15.5 / made.WIDTH, box["y"] + box["height"] * 15.5 / made.HEIGHT
        )
        tip = dialog.locator(".tip")
        expect(tip).to_be_visible()
        told = tip.inner_text()
        assert told.endswith("#0000000")
        assert told.startswith("car · ")
        expect(dialog.locator("tr.chosen .id")).to_have_text("0000000")
        page.mouse.move(box["x"] + 2, box["y"] + box["height"] - 2)
        expect(tip).to_be_hidden()
        assert drawn(page, "dialog canvas") > 0.05
        page.keyboard.press("o")
        expect(dialog.locator("canvas")).to_be_hidden()
        page.keyboard.press("o")
        page.keyboard.press("+")
        larger = dialog.locator(".sheet").bounding_box()
        assert larger
        assert larger["width"] == pytest.approx(1.5 * box["width"], rel=0.01)
        page.keyboard.press("ArrowRight")
        expect(dialog.locator("h2")).not_to_have_text(title)
        address = page.evaluate("location.href")
        assert "#image/" in address
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        until(page, "location.hash === ''")  # the event of closing comes later
        page.goto("about:blank")
        page.goto(address)
        expect(page.locator("dialog")).to_be_visible()


def test_dark_and_light(browser: Browser, page_of: Callable[[str], Path]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme in ("light", "dark"):
        with Watched(browser, page_of("one"), color_scheme=scheme) as page:
            seen.append(page.evaluate(paper))
            page.locator("#theme").click()
            seen.append(page.evaluate(paper))
    assert seen == [seen[0], seen[1], seen[1], seen[0]]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("kind", ["one", "maps", "two"])
def test_a_phone_scrolls_in_one_direction(
    browser: Browser, page_of: Callable[[str], Path], kind: str
) -> None:
    with Watched(browser, page_of(kind), **PHONE) as page:
        for tab in page.get_by_role("tab").all():
            tab.tap()
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("tab", name="Pictures").tap()
        page.locator(".card").first.tap()
        expect(page.locator("dialog .sheet")).to_be_visible()
        for selector in ("dialog", "dialog .stage", "dialog aside"):
            box = page.locator(selector).bounding_box()
            assert box
            assert 0 <= box["x"] <= box["x"] + box["width"] <= 390


def test_label_maps(browser: Browser, page_of: Callable[[str], Path]) -> None:
    with Watched(browser, page_of("maps")) as page:
        expect(page.locator(".card")).to_have_count(6)
        page.locator(".card").first.click()
        sheet = page.locator("dialog .sheet")
        expect(sheet).to_be_visible()
        page.wait_for_timeout(200)
        assert drawn(page, "dialog canvas") == pytest.approx(80 / 120, abs=0.01)  # the background is clear
        box = sheet.bounding_box()
        assert box
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
        expect(page.locator("dialog .tip")).to_have_text(made.CLASSES[2])
        page.keyboard.press("Escape")
        page.locator(".chip").nth(1).click()
        page.wait_for_timeout(200)
        assert drawn(page, ".card canvas") == pytest.approx(40 / 120, abs=0.01)


def test_two_runs_and_the_slider(browser: Browser, page_of: Callable[[str], Path]) -> None:
    with Watched(browser, page_of("two")) as page:
        expect(page.locator(".card canvas")).to_have_count(12)
        page.locator(".card").first.click()
        split = page.get_by_label("Left: the first run, right: the second")
        expect(split).to_be_visible()
        split.focus()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        clips = [
            page.locator("dialog canvas").nth(at).evaluate("each => each.style.clipPath") for at in range(2)
        ]
        assert clips == ["inset(0px 40% 0px 0px)", "inset(0px 0px 0px 60%)"]
        title = page.locator("dialog h2").inner_text()
        page.get_by_role("button", name="Next").click()
        expect(page.locator("dialog h2")).not_to_have_text(title)


def until(page: Page, script: str) -> None:
    """Wait until it is true: the page's policy refuses the text that playwright's own waiting evaluates."""
    for _ in range(400):
        if page.evaluate(script):
            return
        page.wait_for_timeout(5)
    raise AssertionError(f"not within seconds: {script}")


def timed(browser: Browser, folder: Path) -> tuple[float, float]:
    """Milliseconds from the start of the page until the first picture is there, and until it was filtered."""
    first = "performance.getEntriesByName('first picture')"
    with Watched(browser, folder) as page:
        until(page, f"{first}.length > 0")
        page.locator(".chip").nth(3).click()
        until(page, "!document.querySelector('.count').value.startsWith('200 of')")
        filtered, picture = page.evaluate(f"[performance.now(), {first}[0].startTime]")
    return float(picture), float(filtered)


def test_a_hundred_thousand_instances(browser: Browser, page_of: Callable[[str], Path]) -> None:
    folder = page_of("many")
    first = [folder / "index.html", *(folder / "web").glob("*.*"), folder / "data/page.js"]
    assert sum(each.stat().st_size for each in first) < 1_000_000
    trials = [timed(browser, folder) for _ in range(3)]  # the machine may be busy with other tests
    print("first picture, filtered (ms): ", "; ".join(f"{a:.0f}, {b:.0f}" for a, b in trials))
    assert min(filtered for _, filtered in trials) < 2_000
    assert min(picture for picture, _ in trials) < 1_000


def test_a_page_that_is_looked_at_has_colours(
    browser: Browser, page_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """A screenshot has the outline's colour where the instance ends."""
    with Watched(browser, page_of("one")) as page:
        page.locator("input[name=fill]").fill("0")
        page.locator(".card").first.click()
        page.wait_for_timeout(300)
        page.screenshot(path=str(tmp_path / "one.png"))
    with Image.open(tmp_path / "one.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for each in made.scripts(page_of("one"))["classes"]:
        assert (np.abs(pixels - each["colour"]).sum(axis=1) < 30).any()
