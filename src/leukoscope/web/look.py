"""One picture and what a model said of it: asked once, then drawn, worded and saved as often as a visitor likes.

A picture goes through `Predictor` once; class, opacity and operating point are then redrawn from the heat maps and
probabilities kept in the visitor's session. The page and the API at /predict show the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.cells.phantom_smears import SMEAR_LABELS, draw_smear
from leukoscope.cells.phantoms import PHANTOM_LABELS, draw_cell
from leukoscope.inference.decision import Decision, Thresholds
from leukoscope.inference.heatmaps import EvidenceScale
from leukoscope.web import words
from leukoscope.web.shelf import Shelf

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Prediction

# Redrawing stays instant and the page light; one cell is a few hundred pixels anyway.
SHOWN_SIDE = 720
OPACITY = 0.55
EXAMPLES = tuple((label, subject, cell) for label in PHANTOM_LABELS for subject, cell in ((0, 0), (1, 1), (2, 2)))
SMEAR_EXAMPLES = tuple(zip(SMEAR_LABELS, (0, 1, 57, 23), strict=True))  # with seeds that are in distribution


@dataclass(frozen=True)
class Look:
    """One picture and what a model said of it; lives in a visitor's session, in memory only.

    Attributes:
        image: upright RGB, as given.
        caption: its file name, or which phantom it is.
        model: the name picked for the model that answered.
        thresholds: what that model decides by.
        scale: how strong its evidence usually is.
        warnings: what must be said beside the answer, most important first.
    """

    image: Image.Image
    caption: str
    model: str
    prediction: Prediction
    thresholds: Thresholds
    scale: EvidenceScale
    warnings: tuple[str, ...]

    @property
    def evidence(self) -> dict[str, np.ndarray]:
        """Class → (h, w) heat map, all on one scale."""
        return {label: heat.evidence for label, heat in (self.prediction.heatmaps or {}).items()}

    @property
    def peak(self) -> float:
        """The upper end of the colour scale: the model's own, else this picture's strongest evidence for any class."""
        return self.scale.strong or max(float(heat.max()) for heat in self.evidence.values())

    def decision(self, point: str = "") -> Decision:
        """What is decided at an operating point of the model; "" for the most probable class."""
        predicted = self.prediction
        return self.thresholds.decide(predicted.probabilities, predicted.checks, operating_point=point)

    def judgement(self, point: str = "") -> words.Judgement:
        """That decision in words."""
        return words.judgement(self.decision(point), self.prediction.probabilities, self.thresholds)


def examine(
    shelf: Shelf, image: Image.Image, caption: str, choice: str | None, *, field_share: float | None = None
) -> Look:
    """Ask a model about a picture, once, for the answer and every class's heat map.

    Args:
        field_share: of a field's cell, how many of the field's cells are in distribution.

    Raises:
        LeukoscopeError: the model cannot be used.
    """
    # Loaded before it is asked: an error is told here, not in the process that has the GPU.
    metrics = shelf.predictor(choice).release.metrics
    (prediction,) = shelf.ask(str(choice), [image], explain=True)
    thresholds, checks = Thresholds.from_metrics(metrics), replace(prediction.checks, field_share=field_share)
    decision = thresholds.decide(prediction.probabilities, checks)
    prediction = replace(prediction, checks=checks, decision=decision)
    warnings = words.warnings(metrics, detects=checks.ood_score is not None)
    return Look(image, caption, str(choice), prediction, thresholds, EvidenceScale.from_metrics(metrics), warnings)


def look_at(shelf: Shelf, read: Callable[[], tuple[Image.Image, str]], choice: str | None) -> Look:
    """Read a picture, then ask the chosen model about it.

    In this order: reading an upload deletes its file, which must happen whatever becomes of the model.

    Raises:
        LeukoscopeError: the picture or the model cannot be used.
    """
    image, caption = read()
    return examine(shelf, image, caption, choice)


def draw(look: Look, label: str, opacity: float) -> tuple[Image.Image, Image.Image]:
    """The picture and its overlay for one class, both at most 720 px on a side; no forward pass.

    All classes of a picture share one colour scale, and all pictures where the model has one, so that weak evidence
    looks weak.
    """
    from leukoscope.inference.heatmaps import overlay

    shown = look.image.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    scale = shown.width / look.image.width
    left, top, right, bottom = (edge * scale for edge in look.prediction.view_box)
    heat = (look.prediction.heatmaps or {})[label]
    return shown, overlay(shown, heat, (left, top, right, bottom), opacity=opacity, peak=look.peak)


def read_heat(look: Look, label: str) -> str:
    """A class's heat map in words."""
    left, top, right, bottom = (round(edge) for edge in look.prediction.view_box)
    said = words.evidence(look.evidence[label], look.image.crop((left, top, right, bottom)), label)
    return " ".join(part for part in (said, words.weak_evidence(look.evidence, label, look.scale.weak)) if part)


def facts(look: Look) -> dict[str, str]:
    """What stands behind an answer: the model, its revision, the time it took and the part of the picture it saw."""
    answered = look.prediction
    left, top, right, bottom = answered.view_box
    seen = f"{round(right - left)} × {round(bottom - top)} of {look.image.width} × {look.image.height} pixels"
    return {
        "Model": look.model,
        "Revision": answered.revision[:12] or "local files",
        "Time": words.milliseconds(answered.seconds),
        "Colour scale": "the same for every picture of this model" if look.scale.strong else "of this picture alone",
        "Seen by the model": seen + (", framed in blue" if (right - left) < look.image.width else ""),
    }


def summary(look: Look, point: str = "") -> str:
    """The whole result as plain text: decision, warnings, heat map in words, model and research notice."""
    answered, judged = look.prediction, look.judgement(point)
    about = words.provenance(look.model, answered.revision, answered.seconds)
    lines = (
        judged.headline,
        judged.because,
        *look.warnings,
        read_heat(look, answered.most_probable),
        about,
        RESEARCH_NOTICE,
    )
    return "\n".join(line for line in lines if line)


def ask_eight_times(shelf: Shelf, look: Look) -> str:
    """Whether the model says the same of the picture however it lies, in words.

    Raises:
        LeukoscopeError: the model cannot be used any more.
    """
    (together,) = shelf.ask(look.model, [look.image], views=True)
    average = together.most_probable
    share, apart = together.probabilities[average], together.checks.disagreement or 0.0
    return words.agreement(look.prediction.most_probable, average, share, apart)


def example(number: int) -> tuple[Image.Image, str]:
    """One of the six synthetic cells and its caption; drawn, never stored."""
    label, subject, cell = EXAMPLES[number]
    return Image.fromarray(draw_cell(label, subject=subject, cell=cell).image), f"Synthetic {label}"


@lru_cache(maxsize=len(SMEAR_EXAMPLES))
def smear_example(number: int) -> tuple[Image.Image, str]:
    """One of the four synthetic smears, for models that read a field as one picture, and its caption."""
    label, seed = SMEAR_EXAMPLES[number]
    return Image.fromarray(draw_smear(label, seed=seed)), f"Synthetic smear, {label}"
