"""What people read: the model card of a release and the results table of the README.

Both are rendered from committed metrics.json files alone, so a figure in prose cannot drift from the one measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.files import write_whole
from leukoscope.cells.registry import DATASETS
from leukoscope.models.release import CARD, CONFIG, read_metrics

_TEMPLATE_HOMES = (
    Path(__file__).parents[3] / "model_card" / "template.md",  # a checkout
    Path(sys.prefix) / "share" / "leukoscope" / "template.md",  # an installed wheel
)
RESULTS_START, RESULTS_END = "<!-- results: rendered by `leukoscope card` -->", "<!-- end of results -->"


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
    return (
        _environment()
        .from_string(read_template())
        .render(
            **metrics | {"notice": RESEARCH_NOTICE},
            name=hub_id.split("/")[-1] or _own_name(release),
            hub_id=hub_id,
            model=hub_id or f"path/to/{_own_name(release)}",
            preprocessing=config["pretrained_cfg"],
            hub_dataset=_hub_dataset(metrics["data"]["name"]),
        )
    )


def _own_name(release: Path) -> str:
    """The folder's name; a run folder's `release` is called by the run."""
    folder = release.resolve()
    return folder.parent.name if folder.name == "release" else folder.name


def write_card(release: Path, *, hub_id: str = "") -> Path:
    """Render the card into the release's README.md."""
    return write_whole(release / CARD, render_card(release, hub_id=hub_id))


def results_table(releases: Sequence[Path]) -> str:
    """The README's table: each release on unseen subjects beside the random split of the prior systems."""
    head = [
        "| release | tested on | patients on both sides? | cells | weighted F1 | balanced accuracy | AUROC | "
        "cell size alone, weighted F1 |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    rows = [
        _result_row(release.name, block)
        for release in releases
        for block in read_metrics(release).get("evaluations", [])
    ]
    notes = [_training_note(release.name, read_metrics(release)) for release in releases]
    return "\n".join([*head, *rows, "", *notes])


def update_readme(readme: Path, releases: Sequence[Path]) -> Path:
    """Replace the part of the README between the results markers.

    Raises:
        LeukoscopeError: the markers are missing.
    """
    if not readme.is_file():
        raise LeukoscopeError(f"--readme {readme}: no such file")
    text = readme.read_text()
    if RESULTS_START not in text or RESULTS_END not in text:
        raise LeukoscopeError(f"{readme}: lacks the markers {RESULTS_START!r} and {RESULTS_END!r}; restore them")
    before, rest = text.split(RESULTS_START, 1)
    after = rest.split(RESULTS_END, 1)[1]
    return write_whole(readme, f"{before}{RESULTS_START}\n{results_table(releases)}\n{RESULTS_END}{after}")


def _result_row(name: str, block: Mapping[str, Any]) -> str:
    figures, baseline = block["metrics"], block.get("size_only_baseline") or {}
    both_sides = {"cell": "**yes**", "subject": "no"}.get(block["split"]["disjoint_by"], "not known")
    shown = (figures["f1_weighted"], figures["balanced_accuracy"], figures["auroc"], baseline.get("f1_weighted"))
    cells = " | ".join(_share(value) for value in shown)
    return f"| `{name}` | {block['split']['detail']} | {both_sides} | {_count(figures['cells'])} | {cells} |"


def _training_note(name: str, metrics: Mapping[str, Any]) -> str:
    training, recipe = metrics["training"], metrics["recipe"]
    folds: list[dict[str, Any]] = next((e["folds"] for e in metrics["evaluations"] if "folds" in e), [])
    by_fold = ", ".join(_share(fold["f1_weighted"]) for fold in folds)
    return (
        f"`{name}`: {recipe['architecture']} at {recipe['image_size']} px, {recipe['num_train_epochs']} epochs, from "
        f"{training['start_weights']}; released weights trained on {_count(training['cells'])} cells in "
        f"{_minutes(training['seconds'])}, the whole protocol in "
        f"{_minutes(training.get('protocol_seconds', training['seconds']))} on {training['hardware']}. "
        f"Weighted F1 by fold: {by_fold or '–'}.\n"
    )


def _hub_dataset(name: str) -> str | None:
    return DATASETS[name].hub_id if name in DATASETS else name


def read_template() -> str:
    """The card's Jinja template, from the checkout or the installed wheel."""
    home = next((path for path in _TEMPLATE_HOMES if path.is_file()), None)
    if home is None:
        raise LeukoscopeError(f"{_TEMPLATE_HOMES[0]}: the card's template is missing; restore it from the repository")
    return home.read_text()


def _environment() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"share": _share, "count": _count, "minutes": _minutes, "worst_first": _worst_first}
    return environment


def _share(value: Any) -> str:
    """A share of 1 with three digits; a dash where a figure does not exist."""
    from jinja2 import Undefined

    return "–" if value is None or isinstance(value, Undefined) else f"{value:.3f}"


def _count(value: int) -> str:
    return f"{value:,}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


def _worst_first(subjects: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(subjects.items(), key=lambda item: item[1]["accuracy"])
