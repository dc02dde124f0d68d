"""Measure a recipe on unseen subjects, then train the weights to release.

A protocol is a list of training runs of one recipe: every fold of a cross-validation by subject (by blocks of
neighbouring images where a data set names no subjects), the publisher's own folds both ways, a random split by image,
and a model on every cell. The last one is released; the others estimate its performance. Finished runs are skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import ConfigError, DataError, ReleaseError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.data.splits import groups_of
from leukoscope.evaluation.calibration import MIN_SUBJECTS_FOR_CALIBRATION, OUT_OF_FOLD
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.evaluation.robustness import robustness_of_folds
from leukoscope.files import is_git_clone
from leukoscope.models.metrics import METRICS_FILE, Evaluation, Metrics
from leukoscope.models.release import (
    CONFIG_FILE,
    PREDICTIONS_FOLDER,
    WEIGHTS_FILE,
    edit_release,
    read_metrics,
    write_metrics,
)
from leukoscope.progress import note
from leukoscope.training.checkpoint import Interrupted
from leukoscope.training.config import SPLIT_FLAGS, DataArguments, TrainingConfig
from leukoscope.training.run_folder import RunFolder
from leukoscope.training.train import choose_split, train

OFFICIAL_FOLDS = "recipe (official folds)"
RANDOM_SPLIT = "recipe (random split by image: {unit}s on both sides)"
FINAL = "final"


@dataclass(frozen=True)
class ProtocolRun:
    """One training run of a protocol; `estimates` is what its metrics estimate, for the released metrics.json."""

    name: str
    config: TrainingConfig
    estimates: str = ""

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.config.output_dir

    @property
    def files(self) -> RunFolder:
        """What lies in its run folder."""
        return RunFolder(self.folder)


@lru_cache(maxsize=1)
def _loaded(**source: Any) -> LoadedCells:
    """Load the cells once for all runs."""
    return load_cells(**source)


def known_of(data: DataArguments) -> DatasetInfo:
    """What is known of a data set before its cells are read; for a data set on the Hub, reads its card."""
    return DATASETS.get(data.dataset_name) or _loaded(**data.source).info


def refuse_split_flags(config: TrainingConfig, *also: str) -> None:
    """Refuse flags of `DataArguments`, `also` more of them, that an experiment of several runs sets itself."""
    refused = [name for name in (*SPLIT_FLAGS, *also) if getattr(config.data, name) != getattr(DataArguments(), name)]
    if config.run.push_to_hub:
        refused.append("push_to_hub")
    if refused:
        raise ConfigError(f"--{refused[0]}: an experiment makes its own splits and publishes nothing; leave it out")


def protocol_runs(config: TrainingConfig) -> Iterator[ProtocolRun]:
    """List the runs of a protocol in the order they are made, below the configuration's output folder."""
    # With another number of folds, no other run is repeated. The official folds show first whether a recipe works.
    single = replace(config, data=replace(config.data, num_folds=DataArguments().num_folds))
    info = known_of(config.data)
    if {"fold_0", "fold_1"} <= info.official_counts.keys():
        for trained, tested in (("0", "1"), ("1", "0")):
            folds = {"train_folds": [f"fold_{trained}"], "test_folds": [f"fold_{tested}"]}
            name = f"official-{trained}-{tested}"
            yield _run(single, name, OFFICIAL_FOLDS, split="official", no_validation=True, **folds)
    yield _run(single, FINAL, split="all")
    for fold in range(config.data.num_folds):
        yield _run(config, f"cv-{fold}", OUT_OF_FOLD, split=f"{info.group}-cv", fold=fold, no_validation=True)
    yield _run(single, "random", RANDOM_SPLIT, split="random", no_validation=False)


def pooled_predictions(folds: Sequence[ProtocolRun]) -> CellPredictions:
    """Pool the out-of-fold predictions: one row per cell, from a model that never saw its subject (or block)."""
    return pooled([CellPredictions.load(run.files.predictions) for run in folds])


def _run(config: TrainingConfig, name: str, estimates: str = "", **data: Any) -> ProtocolRun:
    # Those out of fold are measured, at the end.
    run = replace(config.run, output_dir=str(config.output_dir / name), robustness_cells=0)
    return ProtocolRun(name, TrainingConfig(replace(config.data, **data), config.model, run), estimates)


def run_protocol(config: TrainingConfig) -> list[ProtocolRun]:
    """Make every run that is not finished yet; refuses flags that a protocol sets, and runs of other settings."""
    refuse_split_flags(config)
    runs = list(protocol_runs(config))
    cells = _loaded(**config.data.source)
    _require_measurable(cells, config.data.num_folds)
    for run in runs:
        choose_split(run.config, cells)
    return finish(runs)


def _require_measurable(cells: LoadedCells, num_folds: int) -> None:
    """Refuse cells that no cross-validation by subject can measure, before the first training.

    Raises:
        DataError: a cell of an unknown subject, or a class of too few subjects.
    """
    unit = cells.info.group
    unit_of_cell = groups_of(cells, unit)
    ids = tuple(cells.train["cell_id"][:])
    units = tuple(unit_of_cell[cell] for cell in ids)
    labels = cells.info.labels
    no_prediction = np.zeros((len(ids), len(labels)))
    table = CellPredictions(ids, units, np.asarray(cells.train["label"][:]), no_prediction, labels)
    table.require_subjects(f"a protocol measures by {unit}")
    needed = max(MIN_SUBJECTS_FOR_CALIBRATION, num_folds)
    for name, count in table.subjects_of_class.items():
        if count < needed:
            raise DataError(
                f"class {name}: {count} {unit}(s) have it; a protocol of {num_folds} folds needs {needed} or more: "
                f"give fewer --num_folds, {MIN_SUBJECTS_FOR_CALIBRATION} at least, or gather cells of more {unit}s"
            )


def finish(runs: list[ProtocolRun], make: Callable[[TrainingConfig], Path] = train) -> list[ProtocolRun]:
    """Make every run with `make`, which keeps a finished one; an interrupted run is resumed where it stopped."""
    for number, run in enumerate(runs, start=1):
        note(f"[{number}/{len(runs)}] {run.name}")
        resume: Any = "latest" if run.files.checkpoint_folders() else None
        try:
            make(replace(run.config, run=replace(run.config.run, resume_from_checkpoint=resume)))
        except Interrupted:
            print("give the same command again to resume from there", flush=True)
            raise
    return runs


def compose_release(runs: list[ProtocolRun], directory: Path) -> Path:
    """Compose what is published: the final weights, and in metrics.json what a protocol's other runs measured.

    Raises:
        LeukoscopeError: runs made from different data or start weights, or a folder that cannot be written.
    """
    check_release_folder(directory)
    # Metrics belong together only when all runs saw the same data and started from the same weights.
    measured = {run.name: read_metrics(run.folder) for run in runs}
    made_of = {(metrics.data.fingerprint, metrics.training.start_weights_sha256) for metrics in measured.values()}
    if len(made_of) > 1:
        raise ReleaseError(f"{runs[0].folder.parent}: runs differ in their data or start weights; redo them")
    final = next(run for run in runs if run.name == FINAL)
    metrics = measured[FINAL]
    metrics.training.command = final.config.command()
    # It changes no weight, so that finished runs are kept where it is named afterwards.
    metrics.positive_label = final.config.data.positive_label or metrics.positive_label
    metrics.training.protocol_seconds = sum(run_metrics.training.seconds for run_metrics in measured.values())
    with edit_release(final.files.release, directory) as folder:
        predictions = folder / PREDICTIONS_FOLDER
        predictions.mkdir()
        folds = [run for run in runs if run.estimates == OUT_OF_FOLD]
        metrics.evaluations = [_cross_validation(folds, [measured[run.name] for run in folds], predictions)]
        for run in runs:
            if run.estimates in (OFFICIAL_FOLDS, RANDOM_SPLIT):
                name = run.name.replace("-", "_")
                own = measured[run.name]
                shutil.copy(run.files.predictions, predictions / f"{name}.parquet")
                estimates = run.estimates.format(unit=metrics.data.unit)
                named = {"name": name, "estimates": estimates, "training_seconds": own.training.seconds}
                metrics.evaluations.append(own.evaluations[0].model_copy(update=named))
        write_metrics(folder, metrics)
    return directory


def add_robustness(runs: Sequence[ProtocolRun], directory: Path, cells: FramedCells, at_most: int) -> None:
    """Write the block `robustness` of an assessed release from the networks of the folds, as `robustness_of_folds`."""
    if at_most == 0:
        return
    folds = [run.folder for run in runs if run.estimates == OUT_OF_FOLD]
    tested = [(folder / "release", CellPredictions.load(folder / "predictions.parquet")) for folder in folds]
    block = robustness_of_folds(directory, tested, cells, at_most=at_most)
    write_metrics(directory, read_metrics(directory).changed(robustness=block))


def check_release_folder(output: Path) -> None:
    """Refuse to replace a folder that is not a release; also called before hours of training."""
    if not output.name:
        raise ConfigError(f"--output {output}: give the release a folder of its own, e.g. model_card/my-model")
    is_release = all(
        (output / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE)
    ) and not is_git_clone(output)
    if output.exists() and not is_release:
        raise ConfigError(f"--output {output}: exists, is not a release and would be replaced; name another folder")


def _cross_validation(folds: list[ProtocolRun], measured: Sequence[Metrics], predictions: Path) -> Evaluation:
    """The block of metrics.json for all folds together; `measured` holds the block of each fold."""
    out_of_fold = pooled_predictions(folds)
    blocks = [metrics.evaluations[0] for metrics in measured]
    seconds = [metrics.training.seconds for metrics in measured]
    unit = blocks[0].split.disjoint_by
    out_of_fold.save(predictions / f"{unit}_cv.parquet")
    block = {
        "name": f"{unit}_cv",
        "estimates": OUT_OF_FOLD,
        "split": {
            "strategy": f"{unit}-cv",
            "detail": f"{len(folds)}-fold cross-validation by {unit}, pooled out-of-fold predictions",
            "disjoint_by": unit,
            "seed": blocks[0].split.seed,
        },
        "thresholds_fitted_on": None,
        "metrics": measure(out_of_fold),
        "training_seconds": sum(seconds),
        "folds": [
            {
                "fold": number,
                "cells": own.metrics.cells,
                "subjects": sorted(own.metrics.subjects),
                "split_fingerprint": own.split.fingerprint,
                **headline(own.metrics.content()),
                "training_seconds": seconds[number],
            }
            for number, own in enumerate(blocks)
        ],
    }
    return Evaluation.model_validate(block)
