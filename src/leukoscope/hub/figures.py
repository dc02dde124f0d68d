"""The figures of a model card: drawn from a release's metrics.json, answers and weights into its figures/ folder.

No patient's picture is in them: what a release answers is shown on phantoms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukoscope.evaluation.figures import confusion_figure, save_figure, subject_strip
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.evaluation.reliability import reliability_diagram, risk_coverage_curve, roc_figure
from leukoscope.inference.predictor import Predictor
from leukoscope.models.release import load_release
from leukoscope.models.release_files import FIGURES, PREDICTIONS, WEIGHTS, read_metrics
from leukoscope.training.figures import figures_folder, phantom_samples, structure_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each shows, in words: the alt text of the card. Their order is that of the card.
SHOWN = {
    "samples": "Synthetic cells (phantoms) with this release's answers and probabilities; nothing about patients",
    "network": "The network's stages from the picture to the answer, with their outputs and numbers of parameters",
    "confusion": "Confusion matrix: cells of each true class by what they were answered as, counts and shares",
    "subjects": "Accuracy of each subject's cells, by class, from networks that never saw the subject",
    "reliability": "Reliability diagram: accuracy against confidence, before and after temperature scaling",
    "roc": "ROC curve of the out-of-fold answers with the operating points",
    "risk_coverage": "Share of wrong answers against the share of cells answered",
}


def draw_figures(release: Path) -> list[Path]:
    """Draw every figure that the release has the weights or the numbers for.

    Returns:
        The files written, in the order of the card; equal weights and numbers give equal files.

    Raises:
        LeukoscopeError: weights that cannot be loaded, or a folder that cannot be written.
    """
    folder, figures = release / FIGURES, list(_drawn(release))
    with figures_folder(folder):
        return [save_figure(figure, folder / f"{name}.png") for name, figure in figures]


def judged_evaluation(metrics: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The evaluation a card speaks of in detail: that of the recalibration, else the first; None without any."""
    evaluations = metrics["evaluations"]
    return evaluations[-1 if "recalibration" in metrics else 0] if evaluations else None


def _drawn(release: Path) -> Iterator[tuple[str, Figure]]:
    metrics = read_metrics(release)
    if (release / WEIGHTS).is_file():
        yield from _of_the_weights(release, metrics["recipe"])
    tested = judged_evaluation(metrics)
    if tested is not None:
        yield "confusion", confusion_figure(tested["metrics"]["confusion_matrix"], metrics["labels"])
    if tested is None or "calibration" not in metrics:
        return
    yield "subjects", subject_strip(tested["metrics"]["subjects"], metrics["labels"])
    yield "reliability", reliability_diagram(metrics["calibration"])
    answers = release / PREDICTIONS / f"{tested['name']}.parquet"
    if metrics["decisions"]["operating_points"] and answers.is_file():
        yield "roc", roc_figure(CellPredictions.load(answers), metrics["decisions"]["operating_points"])
    yield "risk_coverage", risk_coverage_curve(metrics["decisions"]["abstention"])


def _of_the_weights(release: Path, recipe: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    yield "samples", phantom_samples(Predictor.from_pretrained(release))
    yield "network", structure_figure(load_release(release).network, recipe["image_size"], recipe["frozen"])
