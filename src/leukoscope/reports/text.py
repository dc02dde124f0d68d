"""A result in words: the decision, how good the model is, its map. Each picture has its text equivalent here.

The demo, the saved PNG, the API and the static page say the same sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leukoscope.data.registry import DATASETS, cells_of, meanings_of_labels
from leukoscope.inference.prediction import (
    ABSTAIN,
    NOT_A_CELL,
    OUT_OF_DISTRIBUTION,
    REFUSED,
    Decision,
    Prediction,
    Reason,
)
from leukoscope.models.map_check import EVIDENCE_METHOD, OCCLUSION_METHOD
from leukoscope.reports import release_tables
from leukoscope.reports.formatting import of_100

MEANINGS = meanings_of_labels()
"""What the labels of the registered data sets stand for."""
_OUTCOMES = {ABSTAIN: "not sure", OUT_OF_DISTRIBUTION: "unlike its training cells"}
_FEW_CLASSES = 5  # so many are named in the question on top of a page
# Said by the demo and the static page; commands and JSON say `inference.prediction.REASON_TEXTS`.
SHORT = {
    ABSTAIN: "Not sure",
    OUT_OF_DISTRIBUTION: "Unlike the cells this model knows",
    NOT_A_CELL: "No cell cut out on black",
}
FOREIGN_PARTS = {"ood_colour": "colour", "ood_texture": "texture", "ood_shape": "size or outline"}
"""Code of a reason → what of a picture is unlike the training cells."""
STATISTIC_GROUP_NAMES = {"colour": "colour", "texture": "texture", "shape": "size and outline"}
"""Group of the OOD detector's statistics → its name beside the bar of its distance."""
ORIENTATION_NAMES = ("As given", "90°", "180°", "270°", "Mirrored", "Mirrored, 90°", "Mirrored, 180°", "Mirrored, 270°")
FOREIGN_VERDICT = "No class: unlike the cells it knows"
NO_CELL_VERDICT = "No class: no cell cut out on black"
NOTHING_FOUND = "No white blood cell found"
FOREIGN_SENTENCE = (
    "Its {part} is unlike that of the training cells. As a whole it is {times} times as far from them as the limit "
    "allows; 98 of 100 cells of their kind stay below it. This happens with another stain, microscope or kind of cell."
)
# From this probability on, the text says "Looks like" rather than "Probably".
FIRM = 0.9
_MOST_DIGITS = 5  # of a percentage
_IN_FULL = {"ALL": "a blast of acute lymphoblastic leukaemia", "HEM": "a normal cell, a B-cell precursor"}
_BRIEF_NOUNS = {"ALL": "a blast"}
_BRIEF_ADJECTIVES = {"HEM": "normal"}
_ROWS = ("upper", "middle", "lower")
_COLUMNS = ("left", "centre", "right")
NEARLY_STRONGEST = 0.8  # of the mean strength of a map's strongest ninth: as strong to the eye
SYNTHETIC = (
    "This model was trained on synthetic phantoms, not on real cells: its predictions mean nothing outside them."
)
NO_PEOPLE = "its data name no people"
MAPS_FAILED = "This model's maps failed our checks."
MAP_CAVEAT = "The map is the mean over eight views. It shows where the model reacts, not why."
MAP_CAVEATS = {
    EVIDENCE_METHOD: MAP_CAVEAT,
    OCCLUSION_METHOD: "The map shows how much less the model prefers this class when a place is covered, not why.",
}


@dataclass(frozen=True)
class DecisionText:
    """A decision in words.

    `short` has a few plain ones; `headline` says the class and its probability, or that there is none; `because` the
    reasons against a class, or for caution with it; `soft` a class by a model that was not measured on unseen people.
    """

    short: str
    headline: str
    because: str = ""
    has_class: bool = True
    soft: bool = False


def question(labels: Sequence[str]) -> str:
    """What a model of these classes is asked about a cell, as it stands on top of a page."""
    positive = {info.positive_label for info in DATASETS.values()} - {""}
    for label in labels:
        if label in positive and len(labels) == 2:
            return f"Is this white blood cell {one(label)}?"
    if not 2 <= len(labels) <= _FEW_CLASSES:
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


def percentages(probabilities: Mapping[str, float], decision: Decision) -> dict[str, str]:
    """Class → its percentage; where none reached the limit, with digits enough that none rounds up to it."""
    limit = next((reason.limit for reason in decision.reasons if reason.code == "low_confidence"), None)
    digits = 0
    if limit is not None:
        highest = max(probabilities.values())
        while digits < _MOST_DIGITS and round(100 * highest, digits) >= 100 * limit:
            digits += 1
    return {label: percent(share, digits) for label, share in probabilities.items()}


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


def decision_text(decision: Decision, probabilities: Mapping[str, float], metrics: Mapping[str, Any]) -> DecisionText:
    """A decision in words, all of which follow from it; `metrics` are the release's."""
    reasons = " ".join(reason.text for reason in decision.reasons)
    if decision.label is None:
        first, second = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:2]
        short = SHORT[decision.outcome]
        headline = f"No class: {short[0].lower()}{short[1:]}."
        if decision.outcome == ABSTAIN:
            percent_of = percentages(probabilities, decision)
            headline = f"Not sure: {first} {percent_of[first]}, {second} {percent_of[second]}."
        return DecisionText(SHORT[decision.outcome], headline, reasons, has_class=False)
    name = decision.label
    share = percent(probabilities[name])
    # One scale of words for all models; beside it stands how far to trust each.
    short = f"{class_words(probabilities[name])} {one(name)}"
    if not measured_on_people(metrics):
        return DecisionText(short, f"{named(name)}: {share}, but {unmeasured(metrics)}.", reasons, soft=True)
    verb = "predicts" if short.startswith("Looks") else "leans towards"
    return DecisionText(short, f"The model {verb} {named(name)}: {share}.", reasons)


def brief_reason(reason: Reason, most_probable: str) -> str:
    """A reason as it stands beside its picture: names the most probable class."""
    if reason.code == "low_confidence":
        digits = digits_of_limit(reason.limit or 0.0)
        return reason.fill(most_probable + f" has {{value:.0%}}; the model gives a class from {{limit:.{digits}%}}.")
    if reason.code == "explanation_off_cell":
        return reason.fill("Only {value:.0%} of its map lies on the cell; {limit:.0%} or more is usual.")
    return reason.text


def class_words(share: float) -> str:
    """The words before a class of this probability; they follow the whole percentage that is shown beside them."""
    if round(100 * share) >= round(100 * FIRM):
        return "Looks like"
    return "Probably"


def brief_class_text(label: str, share: float) -> str:
    """A class of this probability in the fewest words, for the line of another model."""
    words = class_words(share)
    if label in _BRIEF_ADJECTIVES:
        return f"{words.removesuffix(' like')} {_BRIEF_ADJECTIVES[label]}"
    return f"{words} {_BRIEF_NOUNS.get(label, one(label))}"


def one(label: str) -> str:
    """A class as what one cell of it is."""
    if label not in MEANINGS:
        return label
    meaning = MEANINGS[label]
    article = "an" if meaning[0] in "aeiou" else "a"
    return f"{article} {meaning}"


def measured_on_people(metrics: Mapping[str, Any]) -> bool:
    """Whether a release was measured on people whom it had not seen."""
    return bool(recalls(metrics)[0])


def unmeasured(metrics: Mapping[str, Any]) -> str:
    """Why a release's probability says little of other people's cells."""
    if (metrics.get("data") or {}).get("unit") == "block":
        return NO_PEOPLE
    return "it was not measured on unseen people"


def recalls(metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
    """Class → share of its cells that get it, each unseen subject weighing the same, and how many subjects; else {}."""
    first = (metrics.get("evaluations") or [{}])[0]
    subjects = (first.get("metrics") or {}).get("subjects") or {}
    if (first.get("split") or {}).get("disjoint_by") != "subject" or not subjects:
        return {}, {}
    by_class = {label: float(value) for label, (value, _) in release_tables.recalls(first).items()}
    if set(by_class) != set(metrics.get("labels") or ()):
        return {}, {}
    return by_class, dict(Counter(subject["label"] for subject in subjects.values()))


def short_name(model: str) -> str:
    """A model's name without what all of ours share."""
    return model.removeprefix("leukoscope-")


def recall_text(metrics: Mapping[str, Any]) -> str:
    """How many cells of each class a release recognises in unseen people, if it must name a class."""
    by_class, subjects = recalls(metrics)
    if not by_class:
        return f"Not measured on people: {unmeasured(metrics)}."
    recognised = ", ".join(f"{round(100 * share)} of 100 {cells_of(label)}" for label, share in by_class.items())
    return f"Recognises {recognised} of {sum(subjects.values())} unseen people."


def trust_text(decision: Decision, metrics: Mapping[str, Any]) -> str:
    """How often the class that is called was right for unseen people, each weighing the same; "" where not measured."""
    if decision.outcome in REFUSED:
        held_out = (metrics.get("ood") or {}).get("held_out") or {}
        kept_share = held_out.get("kept_share_by_subject", held_out.get("kept_share"))
        if kept_share is None:
            return ""
        return f"Of 100 cells like its training cells, it refuses {round(100 * (1 - kept_share))}."
    by_class, subjects = recalls(metrics)
    if decision.label is None or len(by_class) != 2 or decision.label not in by_class:
        return ""
    (other,) = set(by_class) - {decision.label}
    right = by_class[decision.label] * subjects[decision.label]
    wrong = (1 - by_class[other]) * subjects[other]
    shares = f"{subjects[decision.label]} with {cells_of(decision.label)}, {subjects[other]} with {cells_of(other)}"
    return (
        f"Of 100 cells that it calls {decision.label}, {round(100 * right / (right + wrong))} were {decision.label}: "
        f"{sum(subjects.values())} unseen people, each counting the same ({shares})."
    )


def agreement_text(called: str, decisions: Sequence[Decision], probable: Sequence[str]) -> str:
    """How many of a cell's orientations get the same class, and how many get no class.

    `decisions` and `probable` are of each orientation, the given one first.
    """
    same = sum(
        label == called and decision.label is not None for label, decision in zip(probable, decisions, strict=True)
    )
    if same == len(decisions):
        return "The same in all eight orientations."
    unsure = sum(decision.outcome == ABSTAIN for decision in decisions)
    if unsure == len(decisions):
        return "Undecided in all eight orientations."
    parts = [f"{same} of {len(decisions)} orientations agree"]
    is_undecided = decisions[0].outcome == ABSTAIN
    if is_undecided:
        parts = [f"Undecided in {unsure} of {len(decisions)} orientations"]
        if same:
            parts.append(f"{same} {'says' if same == 1 else 'say'} {called}")
    others = Counter(decision.label for decision in decisions if decision.label not in (None, called))
    for label, count in sorted(others.items()):
        verb = "says" if count == 1 else "say"
        parts.append(f"{count} {verb} {label}")
    if unsure and not is_undecided:
        parts.append(f"{unsure} {'is' if unsure == 1 else 'are'} undecided")
    refused = sum(decision.outcome in REFUSED for decision in decisions)
    if refused:
        parts.append(f"{refused} {'is' if refused == 1 else 'are'} unlike its training cells")
    return f"{'; '.join(parts)}."


def borderline_text(prediction: Prediction) -> str:
    """Which other outcome a picture has under which changes of 5 %; "" where it is not borderline, or not known."""
    if not prediction.borderline:
        return ""
    borderline_changes = prediction.borderline_changes
    changes_of: dict[str, list[str]] = {}
    for answer in prediction.changed:
        if answer.change in borderline_changes:
            changes_of.setdefault(outcome_text(answer.decision.outcome), []).append(answer.change.shows)
    clauses = [f"{outcome} when {_alternatives(changes)}" for outcome, changes in changes_of.items()]
    return f"Borderline: {'; '.join(clauses)}."


def _alternatives(changes: Sequence[str]) -> str:
    """Changes of one size, which is said once: "5 % brighter or darker"."""
    size = changes[0].rpartition(" ")[0]
    return " or ".join([changes[0], *(change.removeprefix(f"{size} ") for change in changes[1:])])


def other_outcomes(prediction: Prediction) -> list[str]:
    """The outcome under each small change that gives the picture another one."""
    outcomes = [answer.decision.outcome for answer in prediction.changed]
    return [outcome for outcome in outcomes if outcome != prediction.outcome]


def changes_text(prediction: Prediction) -> str:
    """In how many small changes of a picture its outcome is another, and which; "" where it is in none."""
    others = other_outcomes(prediction)
    if not others:
        return ""
    words = outcome_text(others[0]) if len(set(others)) == 1 else "another answer"
    return f"{words[0].upper()}{words[1:]} in {len(others)} of {len(prediction.changed)} small changes."


def unchanged_text(prediction: Prediction) -> str:
    """That a picture's outcome is the same under all small changes."""
    if prediction.decision.label is None:
        return "Not sure in all eight small changes"
    return "The same in all eight small changes"


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


def robustness_text(metrics: Mapping[str, Any]) -> str:
    """The two kinds of small changes that change most classes, in one sentence; "" where they were not measured."""
    block = metrics.get("robustness")
    if not block:
        return ""
    first, second, *_ = release_tables.worst_of_families(block, "class_changed")
    if not first["class_changed"]:
        return f"No class of {block['cells']} unseen cells changes under the small changes that were tried."
    cells = "100 cells"
    if _measured_on_fewer(metrics):
        cells = f"100 cells of {block['subjects']} people"
    return (
        f"Of {cells}, {_of_100(first['class_changed'])} change class when {first['shows']}, "
        f"{_of_100(second['class_changed'])} when {second['shows']}."
    )


def worst_change_text(metrics: Mapping[str, Any]) -> str:
    """The small change under which most cells get another class, in plain words; "not measured" without the block."""
    block = metrics.get("robustness")
    if not block:
        return "not measured"
    worst = release_tables.worst_of_families(block, "class_changed")[0]
    cells = of_100(worst["class_changed"], (worst.get("intervals") or {}).get("class_changed"))
    sentence = f"{cells} of 100 cells change class when {worst['shows']}"
    fewer = _measured_on_fewer(metrics)
    if fewer:
        sentence += f"; measured on {fewer}"
    return sentence


def _measured_on_fewer(metrics: Mapping[str, Any]) -> str:
    """How many of the cross-validation's people small changes were measured on; "" for all of them."""
    block = metrics["robustness"]
    evaluation = release_tables.unseen_evaluation(metrics)
    if not evaluation or not release_tables.has_fewer_subjects(block, evaluation):
        return ""
    return f"{block['subjects']} of these {release_tables.people_text(evaluation)}"


def _of_100(share: float) -> str:
    """A share as a whole number of 100 that is not 0 where there are some."""
    return "fewer than 1" if 0 < share < 0.005 else f"{100 * share:.0f}"


def model_text(metrics: Mapping[str, Any]) -> str:
    """A release in one line: what it was trained on, and the data's licence."""
    licence = str((metrics.get("data") or {}).get("licence") or "")
    return " · ".join(filter(None, [training_text(metrics), licence]))


def training_text(metrics: Mapping[str, Any]) -> str:
    """What a release was trained on, and on how many people; "" where its data have no title."""
    data = metrics.get("data") or {}
    subjects = len((metrics.get("training") or {}).get("subjects") or ())
    if not data.get("title"):
        return ""
    trained_on = f"Trained on {data['title']}"
    if subjects and data.get("unit") == "subject":
        trained_on += f", {subjects} people"
    return trained_on


def map_text(heat: np.ndarray, label: str) -> str:
    """The text equivalent of a class's map: how concentrated it is, and where."""
    if float(heat.sum()) <= 0:
        return f"The map for {label} is empty: nothing that the model saw speaks for it."
    # How small a part of the view holds half of the map, and in which ninth of the view it is strongest.
    sums = np.sort(heat.ravel())[::-1].cumsum() / heat.sum()
    half = (int(np.searchsorted(sums, 0.5)) + 1) / heat.size
    strengths = {
        f"{row} {column}": float(ninth.mean())
        for row, band in zip(_ROWS, np.array_split(heat, 3, axis=0), strict=True)
        for column, ninth in zip(_COLUMNS, np.array_split(band, 3, axis=1), strict=True)
        if ninth.size
    }
    place = max(strengths, key=strengths.__getitem__)
    strong = [strength for strength in strengths.values() if strength > NEARLY_STRONGEST * strengths[place]]
    if place == "middle centre":
        place = "centre"
    where = f"strongest at the {place}"
    if len(strong) > 1:
        where = "strong in several places"
    return f"Half of the map for {label} lies in {percent(half)} of what the model saw; it is {where}."


def weak_map_text(maps: Mapping[str, np.ndarray], label: str, weak: float | None = None) -> str:
    """A warning where a picture's maps are weaker than usual, or weaker than for another class; else "".

    `weak` is the highest value that one cell in twenty stays below; None where that is not known.
    """
    if weak is not None and max(float(heat.max()) for heat in maps.values()) < weak:
        return "Little evidence for any class: 95 % of the cells checked have more."
    strengths = {name: float(heat.sum()) for name, heat in maps.items()}
    strongest = max(strengths, key=strengths.__getitem__)
    if strongest == label or strengths[label] >= strengths[strongest]:
        return ""
    share = percent(strengths[label] / strengths[strongest])
    return f"Little evidence: it amounts to {share} of what speaks for {strongest}."


def in_training_text(subject: str) -> str:
    """The caveat of a cell whose file's name gives a person of the training."""
    return f"Trained on a person called {subject}: if this is the same, the answer is too good."


def warnings(metrics: Mapping[str, Any], *, has_detector: bool) -> tuple[str, ...]:
    """The warnings to show with every prediction of a release, most important first."""
    texts = []
    if (metrics.get("data") or {}).get("synthetic"):
        texts.append(SYNTHETIC)
    if not metrics.get("calibration"):
        texts.append("This model has no calibration: its percentages are not how often it is right.")
    if not has_detector:
        texts.append("This model has no OOD detector: it gives a class to any picture, even one without a cell.")
    return tuple(texts)


def about_model(model: str, revision: str) -> str:
    """Which model, and which version of it."""
    version = f"revision {revision[:12]}" if revision else "local files"
    return f"Model {model}, {version}"
