"""One picture and its prediction: predicted once, then drawn, put into words and saved as often as a visitor likes.

A picture goes through `Predictor` once; class, opacity and operating point are then redrawn from the Grad-CAM maps and
probabilities kept in the visitor's session. The page and the API at /predict show the same.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from leukoscope.data.registry import NOT_A_CELL
from leukoscope.evaluation.morphology import MapShare, Morphology, map_share, measure_cell, parts_of
from leukoscope.inference.field import drawing_font
from leukoscope.inference.gradcam import map_colours, overlay
from leukoscope.inference.prediction import REFUSED, Decision, EvidenceScale, HeatMap, Prediction, Thresholds
from leukoscope.synthetic import SMEAR_LABELS, draw_cell, smear_picture
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.text import (
    DecisionText,
    about_model,
    decision_text,
    map_text,
    meaning,
    milliseconds,
    morphology_text,
    percent,
    t,
    trust_text,
    warnings,
    weak_map_text,
)
from leukoscope.web.upload import File, png_file, safe_stem

# Redrawing stays instant and the page light; one cell is a few hundred pixels anyway.
SHOWN_SIDE = 720
OPACITY = 0.55
TURNS = (0, 90, 180, 270)
FOREIGN_PEAK = 4.0  # standard deviations at the upper end of the colour scale
# Label, subject and cell of each; chosen from those that both C-NMC releases give their class.
EXAMPLES = (("ALL", 6, 3), ("ALL", 1, 0), ("ALL", 8, 3), ("HEM", 0, 0), ("HEM", 9, 0), ("HEM", 7, 0))
SMEAR_EXAMPLES = tuple(zip(SMEAR_LABELS, (0, 0, 4, 4), strict=True))  # those that are in distribution


@dataclass(frozen=True)
class CellResult:
    """One picture and what a model predicts of it; lives in a visitor's session, in memory only.

    Attributes:
        image, caption: upright RGB, as given, and its file name, or which phantom it is.
        um_per_pixel: its scale; None where it is not known.
        model: the name picked for the model.
        measured: the cell's measurements; None where the picture is no cell cut out on black.
        example: number of the synthetic picture, from 1; 0 for any other.
        cell: number of the cell in the field that it was cut out of, from 1; 0 for any other.
        foreign: what sets a refused picture apart; None of any other, and where the release has no detector.
        remark: what was done to the picture before.
    """

    image: Image.Image
    caption: str
    model: str
    prediction: Prediction
    thresholds: Thresholds
    scale: EvidenceScale
    metrics: Mapping[str, Any]
    measured: Morphology | None = None
    um_per_pixel: float | None = None
    example: int = 0
    cell: int = 0
    foreign: Foreign | None = None
    remark: str = ""

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Class → (h, w) map, all on one scale; none of a picture that gets no class because it is foreign."""
        if self.prediction.outcome in REFUSED:
            return {}
        return {label: heat.evidence for label, heat in (self.prediction.heatmaps or {}).items()}

    @property
    def own_peak(self) -> float:
        """The highest value of this picture's maps; 0 where the model has none."""
        return max((float(heat.max()) for heat in self.maps.values()), default=0.0)

    def peak(self, common_scale: bool = False) -> float:
        """The upper end of the colour scale: this picture's, or the one for all pictures of the model."""
        return (common_scale and self.scale.strong) or self.own_peak

    def decision(self, point: str = "") -> Decision:
        """The decision at an operating point of the model; "" for the most probable class."""
        if not point:
            return self.prediction.decision
        return self.thresholds.decide(self.prediction.probabilities, self.prediction.checks, operating_point=point)

    def called(self, point: str = "") -> str:
        """The class decided on; where there is none, the most probable one."""
        return self.decision(point).label or self.prediction.most_probable

    def shares(self, point: str = "") -> dict[str, float]:
        """Class → probability: the class decided on, then the others, most probable first."""
        called, known = self.called(point), self.prediction.probabilities
        return dict(sorted(known.items(), key=lambda item: (item[0] != called, -item[1])))

    def decision_text(self, point: str = "") -> DecisionText:
        """That decision in words; a map that lies on its nuclei less than an indifferent one is a caution with it."""
        text = decision_text(self.decision(point), self.prediction.probabilities, self.thresholds)
        share = self.map_shares.get(self.called(point))
        if share is None or share.on != "nuclei" or share.inside >= share.filled:
            return text
        caution = t("map_beside", inside=percent(share.inside), filled=percent(share.filled))
        return replace(text, because=f"{text.because} {caution}".strip())

    def trust(self, point: str = "") -> str:
        """How often such decisions were right for subjects whom the model had not seen."""
        return trust_text(self.decision(point), self.prediction.probabilities, self.metrics)

    @cached_property
    def map_shares(self) -> dict[str, MapShare]:
        """Class → where its map lies."""
        left, top, right, bottom = (round(edge) for edge in self.prediction.view_box)
        view, known = self.image.crop((left, top, right, bottom)), self.prediction
        return {
            label: map_share(heat, view, known.checks.on_cell if label == known.most_probable else None)
            for label, heat in self.maps.items()
        }

    def pictures(
        self, label: str, opacity: float, common_scale: bool = False
    ) -> tuple[Image.Image, Image.Image | None]:
        """The picture and its overlay for one class, both at most 720 px on a side; no forward pass.

        All classes of a picture share one colour scale, and all pictures of the model with `common_scale`. A refused
        picture is marked where it is foreign. A model without maps has no overlay.
        """
        shown = self.image.copy()
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        if not self.maps and self.foreign is None:
            return shown, None
        left, top, right, bottom = (edge * shown.width / self.image.width for edge in self.prediction.view_box)
        if self.foreign is not None:
            heat, peak = self.foreign.map, FOREIGN_PEAK
        else:
            heat, peak = (self.prediction.heatmaps or {})[label], self.peak(common_scale)
        return shown, overlay(shown, heat, (left, top, right, bottom), opacity=opacity, peak=peak)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be said beside the prediction, most important first."""
        return warnings(self.metrics, has_detector=self.prediction.checks.ood_score is not None)

    @property
    def morphology(self) -> dict[str, str]:
        """Name of a measurement of the cell → its value and place among the training cells, in words."""
        return morphology_text(self.measured, self.metrics.get("morphology") or {}, self.um_per_pixel)

    def map_text(self, label: str) -> str:
        """A class's Grad-CAM map in words."""
        if self.foreign is not None:
            return t("map_foreign")
        if not self.maps:
            return "" if self.prediction.outcome in REFUSED else t("no_map")
        text = map_text(self.maps[label], self.map_shares[label], label)
        return f"{text} {weak_map_text(self.maps, label, self.scale.weak)}".strip()

    def facts(self) -> dict[str, str]:
        """How the prediction was made: the model, its revision, the time it took and the part of the picture it saw."""
        left, top, right, bottom = self.prediction.view_box
        width, height = round(right - left), round(bottom - top)
        seen = t("seen", width=width, height=height, full_width=self.image.width, full_height=self.image.height)
        return {
            t("fact_model"): self.model,
            t("fact_revision"): self.prediction.revision[:12] or t("local_files"),
            t("fact_time"): milliseconds(self.prediction.seconds),
            t("fact_seen"): t("seen_framed", seen=seen) if (width, height) != self.image.size else seen,
        }

    def summary(self, point: str = "", label: str = "") -> str:
        """The whole result as plain text: decision, warnings, Grad-CAM map in words, model and research notice.

        `label` is the class whose map is described; "" for the most probable one.
        """
        predicted, decided = self.prediction, self.decision_text(point)
        lines = (
            decided.headline,
            decided.because,
            self.trust(point),
            self.remark or (t("api_field") if predicted.outcome == NOT_A_CELL else ""),
            *self.warnings,
            self.map_text(label or predicted.most_probable),
            "; ".join(f"{name}: {value}" for name, value in self.morphology.items()),
            f"{about_model(self.model, predicted.revision)}; {milliseconds(predicted.seconds)}.",
            t("notice"),
        )
        return "\n".join(line for line in lines if line)


def predict_cell(
    models: ModelCache,
    image: Image.Image,
    caption: str,
    choice: str | None,
    *,
    field_share: float | None = None,
    um_per_pixel: float | None = None,
    remark: str = "",
) -> CellResult:
    """Predict a picture once, with every class's Grad-CAM map.

    `field_share` is, of a field's cell, the share of the field's cells that are in distribution.
    """
    predictor = models.predictor(choice)
    metrics, thresholds = predictor.release.metrics, predictor.thresholds
    (prediction,) = models.predict(predictor, [image], explain=True)
    if field_share is not None:
        prediction = prediction.in_field(field_share, thresholds)
    foreign = None
    if prediction.outcome in REFUSED and predictor.ood is not None:
        framed, detector = predictor.release.preprocessing.frame(image), predictor.ood
        foreign = Foreign(detector.group_distances(framed), HeatMap(detector.colour_excess(framed), ""))
    return CellResult(
        image,
        caption,
        str(choice),
        prediction,
        thresholds,
        EvidenceScale.from_metrics(metrics),
        metrics,
        measure_cell(image),
        um_per_pixel,
        foreign=foreign,
        remark=remark,
    )


def changed(models: ModelCache, result: CellResult, images: Sequence[Image.Image]) -> list[CellResult]:
    """A result's picture in other forms, predicted by the same model."""
    share = result.prediction.checks.field_share
    predictions = models.predict(models.predictor(result.model), images, explain=True)
    return [
        replace(
            result,
            image=image,
            foreign=None,
            example=0,
            prediction=one if share is None else one.in_field(share, result.thresholds),
        )
        for image, one in zip(images, predictions, strict=True)
    ]


def turned(models: ModelCache, result: CellResult) -> list[CellResult]:
    """The result, and those of its picture turned by 90°, 180° and 270°."""
    return [result, *changed(models, result, [result.image.rotate(angle, expand=True) for angle in TURNS[1:]])]


def part_at(image: Image.Image, across: int, down: int) -> str:
    """The part that a pixel lies on; "" of a picture without parts."""
    return next((name for name, part in parts_of(image).items() if part[down, across]), "")


def covered(models: ModelCache, result: CellResult, names: Sequence[str] = ()) -> dict[str, CellResult]:
    """Part → the result once it is painted over in the mean colour of the part beside it; no `names` are all parts."""
    parts, pixels = parts_of(result.image), np.asarray(result.image)
    beside = {"nucleus": ("cytoplasm", "outside"), "cytoplasm": ("outside",), "outside": ("cytoplasm", "outside")}
    images = {}
    for name in [one for one in parts if one in names or not names]:
        colour = next(parts[one] for one in (*beside[name], name) if one in parts)
        painted = pixels.copy()
        painted[parts[name]] = pixels[colour].mean(axis=0)
        images[name] = Image.fromarray(painted)
    return dict(zip(images, changed(models, result, list(images.values())), strict=True)) if images else {}


@dataclass(frozen=True)
class Foreign:
    """What sets a picture apart from a release's training cells.

    Attributes:
        distances: "colour", "texture" and "shape" → distance from the training cells; 1 is as far as is usual.
        map: where its colours are unusual, in standard deviations beyond the first two.
    """

    distances: Mapping[str, float]
    map: HeatMap


def example(number: int) -> tuple[Image.Image, str]:
    """One of the six synthetic cells and its caption; drawn, never stored on disk."""
    return _example(number), t("synthetic_cell", label=EXAMPLES[number][0])


def smear_example(number: int) -> tuple[Image.Image, str]:
    """One of the four synthetic smears, for models that read a field as one picture, and its caption."""
    return _example(number, smear=True), t("synthetic_smear", label=SMEAR_EXAMPLES[number][0])


@cache
def _example(number: int, smear: bool = False) -> Image.Image:
    if smear:
        return Image.fromarray(smear_picture(*SMEAR_EXAMPLES[number]))
    label, subject, cell = EXAMPLES[number]
    return Image.fromarray(draw_cell(label, subject=subject, cell=cell).image)


# The saved picture, in pixels; LETTERS fit into a line.
SIDE, MARGIN, LINE, LETTERS = 450, 20, 24, 105
INK, QUIET, ACCENT, TRACK = "#18181b", "#55515f", "#6b3fa0", "#e7e4ee"


def save_result(
    result: CellResult, label: str, opacity: float, point: str | None = "", common_scale: bool = False
) -> File:
    """The result as shown, as a PNG: the class, opacity and operating point that were chosen."""
    return png_file(
        f"leukoscope-{safe_stem(result.caption) or 'cell'}.png",
        result_image(result, label, opacity, point or "", common_scale),
        title=t("saved_title", caption=result.caption, model=result.model),
        model=result.model,
        revision=result.prediction.revision,
        description=result.summary(point or "", label),
    )


def result_image(
    result: CellResult, label: str, opacity: float, point: str = "", common_scale: bool = False
) -> Image.Image:
    """Cell and Grad-CAM map side by side, the colour scale, the probability bars and the whole text, as RGB."""
    pictures = []
    for picture in filter(None, result.pictures(label, opacity, common_scale)):
        factor = SIDE / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        pictures.append(picture.resize(size))
    shares, decided = result.shares(point), result.decision_text(point)
    lines = [line for text in result.summary(point, label).splitlines() for line in textwrap.wrap(text, LETTERS)]
    width, captions_at = 2 * SIDE + 3 * MARGIN, max(picture.height for picture in pictures) + MARGIN + 4
    bars_at = captions_at + 2 * LINE + MARGIN
    text_at = bars_at + (2 * len(shares) + (not decided.has_class)) * LINE + MARGIN
    drawn = Image.new("RGB", (width, text_at + len(lines) * LINE + MARGIN), "white")
    pen, font = ImageDraw.Draw(drawn), drawing_font(15)

    for column, (picture, caption) in enumerate(
        zip(pictures, (result.caption, t("map_title", label=label)), strict=False)
    ):
        left = MARGIN + column * (SIDE + MARGIN)
        drawn.paste(picture, (left, MARGIN))
        pen.text((left, captions_at), caption if len(caption) <= 52 else f"{caption[:51]}…", QUIET, font)
    if result.maps:
        colours = map_colours(160)[None].repeat(12, axis=0)
        drawn.paste(Image.fromarray(colours), (left + 18, captions_at + LINE + 4))
        pen.text((left, captions_at + LINE), "0", QUIET, font)
        pen.text((left + 186, captions_at + LINE), f"{result.peak(common_scale):.3g}", QUIET, font)

    top = bars_at
    if not decided.has_class:
        pen.text((MARGIN, top), t("folded_probabilities"), QUIET, font)
        top += LINE
    for rank, (name, share) in enumerate(shares.items()):
        named = f"{name} ({meaning(name)})" if meaning(name) else name
        pen.text((MARGIN, top), named, INK, font)
        pen.text((width - MARGIN, top), percent(share), INK, font, anchor="ra")
        track = (MARGIN, top + LINE, width - MARGIN, top + LINE + 10)
        pen.rectangle(track, TRACK)
        if share * (width - 2 * MARGIN) >= 1:
            colour = ACCENT if rank == 0 and decided.has_class else QUIET
            pen.rectangle((*track[:2], MARGIN + share * (width - 2 * MARGIN), track[3]), colour)
        top += 2 * LINE
    for number, line in enumerate(lines):
        place = (MARGIN, text_at + number * LINE)
        pen.text(place, line, INK, drawing_font(18) if number == 0 else font)
    return drawn
