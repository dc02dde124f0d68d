"""`leukoscope evaluate`: what a model's answers are worth on labelled cells, whether it is ours or anyone's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError

if TYPE_CHECKING:
    from leukoscope.cells.loading import LoadedCells
    from leukoscope.cells.splits import Split
    from leukoscope.evaluation.metrics import CellPredictions


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


_Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Release or transformers image classifier: folder or Hub id.")
]
_DatasetName = Annotated[str | None, _option("The data set, as for train.py.", "--dataset_name")]
_TrainDir = Annotated[Path | None, _option("Its local folder.", "--train_dir", metavar="DIR")]
_SubjectPattern = Annotated[str | None, _option("imagefolder: as for train.py.", "--subject_pattern")]
_SubjectCsv = Annotated[Path | None, _option("imagefolder: as for train.py.", "--subject_csv", metavar="FILE")]
_Split = Annotated[str | None, _option("Ask about the test side of this split (default: every cell).")]
_SplitFile = Annotated[Path | None, _option("Ask about the test side of this split.json.", "--split_file")]
_Fold = Annotated[int, _option("subject-cv: the fold to ask about.")]
_NumFolds = Annotated[int, _option("subject-cv: number of folds.", "--num_folds")]
_TestFold = Annotated[str, _option("official: the fold to ask about.", "--test_fold")]
_Seed = Annotated[int, _option("Of the split, of --max_eval_samples and of the intervals.", min=0)]
_Predictions = Annotated[Path | None, _option("Judge the answers in this predictions.parquet.", metavar="FILE")]
_Compare = Annotated[str | None, _option("A second model or .parquet, judged on the same cells.", metavar="OTHER")]
_LabelMap = Annotated[
    list[str] | None, _option("The model's name of a class, and ours; repeatable.", "--label_map", metavar="THEIRS=OURS")
]
_OutputDir = Annotated[Path | None, _option("Report folder (default: evaluations/<model>).", "--output_dir", metavar="DIR")]
_MaxSamples = Annotated[int | None, _option("Ask about at most so many cells, at random.", "--max_eval_samples", min=1)]
_BatchSize = Annotated[int, _option("Cells answered at once.", "--batch_size", min=1)]


def evaluate(
    model: _Model = None,
    dataset_name: _DatasetName = None,
    train_dir: _TrainDir = None,
    subject_pattern: _SubjectPattern = None,
    subject_csv: _SubjectCsv = None,
    split: _Split = None,
    split_file: _SplitFile = None,
    fold: _Fold = 0,
    num_folds: _NumFolds = 5,
    test_fold: _TestFold = "fold_1",
    seed: _Seed = 0,
    predictions: _Predictions = None,
    compare: _Compare = None,
    label_map: _LabelMap = None,
    output_dir: _OutputDir = None,
    max_eval_samples: _MaxSamples = None,
    batch_size: _BatchSize = 16,
) -> None:
    """Measure a model on labelled cells: figures with intervals by subject, worst subjects, a page to read."""
    from leukoscope.evaluation.evaluation_page import judge_answers, write_evaluation

    if (model is None) == (predictions is None):
        raise LeukoscopeError("leukoscope evaluate: give a MODEL, or --predictions FILE.parquet; one of the two")
    names = _label_map(label_map or ())
    cells = None
    if dataset_name is not None:
        from leukoscope.cells.loading import load_cells

        data = load_cells(dataset_name, train_dir, subject_pattern=subject_pattern, subject_csv=subject_csv)
        typer.echo(data.report(), err=True)
        drawn = _test_side(data, split, split_file, fold=fold, num_folds=num_folds, test_fold=test_fold, seed=seed)
        cells = _Cells(data, drawn.at_most(None, max_eval_samples), drawn.fingerprint)
    elif train_dir or split or split_file or max_eval_samples:
        raise LeukoscopeError("--train_dir, --split, --split_file, --max_eval_samples: need --dataset_name beside them")
    first = _from_file(predictions, cells) if predictions else _from_model(str(model), cells, names, batch_size)
    second = _second(compare, cells, first, names, batch_size) if compare else None
    evaluation = judge_answers(
        first.answers, _about(first, second, cells), compared=second.answers if second else None, seed=seed
    )
    out = output_dir or Path("evaluations") / re.sub(r"[^\w.-]+", "-", first.model["name"].removesuffix(".parquet"))
    page = write_evaluation(out, evaluation, first.answers)
    _print_summary(evaluation)
    typer.echo(f"page: {page}\n{RESEARCH_NOTICE}")


@dataclass(frozen=True)
class _Cells:
    """The cells to ask about: the test side of `split`; `fingerprint` is that of the split before any were left out."""

    data: LoadedCells
    split: Split
    fingerprint: str


@dataclass(frozen=True)
class _Answered:
    """A model's answers, and what is known of it; see `judge_answers`."""

    answers: CellPredictions
    model: dict[str, str]
    estimates: str
    overlap: dict[str, Any]
    left_out: list[str] = field(default_factory=list)


def _label_map(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise LeukoscopeError(f"--label_map {pair}: write the model's class, =, and ours, like blast=ALL")
    return dict(pair.rsplit("=", 1) for pair in pairs)


def _test_side(
    data: LoadedCells, split: str | None, split_file: Path | None, *, fold: int, num_folds: int, test_fold: str, seed: int
) -> Split:
    """The split whose test side is asked about; without one, all cells are its test side."""
    from leukoscope.cells.splits import Split, load_split, make_split

    if split and split_file:
        raise LeukoscopeError(f"--split {split} --split_file {split_file}: both say which cells are tested; give one")
    if split_file:
        chosen = load_split(split_file, data)
    elif split:
        # What trained is the model's own affair: only the test side is used, and no training fold is taken away.
        chosen = make_split(
            data, split, seed=seed, fold=fold, num_folds=num_folds, train_folds=(), test_folds=(test_fold,), validation=False
        )
        chosen = replace(chosen, detail=test_fold if split == "official" else chosen.detail)
    else:
        every = tuple(cell for rows in data.cells.values() for cell in rows["cell_id"][:])
        return Split("none", data.info.group, seed, data.fingerprint, (), (), every, detail="every cell")
    if not chosen.test:
        raise LeukoscopeError(f"split {chosen.strategy}: has no test side; leave it out to ask about every cell")
    return chosen


def _second(
    other: str, cells: _Cells | None, first: _Answered, names: Mapping[str, str], batch_size: int
) -> _Answered:
    """The answers of the model to compare with, to the cells that the first one answered."""
    asked = first.answers.cell_ids
    if other.endswith(".parquet"):
        answered = _from_file(Path(other), None)
        return replace(answered, answers=_only(answered.answers, set(asked)))
    same = replace(cells, split=replace(cells.split, test=asked)) if cells else None
    return _from_model(other, same, names, batch_size)


def _from_model(model: str, cells: _Cells | None, names: Mapping[str, str], batch_size: int) -> _Answered:
    import torch

    from leukoscope.evaluation.evaluation_page import training_overlap
    from leukoscope.inference.foreign import open_classifier

    if cells is None:
        raise LeukoscopeError(f"{model}: say which labelled cells to ask it about with --dataset_name … --train_dir …")
    classifier = open_classifier(model, device="cuda" if torch.cuda.is_available() else "cpu")
    answers, damaged = _ask(classifier, cells, names, batch_size)
    known = {"name": cells.data.info.name, "fingerprint": cells.data.fingerprint}
    overlap = training_overlap(classifier.metrics, answers, known, cells.fingerprint)
    about = {"name": _public_name(model), "revision": classifier.revision}
    return _Answered(answers, about, "these weights", overlap, damaged)


def _ask(
    classifier: Any, cells: _Cells, names: Mapping[str, str], batch_size: int
) -> tuple[CellPredictions, list[str]]:
    """Answers to the test side in the data set's order, and what was wrong with the cells that have none."""
    import numpy as np
    from datasets import concatenate_datasets
    from rich.console import Console
    from rich.progress import track

    from leukoscope.evaluation.metrics import CellPredictions
    from leukoscope.inference.foreign import answer_cells

    labels, tested = cells.data.info.labels, set(cells.split.test)
    rows = concatenate_datasets(list(cells.data.cells.values()))
    rows = rows.select([i for i, cell in enumerate(rows["cell_id"][:]) if cell in tested])
    stream = answer_cells(classifier, rows, labels, label_map=names, batch_size=batch_size)
    shown = track(stream, "answering", total=len(rows), console=Console(stderr=True))
    answers = [answer for _, answer in shown]
    right = [i for i, answer in enumerate(answers) if isinstance(answer, np.ndarray)]
    kept = rows.select(right)
    found = CellPredictions(
        tuple(kept["cell_id"][:]),
        tuple(kept["subject"][:]),
        np.asarray(kept["label"][:], dtype=int),
        np.asarray([answers[i] for i in right]).reshape(-1, len(labels)),
        labels,
    )
    return found, [str(answer) for answer in answers if not isinstance(answer, np.ndarray)]


def _from_file(path: Path, cells: _Cells | None) -> _Answered:
    """Answers kept by a run or a release, with what its metrics.json says of them."""
    from leukoscope.evaluation.metrics import CellPredictions

    try:
        answers = CellPredictions.load(path)
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise LeukoscopeError(f"{path}: cannot be read as predictions ({reason}); give a predictions.parquet") from None
    left_out = []
    if cells:
        asked = _only(answers, set(cells.split.test))
        if less := len(answers.cell_ids) - len(asked.cell_ids):
            left_out = [f"{less:,} answers in {path.name}: not among the cells asked about"]
        answers = _with_truth_of(asked, cells.data, path)
    estimates, overlap = _recorded(path, len(answers.cell_ids) if not cells else None)
    return _Answered(answers, {"name": _public_name(str(path)), "revision": ""}, estimates, overlap, left_out)


def _recorded(path: Path, cells: int | None) -> tuple[str, dict[str, Any]]:
    """What the metrics.json of the release or run that the file lies in says of these answers."""
    from leukoscope.models.release import read_metrics

    for home, name in ((path.parent.parent, path.stem), (path.parent, "test")):
        for block in read_metrics(home).get("evaluations", ()):
            if block["name"] == name and cells in (None, block["metrics"]["cells"]):
                group, detail = block["split"]["disjoint_by"], block["split"]["detail"]
                apart = group in ("subject", "block")
                statement = f"{detail}: " + (
                    f"no {group} stands on both sides." if apart else "patients stand on both sides: no test of new ones."
                )
                return block["estimates"], {"verdict": "good" if apart else "bad", "statement": statement, "subjects": None}
    statement = "Which cells trained the model that gave these answers is not recorded beside them."
    return f"the model behind {path.name}", {"verdict": "warning", "statement": statement, "subjects": None}


def _with_truth_of(answers: CellPredictions, data: LoadedCells, path: Path) -> CellPredictions:
    """The answers with the data set's subjects; refused where the file says another class of a cell."""
    known: dict[str, tuple[str, str]] = {}
    for rows in data.cells.values():
        labels = rows.features["label"].int2str(rows["label"][:])
        known |= dict(zip(rows["cell_id"][:], zip(rows["subject"][:], labels, strict=True), strict=True))
    for cell, reference in zip(answers.cell_ids, answers.references, strict=True):
        if answers.label_names[reference] != known[cell][1]:
            raise LeukoscopeError(
                f"{path}: cell {cell} is {answers.label_names[reference]} there and {known[cell][1]} in the data set; "
                "give the data that the answers were made from"
            )
    return replace(answers, subjects=tuple(known[cell][0] for cell in answers.cell_ids))


def _only(answers: CellPredictions, wanted: set[str]) -> CellPredictions:
    rows = [row for row, cell in enumerate(answers.cell_ids) if cell in wanted]
    return replace(
        answers,
        cell_ids=tuple(answers.cell_ids[row] for row in rows),
        subjects=tuple(answers.subjects[row] for row in rows),
        references=answers.references[rows],
        probabilities=answers.probabilities[rows],
    )


def _public_name(model: str) -> str:
    """A folder or file by its last name (a run's `release` by the run's): where it lies is private."""
    if not Path(model).exists():
        return model
    path = Path(model).resolve()
    return path.parent.name if path.name == "release" else path.name


def _about(first: _Answered, second: _Answered | None, cells: _Cells | None) -> dict[str, Any]:
    """The part of evaluation.json that says what was measured on what."""
    about: dict[str, Any] = {
        "model": first.model,
        "estimates": first.estimates,
        "training_overlap": first.overlap,
        "data": None,
        "split": None,
        "left_out": first.left_out,
        "compared_with": second and {**second.model, "estimates": second.estimates, "training_overlap": second.overlap},
    }
    if cells:
        info, split = cells.data.info, cells.split
        about["data"] = {
            "name": info.name,
            "title": info.title,
            "licence": info.licence,
            "citation": info.citation,
            "fingerprint": cells.data.fingerprint,
            "synthetic": info.synthetic,
        }
        about["split"] = {
            "strategy": split.strategy,
            "detail": split.detail,
            "disjoint_by": split.group,
            "seed": split.seed,
            "fingerprint": cells.fingerprint,
            "cells": len(split.test),
        }
        about["left_out"] = [*cells.data.unreadable, *first.left_out]
    return about


def _print_summary(evaluation: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from leukoscope.evaluation.evaluation_page import figure_rows

    console, overlap = Console(highlight=False), evaluation["training_overlap"]
    table = Table("figure", "value", "95 % by subject", "naive, by cell")
    for row in figure_rows(evaluation):
        table.add_row(*map(Text, row))
    console.print(table)
    style = {"good": "green", "warning": "yellow", "bad": "bold white on red"}[overlap["verdict"]]
    console.print(Text(f"estimates: {evaluation['estimates']}"))
    console.print(Text(overlap["statement"], style))
    for line in evaluation["left_out"]:
        console.print(Text(f"left out: {line}"))
