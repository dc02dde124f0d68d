"""A Space's GPU is lent to the model alone, for predictions that can travel between two processes."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from leukoscope.inference.backends import TorchBackend, gpu_or_cpu
from leukoscope.web.model_cache import ModelCache, best_device
from leukoscope.web.result import example, predict_cell, turned


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for the package that only a ZeroGPU Space has: what goes in and out of a call is pickled, as there."""
    calls: list[str] = []

    def gpu(duration: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def decorate(call: Callable[..., Any]) -> Callable[..., Any]:
            def decorated(*args: Any, **options: Any) -> Any:
                calls.append(f"{call.__name__} for {duration} s")
                args, options = pickle.loads(pickle.dumps((args, options)))
                return pickle.loads(pickle.dumps(call(*args, **options)))

            return decorated

        return decorate

    package = ModuleType("spaces")
    package.GPU = gpu  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spaces", package)
    return calls


def test_without_a_lender_the_call_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert ModelCache({})._on_gpu(len) is len  # type: ignore[arg-type, comparison-overlap]


def test_a_cell_is_explained_while_the_gpu_is_lent(lent: list[str], tiny_release: Path) -> None:
    models = ModelCache({"tiny": tiny_release})
    models.predictor("tiny")
    assert lent == []
    result = predict_cell(models, *example(0), "tiny")
    assert lent == ["by_name for 15 s"]
    assert result.prediction.probabilities == models.predictor("tiny")(result.image).probabilities
    turned(models, result)
    assert len(lent) == 2


def test_models_are_put_where_torch_can_compute(tiny_release: Path) -> None:
    backend = ModelCache({"tiny": tiny_release}).predictor("tiny").backend
    assert isinstance(backend, TorchBackend)
    assert {parameter.device.type for parameter in backend.network.parameters()} == {gpu_or_cpu().partition(":")[0]}


def test_only_a_space_that_lends_its_gpu_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert best_device() == "auto"
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert best_device() == "cuda"


def test_a_model_whose_graph_is_kept_is_loaded_without_torch(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("LEUKOSCOPE_BACKEND", "openvino")
    ModelCache({"tiny": tiny_release}).predictor("tiny")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert ModelCache({"tiny": tiny_release}).predictor("tiny").backend.name == "openvino"
