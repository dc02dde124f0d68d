"""The lesson runs from its first cell to its last, and its figures show what its text says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NOTEBOOK = NOTEBOOKS / "leakage.ipynb"


def code_cells(path: Path) -> list[str]:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_committed_without_outputs_and_installs_as_the_quickstart_does() -> None:
    assert code_cells(NOTEBOOK)[0] == code_cells(NOTEBOOKS / "quickstart.ipynb")[0]


@pytest.mark.slow
def test_it_shows_the_leak_the_shortcut_and_the_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1] / "src"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    rows = re.findall(r"^(.+): (\d\.\d\d) by image, (\d\.\d\d) by person$", printed, re.MULTILINE)
    measured = {name: (float(by_image), float(by_person)) for name, by_image, by_person in rows}
    by_image, by_person = measured["every pixel"]
    assert by_image > by_person + 0.1
    stain = measured["stain alone"]
    assert stain[0] > 0.85
    assert stain[1] < 0.65
    repaired = measured["every pixel, stain taken away"]
    assert abs(repaired[0] - repaired[1]) < 0.08
    assert repaired[1] > by_person + 0.05
    assert measured["size alone"][1] > 0.55
    assert re.search(r"\b(\d+) of \1 subjects tested have other images in training", printed)
    if os.environ.get("LEUKOSCOPE_DATA"):
        assert measured["C-NMC, every pixel"][0] > measured["C-NMC, every pixel"][1]
    else:
        assert "nothing is measured on real cells" in printed
