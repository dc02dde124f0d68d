"""One prediction for a subject, pooled from the predictions of that subject's cells.

`leukoscope.evaluation.subjects` measures how to pool, from how many cells, and what that is worth on unseen subjects;
it stands in the "subject_rule" block of metrics.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, DataError, ReleaseError
from leukoscope.data.folder import require_people
from leukoscope.data.images import UnreadableImage, filled_note
from leukoscope.inference.prediction import ABSTAIN, OUT_OF_DISTRIBUTION, REFUSED, TOO_FEW_CELLS, logits_of
from leukoscope.models.metrics import Metrics, Rate
from leukoscope.progress import note, track

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Predictor
    from leukoscope.inference.scoring import CellSource
    from leukoscope.models.release import ReleaseInfo

MOST_REFUSED = 0.5
"""Share of a subject's cells that may be out of distribution before the subject is; cells of a slide share a stain."""
SUBJECT_BOOTSTRAP_SAMPLES = 1000
SUBJECT_INTERVAL_LEVEL = 0.95
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_CHUNK = 50  # bootstrap samples at a time: 10,000 cells then take 4 MB


def pool(logits: np.ndarray) -> np.ndarray:
    """(..., N) logits of a subject's N cells → (..., 5), their `QUANTILES`."""
    return np.moveaxis(np.quantile(logits, QUANTILES, axis=-1), 0, -1)


@dataclass(frozen=True)
class SubjectPrediction:
    """What a release predicts for one subject.

    Attributes:
        outcome: a class, "abstain" (the interval includes both classes), "too few cells" or "out of distribution" (most
            of the subject's cells are).
        positive_label: the class of `probability`.
        probability: of that class, for the subject, 0–1; None without a cell in use.
        interval: 95 % bootstrap interval of it over this subject's cells: how far other cells of the same subject would
            move it. It does not cover how subjects differ; `rule.error_rate` does.
        cells, used, refused, abstained: all cells; those pooled; out of distribution or no cell; and cells in use that
            get no class by themselves.
        rule: what decided.
    """

    subject: str
    outcome: str
    positive_label: str
    probability: float | None
    interval: tuple[float, float] | None
    cells: int
    used: int
    refused: int
    abstained: int
    rule: SubjectRule

    @property
    def is_result(self) -> bool:
        """Whether probability and interval are a result: from enough cells, and in distribution."""
        return self.outcome not in (TOO_FEW_CELLS, OUT_OF_DISTRIBUTION)

    @property
    def reason(self) -> str:
        """Why there is no class, as a sentence; "" with a class."""
        if self.outcome == OUT_OF_DISTRIBUTION:
            return f"{self.refused} of {self.cells} cells are out of distribution, more than {MOST_REFUSED:.0%}"
        if self.outcome == TOO_FEW_CELLS:
            return f"{self.used} cells can be used, but {self.rule.least_cells} are needed"
        if self.outcome == ABSTAIN and self.interval is not None:
            low, high = self.interval
            return f"other cells of this subject may give either class (interval {low:.3f} to {high:.3f})"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, with the research notice."""
        low, high = (self.is_result and self.interval) or (None, None)
        return {
            "subject": self.subject,
            "outcome": self.outcome,
            "reason": self.reason,
            f"p_{self.positive_label}": self.probability if self.is_result else None,
            "low": low,
            "high": high,
            "cells": self.cells,
            "used": self.used,
            "refused": self.refused,
            "abstained": self.abstained,
            "rule": self.rule.text,
            "notice": RESEARCH_NOTICE,
        }


@dataclass(frozen=True)
class SubjectRule:
    """From a subject's cells to a class: a logistic regression on pooled logits.

    Attributes:
        positive_label: of the two classes the one whose logits are pooled.
        coefficients, intercept: of the logistic regression, on the features of `pool`.
        least_cells: with fewer cells in use no class is given.
        error_rate: share of wrong subjects among those measured, with its interval, each None where nobody was given a
            class; see `leukoscope.evaluation.subjects`.
        measured_on: how many subjects that got a class these are, and whether their cells chose the epoch, in words.
    """

    labels: tuple[str, ...]
    positive_label: str
    coefficients: tuple[float, ...]
    intercept: float
    least_cells: int
    error_rate: Rate | None = None
    measured_on: str = "subjects"

    @classmethod
    def from_metrics(cls, metrics: Metrics, labels: Sequence[str]) -> SubjectRule | None:
        """Read the rule of a release's metrics.json; None where it has no "subject_rule"."""
        block = metrics.subject_rule
        if block is None:
            return None
        kind = {"test": "unseen", "validation": "validation"}[block.cells_of]
        return cls(
            labels=tuple(labels),
            positive_label=block.positive_label,
            coefficients=tuple(block.rule.coefficients),
            intercept=block.rule.intercept,
            least_cells=block.least_cells,
            error_rate=block.measured.error_rate,
            measured_on=f"{block.measured.given_a_class} {kind} subjects that got a class",
        )

    @classmethod
    def of_release(cls, release: ReleaseInfo) -> SubjectRule:
        """Read the rule of a release; `ReleaseError` for one that was not measured by subject."""
        rule = cls.from_metrics(release.metrics, release.labels)
        if rule is None:
            reason = release.metrics.subject_rule_missing or "its metrics.json does not say why"
            raise ReleaseError(
                f"{release.name}: cannot predict for a subject: no rule was fitted ({reason}); choose another release, "
                "or fit one with `leukoscope release recalibrate` on labelled cells of known subjects"
            )
        return rule

    @property
    def text(self) -> str:
        """The rule as a sentence, with its error rate."""
        quantiles = "10, 25, 50, 75 and 90 % quantiles of the cells' logits"
        how = f"{quantiles}, from {self.least_cells} or more cells"
        rate = self.error_rate
        if rate is None:
            return how
        if rate.share is None:
            return f"{how}; none of the subjects measured was given a class"
        interval = f"95 % interval {rate.low:.0%} to {rate.high:.0%}"
        return f"{how}; wrong for {rate.share:.0%} of {self.measured_on} ({interval})"

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """(..., N) logits of a subject's cells → (...,) probability of the positive class."""
        scores = pool(logits) @ np.asarray(self.coefficients) + self.intercept
        return 1 / (1 + np.exp(-np.clip(scores, -50, 50)))

    def interval(self, logits: np.ndarray) -> tuple[float, float]:
        """(N,) logits → 95 % bootstrap interval of the probability (percentiles), cells sampled with replacement."""
        rng = np.random.default_rng(0)
        chunks = (
            rng.integers(len(logits), size=(_CHUNK, len(logits))) for _ in range(SUBJECT_BOOTSTRAP_SAMPLES // _CHUNK)
        )
        samples = np.concatenate([self.probability(logits[rows]) for rows in chunks])
        low, high = np.quantile(samples, [(1 - SUBJECT_INTERVAL_LEVEL) / 2, (1 + SUBJECT_INTERVAL_LEVEL) / 2])
        return float(low), float(high)

    def predict(self, probabilities: np.ndarray, outcomes: Sequence[str], *, subject: str = "") -> SubjectPrediction:
        """Predict for one subject, called `subject`; an error without a cell.

        Args:
            probabilities: (N, K) of the subject's cells, in the order of `labels`.
            outcomes: of the same cells, as their decisions say.
        """
        if not len(outcomes):
            raise DataError(f"subject {subject!r}: has no cell; give at least one picture")
        positive = self.labels.index(self.positive_label)
        used = ~np.isin(np.asarray(outcomes), REFUSED)
        shares = np.asarray(probabilities, dtype=np.float64).reshape(len(outcomes), -1)[used, positive]
        refused = int((~used).sum())
        probability = None
        interval = None
        outcome = OUT_OF_DISTRIBUTION
        if len(shares):
            logits = logits_of(shares)
            probability = float(self.probability(logits))
            interval = self.interval(logits)
            if refused <= MOST_REFUSED * len(outcomes):
                if len(shares) < self.least_cells:
                    outcome = TOO_FEW_CELLS
                elif interval[0] < 0.5 <= interval[1]:
                    outcome = ABSTAIN
                elif probability >= 0.5:
                    outcome = self.positive_label
                else:
                    outcome = self.labels[1 - positive]
        return SubjectPrediction(
            subject=subject,
            outcome=outcome,
            positive_label=self.positive_label,
            probability=probability,
            interval=interval,
            cells=len(outcomes),
            used=len(shares),
            refused=refused,
            abstained=sum(outcome == ABSTAIN for outcome in outcomes),
            rule=self,
        )


def predict_subjects(
    predictor: Predictor, source: CellSource, *, batch_size: int = 32
) -> tuple[list[SubjectPrediction], list[UnreadableImage]]:
    """Predict for each subject of a source, in the order of their names; also return what could not be read.

    Only the cells' probabilities are kept. Copies of a picture, pixel for pixel, count once.

    Raises:
        LeukoscopeError: the release was not measured by subject, no cell could be read, two subjects have the same
            picture, the subjects have the names of classes, or as `CellSource.subjects`.
    """
    rule = SubjectRule.of_release(predictor.release)
    cells: dict[str, list[tuple[list[float], str]]] = {}
    first: dict[str, tuple[str, str]] = {}  # pixel hash → file and subject
    unreadable: list[UnreadableImage] = []
    copies: list[str] = []
    filled = 0
    subjects = source.subjects()
    require_people(subjects, predictor.release.labels)
    predictions = predictor.iter_predictions((cell.file for cell in source.cells), batch_size=batch_size)
    rows = zip(source.cells, subjects, predictions, strict=True)
    for cell, subject, prediction in track(rows, "predicting cells", len(source.cells)):
        if isinstance(prediction, UnreadableImage):
            unreadable.append(prediction)
            continue
        filled += prediction.checks.filled_with is not None
        if prediction.pixel_hash not in first:
            first[prediction.pixel_hash] = (cell.file, subject)
            cells.setdefault(subject, []).append((list(prediction.probabilities.values()), prediction.outcome))
            continue
        other, owner = first[prediction.pixel_hash]
        if owner != subject:
            raise DataError(
                f"{cell.file}: is the same picture as {other}, pixel for pixel, which is of another subject "
                f"({subject!r} and {owner!r}); give it to one of them"
            )
        copies.append(f"{cell.file} of {other}")
    if copies:
        count = f"{len(copies):,} picture(s) are copies of others, pixel for pixel, and count once"
        note(f"{count}, for example {copies[0]}", err=True)
    note(filled_note(filled, len(source.cells), predictor.release.blank_rgb), err=True)
    if not cells:
        raise DataError(f"none of the {len(unreadable)} files could be read, the first: {unreadable[0]}")
    subject_predictions = []
    for subject, cells_of_subject in sorted(cells.items()):
        probabilities = np.array([shares for shares, _ in cells_of_subject])
        outcomes = [outcome for _, outcome in cells_of_subject]
        subject_predictions.append(rule.predict(probabilities, outcomes, subject=subject))
    return subject_predictions, unreadable
