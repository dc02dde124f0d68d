"""What every model answers for one picture, without Gradio: predicted once, then drawn and told as often as one likes.

`answering` asks each release first for the picture's decision, which is that of one view as everywhere in Leukoscope,
then for its eight turned and mirrored views: the map is their mean, turned back. Page, API and PNG show the same `Row`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from huggingface_hub import constants, get_session
from PIL import Image
from scipy.ndimage import binary_fill_holes
from scipy.ndimage import label as label_pieces
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import regionprops

from leukoscope import RESEARCH_NOTICE, DataError, LeukoscopeError
from leukoscope.data.images import UnreadableImage, foreground, is_cut_out, is_dark, to_rgb
from leukoscope.data.loading import StreamedCell, stream_cells
from leukoscope.data.registry import DatasetInfo, trained_on, trained_on_cut_outs
from leukoscope.data.smear import Stain, UnusableSmear, looks_like_smear, measure_stain
from leukoscope.inference.gradcam import map_colours, overlay, share_within
from leukoscope.inference.prediction import NOT_A_CELL, REFUSED, Decision, Prediction, Reason, Thresholds, turned
from leukoscope.models.map_check import OCCLUSION_METHOD, MapCheck
from leukoscope.reports import text
from leukoscope.reports.text import DecisionText, percent
from leukoscope.reports.trust import training_subject, trust_rows
from leukoscope.synthetic import EXAMPLE_CELLS, EXAMPLE_SMEARS, example_cell, smear_picture
from leukoscope.web.model_cache import ModelCache

# Redrawing stays instant and the page light; one cell is a few hundred pixels anyway.
CELL_SIDE = 640
OPACITY = 0.8
GREY_BELOW_MAP = 40  # 0–255, of a dark cell: over it, the colours of a map's scale are what they are on the cell
LEAST_CELL = 0.002  # share of a picture on black that a cell covers at least
# What is stained darker in a cell on black is a nucleus where most of it is one piece without deep bays, and where it
# leaves some cytoplasm; else it is darker chromatin within a nucleus.
LEAST_OF_NUCLEUS = 0.9  # share of the darker pixels that the largest piece has at least
LEAST_SOLIDITY = 0.94  # area of the piece over that of its convex hull, at least
LEAST_CYTOPLASM = 0.03  # share of the cell, at least
LEAST_DIFFERENCE = 1e-3  # between the least and the most stained place: below it, all of the cell is alike
HUB_SECONDS = 4  # until it is said that the Hub cannot be reached


@dataclass(frozen=True)
class Picture:
    """One picture of a visitor, in memory only."""

    image: Image.Image  # upright RGB, transparent parts filled
    caption: str  # its file name, or which synthetic one it is
    um_per_pixel: float | None = None
    scale_set: bool = False  # whether the visitor set that scale on the page
    remark: str = ""  # what was done to it before
    example: int = 0  # number of the synthetic picture, from 1; 0 for any other
    field_share: float | None = None  # of a cell of a smear, the share of the smear's cells that are in distribution
    rim: Image.Image | None = None  # shown over a cell that was cut out of a smear, where it is shown brighter
    transparent: Image.Image | None = None  # the same as RGBA where it has transparent parts

    @classmethod
    def opened(cls, image: Image.Image, caption: str, um_per_pixel: float | None = None) -> Picture:
        """A picture opened with `ground=None`. Its transparent parts are black until a model is asked."""
        transparent = None
        if image.mode == "RGBA":
            transparent = image
        return cls(to_rgb(image, caption), caption, um_per_pixel, transparent=transparent)

    def on(self, ground: tuple[int, int, int]) -> Picture:
        """The picture with its transparent parts in this colour."""
        if self.transparent is None:
            return self
        return replace(self, image=to_rgb(self.transparent, self.caption, ground=ground))

    @cached_property
    def on_black(self) -> bool:
        """Whether this is a cell cut out on black."""
        return is_cut_out(self.image)

    @cached_property
    def is_dark(self) -> bool:
        """Whether this is a cell on black that is shown brighter."""
        return is_dark(self.image, on_black=self.on_black)

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Part → where it lies, (H, W) bool, none empty: "nucleus", of a cell cut out "cytoplasm", and "outside"."""
        parts = self._parts_on_black() if self.on_black else self._parts_of_smear()
        return {name: part for name, part in parts.items() if part.any()}

    def _parts_on_black(self) -> dict[str, np.ndarray]:
        """The parts of a cell cut out on black; only what is outside where no nucleus is told apart."""
        pixels = np.asarray(self.image)
        cell = foreground(pixels)
        stain = Stain(np.full(3, 255.0))  # a cell alone has no plasma: white stands for it
        blur = max(pixels.shape) / 32  # over the cell alone: its edge is no paler than its middle
        stained = gaussian(stain.nuclear(pixels) * cell, blur)
        level = stained / np.maximum(gaussian(cell.astype(float), blur), 1e-6)
        if not cell.any() or np.ptp(level[cell]) < LEAST_DIFFERENCE:
            return {"outside": ~cell}
        nucleus = cell & binary_fill_holes(cell & (level > threshold_otsu(level[cell])))
        cytoplasm = cell & ~nucleus
        if cytoplasm.sum() < LEAST_CYTOPLASM * cell.sum() or not _is_one_round_piece(nucleus):
            return {"outside": ~cell}
        return {"nucleus": nucleus, "cytoplasm": cytoplasm, "outside": ~cell}

    def _parts_of_smear(self) -> dict[str, np.ndarray]:
        """The nuclei of a smear and what lies outside them; {} where nothing is stained as a nucleus."""
        try:
            stain = measure_stain(self.image)
        except UnusableSmear:
            return {}
        nucleus = (stain.nuclear(np.asarray(self.image)) > stain.threshold) & (stain.share > 0)
        if not nucleus.any():
            return {}
        return {"nucleus": nucleus, "outside": ~nucleus}


def _is_one_round_piece(area: np.ndarray) -> bool:
    """Whether (H, W) bool is mostly one piece without deep bays."""
    pieces = regionprops(label_pieces(area)[0])
    largest = max(pieces, key=lambda piece: piece.area)
    return largest.area >= LEAST_OF_NUCLEUS * area.sum() and largest.solidity >= LEAST_SOLIDITY


def scale_colours(number: int) -> np.ndarray:
    """(number, 3) uint8: the colours of a map from the lowest value to the peak, as they lie over a dark cell."""
    warmth = np.linspace(0, 1, number)
    cover = (OPACITY * np.clip(2 * warmth, 0, 1))[:, None]
    return np.round(cover * map_colours(number) + (1 - cover) * GREY_BELOW_MAP).astype(np.uint8)


def with_rim(cell: Image.Image, rim: Image.Image) -> Image.Image:
    """RGB: a cell that was cut out of a smear below the rim that is painted over it, as large as the rim."""
    return Image.alpha_composite(cell.convert("RGBA").resize(rim.size), rim).convert("RGB")


def holds_no_cell(image: Image.Image, *, on_black: bool) -> bool:
    """Whether an RGB picture holds neither a cell on black nor what is stained as in a smear."""
    if on_black:
        return bool(foreground(np.asarray(image)).mean() < LEAST_CELL)
    return not looks_like_smear(image)


@dataclass(frozen=True)
class Row:
    """What one model says of a picture; lives in a visitor's session."""

    picture: Picture
    model: str  # the name by which it was chosen
    prediction: Prediction | None = None  # decided by one view, its maps the mean over eight; None with an error
    metrics: Mapping[str, Any] = field(default_factory=dict)
    # Of a refused picture: colour, texture, shape → how many times as far as a training cell.
    distances: Mapping[str, float] | None = None
    error: str = ""  # why the model gives no answer
    pending: bool = False  # whether its eight views are still to be computed

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
    def reads_whole_pictures(self) -> bool:
        """Whether the model was trained on pictures with what surrounds a cell, not on cells cut out on black."""
        return trained_on_cut_outs(self.metrics) is False

    @property
    def refused(self) -> bool:
        """Whether the picture is foreign to the model."""
        return self.prediction is not None and self.prediction.outcome in REFUSED

    @property
    def changes_pending(self) -> bool:
        """Whether the picture is still to be predicted under small changes, as every picture that is not refused is."""
        return self.prediction is not None and not self.refused and not self.prediction.changed

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Class → (h, w) map, all on one scale; none of a picture that gets no class because it is foreign."""
        if self.refused or self.prediction is None:
            return {}
        return {label: heat.evidence for label, heat in (self.known.heatmaps or {}).items()}

    @property
    def peak(self) -> float:
        """The highest value of this picture's maps, the upper end of their colour scale; 0 where there are none."""
        return max((float(heat.max()) for heat in self.maps.values()), default=0.0)

    @property
    def pixels(self) -> np.ndarray:
        """The picture as (H, W, 3) uint8."""
        return np.asarray(self.picture.image)

    @cached_property
    def shows_no_cell(self) -> bool:
        """Whether the picture is refused and holds neither a cell on black nor what is stained as in a smear."""
        return self.refused and holds_no_cell(self.picture.image, on_black=self.picture.on_black)

    def verdict(self) -> str:
        """The decision in a few words, as it heads the answer."""
        if self.shows_no_cell:
            return text.NOTHING_FOUND
        decision = self.decision_text()
        if decision.has_class or not self.refused:
            return decision.short
        if self.known.outcome == NOT_A_CELL:
            return "No class: a smear, not one cell"
        return text.FOREIGN_VERDICT

    def caveats(self) -> list[str]:
        """What must be known before the answer is used, most important first."""
        lines = list(text.warnings(self.metrics, has_detector=self.known.checks.ood_score is not None))
        subject = training_subject(self.metrics, self.picture.caption)
        if subject:
            lines.append(text.in_training_text(subject))
        if self.shows_no_cell:
            lines.append("Nothing in this picture is stained as the nucleus of a white blood cell is.")
        elif self.refused:
            lines.append(text.foreign_text(self.known.decision))
        else:
            lines.append(" ".join(self._doubts()))
        return [line for line in lines if line]

    def _doubts(self) -> list[str]:
        """Why the model is not sure, or doubts its answer; a map that failed its checks is no reason to."""
        likely = self.known.most_probable
        doubts = []
        for reason in self.known.decision.reasons:
            if reason is not self.off_cell or not self._off_cell_map_failed:
                doubts.append(text.brief_reason(reason, likely))
        if self.known.map_check.passed is not False:
            doubts.append(self.caution_of_nuclei())
        return [doubt for doubt in doubts if doubt]

    @property
    def _off_cell_map_failed(self) -> bool:
        """Whether the maps by which `off_cell` is told failed their checks."""
        return MapCheck.from_metrics(self.metrics).passed is False

    @property
    def off_cell(self) -> Reason | None:
        """Why the model doubts its answer where that is that little of its map lies on the cell; else None."""
        reasons = self.known.decision.reasons
        return next((reason for reason in reasons if reason.code == "explanation_off_cell"), None)

    def help_text(self) -> str:
        """What to do about a refused picture; "" for any other."""
        if not self.refused:
            return ""
        cell = "a picture of a stained smear"
        alternative = ""
        source = trained_on(self.metrics) if self.metrics else None
        if source is not None and source.background != "black":
            cell = f"a smear stained as those of {source.title}"
        elif source is not None:
            cell = f"a cell cut out on black, stained as those of {source.title}"
            alternative = ", or a stained smear"
        if self.shows_no_cell:
            return f"Give {cell}{alternative}."
        return f"Train or recalibrate a model on such cells; or give {cell}."

    def called(self) -> str:
        """The class decided on; where there is none, the most probable one."""
        return self.known.decision.label or self.known.most_probable

    def shares(self) -> dict[str, float]:
        """Class → probability: the class decided on, then the others, most probable first."""
        called = self.called()
        probabilities = self.known.probabilities
        labels = sorted(probabilities, key=lambda label: (label != called, -probabilities[label]))
        return {label: probabilities[label] for label in labels}

    def decision_text(self) -> DecisionText:
        """The decision in words; a map that lies on its nuclei less than an indifferent one is a caution with it.

        Where it cites a map, it also says whether the model's maps failed their checks.
        """
        decision = text.decision_text(self.known.decision, self.known.probabilities, self.metrics)
        because = " ".join([decision.because, *self._map_cautions()]).strip()
        return replace(decision, because=because)

    def _map_cautions(self) -> list[str]:
        """What its map says against the answer beyond the reasons, and whether the model's maps failed their checks."""
        caution = self.caution_of_nuclei()
        cautions = [caution] if caution else []
        off_cell_failed = self.off_cell is not None and self._off_cell_map_failed
        if off_cell_failed or (caution and self.known.map_check.passed is False):
            cautions.append(text.MAPS_FAILED)
        return cautions

    def caution_of_nuclei(self) -> str:
        """That the map of a smear lies on its nuclei less than an indifferent one; "" where it does not."""
        heat = self.maps.get(self.called())
        nuclei = self.picture.parts.get("nucleus")
        if heat is None or not heat.any() or self.picture.on_black or nuclei is None:
            return ""
        left, top, right, bottom = (round(edge) for edge in self.known.view_box)
        seen = np.asarray(Image.fromarray(nuclei).crop((left, top, right, bottom)))
        inside = share_within(heat, seen)
        filled = float(seen.mean())
        if inside >= filled:
            return ""
        shares = f"Only {percent(inside)} of its map lies on nuclei, which fill {percent(filled)}"
        return f"{shares}: it reacts to their surroundings."

    @property
    def orientations(self) -> list[Decision]:
        """The decision in each of the eight orientations, as given first; none of a picture that is refused."""
        if self.refused or self.prediction is None:
            return []
        checks = replace(self.known.checks, on_cell=None)
        return [self.thresholds.decide(probabilities, checks) for probabilities in self.known.views]

    def agreement(self) -> str:
        """In how many orientations the class is the same."""
        if self.pending:
            return "Computing eight orientations …"
        decisions = self.orientations
        if not decisions:
            return ""
        probable = [max(probabilities, key=probabilities.__getitem__) for probabilities in self.known.views]
        return text.agreement_text(self.known.most_probable, decisions, probable)

    @property
    def is_class_lost_by_turning(self) -> bool:
        """Whether the class that the model gives is that of no more than half of the orientations."""
        decisions = self.orientations
        if not decisions or not self.gives_a_class:
            return False
        same = sum(decision.label == self.known.most_probable for decision in decisions)
        return 2 * same <= len(decisions)

    def borderline(self) -> str:
        """Under which changes of 5 % the answer is another, or in how many larger ones a class; "" for none."""
        if self.refused:
            return ""
        sentence = text.borderline_text(self.known)
        if not sentence:
            return text.changes_text(self.known)
        others = len(text.other_outcomes(self.known))
        if others == len(self.known.borderline_changes):
            return sentence
        return f"{sentence.rstrip('.')}; in {others} of {len(self.known.changed)} small changes in all."

    def pictures(self, label: str, *, finer: int = 1) -> tuple[Image.Image, Image.Image | None]:
        """The picture and the map of one class over it, at most 640 px on a side.

        All classes of a picture share one colour scale. A model without maps has no overlay. Of a cell on black,
        which is shown enlarged, the map is drawn `finer` times as large, so that the cell's outline has no steps.
        """
        image = self.picture.image.copy()
        image.thumbnail((CELL_SIDE, CELL_SIDE))
        if self.prediction is None or label not in self.maps:
            return image, None
        below = image
        if finer > 1 and self.picture.on_black:
            below = image.resize((finer * image.width, finer * image.height), Image.Resampling.BICUBIC)
            if self.picture.rim is not None:
                below = with_rim(below, self.picture.rim.resize(below.size))
        left, top, right, bottom = (edge * below.width / self.picture.image.width for edge in self.known.view_box)
        drawn = overlay(below, self.maps[label], (left, top, right, bottom), opacity=OPACITY, peak=self.peak)
        return image, drawn

    def map_text(self, label: str) -> str:
        """A class's map in words."""
        if self.pending:
            return "Its map is being computed."
        if self.refused:
            return ""
        if not self.maps:
            return "This model has no map: its last features are no map of channels."
        sentence = text.map_text(self.maps[label], label)
        return f"{sentence} {text.weak_map_text(self.maps, label, self.known.map_check.weak)}".strip()

    def summary(self, label: str = "") -> str:
        """The whole result as plain text; its map is that of the class `label`, "" for the most probable one."""
        prediction = self.known
        decided = self.decision_text()
        remark = self.picture.remark
        if not remark and prediction.outcome == NOT_A_CELL:
            remark = "The cells of a smear are read by /field."
        recognised = [] if self.refused else [row.sentence for row in trust_rows(self.metrics)]
        about_map: tuple[str, ...] = ()
        if self.maps:
            about_map = (text.MAP_CAVEATS[prediction.map_check.method], prediction.map_check.text)
        lines = (
            decided.headline,
            decided.because,
            text.trust_text(prediction.decision, self.metrics),
            *recognised,
            self.agreement(),
            remark,
            *text.warnings(self.metrics, has_detector=prediction.checks.ood_score is not None),
            self.map_text(label or prediction.most_probable),
            *about_map,
            f"{text.about_model(self.model, prediction.revision)}.",
            RESEARCH_NOTICE,
        )
        return "\n".join(line for line in lines if line)


@dataclass(frozen=True)
class Answer:
    """What the models say of one picture."""

    picture: Picture
    rows: tuple[Row, ...] = ()  # one a model, the best model first
    waiting: tuple[str, ...] = ()  # models that have not answered yet, the next one first
    chosen: str = ""  # the model that the visitor opened last

    @property
    def complete(self) -> bool:
        """Whether every model has answered, each with its map."""
        return not self.waiting and not any(row.pending for row in self.rows)

    @property
    def best(self) -> int | None:
        """The row to open; None while it may change.

        That of the model that the visitor chose, unless it refuses the picture; else the first with a class, else the
        first that abstains, else the first.
        """

        def suits(number: int) -> tuple[bool, bool, bool]:
            row = self.rows[number]
            is_read = row.prediction is not None and not row.refused
            return is_read and row.model == self.chosen, row.gives_a_class, is_read

        best = max(range(len(self.rows)), key=suits, default=None)
        if best is None or not self.waiting:
            return best
        is_chosen, gives_a_class, _ = suits(best)
        if is_chosen or (gives_a_class and self.chosen not in self.waiting):
            return best
        return None


def answering(answer: Answer, models: ModelCache, opened: int | None = None) -> Iterator[Answer]:
    """Complete an answer: every model's decision, then the maps, the best model's first, then small changes.

    Each is a step. The first of the models that wait is asked first, the others by how soon they can answer. Small
    changes take as long as a map and are seen of one row only: of the one that is opened, the best where that is None.
    """

    while answer.waiting:
        row = row_of(answer.picture, models, answer.waiting[0], explain=False)
        # A model that was loaded meanwhile comes before those that still load.
        waiting = tuple(models.soonest_first(answer.waiting[1:]))
        answer = replace(answer, rows=(*answer.rows, row), waiting=waiting)
        yield answer
    best = answer.best
    for number in sorted(range(len(answer.rows)), key=lambda number: number != best):
        if answer.rows[number].pending:
            rows = list(answer.rows)
            rows[number] = row_of(answer.picture, models, rows[number].model)
            answer = replace(answer, rows=tuple(rows))
            yield answer
    if opened is None:
        opened = answer.best
    if opened is not None and opened < len(answer.rows) and answer.rows[opened].changes_pending:
        rows = list(answer.rows)
        rows[opened] = under_small_changes(rows[opened], models)
        yield replace(answer, rows=tuple(rows))


def row_of(picture: Picture, models: ModelCache, name: str, *, explain: bool = True) -> Row:
    """What one model answers, as `ask`, or why it gives no answer."""
    try:
        return ask(picture, models, name, explain=explain)
    except LeukoscopeError as error:
        return Row(picture, name, error=str(error))


def under_small_changes(row: Row, models: ModelCache) -> Row:
    """The row with what its model says under small changes, or with why it says nothing."""
    try:
        changed = models.with_small_changes(models.predictor(row.model), row.known)
    except LeukoscopeError as error:
        return Row(row.picture, row.model, error=str(error))
    row = replace(row, prediction=changed)
    key = _example_key(row.model, row.picture)
    if key in models.examples:
        models.examples[key] = row
    return row


def _example_key(model: str, picture: Picture) -> tuple[str, str, int]:
    """By which `ModelCache.examples` knows what a model answers for an example."""
    return model, picture.caption, picture.example


def ask(picture: Picture, models: ModelCache, name: str, *, explain: bool = True) -> Row:
    """Ask one model; of the models that the demo offers, each answers an example once.

    Without `explain` a picture that is not refused gets a row whose map is still to be computed: the one-pass map, or
    the map by covering where the release shows that (`ReleaseInfo.map_method`), which takes longer.

    Raises:
        LeukoscopeError: the model cannot be loaded, or the picture not be predicted.
    """
    is_kept = bool(picture.example) and name in models.names
    key = _example_key(name, picture)
    if is_kept and key in models.examples:
        row: Row = models.examples[key]
        return row
    predictor = models.predictor(name)
    picture = picture.on(predictor.release.blank_rgb)
    predict = models.predict if explain else models.decide
    (prediction,) = predict(predictor, [picture.image], explain=explain)
    if picture.field_share is not None:
        prediction = prediction.in_field(picture.field_share, predictor.thresholds)
    refused = prediction.outcome in REFUSED
    if prediction.heatmaps and not refused and predictor.release.map_method == OCCLUSION_METHOD:
        with_own_map = models.map_by_covering(predictor, prediction)
        if isinstance(with_own_map, UnreadableImage):
            raise with_own_map
        prediction = with_own_map
    distances = None
    if refused and predictor.ood is not None:
        distances = predictor.ood.group_distances(predictor.release.preprocessing.frame(picture.image))
    pending = not explain and not refused
    row = Row(picture, name, prediction, predictor.release.metrics, distances, pending=pending)
    if is_kept and not pending:
        models.examples[key] = row
    return row


def _beside(name: str, parts: Mapping[str, np.ndarray], *, on_black: bool) -> np.ndarray:
    """(H, W) bool: from where the colour is taken that a part is painted over in."""
    neighbours = {"nucleus": ("cytoplasm", "outside"), "cytoplasm": ("outside",), "outside": ("cytoplasm",)}
    for neighbour in neighbours[name]:
        if neighbour in parts:
            return parts[neighbour]
    if on_black:
        # In its own mean colour, what surrounds a cell would stay black.
        return ~parts[name]
    return parts[name]


def covered(row: Row, models: ModelCache) -> dict[str, Row]:
    """Part → the row once it is painted over in the mean colour of the part beside it; {} without parts."""
    parts = row.picture.parts
    pixels = np.asarray(row.picture.image)
    images = {}
    for name, part in parts.items():
        painted = pixels.copy()
        painted[part] = pixels[_beside(name, parts, on_black=row.picture.on_black)].mean(axis=0)
        images[name] = Image.fromarray(painted)
    if not images:
        return {}
    forms = {}
    share = row.picture.field_share
    predictions = models.predict(models.predictor(row.model), list(images.values()))
    for (name, image), prediction in zip(images.items(), predictions, strict=True):
        if share is not None:
            prediction = prediction.in_field(share, row.thresholds)
        forms[name] = replace(row, picture=replace(row.picture, image=image), prediction=prediction)
    return forms


def views_of(image: Image.Image) -> list[Image.Image]:
    """A picture in its eight orientations, as it is first."""
    return [Image.fromarray(np.ascontiguousarray(turned(np.asarray(image)[None], view)[0])) for view in range(8)]


def example(number: int, *, smear: bool = False) -> Picture:
    """One of the six synthetic cells, or of the four smears for models of whole pictures."""
    examples = EXAMPLE_SMEARS if smear else EXAMPLE_CELLS
    return _drawn(min(max(number, 1), len(examples)), smear)


@cache
def _drawn(number: int, smear: bool) -> Picture:
    if smear:
        label, seed = EXAMPLE_SMEARS[number - 1]
        return Picture(Image.fromarray(smear_picture(label, seed)), f"Synthetic smear, {label}", example=number)
    label, column = EXAMPLE_CELLS[number - 1]
    return Picture(Image.fromarray(example_cell(label, column)), f"Synthetic {label}", example=number)


@cache
def real_cells(hub_id: str) -> list[StreamedCell]:
    """Three cells of each class of a data set on the Hub, downloaded once.

    Raises:
        LeukoscopeError: the Hub does not answer; said soon, as what streams from it tries again and again.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception:  # of the client that huggingface_hub has, which changes with its version
        raise DataError(
            f"The real cells ({hub_id}) cannot be reached now: the Hub does not answer. Try again later."
        ) from None
    return stream_cells(hub_id)


def data_of_real_cells(models: ModelCache, names: Sequence[str]) -> DatasetInfo:
    """The first data set with a copy on the Hub that one of these models was trained on.

    Raises:
        LeukoscopeError: none of them was trained on such a data set.
    """
    for name in names:
        data = trained_on(models.predictor(name).release.metrics)
        if data is not None and data.hub_id:
            return data
    listed = ", ".join(names)
    raise DataError(
        f"Real cells cannot be offered: {listed} was trained on data of which no copy on the Hub is known. Give a cell "
        "of your own."
    )
