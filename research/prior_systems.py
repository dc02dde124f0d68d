"""The prior systems rebuilt and measured twice: split by image, as their authors did, and on unseen subjects.

A row is one recipe under one protocol: a cross-validation by image or by subject, so that both predict for every cell,
and one JSON file with the pooled result beside the author's claim. Rows that have their file are skipped and finished
folds kept, so an interrupted command resumes where it stopped. The table in docs/results.md is rendered from the files.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import require_writable
from leukoscope.evaluation.bootstrap import BOOTSTRAP_SAMPLES, CONFIDENCE_LEVEL, subject_intervals
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.models.release import read_metrics, write_json
from leukoscope.protocol import RANDOM_SPLIT, ProtocolRun, finish, known_of, pooled_predictions, refuse_split_flags
from leukoscope.training.config import NOT_THE_RESULT, TrainingConfig, parse_config
from leukoscope.training.identity import plain
from research.commands import make_parser, run
from research.paired import paired_difference
from research.prior_claims import CLAIMS, PROTOCOLS, RANDOM, UNSEEN, Claim
from research.prior_recipes import PRIOR_RECIPES, register
from research.prior_training import train_prior

AS_PUBLISHED = ["data"]
"""The --class_frequencies of all rows: those that the authors' networks presume."""
PRIOR_RESULTS = Path("results/prior")


@dataclass(frozen=True)
class Row:
    """One recipe under one protocol: the runs that measure it, one per fold, and the file that keeps the result."""

    claim: Claim
    protocol: str
    runs: tuple[ProtocolRun, ...]
    file: Path

    @property
    def config(self) -> TrainingConfig:
        """The configuration of its first fold."""
        return self.runs[0].config

    @property
    def predictions(self) -> Path:
        """The pooled out-of-fold predictions, beside the file."""
        return self.file.with_suffix(".parquet")

    def is_finished(self) -> bool:
        """True when its file holds this very row.

        Raises:
            LeukoscopeError: the file is damaged, or holds a row made with other flags.
        """
        if not self.file.exists():
            return False
        try:
            row = json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LeukoscopeError(f"{self.file}: damaged ({error}); restore it, or remove it to run the row") from None
        if {"class_frequencies": AS_PUBLISHED} | row["flags"] != _flags(self.config):
            raise LeukoscopeError(
                f"{self.file}: made with other flags ({row['flags']}); give another --output folder, or remove it to "
                "run the row anew"
            )
        return True


def _flags(config: TrainingConfig) -> dict[str, Any]:
    """The flags that determine a row's result and are not the defaults; no paths."""
    defaults = TrainingConfig().as_dict()
    left_out = (*NOT_THE_RESULT, "train_dir", "pretrained_weights")
    return {k: plain(v) for k, v in config.as_dict().items() if k not in left_out and v != defaults[k]}


def prior_rows(
    config: TrainingConfig, recipes: Sequence[str], protocols: Sequence[str], results: Path = PRIOR_RESULTS
) -> list[Row]:
    """List the rows to make, in their order.

    Args:
        config: data, start weights and other flags of every row; its recipe and split are replaced.
        recipes: names in `CLAIMS`; none means all that are rebuilt on the configuration's data set.
        protocols: of `PROTOCOLS`; none means both.

    Raises:
        LeukoscopeError: an unknown recipe or protocol, flags that a row sets itself, one weights file for several
            recipes, or cells on which the system is not rebuilt without a `results` folder of their own.
    """
    data = config.data
    refuse_split_flags(config)
    for flag, names, known in (("recipe", recipes, tuple(CLAIMS)), ("protocol", protocols, PROTOCOLS)):
        for name in names:
            if name not in known:
                raise LeukoscopeError(f"--{flag} {name}: unknown; choose one of {', '.join(known)}")
    dataset = data.dataset_name
    chosen = recipes or [name for name, claim in CLAIMS.items() if claim.dataset == dataset] or list(CLAIMS)
    if config.model.pretrained_weights and len(chosen) > 1:
        raise LeukoscopeError(
            f"--pretrained_weights {config.model.pretrained_weights}: fits one network, and {len(chosen)} recipes are "
            "asked for; name one with --recipe"
        )
    for name in chosen:
        if CLAIMS[name].dataset != dataset and results.resolve() == PRIOR_RESULTS.resolve():
            raise LeukoscopeError(
                f"--dataset_name {dataset}: {name} is rebuilt on {CLAIMS[name].dataset}; rows on other cells go into a "
                "folder of their own, named with --output DIR"
            )
    # Blocks of neighbouring images stand for subjects where a data set names none.
    unit = known_of(data).group
    splits: dict[str, Any] = {RANDOM: "random-cv", UNSEEN: f"{unit}-cv"}
    estimates = {RANDOM: RANDOM_SPLIT.format(unit=unit), UNSEEN: OUT_OF_FOLD}
    rows = []
    for recipe, protocol in product(chosen, protocols or PROTOCOLS):
        name = f"{recipe}-{protocol}"
        folder = Path(config.run.output_dir or "runs/prior") / name
        runs = tuple(
            ProtocolRun(
                f"{name}, fold {fold + 1} of {data.num_folds}",
                TrainingConfig(
                    replace(data, split=splits[protocol], fold=fold, class_frequencies=AS_PUBLISHED),
                    replace(config.model, recipe=recipe),
                    replace(config.run, output_dir=str(folder / f"fold-{fold}")),
                ),
                estimates[protocol],
            )
            for fold in range(data.num_folds)
        )
        rows.append(Row(CLAIMS[recipe], protocol, runs, results / f"{name}.json"))
    return rows


def reproduce(rows: Sequence[Row]) -> Iterator[Path]:
    """Make every row that has no file yet, and yield each row's file in turn.

    Raises:
        LeukoscopeError: a recipe that does not exist or a row made with other settings, before anything is trained; or
            a run that fails.
    """
    from accelerate import PartialState

    finished = []
    for row in rows:
        row.config.resolve()
        finished.append(row.is_finished())
    for number, (row, is_finished) in enumerate(zip(rows, finished, strict=True), start=1):
        state = "has its row, skipped" if is_finished else row.runs[0].estimates
        print(f"row {number} of {len(rows)}, {row.file.stem}: {state}", flush=True)
        if not is_finished:
            finish(list(row.runs), train_prior)
            if PartialState().is_main_process:
                row.file.parent.mkdir(parents=True, exist_ok=True)
                predictions = pooled_predictions(row.runs)
                predictions.save(row.predictions)
                write_json(row.file, result(row, predictions))
                _compare_protocols(row)
        yield row.file


def result(row: Row, predictions: CellPredictions) -> dict[str, Any]:
    """The result of a row's finished runs beside the claim, ready for `write_json`.

    Args:
        predictions: the runs' out-of-fold predictions, pooled.
    """
    metrics = [read_metrics(run.folder) for run in row.runs]
    first, trainings = metrics[0].content(), [run_metrics.training.content() for run_metrics in metrics]
    measured = measure(predictions)
    baselines = [run.folder / "size_only_predictions.parquet" for run in row.runs]
    size_alone = None
    if all(file.is_file() for file in baselines):
        size_alone = headline(measure(pooled([CellPredictions.load(file) for file in baselines])))
    of_all = ("start_weights", "start_weights_sha256", "seed", "created", "hardware", "versions")
    of_each = ("cells", "epochs_run", "kept_epoch", "seconds")
    return {
        "notice": RESEARCH_NOTICE,
        "protocol": row.protocol,
        "estimates": row.runs[0].estimates,
        "claim": asdict(row.claim),
        "recipe": first["recipe"],
        "flags": _flags(row.config),
        "data": {k: first["data"][k] for k in ("name", "title", "fingerprint", "cells", "unit", "citation")},
        "split": {
            "strategy": row.config.data.split,
            "detail": f"{len(row.runs)}-fold cross-validation by "
            f"{'image' if row.protocol == RANDOM else first['data']['unit']}",
            "fingerprints": [run_metrics.evaluations[0].split.fingerprint for run_metrics in metrics],
        },
        "training": {
            "command": row.config.command(),
            **{key: trainings[0][key] for key in of_all},
            "folds": [{key: training[key] for key in of_each} for training in trainings],
            "seconds": sum(training["seconds"] for training in trainings),
        },
        "under_trained": _under_trained(measured, trainings, first["recipe"], row.claim.recipe),
        "metrics": {
            "cells": measured["cells"],
            **headline(measured),
            "per_class": measured["per_class"],
            "confusion_matrix": measured["confusion_matrix"],
            "subjects": len(measured["subjects"]),
        },
        "intervals": _intervals(predictions),
        "size_only_baseline": size_alone,
    }


def _under_trained(
    measured: Mapping[str, Any], trainings: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], name: str
) -> str:
    """Why a row is no fair result of its system; "" where nothing says so."""
    if measured["balanced_accuracy"] < 1 / len(measured["per_class"]) + 0.02:
        return "predicts one class for nearly every cell"
    planned = recipe["num_train_epochs"]
    at_the_end = sum(training["kept_epoch"] == planned for training in trainings)
    if planned < PRIOR_RECIPES[name].num_train_epochs and 2 * at_the_end > len(trainings):
        return f"still improving when its {planned} epochs ended, in {at_the_end} of {len(trainings)} folds"
    return ""


def _intervals(predictions: CellPredictions) -> dict[str, Any]:
    """Bootstrap intervals by subject (or block); {} where too few of a class are tested."""
    try:
        return {
            "level": CONFIDENCE_LEVEL,
            "draws": BOOTSTRAP_SAMPLES,
            "seed": 0,
            "by_subject": subject_intervals(predictions),
        }
    except LeukoscopeError:
        return {}


def _compare_protocols(row: Row) -> None:
    """Write into the file of the row on unseen subjects what a split by image adds to the system's metrics.

    On the same cells, with intervals by subject; None where the two rows differ in more than how they split.
    """
    files = [row.file.with_name(f"{row.claim.recipe}-{protocol}.json") for protocol in PROTOCOLS]
    if not all(file.is_file() and file.with_suffix(".parquet").is_file() for file in files):
        return
    by_image, unseen = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    difference = None
    if _apart_from_split(by_image) == _apart_from_split(unseen):
        predictions = [CellPredictions.load(file.with_suffix(".parquet")) for file in files]
        # Too few subjects of a class have none.
        with suppress(LeukoscopeError):
            difference = paired_difference(*predictions)
    write_json(files[1], {**unseen, "by_image_minus_unseen": difference})


def _apart_from_split(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two rows must share to be compared: recipe, flags, start weights and cells."""
    flags = {name: value for name, value in row["flags"].items() if name != "split"}
    return {**row["recipe"], "about": ""}, flags, row["training"]["start_weights"], row["data"]["fingerprint"]


def parser() -> ArgumentParser:
    """The program's own flags; those of train.py, such as --dataset_name and --train_dir, follow."""
    made = make_parser("prior_systems", __doc__)
    made.add_argument("--recipe", action="append", default=[], help="A prior_… recipe; may be repeated (default: all).")
    made.add_argument("--protocol", choices=PROTOCOLS, help="Split by image, or by subject (default: both).")
    made.add_argument("--output", type=Path, default=PRIOR_RESULTS, help="Folder with one JSON file for each row.")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows that have no file yet."""
    given, flags = parser().parse_known_args(argv)
    if not any(word.partition("=")[0] in ("--dataset_name", "--config") for word in flags):
        raise LeukoscopeError(
            "name the cells, with --dataset_name cnmc2019 --train_dir DIR (prior_b_densenet201: ball4)"
        )
    require_writable(given.output)
    register()
    rows = prior_rows(parse_config(flags), given.recipe, [given.protocol] if given.protocol else (), given.output)
    for file in reproduce(rows):
        print(file)
    print(RESEARCH_NOTICE)


if __name__ == "__main__":
    run(main)
