"""The model card of a release, rendered from its metrics.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from timm.models import get_pretrained_cfg
from torch.utils.flop_counter import FlopCounterMode

from leukoscope import LeukoscopeError
from leukoscope.data.registry import DATASETS, trained_on
from leukoscope.evaluation import plots
from leukoscope.evaluation.metrics import NOT_KNOWN
from leukoscope.files import disk_errors, resource_file, write_atomic
from leukoscope.inference.gradcam import is_map_of_channels
from leukoscope.inference.predictor import Predictor
from leukoscope.models.build import FROM_HUB, FROM_SCRATCH
from leukoscope.models.hub_download import parse_hub_id
from leukoscope.models.map_check import MapCheck
from leukoscope.models.recipes import TIMM
from leukoscope.models.release import (
    CARD,
    FIGURES,
    METRICS,
    WEIGHTS,
    folder_name,
    read_config,
    read_metrics,
    read_release,
)
from leukoscope.models.weights import load_release
from leukoscope.reports import formatting, release_tables
from leukoscope.synthetic import PHANTOM_LABELS, SMEAR_LABELS, draw_cell, smear_picture

TEMPLATE = "model_card/template.md"
_NEEDED = ("labels", "data", "recipe", "training", "evaluations")  # of metrics.json
# Plot → its alt text; a card shows the first that its release has.
SHOWN = {
    "subjects": "Accuracy of each subject's cells, by class, from networks that never saw the subject",
    "confusion": "Confusion matrix: cells of each true class by predicted class, counts and shares",
}
# Start weights from a file, of the releases that come along; those networks were published under Apache 2.0 or BSD.
_OWN_START_WEIGHTS = (
    "ImageNet DenseNet169 (Keras Applications)",
    "channels selected from ImageNet EfficientNet-B4",
    "stem and dense blocks 1-3 of ImageNet DenseNet201",
)
EXAMPLES = "examples/phantom_*.png"  # pictures that the Hub's page of a model offers to predict
FRONT_AND_TEXT = "---\n{{ card_data }}\n---\n\n{{ body }}"


def render_card(release: Path, *, hub_id: str = "", licence: str = "") -> str:
    """Render the model card of a release, as Markdown with the Hub's YAML front matter.

    Args:
        release: a folder with config.json and metrics.json.
        hub_id: where it is published; its folder name stands in until then.
        licence: of the weights, as the Hub names it ("mit"); "" for `default_licence`.

    Raises:
        LeukoscopeError: a release without measurements.
    """
    metrics, config = _measured(release), read_config(release)
    name, unit = hub_id.split("/")[-1] or folder_name(release), metrics["data"]["unit"]
    licence = licence or default_licence(metrics)
    training, has_weights = metrics["training"], (release / WEIGHTS).is_file()
    size, has_map = (
        _measure_network(release) if has_weights else (dict.fromkeys(("parameters", "macs", "file"), "–"), True)
    )
    unseen = release_tables.unseen_evaluation(metrics)
    # `ModelCard.from_template` renders a missing value as nothing, and would run a template within metrics.json.
    body = formatting.rendered(
        resource_file(TEMPLATE),
        **{key: value for key, value in metrics.items() if key != "notice"},
        metrics=metrics,
        name=name,
        hub_id=hub_id,
        model=hub_id or f"path/to/{folder_name(release)}",
        licence=licence,
        unit=unseen["split"]["disjoint_by"] if unseen else unit,
        people=unseen is not None,
        perhaps_seen=unseen is not None and unseen["estimates"] == NOT_KNOWN,
        preprocessing=config["pretrained_cfg"],
        size=size,
        figures={one: SHOWN[one].replace("subject", unit) for one in _drawn(release)},
        recognised_table=release_tables.recognised_table,
        healthy_given=release_tables.healthy_given,
        frequencies=training.get("output_frequencies") or training.get("class_frequencies"),
        map_check=MapCheck.from_metrics(metrics),
        has_map="heat_maps" in metrics or has_map,
        published=bool(getattr(DATASETS.get(metrics["data"]["name"]), "url", "")),
        new_aliases=formatting.new_aliases(metrics),
    )
    data = _card_data(metrics, name, licence=licence, widget=_widget(release) if has_weights else None)
    return str(ModelCard.from_template(data, template_str=FRONT_AND_TEXT, body=body))


def _drawn(release: Path) -> list[str]:
    return [name for name in SHOWN if (release / FIGURES / f"{name}.png").is_file()][:1]


def _measure_network(release: Path) -> tuple[dict[str, str], bool]:
    """Parameters, multiply-adds and megabytes of a release's network; and whether it gives maps.

    A vision transformer gives none.
    """
    loaded = load_release(release)
    side, network = loaded.preprocessing.image_size, loaded.network
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        features = network.forward_features(torch.zeros(1, 3, side, side))  # type: ignore[operator]
    size = {
        "parameters": f"{sum(one.numel() for one in network.parameters()) / 1e6:.2f} M",
        "macs": f"{counted.get_total_flops() / 2e9:.2f} G",
        "file": f"{(release / WEIGHTS).stat().st_size / 1e6:.1f} MB",
    }
    return size, is_map_of_channels(network, features)


def _widget(release: Path) -> list[dict[str, Any]] | None:
    """The example pictures of a release with what it predicts for each, as the Hub shows them; None without any."""
    if not (examples := sorted(release.glob(EXAMPLES))):
        return None
    predictions = Predictor.from_pretrained(release, backend="torch", device="cpu")(examples)
    return [
        {
            "src": path.relative_to(release).as_posix(),
            "example_title": f"synthetic cell, drawn as {path.stem.removeprefix('phantom_')}",
            "output": [{"label": k, "score": round(v, 3)} for k, v in found.probabilities.items()],
        }
        for path, found in zip(examples, predictions, strict=True)
    ]


def write_card(release: Path, *, hub_id: str = "", licence: str = "") -> Path:
    """Draw the release's plots and render the card into its README.md; arguments and errors as of `render_card`."""
    _measured(release)  # raises before a plot is drawn
    draw_plots(release)
    card = render_card(release, hub_id=hub_id, licence=licence)
    with disk_errors(f"{release / CARD}: cannot be written", "check who may write there"):
        return write_atomic(release / CARD, card)


def _measured(release: Path) -> dict[str, Any]:
    metrics = read_metrics(release)
    if missing := [block for block in _NEEDED if block not in metrics]:
        raise LeukoscopeError(
            f"{release / METRICS}: missing, or without {missing[0]!r}; a card is rendered from the measurements that "
            "`leukoscope train` and `leukoscope protocol` write there"
        )
    if metrics["data"]["name"] == "imagefolder":
        metrics["data"] |= {"title": "The author's own cells", "licence": ""}
    return metrics


def _card_data(
    metrics: Mapping[str, Any], name: str, *, licence: str, widget: list[dict[str, Any]] | None
) -> ModelCardData:
    """The card's YAML front matter: a description of the model, and its test results."""
    dataset, base_model = _hub_dataset(metrics["data"]["name"]), _base_model(metrics)
    results = list(_eval_results(metrics))
    return ModelCardData(
        license=licence or None,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "transformers", "leukoscope", "leukaemia", "blood-cells"],
        datasets=[dataset] if dataset else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        metrics=["f1", "accuracy", "roc_auc"],
        eval_results=results or None,
        model_name=name if results else None,
        widget=widget,
    )


def default_licence(metrics: Mapping[str, Any]) -> str:
    """The licence of weights whose author named none: "apache-2.0" where data and start weights allow it, else ""."""
    if metrics["data"]["name"] not in DATASETS.keys() - {"imagefolder"}:
        return ""
    if metrics["training"]["start_weights"] in (FROM_SCRATCH, *_OWN_START_WEIGHTS):
        return "apache-2.0"
    try:
        licence = getattr(get_pretrained_cfg((_base_model(metrics) or "").removeprefix(TIMM)), "license", None) or ""
    except RuntimeError:  # timm knows no such weights
        return ""
    return "apache-2.0" if licence in ("apache-2.0", "mit") or licence.startswith("bsd") else ""


def _eval_results(metrics: Mapping[str, Any]) -> Iterator[EvalResult]:
    data = metrics["data"]
    weighing = f"each {data['unit']} weighing the same"
    kinds = (
        ("roc_auc", "auroc_by_subject", f"AUROC, {weighing}"),
        ("balanced_accuracy", "balanced_accuracy_by_subject", f"balanced accuracy, {weighing}"),
        ("f1", "f1_weighted", "weighted F1"),
        ("roc_auc", "auroc", "AUROC"),
    )
    blocks = [block for block in metrics["evaluations"] if block["name"] != "recalibration"]
    unseen = [block for block in blocks if block["split"]["disjoint_by"] != "cell"]
    shown = [(one["name"], one["split"]["detail"], one["estimates"], one["metrics"]) for one in (unseen or blocks)[:1]]
    if further := metrics.get("further_subjects"):
        measured = {key: one["value"] for key, one in further.items() if isinstance(one, Mapping)}
        detail, weights = (
            f"{further['subjects']} further subjects",
            "earlier" if further["earlier_weights"] else "these",
        )
        shown.append(("further_subjects", detail, f"{weights} weights", measured))
    for config, detail, estimates, measured in shown:
        for metric_type, key, name in kinds:
            if (value := measured.get(key)) is not None:
                yield EvalResult(
                    task_type="image-classification",
                    dataset_name=f"{data['title']} — {detail}",
                    dataset_type=_hub_dataset(data["name"]) or data["name"],
                    # Results of one data set, config and split are merged when a card is loaded and saved.
                    dataset_config=config,
                    dataset_split="test",
                    metric_type=metric_type,
                    metric_name=f"{name}; estimates: {estimates}",
                    metric_value=round(value, 3),
                )


def _hub_dataset(name: str) -> str | None:
    """The id of the data set on the Hub; None where there is none, as for a folder of parquet files."""
    if name in DATASETS:
        return DATASETS[name].hub_id

    try:
        return parse_hub_id(name)[0]
    except LeukoscopeError:
        return None


def _base_model(metrics: Mapping[str, Any]) -> str | None:
    """The Hub repository of the start weights; None for a file, a folder or random weights."""
    training, pretrained = metrics["training"], metrics["recipe"].get("base_model")
    started_from = training.get("started_from")
    if started_from:
        return started_from["release"] if started_from["revision"] else None
    return pretrained if pretrained and training["start_weights"] == f"{FROM_HUB}{pretrained}" else None


def draw_examples(release: Path) -> list[Path]:
    """Draw one synthetic cell per class into `EXAMPLES`."""
    folder = (release / EXAMPLES).parent
    folder.mkdir(exist_ok=True)
    about = read_release(release)
    if set(about.labels) == set(SMEAR_LABELS):
        pictures = {label: smear_picture(label, 0) for label in SMEAR_LABELS}
    else:
        on = (trained_on(about.metrics) or DATASETS["imagefolder"]).background
        side = 2 * about.preprocessing.image_size
        drawn = {label: draw_cell(label, subject=i, size=side, background=on) for i, label in enumerate(PHANTOM_LABELS)}
        pictures = {label: cell.image for label, cell in drawn.items()}
    for label, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"phantom_{label}.png")
    return sorted(release.glob(EXAMPLES))


def draw_plots(release: Path) -> list[Path]:
    """Draw the plot of a card; equal metrics give an equal file."""
    metrics, folder = read_metrics(release), release / FIGURES
    block = release_tables.unseen_evaluation(metrics) or next(iter(metrics["evaluations"]), None)
    if block is None:
        return []
    measured, unit = block["metrics"], metrics["data"]["unit"]
    if block.get("folds") and measured.get("subjects"):
        name, figure = "subjects", plots.subject_strip(measured["subjects"], metrics["labels"], unit)
    else:
        name, figure = "confusion", plots.confusion_plot(measured["confusion_matrix"], metrics["labels"])
    with disk_errors(f"{folder}: the plot cannot be written there", "check who may write there"):
        folder.mkdir(exist_ok=True)
        return [plots.save_plot(figure, folder / f"{name}.png")]
