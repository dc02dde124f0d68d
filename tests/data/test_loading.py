"""From folders, Hub layouts and phantoms to one table: what is kept, what is counted, what is refused and how."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
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
from leukoscope.data.cells import MOST_TOLD, LoadedCells
from leukoscope.data.layouts import CNMC_PRELIM_LABELS
from leukoscope.data.loading import load_cells
from leukoscope.data.registry import DATASETS

Columns = Mapping[str, Sequence[object]]
TEXT = datasets.Value("string")
COLUMNS = ["image", "label", "subject", "cell_id", "fold"]
CNMC_LAYOUT = (
    "…/fold_{0,1,2}/{all,hem}/UID_<subject>_<frame>_<cell>_<label>.bmp (of the preliminary test: 1.bmp, named in "
    "C-NMC_test_prelim_phase_data_labels.csv beside it)"
)


def _paint(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def cnmc(tmp_path: Path) -> Path:
    """Four subjects of C-NMC, two ids of one of whom are aliases."""
    root = tmp_path / "cnmc"
    names = ("1_1_1_all", "H10_1_1_hem", "2_1_1_all", "h3_1_1_hem", "H3_1_1_hem")
    for number, (fold, name) in enumerate(zip((0, 0, 1, 1, 2), names, strict=True)):
        _paint(root / f"fold_{fold}" / name[-3:] / f"UID_{name}.bmp", number)
    return root


@pytest.fixture
def own_cells(tmp_path: Path) -> Path:
    """A user's class folders: <class>/<subject>_<n>.png."""
    root = tmp_path / "own"
    for number, name in enumerate(("blast/p1_1.png", "blast/p2_1.png", "normal/p3_1.png", "normal/p3_2.png")):
        _paint(root / name, number)
    return root


def _refusal(load: Callable[..., LoadedCells], *args: object, **kwargs: object) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        load(*args, **kwargs)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Folders


def test_rows_have_exactly_the_five_columns_with_the_files_pictures_and_joined_subjects(cnmc: Path) -> None:
    data = load_cells("cnmc2019", cnmc)
    assert list(data.cells) == ["train"]
    assert data.train.column_names == COLUMNS
    features = data.train.features
    assert features["label"] == datasets.ClassLabel(names=["ALL", "HEM"])
    assert isinstance(features["image"], datasets.Image)
    assert all(features[name] == datasets.Value("string") for name in ("subject", "cell_id", "fold"))
    subject_of = dict(zip(data.train["cell_id"], data.train["subject"], strict=True))
    assert subject_of["UID_h3_1_1_hem"] == subject_of["UID_H10_1_1_hem"] == "H10"
    assert subject_of["UID_H3_1_1_hem"] == "H3"
    assert sorted(set(data.train["fold"])) == ["fold_0", "fold_1", "fold_2"]
    original = Image.open(cnmc / "fold_0" / "all" / "UID_1_1_1_all.bmp")
    assert data.train[0]["cell_id"] == "UID_1_1_1_all"
    assert np.array_equal(np.asarray(data.train[0]["image"]), np.asarray(original))


def test_preliminary_test_is_a_split_of_its_own(cnmc: Path) -> None:
    folder = cnmc / "C-NMC_test_prelim_phase_data"
    _paint(folder / "1.bmp", 50)
    _paint(folder / "2.bmp", 51)
    data = load_cells("cnmc2019", cnmc)
    assert list(data.cells) == ["train"], "no list names its cells"
    said = f"image file(s) passed over, for example {folder}/"
    assert data.passed_over == (f"2 {said}1.bmp: not laid out as {CNMC_LAYOUT}",)
    (folder / CNMC_PRELIM_LABELS).write_text("Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\n")
    data = load_cells("cnmc2019", cnmc)
    assert data.passed_over == (f"1 {said}2.bmp: not laid out as {CNMC_LAYOUT}",)
    assert {name: len(rows) for name, rows in data.cells.items()} == {"train": 5, "preliminary_test": 1}
    assert data.cells["preliminary_test"][0]["cell_id"] == "UID_57_29_1_all"
    assert "UID_57_29_1_all" not in data.train["cell_id"]
    assert "train: 5 cells, preliminary_test: 1 cells, 4 subjects" in data.report()


def test_unreadable_files_are_left_out_and_named_and_nothing_but_damage_is_refused(cnmc: Path) -> None:
    damaged = cnmc / "fold_0" / "all" / "UID_9_1_1_all.bmp"
    damaged.write_bytes(b"")
    data = load_cells("cnmc2019", cnmc)
    assert len(data.train) == 5
    assert data.unreadable == (f"{damaged}: the file is empty (0 bytes); copy or export it again",)
    assert data.report().splitlines()[-2:] == ["1 unreadable file(s) left out:", f"  {data.unreadable[0]}"]
    told = replace(data, unreadable=data.unreadable * (MOST_TOLD + 3)).report().splitlines()
    assert told[-MOST_TOLD - 2] == f"{MOST_TOLD + 3} unreadable file(s) left out:"
    assert told[-1] == "  and 3 more; `leukoscope audit` writes all of them into audit.json"
    for path in cnmc.rglob("*.bmp"):
        path.write_bytes(b"BM no more")
    message = _refusal(load_cells, "cnmc2019", cnmc)
    assert message.startswith(f"--train_dir {cnmc}: none of its 6 images can be read; first: {cnmc}")


def test_a_cell_present_twice_is_refused(cnmc: Path) -> None:
    first, second = cnmc / "fold_0" / "all" / "UID_1_1_1_all.bmp", cnmc / "fold_1" / "all" / "UID_1_1_1_all.webp"
    _paint(second)
    assert _refusal(load_cells, "cnmc2019", cnmc) == (
        f"{second}: cell UID_1_1_1_all is already there as {first}; keep one of the two"
    )


def test_a_folder_without_cells_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    missing = f"--train_dir {tmp_path / 'nowhere'}: no such folder; "
    assert _refusal(load_cells, "cnmc2019", tmp_path / "nowhere") == (
        f"{missing}get C-NMC 2019 (ISBI 2019 challenge) from https://doi.org/10.7937/tcia.2019.dc64i46r and unpack it "
        "there, or correct the path"
    )
    assert _refusal(load_cells, "imagefolder", tmp_path / "nowhere") == f"{missing}correct the path"
    assert _refusal(load_cells, "cnmc2019", tmp_path) == (
        f"--train_dir {tmp_path}: no cell of C-NMC 2019 (ISBI 2019 challenge) found; expected {CNMC_LAYOUT}"
    )
    _paint(tmp_path / "holiday.png")
    assert _refusal(load_cells, "ball4", tmp_path) == (
        f"--train_dir {tmp_path}: no cell of B-ALL, four classes (Ghaderzadeh et al. 2021) found; "
        f"1 image file(s) passed over, for example {tmp_path / 'holiday.png'}: "
        "not laid out as …/Original/{Benign,Early,Pre,Pro}/WBC-….jpg"
    )
    no_copy = "--dataset_name ball4: it has no Hub copy; give its folder with --train_dir DIR"
    assert _refusal(load_cells, "ball4") == no_copy


# Flags that would have no effect


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("phantoms", "train_dir"),
        ("owner/name", "train_dir"),
        *(
            (name, flag)
            for name in ("cnmc2019", "phantoms", "owner/name")
            for flag in ("subject_pattern", "subject_folders", "labels")
        ),
        ("imagefolder", "image_column_name"),
        ("ball4", "label_column_name"),
        ("phantoms", "split_column"),
    ],
)
def test_a_flag_without_effect_is_refused(name: str, flag: str) -> None:
    """It is a misunderstanding about which cells are used."""
    assert _refusal(load_cells, name, **{flag: "x"}) == (
        f"--{flag} x: has no effect with --dataset_name {name}; leave it out, or read your own cells with "
        "--dataset_name imagefolder --train_dir DIR"
    )


def test_a_table_of_labels_stands_for_class_folders(tmp_path: Path) -> None:
    loose_cells, table = tmp_path / "cells", tmp_path / "labels.csv"
    for number, name in enumerate(("P1/a.png", "P1/b.png", "P2/a.png", "P3/ä.png")):
        _paint(loose_cells / name, number)
    rows = ("P1\\a.png;ALL;Anna", "P1\\b.png;ALL;Anna", "P2\\a.png;;Bert", "P3\\ä.png;HEM;Cäcilia")
    table.write_bytes("\r\n".join(("Datei;label;Patient", *rows)).replace("Datei", "File").encode("utf-8-sig"))
    _paint(loose_cells / "unlisted.png")
    data = load_cells("imagefolder", loose_cells, labels=table)
    assert data.info.labels == ("ALL", "HEM")
    assert data.train["label"][:] == [0, 0, 1]
    assert data.train["subject"][:] == ["Anna", "Anna", "Cäcilia"]
    assert data.passed_over == (
        f"1 row(s) of {table} name no class: left out",
        f"1 image file(s) have no row in {table}, for example {loose_cells / 'unlisted.png'}: left out",
    )
    table.write_text("file,label\nP1/a.png,ALL\nP1/b.png,ALL\nP3/ä.png,HEM\n", encoding="utf-8")
    data = load_cells("imagefolder", loose_cells, subject_pattern="(P.)/", labels=table)
    assert data.train["subject"][:] == ["P1", "P1", "P3"], "a pattern may name them instead"


# A user's own class folders


@pytest.mark.parametrize("pattern", [r"(?P<subject>p\d)_", r"/(p\d)_\d", r"(blast|normal)/(?P<subject>p\d)"])
def test_subjects_come_from_a_regular_expression(own_cells: Path, pattern: str) -> None:
    data = load_cells("imagefolder", own_cells, subject_pattern=pattern)
    assert (data.info.labels, data.train["label"][:]) == (("blast", "normal"), [0, 0, 1, 1])
    assert data.train["cell_id"][:] == ["blast/p1_1", "blast/p2_1", "normal/p3_1", "normal/p3_2"]
    assert data.train["subject"][:] == ["p1", "p2", "p3", "p3"]


def test_links_are_followed_and_hidden_folders_left_out(own_cells: Path, tmp_path: Path) -> None:
    (own_cells / "third").symlink_to(_paint(tmp_path / "elsewhere" / "p4_1.png", 4).parent)
    (own_cells / "blast" / "circle").symlink_to(own_cells)
    (own_cells / "above").symlink_to(own_cells.parent)
    (own_cells / "a_twin").symlink_to(own_cells / "normal")  # met twice, its pictures would be cells of two classes
    (own_cells / "blast" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    _paint(own_cells / "blast" / ".@__thumb" / "p1_1.png", 5)
    data = load_cells("imagefolder", own_cells)
    assert data.info.labels == ("blast", "normal", "third")
    assert len(data.train) == 5
    assert data.unreadable == (f"{own_cells / 'blast' / 'gone.png'}: no such file; check the path",)


# Fingerprints


def test_folders_are_known_by_id_label_subject_and_content(cnmc: Path) -> None:
    """Releases, splits and finished protocols name this very value: another rule would orphan them."""
    content = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in cnmc.rglob("*.bmp")}
    lines = [
        f"UID_{subject}_1_1_{label.lower()}\t{label}\t{subject}\t{content[f'UID_{subject}_1_1_{label.lower()}']}\n"
        for subject, label in (("1", "ALL"), ("2", "ALL"), ("H10", "HEM"), ("H3", "HEM"), ("h3", "HEM"))
    ]
    assert load_cells("cnmc2019", cnmc).fingerprint == hashlib.sha256("".join(lines).encode()).hexdigest()


# Phantoms


def test_phantoms_are_the_same_whenever_they_are_drawn_and_of_another_size_other_data(
    phantom_data: LoadedCells,
) -> None:
    first, again = (load_cells("phantoms", image_size=32) for _ in range(2))
    assert first.fingerprint == again.fingerprint != phantom_data.fingerprint
    assert first.train.column_names == COLUMNS
    assert first.train["cell_id"][:] == again.train["cell_id"][:]
    assert all(
        np.array_equal(np.asarray(first.train[i]["image"]), np.asarray(again.train[i]["image"])) for i in (0, 100, -1)
    )
    assert "These cells are synthetic: metrics on them say nothing about patients." in first.report()


# Hub layout


def _publish(
    folder: Path, columns: Columns, label: datasets.ClassLabel | datasets.Value = TEXT, split: str = "train"
) -> str:
    """A data-set folder as the Hub serves it, one Parquet file for each split with the pictures inside."""
    count = len(columns["label"])
    pictures = [Image.new("RGB", (16, 16), (i * min(10, 255 // count), 0, 0)) for i in range(count)]
    rows = datasets.Dataset.from_dict({"image": pictures, **columns})
    folder.mkdir(parents=True, exist_ok=True)
    rows.cast_column("image", datasets.Image()).cast_column("label", label).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_hub_layout_with_class_labels_and_a_subject_column(tmp_path: Path) -> None:
    columns: Columns = {"label": [1, 0, 1], "patient_id": [7, 8, 9], "file_name": ["a.png", "b.png", "c.png"]}
    data = load_cells(_publish(tmp_path / "hub", columns, datasets.ClassLabel(names=["normal", "blast"])))
    assert data.train.features["label"].names == ["blast", "normal"]
    assert data.train.remove_columns("image").to_dict() == {
        "label": [0, 1, 0], "subject": ["7", "8", "9"], "cell_id": ["a", "b", "c"], "fold": [""] * 3,
    }  # fmt: skip
    assert np.asarray(data.train[2]["image"])[0, 0].tolist() == [20, 0, 0]


@pytest.mark.parametrize("nobody", [None, "", " ", "nan", "None", "NULL"])
def test_a_hub_data_set_names_all_subjects_or_none(tmp_path: Path, nobody: str | None) -> None:
    """Cells without a subject would train while the same subject's cells are tested."""
    names = {"label": ["ALL", "HEM", "HEM"], "file_name": ["a.png", "b.png", "c.png"]}
    none = load_cells(_publish(tmp_path / "none", names | {"subject": [nobody] * 3}))
    assert none.train["subject"][:] == ["", "", ""]
    some = _publish(tmp_path / "some", names | {"subject": ["p", nobody, "p"]})
    assert "row 1 names no subject for 'b.png', other rows name theirs; fill it in" in _refusal(load_cells, some)


@pytest.mark.parametrize(
    ("column", "names", "ids"),
    [
        ("file_name", ["ALL/0.png", "HEM/0.png", "HEM/1.png"], ["ALL/0", "HEM/0", "HEM/1"]),
        ("cell_id", ["all/1", "hem/1", "hem/2.5.PNG"], ["all/1", "hem/1", "hem/2.5"]),
    ],
    ids=["two folders", "own ids"],
)
def test_a_hub_data_sets_cell_ids_come_from_a_column_of_ids_or_files(
    tmp_path: Path, column: str, names: list[str], ids: list[str]
) -> None:
    columns = {"label": ["ALL", "HEM", "HEM"], column: names}
    assert load_cells(_publish(tmp_path / "hub", columns)).train["cell_id"][:] == ids
    columns = {"label": ["all", "hem"], "image_name": ["UID_11_22_2_all.bmp", "UID_h3_1_1_hem.bmp"]}
    cnmc = load_cells(_publish(tmp_path / "cnmc", columns))
    assert cnmc.train["subject"][:] == ["11", "h3"], "as C-NMC names its files"


def test_a_folder_of_parquet_files_is_described_by_its_card_and_not_named_by_where_it_lies(tmp_path: Path) -> None:
    columns = {"label": ["ALL", "HEM", "HEM"], "subject": ["a", "b", "c"]}
    hub_id = _publish(tmp_path / "hub", columns)
    info = load_cells(hub_id).info
    assert (info.name, info.title, info.licence, info.citation) == ("./hub", "./hub", "", "")
    front = "license: mit\npretty_name: Our cells\nleukoscope:\n  citation: Doe 2026\n  subject_aliases: {c: b}"
    (tmp_path / "hub" / "README.md").write_text(f"---\n{front}\n---\n# Our cells\n")
    data = load_cells(hub_id)
    assert (data.info.title, data.info.licence, data.info.citation) == ("Our cells", "mit", "Doe 2026")
    assert data.train["subject"][:] == ["a", "b", "b"]
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: mit\nleukoscope: 5\n---\n")
    assert load_cells(hub_id).train["subject"][:] == ["a", "b", "c"]


def test_hub_data_are_known_by_the_content_of_loose_files(tmp_path: Path) -> None:
    def fingerprint(folder: str, seed: int) -> str:
        for number, name in enumerate(("blast/1.bmp", "normal/2.bmp")):
            _paint(tmp_path / folder / name, seed + number)
        return load_cells(str(tmp_path / folder)).fingerprint

    assert fingerprint("a", seed=0) == fingerprint("b", seed=0) != fingerprint("c", seed=5)


def test_hub_copy_with_folds_is_checked_and_parted_as_folders_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cnmc_on_the_hub(**columns: Sequence[object]) -> LoadedCells:
        hub_id = _publish(tmp_path / "hub", columns)
        monkeypatch.setitem(DATASETS, "cnmc2019", replace(DATASETS["cnmc2019"], hub_id=hub_id))
        return load_cells("cnmc2019")

    data = cnmc_on_the_hub(
        label=["ALL", "HEM", "ALL"],
        file_name=["UID_1_1_1_all.bmp", "UID_h3_1_1_hem.bmp", "UID_57_29_1_all.bmp"],
        fold=["fold_0", "fold_1", "preliminary_test"],
    )
    assert data.train["cell_id"][:] == ["UID_1_1_1_all", "UID_h3_1_1_hem"]
    assert data.train["subject"][:] == ["1", "H10"]
    assert data.cells["preliminary_test"]["cell_id"][:] == ["UID_57_29_1_all"]
    assert np.asarray(data.cells["preliminary_test"][0]["image"])[0, 0].tolist() == [20, 0, 0]
    assert data.train.features == data.cells["preliminary_test"].features
    assert "fold_0 ALL: 1 cells here, 2,397 published" in data.count_differences
    assert "preliminary_test ALL: 1 cells here, 1,219 published" in data.count_differences
    shutil.rmtree(tmp_path / "hub")
    assert cnmc_on_the_hub(label=["ALL", "HEM", "HEM"]).count_differences == (
        "all ALL: 1 cells here, 7,272 published",
        "all HEM: 2 cells here, 3,389 published",
    ), "without folds, by its sums"


def test_a_hub_copy_whose_label_is_no_class_is_refused_until_a_flag_names_the_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the published copy of C-NMC: its label is "cancer" in every row."""
    hub_id = _publish(tmp_path / "hub", {"label": ["cancer"] * 2, "class_label": ["all", "hem"], "fold": [0, 1]})
    monkeypatch.setitem(DATASETS, "cnmc2019", replace(DATASETS["cnmc2019"], hub_id=hub_id))
    assert _refusal(load_cells, "cnmc2019") == (
        f"data set {hub_id}: its column 'label' names the class 'cancer', not one of ALL, HEM; name that of the "
        "classes (of image, label, class_label, fold) with --label_column_name"
    )
    assert load_cells("cnmc2019", label_column_name="class_label").info.labels == ("ALL", "HEM")


def test_other_splits_of_a_hub_copy_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_id = _publish(tmp_path / "hub", {"label": ["ALL", "HEM"]})
    shutil.copy(tmp_path / "hub" / "train.parquet", tmp_path / "hub" / "test.parquet")
    monkeypatch.setitem(DATASETS, "cnmc2019", replace(DATASETS["cnmc2019"], hub_id=hub_id))
    data = load_cells("cnmc2019")
    assert (len(data.train), data.own_splits) == (2, {})
    assert data.report().splitlines()[-1] == "Hub split 'test' not used: 2 rows"


@pytest.mark.parametrize(("folds", "read"), [([0, 1, 2], ["0", "1", "2"]), ([0, None, 1], ["0", "", "1"])])
def test_a_hub_copys_fold_may_be_a_whole_number(tmp_path: Path, folds: list[object], read: list[str]) -> None:
    """Fold 0 was lost."""
    columns: Columns = {"label": ["ALL", "HEM", "ALL"], "fold": folds}
    assert load_cells(_publish(tmp_path / "hub", columns)).train["fold"][:] == read


def test_words_in_names_of_files_are_no_splits(tmp_path: Path) -> None:
    """`datasets` takes `1_test.png` for a test picture, and leaves out files without such a word: 32 of 64 cells."""
    for number, (label, word) in enumerate(product(("ALL", "HEM"), ("train", "test", "cell", "other"))):
        _paint(tmp_path / "set" / label / f"{number}_{word}.png", number)
    assert len(load_cells("imagefolder", tmp_path / "set").train) == 8
    assert _refusal(load_cells, str(tmp_path / "set")) == (
        f"data set {tmp_path / 'set'}: its splits are made of files with a side in their name, such as "
        "ALL/0_train.png, and other files are missing; download it and give --dataset_name imagefolder --train_dir DIR"
    )


@pytest.mark.parametrize("name", ["Patient_ID", "patientId", "Subject ID", "case_id"])
def test_a_column_of_subjects_is_found_as_in_any_table(tmp_path: Path, name: str) -> None:
    """The cells were split by image."""
    hub_id = _publish(tmp_path / "hub", {"label": ["ALL", "HEM"], name: ["P1", "P2"]})
    assert load_cells(hub_id).train["subject"][:] == ["P1", "P2"]
    two = _publish(tmp_path / "two", {"label": ["ALL", "HEM"], name: ["P1", "P2"], "donor": ["a", "b"]})
    assert f"its columns {name!r} and 'donor' both name the subject; name one with --subject_column" in (
        _refusal(load_cells, two)
    )
    assert load_cells(two, subject_column="donor").train["subject"][:] == ["a", "b"]


def test_a_column_of_sides_is_the_split_of_a_hub_data_set(tmp_path: Path) -> None:
    sides = ["train", "train", "test", "test"]
    hub_id = _publish(tmp_path / "hub", {"label": ["ALL", "HEM"] * 2, "split": sides})
    assert load_cells(hub_id).own_splits == {"train": 2, "test": 2}
    assert load_cells(hub_id, split_column="none").own_splits == {}
    shutil.copy(tmp_path / "hub" / "train.parquet", tmp_path / "hub" / "test.parquet")
    assert "is on the side 'test' by a column, and in the split 'train'" in _refusal(load_cells, hub_id)


# Splits of its own


def _split_hub(folder: Path, **splits: list[object]) -> str:
    """A Hub data set of several splits, each with these labels and subjects named after it."""
    for name, labels in splits.items():
        _publish(folder, {"label": labels, "subject": [f"{name}{i}" for i in range(len(labels))]}, TEXT, name)
    return str(folder)


def test_a_hub_data_sets_own_splits_are_its_sides(tmp_path: Path) -> None:
    hub_id = _split_hub(tmp_path / "hub", train=["ALL", "HEM", "ALL"], validation=["HEM", "ALL"], test=["ALL", "HEM"])
    data = load_cells(hub_id)
    assert data.own_splits == {"train": 3, "validation": 2, "test": 2}
    assert data.train["fold"][:] == ["train"] * 3 + ["validation"] * 2 + ["test"] * 2
    assert data.train["cell_id"][3:] == ["validation/row_000003", "validation/row_000004", "test/row_000005",
                                         "test/row_000006"]  # fmt: skip
    use = "--split given uses them; it is the default of `leukoscope train`"
    assert f"own splits: train 3, validation 2, test 2 ({use})" in data.report()


def test_flags_name_a_hub_data_sets_columns_and_splits_of_other_names_are_counted(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(
        {"picture": [Image.new("RGB", (16, 16))] * 2, "kind": ["ALL", "HEM"], "who": ["a", "b"]}
    ).cast_column("picture", datasets.Image())
    for name in ("train", "two"):
        (tmp_path / "hub").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "hub" / f"{name}.parquet")
    files = ", ".join(f"{{split: {name}, path: {name}.parquet}}" for name in ("train", "two"))
    front = f"configs: [{{config_name: default, data_files: [{files}]}}]"
    (tmp_path / "hub" / "README.md").write_text(f"---\n{front}\n---\n")
    hub_id = str(tmp_path / "hub")
    columns: dict[str, Any] = {"image_column_name": "picture", "label_column_name": "kind", "subject_column": "who"}
    data = load_cells(hub_id, **columns)
    assert data.train["subject"][:] == ["a", "b"] and not data.own_splits
    assert data.passed_over == ("Hub split 'two' not used: 2 rows",)
    assert _refusal(load_cells, hub_id, **columns | {"subject_column": "person"}).startswith(
        f"data set {hub_id}: has no column 'person' (--subject_column), only kind, who"
    )


def test_a_hub_split_without_labels_is_not_used_and_one_for_training_needed(tmp_path: Path) -> None:
    folder = Path(_split_hub(tmp_path / "hub", train=["ALL", "HEM"], test=[None, None]))
    data = load_cells(str(folder))
    assert (data.own_splits, len(data.train)) == ({}, 2)
    assert data.passed_over == ("Hub split 'test' not used: its 2 rows have no labels",)
    hub_id = _split_hub(tmp_path / "other", validation=["ALL", "HEM"], test=["ALL", "HEM"])
    assert _refusal(load_cells, hub_id) == (
        f"data set {hub_id}: has no split called train, only validation, test; publish a copy that has one"
    )


@pytest.mark.parametrize(
    ("names", "home"),
    [
        (("train", "val", "test"), ""),
        (("TRAIN", "dev", "TEST"), ""),
        (("Training set", "validation_data", "Testing set"), "unpacked/cells"),
    ],
)
def test_splits_of_a_folder_are_known_in_any_spelling_and_below_the_folder_that_was_unpacked(
    tmp_path: Path, names: tuple[str, ...], home: str
) -> None:
    """Merged, the test pictures would train."""
    files = [f"{home}/{side}/{label}/{side}.png".lstrip("/") for side in names for label in ("blast", "normal")]
    data = load_cells("imagefolder", place(tmp_path, *files))
    assert (data.info.labels, data.own_splits) == (("blast", "normal"), {"train": 2, "validation": 2, "test": 2})
    fold_of = dict(zip(data.train["cell_id"][:], data.train["fold"][:], strict=True))
    assert fold_of[files[2].removesuffix(".png")] == "validation"


_UNSEEN = "has blanks around its name, or invisible characters"
_TAKEN = "is the name of an outcome without a class"


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        *((name, _UNSEEN) for name in ("ALL ", " ALL", "A\tLL", "A\nLL", "ALL\u200b", "\ufeffALL", "A\u00a0LL")),
        *((name, _TAKEN) for name in ("abstain", "Abstain", "out of distribution", "Not a  cell", "too few cells")),
    ],
)
def test_a_class_that_would_be_taken_for_another_or_for_none_is_refused(
    own_cells: Path, tmp_path: Path, label: str, problem: str
) -> None:
    _paint(own_cells / label / "p5_1.png", 5)
    expected = f"class {label!r} {problem}"
    assert _refusal(load_cells, "imagefolder", own_cells) == f"--train_dir {own_cells}: {expected}; rename it"
    hub_id = _split_hub(tmp_path / "hub", train=[label, "blast", "normal"])
    if label == label.strip(" \ufeff"):  # as in any table, blanks around an entry do not count
        assert _refusal(load_cells, hub_id) == f"data set {hub_id}: {expected}; rename it"


@pytest.mark.parametrize("one, other", [("Zelle  a", "Zelle a"), ("\uff21LL", "all"), ("A", "a"), ("0", "0.0")])
def test_classes_that_look_alike_are_refused(tmp_path: Path, one: str, other: str) -> None:
    hub_id = _split_hub(tmp_path / "hub", train=[one, other, "normal"])
    assert _refusal(load_cells, hub_id).endswith("; spell one class in one way")


def test_whole_numbers_and_inner_blanks_make_classes(tmp_path: Path) -> None:
    assert load_cells(_publish(tmp_path / "a", {"label": [3, 4]}, datasets.Value("int8"))).info.labels == ("3", "4")
    named = _split_hub(tmp_path / "b", train=["not a cell line", "Lymphozyt (groß)"])
    assert load_cells(named).info.labels == ("Lymphozyt (groß)", "not a cell line")


# Hub data sets that cannot be used


PICTURE = Image.new("RGB", (16, 16))
LABELS = ["ALL", "HEM"]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"image": [PICTURE, None], "label": LABELS}, "cell row_000001 has no image; remove its row"),
        (
            {"image": [PICTURE] * 2, "label": LABELS, "file_name": ["all/1.bmp", "all/1.png"]},
            "cell all/1 appears more than once; give every row its own cell_id",
        ),
        (
            {"image": [PICTURE] * 5, "label": ["ALL", "HEM", None, "ALL", ""]},
            "2 cell(s) have no label, the first is row_000002; remove their rows",
        ),
        (
            {"picture": ["x"], "label": ["ALL"]},
            "has no column 'image', only picture, label; name that of the images with --image_column_name",
        ),
        ({"image": ["x"] * 2, "label": LABELS}, "its column 'image' holds string, not images; publish one picture a "),
        ({"image": [[PICTURE]] * 2, "label": LABELS}, "its column 'image' holds lists, not images; publish one pictu"),
        (
            {"image": [{"bytes": None, "path": "nowhere/0.png"}] * 2, "label": LABELS},
            "cell row_000000 has the path 'nowhere/0.png' and no picture; publish the pictures themselves",
        ),
        *(
            (
                {"image": [PICTURE] * 3, "label": [label] * 3, "note": ["x"] * 3},
                "has no column called label with one class in each row, only note; name that of the classes with --lab",
            )
            for label in (["ALL"], [0, 1], {"name": "ALL"}, b"ALL")
        ),
    ],
)
def test_a_hub_data_set_that_cannot_be_used_is_refused(tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    (tmp_path / "hub").mkdir()
    rows = datasets.Dataset.from_dict(columns)
    if PICTURE in columns.get("image", ()):
        rows = rows.cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "hub" / "train.parquet")
    assert _refusal(load_cells, str(tmp_path / "hub")).startswith(f"data set {tmp_path / 'hub'}: {problem}")


def test_unreachable_hub_data_set_ends_in_one_clear_message() -> None:
    message = _refusal(load_cells, "nobody/no-such-cells")
    assert message.startswith("data set nobody/no-such-cells: cannot be loaded from the Hub (")
    assert message.endswith(
        "; check the id and the network, or give a local copy with --dataset_name imagefolder --train_dir DIR"
    )


def test_loads_the_real_cells_whole(real_data: Path) -> None:
    real_cnmc = load_cells("cnmc2019", real_data / "cnmc2019" / "C-NMC_Leukemia")
    assert len(real_cnmc.train) == 7779
    assert real_cnmc.unreadable == ()
    differing = [line for line in real_cnmc.count_differences if not line.startswith("preliminary_test")]
    assert differing == ["fold_2 ALL: 413 cells here, 2,457 published", "fold_2 HEM: 258 cells here, 1,096 published"]
    assert not set(real_cnmc.train["subject"]) & set(real_cnmc.info.subject_aliases)
