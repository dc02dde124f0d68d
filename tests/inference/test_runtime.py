"""One object says what computes a network, and its defaults are the same everywhere."""

from __future__ import annotations

import os

import pytest

from leukoscope import LeukoscopeError
from leukoscope.inference import runtime
from leukoscope.inference.runtime import Runtime, usable_cores


def test_a_backend_that_is_not_given_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKOSCOPE_BACKEND", "onnx")
    assert Runtime().chosen() == Runtime("onnx", "cpu")
    assert Runtime("torch", "cpu").chosen().backend == "torch"
    monkeypatch.delenv("LEUKOSCOPE_BACKEND")
    assert Runtime(device="cpu").chosen() == Runtime("auto", "cpu")


@pytest.mark.parametrize(
    ("backend", "precision", "device"),
    [("auto", "auto", "cuda:0"), ("torch", "exact", "cuda:0"), ("openvino", "auto", "cpu"), ("auto", "fast", "cpu")],
)
def test_the_gpu_is_taken_where_torch_may_compute(
    monkeypatch: pytest.MonkeyPatch, backend: str, precision: str, device: str
) -> None:
    monkeypatch.setattr(runtime, "gpu_or_cpu", lambda: "cuda:0")
    assert Runtime(backend, precision=precision).chosen().device == device
    assert Runtime(backend, "cpu", precision).chosen().device == "cpu"


def test_unknown_names_are_refused_wherever_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LeukoscopeError, match="^precision 'half': unknown; choose one of auto, exact, fast$"):
        Runtime(precision="half").chosen()
    monkeypatch.setenv("LEUKOSCOPE_BACKEND", "tensorrt")
    with pytest.raises(
        LeukoscopeError, match="^backend 'tensorrt': unknown; choose one of auto, torch, openvino, onnx$"
    ):
        Runtime().chosen()


def test_cores_are_counted_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
