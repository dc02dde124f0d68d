"""Results as HTML: bars, pictures, facts and messages, each readable by a screen reader and at phone width.

Pictures travel inside the page (data URIs), so that a visitor's cell is never written to disk to be shown. All text
is escaped here: a file name or the labels of a Hub model may hold anything.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from leukoscope.web.text import DecisionText, local_number, meaning, outcome_text, percent, t

# For pictures whose cells can be opened: tells the server which was clicked; a button reacts to Enter and Space itself.
CLICK = """element.addEventListener('click', (event) => {
  const box = event.target.closest('[data-cell]')
  if (box) trigger('select', {index: Number(box.dataset.cell), value: box.dataset.cell})
})"""

# The picture beside its map: the slider between them, zoom and moving, by mouse, touch and keyboard.
VIEW = """let view = {at: 50, zoom: 1, x: 0, y: 0}, held = null, shown = ''
const stage = () => element.querySelector('.lk-stage')
const draw = () => {
  if (!stage()) return
  const source = stage().querySelector('img').src, most = () => (view.zoom - 1) / 2
  if (source != shown) [view.zoom, view.x, view.y, shown] = [1, 0, 0, source]
  for (const way of 'xy') view[way] = Math.max(-most(), Math.min(most(), view[way]))
  const set = (name, value) => stage().style.setProperty(name, value)
  set('--at', `${view.at}%`), set('--zoom', view.zoom), set('--x', `${view.x * 100}%`), set('--y', `${view.y * 100}%`)
  stage().style.touchAction = view.zoom > 1 ? 'none' : 'pan-y'
  element.querySelector('input').value = view.at
}
const zoom = (factor) => { view.zoom = Math.max(1, Math.min(8, view.zoom * factor)); draw() }
const move = (x, y) => { view.x += x; view.y += y; draw() }
element.addEventListener('input', (event) => { view.at = event.target.value; draw() })
element.addEventListener('click', (event) => {
  const factor = event.target.closest('[data-zoom]')?.dataset.zoom
  if (factor) zoom(Number(factor))
  if (!event.target.closest('[data-full]')) return
  document.fullscreenElement ? document.exitFullscreen() : stage().closest('figure').requestFullscreen()
})
element.addEventListener('keydown', (event) => {
  const keys = {'+': [zoom, 1.5], '-': [zoom, 1 / 1.5], ArrowLeft: [move, 0.1, 0], ArrowRight: [move, -0.1, 0],
    ArrowUp: [move, 0, 0.1], ArrowDown: [move, 0, -0.1]}[event.key]
  if (!keys || event.target != stage()) return
  event.preventDefault(), keys[0](...keys.slice(1))
})
element.addEventListener('pointerdown', (event) => {
  if (view.zoom > 1 && event.target.closest('.lk-stage')) held = [event.clientX, event.clientY]
})
addEventListener('pointermove', (event) => {
  if (!held || !stage()) return
  move((event.clientX - held[0]) / stage().clientWidth, (event.clientY - held[1]) / stage().clientHeight)
  held = [event.clientX, event.clientY]
})
addEventListener('pointerup', () => { held = null })
watch('value', draw)
draw()"""


def notice() -> str:
    """The research-only notice."""
    return f'<p class="lk-notice" role="note">{escape(t("notice"))}</p>'


def message(title: str, text: str) -> str:
    """Something the visitor should act on: what is wrong, and the fix."""
    return f'<div class="lk-message" role="alert"><strong>{escape(title)}</strong>{escape(text)}</div>'


def placeholder(text: str) -> str:
    """What stands where a result will be."""
    return f'<div class="lk-empty">{escape(text)}</div>'


def note(text: str) -> str:
    """A quiet remark."""
    return f'<p class="lk-note">{escape(text)}</p>'


def decision(probabilities: Mapping[str, float], text: DecisionText) -> str:
    """The decision in words over one bar a label, the most probable first; without a class the bars are folded."""
    bars = ""
    for rank, (label, share) in enumerate(sorted(probabilities.items(), key=lambda item: -item[1])):
        stands_for = f" <span>{escape(meaning(label))}</span>" if meaning(label) else ""
        bars += (
            f'<li class="{"" if rank else "first"}"><div class="name"><div><b>{escape(label)}</b>{stands_for}</div>'
            f'<data value="{share:.6f}">{percent(share)}</data></div>'
            f'<div class="lk-track" aria-hidden="true"><i style="width:{share:.2%}"></i></div></li>'
        )
    bars = f'<ul class="lk-bars">{bars}</ul>'
    if not text.has_class:
        bars = details(t("folded_probabilities"), bars)
    because = f'<p class="lk-because">{escape(text.because)}</p>' if text.because else ""
    held = "".join(
        f'<li class="{"" if holds else "not"}"><span aria-hidden="true">{"✓" if holds else "✗"}</span> '
        f"{escape(check)}</li>"
        for check, holds in text.checks
    )
    short = f'<p class="lk-short{"" if text.has_class else " none"}">{escape(text.short)}</p>' if text.short else ""
    checks = f'<ul class="lk-checks">{held}</ul>' if held else ""
    return f'<div role="status">{short}{checks}<p class="lk-headline">{escape(text.headline)}</p>{because}</div>{bars}'


def pictures(
    original: Image.Image, overlay: Image.Image | None, caption: str, label: str, peak: float, strength: str = ""
) -> str:
    """The cell over its Grad-CAM overlay, with a slider between them; for an element with `VIEW`.

    Args:
        overlay: None shows the cell alone.
        peak: the Grad-CAM value at the upper end of the colour scale.
        strength: "weak", "usual" or "strong": this picture's map among those of the model; "" where not measured.
    """
    if overlay is None:
        whole = _img(original, t("picture_as_given", caption=caption))
        return f"<figure>{whole}<figcaption>{escape(caption)}</figcaption></figure>"
    width, height = original.size
    buttons = "".join(
        f'<button type="button" {what} aria-label="{name}" title="{name}">{sign}</button>'
        for what, name, sign in (
            ('data-zoom="1.5"', t("zoom_in"), "+"),
            ('data-zoom="0.667"', t("zoom_out"), "−"),
            ("data-full", t("full_screen"), t("full")),
        )
    )
    return (
        f'<figure class="lk-view"><div class="lk-stage" tabindex="0" role="group" style="aspect-ratio:{width}/{height};'
        f'max-width:{24 * min(1, width / height):.1f}rem" aria-label="{t("stage")}">'
        f"{_img(original, t('picture_as_given', caption=caption))}"
        f"<div>{_img(overlay, t('map_alt', label=label))}</div></div>"
        f'<div class="lk-tools"><span aria-hidden="true">{t("cell")}</span><input type="range" min="0" max="100" '
        f'value="50" aria-label="{t("slider")}"><span aria-hidden="true">{t("map")}</span>'
        f"{buttons}</div><figcaption>{escape(caption)}</figcaption></figure>{_scale(label, peak, strength)}"
    )


def _scale(label: str, peak: float, strength: str) -> str:
    """The overlay's colours, one scale for all classes."""
    chip = f'<b class="lk-chip">{t(f"strength_{strength}")}</b>' if strength else ""
    return (
        f'<p class="lk-scale">{escape(t("map_title", label=label))} <span>0 <i aria-hidden="true"></i> '
        f"{local_number(f'{peak:.3g}')}</span> "
        f"{chip}</p>"
    )


def _img(image: Image.Image, alt: str) -> str:
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="{data_uri(image)}" alt="{escape(alt)}" {size} draggable="false">'


def side_by_side(results: Sequence[tuple[str, str, Image.Image | None, str, float, str]]) -> str:
    """What several models predict of one picture.

    Args:
        results: of each its name, its decision as HTML, and its overlay, label, peak and strength as for `pictures`.
    """
    columns = "".join(
        f"<section><h2>{escape(name)}</h2>{decided}"
        + (
            f"<figure>{_img(overlay, t('map_of_model', model=name, label=label))}</figure>"
            f"{_scale(label, peak, strength)}"
            if overlay is not None
            else f"<p>{escape(t('no_map'))}</p>"
        )
        + "</section>"
        for name, decided, overlay, label, peak, strength in results
    )
    return f'<div class="lk-two">{columns}</div>'


def visit(cells: Sequence[tuple[Image.Image, str]], model: str, number: int) -> str:
    """The cells of a visit, each a button that shows its result again; for an element with `CLICK`.

    Args:
        cells: the picture and its caption.
        model: the model chosen.
        number: of the example shown, from 1; 0 for another picture. Both go to the page's address.
    """
    shown = ""
    for index, (image, caption) in enumerate(cells):
        small = image.copy()
        small.thumbnail((96, 96))
        name = escape(t("show_again", caption=caption))
        shown += (
            f'<li><button type="button" data-cell="{index}" aria-label="{name}" title="{name}">'
            f'<img src="{data_uri(small)}" alt="" width="{small.width}" height="{small.height}"></button>'
            f"<span>{escape(caption)}</span></li>"
        )
    strip = f'{note(t("in_this_visit"))}<ul class="lk-cells">{shown}</ul>' if len(cells) > 1 else ""
    example = f' data-example="{number}"' if number else ""
    return f'<div data-model="{escape(model)}"{example}>{strip}</div>'


def data_uri(image: Image.Image) -> str:
    """A picture that travels within the page."""
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=92)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def explanation(text: str, facts: Mapping[str, str], warnings: Sequence[str] = ()) -> str:
    """Warnings, the Grad-CAM map in words, the facts of the prediction, and the research notice."""
    shown = "".join(message(t("warning"), warning) for warning in warnings)
    return f'<div class="lk-explanation">{shown}<p>{escape(text)}</p>{pairs(facts)}{notice()}</div>'


def pairs(values: Mapping[str, str]) -> str:
    """Names and what they stand for; nothing of none."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items())
    return f'<dl class="lk-facts">{rows}</dl>' if rows else ""


def counts(numbers: Mapping[str, int]) -> str:
    """How many cells have each outcome."""
    rows = "".join(f"<div><dt>{escape(outcome_text(one))}</dt><dd>{count}</dd></div>" for one, count in numbers.items())
    return f'<dl class="lk-counts">{rows}</dl>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", label: str = "") -> str:
    """A table of plain text, its first column naming the row; wide ones scroll by themselves.

    Args:
        label: its name for a screen reader where it has no caption; "" for the first heading.
    """
    from leukoscope.reports.formatting import cell_html

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
    """Something to unfold.

    Args:
        html: markup, already escaped.
    """
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{html}</details>"
