"""Results as HTML: bars, pictures, facts and messages, each readable by a screen reader and at phone width.

Pictures travel inside the page (data URIs), so that a visitor's cell is never written to disk to be shown. All text
is escaped here: a file name or the labels of a Hub model may hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from leukoscope.reports.formatting import cell_html, data_uri, encoded
from leukoscope.web.page import script
from leukoscope.web.text import meaning, outcome_text, percent, t

if TYPE_CHECKING:
    from leukoscope.web.result import CellResult

# For pictures whose cells can be opened: tells the server which was clicked; a button reacts to Enter and Space itself.
CLICK = """element.addEventListener('click', (event) => {
  const box = event.target.closest('[data-cell]')
  if (box) trigger('select', {index: Number(box.dataset.cell), value: box.dataset.cell})
})"""

VIEW = script("view.js")


def notice() -> str:
    """The research-only notice."""
    return f'<p class="lk-notice" role="note">{escape(t("notice"))}</p>'


def message(title: str, text: str) -> str:
    """Something the visitor should act on: what is wrong, and the fix."""
    return f'<div class="lk-message" role="alert"><strong>{escape(title)}</strong>{escape(text)}</div>'


def box() -> str:
    """What the upload takes, and what stands there once the server cannot be reached."""
    return f'{note(t("box_takes"))}<div id="offline">{message(t("failed"), t("offline"))}</div>'


def placeholder(text: str) -> str:
    """What stands where a result will be."""
    return f'<div class="lk-empty">{escape(text)}</div>'


def note(text: str) -> str:
    """A quiet remark."""
    return f'<p class="lk-note">{escape(text)}</p>'


def decision(result: CellResult, point: str = "") -> str:
    """The decision in a few words over one bar of all classes, and how often such decisions were right."""
    text, decided = result.decision_text(point), result.decision(point)
    bar = _bar(result.shares(point))
    if not text.has_class:
        bar = details(t("folded_probabilities"), bar)
    plain = text.has_class and not decided.operating_point
    headline = "" if plain else f'<p class="lk-headline">{escape(text.headline)}</p>'
    lines = "".join(note(line) for line in (text.because, result.trust(point), result.remark, *result.warnings) if line)
    scales = foreign(result) if result.foreign else ""
    return (
        f'<div role="status"><p class="lk-short{"" if text.has_class else " none"}">{escape(text.short)}</p>'
        f"{headline}</div>{bar}{lines}{scales}"
    )


def _bar(probabilities: Mapping[str, float]) -> str:
    parts = names = ""
    for label, share in probabilities.items():
        stands_for = f" {escape(meaning(label))}" if meaning(label) else ""
        parts += f'<i style="width:{share:.2%}"></i>'
        names += f'<li><b>{escape(label)}</b>{stands_for} <data value="{share:.6f}">{percent(share)}</data></li>'
    return f'<div class="lk-track" aria-hidden="true">{parts}</div><ul class="lk-bars">{names}</ul>'


def foreign(result: CellResult) -> str:
    """How far a refused picture lies from the training cells, a scale for each kind of statistic, and what helps.

    The one figure of its distance is the OOD score that it is refused by.
    """
    assert result.foreign is not None
    rows, checks = "", result.prediction.checks
    for name, distance in result.foreign.distances.items():
        apart = distance > 1 or ((checks.ood_score or 0.0) > 1 and name == checks.ood_group)
        place, far = 100 * min(distance / 4, 1), t("beyond_usual" if apart else "as_usual")
        rows += (
            f"<li><span>{escape(t(f'foreign_{name}'))}</span>"
            f'<div class="lk-range" aria-hidden="true"><i style="left:{place:.0f}%"></i></div><span>{far}</span></li>'
        )
    return f'<ul class="lk-foreign" aria-label="{t("foreign_scales")}">{rows}</ul>{note(t("what_helps"))}'


def pictures(result: CellResult, label: str, opacity: float, common_scale: bool = False) -> str:
    """The cell over its map, with a divider between them; for an element with `VIEW`."""
    original, overlaid = result.pictures(label, opacity, common_scale)
    caption, (width, height) = result.caption, original.size
    style = f"aspect-ratio:{width}/{height};max-width:{22 * min(1, width / height):.1f}rem"
    given = picture(original, t("picture_as_given", caption=caption))
    over = tools = scale = ""
    if overlaid is not None:
        title = t("map_foreign") if result.foreign else t("map_title", label=label)
        over = f"<div>{picture(overlaid, title)}</div>"
        tools = (
            f'<div class="lk-tools"><span aria-hidden="true">{t("cell")}</span><input type="range" min="0" max="100" '
            f'value="50" aria-label="{t("slider")}"><span aria-hidden="true">{t("map")}</span></div>'
        )
        strength = result.scale.strength(result.own_peak) if result.maps else ""
        chip = f' <b class="lk-chip">{t(f"strength_{strength}")}</b>' if strength else ""
        ends = ("0", f"{result.peak(common_scale):.3g}") if result.maps else ("2 σ", "6 σ")
        colours = f'<span>{ends[0]} <i aria-hidden="true"></i> {ends[1]}</span>'
        scale = f'<p class="lk-scale">{escape(title)} {colours}{chip}</p>'
    failed = note(t("map_failed")) if result.maps and not result.thresholds.maps_passed else ""
    hint = ""
    if result.foreign is None or result.measured is None:
        hint = " " + t("tap_part" if result.foreign is None else "tap_cell")
    return (
        f'<figure class="lk-view"><div class="lk-stage{"" if over else " alone"}" tabindex="0" role="group" '
        f'style="{style}" aria-label="{t("stage")}">{given}{over}</div>{tools}'
        f"<figcaption>{escape(caption)}.{escape(hint)}</figcaption></figure>{scale}{failed}"
    )


def picture(image: Image.Image, alt: str, side: int = 0) -> str:
    """A picture that travels within the page, at most `side` pixels wide and high unless that is 0."""
    if side:
        image = image.copy()
        image.thumbnail((side, side))
    source = data_uri("image/webp", encoded(image, "WEBP", quality=92))
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="{source}" alt="{escape(alt)}" {size} draggable="false">'


def forms(text: str, results: Sequence[tuple[str, CellResult]], point: str = "") -> str:
    """Forms of one picture side by side, by name, each with its class and, where it has one, its map."""
    shown = ""
    for name, one in results:
        label, decided = one.called(point), one.decision(point)
        image = next(filter(None, reversed(one.pictures(label, 0.55))))
        share = percent(one.prediction.probabilities[label])
        refused = "" if decided.label else f" ({escape(outcome_text(decided.outcome))})"
        shown += (
            f"<li>{picture(image, name, 240)}<b>{escape(label)} {share}</b>{refused}<span>{escape(name)}</span></li>"
        )
    return f'<div role="status">{note(text)}<ul class="lk-cells lk-forms">{shown}</ul></div>'


def visit(cells: Sequence[CellResult], model: str, number: int) -> str:
    """The cells of a visit, each a button that shows its result again; for an element with `CLICK`.

    The number of the example shown (0 for another picture) goes to the page's address, as the model does; `data-own`
    says that a cell is here which no address opens again.
    """
    shown = ""
    for index, one in enumerate(cells):
        caption, name = one.caption, escape(t("show_again", caption=one.caption))
        shown += (
            f'<li><button type="button" data-cell="{index}" aria-label="{name}" title="{name}">'
            f"{picture(one.image, '', 96)}</button><span>{escape(caption)}</span></li>"
        )
    strip = f'{note(t("in_this_visit"))}<ul class="lk-cells">{shown}</ul>' if len(cells) > 1 else ""
    example = f' data-example="{number}"' if number else ""
    own = "" if all(one.example for one in cells) else " data-own"
    return f'<div data-model="{escape(model)}"{example}{own}>{strip}</div>'


def explanation(result: CellResult, label: str, point: str = "") -> str:
    """A class's map in words, the cell's measurements and how the prediction was made."""
    text = result.map_text(label)
    shown = f"<p>{escape(text)}</p>" if text else ""
    headline = f"<p>{escape(result.decision_text(point).headline)}</p>"
    facts = {**result.morphology, **result.facts()}.items()
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f'<div class="lk-explanation">{headline}{shown}<dl class="lk-facts">{rows}</dl></div>'


def counts(numbers: Mapping[str, int]) -> str:
    """How many cells have each outcome."""
    rows = "".join(f"<div><dt>{escape(outcome_text(one))}</dt><dd>{count}</dd></div>" for one, count in numbers.items())
    return f'<dl class="lk-counts">{rows}</dl>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", label: str = "") -> str:
    """A table of plain text, its first column naming the row; wide ones scroll by themselves.

    `label` is its name for a screen reader where it has no caption; "" for the first heading.
    """
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{cell_html(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    # Reached by keyboard, so that it can be scrolled without a mouse.
    name = escape(caption or label or heads[0])
    return (
        f'<div class="lk-scroll" tabindex="0" role="region" aria-label="{name}"><table>{title}'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, html: str, *, is_open: bool = False) -> str:
    """Something to unfold; `html` is markup, already escaped."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{html}</details>"
