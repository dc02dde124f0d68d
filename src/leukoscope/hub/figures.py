"""The figures of a model card: drawn from a release's metrics.json and answers into its figures/ folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from leukoscope.evaluation.figures import subject_strip
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.evaluation.reliability import reliability_diagram, risk_coverage_curve, roc_figure
from leukoscope.models.release import FIGURES, PREDICTIONS, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each shows, in words: the alt text of the card. Their order is that of the card.
SHOWN = {
    "subjects": "Accuracy of each subject's cells, by class, from networks that never saw the subject",
    "reliability": "Reliability diagram: accuracy against confidence, before and after temperature scaling",
    "roc": "ROC curve of the out-of-fold answers with the operating points",
    "risk_coverage": "Share of wrong answers against the share of cells answered",
}


def draw_figures(release: Path) -> list[Path]:
    """Draw every figure that the release has the numbers for.

    Returns:
        The files written, in the order of the card; none for a release without calibration.
    """
    return [_write(release / FIGURES / f"{name}.png", figure) for name, figure in _drawn(release)]


def _drawn(release: Path) -> Iterator[tuple[str, Figure]]:
    metrics = read_metrics(release)
    if "calibration" not in metrics:
        return
    tested = metrics["evaluations"][-1 if "recalibration" in metrics else 0]
    yield "subjects", subject_strip(tested["metrics"]["subjects"], metrics["labels"])
    yield "reliability", reliability_diagram(metrics["calibration"])
    answers = release / PREDICTIONS / f"{tested['name']}.parquet"
    if metrics["decisions"]["operating_points"] and answers.is_file():
        yield "roc", roc_figure(CellPredictions.load(answers), metrics["decisions"]["operating_points"])
    yield "risk_coverage", risk_coverage_curve(metrics["decisions"]["abstention"])


def _write(path: Path, figure: Figure) -> Path:
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}")
    # Without the library's version, the same numbers give the same file.
    figure.savefig(aside, format="png", dpi=110, metadata={"Software": None})
    return aside.replace(path)
