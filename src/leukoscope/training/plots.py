"""The plots of a finished run, in `figures/` of the run folder, made from its files.

Curves, confusion matrix, each class by itself, the network's stages and a grid of cells with their predictions. A run
folder may show its owner's test cells; where nothing was tested, and in releases, phantoms take their place. Model
cards use parts of this module.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.registry import DATASETS, trained_on
from leukoscope.evaluation.metrics import CellPredictions, class_report, even_sample
from leukoscope.evaluation.plots import (
    SampleCell,
    confusion_plot,
    curves_plot,
    network_plot,
    one_vs_rest_plot,
    samples_plot,
    save_plot,
)
from leukoscope.files import disk_errors, write_atomic
from leukoscope.inference.predictor import Predictor
from leukoscope.models.layers import frozen_modules
from leukoscope.models.release_files import FIGURES, ReleaseInfo, read_metrics, write_json
from leukoscope.synthetic import PHANTOM_LABELS, SMEAR_LABELS, draw_cell, knows_smears, smear_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 18
# A module with more than this share of the parameters is shown by its parts instead of one row.
_TOO_LARGE = 0.75


def draw_run(out: Path, network: nn.Module, cells: FramedCells) -> list[Path]:
    """Plot a finished run into its `figures/` folder, which is emptied first.

    Args:
        out: the run folder with summary.csv, metrics.json, release/ and, where cells were tested, predictions.parquet.
        network: the trained network.
        cells: the run's.

    Returns:
        The pictures, and class_report.txt and .json, where something was tested.

    Raises:
        LeukoscopeError: the folder cannot be written.
    """
    folder = out / FIGURES
    shutil.rmtree(folder, ignore_errors=True)
    with disk_errors(f"{folder}: the plots cannot be written there", "check who may write there"):
        folder.mkdir(exist_ok=True)
        saved = [save_plot(figure, folder / f"{name}.png") for name, figure in _plots(out, network, cells)]
        tested = read_metrics(out)["evaluations"]
        return saved + (write_class_report(folder, tested[0]["metrics"]) if tested else [])


def _plots(out: Path, network: nn.Module, cells: FramedCells) -> Iterator[tuple[str, Figure]]:
    metrics = read_metrics(out)
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        epochs = [{k: float(v) for k, v in row.items() if v not in (None, "", "nan")} for row in csv.DictReader(file)]
    yield "curves", curves_plot(epochs, metrics["training"]["kept_epoch"])
    yield "network", structure_figure(network, metrics["recipe"]["image_size"], metrics["recipe"]["frozen"])
    if not metrics["evaluations"]:
        yield "samples", phantom_samples(Predictor.from_pretrained(out / "release", backend="torch", device="cpu"))
        return
    tested = metrics["evaluations"][0]["metrics"]
    yield "confusion", confusion_plot(tested["confusion_matrix"], metrics["labels"])
    if len(metrics["labels"]) > 2:
        yield "one_vs_rest", one_vs_rest_plot(class_report(tested)["classes"])
    yield "samples", tested_samples(CellPredictions.load(out / "predictions.parquet"), cells)


def write_class_report(folder: Path, metrics: Mapping[str, Any]) -> list[Path]:
    """Write class_report.json, and class_report.txt for a person."""
    report = class_report(metrics)
    write_json(folder / "class_report.json", report)
    return [write_atomic(folder / "class_report.txt", _as_text(report)), folder / "class_report.json"]


def _as_text(report: Mapping[str, Any]) -> str:
    columns = ("precision", "recall", "specificity", "f1", "one_vs_rest_accuracy")
    rows = {**report["classes"], "mean over classes": report["mean"] | {"support": report["cells"]}}
    first = max(map(len, rows))

    def line(name: str, row: Mapping[str, Any]) -> str:
        shares = ("–" if row[key] is None else f"{row[key]:.3f}" for key in columns)
        cells = (f"{share:>{max(len(key), 9)}}" for key, share in zip(columns, shares, strict=True))
        return "  ".join([f"{name:{first}}", *cells, f"{row['support']:>7,}"])

    head = "  ".join([" " * first, *(f"{key.replace('_', ' '):>9}" for key in columns), f"{'cells':>7}"])
    overall = f"accuracy {report['accuracy']:.3f}, balanced accuracy {report['balanced_accuracy']:.3f}"
    return "\n".join([head, *(line(name, row) for name, row in rows.items()), "", overall, RESEARCH_NOTICE, ""])


def tested_samples(predictions: CellPredictions, cells: FramedCells) -> Figure:
    """Test cells with their predictions, sampled evenly over classes and subjects by a fixed seed."""
    chosen = even_sample(predictions.references, predictions.subjects, SAMPLES, seed=0)
    names, rows = predictions.label_names, cells.rows(predictions.cell_ids)
    shown = [
        SampleCell(
            cells.pixels[rows[i]],
            names[predictions.predicted[i]],
            float(predictions.probabilities[i].max()),
            names[predictions.references[i]],
        )
        for i in chosen
    ]
    return samples_plot(shown, "test cells, sampled evenly over classes and subjects; none was chosen by hand")


def phantom_samples(predictor: Predictor) -> Figure:
    """Phantoms with a release's predictions: they may be published, since no patient's cell is shown.

    Phantoms are drawn as ALL and HEM or, for a release of the four-class B-ALL set, as smears of its classes; where the
    release has none of these classes, its predictions are marked neither right nor wrong.
    """
    phantoms = list(phantoms_for(predictor.release))
    predictions = predictor([image for _, image in phantoms])
    shown = [
        SampleCell(
            image,
            predicted.most_probable,
            max(predicted.probabilities.values()),
            label if label in predictor.labels else "",
        )
        for (label, image), predicted in zip(phantoms, predictions, strict=True)
    ]
    return samples_plot(shown, "phantoms: synthetic cells, none of a patient; their predictions measure nothing")


def phantoms_for(release: ReleaseInfo) -> Iterator[tuple[str, np.ndarray]]:
    """Label and picture of each phantom that a release is shown with."""
    if knows_smears(release.labels):
        for i, label in zip(range(SAMPLES), cycle(SMEAR_LABELS), strict=False):
            yield label, smear_picture(label, i // len(SMEAR_LABELS))
        return
    background = (trained_on(release.metrics) or DATASETS["imagefolder"]).background
    side = 2 * release.preprocessing.image_size
    for i, label in zip(range(SAMPLES), cycle(PHANTOM_LABELS), strict=False):
        yield label, draw_cell(label, subject=i, size=side, background=background).image


@dataclass(frozen=True)
class Stage:
    """One row of a network's structure.

    Attributes:
        name: its path in the network.
        kind: its module's class.
        output: shape for one picture, without the batch.
        parameters: their number.
        trains: whether training changes any of them.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    trains: bool


def structure_figure(network: nn.Module, image_size: int, frozen: Sequence[str] = ()) -> Figure:
    """A network's stages with their outputs and parameters, as a table; arguments as for `network_stages`."""
    stages = network_stages(network, image_size, frozen)
    total = sum(p.numel() for p in network.parameters())
    rows = [
        (
            stage.name,
            stage.kind,
            " × ".join(map(str, stage.output)),
            f"{stage.parameters:,}" if stage.parameters else "–",
            ("yes" if stage.trains else "frozen") if stage.parameters else "–",
        )
        for stage in stages
    ]
    picture = ("picture", "", f"3 × {image_size} × {image_size}", "", "")
    return network_plot(
        ("stage", "layer", "output", "parameters", "trains"), [picture, *rows, ("all", "", "", f"{total:,}", "")]
    )


def network_stages(network: nn.Module, image_size: int, frozen: Sequence[str] = ()) -> list[Stage]:
    """The stages that one picture passes through, in their order.

    A module that holds most of the network is shown by its parts, and so is what follows the pooling, where classifiers
    of one backbone differ. The network is left in evaluation mode.

    Args:
        image_size: side of the picture in pixels.
        frozen: a recipe's `frozen` modules; a released network does not record them.
    """
    outputs: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs[module] = tuple(output.shape[1:])

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    picture = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    try:
        with torch.inference_mode():
            network.eval()(picture)
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(p.numel() for p in network.parameters())
    still, stages = frozen_modules(network, frozen) if "backbone" in frozen else frozen, []
    for name, module in _rows(network, outputs, total):
        parameters = sum(p.numel() for p in module.parameters())
        is_frozen = any(f"{name}.".startswith(f"{prefix}.") for prefix in still)
        trains = parameters > 0 and not is_frozen
        stages.append(Stage(name, type(module).__name__, outputs[module], parameters, trains))
    return stages


def _rows(
    network: nn.Module, outputs: Mapping[nn.Module, tuple[int, ...]], total: int, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_children():
        size = sum(p.numel() for p in module.parameters())
        seen = module in outputs and not isinstance(module, nn.Identity)
        behind_pooling = len(outputs.get(module, ())) == 1 and size > 0
        if any(module.children()) and (size > _TOO_LARGE * total or behind_pooling):
            yield from _rows(module, outputs, total, f"{prefix}{name}.")
        elif seen:
            yield f"{prefix}{name}", module
