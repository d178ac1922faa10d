"""Render the record of `compare` as one self-contained HTML page, without network access."""

from html import escape
from typing import Any

from segray.drift.compare import OTHERS

UNITS = {
    "score": "score of the model",
    "class": "class",
    "area": "area in pixels",
    "instances": "instances an image",
    "brightness": "mean grey, 0 to 255",
    "sharpness": "variance of the Laplacian",
}
_WIDTH, _HEIGHT, _GAP = 320, 120, 6
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: right }
td:first-child, th:first-child, td:last-child { text-align: left }
.drift { color: #a40000; font-weight: 600 } .muted { color: #666 }
figure { display: inline-block; margin: 1rem 1.5rem 0 0; vertical-align: top }
figcaption { font-size: .85rem }
.run { fill: #0b6e99 } .against { fill: #c9c9c9 } text { font: 10px system-ui, sans-serif; fill: #444 }
"""


def page(record: dict[str, Any]) -> str:
    """Return the HTML page of a record of `compare`."""
    title = "Drift" if record["drifted"] else "No drift" if record["judged"] else "Not judged"
    limits = record["thresholds"]
    sections = [_section(record["overall"], "All images")]
    sections += [_section(each, f"{record['group_by']}: {_name(each['group'])}") for each in record["groups"]]
    notes = "".join(f"<p>{escape(note)}</p>" for note in record["notes"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>
<h1{' class="drift"' if record["drifted"] else ""}>{title}</h1>
<p>{escape(record["run"])} <svg width="10" height="10"><rect class="run" width="10" height="10"/></svg><br>
against {escape(record["against"])}
<svg width="10" height="10"><rect class="against" width="10" height="10"/></svg></p>
<p class="muted">A measure has drifted where its population stability index (PSI) is at least
{limits["psi"]:g} or its Jensen-Shannon divergence (JS) at least {limits["js"]:g} bits, and above what two
samples of the same images would give by chance ({limits["noise"]:g} for the whole page). Fewer than
{limits["min_images"]:,} images on a side are not judged.</p>
{notes}
{"".join(sections)}
</body></html>
"""


def _name(group: str | None) -> str:
    return "(none)" if group is None else group


def _section(section: dict[str, Any], title: str) -> str:
    counted = "; ".join(
        f"{name} {section[name]['run']:,} against {section[name]['against']:,}"
        for name in ("images", "rejected", "instances")
    )
    rows = "".join(_row(each) for each in section["measures"])
    charts = "".join(_chart(each) for each in section["measures"] if each["bins"])
    head = "".join(
        f"<th>{name}</th>" for name in ("", "PSI", "of noise", "JS", "of noise", "median", "against", "")
    )
    table = f"<table><tr>{head}</tr>{rows}</table>"
    return f"<h2>{escape(title)}</h2><p class='muted'>{counted}</p>{table}{charts}\n"


def _row(measure: dict[str, Any]) -> str:
    names = ("psi", "noise_psi", "js", "noise_js", "median", "median_against")
    cells = "".join(f"<td>{_figure(measure[name])}</td>" for name in names)
    state = "drift" if measure["crossed"] else "ok" if measure["judged"] else measure["why"]
    style = "drift" if measure["crossed"] else "muted"
    return f"<tr><td>{measure['measure']}</td>{cells}<td class='{style}'>{escape(state)}</td></tr>"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _chart(measure: dict[str, Any]) -> str:
    """Draw the shares of both sides by bin; merged bins have about equal shares, so their widths differ."""
    bins = measure["bins"]
    most = max(max(each["share"], each["share_against"]) for each in bins)
    step = (_WIDTH + _GAP) / len(bins)
    bars = "".join(_bars(each, index * step, step - _GAP, most) for index, each in enumerate(bins))
    caption = escape(UNITS[measure["measure"]])
    return (
        f"<figure><svg width='{_WIDTH}' height='{_HEIGHT + 30}' role='img'>{bars}</svg>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _bars(each: dict[str, Any], left: float, width: float, most: float) -> str:
    label = _label(each)
    drawn = []
    for name, side, start in (("share", "run", left), ("share_against", "against", left + width / 2)):
        height = _HEIGHT * each[name] / most
        title = escape(f"{label}: {each[name]:.1%}")
        drawn.append(
            f"<rect class='{side}' x='{start:.1f}' y='{_HEIGHT - height:.1f}' width='{width / 2:.1f}' "
            f"height='{height:.1f}'><title>{title}</title></rect>"
        )
    short = escape(_short(each))
    return f"{''.join(drawn)}<text x='{left:.1f}' y='{_HEIGHT + 14}'>{short}</text>"


def _label(each: dict[str, Any]) -> str:
    if "class" in each:
        return "other classes" if each["class"] == OTHERS else str(each["class"])
    upper = "and more" if each["to"] is None else f"to {each['to']:g}"
    return f"{each['from']:g} {upper}"


def _short(each: dict[str, Any]) -> str:
    return str(each["class"])[:6] if "class" in each else f"{each['from']:.4g}"
