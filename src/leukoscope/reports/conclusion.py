"""What the measurements of several releases show beside each other, in short lines that metrics.json fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leukoscope.data.registry import cells_of
from leukoscope.reports import text, trust
from leukoscope.reports.formatting import hundred

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class _Test:
    """What two checks on further people have in common where they can be compared."""

    data: str | None
    people: int
    cells: int | None
    labels: tuple[str, ...]
    each_person_counts_the_same: bool


@dataclass(frozen=True)
class _OutsideCheck:
    """How many cells of further people a model recognised.

    Attributes:
        share: the mean of its classes' shares, by which models are compared.
        interval: its 95 % interval; None where there is none.
        classes: the share of each class.
    """

    model: str
    share: float
    interval: Mapping[str, float] | None
    classes: tuple[trust.Meter, ...]
    test: _Test

    def is_clearly_above(self, other: _OutsideCheck) -> bool:
        """Whether the interval lies above that of the other model."""
        if not self.interval or not other.interval:
            return False
        return self.interval["low"] > other.interval["high"]


def conclusion(releases: Mapping[str, Metrics]) -> list[str]:
    """What the metrics of these models say, by their short names: one claim, then at most four lines about it.

    Further people come first, then cell size alone. Each line can stand alone; there is none without a model.
    """
    if not releases:
        return []
    return [*_on_further_people(releases), *_beside_size(releases)]


def _on_further_people(releases: Mapping[str, Metrics]) -> list[str]:
    """Which model recognised most cells of further people and whether clearly, and who these people are."""
    checks = {name: _outside_check(name, metrics) for name, metrics in releases.items() if _has_check(metrics)}
    if not checks:
        if any(text.measured_on_people(metrics) for metrics in releases.values()):
            return ["No model here was measured on further people, only in its own test."]
        return ["No model here was measured on people that did not train it.", "How it does on them is not known."]
    if len({check.test for check in checks.values()}) > 1:
        unlike = "The models were not checked alike on further people."
        return [unlike, "Their figures cannot be compared.", *_who_the_people_are(releases)]
    earlier = [name for name in checks if releases[name]["further_subjects"].get("earlier_weights")]
    claim, *comparison = _most_recognised(list(checks.values()), earlier)
    lines = [claim, *_who_the_people_are(releases), *comparison]
    if earlier:
        were = "was" if len(earlier) == 1 else "were"
        lines.append(
            f"Earlier weights: {_names_or_number(earlier)} {were} measured on them after an earlier training, "
            "not with the weights that answer here."
        )
    return lines


def _who_the_people_are(releases: Mapping[str, Metrics]) -> list[str]:
    """How far the further people are unseen, in a line for each check that says so."""
    sentences = [trust.who_further_people_are(metrics) for metrics in releases.values()]
    return list(dict.fromkeys(filter(None, sentences)))


def _has_check(metrics: Metrics) -> bool:
    return bool(metrics.get("further_subjects") and metrics.get("labels"))


def _outside_check(model: str, metrics: Metrics) -> _OutsideCheck:
    further = metrics["further_subjects"]
    labels = tuple(metrics["labels"])
    classes = trust.trust_rows(metrics)[0].meters
    by_person = further.get("balanced_accuracy_by_subject")
    test = _Test(further.get("data"), further["subjects"], further.get("cells"), labels, by_person is not None)
    if by_person is None:  # an older check, in which people with many cells count more
        shares = [further[f"recall_{label}"]["value"] for label in labels]
        return _OutsideCheck(model, sum(shares) / len(shares), None, classes, test)
    interval = by_person if by_person.get("low") is not None else None
    return _OutsideCheck(model, by_person["value"], interval, classes, test)


def _most_recognised(checks: Sequence[_OutsideCheck], earlier: Sequence[str]) -> list[str]:
    """How many cells the best model recognised, then which one that is and whether clearly; all were checked alike.

    `earlier` are the models that were measured with earlier weights: where the best one is, the claim says so.
    """
    best, *others = sorted(checks, key=lambda check: -check.share)
    name = best.model
    who = "the best model" if others else name
    if name in earlier:
        who += " (earlier weights)"
    person = "person’s" if best.test.people == 1 else "people’s"
    *before, last = [f"{meter.share} of 100 {cells_of(meter.label)}" for meter in best.classes]
    recognised = f"{', '.join(before)} and {last}"
    claim = (
        f"Of {best.test.people} further {person} cells, {who} recognised {recognised}; "
        f"guessing gives {hundred(1 / len(best.test.labels))}."
    )
    if not others:
        return [claim]
    equal = [other.model for other in others if hundred(other.share) == hundred(best.share)]
    if equal:
        return [claim, f"{name} is the best one; {_names_or_number(equal)} recognised as many."]
    close = [other.model for other in others if not best.is_clearly_above(other)]
    if close:
        return [claim, f"{name} is the best one, but not clearly better than {_names_or_number(close)}."]
    beaten = _names_or_number([other.model for other in others])
    return [claim, f"{name} is the best one, clearly better than {beaten}."]


def _names_or_number(names: Sequence[str]) -> str:
    """The models by their names; more than three by their number."""
    if len(names) > 3:
        return f"{len(names)} models"
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def _beside_size(releases: Mapping[str, Metrics]) -> list[str]:
    """Which models clearly rank cells better than their size alone: the interval of the AUROC lies above its AUROC."""
    is_clear = {}
    cross_validated = True
    for name, metrics in releases.items():
        evaluation = (metrics.get("evaluations") or [{}])[0]
        size_alone = (evaluation.get("size_only_baseline") or {}).get("auroc_by_subject")
        intervals = (evaluation.get("intervals") or {}).get("by_subject") or {}
        interval = intervals.get("auroc_by_subject")
        if size_alone is None or interval is None or not text.measured_on_people(metrics):
            continue
        cross_validated = cross_validated and bool(evaluation.get("folds"))
        is_clear[name] = interval["low"] > size_alone
    if not is_clear:
        return []
    where = "In cross-validation" if cross_validated else "In their own tests"
    return [f"{where}, {_who_beats_size(is_clear)}."]


def _who_beats_size(is_clear: Mapping[str, bool]) -> str:
    """Which models do and which do not; `is_clear` says so of each compared model."""
    clear = [name for name, beats_size in is_clear.items() if beats_size]
    unclear = [name for name in is_clear if name not in clear]
    than_size = "the classes clearly better than cell size alone"
    do = "does" if len(unclear) == 1 else "do"
    if not clear:
        return f"{_names_or_number(unclear)} {do} not separate {than_size}"
    separate = "separates" if len(clear) == 1 else "separate"
    claim = f"{_names_or_number(clear)} {separate} {than_size}"
    if not unclear:
        return claim
    return f"{claim}; {_names_or_number(unclear)} {do} not"
