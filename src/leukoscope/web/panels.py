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

from leukoscope import RESEARCH_NOTICE
from leukoscope.web.text import MEANINGS, DecisionText, percent

# For pictures whose cells can be opened: tells the server which was clicked; a button reacts to Enter and Space itself.
CLICK = """element.addEventListener('click', (event) => {
  const box = event.target.closest('[data-cell]')
  if (box) trigger('select', {index: Number(box.dataset.cell), value: box.dataset.cell})
})"""


def notice() -> str:
    """The research-only notice."""
    return f'<p class="lk-notice" role="note">{escape(RESEARCH_NOTICE)}</p>'


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
        meaning = f" <span>{escape(MEANINGS[label])}</span>" if label in MEANINGS else ""
        bars += (
            f'<li class="{"" if rank else "first"}"><div class="name"><div><b>{escape(label)}</b>{meaning}</div>'
            f'<data value="{share:.6f}">{percent(share)}</data></div>'
            f'<div class="lk-track" aria-hidden="true"><i style="width:{share:.2%}"></i></div></li>'
        )
    bars = f'<ul class="lk-bars">{bars}</ul>'
    if not text.has_class:
        bars = details("Probabilities: no result for this picture", bars)
    because = f'<p class="lk-because">{escape(text.because)}</p>' if text.because else ""
    held = "".join(
        f'<li class="{"" if holds else "not"}"><span aria-hidden="true">{"✓" if holds else "✗"}</span> '
        f"{'' if holds else '<b>not</b> '}{escape(check)}</li>"
        for check, holds in text.checks
    )
    short = f'<p class="lk-short{"" if text.has_class else " none"}">{escape(text.short)}</p>' if text.short else ""
    checks = f'<ul class="lk-checks">{held}</ul>' if held else ""
    return f'<div role="status">{short}{checks}<p class="lk-headline">{escape(text.headline)}</p>{because}</div>{bars}'


def pictures(
    original: Image.Image, overlay: Image.Image, caption: str, label: str, peak: float, strength: str = ""
) -> str:
    """The cell beside its Grad-CAM overlay, side by side at every width.

    Args:
        peak: the Grad-CAM value at the upper end of the colour scale.
        strength: "weak", "usual" or "strong": this picture's map among those of the model; "" where not measured.
    """
    about = f"Grad-CAM map for {label}"
    # The overlay's colours, one scale for all classes.
    chip = f'<b class="lk-chip">{escape(strength)} map</b>' if strength else ""
    scale = f'<span class="lk-scale">0 <i aria-hidden="true"></i> {peak:.3g} {chip}</span>'
    return (
        '<div class="lk-pictures">'
        f"{_figure(original, f'The picture as given: {caption}', caption)}"
        f"{_figure(overlay, f'{about}, drawn over the cell; described in words below', about, scale)}"
        "</div>"
    )


def _figure(image: Image.Image, alt: str, caption: str, scale: str = "") -> str:
    return (
        f'<figure><img src="{data_uri(image)}" alt="{escape(alt)}" width="{image.width}" height="{image.height}">'
        f"<figcaption>{escape(caption)}{scale}</figcaption></figure>"
    )


def data_uri(image: Image.Image) -> str:
    """A picture that travels within the page."""
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=92)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def explanation(text: str, facts: Mapping[str, str], warnings: Sequence[str] = ()) -> str:
    """Warnings, the Grad-CAM map in words, the facts of the prediction, and the research notice."""
    shown = "".join(message("Warning", warning) for warning in warnings)
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f'<div class="lk-explanation">{shown}<p>{escape(text)}</p><dl class="lk-facts">{rows}</dl>{notice()}</div>'


def counts(numbers: Mapping[str, int]) -> str:
    """How many cells have each outcome."""
    rows = "".join(f"<div><dt>{escape(outcome)}</dt><dd>{count}</dd></div>" for outcome, count in numbers.items())
    return f'<dl class="lk-counts">{rows}</dl>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", label: str = "") -> str:
    """A table of plain text, its first column naming the row; wide ones scroll by themselves.

    Args:
        label: its name for a screen reader where it has no caption; "" for the first heading.
    """
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
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
