"""What the measurements of several releases show beside each other, in short sentences that metrics.json fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leukoscope.reports import text
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
    """How many cells of further people a model recognised: the mean of its classes' shares, with its 95 % interval."""

    model: str
    share: float
    interval: Mapping[str, float] | None
    test: _Test

    def is_clearly_above(self, other: _OutsideCheck) -> bool:
        """Whether the interval lies above that of the other model."""
        if not self.interval or not other.interval:
            return False
        return self.interval["low"] > other.interval["high"]


def conclusion(releases: Mapping[str, Metrics]) -> list[str]:
    """What the metrics of these models say, by their short names: further people first, then cell size alone.

    One claim a sentence; none without a model.
    """
    if not releases:
        return []
    return [*_on_further_people(releases), *_beside_size(releases)]


def _on_further_people(releases: Mapping[str, Metrics]) -> list[str]:
    """Which model recognised most cells of further people, whether clearly, and which was not measured on them."""
    checks = {name: _outside_check(name, metrics) for name, metrics in releases.items() if _has_check(metrics)}
    if not checks:
        if any(text.measured_on_people(metrics) for metrics in releases.values()):
            return ["No model here was measured on further people, only in its own test."]
        return ["No model here was measured on people that did not train it.", "How it does on them is not known."]
    if len({check.test for check in checks.values()}) > 1:
        return ["The models were not checked alike on further people.", "Their figures cannot be compared."]
    sentences = _most_recognised(list(checks.values()))
    if any(metrics["further_subjects"].get("earlier_weights") for metrics in releases.values() if _has_check(metrics)):
        sentences.append("Earlier weights are those of an earlier training of the same recipe.")
    unmeasured = [name for name in releases if name not in checks]
    if len(unmeasured) == 1:
        sentences.append(f"{unmeasured[0]} was not measured on them.")
    elif unmeasured:
        sentences.append(f"{len(unmeasured)} were not measured on them.")
    return sentences


def _has_check(metrics: Metrics) -> bool:
    return bool(metrics.get("further_subjects") and metrics.get("labels"))


def _outside_check(model: str, metrics: Metrics) -> _OutsideCheck:
    further = metrics["further_subjects"]
    labels = tuple(metrics["labels"])
    name = f"{model} (earlier weights)" if further.get("earlier_weights") else model
    by_person = further.get("balanced_accuracy_by_subject")
    test = _Test(further.get("data"), further["subjects"], further.get("cells"), labels, by_person is not None)
    if by_person is None:  # an older check, in which people with many cells count more
        shares = [further[f"recall_{label}"]["value"] for label in labels]
        return _OutsideCheck(name, sum(shares) / len(shares), None, test)
    interval = by_person if by_person.get("low") is not None else None
    return _OutsideCheck(name, by_person["value"], interval, test)


def _most_recognised(checks: Sequence[_OutsideCheck]) -> list[str]:
    """How many cells the best model recognised, and how it compares with the others; all were checked alike."""
    best, *others = sorted(checks, key=lambda check: -check.share)
    person = "person’s" if best.test.people == 1 else "people’s"
    classes = "both classes" if len(best.test.labels) == 2 else "all classes"
    whose = f"Of {best.test.people} further {person} cells of {classes}"
    figure = f"{hundred(best.share)} of 100"
    if best.interval:
        figure += f" ({hundred(best.interval['low'])}–{hundred(best.interval['high'])})"
    equal = [other.model for other in others if hundred(other.share) == hundred(best.share)]
    close = [other.model for other in others if not best.is_clearly_above(other)]
    if not others:
        return [f"{whose}, {best.model} recognised {figure}."]
    if equal:
        return [f"{whose}, {best.model} recognised {figure}.", f"{_name_or_number(equal)} recognised as many."]
    most = f"{whose}, {best.model} recognised most: {figure}."
    if close:
        return [most, f"It is not clearly above {_name_or_number(close)}."]
    return [most, f"It is clearly above {_name_or_number([other.model for other in others])}."]


def _name_or_number(names: Sequence[str]) -> str:
    """One model by its name, more by their number."""
    return names[0] if len(names) == 1 else f"{len(names)} others"


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
    return [f"{where}, {_who_beats_size(is_clear)} cell size alone."]


def _who_beats_size(is_clear: Mapping[str, bool]) -> str:
    """Subject and verb of the sentence; `is_clear` says of each compared model whether it clearly beats size."""
    clear = [name for name, beats_size in is_clear.items() if beats_size]
    only = "only " if len(clear) < len(is_clear) else ""
    if len(clear) > 1:
        return f"{only}{len(clear)} models clearly beat"
    if clear:
        return f"{only}{clear[0]} clearly beats"
    if len(is_clear) == 1:
        return f"{next(iter(is_clear))} does not clearly beat"
    return "none clearly beats"
