"""The source has no import circle, and `make structure` counts and traces what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import structure

from leukoscope import Predictor


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "leukoscope" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_no_import_is_part_of_a_circle() -> None:
    circle = structure.import_circle(structure.imports(structure.modules()))
    assert not circle, " → ".join(circle)


def test_a_circle_is_found_also_of_lazy_imports_and_of_those_for_type_checkers(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from leukoscope import a\n",
        "a.py": "from leukoscope import b\n",
        "b.py": "def f():\n    from leukoscope.c import g\n    g()\n",
        "c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from leukoscope.a import x\n",
        "d.py": "import leukoscope.a\n",
    }
    graph = structure.imports(structure.modules(write(tmp_path, files)))
    assert set(structure.import_circle(graph)) == {"leukoscope.a", "leukoscope.b", "leukoscope.c"}
    (tmp_path / "leukoscope" / "c.py").write_text("g = print\n")
    assert structure.import_circle(structure.imports(structure.modules(tmp_path))) == []


def test_loading_a_release_and_predicting_enters_few_files(tiny_release: Path) -> None:
    cell = np.full((96, 96, 3), 100, np.uint8)
    Predictor.from_pretrained(tiny_release, backend="torch")  # whatever is imported first
    entered = structure.traced(lambda: Predictor.from_pretrained(tiny_release, backend="torch")(cell))
    assert "inference/predictor.py" in entered and "models/release.py" in entered
    assert len(entered) <= structure.TRACES["one prediction"] + 2


def test_a_command_is_traced_and_its_failure_is_not_taken_for_a_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("COLUMNS", "200")
    found = structure.traced_command(["release", "list"])
    assert "leukoscope-densenet169-cnmc" in capsys.readouterr().out
    assert "models/release.py" in found and "cli/release.py" in found
    with pytest.raises(SystemExit):
        structure.traced_command(["release", "lists"])


def test_long_functions_are_found(tmp_path: Path) -> None:
    longer = "def long():\n" + structure.FUNCTION_LINES * "    call()\n"
    shorter = longer.replace("long", "short").replace("    call()\n", "", 1)
    (tmp_path / "m.py").write_text(longer + shorter)
    assert list(structure.long_functions(tmp_path / "m.py")) == [("long", structure.FUNCTION_LINES + 1)]


def test_imports_inside_functions_are_counted(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("import a\n\n\ndef f():\n    import b\n\n    def g():\n        from c import d\n")
    assert structure.imports_in_functions(tmp_path / "m.py") == 2
