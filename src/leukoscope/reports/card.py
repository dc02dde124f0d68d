"""The model card of a release, rendered from its metrics.json, and the page of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from timm.models import get_pretrained_cfg
from torch.utils.flop_counter import FlopCounterMode

from leukoscope import LeukoscopeError, ReleaseError
from leukoscope.data.registry import DATASETS
from leukoscope.evaluation import plots
from leukoscope.evaluation.metrics import NOT_KNOWN
from leukoscope.files import disk_errors, resource_file, write_atomic
from leukoscope.inference.gradcam import is_map_of_channels
from leukoscope.inference.prediction import WITHOUT_CLASS
from leukoscope.inference.predictor import Predictor
from leukoscope.models.build import FROM_HUB, FROM_SCRATCH
from leukoscope.models.hub_download import parse_hub_id
from leukoscope.models.metrics import METRICS_FILE, Figures, Intervals, MapChecks, Metrics, Rate, Robustness
from leukoscope.models.recipes import TIMM
from leukoscope.models.release import (
    CARD_FILE,
    FIGURES_FOLDER,
    PREDICTIONS_FOLDER,
    WEIGHTS_FILE,
    folder_name,
    read_config,
    read_metrics,
    read_release,
)
from leukoscope.models.weights import load_release
from leukoscope.progress import note
from leukoscope.reports import tables
from leukoscope.synthetic import PHANTOM_LABELS, SMEAR_LABELS, draw_cell, smear_picture

CARD_TEMPLATE = "model_card/template.md"
EVALUATION_TEMPLATE = "model_card/evaluation.md"
WORST_SUBJECTS = 10  # of an evaluation's page
_NEEDED = ("labels", "data", "recipe", "training", "evaluations")  # of metrics.json
# Plot → its alt text; a card shows the first that its release has.
CARD_PLOTS = {
    "subjects": "Accuracy of each {unit}'s {pictures}, by class, from networks that never saw the {unit}",
    "confusion": "Confusion matrix: {pictures} of each true class by predicted class, counts and shares",
}
# Start weights from a file, of the releases that come along; those networks were published under Apache 2.0 or BSD.
_OWN_START_WEIGHTS = (
    "ImageNet DenseNet169 (Keras Applications)",
    "channels selected from ImageNet EfficientNet-B4",
    "stem and dense blocks 1-3 of ImageNet DenseNet201",
)
EXAMPLE_PICTURES = "examples/phantom_*.png"  # pictures that the Hub's page of a model offers to predict
CARD_LAYOUT = "---\n{{ card_data }}\n---\n\n{{ body }}"


def render_card(release: Path, *, hub_id: str = "", licence: str = "") -> str:
    """Render the model card of a release, as Markdown with the Hub's YAML front matter.

    Args:
        release: a folder with config.json and metrics.json.
        hub_id: where it is published; its folder name stands in until then.
        licence: of the weights, as the Hub names it ("mit"); "" for `default_licence`.

    Raises:
        ReleaseError: a release without measurements.
    """
    metrics = _measured(release)
    config = read_config(release)
    unit = metrics.data.unit
    name = hub_id.split("/")[-1] or folder_name(release)
    licence = licence or default_licence(metrics)
    has_weights = (release / WEIGHTS_FILE).is_file()
    size = dict.fromkeys(("parameters", "macs", "file"), "–")
    has_map = True
    if has_weights:
        size, has_map = _measure_network(release)
    unseen = metrics.unseen_evaluation
    pictures = "fields of view" if metrics.takes_fields else "cells"
    # `ModelCard.from_template` renders a missing value as nothing, and would run a template within metrics.json.
    body = tables.rendered(
        resource_file(CARD_TEMPLATE),
        **{block: content for block, content in metrics if block != "notice"},
        metrics=metrics,
        name=name,
        hub_id=hub_id,
        model=hub_id or f"path/to/{folder_name(release)}",
        unit=unseen.split.disjoint_by if unseen else unit,
        picture="field of view" if metrics.takes_fields else "cell",
        pictures=pictures,
        people=unseen,
        perhaps_seen=unseen is not None and unseen.estimates == NOT_KNOWN,
        preprocessing=config["pretrained_cfg"],
        size=size,
        figures={plot: CARD_PLOTS[plot].format(unit=unit, pictures=pictures) for plot in _plots_shown(release)},
        recognised_table=tables.recognised_table,
        healthy_with_class=tables.healthy_with_class,
        robustness_table=tables.robustness_table,
        map_checks=list(filter(None, (metrics.heat_maps, metrics.occlusion_maps))) or [MapChecks()],
        has_map=metrics.heat_maps is not None or has_map,
        has_predictions=(release / PREDICTIONS_FOLDER).is_dir(),
        published=bool(getattr(DATASETS.get(metrics.data.name), "url", "")),
        new_aliases=tables.new_aliases(metrics),
    )
    data = _card_data(metrics, name, licence=licence, widget=_widget(release) if has_weights else None)
    return str(ModelCard.from_template(data, template_str=CARD_LAYOUT, body=body))


def _plots_shown(release: Path) -> list[str]:
    """The first of `CARD_PLOTS` that was drawn for a release; [] where none was."""
    drawn = [name for name in CARD_PLOTS if (release / FIGURES_FOLDER / f"{name}.png").is_file()]
    return drawn[:1]


def _measure_network(release: Path) -> tuple[dict[str, str], bool]:
    """Parameters, multiply-adds and megabytes of a release's network; and whether it gives maps.

    A vision transformer gives none.
    """
    loaded = load_release(release)
    network = loaded.network
    side = loaded.preprocessing.image_size
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        features = network.forward_features(torch.zeros(1, 3, side, side))  # type: ignore[operator]
    parameters = sum(tensor.numel() for tensor in network.parameters())
    size = {
        "parameters": f"{parameters / 1e6:.2f} M",
        "macs": f"{counted.get_total_flops() / 2e9:.2f} G",
        "file": f"{(release / WEIGHTS_FILE).stat().st_size / 1e6:.1f} MB",
    }
    return size, is_map_of_channels(network, features)


def _widget(release: Path) -> list[dict[str, Any]] | None:
    """The example pictures of a release with what it predicts for each, as the Hub shows them; None without any."""
    examples = sorted(release.glob(EXAMPLE_PICTURES))
    if not examples:
        return None
    predictions = Predictor.from_pretrained(release, backend="torch", device="cpu")(examples)
    return [
        {
            "src": path.relative_to(release).as_posix(),
            "example_title": f"synthetic cell, drawn as {path.stem.removeprefix('phantom_')}",
            "output": _scores(prediction.probabilities),
        }
        for path, prediction in zip(examples, predictions, strict=True)
    ]


def _scores(probabilities: Mapping[str, float]) -> list[dict[str, Any]]:
    """Probabilities as the Hub's widget takes them."""
    return [{"label": label, "score": round(probability, 3)} for label, probability in probabilities.items()]


def write_card(release: Path, *, hub_id: str = "", licence: str = "") -> Path:
    """Draw the release's plots and render the card into its README.md; arguments and errors as of `render_card`."""
    for missing in _measured(release).filled_in:  # raises before a plot is drawn
        note(f"{release / METRICS_FILE}: of an older version, read with {missing}")
    draw_plots(release)
    card = render_card(release, hub_id=hub_id, licence=licence)
    with disk_errors(f"{release / CARD_FILE}: cannot be written", "check who may write there"):
        return write_atomic(release / CARD_FILE, card)


def _measured(release: Path) -> Metrics:
    metrics = read_metrics(release)
    missing = [block for block in _NEEDED if block not in metrics.model_fields_set]
    if missing:
        raise ReleaseError(
            f"{release / METRICS_FILE}: missing, or without {missing[0]!r}; a card is rendered from the measurements "
            "that `leukoscope train` and `leukoscope protocol` write there"
        )
    if metrics.data.name == "imagefolder":
        metrics.data.title = "The author's own cells"
        metrics.data.licence = ""
    return metrics


def _card_data(metrics: Metrics, name: str, *, licence: str, widget: list[dict[str, Any]] | None) -> ModelCardData:
    """The card's YAML front matter: a description of the model, and its test results."""
    dataset = _hub_dataset(metrics.data.name)
    base_model = _base_model(metrics)
    results = list(_eval_results(metrics))
    return ModelCardData(
        license=licence or None,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "transformers", "leukoscope", "medical", "leukaemia", "blood-cells"],
        datasets=[dataset] if dataset else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        metrics=["f1", "roc_auc"],
        eval_results=results or None,
        model_name=name if results else None,
        widget=widget,
    )


def default_licence(metrics: Metrics) -> str:
    """The licence of weights whose author named none: "apache-2.0" where data and start weights allow it, else ""."""
    if metrics.data.name not in DATASETS.keys() - {"imagefolder"}:
        return ""
    if metrics.training.start_weights in (FROM_SCRATCH, *_OWN_START_WEIGHTS):
        return "apache-2.0"
    base_model = _base_model(metrics) or ""
    try:
        configuration = get_pretrained_cfg(base_model.removeprefix(TIMM))
    except RuntimeError:  # timm knows no such weights
        return ""
    licence = getattr(configuration, "license", None) or ""
    if licence in ("apache-2.0", "mit") or licence.startswith("bsd"):
        return "apache-2.0"
    return ""


@dataclass(frozen=True)
class _Measurement:
    """What `model-index` of a card names of one evaluation."""

    config: str
    detail: str
    estimates: str
    figures: Mapping[str, float | None]


def _measurements(metrics: Metrics) -> list[_Measurement]:
    """The outside check, where there is one, then the first evaluation on unseen subjects, or else the first."""
    measurements = []
    further = metrics.further_subjects
    if further:
        figures = {key: estimate.value for key, estimate in further.figures.items()}
        weights = "earlier weights" if further.earlier_weights else "these weights"
        measurements.append(_Measurement("further_subjects", f"{further.subjects} further subjects", weights, figures))
    own = [evaluation for evaluation in metrics.evaluations if evaluation.name != "recalibration"]
    unseen = [evaluation for evaluation in own if evaluation.is_unseen]
    for test in (unseen or own)[:1]:
        measurements.append(_Measurement(test.name, test.split.detail, test.estimates, dict(test.metrics)))
    return measurements


def _eval_results(metrics: Metrics) -> Iterator[EvalResult]:
    data = metrics.data
    kinds = (
        ("roc_auc", "auroc_by_subject", f"AUROC by {data.unit}"),
        ("balanced_accuracy", "balanced_accuracy_by_subject", f"balanced accuracy by {data.unit}"),
        ("f1", "f1_weighted", "weighted F1"),
    )
    for measurement in _measurements(metrics):
        for metric_type, key, name in kinds:
            figure = measurement.figures.get(key)
            if figure is None:
                continue
            yield EvalResult(
                task_type="image-classification",
                dataset_name=f"{data.title} — {measurement.detail}; estimates: {measurement.estimates}",
                dataset_type=_hub_dataset(data.name) or data.name,
                # Results of one data set, config and split are merged when a card is loaded and saved.
                dataset_config=measurement.config,
                dataset_split="test",
                metric_type=metric_type,
                metric_name=name,
                metric_value=round(figure, 3),
            )


def _hub_dataset(name: str) -> str | None:
    """The id of the data set on the Hub; None where there is none, as for a folder of parquet files."""
    if name in DATASETS:
        return DATASETS[name].hub_id
    try:
        return parse_hub_id(name)[0]
    except LeukoscopeError:
        return None


def _base_model(metrics: Metrics) -> str | None:
    """The Hub repository of the start weights; None for a file, a folder or random weights."""
    started_from = metrics.training.started_from
    if started_from:
        return started_from.release if started_from.revision else None
    base_model = metrics.recipe.base_model
    is_from_hub = base_model and metrics.training.start_weights == f"{FROM_HUB}{base_model}"
    return base_model if is_from_hub else None


def draw_examples(release: Path) -> list[Path]:
    """Draw one synthetic cell per class into `EXAMPLE_PICTURES`."""
    folder = (release / EXAMPLE_PICTURES).parent
    folder.mkdir(exist_ok=True)
    for label, pixels in _example_pictures(release).items():
        Image.fromarray(pixels).save(folder / f"phantom_{label}.png")
    return sorted(release.glob(EXAMPLE_PICTURES))


def _example_pictures(release: Path) -> dict[str, np.ndarray]:
    """Class → (H, W, 3) uint8, a synthetic smear or cell such as the release was trained on."""
    content = read_release(release)
    if set(content.labels) == set(SMEAR_LABELS):
        return {label: smear_picture(label, 0) for label in SMEAR_LABELS}
    info = content.metrics.dataset or DATASETS["imagefolder"]
    side = 2 * content.preprocessing.image_size
    pictures = {}
    for number, label in enumerate(PHANTOM_LABELS):
        cell = draw_cell(label, subject=number, size=side, background=info.background)
        pictures[label] = cell.image
    return pictures


def draw_plots(release: Path) -> list[Path]:
    """Draw the plot of a card; equal metrics give an equal file."""
    metrics = read_metrics(release)
    evaluation = metrics.unseen_evaluation or metrics.first_evaluation
    if evaluation is None:
        return []
    figures = evaluation.metrics
    if evaluation.folds and figures.subjects:
        name = "subjects"
        figure = plots.subject_strip(figures.subjects, metrics.labels, metrics.data.unit)
    else:
        name = "confusion"
        figure = plots.confusion_plot(figures.confusion_matrix, metrics.labels)
    folder = release / FIGURES_FOLDER
    with disk_errors(f"{folder}: the plot cannot be written there", "check who may write there"):
        folder.mkdir(exist_ok=True)
        return [plots.save_plot(figure, folder / f"{name}.png")]


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """Render the content of evaluation.json as Markdown."""
    figures = Figures.model_validate(evaluation["metrics"])
    intervals = evaluation["intervals"]
    typed = Intervals.model_validate({**intervals, "by_subject": intervals["by_subject"] or {}})
    values: dict[str, Any] = {
        **evaluation,
        "without_class": {name: n for name, n in evaluation["decisions"]["outcomes"].items() if name in WITHOUT_CLASS},
        "metrics_table": tables.metrics_table(evaluation["figures"], typed, evaluation["unit"]),
        "confusion_table": tables.confusion_table(figures, list(figures.per_class)),
        "subjects_table": tables.subjects_table(figures, evaluation["unit"], most=WORST_SUBJECTS),
    }
    rule = evaluation["subject_rule"]
    if rule:
        rates = {key: Rate.model_validate(rule[key]) for key in ("sensitivity", "specificity")}
        values["subject_rule"] = {**rule, **rates}
    if "robustness" in evaluation:
        robustness = Robustness.model_validate(evaluation["robustness"])
        values["robustness_table"] = tables.robustness_table(robustness, list(figures.per_class))
    return tables.rendered(resource_file(EVALUATION_TEMPLATE), **values)
