"""tools/release.py: a release is made only where source, changelog, citation, tag and tree agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import release

DAY = "2031-02-03"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository whose version 1.2.3 is ready to be released."""
    (tmp_path / "src" / "leukoscope").mkdir(parents=True)
    (tmp_path / "src" / "leukoscope" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## 1.2.3 — {DAY}\n\n## 1.2.2 — 2030-01-01\n", "utf-8")
    (tmp_path / "CITATION.cff").write_text(f"version: 1.2.3\ndate-released: {DAY}\n")
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    return tmp_path


def run(checkout: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["release.py", *words])
    release.main(checkout)


def test_the_steps_are_printed_for_a_version_that_is_ready(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(checkout, monkeypatch)
    assert 'git tag --annotate v1.2.3 --message "Leukoscope 1.2.3"\n' in capsys.readouterr().out
    run(checkout, monkeypatch, "--tag", "v1.2.3")
    assert capsys.readouterr().out == "1.2.3 is ready\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("CHANGELOG.md", "1.2.3", "1.3.0", "CHANGELOG.md: its newest entry is of 1.3.0, __version__ is 1.2.3;"),
        ("CHANGELOG.md", DAY, "unreleased", "CHANGELOG.md: 1.2.3 is unreleased; write the day of the release instead"),
        ("CITATION.cff", "1.2.3", "1.2.2", "CITATION.cff: version is 1.2.2, that of the release 1.2.3;"),
        ("CITATION.cff", DAY, "2031-02-02", f"CITATION.cff: date-released is 2031-02-02, that of the release {DAY};"),
    ],
)
def test_what_disagrees_is_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, problem: str
) -> None:
    path = checkout / file
    path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
    with pytest.raises(SystemExit, match=f"(?m)^error: {problem}"):
        run(checkout, monkeypatch, "--tag", "v1.2.3")
    with pytest.raises(SystemExit, match=r"(?m)^error: working tree: 1 file\(s\) differ from the last commit"):
        run(checkout, monkeypatch)


def test_other_tags_and_branches_are_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^error: tag v1\.2\.4: __version__ is 1\.2\.3; tag v1\.2\.3$"):
        run(checkout, monkeypatch, "--tag", "v1.2.4")
    subprocess.run(["git", "tag", "v1.2.3"], cwd=checkout, check=True)
    subprocess.run(["git", "switch", "-qc", "other"], cwd=checkout, check=True)
    with pytest.raises(SystemExit) as refused:
        run(checkout, monkeypatch)
    assert str(refused.value).splitlines() == [
        "error: branch other: releases are made from main; git switch main",
        "error: tag v1.2.3: is there already; raise __version__",
    ]
