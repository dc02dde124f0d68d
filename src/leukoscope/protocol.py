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

from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.loading import load_cells
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.data.splits import groups_of
from leukoscope.evaluation.calibration import MIN_SUBJECTS_FOR_CALIBRATION, OUT_OF_FOLD
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.files import is_git_clone
from leukoscope.models.release import CONFIG, METRICS, PREDICTIONS, WEIGHTS, edit_release, read_metrics, write_metrics
from leukoscope.progress import note
from leukoscope.training.checkpoint import Interrupted
from leukoscope.training.config import DataArguments, TrainingConfig
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import RESUME_LATEST, RunFolder
from leukoscope.training.train import choose_split, train

OFFICIAL_FOLDS = "recipe (official folds)"
RANDOM_SPLIT = "recipe (random split by image: subjects on both sides)"
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

    def is_finished(self) -> bool:
        """True when the folder holds this run, completed; an error for one of other flags, weights or cells."""
        if not self.files.is_finished:
            return False
        different = self.files.differences(identity_of(self.config))
        if different:
            raise LeukoscopeError(
                f"{self.folder}: finished with other settings ({', '.join(different)}); give another --output_dir or "
                "remove it"
            )
        return True


def identity_of(config: TrainingConfig) -> RunIdentity:
    """The identity of a run that is to be made; without its cells, where these are not on this machine."""
    args, identity = config.data, RunIdentity.of(config, config.resolve())
    here = "/" in args.dataset_name if args.train_dir is None else Path(args.train_dir).is_dir()
    return replace(identity, data=_loaded(**args.source).fingerprint) if here else identity


@lru_cache(maxsize=1)
def _loaded(**source: Any) -> LoadedCells:
    """Load the cells once for all runs."""
    return load_cells(**source)


def known_of(data: DataArguments) -> DatasetInfo:
    """What is known of a data set before its cells are read; of one on the Hub, its card has to be."""
    return DATASETS.get(data.dataset_name) or _loaded(**data.source).info


def refuse_split_flags(config: TrainingConfig, *also: str) -> None:
    """Refuse flags of `DataArguments`, `also` more of them, that an experiment of several runs sets itself."""
    names = ("split", "split_file", "fold", "train_folds", "test_folds", "no_validation", *also)
    given = [name for name in names if getattr(config.data, name) != getattr(DataArguments(), name)]
    for flag in (*given, *["push_to_hub"] * config.run.push_to_hub):
        raise LeukoscopeError(f"--{flag}: an experiment makes its own splits and publishes nothing; leave it out")


def protocol_runs(config: TrainingConfig) -> Iterator[ProtocolRun]:
    """List the runs of a protocol in the order they are made, below the configuration's output folder."""
    # With another number of folds, no other run is repeated. The official folds show first whether a recipe works.
    single = replace(config, data=replace(config.data, num_folds=DataArguments().num_folds))
    info = known_of(config.data)
    for one, other in (("0", "1"), ("1", "0")) if {"fold_0", "fold_1"} <= info.official_counts.keys() else ():
        folds = {"train_folds": [f"fold_{one}"], "test_folds": [f"fold_{other}"]}
        yield _run(single, f"official-{one}-{other}", OFFICIAL_FOLDS, split="official", no_validation=True, **folds)
    yield _run(single, FINAL, split="all")
    for fold in range(config.data.num_folds):
        yield _run(config, f"cv-{fold}", OUT_OF_FOLD, split=f"{info.group}-cv", fold=fold, no_validation=True)
    yield _run(single, "random", RANDOM_SPLIT, split="random", no_validation=False)


def pooled_predictions(folds: Sequence[ProtocolRun]) -> CellPredictions:
    """Pool the out-of-fold predictions: one row per cell, from a model that never saw its subject (or block)."""
    return pooled([CellPredictions.load(run.files.predictions) for run in folds])


def _run(config: TrainingConfig, name: str, estimates: str = "", **data: Any) -> ProtocolRun:
    run = replace(config.run, output_dir=str(config.output_dir / name))
    return ProtocolRun(name, TrainingConfig(replace(config.data, **data), config.model, run), estimates)


def run_protocol(config: TrainingConfig) -> list[ProtocolRun]:
    """Make every run that is not finished yet; refuses flags that a protocol sets, and runs of other settings."""
    refuse_split_flags(config)
    runs, data = list(protocol_runs(config)), _loaded(**config.data.source)
    # Told now rather than after the first trainings.
    unit, num_folds = data.info.group, config.data.num_folds
    groups = groups_of(data, unit)
    labels = dict(zip(data.train["cell_id"][:], data.train["label"][:], strict=True))
    if nameless := [cell for cell in labels if not groups[cell]]:
        flag = "--subject_column" if "/" in data.info.name else "--subject_pattern or --labels"
        raise LeukoscopeError(
            f"cell {nameless[0]}: its {unit} is not known ({len(nameless):,} such cells); a protocol measures by "
            f"{unit}: name it ({flag}), or take these cells out"
        )
    for number, name in enumerate(data.info.labels):
        found = len({groups[cell] for cell, label in labels.items() if label == number})
        if found < max(MIN_SUBJECTS_FOR_CALIBRATION, num_folds):
            fewer = f"give a --num_folds of {found}, or " if found >= MIN_SUBJECTS_FOR_CALIBRATION else ""
            raise LeukoscopeError(
                f"class {name}: {found} {unit}(s) have it; a protocol of {num_folds} folds needs "
                f"{max(MIN_SUBJECTS_FOR_CALIBRATION, num_folds)} or more: {fewer}gather cells of more {unit}s"
            )
    for run in runs:
        choose_split(run.config, data)
    return finish(runs)


def finish(runs: list[ProtocolRun], make: Callable[[TrainingConfig], Path] = train) -> list[ProtocolRun]:
    """Make every run that is not finished yet with `make`; an interrupted run is resumed where it stopped."""
    for number, run in enumerate(runs, start=1):
        if run.is_finished():
            run.files.remove_checkpoints()  # it may have been killed after its metrics.json was there
            note(f"[{number}/{len(runs)}] {run.name}: finished earlier, kept")
            continue
        note(f"[{number}/{len(runs)}] {run.name}")
        resume = RESUME_LATEST if run.files.checkpoint_folders() else None
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
    same = (("data fingerprint", "data", "fingerprint"), ("start weights", "training", "start_weights_sha256"))
    for what, block, key in same:
        found = {name: one[block][key] for name, one in measured.items()}
        if len(set(found.values())) > 1:
            raise LeukoscopeError(f"{runs[0].folder.parent}: runs differ in their {what} ({found}); redo them")
    final = next(run for run in runs if run.name == FINAL)
    metrics = measured[FINAL]
    metrics["training"]["command"] = final.config.command()
    # It changes no weight, so that finished runs are kept where it is named afterwards.
    metrics["positive_label"] = final.config.data.positive_label or metrics["positive_label"]
    metrics["training"]["protocol_seconds"] = sum(one["training"]["seconds"] for one in measured.values())
    with edit_release(final.files.release, directory) as folder:
        predictions = folder / PREDICTIONS
        predictions.mkdir()
        folds = [run for run in runs if run.estimates == OUT_OF_FOLD]
        metrics["evaluations"] = [_cross_validation(folds, [measured[run.name] for run in folds], predictions)]
        for run in runs:
            if run.estimates in (OFFICIAL_FOLDS, RANDOM_SPLIT):
                name, own = run.name.replace("-", "_"), measured[run.name]
                shutil.copy(run.files.predictions, predictions / f"{name}.parquet")
                estimates = run.estimates.replace("subject", metrics["data"]["unit"])
                block = own["evaluations"][0] | {"name": name, "estimates": estimates}
                metrics["evaluations"].append(block | {"training_seconds": own["training"]["seconds"]})
        write_metrics(folder, metrics)
    return directory


def check_release_folder(output: Path) -> None:
    """Refuse to replace a folder that is no release; also called before hours of training."""
    if not output.name:
        raise LeukoscopeError(f"--output {output}: give the release a folder of its own, e.g. model_card/my-model")
    is_release = all((output / name).is_file() for name in (CONFIG, WEIGHTS, METRICS)) and not is_git_clone(output)
    if output.exists() and not is_release:
        raise LeukoscopeError(f"--output {output}: exists, is no release and would be replaced; name another folder")


def _cross_validation(
    folds: list[ProtocolRun], measured: Sequence[dict[str, Any]], predictions: Path
) -> dict[str, Any]:
    """The block of metrics.json for all folds together, of which each one's own is `measured`."""
    out_of_fold = pooled_predictions(folds)
    blocks = [metrics["evaluations"][0] for metrics in measured]
    seconds = [metrics["training"]["seconds"] for metrics in measured]
    unit = blocks[0]["split"]["disjoint_by"]
    out_of_fold.save(predictions / f"{unit}_cv.parquet")
    return {
        "name": f"{unit}_cv",
        "estimates": OUT_OF_FOLD,
        "split": {
            "strategy": f"{unit}-cv",
            "detail": f"{len(folds)}-fold cross-validation by {unit}, pooled out-of-fold predictions",
            "disjoint_by": unit,
            "seed": blocks[0]["split"]["seed"],
        },
        "thresholds_fitted_on": None,
        "metrics": measure(out_of_fold),
        "training_seconds": sum(seconds),
        "folds": [
            {
                "fold": number,
                "cells": own["metrics"]["cells"],
                "subjects": sorted(own["metrics"]["subjects"]),
                "split_fingerprint": own["split"]["fingerprint"],
                **headline(own["metrics"]),
                "training_seconds": seconds[number],
            }
            for number, own in enumerate(blocks)
        ],
    }
