"""The report page: well-formed, complete, and nothing in it is taken for markup or loaded from elsewhere."""

import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from segray.retrain.decision import Decision, Estimate, Gain, GroupRow
from segray.retrain.report import report_page

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script>\"' onload=x {{ 7 * 7 }} https://evil.example/x.js"
VOID = {"meta", "img", "br"}
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction", "xlink:href"}


class Page(HTMLParser):
    """Its elements and text; raises AssertionError where an element is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if {"td", "th"} & set(self._open):
            self.cells[-1][-1] += data.strip()

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, name: str) -> list[str]:
        (found,) = [cells for cells in self.cells if cells[0] == name]
        return found


def decision(**changes: Any) -> Decision:
    plain: dict[str, Any] = {
        "metric": "AP",
        "holdout": "h-3",
        "images": 65,
        "look": 4,
        "level": 0.05,
        "look_level": 0.0025,
        "margin": 0.005,
        "draws": 10_000,
        "seed": 1234567,
        "challenger": Estimate(0.5987, 0.55, 0.6411),
        "champion": Estimate(0.5611, 0.5201, 0.6),
        "gain": Gain(Estimate(0.0376, 0.0123, 0.0599), 0.011, 0.0077, 0.0311, 64, 0),
        "groups": (
            GroupRow("day", 50, 0.61, 0.55, 0.4, True, None),
            GroupRow("night", 15, 0.31, 0.41, None, True, "Group night: falls."),
            GroupRow("dusk", 3, float("nan"), None, None, False, None),
        ),
        "promoted": True,
        "reasons": ("It is better.",),
        "notes": ("Dusk was not judged.",),
    }
    return Decision(**(plain | changes))


def record(**changes: Any) -> dict[str, Any]:
    plain = {
        "model": "buildings",
        "version": "0123456789ab",
        "time": "2026-11-30T03:00:00Z",
        "decision": decision().to_json(),
        "data": {
            "new": 1_234,
            "changed": 17,
            "removed": 3,
            **{"train": 900, "val": 100, "test": 250, "left_out": 1},
            "rows": [{"split": "train", "group": None, "new": 1_234, "changed": 17, "removed": 3}],
        },
        "history": [
            {"epoch": 1, "train_loss": 2.0, "ap": None, "lr": 0.001},
            {"epoch": 2, "train_loss": 1.5, "ap": 0.5, "lr": 0.0005},
            {"epoch": 3, "train_loss": float("nan"), "ap": 0.25, "lr": 0.0001},
            {"epoch": 4, "train_loss": 1.0, "ap": 0.5987, "lr": 0.0001},
        ],
        "versions": {"torch": "2.13.0"},
        "links": {"run": "s3://bucket/runs/7"},
    }
    return plain | changes


def test_all_numbers_are_there() -> None:
    page = Page(report_page(record(), [("image a: 0.20 against 0.70", PNG)]))
    assert page.row("champion")[1:4] == ["0.5611", "0.5201", "0.6000"]
    assert page.row("challenger")[1:4] == ["0.5987", "0.5500", "0.6411"]
    assert page.row("difference")[1:4] == ["+0.0376", "+0.0123", "+0.0599"]
    assert page.row("day") == ["day", "50", "0.5500", "0.6100", "+0.0600", "0.4000", ""]
    assert page.row("night") == ["night", "15", "0.4100", "0.3100", "-0.1000", "-", "Group night: falls."]
    assert page.row("dusk") == ["dusk", "3", "-", "-", "-", "-", "not judged"]
    assert page.row("train") == ["train", "-", "1,234", "17", "3"]
    assert page.row("all")[2:] == ["1,234", "17", "3"]
    assert page.row("torch")[1] == "2.13.0"
    assert page.row("run")[1] == "s3://bucket/runs/7"
    words = " ".join(page.text.split())
    for part in (
        "buildings",
        "Promoted",
        "It is better.",
        "Dusk was not judged.",
        "look 4",
        "10,000",
        "1234567",
        "1,000 pictures to train with",
        "250 held out, 1 left out",
    ):
        assert part in words
    assert "0.0025 the gain exceeds +0.0077, and must exceed 0.0050" in words
    assert "95 % of" in words
    assert "0.0376" not in report_page(record(decision=decision(gain=None, champion=None).to_json()))


def test_pictures_are_in_the_page() -> None:
    page = Page(report_page(record(), [("one", PNG), ("two", PNG)]))
    sources = [picture["src"] or "" for picture in page.named("img")]
    assert [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources] == [
        PNG,
        PNG,
    ]
    assert [picture["alt"] for picture in page.named("img")] == ["one", "two"]


def test_curves_are_parted_where_there_is_no_number() -> None:
    page = Page(report_page(record()))
    lines = [(line["points"] or "").split() for line in page.named("polyline")]
    loss, after, ap, rate = lines
    assert [len(line) for line in lines] == [2, 1, 3, 4]
    assert [float(point.split(",")[0]) for point in rate] == pytest.approx([0, 106.7, 213.3, 320])
    heights = [float(point.split(",")[1]) for point in ap]
    assert heights[1] > heights[0] > heights[2]  # down is less
    assert loss[0] == "0.0,10.0"  # a tenth of the distance is left above: 120 of 12 tenths
    assert after == ["320.0,110.0"]


def test_intervals_share_one_axis() -> None:
    page = Page(report_page(record()))
    left = [float(re.findall(r"left:([\d.]+)%", each["style"] or "")[0]) for each in page.named("b") if each]
    champion, challenger, difference = left
    assert champion < challenger
    assert 0 < difference < 100
    (margin,) = page.named("i")
    assert float(re.findall(r"left:([\d.]+)%", margin["style"] or "")[0]) < difference


def test_names_are_never_markup() -> None:
    groups = (GroupRow(HOSTILE, 5, 0.5, 0.5, None, True, HOSTILE),)
    hostile = record(
        model=HOSTILE,
        version=HOSTILE,
        decision=decision(holdout=HOSTILE, reasons=(HOSTILE,), notes=(HOSTILE,), groups=groups).to_json(),
        data={"new": 1, "changed": 0, "removed": 0}
        | {"rows": [{"split": HOSTILE, "group": HOSTILE, "new": 1, "changed": 0, "removed": 0}]},
        versions={HOSTILE: HOSTILE},
        links={"run": "javascript:alert(1)"},
    )
    pictures = [(HOSTILE, PNG)]
    shown, plain = Page(report_page(hostile, pictures)), Page(report_page(record(), [("a", PNG)]))
    assert not shown.named("script")
    assert {name for name, _ in shown.elements} <= {name for name, _ in plain.elements}
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert shown.text.count(HOSTILE) >= 8
    loaded = [
        value
        for _, attributes in shown.elements
        for name, value in attributes.items()
        if name in LOADING and not (value or "").startswith("data:image/png;base64,")
    ]
    assert loaded == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = report_page(record(links={}), [("a", PNG)])
    assert not re.search(r"https?:|//|url\(|@import|<link|<script", re.sub(r"base64,[^\"]*", "", text))


def test_a_first_version_with_nothing_else_known() -> None:
    bare = {"model": "m", "version": "v", "time": "t"}
    first = decision(champion=None, gain=None, groups=(), promoted=False, reasons=("No.",), notes=())
    page = Page(report_page(bare | {"decision": first.to_json()}))
    words = " ".join(page.text.split())
    for part in ("Refused", "There was no champion", "no groups", "Not recorded.", "No picture."):
        assert part in words
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    empty = report_page(bare | {"decision": decision(challenger=nothing, gain=None).to_json()})
    assert Page(empty).row("challenger")[1:4] == ["-", "-", "-"]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="lacks version, decision"):
        report_page({"model": "m", "time": "t"})
