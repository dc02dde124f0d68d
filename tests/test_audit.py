"""Every defect planted in a small tree is found and classed; a clean tree has none."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drawn import place, save_cell
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.audit import audit_cells, find_duplicates, picture_key, scan_cells, survey_cells
from leukoscope.data.folder import recognise
from leukoscope.data.loading import load_cells
from leukoscope.data.splits import make_split
from leukoscope.synthetic import Background, draw_cell
from leukoscope.training.config import parse_config

PATTERN = r"(?P<subject>[^/_]+)_\d+"
Tree = Callable[[str], Path]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of six subjects with six cells each, without a defect."""
    root = tmp_path_factory.mktemp("drawn")
    for label, number, cell in product(("ALL", "HEM"), range(3), range(6)):
        path = root / label / f"{label[0].lower()}{number}_{cell}.png"
        save_cell(path, label, size=96, subject=number, cell=cell, background="smear")
    return root


@pytest.fixture
def tree(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "tree"))


def audit(root: Path, *, split: str | None = None, pattern: str | None = PATTERN) -> dict[str, Any]:
    data = load_cells("imagefolder", root, subject_pattern=pattern)
    data, scans = scan_cells(data)
    chosen = make_split(data, split) if split else None
    return audit_cells(data, scans, split=chosen)


def crossed(findings: dict[str, Any]) -> list[str]:
    (pair,) = findings["duplicates"]["pairs"]
    return [name for name, is_crossed in pair["across"].items() if is_crossed]


def test_torn_cells_are_counted_by_class(tmp_path: Path) -> None:
    for label, number, cell in product(("ALL", "HEM"), range(3), range(6)):
        path = tmp_path / label / f"{label[0].lower()}{number}_{cell}.png"
        save_cell(path, label, size=96, subject=number, cell=cell, background="black")
    whole = audit(tmp_path)["warnings"]
    for path in sorted(tmp_path.rglob("ALL/*"))[:2]:
        pixels = np.array(Image.open(path))
        middle = len(pixels) // 2
        pixels[middle - 8 : middle + 8] = pixels[:middle, middle:] = 0
        Image.fromarray(pixels).save(path)
    (line,) = [line for line in audit(tmp_path)["warnings"] if line not in whole]
    assert line.startswith("torn, or two cells in one (solidity below 0.85), of 100 cells of each class: ")
    assert line.endswith(", 0.0 HEM") and "ALL" in line


def test_a_clean_tree_has_no_finding(tree: Path) -> None:
    findings = audit(tree)
    assert not any("torn" in line for line in findings["warnings"])
    assert findings["inflating"] == []
    assert findings["duplicates"]["pairs"] == findings["blank"] == []
    assert findings["subject_aliases"] == []
    assert findings["unreadable"] == []
    assert findings["survey"]["partitions"] == {"": {"ALL": 18, "HEM": 18}}
    assert findings["survey"]["subjects"]["HEM"] == {"h0": 6, "h1": 6, "h2": 6}
    assert findings["shortcuts"]["split"] == {"strategy": "subject-cv", "folds": 3, "disjoint_by": "subject"}
    assert findings["shortcuts"]["cells"] == 36
    assert findings["notice"] == RESEARCH_NOTICE
    assert json.loads(json.dumps(findings)) == findings, "plain numbers only"


def test_a_copy_inflates_under_another_subject_alone_and_proposes_an_alias(tree: Path) -> None:
    shutil.copy(tree / "ALL/a0_0.png", tree / "ALL/a0_9.png")
    findings = audit(tree)
    assert crossed(findings) == [] and findings["inflating"] == []
    assert findings["duplicates"]["identical"]["pairs"] == 1
    (tree / "ALL/a0_9.png").rename(tree / "ALL/a1_9.png")
    findings = audit(tree)
    assert crossed(findings) == ["subjects", "units", "inflates"]
    (group,) = findings["subject_aliases"]
    assert (group["subjects"], group["known"], group["copies"]) == (["a0", "a1"], False, 1)
    assert group["same_as"] == "a1", "the id with most cells stays"
    assert findings["inflating"] == [
        "1 pixel-identical pair(s) stand in two subjects, so that a split may test on a picture it trained on, for "
        "example ALL/a0_0 and ALL/a1_9"
    ]
    findings = audit(tree, pattern=None)
    assert crossed(findings) == ["units", "inflates"], "without subjects every copy inflates"
    assert findings["data"]["unit"] == "cell"


def test_a_reencoded_copy_in_another_class_inflates(tree: Path) -> None:
    Image.open(tree / "ALL/a0_0.png").rotate(90).save(tree / "HEM/h0_9.jpg", quality=85)
    findings = audit(tree)
    assert crossed(findings) == ["subjects", "classes", "units", "inflates"]
    assert findings["duplicates"]["near"]["classes"] == 1 and findings["duplicates"]["identical"]["pairs"] == 0
    assert findings["duplicates"]["pairs"][0]["turned"]
    assert any("have two different classes" in line for line in findings["inflating"])


def test_a_copy_across_the_split_given_inflates(tree: Path) -> None:
    for cell in range(6):
        shutil.copy(tree / f"ALL/a0_{cell}.png", tree / f"ALL/a0_{cell}9.png")
    assert audit(tree)["inflating"] == []
    findings = audit(tree, split="random")
    assert findings["duplicates"]["identical"]["split_sides"] > 0
    assert any("pair(s) are on two sides of the split" in line for line in findings["inflating"])


def test_a_split_that_divides_subjects_inflates(tree: Path) -> None:
    findings = audit(tree, split="random")
    (line,) = findings["inflating"]
    assert line.endswith("subject(s) are on two sides of the split, for example a0")
    assert findings["shortcuts"]["split"] == {"strategy": "random", "folds": 1, "disjoint_by": "cell"}
    assert audit(tree, split="all")["shortcuts"]["split"]["strategy"] == "subject-cv", "without a test side"


def test_a_subject_in_two_classes_is_suspect_where_most_have_one(tree: Path) -> None:
    def move(label: str, subject: str, other: str) -> None:
        (tree / label / f"{subject}_0.png").rename(tree / other / f"{subject}_0.png")

    move("ALL", "a0", "HEM")
    findings = audit(tree)
    assert findings["subjects_in_two_classes"] == {"suspect": True, "subjects": {"a0": {"ALL": 5, "HEM": 1}}}
    assert findings["inflating"] == ["1 subject(s) have cells of two classes, for example a0"]
    for label, subject, other in (("ALL", "a1", "HEM"), ("HEM", "h0", "ALL"), ("HEM", "h1", "ALL")):
        move(label, subject, other)
    findings = audit(tree)
    assert not findings["subjects_in_two_classes"]["suspect"], "most have several"
    assert len(findings["subjects_in_two_classes"]["subjects"]) == 4 and findings["inflating"] == []


def test_blank_pictures_are_named_and_no_copies(tree: Path) -> None:
    Image.new("RGB", (96, 96), (230, 228, 231)).save(tree / "ALL/a0_20.jpg")
    Image.new("RGB", (96, 96), (230, 228, 231)).save(tree / "HEM/h0_20.jpg")
    Image.open(tree / "ALL/a0_2.png").resize((80, 96)).save(tree / "ALL/a0_2.png")
    findings = audit(tree)
    assert findings["blank"] == ["ALL/a0_20", "HEM/h0_20"]
    assert findings["duplicates"]["pairs"] == [], "two blank pictures are no copies of a cell"
    assert "picture size" in findings["shortcuts"]["features"]


def test_unreadable_files_are_named_whether_the_header_or_the_pixels_are_damaged(tree: Path) -> None:
    split = make_split(load_cells("imagefolder", tree), "random")
    (tree / "ALL/a0_0.png").write_bytes(b"")
    whole = (tree / "HEM/h0_0.png").read_bytes()
    (tree / "HEM/h0_0.png").write_bytes(whole[: len(whole) // 2])
    findings = audit(tree)
    assert findings["data"]["cells"] == 34
    assert "the file is empty" in findings["unreadable"][0] and "damaged or cut short" in findings["unreadable"][1]
    assert set(findings["unreadable"]) < set(findings["survey"]["problems"])
    of_whole = audit_cells(*scan_cells(load_cells("imagefolder", tree)), split=split)
    assert of_whole["shortcuts"]["cells"] <= len(split.test) and of_whole["shortcuts"]["features"]
    for path in tree.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(LeukoscopeError, match=r"damaged or cut short.*; none of the 35 images could be read, so there"):
        scan_cells(load_cells("imagefolder", tree))


def write_cnmc(root: Path, fold: int, subject: str, number: int, shows: str, cell: int) -> None:
    """A cell named as one of a subject, which shows one of that or another."""
    label = "hem" if subject.startswith("H") else "all"
    path = root / f"fold_{fold}" / label / f"UID_{subject}_{number}_1_{label}.bmp"
    save_cell(path, label.upper(), size=96, subject=int(shows.strip("H")), cell=cell)


@pytest.fixture
def cnmc(tmp_path: Path) -> Path:
    root = tmp_path / "cnmc"
    for fold, subject in ((0, "1"), (0, "H1"), (1, "51"), (2, "75"), (1, "H14"), (0, "H24")):
        for number in range(3):
            write_cnmc(root, fold, subject, number, subject, number)
    return root


def audit_cnmc(root: Path) -> dict[str, Any]:
    return audit_cells(*scan_cells(load_cells("cnmc2019", root)))


def test_aliases_count_that_the_registry_does_not_know(cnmc: Path) -> None:
    write_cnmc(cnmc, 2, "75", 9, "51", 0)
    findings = audit_cnmc(cnmc)
    assert crossed(findings) == ["subjects", "official_folds"]
    (group,) = findings["subject_aliases"]
    assert (group["subjects"], group["same_as"], group["known"]) == (["51", "75"], "51", True)
    assert findings["inflating"] == []
    write_cnmc(cnmc, 0, "H1", 9, "H14", 0)
    findings = audit_cnmc(cnmc)
    group = findings["subject_aliases"][1]
    assert (group["subjects"], group["known"], group["unjoined"]) == (["H1", "H14"], False, ["H14"])
    assert group["same_as"] == "H1"
    assert len(findings["inflating"]) == 1


@pytest.mark.slow
def test_real_ball4_has_its_forty_pairs_and_its_shortcuts(real_data: Path) -> None:
    findings = audit_cells(*scan_cells(load_cells("ball4", real_data / "ball4")))
    assert findings["duplicates"]["identical"]["pairs"] == 40
    assert findings["duplicates"]["identical"]["inflates"] == 0, "blocks join identical files"
    metrics = findings["shortcuts"]["features"]
    assert metrics["background"]["balanced_accuracy"] > 0.7 and metrics["corner"]["balanced_accuracy"] > 0.45


@pytest.mark.slow
def test_real_cnmc_cells_name_one_subject_under_several_ids(real_data: Path, tmp_path: Path) -> None:
    root, known = real_data / "cnmc2019", (("51", "75", "78"), ("20", "21"), ("H2", "H4", "H5"), ("H10", "h3"))
    for path in (root / "C-NMC_Leukemia").rglob("UID_*"):
        if path.name.split("_")[1] in {subject for together in known for subject in together}:
            (tmp_path / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(root)).symlink_to(path)
    findings = audit_cnmc(tmp_path / "C-NMC_Leukemia")
    group_of = {s: group["subjects"] for group in findings["subject_aliases"] for s in group["subjects"]}
    for together in known:
        assert set(together) <= set(group_of[together[0]])
    assert findings["duplicates"]["identical"]["subjects"] == 29


def survey(root: Path, names: str = "", *, pattern: str | None = None) -> dict[str, Any]:
    place(root, *names.split())
    info = "imagefolder" if pattern else recognise(root).name
    return survey_cells(load_cells(info, root, subject_pattern=pattern))


def test_cnmc_is_counted_by_class_and_subject(tmp_path: Path) -> None:
    """Three cells of subject 1, and one each of H10 and h3, who are one subject."""
    blasts = " ".join(f"fold_0/all/UID_1_{frame}_1_all.bmp" for frame in range(3))
    found = survey(tmp_path, f"{blasts} fold_0/hem/UID_H10_1_1_hem.bmp fold_1/hem/UID_h3_1_1_hem.bmp")
    assert (found["dataset_name"], found["split_flags"]) == ("cnmc2019", ["--split", "random"]), "one HEM subject"
    assert found["partitions"] == {"fold_0": {"ALL": 3, "HEM": 1}, "fold_1": {"HEM": 1}}
    assert found["subjects"] == {"ALL": {"1": 3}, "HEM": {"H10": 2}}
    assert "fold_0 ALL: 3 cells here, 2,397 published" in found["problems"]
    few = "HEM: 1 subject(s) to train on, fewer than the 7 of --split subject"
    assert f"{few}: gather cells of more subjects" in found["problems"]


def test_ball4_is_said_to_name_no_subjects(tmp_path: Path) -> None:
    malignant = "WBC-Malignant-Pro-001.jpg"
    found = survey(tmp_path, f"Original/Benign/WBC-Benign-001.jpg Original/Pro/{malignant} Segmented/Pro/{malignant}")
    assert (found["dataset_name"], found["split_flags"]) == ("ball4", ["--split", "block"])
    assert found["partitions"] == {"": {"Benign": 1, "Pro": 1}}
    unknown = [line for line in found["problems"] if "the subjects of these cells are not known" in line]
    assert "--split block" in unknown[0]


@pytest.mark.parametrize("divided", [True, False])
def test_subjects_on_two_sides_of_a_data_sets_own_splits_are_named_without_opening_a_picture(
    tmp_path: Path, divided: bool
) -> None:
    in_test = "p1" if divided else "p3"
    folders = [f"train/{label}/p{n}_0.png" for label, n in (("blast", 1), ("normal", 2))]
    folders += [f"test/blast/{in_test}_1.png", "test/normal/p4_1.png"]
    problems = survey(tmp_path, " ".join(folders), pattern=r"(?P<subject>p\d)_")["problems"]
    words = "1 subject(s) are on two sides of the data set's own splits, for example p1: their test metrics do not"
    assert any(line.startswith(words) for line in problems) == divided


@pytest.mark.parametrize("subjects", [2, 6, 7, 8])
def test_the_split_that_is_advised_can_be_drawn(tmp_path: Path, subjects: int) -> None:
    rows = [(label, subject, cell) for label in ("blast", "normal") for subject in range(subjects) for cell in range(4)]
    names = " ".join(f"{label}/{label[0]}{subject}_{cell}.png" for label, subject, cell in rows)
    pattern = r"(?P<subject>[a-z]\d+)_\d"
    flags = survey(tmp_path, names, pattern=pattern)["split_flags"]
    config = parse_config(["--dataset_name", "imagefolder", *flags]).data
    data = load_cells("imagefolder", tmp_path, subject_pattern=pattern)
    folds = range(config.num_folds if config.split == "subject-cv" else 1)
    whole = not config.no_validation
    drawn = [make_split(data, config.split, fold=fold, num_folds=config.num_folds, validation=whole) for fold in folds]
    assert {split.strategy for split in drawn} == {"subject" if subjects >= 7 else "subject-cv"}
    assert all(split.train and split.test for split in drawn)


# Copies are found however they were stored or turned; different cells are never taken for copies


def phantom(cell: int, *, label: str = "ALL", background: Background = "black", size: int = 160) -> Image.Image:
    return Image.fromarray(draw_cell(label, cell=cell, size=size, background=background).image)


def stored(image: Image.Image, **how: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, **how)
    return Image.open(file).convert("RGB")


def duplicates(*images: Image.Image) -> list[Any]:
    pictures = pd.DataFrame([picture_key(image) for image in images], columns=["pixels", "small"])
    return list(find_duplicates(pictures, ()).itertuples(index=False))


def test_pixels_count_not_files() -> None:
    as_png, as_bmp = stored(phantom(0), format="PNG"), stored(phantom(0), format="BMP")
    pairs = [(1, 2, True, 0, False), (1, 3, True, 0, False)]
    assert duplicates(phantom(1), as_png, as_bmp, phantom(0)) == pairs


@pytest.mark.parametrize(("noise", "most"), [(0, 7), (2, 50)], ids=["identical", "near"])
def test_of_many_alike_each_is_paired_with_few_and_across_what_it_crosses(noise: int, most: int) -> None:
    """Of 300, each two would be 44,850 pairs."""
    rng = np.random.default_rng(0)
    small = picture_key(phantom(0))["small"]
    count = 300
    pictures = pd.DataFrame(
        {
            "pixels": [str(row * bool(noise)) for row in range(count)],
            "small": [small + rng.integers(0, noise + 1, small.shape, dtype=np.uint8) for _ in range(count)],
            # The last 150 have subjects of their own; the class of one of these differs from all others'.
            "label": ["HEM" if row == 200 else "ALL" for row in range(count)],
            "subject": [f"s{row}" if row >= 150 else "" for row in range(count)],
        }
    )
    pairs = find_duplicates(pictures, ("label", "subject"))
    ends = pairs[["first", "second"]].to_numpy()
    assert len(pairs) <= most * count and set(ends.flat) == set(range(count))
    named = ends[ends.min(axis=1) >= 150]
    assert set(range(150, count)) <= set(named.flat), "across subjects"
    assert 200 in ends, "across classes"


def test_one_changed_pixel_is_near_and_not_identical() -> None:
    pixels = np.array(phantom(0))
    pixels[80, 80] ^= 1
    (pair,) = duplicates(phantom(0), Image.fromarray(pixels))
    assert not pair.identical and pair.difference < 0.5


@pytest.mark.parametrize("background", ["black", "smear"])
@pytest.mark.parametrize(
    "how", [{"format": "JPEG", "quality": 75}, {"format": "WEBP", "quality": 80}], ids=["jpeg", "webp"]
)
def test_a_reencoded_copy_is_found(background: Background, how: dict[str, Any]) -> None:
    images = [phantom(k, background=background) for k in range(4)]
    for copy in (stored(images[2], **how), images[2].resize((120, 120))):
        (pair,) = duplicates(*images, copy)
        assert (pair.first, pair.second, pair.identical, pair.turned) == (2, 4, False, False)


@pytest.mark.parametrize("turn", list(Image.Transpose), ids=lambda turn: turn.name.lower())
def test_a_turned_or_mirrored_copy_is_found(turn: Image.Transpose) -> None:
    (pair,) = duplicates(phantom(0), phantom(1), phantom(0).transpose(turn))
    assert (pair.first, pair.second, pair.turned) == (0, 2, True)
    assert pair.difference < 0.5, "only rounding remains"


@pytest.mark.parametrize("background", ["black", "smear"])
def test_different_cells_of_one_subject_are_no_copies(background: Background) -> None:
    images = [phantom(k, label=label, background=background, size=96) for label in ("ALL", "HEM") for k in range(40)]
    assert duplicates(*images) == []


def test_pairs_are_the_same_however_few_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [stored(phantom(1), format="JPEG", quality=quality) for quality in (60, 70, 80, 90)]
    together = duplicates(*cells)
    assert len(together) == 6
    monkeypatch.setattr("leukoscope.audit._PAIRS_AT_ONCE", 1)
    assert duplicates(*cells) == together


def test_nothing_one_picture_and_pictures_without_structure_have_no_copies() -> None:
    plain = [Image.new("RGB", (64, 64), (level, level, level)) for level in (200, 201, 202)]
    other_proportions = [Image.new("RGB", (20, 10)), Image.new("RGB", (10, 20))]
    for pictures in ([], [phantom(0)], plain, other_proportions):
        assert duplicates(*pictures) == []
