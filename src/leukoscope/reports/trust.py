"""How far to trust a model, as rows of meters that metrics.json fills: further people first, then cross-validation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from leukoscope.data.registry import DATASETS, cells_of
from leukoscope.evaluation.overlap import same_subject, trainings_of
from leukoscope.models.map_check import OCCLUSION_METHOD, MapCheck
from leukoscope.reports import release_tables, text

# C-NMC's file names, whose subjects many releases were trained on.
_SUBJECT = re.compile(r"UID_(H?\d+)_")
# What the outside check of our own releases says of its people.
_CHOSEN_IN_VIEW = re.compile(
    r"(?P<people>\d+) further subjects: no weights were trained on them; earlier rounds looked at them, and the "
    r"default network and the class frequencies were chosen with them in view\."
)


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


def trust_rows(metrics: Mapping[str, Any]) -> tuple[TrustRow, TrustRow]:
    """The check on further people, then the cross-validation of a release's metrics."""
    return _further_people(metrics), _cross_validation(metrics)


def _further_people(metrics: Mapping[str, Any]) -> TrustRow:
    """The outside check; it may be of earlier weights of the same release."""
    further = metrics.get("further_subjects")
    if not further:
        return TrustRow("Further people", "not measured on further people")
    caveats = []
    if further.get("earlier_weights"):
        caveats = ["earlier weights"]
    labels = metrics.get("labels") or ()
    keys = [f"recall_{label}_by_subject" for label in labels]
    if not all(key in further for key in keys):
        # An older check counts every cell alike, so people with many cells count more.
        keys = [f"recall_{label}" for label in labels]
        caveats.append("counted by cell")
    meters = tuple(_meter(label, further[key]["value"], further[key]) for label, key in zip(labels, keys, strict=True))
    return TrustRow(f"{further['subjects']} further people", ", ".join(caveats), meters)


def who_further_people_are(metrics: Mapping[str, Any]) -> str:
    """How far the people of the outside check are unseen; "" where the check does not say so."""
    further = metrics.get("further_subjects") or {}
    sentence = str(further.get("estimates") or "")
    known = _CHOSEN_IN_VIEW.fullmatch(sentence)
    if known is None:
        return sentence.replace("subjects", "people")
    return (
        f"Not a fully independent test: no weights were trained on these {known['people']} people, but the default "
        "network and the class frequencies were chosen after looking at their results."
    )


def about_further_people(metrics: Mapping[str, Any]) -> str:
    """Who the people of the outside check are and what was chosen with them in view; "" without one."""
    sentences = [who_further_people_are(metrics)]
    if (metrics.get("further_subjects") or {}).get("earlier_weights"):
        sentences.append("They were measured with earlier weights of this model.")
    return " ".join(sentences).strip()


def _cross_validation(metrics: Mapping[str, Any]) -> TrustRow:
    """The release's own measurement on people that its networks had not seen."""
    shares, subjects = text.recalls(metrics)
    if not shares:
        return TrustRow("Cross-validation", f"not measured on people: {text.unmeasured(metrics)}")
    evaluation = metrics["evaluations"][0]
    measured = release_tables.recalls(evaluation)
    meters = tuple(_meter(label, *measured[label]) for label in shares)
    kind = "cross-validation" if evaluation.get("folds") else "test"
    people = f"{sum(subjects.values())} people"
    return TrustRow(people, test=kind, meters=meters, small_changes=text.robustness_text(metrics))


def _meter(label: str, share: float, interval: Mapping[str, Any] | None) -> Meter:
    if not interval:
        return Meter(label, round(100 * share))
    return Meter(label, round(100 * share), round(100 * interval["low"]), round(100 * interval["high"]))


def maps_passed(metrics: Mapping[str, Any]) -> bool | None:
    """Whether the maps that a release shows passed their checks; None where they were not put to them."""
    if MapCheck.from_metrics(metrics, OCCLUSION_METHOD).passed:
        return True
    passed = (metrics.get("heat_maps") or {}).get("passed")
    if passed is None:
        return None
    return bool(passed)


def training_subject(metrics: Mapping[str, Any], name: str) -> str:
    """The subject that a file's name gives, where one of that name trained the release; else ""."""
    match = _SUBJECT.search(name)
    if match is None:
        return ""
    subject = match[1]
    for past in trainings_of(metrics):
        trained = {same_subject(past["name"], str(name)) for name in past["subjects"]}
        if same_subject(past["name"], subject) in trained:
            return subject
    return ""


def training_subjects(metrics: Mapping[str, Any]) -> list[str]:
    """Every name for which `training_subject` finds a person, for a page that cannot ask it."""
    names: set[str] = set()
    for past in trainings_of(metrics):
        subjects = {str(name) for name in past["subjects"]}
        trained = {same_subject(past["name"], name) for name in subjects}
        aliases: Iterable[str] = ()
        if past["name"] in DATASETS:
            aliases = DATASETS[past["name"]].subject_aliases
        names |= subjects | {alias for alias in aliases if same_subject(past["name"], alias) in trained}
    return sorted(names)
