"""Results as HTML: bars, pictures, facts and messages, each readable by a screen reader and at phone width.

Pictures travel inside the page (data URIs), so that a visitor's cell is never written to disk to be shown. All text
is escaped here: file names and the labels of a Hub model are strangers' words.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.web.words import MEANINGS, Judgement, percent


def notice() -> str:
    """The research-only notice."""
    return f'<p class="lk-notice" role="note">{escape(RESEARCH_NOTICE)}</p>'


def message(title: str, text: str) -> str:
    """Something the visitor should act on: what is wrong, and the fix."""
    return f'<div class="lk-message" role="alert"><strong>{escape(title)}</strong>{escape(text)}</div>'


def placeholder(text: str) -> str:
    """What stands where a result will be."""
    return f'<div class="lk-empty">{escape(text)}</div>'


def remark(text: str) -> str:
    """One more sentence below a result."""
    return f'<p class="lk-remark" role="status">{escape(text)}</p>'


def answer(probabilities: Mapping[str, float], judged: Judgement) -> str:
    """The decision in words over one bar a label, the most probable first; without a class the bars are marked so."""
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    bars = "".join(_bar(label, share, "first" if rank == 0 else "") for rank, (label, share) in enumerate(ranked))
    because = f'<p class="lk-because">{escape(judged.because)}</p>' if judged.because else ""
    bars = f'<ul class="lk-bars{"" if judged.has_class else " unused"}">{bars}</ul>'
    if not judged.has_class:
        bars = details("Probabilities: no result for this picture", bars)
    return f'<div role="status"><p class="lk-verdict">{escape(judged.headline)}</p>{because}</div>{bars}'


def pictures(original: Image.Image, overlay: Image.Image, caption: str, label: str, peak: float) -> str:
    """The cell beside its Grad-CAM overlay, side by side at every width.

    Args:
        peak: the evidence at the upper end of the colour scale.
    """
    about = f"Evidence for {label}"
    # The overlay's colours, one scale for all classes.
    scale = f'<span class="lk-scale">0 <i aria-hidden="true"></i> {peak:.3g}</span>'
    return (
        '<div class="lk-pictures">'
        f"{_figure(original, f'The picture as given: {caption}', caption)}"
        f"{_figure(overlay, f'{about}, drawn over the cell; described in words below', f'{about} (Grad-CAM)', scale)}"
        "</div>"
    )


def reading(text: str, facts: Mapping[str, str], warnings: Sequence[str] = ()) -> str:
    """What to beware of, the heat map in words, the facts behind the answer, and the research notice."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    shown = "".join(message("Beware", warning) for warning in warnings)
    return f'<div class="lk-reading">{shown}<p>{escape(text)}</p><dl class="lk-facts">{rows}</dl>{notice()}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table of plain text, its first column naming the row; wide ones scroll by themselves."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    # Reached by keyboard, so that it can be scrolled without a mouse.
    return (
        f'<div class="lk-scroll" tabindex="0" role="region" aria-label="{escape(caption or heads[0])}"><table>{said}'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, html: str, *, is_open: bool = False) -> str:
    """Something to unfold.

    Args:
        html: markup, already escaped.
    """
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{html}</details>"


def _bar(label: str, share: float, rank: str) -> str:
    meaning = f" <span>{escape(MEANINGS[label])}</span>" if label in MEANINGS else ""
    return (
        f'<li class="{rank}"><div class="name"><div><b>{escape(label)}</b>{meaning}</div>'
        f'<data value="{share:.6f}">{percent(share)}</data></div>'
        f'<div class="lk-track" aria-hidden="true"><i style="width:{share:.2%}"></i></div></li>'
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
