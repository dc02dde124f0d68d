"""Answers brought together for judgement: from a model asked about labelled cells now, or from a file kept earlier.

With them comes what a reader must know of them: which model gave them, what they estimate, who may have trained it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.cells.loading import LoadedCells
from leukoscope.cells.splits import Split, groups_of, load_split, make_split
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.evaluation.overlap import KnownCells, same_person
from leukoscope.inference.foreign import Classifier, answer_cells
from leukoscope.models.release_files import read_metrics


@dataclass(frozen=True)
class AskedCells:
    """The cells to ask about: the test side of `split`, of which `whole` is the one before any were left out."""

    data: LoadedCells
    split: Split
    whole: Split

    def about(self) -> dict[str, Any]:
        """The blocks `data` and `split` of evaluation.json."""
        info, split = self.data.info, self.split
        return {
            "data": {
                "name": info.name,
                "title": info.title,
                "licence": info.licence,
                "citation": info.citation,
                "fingerprint": self.data.fingerprint,
                "synthetic": info.synthetic,
                "unit": info.group,
            },
            "split": {
                "strategy": split.strategy,
                "detail": split.detail,
                "disjoint_by": split.group,
                "seed": split.seed,
                "fingerprint": self.whole.fingerprint,
                "cells": len(split.test),
                "drawn_from": len(self.whole.test),
            },
        }


@dataclass(frozen=True)
class Answered:
    """Answers and where they come from.

    Attributes:
        name, revision: of the model or file.
        estimates: what figures from them speak of.
        overlap: whether tested people trained the model; see `training_overlap`.
        left_out: one line a cell that could not be asked about, or a reason for leaving some out.
        metrics: the release's metrics.json; {} where the answers are no release's.
    """

    answers: CellPredictions
    name: str
    revision: str
    estimates: str
    overlap: Mapping[str, Any]
    left_out: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """What evaluation.json says of the model."""
        return {
            "model": {"name": self.name, "revision": self.revision},
            "estimates": self.estimates,
            "training_overlap": dict(self.overlap),
        }


@dataclass(frozen=True)
class FoldChoice:
    """The fold to ask about: number `fold` of `num_folds` (subject-cv), or the publisher's `official` one."""

    fold: int = 0
    num_folds: int = 5
    official: str = "fold_1"


def ask_about(
    data: LoadedCells,
    split: str | None = None,
    split_file: str | Path | None = None,
    *,
    which: FoldChoice = FoldChoice(),
    seed: int = 0,
    at_most: int | None = None,
) -> AskedCells:
    """Choose the cells to ask about: the test side of a split, or without one every cell.

    Raises:
        LeukoscopeError: both a split and a file, a split without a test side; and see `make_split`, `load_split`.
    """
    if split and split_file:
        raise LeukoscopeError(f"--split {split} --split_file {split_file}: both say which cells are tested; give one")
    if split_file:
        whole = load_split(split_file, data)
    elif split:
        whole = _drawn(data, split, which, seed)
    else:
        every = tuple(cell for rows in data.cells.values() for cell in rows["cell_id"][:])
        whole = Split("none", data.info.group, seed, data.fingerprint, (), (), every, detail="every cell")
    if not whole.test:
        raise LeukoscopeError(f"--split {whole.strategy}: tests nothing; leave it out to ask about every cell")
    return AskedCells(data, whole.at_most(None, at_most), whole)


def _drawn(data: LoadedCells, split: str, which: FoldChoice, seed: int) -> Split:
    """A split whose test side alone matters: what trained, and on which folds, is the model's own affair."""
    drawn = make_split(
        data,
        split,
        seed=seed,
        fold=which.fold,
        num_folds=which.num_folds,
        validation=False,
        train_folds=(),
        test_folds=(which.official,),
    )
    return replace(drawn, detail=which.official) if split == "official" else drawn


class Progress(Protocol):
    """Passes a stream of so many answers on, showing how far it is."""

    def __call__(self, stream: Iterable[Any], total: int) -> Iterable[Any]: ...


def answers_of_model(
    classifier: Classifier,
    cells: AskedCells,
    *,
    label_map: Mapping[str, str] | None = None,
    batch_size: int = 16,
    progress: Progress = lambda stream, total: stream,
) -> Answered:
    """Ask a model, ours or anyone's; damaged cells are named in `left_out`.

    Raises:
        LeukoscopeError: its classes are not those of the data set; see `answer_cells`.
    """
    from datasets import concatenate_datasets

    labels, asked = cells.data.info.labels, set(cells.split.test)
    rows = concatenate_datasets(list(cells.data.cells.values()))
    rows = rows.select([i for i, cell in enumerate(rows["cell_id"][:]) if cell in asked])
    stream = answer_cells(classifier, rows, labels, label_map=label_map, batch_size=batch_size)
    replies, areas, hashes = [], [], []
    for _, reply, area, pixels in progress(stream, len(rows)):
        replies.append(reply)
        areas.append(area)
        hashes.append(pixels)
    found = [i for i, reply in enumerate(replies) if isinstance(reply, np.ndarray)]
    answered, units = rows.select(found), groups_of(cells.data, cells.data.info.group)
    answers = CellPredictions(
        tuple(answered["cell_id"][:]),
        tuple(units[cell] for cell in answered["cell_id"][:]),
        np.asarray(answered["label"][:], dtype=int),
        np.asarray([replies[i] for i in found]).reshape(-1, len(labels)),
        labels,
        np.asarray(areas)[found] if cells.data.info.background == "black" else None,
        tuple(hashes[i] for i in found),
    )
    overlap = training_overlap(classifier.metrics, answers, cells, KnownCells.of_release(classifier.folder))
    damaged = tuple(str(reply) for reply in replies if not isinstance(reply, np.ndarray))
    name, metrics = _public_name(classifier.name), classifier.metrics
    return Answered(answers, name, classifier.revision, "these weights", overlap, damaged, metrics)


def answers_in_file(path: Path, cells: AskedCells | None = None) -> Answered:
    """Read the answers a run or a release kept, with what the metrics.json there says of them.

    Args:
        cells: keep the answers to these alone, with the subjects the data set gives them.

    Raises:
        LeukoscopeError: not such a file, or it gives a cell another class than the data set does.
    """
    if not path.is_file():
        raise LeukoscopeError(f"{path}: no such file; give a predictions.parquet")
    try:
        answers = CellPredictions.load(path)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise LeukoscopeError(f"{path}: cannot be read as predictions ({reason}); give a predictions.parquet") from None
    estimates, overlap = _recorded(path, len(answers.cell_ids))
    left_out: tuple[str, ...] = ()
    if cells is not None:
        kept = _with_truth_of(only(answers, cells.split.test), cells.data, path)
        if less := len(answers.cell_ids) - len(kept.cell_ids):
            left_out = (f"{less:,} answers in {path.name}: not among the cells asked about",)
        answers = kept
    return Answered(answers, _public_name(str(path)), "", estimates, overlap, left_out)


def only(answers: CellPredictions, cells: Sequence[str]) -> CellPredictions:
    """The answers to the given cells, in their own order."""
    wanted = set(cells)
    rows = [row for row, cell in enumerate(answers.cell_ids) if cell in wanted]
    return answers.take(rows)


def training_overlap(
    metrics: Mapping[str, Any], answers: CellPredictions, cells: AskedCells, known: KnownCells
) -> dict[str, Any]:
    """Whether the tested cells come from people who trained the weights.

    Args:
        metrics: the release's metrics.json; {} for a model that has none.
        known: the cells that the release keeps predictions of.

    Returns:
        verdict ("good", "warning" or "bad"), statement, and subjects: how many tested subjects trained the weights
        (None where that cannot be known).
    """
    source = metrics.get("data", {})
    trained = {same_person(source.get("name", ""), one) for one in metrics.get("training", {}).get("subjects", ())}
    tested = {same_person(source.get("name", ""), one) for one in answers.subjects} - {""}
    if not source:
        return _overlap(
            "warning", "What trained these weights is not recorded: a test only if none of these cells did."
        )
    if source.get("name") != cells.data.info.name:
        other = f"These weights were trained on another data set ({source.get('title')})"
        if seen := known.among(answers.cell_ids, answers.pixel_hashes):
            return _overlap(
                "bad", f"{other}, which holds {seen:,} of these {len(answers.cell_ids):,} cells, too: not a test."
            )
        if known.by_pixels and answers.pixel_hashes:
            return _overlap("good", f"{other}, which holds none of these cells.", 0)
        return _overlap("warning", f"{other}; whether it holds some of these cells cannot be told.")
    if trained and tested:
        if both := len(trained & tested):
            return _overlap(
                "bad", f"These weights were trained on {both} of these {len(tested)} subjects: not a test.", both
            )
        return _overlap("good", f"None of these {len(tested)} subjects trained these weights.", 0)
    own_splits = [block["split"].get("fingerprint") for block in metrics.get("evaluations", ())]
    if cells.whole.fingerprint in own_splits:
        return _overlap("good", "The split that these weights were trained with sets these cells apart.")
    return _overlap(
        "bad", "These weights were trained on this very data set, whose subjects are not known: take it for no test."
    )


def _recorded(path: Path, cells: int) -> tuple[str, dict[str, Any]]:
    """What the metrics.json of the release or run that the file lies in says of these answers."""
    for block in _blocks_of(path):
        if block["metrics"]["cells"] == cells:
            group, detail = block["split"]["disjoint_by"], block["split"]["detail"]
            if group == "cell":
                return block["estimates"], _overlap("bad", f"{detail}: patients on both sides, no test of new ones.")
            return block["estimates"], _overlap("good", f"{detail}: no {group} stands on both sides.", 0)
    statement = "Which cells trained the model that gave these answers is not recorded beside them."
    return f"the model behind {path.name}", _overlap("warning", statement)


def _blocks_of(path: Path) -> Iterator[Mapping[str, Any]]:
    """A release keeps predictions/<name>.parquet, a run predictions.parquet of its test side."""
    for home, name in ((path.parent.parent, path.stem), (path.parent, "test")):
        yield from (block for block in read_metrics(home).get("evaluations", ()) if block["name"] == name)


def _overlap(verdict: str, statement: str, subjects: int | None = None) -> dict[str, Any]:
    return {"verdict": verdict, "statement": statement, "subjects": subjects}


def _with_truth_of(answers: CellPredictions, data: LoadedCells, path: Path) -> CellPredictions:
    units, labels = groups_of(data, data.info.group), dict[str, str]()
    for rows in data.cells.values():
        labels |= zip(rows["cell_id"][:], rows.features["label"].int2str(rows["label"][:]), strict=True)
    for cell, reference in zip(answers.cell_ids, answers.references, strict=True):
        if answers.label_names[reference] != labels[cell]:
            raise LeukoscopeError(
                f"{path}: cell {cell} is {answers.label_names[reference]} there and {labels[cell]} in the data set; "
                "give the data that the answers were made from"
            )
    return replace(answers, subjects=tuple(units[cell] for cell in answers.cell_ids))


def _public_name(model: str) -> str:
    """A folder or file by its last name (a run's `release` by the run's): where it lies is private."""
    if not Path(model).exists():
        return model
    path = Path(model).resolve()
    return path.parent.name if path.name == "release" else path.name
