"""A report on one subject's cells: one HTML file with nothing to fetch, which prints to two sides of A4.

It shows the prediction for the subject, every cell's probability, the cells most and least like the positive class with
their Grad-CAM maps, the refused cells, and how the release performs on unseen subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.prediction import REFUSED, WITHOUT_CLASS
from leukoscope.models.release import public_name
from leukoscope.reports.formatting import data_uri, encoded, fraction, rendered, share, span, with_span

if TYPE_CHECKING:
    from PIL.Image import Image

    from leukoscope.inference.prediction import Prediction
    from leukoscope.inference.subject import SubjectPrediction

SHOWN = 6
"""Number of cells most like the positive class, and of cells least like it."""
SHOWN_REFUSED = 12
_SIDE = 160
_WIDTH, _HEIGHT, _MARGIN = 720, 130, 26
_USED, _REFUSED = "#0072B2", "#9aa0a6"


def subject_report(
    subject: SubjectPrediction,
    probabilities: np.ndarray,
    outcomes: Sequence[str],
    explain: Callable[[Sequence[int]], Sequence[Prediction]],
    *,
    model: str,
    revision: str,
    metrics: Mapping[str, Any],
) -> str:
    """Render the report as HTML.

    Args:
        subject: the prediction; its name stands in the title, where it has one.
        probabilities: (N,) of the positive class, of all the subject's cells.
        explain: gives the explained predictions of some of these cells, by their indices.
    """
    positive, data = subject.positive_label, metrics["data"]
    is_refused = np.isin(np.asarray(outcomes), REFUSED)
    order = [int(i) for i in np.argsort(-np.asarray(probabilities), kind="stable") if not is_refused[i]]
    # No cell is among both the most and the least positive ones.
    first = order[: min(SHOWN, (len(order) + 1) // 2)]
    last = order[len(first) :][::-1][:SHOWN]
    shown = []
    for chosen in (first, last, [int(i) for i in np.flatnonzero(is_refused)[:SHOWN_REFUSED]]):
        names = [f"cell {i + 1}" for i in chosen]
        shown.append(list(zip(names, explain(chosen) if chosen else (), strict=True)))
    most, least, refused = shown
    maps = [found.heatmaps[positive] for _, found in (*most, *least) if found.heatmaps is not None]
    # One scale for the cells of a report: on the release's own, most maps of real cells are too faint to be printed.
    peak = max((float(one.evidence.max()) for one in maps), default=0.0)
    headline = f"No class: {subject.outcome}"
    if subject.probability is not None and not subject.reason:
        headline = f"{subject.outcome} (probability of {positive} {share(subject.probability)})"
    citation = f"Training data: {data['citation']} Licence: {data['licence']}." if data.get("citation") else ""
    return rendered(
        Path(__file__).with_name("subject_report.html"),
        title=f"Report on the cells of {subject.subject or 'one subject'}",
        subject=subject,
        headline=headline,
        facts=_facts(subject, model, revision),
        strip=strip_plot(probabilities, outcomes),
        with_maps=bool(maps),
        montages=[
            (f"The cells most like {positive}", [_figure(*cell, positive, peak) for cell in most]),
            (f"The cells least like {positive}", [_figure(*cell, positive, peak) for cell in least]),
        ],
        refused=[_figure(*cell, positive, None) for cell in refused],
        trust=_trust(metrics),
        citation=citation,
        date=date.today().isoformat(),
    )


def _facts(subject: SubjectPrediction, model: str, revision: str) -> dict[str, str]:
    facts = {"cells": f"{subject.cells}, of which {subject.used} in use and {subject.refused} refused"}
    if subject.is_result and subject.interval is not None:
        positive = subject.positive_label
        facts |= {
            f"probability of {positive}": f"{share(subject.probability)} ({span(subject.interval)})",
            "the interval": "95 %, from bootstrap samples of this subject's cells; it does not say how subjects differ",
            f"share of {positive}": f"{share(subject.share_positive)} of the cells in use",
            "unsure cells": f"{subject.abstained} of the cells in use get no class by themselves",
        }
    facts |= {"rule": subject.rule.text, "operating point": "most probable class (one half)"}
    # The path of a local folder may name a subject or a laboratory.
    return facts | {"model": public_name(model, revision), "revision": revision or "local files"}


def _trust(metrics: Mapping[str, Any]) -> list[str]:
    """Sentences on how the release performs on unseen subjects, and on what that does not cover."""
    block = metrics["subject_rule"]
    measured = block["measured"]
    # A recalibrated release was measured on the cells that it was recalibrated with.
    laboratory = metrics.get("recalibration", {}).get("data") or metrics["data"]["title"]
    return [
        f"Measured on {measured['subjects']} subjects whom the networks, the pooling and the threshold had not seen: "
        f"AUROC {with_span(measured['auroc'])}, sensitivity for {block['positive_label']} "
        f"{fraction(measured['sensitivity'])}, specificity {fraction(measured['specificity'])}; in brackets 95 % "
        "intervals.",
        f"These were {measured['subjects']} subjects of one laboratory ({laboratory}), each of one class only. "
        "Nothing here applies to mixed marrow, to minimal residual disease, or to another stain or microscope.",
        "A Grad-CAM map shows where the network's evidence lies, not whether the evidence is medically sound.",
        RESEARCH_NOTICE,
    ]


def strip_plot(
    probabilities: np.ndarray | Sequence[float],
    outcomes: Sequence[str],
    *,
    threshold: float = 0.5,
    cells: Sequence[int] | None = None,
) -> str:
    """Draw every cell of a subject as a dot, sorted by its probability of the positive class, as an SVG.

    Args:
        outcomes: of the same cells; refused ones are grey and stand at the left.
        threshold: of the dashed line, 0–1.
        cells: numbers that the dots carry as `data-cell`, so that a page can open the cell; None for none.
    """
    grey = np.isin(np.asarray(outcomes), REFUSED)
    order = sorted(range(len(outcomes)), key=lambda i: (not grey[i], probabilities[i]))
    step = (_WIDTH - 2 * _MARGIN) / max(1, len(order))
    radius = min(4.0, max(1.6, 0.45 * step))

    def height(probability: float) -> float:
        return 8 + (1 - probability) * (_HEIGHT - 16)

    dots = []
    for place, i in enumerate(order):
        named = outcomes[i] if outcomes[i] in WITHOUT_CLASS else f"class {outcomes[i]}"
        opens = "" if cells is None else f' data-cell="{cells[i]}"'
        dots.append(
            f'<circle cx="{_MARGIN + (place + 0.5) * step:.1f}" cy="{height(float(probabilities[i])):.1f}" '
            f'r="{radius:.1f}" fill="{_REFUSED if grey[i] else _USED}"{opens}><title>{float(probabilities[i]):.3f}, '
            f"{escape(named)}</title></circle>"
        )
    ticks = "".join(
        f'<text x="{_MARGIN - 6}" y="{height(value) + 3:.1f}" text-anchor="end" font-size="10" fill="currentColor">'
        f"{value:g}</text>"
        for value in (0, 0.5, 1)
    )
    line = height(threshold)
    above = int(((np.asarray(probabilities) >= threshold) & ~grey).sum())
    used = int((~grey).sum())
    label = f"{above} of {used} cells in use lie at or above {threshold:.3g}; {len(grey) - used} are refused"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{ticks}'
        f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{line:.1f}" y2="{line:.1f}" stroke="currentColor" '
        f'stroke-dasharray="4 3" stroke-width="1"/>{"".join(dots)}</svg>'
    )


def _figure(name: str, found: Prediction, positive: str, peak: float | None) -> dict[str, str]:
    """One cell as the network saw it and, where `peak` gives the end of the colour scale, its map."""
    probability = share(found.probabilities[positive])
    left, top, right, bottom = (round(edge) for edge in found.view_box)
    seen = left, top, right, bottom
    what = f"{name}: {found.outcome}, probability of {positive} {probability}"
    assert found.picture is not None, "explained"
    shown = {"picture": _cell_picture(found.picture.crop(seen)), "alt": what}
    if peak is None or found.heatmaps is None:
        return shown | {"caption": name}
    drawn = found.overlay(positive, peak=peak).crop(seen)
    return shown | {"caption": f"{name} · {probability}", "map": _cell_picture(drawn)}


def _cell_picture(image: Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    return data_uri("image/jpeg", encoded(small, "JPEG", quality=85))
