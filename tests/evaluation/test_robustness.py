"""The block of changes agrees with a plain loop over cells, and real pictures go through what predicts them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from drawn import save_cell
from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.changes import PICTURE_CHANGES
from leukoscope.data.images import open_encoded
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.robustness import even_sample, measure_robustness, robustness_block, robustness_of_folds
from leukoscope.inference.ood import fit_detector, picture_statistics
from leukoscope.inference.predictor import Predictor
from leukoscope.models.release import read_metrics, read_release, write_metrics
from leukoscope.synthetic import NATIVE_SIZE

SUBJECTS = ("1", "1", "1", "1", "2", "2", "H1", "H1", "H1", "H2")
REFERENCES = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
BEFORE = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.95, 0.2, 0.4, 0.1, 0.3])
BEFORE_OUTCOMES = ("ALL", "ALL", "abstain", "HEM", "ALL", "out of distribution", "HEM", "abstain", "HEM", "HEM")
AFTER = np.array([0.4, 0.7, 0.8, 0.6, 0.55, 0.9, 0.3, 0.7, 0.6, 0.2])
AFTER_OUTCOMES = (
    *("HEM", "out of distribution", "ALL", "abstain", "abstain", "ALL"),
    *("HEM", "abstain", "not a cell", "HEM"),
)


def _decided(blast: np.ndarray, outcomes: tuple[str, ...], subjects: tuple[str, ...] = SUBJECTS) -> CellPredictions:
    ids = tuple(f"cell-{i}" for i in range(len(blast)))
    shares = np.stack([blast, 1 - blast], axis=1)
    return CellPredictions(ids, subjects, REFERENCES, shares, ("ALL", "HEM"), outcomes=outcomes)


def test_the_block_is_that_of_a_plain_loop_over_ten_cells() -> None:
    block = robustness_block(
        _decided(BEFORE, BEFORE_OUTCOMES),
        {"size_up_10": _decided(AFTER, AFTER_OUTCOMES)},
        estimates="networks of a test",
    ).content()
    row = block["changes"]["size_up_10"]

    cells = [i for i in range(10) if BEFORE_OUTCOMES[i] not in ("out of distribution", "not a cell")]
    counted = {"class_changed": 0.0, "refused": 0.0, "abstained": 0.0}
    directions = {("ALL", "HEM"): 0.0, ("HEM", "ALL"): 0.0}
    of_subject = {s: [i for i in cells if SUBJECTS[i] == s] for s in {SUBJECTS[i] for i in cells}}
    for members in of_subject.values():
        for i in members:
            share = 1 / len(members) / len(of_subject)
            then, now = ("ALL" if p[i] >= 0.5 else "HEM" for p in (BEFORE, AFTER))
            if AFTER_OUTCOMES[i] in ("out of distribution", "not a cell"):
                counted["refused"] += share
            elif then != now:
                counted["class_changed"] += share
                directions[then, now] += share
            elif AFTER_OUTCOMES[i] == "abstain" and BEFORE_OUTCOMES[i] != "abstain":
                counted["abstained"] += share
    assert {key: row[key] for key in counted} == pytest.approx(counted)
    assert all(counted.values()), "the cells of this test must show each of them"
    assert row["changed"] == pytest.approx(sum(counted.values()))
    assert {(d["from"], d["to"]): d["share"] for d in row["directions"]} == pytest.approx(directions)
    weights = [1 / len(of_subject[SUBJECTS[i]]) for i in cells]
    for shown, blast in ((block["unchanged"], BEFORE), (row, AFTER)):
        auroc = roc_auc_score(REFERENCES[cells] == 0, blast[cells], sample_weight=weights)
        assert shown["auroc_by_subject"] == pytest.approx(auroc)
        normal = [(w, blast[i] < 0.5) for i, w in zip(cells, weights, strict=True) if REFERENCES[i] == 1]
        recall = sum(w for w, right in normal if right) / sum(w for w, _ in normal)
        assert shown["recall_by_subject"]["HEM"] == pytest.approx(recall)
    assert (block["cells"], block["subjects"], block["refused_unchanged"]) == (9, 4, 1)
    assert (row["family"], row["strength"]) == ("size", 1.1)


def test_a_change_that_changes_nothing_is_zero_with_an_interval_of_zero() -> None:
    same = _decided(BEFORE, BEFORE_OUTCOMES)
    row = robustness_block(same, {"half_resolution": same}, estimates="").content()["changes"]["half_resolution"]
    assert row["changed"] == 0
    assert row["directions"] == []
    assert row["intervals"]["changed"] == {"low": 0, "high": 0}


def test_intervals_resample_subjects() -> None:
    rng = np.random.default_rng(0)
    subjects = tuple(f"{'H' * (i % 2)}{i % 20}" for i in range(200))
    references = np.array([i % 2 for i in range(200)])
    blast = np.where(references == 0, 0.8, 0.2)
    # All cells of a subject change their class together.
    flips = np.isin(np.asarray(subjects), [f"{'H' * (i % 2)}{i}" for i in range(6)])
    ids = tuple(f"cell-{i}" for i in rng.permutation(200))

    def decided(p: np.ndarray) -> CellPredictions:
        shares = np.stack([p, 1 - p], axis=1)
        labels = ("ALL", "HEM")
        outcomes = tuple(labels[int(x < 0.5)] for x in p)
        return CellPredictions(ids, subjects, references, shares, labels, outcomes=outcomes)

    changed = decided(np.where(flips, 1 - blast, blast))
    row = robustness_block(decided(blast), {"size_up_5": changed}, estimates="").content()["changes"]["size_up_5"]
    assert row["class_changed"] == pytest.approx(0.3)
    interval = row["intervals"]["class_changed"]
    # Cells as such would give ± .06, 20 subjects give ± .2.
    assert interval["low"] < 0.15
    assert interval["high"] > 0.45


def test_without_subjects_every_cell_weighs_the_same_and_no_interval_is_given() -> None:
    nobody = ("",) * 10
    block = robustness_block(
        _decided(BEFORE, BEFORE_OUTCOMES, nobody), {"size_up_10": _decided(AFTER, AFTER_OUTCOMES, nobody)}, estimates=""
    ).content()
    assert block["weighted_by"] == "cell"
    assert block["intervals"] is None
    row = block["changes"]["size_up_10"]
    assert row["refused"] == pytest.approx(2 / 9)
    assert "auroc" in row
    assert "auroc_by_subject" not in row
    assert "intervals" not in row


def test_nothing_is_said_where_every_cell_is_refused() -> None:
    refused = _decided(BEFORE, ("out of distribution",) * 10)
    with pytest.raises(LeukoscopeError, match="all of the 10 cells are refused as they are; give cells"):
        robustness_block(refused, {}, estimates="")


def test_a_sample_has_every_subject_alike_and_begins_with_the_smaller_one() -> None:
    subjects = ["a"] * 50 + ["b"] * 3 + ["c"] * 20
    rows = even_sample(subjects, 12)
    drawn = [subjects[row] for row in rows]
    assert sorted(drawn[:9]) == sorted("abc" * 3)
    assert (drawn.count("a"), drawn.count("b"), drawn.count("c")) in ((5, 3, 4), (4, 3, 5))
    assert np.array_equal(even_sample(subjects, 7), rows[:7])
    assert len(set(even_sample(subjects, 1000).tolist())) == 73


def _pictures(data: LoadedCells, ids: list[str]) -> dict[str, Image.Image]:
    rows = data.rows
    row_of = {cell: row for row, cell in enumerate(rows["cell_id"][:])}
    return {cell: open_encoded(rows[row_of[cell]]["image"], cell) for cell in ids}


def test_two_parts_are_predicted_as_by_hand(watched_release: Path, tmp_path: Path) -> None:
    for label, subject, cell in (("ALL", 0, 1), ("ALL", 1, 0), ("ALL", 1, 1), ("HEM", 0, 0)):
        file = tmp_path / label / f"{label}{subject}_{cell}.png"
        save_cell(file, label, subject=subject, cell=cell, size=NATIVE_SIZE)
    data = load_cells("imagefolder", tmp_path, subject_pattern=r"/(?P<subject>\w+)_")
    predictor, ids, subjects = (
        Predictor.from_pretrained(watched_release),
        data.train["cell_id"][:],
        data.train["subject"][:],
    )
    pictures = _pictures(data, ids)
    block = measure_robustness([(predictor, ids[:3]), (predictor, ids[3:])], data, estimates="", at_most=100).content()
    assert block["sample"] == {"cells": 4, "drawn_from": 4, "seed": 0}
    assert set(block["changes"]) == set(PICTURE_CHANGES)

    plain = [predictor(picture) for picture in pictures.values()]
    kept = [i for i, prediction in enumerate(plain) if prediction.outcome not in ("out of distribution", "not a cell")]
    assert block["refused_unchanged"] == 4 - len(kept)
    for name, change in PICTURE_CHANGES.items():
        after = [predictor(change(pictures[ids[i]], black=True)) for i in kept]
        refused = [one.outcome in ("out of distribution", "not a cell") for one in after]
        flipped = [
            not gone and one.most_probable != plain[i].most_probable
            for i, one, gone in zip(kept, after, refused, strict=True)
        ]
        members = [[j for j, i in enumerate(kept) if subjects[i] == subject] for subject in sorted(set(subjects))]
        members = [own for own in members if own]
        for key, flags in (("refused", refused), ("class_changed", flipped)):
            by_subject = np.mean([np.mean([flags[j] for j in own]) for own in members])
            assert block["changes"][name][key] == pytest.approx(by_subject), (name, key)


def test_a_picture_that_cannot_be_opened_is_named(tiny_release: Path, tmp_path: Path) -> None:
    for number, label in enumerate(("ALL", "HEM") * 2):
        save_cell(tmp_path / label / f"{number}.png", label, subject=number, size=40)
    damaged = tmp_path / "ALL" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    data = load_cells("imagefolder", tmp_path)
    with pytest.raises(LeukoscopeError, match=f"{damaged}: "):
        measure_robustness([(Predictor.from_pretrained(tiny_release), data.train["cell_id"])], data, estimates="")


def test_each_fold_refuses_by_a_detector_that_has_not_seen_its_subjects_and_decides_as_the_release(
    tiny_release: Path, phantom_data: LoadedCells, tmp_path: Path
) -> None:
    preprocessing = read_release(tiny_release).preprocessing
    cells = frame_cells(phantom_data, preprocessing)
    release = Path(shutil.copytree(tiny_release, tmp_path / "release"))
    # Probabilities of the tiny network lie near .5: the threshold is one that some pass.
    decides = {
        "calibration": {"temperature": 0.5},
        "decisions": {"abstention": {"default": {"threshold": 0.51, "target_risk": 0.1}}},
    }
    write_metrics(release, read_metrics(release).changed(**decides))
    ids = tuple(phantom_data.train["cell_id"])
    rows = cells.rows(ids)
    subjects = np.asarray(cells.subjects)
    names = np.unique(subjects[rows])
    folds = []
    for own in (names[::2], names[1::2]):
        mine = [i for i, row in enumerate(rows) if subjects[row] in own]
        some = tuple(ids[i] for i in mine)
        chance = np.full((len(mine), 2), 0.5)
        of = tuple(subjects[rows[mine]])
        folds.append((tiny_release, CellPredictions(some, of, cells.labels[rows[mine]], chance, ("ALL", "HEM"))))
    block = robustness_of_folds(release, folds, cells, at_most=6).content()

    tested = [(number, row) for number, (_, fold) in enumerate(folds) for row in range(len(fold.cell_ids))]
    drawn = np.sort(even_sample([folds[number][1].subjects[row] for number, row in tested], 6))
    statistics = np.stack([picture_statistics(cell) for cell in cells.pixels])
    refused, pictures = {name: 0 for name in PICTURE_CHANGES}, _pictures(phantom_data, list(ids))
    left_out = 0
    for number, row in (tested[i] for i in drawn):
        fold = folds[number][1]
        others = [r for r in rows if subjects[r] not in fold.subjects]
        detector, _ = fit_detector(statistics[others], subjects[others].tolist())
        picture = pictures[fold.cell_ids[row]]
        if detector.scores(preprocessing.frame(picture)[None])[0] > 1:
            left_out += 1
            continue
        for name, change in PICTURE_CHANGES.items():
            refused[name] += int(detector.scores(preprocessing.frame(change(picture, black=True))[None])[0] > 1)
    assert block["sample"]["cells"] == 6
    assert block["estimates"] == OUT_OF_FOLD
    assert block["refused_unchanged"] == left_out
    # Every cell of the sample is of another subject.
    shares = {name: count / block["cells"] for name, count in refused.items()}
    assert {name: change["refused"] for name, change in block["changes"].items()} == pytest.approx(shares)
    assert any(shares.values()), "some change must be refused, or this test shows nothing"
