"""The plots of a model card: drawn from a release's metrics.json, predictions and weights into its figures/ folder.

They contain no patient's picture: predictions are shown on phantoms.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.evaluation.plots import (
    confusion_plot,
    reliability_diagram,
    risk_coverage_curve,
    roc_plot,
    save_plot,
    subject_strip,
)
from leukoscope.inference.predictor import Predictor
from leukoscope.models.release import load_release
from leukoscope.models.release_files import FIGURES, PREDICTIONS, WEIGHTS, read_metrics
from leukoscope.reports.release_tables import detailed_evaluation
from leukoscope.training.plots import figures_folder, phantom_samples, structure_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The alt text of each plot of the card, in the order of the card.
SHOWN = {
    "samples": "Synthetic cells (phantoms) with this release's predictions and probabilities; nothing about patients",
    "network": "The network's stages from the picture to the logits, with their outputs and numbers of parameters",
    "confusion": "Confusion matrix: cells of each true class by predicted class, counts and shares",
    "subjects": "Accuracy of each subject's cells, by class, from networks that never saw the subject",
    "reliability": "Reliability diagram: accuracy against confidence, before and after temperature scaling",
    "roc": "ROC curve of the out-of-fold predictions with the operating points",
    "risk_coverage": "Share of wrong predictions against the share of cells that get a class",
}


def draw_plots(release: Path) -> list[Path]:
    """Draw every plot that the release has the weights or the metrics for.

    Returns:
        The files written, in the order of the card; equal weights and metrics give equal files.

    Raises:
        LeukoscopeError: weights that cannot be loaded, or a folder that cannot be written.
    """
    folder, figures = release / FIGURES, list(_drawn(release))
    with figures_folder(folder):
        return [save_plot(figure, folder / f"{name}.png") for name, figure in figures]


def _drawn(release: Path) -> Iterator[tuple[str, Figure]]:
    metrics = read_metrics(release)
    if (release / WEIGHTS).is_file():
        recipe = metrics["recipe"]
        yield "samples", phantom_samples(Predictor.from_pretrained(release))
        yield "network", structure_figure(load_release(release).network, recipe["image_size"], recipe["frozen"])
    tested = detailed_evaluation(metrics)
    if tested is not None:
        yield "confusion", confusion_plot(tested["metrics"]["confusion_matrix"], metrics["labels"])
    if tested is None or "calibration" not in metrics:
        return
    yield "subjects", subject_strip(tested["metrics"]["subjects"], metrics["labels"])
    yield "reliability", reliability_diagram(metrics["calibration"])
    answers = release / PREDICTIONS / f"{tested['name']}.parquet"
    if metrics["decisions"]["operating_points"] and answers.is_file():
        yield "roc", roc_plot(CellPredictions.load(answers), metrics["decisions"]["operating_points"])
    yield "risk_coverage", risk_coverage_curve(metrics["decisions"]["abstention"])
