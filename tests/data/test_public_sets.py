"""Every public data set is recognised and read from small trees with the names of its files as unpacked."""

from __future__ import annotations

from pathlib import Path

import pytest

from drawn import place
from leukoscope.audit import survey_cells
from leukoscope.data.cells import LoadedCells
from leukoscope.data.folder import recognise
from leukoscope.data.loading import load_cells


def _described(data: LoadedCells) -> dict[str, tuple[str, str, str]]:
    labels, names = data.info.labels, ("label", "subject", "fold")
    columns = zip(data.rows["cell_id"][:], *(data.rows[name][:] for name in names), strict=True)
    return {cell: (labels[label], subject, fold) for cell, label, subject, fold in columns}


AML = "PKG - AML-Cytomorphology_MLL_Helmholtz_v1/data"
LMU = "PKG - AML-Cytomorphology_LMU/AML-Cytomorphology_LMU"
TREES = {
    "mll23": {
        "MLL23_dataset/myeloblast/myeloblast_0001.TIF": ("myeloblast_0001", "myeloblast", "", ""),
        "MLL23_dataset/neutrophil_band/neutrophil_band_0002.TIF": ("neutrophil_band_0002", "neutrophil_band", "", ""),
    },
    "aml-mll": {
        f"{AML}/control/AEC/image_0.tif": ("control/AEC/image_0", "control", "AEC", ""),
        f"{AML}/PML_RARA/AQK/image_0.tif": ("PML_RARA/AQK/image_0", "PML_RARA", "AQK", ""),
    },
    "aml-lmu": {
        f"{LMU}/BAS/BAS_0001 (2021_05_21 20_42_39 UTC).tiff": ("BAS_0001", "BAS", "", ""),
        f"{LMU}/MYO/MYO_0001.tiff": ("MYO_0001", "MYO", "", ""),
    },
    "pbc": {
        "PBC_dataset/PBC_dataset/wbc/neutrophil/SNE_1.jpg": ("SNE_1", "neutrophil", "", ""),
        "PBC_dataset/PBC_dataset/wbc/ig/MMY_2.jpg": ("MMY_2", "ig", "", ""),
        "PBC_dataset/PBC_dataset/other_types/platelet/PLATELET_3.jpg": ("PLATELET_3", "platelet", "", ""),
    },
    "bm-mll": {
        "bone_marrow_cell_dataset/BLA/0001-1000/BLA_00001.jpg": ("BLA_00001", "BLA", "", ""),
        "bone_marrow_cell_dataset/LYT/1001-2000/LYT_01001.jpg": ("LYT_01001", "LYT", "", ""),
    },
    "raabin": {
        "RaabinWBC/Train/Basophil/1.jpg": ("Train/Basophil/1", "Basophil", "", "train"),
        "RaabinWBC/Train/Monocyte/2.jpg": ("Train/Monocyte/2", "Monocyte", "", "train"),
        "RaabinWBC/TestA/Basophil/1.jpg": ("TestA/Basophil/1", "Basophil", "", "test"),
        "RaabinWBC/TestB/Monocyte/1.jpg": ("TestB/Monocyte/1", "Monocyte", "", "TestB"),
    },
}


@pytest.mark.parametrize("name", TREES)
def test_a_public_set_is_recognised_and_read(tmp_path: Path, name: str) -> None:
    root = place(tmp_path, *TREES[name], mode="RGBA" if name == "aml-lmu" else "RGB")
    (root / "metadata.csv").write_text("patient_id,bag_label\nAEC,control\n")
    assert recognise(root).name == name
    data = load_cells(name, root)
    assert _described(data) == {cell: rest for cell, *rest_ in TREES[name].values() for rest in [tuple(rest_)]}
    assert not data.unreadable
    found = survey_cells(data)
    assert (found["licence"], found["citation"]) == (data.info.licence, data.info.citation)
    assert data.count_differences or not data.info.official_counts


def test_own_cells_in_train_and_test_are_not_taken_for_raabin(tmp_path: Path) -> None:
    names = [f"{side}/{label}/1.jpg" for side in ("Train", "Test") for label in ("Basophil", "Monocyte", "Neutrophil")]
    root = place(tmp_path, *names, "Train/Basophil/2.jpg", "Train/Monocyte/2.jpg")
    assert recognise(root).name == "imagefolder"
    assert load_cells("imagefolder", root).own_splits == {"train": 5, "test": 3}


def test_real_cells_of_pbc_are_read(real_data: Path) -> None:
    root = real_data / "pbc"
    assert recognise(root).name == "pbc"
    data = load_cells("pbc", root)
    assert (len(data.train), data.unreadable) == (400, ())
    assert data.info.labels == ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")


def test_a_set_without_an_entry_is_read_as_the_page_says(tmp_path: Path) -> None:
    root = place(
        tmp_path, "Patient_00/Signed slides/Blast/BNE_3.jpg", "Patient_01/Unsigned slides/2019-02-01/Monocyte/MO_1.jpg"
    )
    data = load_cells("imagefolder", root, subject_pattern=r"Patient_(?P<subject>\d+)/")
    assert (data.info.labels, data.train["subject"][:]) == (("Blast", "Monocyte"), ["00", "01"])
