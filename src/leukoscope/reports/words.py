"""A result in words: the decision, how good the model is, its map. Each picture has its text equivalent here.

The demo, the API and the static page say the same sentences; each is a template that is filled with values.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from leukoscope.data.registry import DATASETS, cells_of, meanings_of_labels
from leukoscope.evaluation.overlap import same_subject
from leukoscope.inference.prediction import ABSTAIN, NOT_A_CELL, OUT_OF_DISTRIBUTION, Decision, Reason
from leukoscope.models.metrics import Interval, Metrics
from leukoscope.reports.tables import has_fewer_subjects, people_text

MEANINGS = meanings_of_labels()
"""What the labels of the registered data sets stand for."""
_OUTCOMES = {ABSTAIN: "not sure", OUT_OF_DISTRIBUTION: "unlike its training cells"}
MAX_CLASSES_IN_A_QUESTION = 5  # so many are named in the question on top of a page
# Said by the demo and the static page; commands and JSON say `inference.prediction.REASON_TEXTS`.
SHORT_OUTCOMES = {
    ABSTAIN: "Not sure",
    OUT_OF_DISTRIBUTION: "Unlike the cells this model knows",
    NOT_A_CELL: "No cell cut out on black",
}
FOREIGN_PARTS = {"ood_colour": "colour", "ood_texture": "texture", "ood_shape": "size or outline"}
"""Code of a reason → what of a picture is unlike the training cells."""
ORIENTATION_NAMES = ("As given", "90°", "180°", "270°", "Mirrored", "Mirrored, 90°", "Mirrored, 180°", "Mirrored, 270°")
FOREIGN_VERDICT = "No class: unlike the cells it knows"
NOTHING_FOUND = "No white blood cell found"
FOREIGN_SENTENCE = (
    "Its {part} is unlike that of the training cells. As a whole it is {times} times as far from them as the limit "
    "allows; 98 of 100 cells of their kind stay below it. This happens with another stain, microscope or kind of cell."
)
_IN_FULL = {"ALL": "a blast of acute lymphoblastic leukaemia", "HEM": "a normal cell, a B-cell precursor"}
SYNTHETIC = (
    "This model was trained on synthetic phantoms, not on real cells: its predictions mean nothing outside them."
)
NO_PEOPLE = "its data name no people"
MAP_CAVEAT = "The map is the mean over eight views. It shows where the model reacts, not why."


def question(labels: Sequence[str]) -> str:
    """What a model of these classes is asked about a cell, as it stands on top of a page."""
    positive = {info.positive_label for info in DATASETS.values()} - {""}
    for label in labels:
        if label in positive and len(labels) == 2:
            return f"Is this white blood cell {one(label)}?"
    if not 2 <= len(labels) <= MAX_CLASSES_IN_A_QUESTION:
        return "Which kind of white blood cell is this?"
    return f"Is this white blood cell {', '.join(labels[:-1])} or {labels[-1]}?"


def meanings_text(labels: Sequence[str]) -> str:
    """What the classes of a model stand for, a sentence each; "" for classes that no data set's entry explains."""
    known = [label for label in labels if label in MEANINGS]
    sentences = [f"{label}: {_IN_FULL.get(label, one(label))}." for label in known]
    return " ".join(sentences)


def percent(share: float, digits: int = 0) -> str:
    """A share in [0, 1] as a percentage, by default a whole one, that never rounds to certainty."""
    if 0 < share < 0.01:
        return "<1\u00a0%"
    if 0.99 < share < 1:
        return ">99\u00a0%"
    return f"{share:.{digits}%}".replace("%", "\u00a0%")


def digits_of_limit(limit: float) -> int:
    """With how many digits a limit's percentage is shown: none, one where the whole percentage lies below the limit."""
    return 0 if round(limit, 2) >= limit else 1


def named(label: str) -> str:
    """A label with what it stands for."""
    if label in MEANINGS:
        return f"{label} ({MEANINGS[label]})"
    return label


def outcome_text(outcome: str) -> str:
    """A class as it is, or why there is none."""
    return _OUTCOMES.get(outcome, outcome)


def brief_reason(reason: Reason, most_probable: str) -> str:
    """A reason as it stands beside its picture: names the most probable class."""
    if reason.code == "low_confidence":
        digits = digits_of_limit(reason.limit or 0.0)
        return reason.fill(most_probable + f" has {{value:.0%}}; the model gives a class from {{limit:.{digits}%}}.")
    if reason.code == "explanation_off_cell":
        return reason.fill("Only {value:.0%} of its map lies on the cell; {limit:.0%} or more is usual.")
    return reason.text


def one(label: str) -> str:
    """A class as what one cell of it is."""
    if label not in MEANINGS:
        return label
    meaning = MEANINGS[label]
    article = "an" if meaning[0] in "aeiou" else "a"
    return f"{article} {meaning}"


def unmeasured(metrics: Metrics) -> str:
    """Why a release's probability says little of other people's cells."""
    return NO_PEOPLE if metrics.data.unit == "block" else "it was not measured on unseen people"


def short_name(model: str) -> str:
    """A model's name without what all of ours share."""
    return model.removeprefix("leukoscope-")


def foreign_text(decision: Decision) -> str:
    """Why a picture is refused, in words: what sets it apart, and how far; "" where nothing was measured."""
    filled = "".join(f" {reason.text}" for reason in decision.reasons if reason.code.startswith("filled_"))
    for reason in decision.reasons:
        part = FOREIGN_PARTS.get(reason.code)
        if part is None or reason.value is None or not reason.limit:
            continue
        times = reason.value / reason.limit
        # Just above the limit, "1.0 times as far" would be no reason.
        digits = 2 if times < 1.1 else int(times < 10)
        return f"{FOREIGN_SENTENCE.format(part=part, times=f'{times:.{digits}f}')}{filled}"
    return " ".join(reason.text for reason in decision.reasons)


def robustness_text(metrics: Metrics) -> str:
    """The two kinds of small changes that change most classes, in one sentence; "" where they were not measured."""
    robustness = metrics.robustness
    if robustness is None:
        return ""
    first, second, *_ = robustness.worst_of_families("class_changed")
    if not first.class_changed:
        return f"No class of {robustness.cells} unseen cells changes under the small changes that were tried."
    evaluation = metrics.unseen_evaluation
    cells = "100 cells"
    if evaluation and has_fewer_subjects(robustness, evaluation):
        cells = f"100 cells of {people_text(evaluation, robustness.subjects)}"
    return (
        f"Of {cells}, {_of_100(first.class_changed)} change class when {first.shows}, "
        f"{_of_100(second.class_changed)} when {second.shows}."
    )


def _of_100(share: float) -> str:
    """A share as a whole number of 100 that is not 0 where there are some."""
    return "fewer than 1" if 0 < share < 0.005 else f"{100 * share:.0f}"


def model_text(metrics: Metrics) -> str:
    """A release in one line: what it was trained on, and the data's licence."""
    return " · ".join(filter(None, [training_text(metrics), metrics.data.licence]))


def training_text(metrics: Metrics) -> str:
    """What a release was trained on, and on how many people; "" where its data have no title."""
    data = metrics.data
    if not data.title:
        return ""
    people = ""
    if metrics.training.subjects and data.unit == "subject":
        people = f", {len(metrics.training.subjects)} people"
    return f"Trained on {data.title}{people}"


def in_training_text(subject: str) -> str:
    """The caveat of a cell whose file's name gives a person of the training."""
    return f"Trained on a person called {subject}: if this is the same, the answer is too good."


def warnings(metrics: Metrics, *, has_detector: bool) -> tuple[str, ...]:
    """The warnings to show with every prediction of a release, most important first."""
    texts = []
    if metrics.data.synthetic:
        texts.append(SYNTHETIC)
    if metrics.calibration is None:
        texts.append("This model has no calibration: its percentages are not how often it is right.")
    if not has_detector:
        texts.append("This model has no OOD detector: it gives a class to any picture, even one without a cell.")
    return tuple(texts)


def about_model(model: str, revision: str) -> str:
    """Which model, and which version of it."""
    version = f"revision {revision[:12]}" if revision else "local files"
    return f"Model {model}, {version}"


# How far to trust a model: further people first, then its own test


@dataclass(frozen=True)
class Meter:
    """Of 100 cells of a class, how many are recognised, with its 95 % interval where there is one; all 0–100."""

    label: str
    share: int
    low: int | None = None
    high: int | None = None

    @property
    def name(self) -> str:
        """The meter in words, for those who hear it."""
        words = f"{self.share} of 100 {cells_of(self.label)}"
        if self.low is None:
            return words
        return f"{words}, 95 % interval {self.low} to {self.high}"


@dataclass(frozen=True)
class TrustRow:
    """One measurement.

    Attributes:
        people: on whom.
        test: how they were tested, "cross-validation" or "test"; "" for people of an outside check.
        caveat: why it says less than it seems, or why there is none.
        meters: one for each class; none where nothing was measured on people.
        small_changes: what small changes of the picture do to the classes of these people's cells, in one sentence.
    """

    people: str
    caveat: str = ""
    meters: tuple[Meter, ...] = ()
    small_changes: str = ""
    test: str = ""

    @property
    def name(self) -> str:
        """On whom and how, in words."""
        return ", ".join(part for part in (self.people, self.test) if part)

    @property
    def sentence(self) -> str:
        """The measurement in words."""
        if not self.meters:
            return f"{self.caveat[:1].upper()}{self.caveat[1:]}."
        shares = " and ".join(f"{meter.share} of 100 {cells_of(meter.label)}" for meter in self.meters)
        caveat = f" ({self.caveat})" if self.caveat else ""
        return f"Recognised, {self.name}{caveat}: {shares}."


def trust_rows(metrics: Metrics) -> tuple[TrustRow, TrustRow]:
    """The check on further people, then the test of a release itself."""
    return _further_people(metrics), _own_test(metrics)


def _further_people(metrics: Metrics) -> TrustRow:
    """The outside check; it may be of earlier weights of the same release."""
    further = metrics.further_subjects
    if further is None:
        return TrustRow("Further people", "not measured on further people")
    caveat = "earlier weights" if further.earlier_weights else ""
    recalls = {label: further.recall(label) for label in metrics.labels}
    meters = tuple(
        _meter(label, recall.value, recall) for label, recall in recalls.items() if recall and recall.value is not None
    )
    return TrustRow(f"{further.subjects} further people", caveat, meters)


def who_further_people_are(metrics: Metrics) -> str:
    """How far the people of the outside check are unseen; "" where the check does not say so."""
    further = metrics.further_subjects
    if further is None:
        return ""
    if not further.chosen_in_view:
        return further.estimates
    return (
        f"Not a fully independent test: no weights were trained on these {further.subjects} people, but the default "
        "network and the class frequencies were chosen after looking at their results."
    )


def about_further_people(metrics: Metrics) -> str:
    """Who the people of the outside check are and what was chosen with them in view; "" without one."""
    sentences = [who_further_people_are(metrics)]
    if metrics.further_subjects and metrics.further_subjects.earlier_weights:
        sentences.append("They were measured with earlier weights of this model.")
    return " ".join(sentences).strip()


def _own_test(metrics: Metrics) -> TrustRow:
    """The release's own measurement on people that its networks had not seen."""
    evaluation = metrics.on_people
    if evaluation is None:
        return TrustRow("Cross-validation", f"not measured on people: {unmeasured(metrics)}")
    recalls = evaluation.recalls
    meters = tuple(_meter(label, *recalls[label]) for label in recalls)
    kind = "cross-validation" if evaluation.folds else "test"
    return TrustRow(people_text(evaluation), test=kind, meters=meters, small_changes=robustness_text(metrics))


def _meter(label: str, share: float, interval: Interval | None) -> Meter:
    if interval is None or interval.low is None or interval.high is None:
        return Meter(label, round(100 * share))
    return Meter(label, round(100 * share), round(100 * interval.low), round(100 * interval.high))


# C-NMC's file names, whose subjects many releases were trained on.
_SUBJECT = re.compile(r"UID_(H?\d+)_")


def training_subject(metrics: Metrics, name: str) -> str:
    """The subject that a file's name gives, where one of that name trained the release; else ""."""
    match = _SUBJECT.search(name)
    if match is None:
        return ""
    subject = match[1]
    for past in metrics.trainings:
        trained = {same_subject(past.name or "", str(name)) for name in past.subjects}
        if same_subject(past.name or "", subject) in trained:
            return subject
    return ""


# Pictures within a page


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file of that kind, such as "PNG", with Pillow's options of it."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """A file of that media type as an address that a page carries within itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
