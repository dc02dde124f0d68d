"""Issue templates are forms that GitHub shows: a name, a description, fields with labels of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

TEMPLATES = sorted((Path(__file__).parents[2] / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.name != "config.yml"], ids=lambda path: path.name)
def test_it_is_a_form(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert fields and all(part["attributes"]["label"] for part in fields)
    ids = [part["id"] for part in fields]
    assert len(ids) == len(set(ids))


def test_a_bug_asks_for_versions_and_for_no_patients_picture() -> None:
    bug = next(path for path in TEMPLATES if path.name == "bug.yml").read_text()
    assert "leukoscope --version" in bug and "Never attach a patient's picture" in bug
