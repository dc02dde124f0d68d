"""Publishing refuses early what would fail after hours of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from leukoscope import LeukoscopeError
from leukoscope.hub.publish import check_can_publish, publish


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Hub token, neither in the environment nor on disk."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize("hub_model_id", [None, "", "only-a-name", "one/two/three"])
def test_refuses_a_missing_or_malformed_repository(hub_model_id: str | None) -> None:
    with pytest.raises(LeukoscopeError, match="give the repository to publish to as owner/name"):
        check_can_publish(hub_model_id)


@pytest.mark.usefixtures("no_token")
def test_refuses_without_a_token() -> None:
    with pytest.raises(LeukoscopeError, match="no Hub token found; run `hf auth login` or set HF_TOKEN"):
        check_can_publish("lab/cells")


def test_unreachable_hub_leaves_the_release_whole(monkeypatch: pytest.MonkeyPatch, tiny_release: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    before = sorted(path.name for path in tiny_release.iterdir())
    with pytest.raises(LeukoscopeError, match=r"lab/cells: publishing failed .* the release is whole in"):
        publish(tiny_release, "lab/cells")
    assert sorted(path.name for path in tiny_release.iterdir()) == before
