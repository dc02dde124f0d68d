"""The notebook runs from its first cell to its last, and holds no output of anybody's machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def test_it_is_committed_without_outputs() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_it_runs_from_first_to_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1] / "src"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "subjects on both sides: none" in said
    assert (tmp_path / "runs" / "quickstart" / "release" / "model.safetensors").is_file()


@pytest.mark.parametrize("source", ["", "git+https://example.org/leukoscope"])
def test_it_installs_only_what_was_filled_in(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    import nbformat

    (cell,) = (cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "%pip" in cell.source)
    # No index is asked for a name that anybody may have taken.
    assert re.search(r'SOURCE = "(git\+https://[^"]+)?"\n', cell.source)
    script = cell.source.replace('SOURCE = ""', f"SOURCE = {source!r}").replace("%pip install --quiet ", "ask")
    script = script.replace("ask{SOURCE}", "ask(SOURCE)")
    asked: list[str] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if source:
        exec(script, {"ask": asked.append})
        assert asked == [source]
    else:
        with pytest.raises(ModuleNotFoundError) as refused:
            exec(script, {"ask": asked.append})
        assert str(refused.value) == "leukoscope is not installed: set SOURCE to a git URL, a wheel or a folder"
        assert not asked
