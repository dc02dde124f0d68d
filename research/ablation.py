"""Which ingredient of a recipe helps on unseen subjects: settings compared by cross-validation.

A grid names settings, each a few flags of train.py on top of the common ones; the others are compared with the first.
All share seed, folds and cells, so two settings differ in nothing else, and their difference is computed on the same
bootstrap samples of subjects. Finished runs are kept, so an interrupted ablation resumes where it stopped.
"""

from __future__ import annotations

import os
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import require_writable
from leukoscope.evaluation.bootstrap import (
    BOOTSTRAP_SAMPLES,
    LEVEL,
    aligned,
    bootstrap_subjects,
    paired_difference,
    point_metrics,
    subject_intervals,
)
from leukoscope.evaluation.calibration import calibration_metrics, cross_fitted, leave_one_subject_out
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.release import read_metrics, write_json
from leukoscope.progress import progress
from leukoscope.protocol import ProtocolRun, cross_validation_runs, finish, pooled_predictions, refuse_split_flags
from leukoscope.training.config import parse_config
from leukoscope.training.identity import plain
from research.commands import make_parser, run

# The tenth of the subjects with the lowest accuracy: a mean hides them.
_WORST_SHARE = 0.1


@dataclass(frozen=True)
class Setting:
    """One row of the table: a name, and the runs of its folds."""

    name: str
    runs: tuple[ProtocolRun, ...]


def read_grid(path: Path) -> dict[str, list[str]]:
    """Read settings, in their order, from a YAML file of `name: flags of train.py`.

    Raises:
        LeukoscopeError: no such file, not such a list, or a name used twice.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        grid, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise LeukoscopeError(f"{path}: cannot be read ({error.strerror}); give a YAML file of settings") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise LeukoscopeError(f"{path}: no YAML ({str(error).splitlines()[0]}); write lines `name: --flag …`") from None
    if not isinstance(grid, dict) or len(grid) < 2 or not all(isinstance(v, str | None) for v in grid.values()):
        raise LeukoscopeError(f"{path}: give two settings or more, each a line `name: --flag …`")
    # Loaded, the last of two equal names has replaced the first.
    assert isinstance(node, yaml.MappingNode)
    names = [name.value for name, _ in node.value]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise LeukoscopeError(f"{path}: {repeated[0]}: a name used twice; rename one of the settings")
    settings = {}
    for name, flags in grid.items():
        try:
            settings[str(name)] = shlex.split(os.path.expandvars(flags or ""))
        except ValueError as error:
            raise LeukoscopeError(f"{path}: {name}: {flags}: {str(error).lower()}; close the quotes") from None
    return settings


def ablation_settings(argv: Sequence[str], grid: dict[str, list[str]]) -> list[Setting]:
    """List the runs of every setting, below the common output folder.

    Args:
        argv: flags of train.py that all settings share; `--num_folds` folds are tested.

    Raises:
        LeukoscopeError: flags that an ablation sets itself, a name used twice, or settings that test other cells.
    """
    common = parse_config(argv)
    configs = {name: parse_config([*argv, *flags]) for name, flags in grid.items()}
    settings: dict[str, Setting] = {}
    for name, config in configs.items():
        config.resolve()
        refuse_split_flags(config)
        tested = {**asdict(config.data), "seed": config.run.seed}
        shared = {**asdict(common.data), "seed": common.run.seed}
        if different := [key for key in tested if key != "max_train_samples" and tested[key] != shared[key]]:
            raise LeukoscopeError(
                f"setting {name!r}: --{different[0]} differs from the other settings'; all test the same cells"
            )
        folder = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
        if folder in settings:
            raise LeukoscopeError(f"settings: two names give one folder ({folder}); rename one")
        # Runs are called by the folder, too: all settings have the same folds.
        runs = cross_validation_runs(
            replace(config, run=replace(config.run, output_dir=str(common.output_dir / folder)))
        )
        settings[folder] = Setting(name, tuple(replace(run, name=f"{folder}/{run.name}") for run in runs))
    return list(settings.values())


def ablate(settings: Sequence[Setting], results: Path) -> dict[str, Any]:
    """Make the runs that are not finished, and write the comparison to `results` once all are.

    Until then the settings finished so far stand in `<results>.partial`, and an earlier `results` stays. Every process
    takes part, the main one writes.

    Raises:
        LeukoscopeError: finished runs made with other settings, or too few subjects to compare on.
    """
    from accelerate import PartialState

    finished: list[Setting] = []
    comparison: dict[str, Any] = {}
    partial = results.with_name(f"{results.name}.partial")
    for setting in settings:
        finish(list(setting.runs))
        finished.append(setting)
        with progress("comparing settings"):
            comparison = compare_settings(finished, measured=comparison.get("settings", ()))
        if PartialState().is_main_process:
            results.parent.mkdir(parents=True, exist_ok=True)
            write_json(partial, comparison)
    if PartialState().is_main_process:
        partial.replace(results)
    return comparison


def make_runs(settings: Sequence[Setting], names: Sequence[str]) -> None:
    """Make the runs of some settings without comparing them.

    Raises:
        LeukoscopeError: the grid has no setting of that name; or finished runs made with other settings.
    """
    by_name = {setting.name: setting for setting in settings}
    if unknown := [name for name in names if name not in by_name]:
        raise LeukoscopeError(f"--only {unknown[0]}: no such setting; the grid has {', '.join(by_name)}")
    for name in names:
        finish(list(by_name[name].runs))


def compare_settings(settings: Sequence[Setting], measured: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Compare finished settings, ready for `write_json`.

    Args:
        measured: rows of the first settings from an earlier call; the other settings are measured.

    Returns:
        data and hardware of the runs, and `settings`: each with its command, recipe, pooled out-of-fold metrics and
        their intervals by subject, the mean accuracy of the tenth of the subjects with the lowest, the ECE after
        temperature scaling (each subject scaled by a temperature fitted on the others), and `difference` to the first
        setting on the same bootstrap samples; and `together`, the same of all settings' mean probabilities.
    """
    predictions = [pooled_predictions(setting.runs) for setting in settings]
    reference = predictions[0]
    # Aligned: folds in another order would average predictions of different cells.
    probabilities = np.mean([aligned(one, reference).probabilities for one in predictions], axis=0)
    first = read_metrics(settings[0].runs[0].folder)
    folds, rows = len(settings[0].runs), list(measured)
    for setting, its_own in list(zip(settings, predictions, strict=True))[len(measured) :]:
        made, config = [read_metrics(run.folder) for run in setting.runs], setting.runs[0].config
        row = {
            "name": setting.name,
            "command": config.command(),
            "recipe": plain(asdict(config.resolve())),
            "start_weights": made[0]["training"]["start_weights"],
            "train_cells": [metrics["training"]["cells"] for metrics in made],
            **_measured(its_own, reference),
            "fold_f1_weighted": [metrics["evaluations"][0]["metrics"]["f1_weighted"] for metrics in made],
            "training_seconds": sum(metrics["training"]["seconds"] for metrics in made),
        }
        rows.append(row)
    return {
        "notice": RESEARCH_NOTICE,
        "estimates": f"recipe ({folds}-fold cross-validation by {first['data']['unit']}, pooled)",
        "compared_with": settings[0].name,
        "data": {key: first["data"][key] for key in ("name", "title", "fingerprint", "unit", "citation")},
        "intervals": {"level": LEVEL, "draws": BOOTSTRAP_SAMPLES, "seed": 0, "drawn": first["data"]["unit"]},
        "settings": rows,
        "together": _measured(replace(reference, probabilities=probabilities), reference),
        "hardware": first["training"]["hardware"],
        "versions": first["training"]["versions"],
    }


def _measured(predictions: CellPredictions, reference: CellPredictions) -> dict[str, Any]:
    scaled = cross_fitted(predictions, leave_one_subject_out(predictions))
    metrics = measure(predictions)
    return {
        "metrics": {
            "cells": metrics["cells"],
            **headline(metrics),
            **{key: value for key, value in point_metrics(predictions).items() if key == "subject_auroc"},
            "worst_subjects_accuracy": worst_subjects_accuracy(predictions),
            "ece_after_scaling": calibration_metrics(scaled, bootstrap_subjects(scaled))["ece"],
        },
        "by_subject": subject_intervals(predictions),
        "difference": paired_difference(predictions, reference),
    }


def worst_subjects_accuracy(predictions: CellPredictions) -> float:
    """Mean accuracy, 0–1, of the tenth of the subjects (at least one) with the lowest accuracy."""
    right, subjects = predictions.predicted == predictions.references, np.asarray(predictions.subjects)
    by_subject = sorted(float(right[subjects == one].mean()) for one in np.unique(subjects))
    return float(np.mean(by_subject[: max(1, round(_WORST_SHARE * len(by_subject)))]))


def parser() -> ArgumentParser:
    """The program's own flags; those of train.py that all settings share follow."""
    made = make_parser("ablation", __doc__)
    made.add_argument("grid", type=Path, help="YAML: one `name: flags of train.py` for each setting.")
    made.add_argument("--output", type=Path, required=True, help="JSON file for the comparison.")
    made.add_argument(
        "--only", action="append", default=[], help="Make this setting's runs and compare nothing; may be repeated."
    )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs that are not finished, then compare."""
    given, flags = parser().parse_known_args(argv)
    require_writable(given.output.parent)
    settings = ablation_settings(flags, read_grid(given.grid))
    if given.only:
        make_runs(settings, given.only)
        return
    from research.tables import ablation_table

    print(f"{ablation_table([ablate(settings, given.output)])}\n{given.output}\n{RESEARCH_NOTICE}")


if __name__ == "__main__":
    run(main)
