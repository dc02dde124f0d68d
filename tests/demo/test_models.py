"""Which models may be asked, and which stay in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from leukoscope import ConfigError, ReleaseError
from leukoscope.demo.models import Models, find_releases, listed_models


def test_releases_are_found_and_hidden_folders_passed_over(tiny_release: Path, tmp_path: Path) -> None:
    assert find_releases(tiny_release) == {tiny_release.name: tiny_release}
    (tmp_path / ".half").symlink_to(tiny_release)
    (tmp_path / "whole").symlink_to(tiny_release)
    assert list(find_releases(tmp_path)) == [tiny_release.name] and find_releases(tmp_path / "nothing") == {}
    (tmp_path / "models.txt").write_text("a/b\n\n c/d@main \n")
    assert listed_models(tmp_path / "models.txt") == ["a/b", "c/d@main"] and listed_models(tmp_path / "no") == []


@pytest.mark.parametrize("name", ["../model_card", "/etc", "a b", 5, "x" * 300, "tiny/../tiny"])
def test_a_visitor_names_no_folder_of_this_machine(name: object) -> None:
    with pytest.raises(ConfigError, match="is no model name: give one of tiny, or a Hub id like owner/name"):
        Models({"tiny": Path("tiny")}).checked(name)


def test_the_first_model_is_the_default_and_none_is_one_line() -> None:
    assert Models({"tiny": Path("tiny")}, ["a/b"]).checked("") == "a/b"
    assert Models({}).checked("owner/name@main") == "owner/name@main"
    with pytest.raises(ConfigError, match="This demo comes with no model. Name one of the Hub, such as owner/name"):
        Models({}).checked(None)


def test_the_longest_unused_models_leave_the_memory(tiny_release: Path) -> None:
    models = Models({"a": tiny_release, "b": tiny_release}, capacity=1)
    first = models.predictor("a")
    assert models.predictor("a") is first
    models.predictor("b")
    assert models.predictor("a") is not first


def test_a_damaged_release_names_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError) as error:
        Models({"gone": tmp_path / "gone"}).predictor("gone")
    assert str(tmp_path) not in str(error.value)
