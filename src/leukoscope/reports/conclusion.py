"""What the measurements of several releases show beside each other, in a few plain words that metrics.json fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leukoscope.reports import text
from leukoscope.reports.formatting import hundred

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class _OutsideCheck:
    """How many cells of further people a model recognised: the mean of its classes' shares, with its 95 % interval.

    Attributes:
        test: what the check has to have in common with that of another model to be compared with it.
    """

    model: str
    share: float
    low: float | None
    high: float | None
    earlier_weights: bool
    test: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The model, and that its weights have changed since where they have."""
        return f"{self.model} (earlier weights)" if self.earlier_weights else self.model

    def is_clearly_above(self, other: _OutsideCheck) -> bool:
        """Whether the interval lies above that of the other model."""
        return self.low is not None and other.high is not None and self.low > other.high


def conclusion(releases: Mapping[str, Metrics]) -> str:
    """What the metrics of these models say, by their short names: further people first, then cell size alone.

    At most 35 words; "" without a model.
    """
    if not releases:
        return ""
    return " ".join(sentence for sentence in (_on_further_people(releases), _beside_size(releases)) if sentence)


def _on_further_people(releases: Mapping[str, Metrics]) -> str:
    """Which model recognised most cells of further people, whether clearly, and which was not measured on them."""
    checks = []
    for name, metrics in releases.items():
        check = _outside_check(name, metrics)
        if check is not None:
            checks.append(check)
    if not checks:
        if any(text.measured_on_people(metrics) for metrics in releases.values()):
            return "No model here was measured on further people, only in its own test."
        return "No model here was measured on people that did not train it: how it does on them is not known."
    if len({check.test for check in checks}) > 1:
        return "The models were not checked alike on further people: their figures cannot be compared."
    checked = {check.model for check in checks}
    unmeasured = [name for name in releases if name not in checked]
    if not unmeasured:
        return f"{_most_recognised(checks)}."
    return f"{_most_recognised(checks)}; {unmeasured[0] if len(unmeasured) == 1 else len(unmeasured)} not measured."


def _outside_check(model: str, metrics: Metrics) -> _OutsideCheck | None:
    further = metrics.get("further_subjects")
    labels = tuple(metrics.get("labels") or ())
    if not further or not labels:
        return None
    estimate = further.get("balanced_accuracy_by_subject")
    by_person = estimate is not None
    if estimate is None:  # an older check, in which people with many cells count more
        shares = [further[f"recall_{label}"]["value"] for label in labels]
        estimate = {"value": sum(shares) / len(shares)}
    return _OutsideCheck(
        model,
        estimate["value"],
        estimate.get("low"),
        estimate.get("high"),
        bool(further.get("earlier_weights")),
        (further.get("data"), further["subjects"], further.get("cells"), labels, by_person),
    )


def _most_recognised(checks: Sequence[_OutsideCheck]) -> str:
    """How many cells the best model recognised, beside the others; all were checked alike."""
    best, *others = sorted(checks, key=lambda check: -check.share)
    _, subjects, _, labels, _ = best.test
    whose = f"Of {subjects} further {'person’s' if subjects == 1 else 'people’s'} cells of {_classes(labels)}"
    figure = f"{hundred(best.share)} of 100"
    if best.low is not None and best.high is not None:
        figure += f" ({hundred(best.low)}–{hundred(best.high)})"
    if not others:
        return f"{whose}, {best.name} recognised {figure}"
    equal = [other.name for other in others if hundred(other.share) == hundred(best.share)]
    if equal:
        return f"{whose}, {best.name} recognised {figure}, as many as {_name_or_number(equal)}"
    close = [other.name for other in others if not best.is_clearly_above(other)]
    if close:
        return f"{whose}, {best.name} recognised most, {figure}, not clearly above {_name_or_number(close)}"
    far = [other.name for other in others]
    return f"{whose}, {best.name} recognised most, {figure}, clearly above {_name_or_number(far)}"


def _name_or_number(names: Sequence[str]) -> str:
    """One model by its name, more by their number."""
    return names[0] if len(names) == 1 else f"{len(names)} others"


def _classes(labels: Sequence[str]) -> str:
    return "both classes" if len(labels) == 2 else "all classes"


def _beside_size(releases: Mapping[str, Metrics]) -> str:
    """Which models clearly rank cells better than their size alone: the interval of the AUROC lies above its AUROC."""
    compared = []
    clear = []
    cross_validated = True
    for name, metrics in releases.items():
        evaluation = (metrics.get("evaluations") or [{}])[0]
        alone = (evaluation.get("size_only_baseline") or {}).get("auroc_by_subject")
        intervals = (evaluation.get("intervals") or {}).get("by_subject") or {}
        interval = intervals.get("auroc_by_subject")
        if alone is None or interval is None or not text.measured_on_people(metrics):
            continue
        cross_validated = cross_validated and bool(evaluation.get("folds"))
        compared.append(name)
        if interval["low"] > alone:
            clear.append(name)
    if not compared:
        return ""
    where = "In cross-validation" if cross_validated else "In their own tests"
    if not clear:
        if len(compared) == 1:
            return f"{where}, {compared[0]} does not clearly beat cell size alone."
        return f"{where}, none clearly beats cell size alone."
    if len(clear) == 1:
        only = "only " if len(compared) > 1 else ""
        return f"{where}, {only}{clear[0]} clearly beats cell size alone."
    if len(clear) < len(compared):
        return f"{where}, only {len(clear)} clearly beat cell size alone."
    return f"{where}, {len(clear)} models clearly beat cell size alone."
