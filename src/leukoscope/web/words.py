"""An answer in words: what the model says, where it looked, and what it was trained on.

Pure functions from numbers to sentences, shared by the page and the API. Each picture of a result has its text
equivalent here, so that nobody needs to see a heat map to know what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from leukoscope.cells.images import BACKGROUND_LEVEL

# Registered data sets name their classes by these words.
MEANINGS = {
    "ALL": "leukaemic blast",
    "HEM": "normal precursor",
    "Benign": "benign haematogone",
    "Early": "early pre-B blast",
    "Pre": "pre-B blast",
    "Pro": "pro-B blast",
}
FIRM, LEANING = 0.9, 0.65
BLACK_SHARE = 0.05
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


def named(label: str) -> str:
    """A label with its meaning, where that is known: "ALL (leukaemic blast)"."""
    return f"{label} ({MEANINGS[label]})" if label in MEANINGS else label


def percent(share: float) -> str:
    """A share in [0, 1] as a whole percentage that never rounds to certainty."""
    if 0 < share < 0.01:
        return "<1\u00a0%"
    if 0.99 < share < 1:
        return ">99\u00a0%"
    return f"{share:.0%}".replace("%", "\u00a0%")


def verdict(probabilities: Mapping[str, float]) -> str:
    """One sentence on what the model says and how firmly.

    Args:
        probabilities: label → probability, at least two labels, summing to 1.
    """
    (first, p), (second, q) = sorted(probabilities.items(), key=lambda item: -item[1])[:2]
    if p >= FIRM:
        return f"The model reads this cell as {named(first)}: {percent(p)}."
    if p >= LEANING:
        return f"The model leans towards {named(first)}, {percent(p)}, and is not firm about it."
    return f"The model is undecided: {named(first)} {percent(p)}, {named(second)} {percent(q)}."


def evidence(heat: np.ndarray, view: Image.Image, label: str) -> str:
    """The text equivalent of a heat map.

    Args:
        heat: (h, w) evidence for `label` over the view, at least 0, any scale.
        view: RGB, the part of the picture the model saw.

    Returns:
        Where a cell lies cut out on black: how much of the evidence lies on it, beside how much of the view it fills
        (what an indifferent model would score). Elsewhere: how concentrated the evidence is, and where.
    """
    total = float(heat.sum())
    if total <= 0:
        return f"Nothing the model saw speaks for {label}: its heat map is empty."
    cell = np.asarray(view).max(axis=2) > BACKGROUND_LEVEL
    if (~cell).mean() < BLACK_SHARE or not cell.any():
        return _concentration(heat, label)
    spread = _fitted(heat, view.size)
    on_cell = float(spread[cell].sum() / spread.sum())
    text = (
        f"{percent(on_cell)} of the evidence for {label} lies on the cell, {percent(1 - on_cell)} on background; "
        f"the cell fills {percent(float(cell.mean()))} of what the model saw."
    )
    return text if on_cell >= 0.5 else f"{text} Most of it is not on the cell: do not rely on this answer."


def provenance(model: str, revision: str, seconds: float) -> str:
    """Which weights answered, and how long they took."""
    return f"Model {model}, {_version(revision)}; {milliseconds(seconds)}."


def milliseconds(seconds: float) -> str:
    """A duration in whole milliseconds, at least 1."""
    return f"{max(1, round(seconds * 1000))} ms"


def warnings(metrics: Mapping[str, Any], recognised: bool | None) -> tuple[str, ...]:
    """What must be said beside an answer, most important first.

    Args:
        metrics: of the model's release.
        recognised: whether its input guard knows such pictures; None where it has no guard.
    """
    said = []
    if recognised is False:
        said.append("This does not look like the cells this model knows: its answer means nothing here.")
    if metrics.get("data", {}).get("synthetic"):
        said.append(
            "This model was trained on synthetic phantoms, not on real cells: its answers mean nothing outside them."
        )
    return tuple(said)


def _version(revision: str) -> str:
    return f"revision {revision[:12]}" if revision else "local files"


def _concentration(heat: np.ndarray, label: str) -> str:
    """How small a part of the view holds half of the evidence, and where its centre lies."""
    shares = np.sort(heat.ravel())[::-1].cumsum() / heat.sum()
    half = (int(np.searchsorted(shares, 0.5)) + 1) / heat.size
    y, x = ((np.indices(heat.shape) * heat).sum(axis=(1, 2)) / heat.sum() + 0.5) / heat.shape
    place = f"{ROWS[min(2, int(y * 3))]} {COLUMNS[min(2, int(x * 3))]}".replace("middle centre", "centre")
    return f"Half of the evidence for {label} lies in {percent(half)} of what the model saw, around its {place}."


def _fitted(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map at the view's resolution, (H, W) float32."""
    return np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
