"""Nobody stands on two sides: the properties every way of splitting must keep, whatever the seed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from drawn import place
from leukoscope import LeukoscopeError
from leukoscope.data.cells import CellRecord, LoadedCells, assemble, image_column
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.registry import PRELIMINARY_TEST, dataset_info
from leukoscope.data.splits import (
    BY_IMAGE,
    STRATEGIES,
    Split,
    cross_validation,
    groups_of,
    linked,
    load_split,
    make_split,
    split_unit,
)

SEEDS = (0, 1, 2, 3)
SIDES = ("train", "validation", "test")


def _loaded(rows: Sequence[tuple[str, str, str]]) -> LoadedCells:
    """Cells of (label, subject, fold); their pictures are never opened here."""
    records = [
        CellRecord(f"cell-{number:04d}", label, subject, "", fold) for number, (label, subject, fold) in enumerate(rows)
    ]
    return assemble(dataset_info("cnmc2019"), image_column([None] * len(rows)), records, "cells")


def _subjects(per_class: int, seed: int = 0, folds: int = 1) -> list[tuple[str, str, str]]:
    """Cells of subjects as uneven as real ones: between 4 and 40 a subject, shuffled."""
    dice = np.random.default_rng(seed)
    rows = [
        (label, f"{label}{n}", f"fold_{n % folds}")
        for label in ("ALL", "HEM")
        for n in range(per_class)
        for _ in range(dice.integers(4, 41))
    ]
    return [rows[i] for i in dice.permutation(len(rows))]


@pytest.fixture(scope="module")
def subjects() -> LoadedCells:
    return _loaded(_subjects(per_class=14))


def _assert_groups_disjoint(split: Split, data: LoadedCells) -> None:
    groups = groups_of(data, split.group)
    train, validation, test = ({groups[cell] for cell in getattr(split, side)} for side in SIDES)
    assert not (train & validation or train & test or validation & test)


def _refusal(data: LoadedCells, strategy: str, **options: Any) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        make_split(data, strategy, **options)
    return str(refused.value)


def _share_of_blasts(cells: Sequence[str], data: LoadedCells) -> float:
    label_of = dict(zip(data.train["cell_id"], data.train["label"], strict=True))
    return float(np.mean([label_of[cell] == 0 for cell in cells]))


def _sizes(split: Split) -> np.ndarray:
    return np.array([len(getattr(split, side)) for side in SIDES])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strategy", ["subject", "random"])
def test_a_split_is_disjoint_stratified_and_about_70_15_15(strategy: str, seed: int) -> None:
    data = _loaded(_subjects(per_class=28, seed=seed))
    split = make_split(data, strategy, seed=seed)
    assert (split.notes, split.group) == ((), {"random": "cell"}.get(strategy, "subject"))
    _assert_groups_disjoint(split, data)
    assert sorted(split.train + split.validation + split.test) == sorted(data.train["cell_id"])
    tolerance = 0.002 if strategy == "random" else 0.06
    wanted = (0.7, 0.15, 0.15) if strategy == "random" else (5 / 7, 1 / 7, 1 / 7)
    assert _sizes(split) / len(data.train) == pytest.approx(wanted, abs=tolerance)
    whole = _share_of_blasts(data.train["cell_id"], data)
    shares = [_share_of_blasts(getattr(split, side), data) for side in SIDES]
    assert shares == pytest.approx([whole] * 3, abs=2.5 * tolerance)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strategy", ["subject-cv", "random-cv"])
def test_folds_test_every_cell_once_and_validation_is_taken_from_training(strategy: str, seed: int) -> None:
    data = _loaded(_subjects(per_class=14, seed=seed))
    options: list[dict[str, Any]] = [{"seed": seed, "fold": fold, "num_folds": 2} for fold in range(2)]
    tested: list[str] = []
    subject_of = groups_of(data, "subject")
    for fold in options:
        without = make_split(data, strategy, **fold, validation=False)
        split = make_split(data, strategy, **fold)
        for each in (split, without):
            _assert_groups_disjoint(each, data)
        assert (split.test, without.validation) == (without.test, ())
        assert sorted(split.train + split.validation) == sorted(without.train)
        assert 0.08 < len(split.validation) / len(without.train) < 0.7
        tested += split.test
        if strategy == "subject-cv":
            counts = Counter(subject[:3] for subject in {subject_of[cell] for cell in split.test})
            assert counts == {"ALL": 7, "HEM": 7}, "every fold tests as many subjects of a class as any other"
    assert sorted(tested) == sorted(data.train["cell_id"])


def test_too_few_cells_of_a_class_cannot_be_split_by_image() -> None:
    few = _loaded([("ALL", "1", "")] * 30 + [("HEM", "2", "")])
    assert _refusal(few, "random-cv") == "--num_folds 5: class HEM has 1 cell(s); gather more cells of it"
    assert re.match(r"split by image: too few cells of a class \(.*\); gather more cells$", _refusal(few, "random"))


@pytest.mark.parametrize(
    ("per_class", "positive", "validation", "train"),
    [(7, "ALL", 3, 3), (10, "ALL", 3, 5), (21, "ALL", 3, 15), (7, "", 1, 5)],
)
def test_validation_has_three_subjects_of_each_class_where_a_rule_needs_them_and_training_keeps_three(
    per_class: int, positive: str, validation: int, train: int
) -> None:
    data = _loaded(_subjects(per_class))
    data = replace(data, info=replace(data.info, positive_label=positive))
    split = make_split(data, "subject")
    subject_of = groups_of(data, "subject")
    for side, least in (("validation", validation), ("train", train)):
        counts = Counter(subject[:3] for subject in {subject_of[cell] for cell in getattr(split, side)})
        assert min(counts.values()) >= least
    enlarged = any("so that a rule for subjects can be fitted" in note for note in split.notes)
    assert enlarged is (per_class < 21 and bool(positive))


def test_no_subject_owns_the_test_side_where_it_need_not() -> None:
    """One subject with a fifth of all cells: seven folds of equal size would leave their fold to them."""
    large = [("HEM", "H-large", "")] * 300
    data, sides = _loaded([*_subjects(per_class=14), *large]), set()
    for seed in range(10):
        split = make_split(data, "subject", seed=seed)
        subjects = groups_of(data, "subject")
        [(_, cells)] = Counter(subjects[cell] for cell in split.test).most_common(1)
        assert cells <= 0.4 * len(split.test)
        assert not any("read the figures" in note for note in split.notes)
        sides.add(split.test)
    assert len(sides) >= 5, "the seed draws another test side of uneven subjects"


def test_a_subject_that_owns_the_test_side_is_named() -> None:
    """With two subjects a class, one of each is tested, and one of them brings nearly all cells."""
    rows = [("ALL", "A1", ""), *[("ALL", "A2", "")] * 90, *[("HEM", "H1", "")] * 5, *[("HEM", "H2", "")] * 5]
    notes = [
        make_split(_loaded(rows), "subject-cv", seed=0, fold=fold, num_folds=2, validation=False).notes
        for fold in (0, 1)
    ]
    assert ("subject A2 has 95% of the test cells: read the figures by subject",) in notes


@pytest.mark.parametrize("strategy", ["subject", "subject-cv", "random"])
def test_the_seed_decides_among_equals(strategy: str) -> None:
    data = _loaded([(label, f"{label}{n}", "") for label in ("ALL", "HEM") for n in range(14) for _ in range(6)])
    first, again, other = (make_split(data, strategy, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first.fingerprint != other.fingerprint


def test_the_folds_are_those_of_a_network(phantom_data: LoadedCells) -> None:
    data = phantom_data
    assert split_unit(data) == "subject"
    splits = cross_validation(data)
    wanted = [make_split(data, "subject-cv", fold=k, validation=False) for k in range(5)]
    assert [split.fingerprint for split in splits] == [split.fingerprint for split in wanted]
    assert sorted(cell for split in splits for cell in split.test) == sorted(data.train["cell_id"])
    train = data.train
    one = [i for i, subject in enumerate(train["subject"]) if "all" in subject or subject == "phantom-hem-00"]
    with pytest.raises(LeukoscopeError, match=r"class HEM has 1 subject\(s\); two or more are needed"):
        cross_validation(replace(data, cells=datasets.DatasetDict(train=train.select(one))))


# The publisher's folds


def test_official_split_uses_the_publishers_folds() -> None:
    data = _loaded(_subjects(per_class=12, folds=3))
    split = make_split(data, "official", train_folds=["fold_0", "fold_2"], test_folds=["fold_1"], validation=False)
    fold_of = dict(zip(data.train["cell_id"], data.train["fold"], strict=True))
    assert {fold_of[cell] for cell in split.train} == {"fold_0", "fold_2"}
    assert sorted(split.test) == sorted(cell for cell, fold in fold_of.items() if fold == "fold_1")
    assert split.detail == "fold_0+fold_2 → fold_1"
    assert split.notes == ()


@pytest.mark.parametrize("seed", range(8))
def test_official_split_leaves_out_of_training_who_is_tested_and_says_so(seed: int) -> None:
    data = _loaded([*_subjects(per_class=16, folds=2), *[("ALL", "ALL0", "fold_1")] * 3])
    split = make_split(data, "official", seed=seed, validation=seed > 0)
    rows = list(zip(data.train["cell_id"], data.train["subject"], data.train["fold"], strict=True))
    trained = {*split.train, *split.validation}
    left_out = {cell for cell, _, fold in rows if fold == "fold_0"} - trained
    assert not {cell for cell, subject, _ in rows if subject == "ALL0"} & trained
    assert len(split.test) == sum(fold == "fold_1" for _, _, fold in rows), "the test side stays whole"
    assert split.notes[0] == f"{len(left_out)} training cells left out: subject ALL0 is also tested"
    _assert_groups_disjoint(split, data)


def test_official_folds_that_are_unknown_or_leave_nothing_to_train_on_are_refused(subjects: LoadedCells) -> None:
    said = _refusal(subjects, "official", train_folds=("fold_0",), test_folds=("fold_0",))
    assert said.startswith("fold_0 → fold_0: no training cell is left, because each one's subject")
    unknown = "official fold 'fold_7': not in the data, which has fold_0"
    assert _refusal(subjects, "official", train_folds=["fold_7"]) == unknown


def test_preliminary_test_takes_part_only_where_it_is_named(subjects: LoadedCells) -> None:
    data = _loaded([*_subjects(14), ("ALL", "A99", PRELIMINARY_TEST), ("HEM", "H99", PRELIMINARY_TEST)])
    prelim = tuple(data.cells[PRELIMINARY_TEST]["cell_id"])
    assert make_split(data, "all").train == tuple(data.train["cell_id"])
    for strategy in ("all", "subject", "random"):
        split = make_split(data, strategy)
        assert not {*prelim} & {*split.train, *split.validation, *split.test}, strategy
    assert make_split(data, "official", train_folds=["fold_0"], test_folds=[PRELIMINARY_TEST]).test == prelim


def test_real_official_folds_lose_the_subjects_they_share_under_whatever_id(real_data: Path) -> None:
    # As published, fold_0 has 3,527 cells; 627 of them show subjects whose other cells fold_1 holds.
    data = load_cells("cnmc2019", real_data / "cnmc2019" / "C-NMC_Leukemia")
    split = make_split(data, "official", validation=False)
    assert (len(split.train), len(split.test)) == (3527 - 627, 3581)
    assert split.notes == ("627 training cells left out: subject 20, 43, H14 is also tested",)
    split = make_split(data, "official", train_folds=["fold_2"], test_folds=["fold_1"], validation=False)
    (note,) = split.notes
    assert note.endswith("training cells left out: subject 20, 51, H10 is also tested")
    assert len(split.train) == 671 - int(note.split()[0])


# Blocks of neighbouring images

BALL4_BLOCK = dataset_info("ball4").block_size


def _fields(folder: Path, per_class: int, twins: dict[int, int]) -> LoadedCells:
    """Benign and Pro fields of unknown patients; file `a` holds the same bytes as file `b` for a → b in `twins`."""
    for label, colour in (("Benign", 80), ("Pro", 160)):
        (folder / label).mkdir(parents=True)
        for n in range(per_class):
            content = twins.get(n, n) if label == "Pro" else n
            picture = Image.new("RGB", (8, 8), (colour, content % 256, content // 256))
            picture.save(folder / label / f"WBC-{label}-{n:03d}.bmp")
    info = replace(dataset_info("ball4"), labels=("Benign", "Pro"), official_counts={})
    rows = load_cells("imagefolder", folder)
    return replace(rows, info=replace(info, find_cells=None))


def test_block_split_keeps_neighbours_and_identical_files_together(tmp_path: Path) -> None:
    blocks = 9
    first_of_last_block = (blocks - 1) * BALL4_BLOCK
    data = _fields(tmp_path, per_class=blocks * BALL4_BLOCK, twins={first_of_last_block: 0})
    groups = groups_of(data, "block")
    names = [f"Pro/WBC-Pro-{n:03d}" for n in range(blocks * BALL4_BLOCK)]
    assert len({groups[n] for n in names[:BALL4_BLOCK]}) == 1
    assert groups[names[0]] == groups[names[-1]], "the last block holds a copy of a file in the first"
    assert groups[names[0]] != groups[names[BALL4_BLOCK]]
    for seed in SEEDS[:2]:
        split = make_split(data, "block", seed=seed)
        assert split.group == "block"
        _assert_groups_disjoint(split, data)
        assert all(len(getattr(split, side)) > 0 for side in SIDES)
    folds = [make_split(data, "block-cv", fold=k, num_folds=4, validation=False) for k in range(4)]
    assert sorted(cell for fold in folds for cell in fold.test) == sorted(data.train["cell_id"])
    for fold in folds:
        assert fold.group == "block"
        _assert_groups_disjoint(fold, data)
    assert _refusal(data, "block-cv", num_folds=10).startswith("class Pro has 8 block(s), fewer than the 10 folds")


def test_blocks_joined_by_a_third_are_one_group(tmp_path: Path) -> None:
    assert linked([("51", "75"), ("H2", "H4"), ("51", "78")]) == [["51", "75", "78"], ["H2", "H4"]]
    size = BALL4_BLOCK
    groups = groups_of(_fields(tmp_path, per_class=3 * size, twins={2 * size: 0, 2 * size + 1: size}), "block")
    assert len({group for cell, group in groups.items() if cell.startswith("Pro/")}) == 1
    assert len({group for cell, group in groups.items() if cell.startswith("Benign/")}) == 3


def test_a_damaged_cell_moves_no_other_to_a_block_that_the_split_does_not_know(tmp_path: Path) -> None:
    data = _fields(tmp_path, per_class=2 * BALL4_BLOCK, twins={})
    first = tmp_path / "Pro" / "WBC-Pro-000.bmp"
    first.write_bytes(first.read_bytes()[:60])
    framed = frame_cells(data, Preprocessing(16, 1.0))
    groups = groups_of(framed.data, "block")
    assert len(groups) == 4 * BALL4_BLOCK - 1
    assert {cell: framed.subjects[row] for cell, row in framed.row_of.items()} == groups


def test_blocks_are_of_neighbouring_numbers_and_as_many_as_the_entry_says(tmp_path: Path) -> None:
    """Slides of ten pictures, cut into blocks of ball4's 37, would have one slide on two sides."""
    place(tmp_path, *(f"{label}/{label}_{number}.bmp" for label in ("Benign", "Pro") for number in range(80)))
    data = load_cells("imagefolder", tmp_path)
    for strategy in ("block", "block-cv"):
        assert _refusal(data, strategy) == (
            "--split block: how many neighbouring pictures of Own class folders come from one slide is not known; use "
            f"--split subject, or random ({BY_IMAGE})"
        )
    own = replace(data, info=replace(data.info, block_size=10))
    split = make_split(own, "block")
    side_of = {cell: side for side in SIDES for cell in getattr(split, side)}
    for label, slide in product(("Benign", "Pro"), range(8)):
        assert len({side_of[f"{label}/{label}_{10 * slide + number}"] for number in range(10)}) == 1
    split.save(tmp_path / "split.json")
    assert _refused(tmp_path / "split.json", data).startswith("--split block: how many neighbouring pictures of Own")


# What cannot be split


def test_what_is_no_way_to_split_is_refused(subjects: LoadedCells) -> None:
    known = f"unknown; choose one of {', '.join(STRATEGIES)}"
    assert _refusal(subjects, "patient") == f"--split patient: {known}"
    for fold in (-1, 5):
        outside = f"--fold {fold}: there are folds 0 to 4 with --num_folds 5"
        assert _refusal(subjects, "subject-cv", fold=fold) == outside
    for number in (0, 1):
        assert _refusal(subjects, "subject-cv", num_folds=number) == f"--num_folds {number}: give 2 or more"
    none = "has no splits of its own called train, validation and test; choose another --split"
    assert re.match(f"--split given: .* {none}", _refusal(subjects, "given"))


@pytest.mark.parametrize("strategy", ["subject", "subject-cv", "official"])
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("cnmc2019", ""),
        ("imagefolder", "give --subject_pattern, --subject_folders or --labels, or "),
        ("owner/cells", "name their column with --subject_column, or "),
    ],
)
def test_data_without_subjects_cannot_be_split_by_subject(strategy: str, name: str, advice: str) -> None:
    data = _loaded([("ALL", "", "fold_0"), ("HEM", "", "fold_1")] * 10)
    assert _refusal(replace(data, info=replace(data.info, name=name)), strategy) == (
        f"--split {strategy}: the subjects of C-NMC 2019 (ISBI 2019 challenge) are not known; {advice}use --split "
        f"random ({BY_IMAGE})"
    )


def test_too_few_subjects_are_refused_with_what_works_instead() -> None:
    """Neither the first class, which lacks some, too, nor a smaller number of folds that fails as well."""
    by_fold = "use --split subject-cv --num_folds {} --no_validation, or gather cells of more subjects"
    many = _loaded([*_subjects(per_class=10), *[("ALL", "ALL77", "fold_0")]])
    said = "class HEM has 10 subject(s), fewer than the 11 folds needed; "
    assert _refusal(many, "subject-cv", num_folds=11) == said + by_fold.format(10)
    few = [("ALL", f"ALL{n}", "") for n in range(5)] * 3
    data = _loaded([*few, ("HEM", "H1", ""), ("HEM", "H2", "")])
    for strategy in ("subject", "subject-cv"):
        said = _refusal(data, strategy)
        assert said.startswith("class HEM has 2 subject(s), ") and said.endswith(by_fold.format(2))
    assert make_split(data, "subject-cv", num_folds=2, validation=False).test
    said = _refusal(_loaded([*few, ("HEM", "H1", "")]), "subject")
    assert said.startswith("class HEM has 1 subject(s), ") and said.endswith("needed; gather cells of more subjects")

    # Ten subjects a class: five train in two folds, one fewer than validation needs. Fewer folds would not help.
    assert _refusal(_loaded(_subjects(per_class=10)), "subject-cv", num_folds=2).endswith(
        "fewer than the 6 folds needed; "
        "use --split subject-cv or official with --no_validation, or gather cells of more subjects"
    )


# split.json


@pytest.fixture
def saved(subjects: LoadedCells, tmp_path: Path) -> Path:
    make_split(subjects, "subject", seed=3).save(tmp_path / "split.json")
    return tmp_path / "split.json"


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _refused(path: Path, data: LoadedCells) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        load_split(path, data)
    return str(refused.value)


def test_split_survives_the_round_trip(subjects: LoadedCells, saved: Path) -> None:
    assert load_split(saved, subjects) == make_split(subjects, "subject", seed=3)
    assert _refused(saved, replace(subjects, fingerprint="0" * 64)) == (
        f"--split_file {saved}: was drawn from other data (fingerprint {subjects.fingerprint[:12]}, these cells are "
        f"{'0' * 12}); use the data it was made from, or draw a new split with --split"
    )


def test_hand_edited_overlap_is_refused(subjects: LoadedCells, saved: Path) -> None:
    fields = json.loads(saved.read_text())
    moved = fields["test"][0]
    _edit(saved, train=[*fields["train"], moved])
    assert _refused(saved, subjects) == (
        f"split: subject {groups_of(subjects, 'subject')[moved]} is on both the train and the test side (cell {moved}"
        "); figures from it would be inflated; draw a new split with --split"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"test": ["cell-9999"]}, "split: cell cell-9999 is not in the data; draw a new split with --split"),
        ({"group": "person"}, "Leukoscope (group Input should be 'subject', 'block' or 'cell'"),
        ({"test": [["a"]]}, "not a split.json written by Leukoscope ("),
    ],
)
def test_a_split_with_a_wrong_value_is_refused(
    subjects: LoadedCells, saved: Path, changes: dict[str, object], problem: str
) -> None:
    _edit(saved, **changes)
    assert problem in _refused(saved, subjects)


def test_files_that_are_no_split_are_refused(subjects: LoadedCells, tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    for missing, why in ((path, "No such file or directory"), (tmp_path, "Is a directory")):
        assert _refused(missing, subjects) == f"--split_file {missing}: cannot be read ({why}); give a split.json"
    for content in (b"", b'{"train": []}', b"\xff\xfe\x00\x81"):
        path.write_bytes(content)
        assert _refused(path, subjects).startswith(f"--split_file {path}: not a split.json written by Leukoscope (")


def test_fingerprint_ignores_order_and_tells_sides_apart() -> None:
    base = Split("subject", "subject", 0, "f", ("a", "b"), ("c",), ("d",))
    assert replace(base, train=("b", "a")).fingerprint == base.fingerprint
    assert replace(base, train=("a", "b", "c"), validation=()).fingerprint != base.fingerprint


# A data set's own splits


def _with_splits(sides: Mapping[str, str]) -> LoadedCells:
    """Two cells per subject; subject → its side, or two sides with a comma."""
    return _loaded([
        (("ALL", "HEM")[number % 2], subject, side.split(",")[cell * ("," in side)])
        for number, (subject, side) in enumerate(sides.items())
        for cell in range(2)
    ])  # fmt: skip


def test_a_data_sets_own_splits_are_the_default_and_taken_cell_for_cell() -> None:
    data = _with_splits({"a": "train", "b": "train", "c": "validation", "d": "validation", "e": "test", "f": "test"})
    split = make_split(data, None)
    assert (split.strategy, split.group, split.detail) == ("given", "subject", "the data set's own splits")
    fold_of = dict(zip(data.train["cell_id"][:], data.train["fold"][:], strict=True))
    for side in ("train", "validation", "test"):
        assert set(getattr(split, side)) == {cell for cell, fold in fold_of.items() if fold == side}
    assert make_split(_loaded(_subjects(8)), None).strategy == "subject", "without splits of its own"


def test_a_subject_on_two_sides_of_the_given_splits_is_named_and_nothing_is_left_out() -> None:
    data = _with_splits({"a": "train,test", "b": "train", "c": "validation", "d": "test"})
    split = make_split(data, "given")
    assert len(split.train) + len(split.validation) + len(split.test) == len(data.train)
    assert split.group == "cell"
    assert split.notes == (
        "1 subject(s) are on two sides of the data set's own splits, e.g. a; --split subject keeps each on one side",
    )


def test_validation_is_set_apart_where_the_given_splits_have_none() -> None:
    sides = {f"p{i}": "train" for i in range(20)} | {"x": "test", "y": "test"}
    data = _with_splits(sides)
    split = make_split(data, "given")
    assert split.group == "subject"
    assert re.fullmatch(r"the data set's own splits, \d\d% of train set apart for validation by subject", split.detail)
    share = len(split.validation) / (len(split.train) + len(split.validation))
    assert f" {share:.0%} of train" in split.detail
    assert make_split(data, "given", validation=False).validation == ()
    rows = [(label, "", side) for label in ("ALL", "HEM") for side in ["train"] * 20 + ["test"] * 5]
    split = make_split(_loaded(rows), "given")
    assert (split.group, len(split.validation), len(split.test)) == ("cell", 6, 10)
    assert split.detail == "the data set's own splits, 15% of train set apart for validation by image"
