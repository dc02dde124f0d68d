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

from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
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


def _table(rows: Sequence[tuple[str, str, str]], labels: Sequence[str] = ("ALL", "HEM")) -> datasets.Dataset:
    """Rows of (label, subject, fold) as loading leaves them; the pictures are never opened here."""
    text = datasets.Value("string")
    names = datasets.ClassLabel(names=list(labels))
    features = datasets.Features(image=datasets.Image(), label=names, subject=text, cell_id=text, fold=text)
    columns = {
        "image": [None] * len(rows),
        "label": [label for label, _, _ in rows],
        "subject": [subject for _, subject, _ in rows],
        "cell_id": [f"cell-{i:04d}" for i in range(len(rows))],
        "fold": [fold for _, _, fold in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def _loaded(rows: Sequence[tuple[str, str, str]], fingerprint: str = "f" * 64) -> LoadedCells:
    return LoadedCells(dataset_info("cnmc2019"), datasets.DatasetDict(train=_table(rows)), fingerprint)


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


@pytest.mark.parametrize("seed", SEEDS)
def test_subject_split_is_disjoint_stratified_and_about_70_15_15(seed: int) -> None:
    data = _loaded(_subjects(per_class=14, seed=seed))
    split = make_split(data, "subject", seed=seed)
    _assert_groups_disjoint(split, data)
    assert sorted(split.train + split.validation + split.test) == sorted(data.train["cell_id"])
    shares = [len(getattr(split, side)) / len(data.train) for side in SIDES]
    assert shares == pytest.approx([5 / 7, 1 / 7, 1 / 7], abs=0.06)
    whole = _share_of_blasts(data.train["cell_id"], data)
    assert [_share_of_blasts(getattr(split, side), data) for side in SIDES] == pytest.approx([whole] * 3, abs=0.15)


@pytest.mark.parametrize("seed", SEEDS)
def test_cross_validation_tests_every_cell_exactly_once(seed: int) -> None:
    data = _loaded(_subjects(per_class=9, seed=seed))
    splits = [make_split(data, "subject-cv", seed=seed, fold=k, num_folds=4, validation=False) for k in range(4)]
    tested = Counter(cell for split in splits for cell in split.test)
    assert tested == Counter(data.train["cell_id"])
    label_of = dict(zip(data.train["subject"], data.train["label"], strict=True))
    subjects, counts = groups_of(data, "subject"), []
    for split in splits:
        _assert_groups_disjoint(split, data)
        assert split.validation == ()
        assert len(split.train) + len(split.test) == len(data.train)
        assert 0 < _share_of_blasts(split.test, data) < 1, "every fold tests both classes"
        counts.append(
            np.bincount([label_of[subject] for subject in {subjects[cell] for cell in split.test}], minlength=2)
        )
    assert np.ptp(counts, axis=0).max() <= 1, "every fold tests as many subjects of a class as any other"


@pytest.mark.parametrize("seed", SEEDS)
def test_validation_is_taken_from_the_training_side_by_subject(subjects: LoadedCells, seed: int) -> None:
    options: dict[str, Any] = {"seed": seed, "fold": 1, "num_folds": 2}
    without = make_split(subjects, "subject-cv", **options, validation=False)
    split = make_split(subjects, "subject-cv", **options)
    _assert_groups_disjoint(split, subjects)
    assert split.test == without.test
    assert sorted(split.train + split.validation) == sorted(without.train)
    assert 0.08 < len(split.validation) / len(without.train) < 0.28


@pytest.mark.parametrize("seed", SEEDS)
def test_random_split_is_70_15_15_by_image_and_stratified(subjects: LoadedCells, seed: int) -> None:
    split = make_split(subjects, "random", seed=seed)
    assert split.group == "cell"
    sizes = np.array([len(getattr(split, side)) for side in SIDES])
    assert sizes.sum() == len(subjects.train)
    assert np.abs(sizes - len(subjects.train) * np.array([0.70, 0.15, 0.15])).max() <= 1
    whole = _share_of_blasts(subjects.train["cell_id"], subjects)
    assert [_share_of_blasts(getattr(split, side), subjects) for side in SIDES] == pytest.approx([whole] * 3, abs=0.01)
    subject_of = dict(zip(subjects.train["cell_id"], subjects.train["subject"], strict=True))
    assert {subject_of[c] for c in split.train} & {subject_of[c] for c in split.test}, "subjects do stand on both sides"


def test_no_subject_owns_the_test_side_where_it_need_not() -> None:
    """One subject with a fifth of all cells: seven folds of equal size would leave their fold to them."""
    large = [("HEM", "H-large", "")] * 300
    data, sides = _loaded([*_subjects(per_class=14), *large]), set()
    for seed in range(10):
        split = make_split(data, "subject", seed=seed)
        subjects = groups_of(data, "subject")
        [(_, cells)] = Counter(subjects[cell] for cell in split.test).most_common(1)
        assert cells <= 0.4 * len(split.test)
        assert split.notes == ()
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


def test_folds_by_image_test_every_cell_once_and_are_stratified(subjects: LoadedCells) -> None:
    labels = dict(zip(subjects.train["cell_id"][:], subjects.train["label"][:], strict=True))
    folds = [make_split(subjects, "random-cv", fold=fold, num_folds=4) for fold in range(4)]
    assert sorted(cell for split in folds for cell in split.test) == sorted(labels)
    for split in folds:
        assert split.group == "cell" and len(split.validation) == pytest.approx(len(labels) / 8, abs=2)
        assert np.mean([labels[cell] for cell in split.test]) == pytest.approx(np.mean(list(labels.values())), abs=0.02)
    assert make_split(subjects, "random-cv", validation=False).validation == ()
    few = _loaded([("ALL", "1", "")] * 30 + [("HEM", "2", "")])
    assert _refusal(few, "random-cv") == "--num_folds 5: class HEM has 1 cell(s); gather more cells of it"
    assert re.match(r"split by image: too few cells of a class \(.*\); gather more cells$", _refusal(few, "random"))


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
    assert split.notes == (f"{len(left_out)} training cells left out: subject ALL0 is also tested",)
    _assert_groups_disjoint(split, data)


def test_official_folds_that_are_unknown_or_leave_nothing_to_train_on_are_refused(subjects: LoadedCells) -> None:
    said = _refusal(subjects, "official", train_folds=("fold_0",), test_folds=("fold_0",))
    assert said.startswith("fold_0 → fold_0: no training cell is left, because each one's subject")
    unknown = "official fold 'fold_7': not in the data, which has fold_0"
    assert _refusal(subjects, "official", train_folds=["fold_7"]) == unknown


def test_preliminary_test_takes_part_only_where_it_is_named(subjects: LoadedCells) -> None:
    prelim = _table([("ALL", "A99", PRELIMINARY_TEST), ("HEM", "H99", PRELIMINARY_TEST)])
    prelim = prelim.remove_columns("cell_id").add_column("cell_id", ["prelim-1", "prelim-2"])
    prelim = prelim.select_columns(subjects.train.column_names).cast(subjects.train.features)
    data = replace(subjects, cells=datasets.DatasetDict(train=subjects.train, preliminary_test=prelim))
    split = make_split(data, "all")
    assert (split.train, split.validation, split.test) == (tuple(subjects.train["cell_id"]), (), ())
    for strategy in ("subject", "random"):
        split = make_split(data, strategy)
        assert not {"prelim-1", "prelim-2"} & {*split.train, *split.validation, *split.test}, strategy
    split = make_split(data, "official", train_folds=["fold_0"], test_folds=[PRELIMINARY_TEST])
    assert split.test == ("prelim-1", "prelim-2")


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


def test_neighbours_are_by_number_where_names_are_not_padded(tmp_path: Path) -> None:
    for label in ("Benign", "Pro"):
        for number in range(2 * BALL4_BLOCK):
            path = tmp_path / label / f"{label}_{number}.bmp"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, len(label))).save(path)
    data = load_cells("imagefolder", tmp_path)
    groups = groups_of(replace(data, info=replace(data.info, block_size=BALL4_BLOCK)), "block")
    for first in (0, BALL4_BLOCK):
        assert len({groups[f"Pro/Pro_{number}"] for number in range(first, first + BALL4_BLOCK)}) == 1


def test_blocks_are_those_of_the_data_set_alone(tmp_path: Path) -> None:
    """Slides of ten pictures, cut into blocks of ball4's 37, would have one slide on two sides."""
    for label in ("Benign", "Pro"):
        for number in range(80):
            path = tmp_path / label / f"{label}_{number}.bmp"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, len(label))).save(path)
    data = load_cells("imagefolder", tmp_path)
    for strategy in ("block", "block-cv"):
        assert _refusal(data, strategy) == (
            f"--split {strategy}: how many neighbouring pictures of Own class folders come from one slide is not "
            f"known; give --subject_pattern or --labels, or use --split random ({BY_IMAGE})"
        )
    own = replace(data, info=replace(data.info, block_size=10))
    split = make_split(own, "block")
    side_of = {cell: side for side in SIDES for cell in getattr(split, side)}
    for label, slide in product(("Benign", "Pro"), range(8)):
        assert len({side_of[f"{label}/{label}_{10 * slide + number}"] for number in range(10)}) == 1
    split.save(tmp_path / "split.json")
    with pytest.raises(LeukoscopeError, match="--split block: how many neighbouring pictures of Own class folders"):
        load_split(tmp_path / "split.json", data)


def test_subjects_that_are_known_are_offered_in_place_of_blocks(subjects: LoadedCells) -> None:
    for strategy, by_subject in (("block", "subject"), ("block-cv", "subject-cv")):
        assert _refusal(subjects, strategy).endswith(f"is not known; use --split {by_subject}")
    hub = _loaded([("ALL", "", ""), ("HEM", "", "")] * 10)
    hub = replace(hub, info=replace(hub.info, name="owner/cells", title="owner/cells"))
    assert _refusal(hub, "block") == (
        "--split block: how many neighbouring pictures of owner/cells come from one slide is not known; "
        f"name their column with --subject_column, or use --split random ({BY_IMAGE})"
    )


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
        ("imagefolder", "give --subject_pattern or --labels, or "),
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


def test_too_few_subjects_for_a_validation_side_advises_doing_without() -> None:
    # Ten subjects a class: five train in two folds, one fewer than validation needs. Fewer folds would not help.
    data = _loaded(_subjects(per_class=10))
    assert _refusal(data, "subject-cv", num_folds=2).endswith(
        "fewer than the 6 folds needed; "
        "use --split subject-cv or official with --no_validation, or gather cells of more subjects"
    )
    assert make_split(data, "subject-cv", num_folds=2, validation=False).test


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
    assert [p.name for p in saved.parent.glob("split*")] == ["split.json"], "nothing is left beside it"
    assert _refused(saved, replace(subjects, fingerprint="0" * 64)) == (
        f"--split_file {saved}: was drawn from other data (fingerprint {'f' * 12}, these cells are {'0' * 12}); "
        "use the data it was made from, or draw a new split with --split"
    )


def test_hand_edited_overlap_is_refused(subjects: LoadedCells, saved: Path) -> None:
    fields = json.loads(saved.read_text())
    moved = fields["test"][0]
    _edit(saved, train=[*fields["train"], moved])
    message = _refused(saved, subjects)
    subject = groups_of(subjects, "subject")[moved]
    assert message.startswith(f"split: subject {subject} is on both the train and the test side (cell ")
    assert message.endswith("figures from it would be inflated; draw a new split with --split")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": ["cell-9999"]}, "split: cell cell-9999 is not in the data; draw a new split with --split"),
        ({"group": "person"}, "Leukoscope (group Input should be 'subject', 'block' or 'cell'"),
        ({"test": [["a"]]}, "not a split.json written by Leukoscope ("),
    ],
)
def test_a_split_with_a_wrong_value_is_refused(
    subjects: LoadedCells, saved: Path, changes: dict[str, object], said: str
) -> None:
    _edit(saved, **changes)
    assert said in _refused(saved, subjects)


@pytest.mark.parametrize("content", [b"", b'{"train": []}', b"\xff\xfe\x00\x81"])
def test_files_that_are_no_split_are_refused(subjects: LoadedCells, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.json"
    for missing, why in ((path, "No such file or directory"), (tmp_path, "Is a directory")):
        said = f"--split_file {missing}: cannot be read ({why}); give a split.json"
        assert _refused(missing, subjects) == said
    path.write_bytes(content)
    assert _refused(path, subjects).startswith(f"--split_file {path}: not a split.json written by Leukoscope (")


def test_fingerprint_ignores_order_and_tells_sides_apart() -> None:
    base = Split("subject", "subject", 0, "f", ("a", "b"), ("c",), ("d",))
    assert replace(base, train=("b", "a")).fingerprint == base.fingerprint
    assert replace(base, train=("a", "b", "c"), validation=()).fingerprint != base.fingerprint


# A data set's own splits


def _with_splits(sides: Mapping[str, str]) -> LoadedCells:
    """Two cells per subject; subject → its side, or two sides with a comma."""
    rows = []
    for number, (subject, side) in enumerate(sides.items()):
        first, *others = side.split(",")
        rows += [
            (("ALL", "HEM")[number % 2], subject, first),
            (("ALL", "HEM")[number % 2], subject, (others or [first])[0]),
        ]
    return _loaded(rows)


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
    sides = {f"{i}": "train" for i in range(20)} | {"x": "test", "y": "test"}
    data = _with_splits(sides)
    split = make_split(data, "given", train_val_split=0.2)
    assert split.group == "subject"
    assert len(split.validation) == 8
    assert split.detail == "the data set's own splits, 20% of train set apart for validation by subject"
    assert make_split(data, "given", train_val_split=0.9).detail.endswith(
        ", 50% of train set apart for validation by subject"
    )
    assert make_split(data, "given", train_val_split=0).validation == ()
    assert make_split(data, "given", validation=False).validation == ()
    rows = [(label, "", side) for label in ("ALL", "HEM") for side in ["train"] * 20 + ["test"] * 5]
    split = make_split(_loaded(rows), "given")
    assert (split.group, len(split.validation), len(split.test)) == ("cell", 6, 10)
    assert split.detail == "the data set's own splits, 15% of train set apart for validation by image"
