"""A folder in which the commands of the documentation find what they name: phantoms laid out as the real data are."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from drawn import save_cell
from leukoscope.synthetic import PHANTOM_LABELS, draw_smear

ROOT = Path(__file__).parents[1]
SIDE = 96
SUBJECTS = 7  # of each class, as a split by subject needs at least


def lay_out(folder: Path) -> Path:
    """Fill an empty folder with a checkout's files and the data sets that pages speak of."""
    for name in ("train.py", "app.py", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("model_card", "results"):
        shutil.copytree(ROOT / name, folder / name)
    _lay_out_cnmc(folder / "C-NMC_Leukemia")
    _lay_out_ball4(folder / "ball4")
    lay_out_own_cells(folder)
    save_cell(folder / "cell.bmp", size=450)
    _save(draw_smear().image, folder / "smear.jpg")
    for subject in range(10):
        field = draw_smear(("ALL", "HEM") * 4, size=(700, 900), um_per_pixel=0.2, seed=subject).image
        _save(field, folder / "smears" / f"P{subject:02d}" / "field.png")
    return folder


def _lay_out_cnmc(root: Path) -> None:
    for label in PHANTOM_LABELS:
        for subject in range(SUBJECTS):
            name = f"{'' if label == 'ALL' else 'H'}{subject + 60}"
            for cell in range(4):
                file = f"fold_{subject % 3}/{label.lower()}/UID_{name}_{cell}_1_{label.lower()}.bmp"
                save_cell(root / "C-NMC_training_data" / file, label, subject=subject, cell=cell, size=SIDE)


def _lay_out_ball4(root: Path) -> None:
    for number, label in enumerate(("Benign", "Early", "Pre", "Pro")):
        middle = "" if label == "Benign" else "Malignant-"
        for cell in range(4):
            file = root / "Original" / label / f"WBC-{middle}{label}-{cell:03d}.jpg"
            save_cell(file, PHANTOM_LABELS[number % 2], subject=number, cell=cell, size=SIDE, background="smear")


def lay_out_own_cells(folder: Path) -> None:
    """Class folders `my_cells` with a table of subjects."""
    rows = ["file,subject"]
    for offset, label in enumerate(PHANTOM_LABELS):
        for subject in range(SUBJECTS):
            for cell in range(8):  # together 50 of a class, as `recalibrate` needs
                file = f"{label}/P{offset * SUBJECTS + subject:02d}_{cell:03d}.png"
                save_cell(folder / "my_cells" / file, label, subject=subject, cell=cell, size=SIDE)
                rows.append(f"{file},{file[4:7]}")
    (folder / "my_cells" / "subjects.csv").write_text("\n".join(rows) + "\n")


def _save(image: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)  # type: ignore[arg-type]
