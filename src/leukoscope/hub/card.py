"""The model card of a release, rendered from its metrics.json: a figure in prose cannot drift from the one measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.files import write_whole
from leukoscope.cells.phantom_smears import knows_smears
from leukoscope.cells.phantoms import PHANTOM_LABELS
from leukoscope.cells.registry import DATASETS
from leukoscope.hub.figures import SHOWN, draw_figures, judged_evaluation
from leukoscope.hub.shipped import shipped_file
from leukoscope.hub.wording import count, gain, joined_since, minutes, pooling, share, span, with_interval
from leukoscope.models.build import hub_weights_name
from leukoscope.models.release_code import needs_code
from leukoscope.models.release_files import CARD, CONFIG, FIGURES, folder_name, read_metrics
from leukoscope.training.figures import class_report


def render_card(release: Path, *, hub_id: str = "") -> str:
    """The model card of a release, as Markdown with the Hub's YAML front matter.

    Args:
        release: a folder with config.json and metrics.json.
        hub_id: where it is published; its folder name stands in until then.

    Raises:
        LeukoscopeError: no metrics.json to render from.
    """
    metrics = read_metrics(release)
    if not metrics.get("training"):
        raise LeukoscopeError(
            f"{release / 'metrics.json'}: missing or without a 'training' block; no card without figures"
        )
    try:
        config = json.loads((release / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise LeukoscopeError(f"{release / CONFIG}: cannot be read ({error}); give the folder of a release") from None
    tested = judged_evaluation(metrics)
    return (
        _environment()
        .from_string(read_template())
        .render(
            **metrics | {"notice": RESEARCH_NOTICE},
            name=hub_id.split("/")[-1] or folder_name(release),
            hub_id=hub_id,
            model=hub_id or f"path/to/{folder_name(release)}",
            preprocessing=config["pretrained_cfg"],
            figures={name: shows for name, shows in SHOWN.items() if (release / FIGURES / f"{name}.png").is_file()},
            tested=tested,
            classes=tested and class_report(tested["metrics"]),
            drawn_as_its_classes=knows_smears(metrics["labels"]) or not {*PHANTOM_LABELS}.isdisjoint(metrics["labels"]),
            own_code=needs_code(config),
            joined_since=joined_since(metrics),
            hub_dataset=_hub_dataset(metrics["data"]["name"]),
            base_model=_base_model(metrics),
        )
    )


def _base_model(metrics: Mapping[str, Any]) -> str | None:
    """The Hub repository that training started from; None where it was a file, a folder or random weights."""
    training, imagenet = metrics["training"], metrics["recipe"].get("base_model")
    started_from = training.get("started_from")
    if started_from:
        return started_from["release"] if started_from["revision"] else None
    return imagenet if imagenet and training["start_weights"] == hub_weights_name(imagenet) else None


def write_card(release: Path, *, hub_id: str = "") -> Path:
    """Draw the release's figures and render the card into its README.md."""
    draw_figures(release)
    return write_whole(release / CARD, render_card(release, hub_id=hub_id))


def _hub_dataset(name: str) -> str | None:
    return DATASETS[name].hub_id if name in DATASETS else name


def read_template() -> str:
    """The card's Jinja template."""
    return shipped_file("model_card/template.md").read_text()


def _environment() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {f.__name__: f for f in (share, gain, count, minutes, pooling, span, with_interval)}
    environment.filters["worst_first"] = _worst_first
    return environment


def _worst_first(subjects: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(subjects.items(), key=lambda item: item[1]["accuracy"])
