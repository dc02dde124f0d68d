"""Whose cells pictures show: a table says it, names let one guess it, and flat pictures have no subject."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from leukoscope import LeukoscopeError
from leukoscope.data.subjects import find_subjects, is_table

LABELS = ("ALL", "HEM", "L1", "L2")
CELLS = [f"cells/{number}.png" for number in range(4)]


def _table(*rows: str, header: str = "file,subject,label") -> bytes:
    return "\n".join([header, *rows]).encode()


def _rows(subjects: str = "AABB", label: str = "ALL") -> list[str]:
    return [f"{number}.png,{subject},{label}" for number, subject in enumerate(subjects)]


_UID = "the number after UID_ in each file name, as C-NMC 2019 names its cells"
_FOLDER = "the folder of each picture"


@pytest.mark.parametrize(
    ("names", "subjects", "part"),
    [
        (["ALL/UID_1_2_1_all.bmp", "ALL/UID_1_3_1_all.bmp", "HEM/UID_H2_1_hem.bmp", "HEM/UID_H2_2_hem.bmp"],
         ["1", "H2"], _UID),
        (["UID_H24_10_1_hem.bmp", "UID_H24_10_2_hem.bmp"], ["H24"], _UID),
        (["p1/a.png", "p1/b.png", "p2/a.png", "p2/b.png"], ["p1", "p2"], _FOLDER),
        (["ALL/P1/1.png", "ALL/P1/2.png", "HEM/P2/3.png", "HEM/P2/4.png"], ["P1", "P2"], _FOLDER),
        (["Archive/Anna Schmidt/1.png", "Archive/Anna Schmidt/2.png", "Archive/Ben/1.png", "Archive/Ben/2.png"],
         ["Anna Schmidt", "Ben"], _FOLDER),
        (["P7/1.png", "P7/2.png"], ["P7"], _FOLDER),
    ],
)  # fmt: skip
def test_subjects_are_guessed_from_c_nmcs_names_and_folders_of_people(
    names: list[str], subjects: list[str], part: str
) -> None:
    found = find_subjects(names, {}, LABELS)
    assert (sorted(set(found.subject_of.values())), list(found.subject_of), found.guessed_from) == (
        subjects,
        names,
        part,
    )
    (note,) = found.notes
    assert note == (
        f"Subjects were guessed from {part}: {', '.join(subjects)}. A table of files and subjects names them surely."
    )


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png"],
        ["IMG_2023_0.png", "IMG_2023_1.png", "IMG_2024_0.png", "IMG_2024_1.png"],
        ["P01_a.png", "P01_b.png", "P02_a.png", "P02_b.png"],
        ["Archive/1.png", "Archive/2.png"],
        ["cells_2024/1.png", "cells_2024/2.png"],
        ["ALL/1.png", "ALL/2.png", "HEM/3.png", "HEM/4.png"],
        ["L1/1.png", "L1/2.png", "l2/3.png", "l2/4.png"],
        ["fold_0/1.png", "fold_0/2.png", "fold_1/3.png", "fold_1/4.png"],
        ["train/1.png", "train/2.png", "test/3.png", "test/4.png"],
        ["healthy/1.png", "healthy/2.png", "Leukemia/3.png", "Leukemia/4.png"],
        # Nobody can tell whether a date, a slide or a person is the subject.
        ["2024/P1/1.png", "2024/P1/2.png", "2025/P2/3.png", "2025/P2/4.png"],
        ["P1/slide1/1.png", "P1/slide1/2.png", "P2/slide1/3.png", "P2/slide1/4.png"],
        ["P1/1.png", "P1/2.png", "3.png", "4.png"],
        ["Anna/1.png", "Anna/2.png", "3.png"],
        ["Archive/Anna/1.png", "Archive/Anna/2.png", "Archive/3.png"],
        # A number of its own for each picture is the picture's.
        ["p1/a.png", "p2/b.png"],
        ["UID_1_1_1_all.bmp", "UID_2_1_1_all.bmp"],
        [],
    ],
)  # fmt: skip
def test_pictures_whose_names_name_nobody_have_no_subject(names: list[str]) -> None:
    """Archive.zip was a subject called Archive, a camera's IMG_2023_0 and IMG_2024_1 two subjects."""
    found = find_subjects(names, {}, LABELS)
    assert (found.subject_of, found.guessed_from, found.notes) == ({}, "", ())


@pytest.mark.parametrize(
    ("people", "folder"),
    [(["patient_1", "patient_2"], ""), (["Anna", "Ben"], ""), (["Anna", "Ben"], "Archive/"), (["P7"], "")],
)
def test_a_file_beside_the_folders_of_people_has_no_subject_and_the_others_keep_theirs(
    people: list[str], folder: str
) -> None:
    """One unreadable file beside four folders of people made all people unknown."""
    names = [f"{folder}{person}/{number}.png" for person in people for number in range(3)]
    for stray in ("broken.png", f"{folder}broken.png"):
        found = find_subjects([*names, stray], {}, LABELS)
        assert found.subject_of == {name: name.split("/")[-2] for name in names}
        assert found.guessed_from and f" The subject of 1 of {len(names) + 1} pictures is not known." in found.notes[0]


def test_a_file_without_a_subject_among_those_of_c_nmc_takes_no_subject_from_them() -> None:
    names = ["UID_1_2_1_all.bmp", "UID_1_3_1_all.bmp"]
    assert find_subjects([*names, "cat.png"], {}, LABELS).subject_of == dict.fromkeys(names, "1")
    assert find_subjects([*names, "cat.png"], {}, LABELS, by_folder=False).subject_of == {}, "all or none"


def test_a_table_among_the_pictures_names_subjects_and_classes() -> None:
    found = find_subjects(CELLS, {"cells/t.csv": _table(*_rows())}, LABELS)
    assert found.subject_of == dict(zip(CELLS, "AABB", strict=True))
    assert found.label_of == dict.fromkeys(CELLS, "ALL")
    assert (found.guessed_from, found.notes) == ("", ("Subjects are named by cells/t.csv.",))


def test_a_table_prevails_over_names_and_may_leave_out_suffixes() -> None:
    names = ["P1/UID_1_1_1_all.bmp", "P1/UID_1_2_1_all.bmp"]
    rows = [f"{name.removesuffix('.bmp')},Zoe" for name in names]
    found = find_subjects(names, {"t.tsv": _table(*rows, header="file,subject").replace(b",", b"\t")}, LABELS)
    assert set(found.subject_of.values()) == {"Zoe"} and not found.guessed_from


def test_rows_find_pictures_that_were_sent_without_their_folders() -> None:
    rows = [f"slides/{row}" for row in _rows()]
    flat = [name.removeprefix("cells/") for name in CELLS]
    found = find_subjects(flat, {"t.csv": _table(*rows)}, LABELS, folders_lost=True)
    assert found.subject_of == dict(zip(flat, "AABB", strict=True))
    assert find_subjects(flat, {"t.csv": _table(*rows)}, LABELS).notes == (
        "t.csv: names none of these pictures; it was not used.",
    )
    twice = _table("a/0.png,A,ALL", "b/0.png,B,ALL")
    with pytest.raises(LeukoscopeError, match=r"t.csv: row 3: 'b/0.png' is the file of row 2, too"):
        find_subjects(["0.png"], {"t.csv": twice}, LABELS, folders_lost=True)


def test_two_tables_may_name_subjects_and_classes() -> None:
    tables = {
        "cells/subjects.csv": _table(*(row.rsplit(",", 1)[0] for row in _rows()), header="file,subject"),
        "labels.csv": _table(*(f"cells/{number}.png,HEM" for number in range(4)), header="file,label"),
    }
    found = find_subjects(CELLS, tables, LABELS)
    assert found.subject_of == dict(zip(CELLS, "AABB", strict=True)) and set(found.label_of.values()) == {"HEM"}
    assert found.notes == ("Subjects are named by cells/subjects.csv.",)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"cells/t.csv": _table(*_rows("AAB"))},
         "cells/t.csv: names no subject for 'cells/3.png' (1 of 4 pictures); add a row for each picture"),
        ({"cells/t.csv": _table(*_rows()), "cells/u.csv": _table(*_rows("AABA"))},
         "cells/3.png: has the subject 'B' in cells/t.csv (row 5) and 'A' in cells/u.csv (row 5); correct one"),
        ({"cells/t.csv": _table("0.png,12,ALL", "1.png,12,ALL", "2.png,12.0,ALL", "3.png,13,ALL")},
         "cells/t.csv: subjects '12' (row 2) and '12.0' (row 4) are the same number"),
        ({"cells/t.csv": _table("0.png,A,ALL"), "cells/u.csv": _table("1.png,12,ALL", "2.png,13,ALL", "3.png,13,ALL"),
          "v.csv": _table("cells/0.png,,ALL")},
         ""),
    ],
)  # fmt: skip
def test_a_table_that_contradicts_is_refused(tables: dict[str, bytes], said: str) -> None:
    if not said:
        assert list(find_subjects(CELLS, tables, LABELS).subject_of.values()) == ["A", "12", "13", "13"]
        return
    with pytest.raises(LeukoscopeError) as refused:
        find_subjects(CELLS, tables, LABELS)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("header", "rows", "note"),
    [
        ("patient_id,bag_label", ["AEC,control"], ()),
        ("file,age", ["0.png,7"], ("cells/t.csv: names neither subjects nor classes; it was not used.",)),
    ],
)
def test_other_tables_are_not_used(header: str, rows: Sequence[str], note: tuple[str, ...]) -> None:
    found = find_subjects(CELLS, {"cells/t.csv": _table(*rows, header=header)}, LABELS)
    assert (found.subject_of, found.notes) == ({}, note)


def test_which_files_are_tables() -> None:
    names = ("a.csv", "A.TSV", "b.jsonl", "c.parquet", "d.png", "e.xlsx", "csv")
    assert [name for name in names if is_table(name)] == ["a.csv", "A.TSV", "b.jsonl", "c.parquet"]
