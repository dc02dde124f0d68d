"""What every model answers for one picture, without Gradio: predicted once, then drawn and told as often as one likes.

`answer(picture, models, names)` asks each release once for the picture's decision, which is that of one view as
everywhere in Leukoscope, and for its eight turned and mirrored views: the map is their mean, turned back, and a row
says in how many of them the class is the same. The page, the API at /predict and the saved PNG show the same `Row`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, gaussian_filter
from skimage.filters import threshold_otsu

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.images import foreground, is_cut_out
from leukoscope.data.smear import UnusableSmear, measure_stain
from leukoscope.inference.gradcam import overlay, share_within
from leukoscope.inference.prediction import NOT_A_CELL, REFUSED, Decision, HeatMap, Prediction, Thresholds, turned
from leukoscope.reports import text
from leukoscope.reports.text import DecisionText, percent
from leukoscope.synthetic import SMEAR_LABELS, draw_cell, smear_picture
from leukoscope.web.model_cache import ModelCache

# Redrawing stays instant and the page light; one cell is a few hundred pixels anyway.
SHOWN_SIDE, OPACITY = 640, 0.55
FOREIGN_PEAK = 4.0  # standard deviations at the upper end of the colour scale
# Label, subject and cell of each; chosen from those that both C-NMC releases give their class.
EXAMPLES = (("ALL", 0, 4), ("ALL", 11, 4), ("ALL", 4, 5), ("HEM", 0, 0), ("HEM", 9, 0), ("HEM", 7, 0))
SMEAR_EXAMPLES = tuple(zip(SMEAR_LABELS, (0, 0, 4, 4), strict=True))  # those that are in distribution
WITHOUT = {
    "nucleus": "Without its nucleus",
    "cytoplasm": "Without its cytoplasm",
    "outside": "Without its surroundings",
}


@dataclass(frozen=True)
class Picture:
    """One picture of a visitor, in memory only.

    Attributes:
        image, caption: upright RGB, and its file name, or which synthetic one it is.
        um_per_pixel: its scale; None where it is not known.
        remark: what was done to the picture before.
        example: number of the synthetic picture, from 1; 0 for any other.
        field_share: of a cell cut out of a smear, the share of the smear's cells that are in distribution.
    """

    image: Image.Image
    caption: str
    um_per_pixel: float | None = None
    remark: str = ""
    example: int = 0
    field_share: float | None = None

    @cached_property
    def on_black(self) -> bool:
        """Whether this is a cell cut out on black."""
        return is_cut_out(self.image)

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Part → where it lies, (H, W) bool; no part that is empty.

        "nucleus", "cytoplasm" and "outside" of a cell cut out on black; of a smear "nucleus" is all that is stained so,
        and "outside" the rest.
        """
        pixels = np.asarray(self.image)
        if self.on_black:
            cell, blur = foreground(pixels), max(pixels.shape) / 64
            density = -np.log((pixels[..., 1] + 1.0) / 256) * cell
            smooth = gaussian_filter(density, blur) / np.maximum(gaussian_filter(cell.astype(float), blur), 1e-6)
            nucleus = cell & binary_fill_holes(cell & (smooth >= threshold_otsu(smooth[cell])))
            parts = {"nucleus": nucleus, "cytoplasm": cell & ~nucleus, "outside": ~cell}
        else:
            try:
                stain = measure_stain(self.image)
            except UnusableSmear:
                return {}
            nucleus = stain.nuclear(pixels) > stain.threshold if stain.share else np.zeros(pixels.shape[:2], bool)
            parts = {"nucleus": nucleus, "outside": ~nucleus} if nucleus.any() else {}
        return {name: part for name, part in parts.items() if part.any()}


@dataclass(frozen=True)
class Foreign:
    """What sets a picture apart from a release's training cells.

    Attributes:
        distances: "colour", "texture" and "shape" → distance from the training cells; 1 is as far as is usual.
        map: where its colours are unusual, in standard deviations beyond the first two.
    """

    distances: Mapping[str, float]
    map: HeatMap


@dataclass(frozen=True)
class Row:
    """What one model says of a picture; lives in a visitor's session.

    Attributes:
        model: the name by which it was chosen.
        prediction: its decision is that of one view, its maps are the mean over eight; None where there is an error.
        foreign: what sets a refused picture apart; None of any other, and where the release has no detector.
        error: why the model gives no answer.
    """

    picture: Picture
    model: str
    prediction: Prediction | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    foreign: Foreign | None = None
    error: str = ""

    @cached_property
    def thresholds(self) -> Thresholds:
        """What the release decides by."""
        return Thresholds.from_metrics(self.metrics)

    @property
    def known(self) -> Prediction:
        """The prediction, of a row that has one."""
        assert self.prediction is not None, self.error
        return self.prediction

    @property
    def gives_a_class(self) -> bool:
        """Whether the model decides for a class."""
        return self.prediction is not None and self.prediction.decision.label is not None

    @property
    def refused(self) -> bool:
        """Whether the picture is foreign to the model."""
        return self.prediction is not None and self.prediction.outcome in REFUSED

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Class → (h, w) map, all on one scale; none of a picture that gets no class because it is foreign."""
        if self.refused:
            return {}
        return {label: heat.evidence for label, heat in (self.known.heatmaps or {}).items()}

    @property
    def peak(self) -> float:
        """The highest value of this picture's maps, the upper end of their colour scale; 0 where there are none."""
        return max((float(heat.max()) for heat in self.maps.values()), default=0.0)

    def called(self) -> str:
        """The class decided on; where there is none, the most probable one."""
        return self.known.decision.label or self.known.most_probable

    def shares(self) -> dict[str, float]:
        """Class → probability: the class decided on, then the others, most probable first."""
        called, known = self.called(), self.known.probabilities
        return dict(sorted(known.items(), key=lambda item: (item[0] != called, -item[1])))

    def decision_text(self) -> DecisionText:
        """The decision in words; a map that lies on its nuclei less than an indifferent one is a caution with it."""
        said = text.decision_text(self.known.decision, self.known.probabilities, self.metrics)
        heat, nuclei = self.maps.get(self.called()), self.picture.parts.get("nucleus")
        if heat is None or not heat.any() or self.picture.on_black or nuclei is None:
            return said
        left, top, right, bottom = (round(edge) for edge in self.known.view_box)
        seen = np.asarray(Image.fromarray(nuclei).crop((left, top, right, bottom)))
        inside, filled = share_within(heat, seen), float(seen.mean())
        if inside >= filled:
            return said
        caution = (
            f"Only {percent(inside)} of its map lies on nuclei, which fill {percent(filled)}: it reacts to their "
            "surroundings."
        )
        return replace(said, because=f"{said.because} {caution}".strip())

    @property
    def orientations(self) -> list[Decision]:
        """The decision in each of the eight orientations, as given first; none of a picture that is refused."""
        if self.refused or self.prediction is None:
            return []
        return [self.thresholds.decide(one, replace(self.known.checks, on_cell=None)) for one in self.known.views]

    def agreement(self) -> str:
        """In how many orientations the class is the same."""
        if not (found := self.orientations):
            return ""
        probable = [max(one, key=one.__getitem__) for one in self.known.views]
        return text.agreement_text(self.known.most_probable, found, probable)

    def pictures(self, label: str) -> tuple[Image.Image, Image.Image | None]:
        """The picture and the map of one class over it, at most 640 px on a side; no forward pass.

        All classes of a picture share one colour scale. A refused picture is marked where it is foreign. A model
        without maps has no overlay.
        """
        shown = self.picture.image.copy()
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        if self.prediction is None or (not self.maps and self.foreign is None):
            return shown, None
        left, top, right, bottom = (edge * shown.width / self.picture.image.width for edge in self.known.view_box)
        if self.foreign is not None:
            heat, peak = self.foreign.map, FOREIGN_PEAK
        else:
            heat, peak = (self.known.heatmaps or {})[label], self.peak
        return shown, overlay(shown, heat.evidence, (left, top, right, bottom), opacity=OPACITY, peak=peak)

    def map_text(self, label: str) -> str:
        """A class's map in words."""
        if self.foreign is not None:
            return "Coloured where its colours are unlike those of the training cells."
        if not self.maps:
            return "" if self.refused else "This model has no map: its last features are no map of channels."
        said = text.map_text(self.maps[label], label)
        return f"{said} {text.weak_map_text(self.maps, label, self.thresholds.weak_evidence)}".strip()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be said beside the prediction, most important first."""
        return text.warnings(self.metrics, has_detector=self.known.checks.ood_score is not None)

    @property
    def facts(self) -> dict[str, str]:
        """How the prediction was made."""
        known, image = self.known, self.picture.image
        left, top, right, bottom = known.view_box
        seen = f"{round(right - left)} × {round(bottom - top)} of {image.width} × {image.height} pixels"
        return {
            "Model": f"{self.model}, {known.revision[:12] or 'local files'}",
            "Trained on": text.model_text(self.metrics).removeprefix("Trained on ") or "not told",
            "Seen by the model": seen,
        }

    def summary(self, label: str = "") -> str:
        """The whole result as plain text: decision, warnings, map in words, model and research notice.

        `label` is the class whose map is described; "" for the most probable one.
        """
        known, decided = self.known, self.decision_text()
        remark = "" if known.outcome != NOT_A_CELL else "The cells of a smear are read by /field."
        lines = (
            decided.headline,
            decided.because,
            text.trust_text(known.decision, self.metrics),
            self.agreement(),
            self.picture.remark or remark,
            *self.warnings,
            self.map_text(label or known.most_probable),
            text.MAP_CAVEAT if self.maps else "",
            f"{text.about_model(self.model, known.revision)}.",
            RESEARCH_NOTICE,
        )
        return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class Answer:
    """What the models say of one picture.

    Attributes:
        rows: one a model, the best model first.
        waiting: names of the models that have not answered yet.
    """

    picture: Picture
    rows: tuple[Row, ...] = ()
    waiting: tuple[str, ...] = ()

    @property
    def best(self) -> int | None:
        """The row to open: the first with a class, else that abstains, else the first; None while it may change."""
        for suits in (lambda row: row.gives_a_class, lambda row: row.prediction is not None and not row.refused):
            for number, row in enumerate(self.rows):
                if suits(row):
                    return number
            if self.waiting:
                return None
        return 0 if self.rows else None


def answer(picture: Picture, models: ModelCache, names: Sequence[str]) -> Answer:
    """Ask every model of these names for one picture; what fails is the row's error."""
    *_, last = answering(picture, models, names)
    return last


def answering(picture: Picture, models: ModelCache, names: Sequence[str]) -> Iterator[Answer]:
    """As `answer`, with each model's row as soon as it is there."""
    found = Answer(picture)
    for number, name in enumerate(names):
        try:
            row = ask(picture, models, name)
        except LeukoscopeError as error:
            row = Row(picture, name, error=str(error))
        found = Answer(picture, (*found.rows, row), tuple(names[number + 1 :]))
        yield found


def ask(picture: Picture, models: ModelCache, name: str) -> Row:
    """Ask one model.

    Raises:
        LeukoscopeError: the model cannot be loaded, or the picture not be predicted.
    """
    predictor = models.predictor(name)
    (prediction,) = models.predict(predictor, [picture.image], explain=True)
    if picture.field_share is not None:
        prediction = prediction.in_field(picture.field_share, predictor.thresholds)
    foreign = None
    if prediction.outcome in REFUSED and predictor.ood is not None:
        framed, detector = predictor.release.preprocessing.frame(picture.image), predictor.ood
        foreign = Foreign(detector.group_distances(framed), HeatMap(detector.colour_excess(framed), ""))
    return Row(picture, name, prediction, predictor.release.metrics, foreign)


def names_for(models: ModelCache, picture: Picture, names: Sequence[str]) -> list[str]:
    """Of these models those that know such pictures: for a cell on black, those that were trained on such cells."""
    if not picture.on_black:
        return list(names)
    return [name for name in names if models.takes_cut_outs(name) is not False] or list(names)


def covered(row: Row, models: ModelCache, parts: Sequence[str] = ()) -> dict[str, Row]:
    """Part → the row once it is painted over in the mean colour of the part beside it; no `parts` are all."""
    found, pixels = row.picture.parts, np.asarray(row.picture.image)
    beside = {"nucleus": ("cytoplasm", "outside"), "cytoplasm": ("outside",), "outside": ("cytoplasm", "outside")}
    images = {}
    for name in [one for one in found if one in parts or not parts]:
        colour = next(found[one] for one in (*beside[name], name) if one in found)
        painted = pixels.copy()
        painted[found[name]] = pixels[colour].mean(axis=0)
        images[name] = Image.fromarray(painted)
    if not images:
        return {}
    share = row.picture.field_share
    predictions = models.predict(models.predictor(row.model), list(images.values()))
    return {
        name: replace(
            row,
            picture=replace(row.picture, image=image, example=0),
            prediction=one if share is None else one.in_field(share, row.thresholds),
            foreign=None,
        )
        for (name, image), one in zip(images.items(), predictions, strict=True)
    }


def cover_text(row: Row, found: Mapping[str, Row]) -> str:
    """What the class decided on, or else the most probable one, loses without each part."""
    if not found:
        return "No nucleus is told apart in this picture."
    label = row.called()
    before, said = percent(row.known.probabilities[label]), []
    for name, one in found.items():
        after = percent(one.known.probabilities[label])
        refused = (
            ", which it would refuse" if one.refused else ", which leaves it unsure" if not one.gives_a_class else ""
        )
        said.append(f"{WITHOUT[name]}: {label} {before} → {after}{refused}.")
    return " ".join(said)


def views_of(image: Image.Image) -> list[Image.Image]:
    """A picture in its eight orientations, as it is first."""
    return [Image.fromarray(np.ascontiguousarray(turned(np.asarray(image)[None], view)[0])) for view in range(8)]


def example(number: int, *, smear: bool = False) -> Picture:
    """One of the six synthetic cells, or of the four smears for models of whole pictures; drawn, never stored."""
    known = SMEAR_EXAMPLES if smear else EXAMPLES
    number = min(max(number, 1), len(known))
    kind = "smear, " if smear else ""
    return Picture(_drawn(number, smear), f"Synthetic {kind}{known[number - 1][0]}", example=number)


@cache
def _drawn(number: int, smear: bool) -> Image.Image:
    if smear:
        return Image.fromarray(smear_picture(*SMEAR_EXAMPLES[number - 1]))
    label, subject, cell = EXAMPLES[number - 1]
    return Image.fromarray(draw_cell(label, subject=subject, cell=cell).image)
