"""From folders, Hub layouts and phantoms to one table: what is kept, what is counted, what is refused and how."""

from __future__ import annotations

import hashlib
import json
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

from leukoscope import LeukoscopeError
from leukoscope.data.cells import MOST_TOLD, LoadedCells
from leukoscope.data.layouts import CNMC_PRELIM_LABELS
from leukoscope.data.loading import load_cells, stream_cells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.data.preprocessing import Preprocessing
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


FOLDERS = f"say what it holds by --dataset_name ({', '.join(name for name in DATASETS if name != 'phantoms')})"
OWN = "read class folders with --dataset_name imagefolder"


@pytest.mark.parametrize(
    ("name", "flag", "fix"),
    [
        ("phantoms", "train_dir", FOLDERS),
        ("owner/name", "train_dir", FOLDERS),
        *(
            (name, flag, OWN)
            for name in ("owner/name", "cnmc2019", "phantoms")
            for flag in ("subject_pattern", "labels")
        ),
        ("imagefolder", "image_column_name", ""),
        ("cnmc2019", "label_column_name", ""),
        ("imagefolder", "subject_column", ""),
    ],
)
def test_a_flag_without_effect_is_refused(name: str, flag: str, fix: str) -> None:
    """It is a misunderstanding about which cells are used."""
    refusal = _refusal(load_cells, name, **{flag: "x"})
    assert refusal == f"--{flag} x: has no effect with --dataset_name {name}; leave it out" + (fix and f", or {fix}")


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


def test_bad_regular_expressions_are_refused(own_cells: Path) -> None:
    assert _refusal(load_cells, "imagefolder", own_cells, subject_pattern="(p").startswith(
        "--subject_pattern '(p': is not a regular expression ("
    )
    assert _refusal(load_cells, "imagefolder", own_cells, subject_pattern=r"p\d") == (
        "--subject_pattern 'p\\d': has no group; write the subject's part as (?P<subject>…)"
    )
    assert _refusal(load_cells, "imagefolder", own_cells, subject_pattern="(p[12])") == (
        "--subject_pattern '(p[12])': does not match 'normal/p3_1.png'; it must match every image"
    )
    table = own_cells / "x.csv"
    table.write_text("file,subject\nblast/p1_1.png,p1\n")
    message = _refusal(load_cells, "imagefolder", own_cells, subject_pattern="(x)", labels=table)
    assert message == f"--subject_pattern '(x)' --labels {table}: both name the subjects; give one"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("file,subject\nblast/p1_1.png,a\n", "no row for file 'blast/p2_1.png'; every image needs a subject"),
        (
            "file,age\nblast/p1_1.png,7\n",
            "names no subject; add a column called subject (or subject_id, patient_id, patient, person, person_id, "
            "donor, donor_id), or give --subject_pattern",
        ),
    ],
    ids=["missing row", "missing column"],
)
def test_incomplete_csv_is_refused(own_cells: Path, tmp_path: Path, rows: str, message: str) -> None:
    table = tmp_path / "subjects.csv"
    table.write_text(rows)
    assert _refusal(load_cells, "imagefolder", own_cells, labels=table) == f"{table}: {message}"
    table.unlink()
    missing = f"--labels {table}: no such file; it needs the columns file,label,subject"
    assert _refusal(load_cells, "imagefolder", own_cells, labels=table) == missing


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


def test_file_names_that_are_not_utf8_are_read_and_get_an_id_that_tables_take(own_cells: Path) -> None:
    before = len(load_cells("imagefolder", own_cells).train)
    for name in ("M\udcfcller", "M\udcf6ller"):  # one id for both would be refused as a cell that is there twice
        _paint(own_cells / "blast" / f"{name}.png", 7)
    (own_cells / "blast" / "broken-\udcff.png").write_text("no picture")
    _paint(own_cells / "a-\udcff.png", 8)

    data = load_cells("imagefolder", own_cells)

    rows = data.train.filter(lambda row: "ller" in row["cell_id"])
    assert sorted(rows["cell_id"]) == ["blast/M\\xf6ller", "blast/M\\xfcller"]
    assert all(row["image"].size for row in rows) and len(data.train) == before + 2
    json.dumps([*data.unreadable, *data.passed_over], ensure_ascii=False).encode()
    assert any("broken-\\xff.png" in message for message in data.unreadable)
    assert any("a-\\xff.png" in message for message in data.passed_over)
    frame_cells(data, Preprocessing(32, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3))


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


def _publish(folder: Path, columns: Columns, label: datasets.ClassLabel | datasets.Value) -> str:
    """A data-set folder as the Hub serves it, one Parquet file with the pictures inside."""
    count = len(columns["label"])
    pictures = [Image.new("RGB", (16, 16), (i * min(10, 255 // count), 0, 0)) for i in range(count)]
    rows = datasets.Dataset.from_dict({"image": pictures, **columns})
    rows = rows.cast_column("image", datasets.Image()).cast_column("label", label)
    folder.mkdir(parents=True)
    rows.to_parquet(folder / "train.parquet")
    return str(folder)


def test_hub_layout_with_class_labels_and_a_subject_column(tmp_path: Path) -> None:
    columns: Columns = {"label": [1, 0, 1], "patient_id": [7, 8, 9], "file_name": ["a.png", "b.png", "c.png"]}
    hub_id = _publish(tmp_path / "hub", columns, datasets.ClassLabel(names=["normal", "blast"]))
    data = load_cells(hub_id)
    assert data.train.column_names == COLUMNS
    assert data.info.labels == ("blast", "normal")
    names = [data.train.features["label"].int2str(i) for i in data.train["label"]]
    assert names == ["blast", "normal", "blast"]
    assert data.train["subject"][:] == ["7", "8", "9"]
    assert data.train["cell_id"][:] == ["a", "b", "c"]
    assert data.train["fold"][:] == ["", "", ""]
    assert np.asarray(data.train[2]["image"])[0, 0].tolist() == [20, 0, 0]


@pytest.mark.parametrize("nobody", [None, "", " ", "nan", "None", "NULL"])
def test_a_hub_data_set_names_all_subjects_or_none(tmp_path: Path, nobody: str | None) -> None:
    """Cells without a subject would train while the same subject's cells are tested."""
    names = {"label": ["ALL", "HEM", "HEM"], "file_name": ["a.png", "b.png", "c.png"]}
    none = load_cells(_publish(tmp_path / "none", names | {"subject": [nobody] * 3}, TEXT))
    assert none.train["subject"][:] == ["", "", ""]
    some = _publish(tmp_path / "some", names | {"subject": ["p", nobody, "p"]}, TEXT)
    assert "cell b has no subject, other cells have one; name it" in _refusal(load_cells, some)


@pytest.mark.parametrize(
    ("column", "names", "ids"),
    [
        ("file_name", ["ALL/0.png", "HEM/0.png", "HEM/1.png"], ["ALL/0", "HEM/0", "HEM/1"]),
        ("file_name", ["a.png", "", "b.png"], ["a", "", "b"]),
        ("cell_id", ["all/1", "hem/1", "hem/2.5.PNG"], ["all/1", "hem/1", "hem/2.5"]),
    ],
    ids=["two folders", "unnamed", "own ids"],
)
def test_a_hub_data_sets_cell_ids_come_from_a_column_of_ids_or_files(
    tmp_path: Path, column: str, names: list[str], ids: list[str]
) -> None:
    columns = {"label": ["ALL", "HEM", "HEM"], column: names}
    assert load_cells(_publish(tmp_path / "hub", columns, TEXT)).train["cell_id"][:] == ids
    columns = {"label": ["all", "hem"], "image_name": ["UID_11_22_2_all.bmp", "UID_h3_1_1_hem.bmp"]}
    cnmc = load_cells(_publish(tmp_path / "cnmc", columns, TEXT))
    assert cnmc.train["subject"][:] == ["11", "h3"], "as C-NMC names its files"


def test_a_folder_of_parquet_files_is_described_by_its_card_and_not_named_by_where_it_lies(tmp_path: Path) -> None:
    columns = {"label": ["ALL", "HEM", "HEM"], "subject": ["a", "b", "c"]}
    hub_id = _publish(tmp_path / "hub", columns, TEXT)
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
        hub_id = _publish(tmp_path / "hub", columns, TEXT)
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


def test_other_splits_of_a_hub_copy_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_id = _publish(tmp_path / "hub", {"label": ["ALL", "HEM"]}, TEXT)
    shutil.copy(tmp_path / "hub" / "train.parquet", tmp_path / "hub" / "test.parquet")
    monkeypatch.setitem(DATASETS, "cnmc2019", replace(DATASETS["cnmc2019"], hub_id=hub_id))
    data = load_cells("cnmc2019")
    assert (len(data.train), data.own_splits) == (2, {})
    assert data.report().splitlines()[-1] == "Hub split 'test' not used: 2 rows"


@pytest.mark.parametrize(("folds", "read"), [([0, 1, 2], ["0", "1", "2"]), ([0, None, 1], ["0", "", "1"])])
def test_a_hub_copys_fold_may_be_a_whole_number(tmp_path: Path, folds: list[object], read: list[str]) -> None:
    """Fold 0 was lost."""
    columns: Columns = {"label": ["ALL", "HEM", "ALL"], "fold": folds}
    assert load_cells(_publish(tmp_path / "hub", columns, TEXT)).train["fold"][:] == read


# Splits of its own


def _split_hub(folder: Path, **splits: list[object]) -> str:
    """A Hub data set of several splits, each with these labels and subjects named after it."""
    for name, labels in splits.items():
        columns: Columns = {"label": labels, "subject": [f"{name}{i}" for i in range(len(labels))]}
        _publish(folder / name, columns, TEXT)
        shutil.copy(folder / name / "train.parquet", folder / f"{name}.parquet")
        shutil.rmtree(folder / name)
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


def test_flags_name_a_hub_data_sets_columns(tmp_path: Path) -> None:
    rows = {"picture": [Image.new("RGB", (16, 16))] * 2, "kind": ["ALL", "HEM"], "who": ["a", "b"]}
    splits = {name: datasets.Dataset.from_dict(rows) for name in ("train", "two")}
    for name, split in splits.items():
        (tmp_path / "hub").mkdir(exist_ok=True)
        split.cast_column("picture", datasets.Image()).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    (tmp_path / "hub" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: {name}.parquet\n" for name in splits)
        + "---\n"
    )
    hub_id = str(tmp_path / "hub")
    columns: dict[str, Any] = {"image_column_name": "picture", "label_column_name": "kind", "subject_column": "who"}
    data = load_cells(hub_id, **columns)
    assert data.train["subject"][:] == ["a", "b"] and not data.own_splits
    assert data.passed_over == ("Hub split 'two' not used: 2 rows",)
    assert _refusal(load_cells, hub_id, **columns | {"subject_column": "person"}).startswith(
        f"data set {hub_id}: lacks the column(s) person; has ["
    )


def test_a_hub_split_without_labels_is_not_used_and_one_for_training_needed(tmp_path: Path) -> None:
    labels = datasets.ClassLabel(names=["ALL", "HEM"])
    folder = tmp_path / "hub"
    for name, values in {"train": [0, 1], "test": [-1, -1]}.items():
        _publish(folder / name, {"label": values}, labels)
        shutil.move(folder / name / "train.parquet", folder / f"{name}.parquet")
        (folder / name).rmdir()
    data = load_cells(str(folder))
    assert (data.own_splits, len(data.train)) == ({}, 2)
    assert data.passed_over == ("Hub split 'test' not used: its 2 rows have no labels",)
    hub_id = _split_hub(tmp_path / "other", validation=["ALL", "HEM"], test=["ALL", "HEM"])
    assert _refusal(load_cells, hub_id) == (
        f"data set {hub_id}: has no split called train, only validation, test; publish a copy that has one"
    )


@pytest.mark.parametrize(
    ("train", "test", "home"),
    [("TRAIN", "TEST", ""), ("train_data", "test_data", ""), ("Training set", "Testing set", "unpacked/cells")],
)
def test_splits_are_known_in_any_spelling_and_below_the_folder_that_was_unpacked(
    tmp_path: Path, train: str, test: str, home: str
) -> None:
    """Merged, the test pictures would train."""
    for number, (side, label) in enumerate(product((train, test), ("blast", "normal"))):
        _paint(tmp_path / "set" / home / side / label / f"{number}.png", number)
        _paint(tmp_path / "set" / home / side / label / f"{number + 10}.png", number + 10)
    assert load_cells("imagefolder", tmp_path / "set").own_splits == {"train": 4, "test": 4}


@pytest.mark.parametrize(
    ("label", "shown", "kind"),
    [
        (["ALL"], "['ALL']", "list"),
        ([0, 1], "[0, 1]", "list"),
        ({"name": "ALL"}, "{'name': 'ALL'}", "dict"),
        (1.0, "1.0", "float"),
        (float("nan"), "nan", "float"),
        (b"ALL", "b'ALL'", "bytes"),
    ],
)
def test_a_hub_label_that_is_no_class_is_refused_by_its_value(
    tmp_path: Path, label: object, shown: str, kind: str
) -> None:
    kinds = datasets.Dataset.from_dict({"label": [label]}).features["label"]
    hub_id = _publish(tmp_path / "hub", {"label": [label] * 3}, kinds)
    assert _refusal(load_cells, hub_id) == (
        f"data set {hub_id}: cell row_000000 has the label {shown} in column 'label', a {kind}; give each cell one "
        "class, as a text or a whole number, or name another column with --label_column_name"
    )


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
    assert _refusal(load_cells, hub_id) == f"data set {hub_id}: {expected}; rename it"


@pytest.mark.parametrize(
    "one, other", [("Zelle  a", "Zelle a"), ("e\u0301", "\u00e9"), ("\uff21LL", "all"), ("A", "a")]
)
def test_classes_that_look_alike_are_refused(tmp_path: Path, one: str, other: str) -> None:
    hub_id = _split_hub(tmp_path / "hub", train=[one, other, "normal"])
    assert _refusal(load_cells, hub_id).endswith("look alike; give one class one name")


def test_whole_numbers_and_inner_blanks_make_classes(tmp_path: Path) -> None:
    assert load_cells(_publish(tmp_path / "a", {"label": [3, 4]}, datasets.Value("int8"))).info.labels == ("3", "4")
    named = _split_hub(tmp_path / "b", train=["not a cell line", "Lymphozyt (groß)"])
    assert load_cells(named).info.labels == ("Lymphozyt (groß)", "not a cell line")


def test_the_splits_of_a_folder_are_its_sides_and_a_folder_beside_them_is_named(tmp_path: Path) -> None:
    for number, (side, label) in enumerate(product(("train", "val", "test"), ("blast", "normal"))):
        _paint(tmp_path / side / label / f"{number}.png", number)
    _paint(tmp_path / "later" / "blast" / "9.png", 9)
    data = load_cells("imagefolder", tmp_path)
    assert data.info.labels == ("blast", "normal")
    assert data.own_splits == {"train": 2, "validation": 2, "test": 2}
    assert dict(zip(data.train["cell_id"][:], data.train["fold"][:], strict=True))["val/blast/2"] == "validation"
    assert data.passed_over == ("folder 'later' is not used: its 1 image file(s) belong to no split",)


# Hub data sets that cannot be used


PICTURE = Image.new("RGB", (16, 16))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [PICTURE, None], "label": ["ALL", "HEM"]}, "cell row_000001 has no image; remove its row"),
        (
            {"image": [PICTURE] * 2, "label": ["ALL", "HEM"], "file_name": ["all/1.bmp", "all/1.png"]},
            "cell all/1 appears more than once; give every row its own cell_id",
        ),
        (
            {"image": [PICTURE] * 5, "label": ["ALL", "HEM", None, "ALL", ""]},
            "2 cell(s) have no label, the first is row_000002; remove their rows",
        ),
        ({"picture": ["x"], "label": ["ALL"]}, "lacks the column(s) image; has ['picture', 'label']"),
        (
            {"image": ["x"], "label": ["ALL"]},
            "its column 'image' holds string, not images; name the column of images with --image_column_name",
        ),
    ],
    ids=["no picture", "cell twice", "no labels", "no column", "text"],
)
def test_a_hub_data_set_that_cannot_be_used_is_refused(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    (tmp_path / "hub").mkdir()
    rows = datasets.Dataset.from_dict(columns)
    if "x" not in columns.get("image", ["x"]):
        rows = rows.cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "hub" / "train.parquet")
    assert _refusal(load_cells, str(tmp_path / "hub")) == f"data set {tmp_path / 'hub'}: {said}"


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


# Streams


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits five seconds after each stream of Parquet, for threads that would disturb a process's end."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


@pytest.mark.parametrize("label", [datasets.ClassLabel(names=["HEM", "ALL"]), datasets.Value("string")])
def test_a_sorted_stream_gives_cells_of_each_class(
    tmp_path: Path, no_wait: None, label: datasets.ClassLabel | datasets.Value
) -> None:
    hub_id = _publish(tmp_path / "hub", {"label": ["ALL"] * 80 + ["HEM"] * 40}, label)
    cells = stream_cells(hub_id, each=2)
    assert [cell.label for cell in cells] == ["ALL", "ALL", "HEM", "HEM"]
    reds = [np.asarray(cell.image)[0, 0, 0] for cell in cells]
    assert max(reds[:2]) < 160 <= min(reds[2:])


def test_a_rare_class_gives_what_there_is_and_cells_without_a_label_nothing(tmp_path: Path, no_wait: None) -> None:
    hub_id = _publish(tmp_path / "hub", {"label": [*["ALL"] * 9, None, "HEM", ""]}, datasets.Value("string"))
    assert [cell.label for cell in stream_cells(hub_id, each=3)] == ["ALL", "ALL", "ALL", "HEM"]


def test_no_such_data_set_and_one_without_pictures_are_one_message(tmp_path: Path, no_wait: None) -> None:
    with pytest.raises(LeukoscopeError, match="data set lab/none: cannot be streamed from the Hub .*check the network"):
        stream_cells("lab/none")
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict({"text": ["a"], "label": ["ALL"]}).to_parquet(tmp_path / "hub" / "train.parquet")
    with pytest.raises(LeukoscopeError, match="cannot be streamed from the Hub"):
        stream_cells(str(tmp_path / "hub"))
