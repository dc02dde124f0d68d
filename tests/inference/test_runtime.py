"""Every backend must predict as torch does, explain as torch does, and report plainly why it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import str_to_bool
from PIL import Image

from drawn import save_cell
from leukoscope import LeukoscopeError, Prediction, Predictor
from leukoscope.cache import cache_root, entries
from leukoscope.inference import predictor, runtime
from leukoscope.inference.graph import (
    ALLOWED_DIFFERENCE,
    GRAPH_REPORT,
    HEAD_FILE,
    NETWORK_FILE,
    openvino_core,
    require_like_torch,
)
from leukoscope.inference.runtime import Runtime, TorchBackend, gpu_or_cpu, usable_cores
from leukoscope.models.recipes import timm_recipe
from leukoscope.models.release import read_release
from leukoscope.models.weights import load_release
from leukoscope.synthetic import draw_cell
from untrained import untrained

RELEASES = sorted((Path(__file__).parents[2] / "model_card").glob("*/config.json"))
TF32: Any = torch.backends  # whose newer switches older stubs lack


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for the tests of this file, so that each graph is made once."""
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(kept))
    return kept


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Pictures no export compared itself on."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)
    cells = [
        draw_cell(label, subject=7, cell=c, size=200, background="black") for label in ("ALL", "HEM") for c in (1, 2)
    ]
    return [Image.fromarray(noise), *(Image.fromarray(cell.image) for cell in cells)]


def assert_alike(
    ours: Sequence[Prediction], theirs: Sequence[Prediction], of_peak: float = 1e-3, apart: float = 1e-4
) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.outcome, a.most_probable) == (b.outcome, b.most_probable)
        assert np.allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=apart)
        assert a.checks.ood_score == b.checks.ood_score
        assert a.heatmaps is not None and b.heatmaps is not None
        for label, heat in b.heatmaps.items():
            # Of the release's usual peak where it has one: rounding is a larger share of a weak map.
            peak = max(float(heat.evidence.max()), b.peak or 0.0, 1e-6)
            assert np.abs(a.heatmaps[label].evidence - heat.evidence).max() < of_peak * peak


def test_a_graph_predicts_and_explains_as_torch_does(
    cache: Path, tiny_release: Path, pictures: list[Image.Image]
) -> None:
    ours = Predictor.from_pretrained(tiny_release, backend="openvino")
    theirs = Predictor.from_pretrained(tiny_release, backend="torch")

    assert (ours.backend.name, theirs.backend.name) == ("openvino", "torch")
    assert_alike(ours(pictures, explain=True, batch_size=3), theirs(pictures, explain=True))
    assert_alike([ours(pictures[1], explain=True, tta=True)], [theirs(pictures[1], explain=True, tta=True)])


@pytest.mark.slow
@pytest.mark.parametrize("config", RELEASES, ids=lambda config: config.parent.name)
def test_embedded_releases_predict_alike_on_real_cells(kept_graphs: Path, real_data: Path, config: Path) -> None:
    files = sorted((real_data / "cnmc2019" / "C-NMC_Leukemia").rglob("*_*.*"))[::1301]
    assert len(files) > 5

    ours = Predictor.from_pretrained(config.parent, backend="openvino")(files, explain=True)

    # Sums are ordered otherwise on each processor: on one of three, a cell of DenseNet169 moved by 1.07e-4.
    assert_alike(ours, Predictor.from_pretrained(config.parent, backend="torch")(files, explain=True), apart=5e-4)


@pytest.mark.parametrize(("architecture", "linear"), [("convnext_atto", False), ("dla46_c", True)])
def test_a_head_that_is_not_one_linear_layer_is_explained_by_torch_from_the_graphs_features(
    cache: Path, tmp_path: Path, pictures: list[Image.Image], architecture: str, linear: bool
) -> None:
    """A classifier that is a convolution is linear, too."""
    release = untrained(tmp_path / architecture, {}, replace(timm_recipe(architecture, ""), image_size=64))
    predictors = [Predictor.from_pretrained(release, backend=backend) for backend in ("openvino", "torch")]
    ours, theirs = (predictor(pictures, explain=True) for predictor in predictors)
    assert bool(predictors[0].backend._head.size) == linear  # type: ignore[union-attr]
    # Untrained layers weigh the channels to nearly nothing, so rounding is a larger share of what is left.
    assert_alike(ours, theirs, of_peak=1e-3 if linear else 2e-2)


def test_auto_takes_a_kept_network_compiles_it_once_and_another_for_other_weights(
    cache: Path, tiny_release: Path, tmp_path: Path
) -> None:
    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.glob(f"graphs-*/{NETWORK_FILE}")}

    cell = draw_cell("ALL", subject=0, cell=0).image
    first = Predictor.from_pretrained(tiny_release, backend="auto")
    before = kept()
    again = Predictor.from_pretrained(tiny_release, backend="auto")

    assert (first.backend.name, kept()) == ("openvino", before)
    assert first(cell).probabilities == again(cell).probabilities
    other = Path(shutil.copytree(tiny_release, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "label_names": ["HEM", "ALL"]}))
    (other / "metrics.json").unlink()  # it names the other order
    Predictor.from_pretrained(other, backend="openvino")
    assert len(kept()) == len(before) + 1


def test_a_graph_unlike_torch_or_that_cannot_be_kept_is_never_used(
    cache: Path, tiny_release: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    for folder, allowed, said in (
        ("cache", 0.0, r"its openvino graph differs from torch by .* use backend='torch'"),
        ("file", ALLOWED_DIFFERENCE, "cannot be kept or opened there .* name another folder with LEUKOSCOPE_CACHE"),
    ):
        monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / folder))
        monkeypatch.setattr("leukoscope.inference.graph.ALLOWED_DIFFERENCE", allowed)
        caplog.clear()
        with pytest.raises(LeukoscopeError, match=said):
            Predictor.from_pretrained(tiny_release, backend="openvino")
        assert Predictor.from_pretrained(tiny_release, backend="auto").backend.name == "torch"
        assert re.search(said, caplog.text) and "torch is used" in caplog.text


@pytest.mark.parametrize(
    ("apart", "told"),
    [
        ((1e-7, 0.02), "by 2.0e-02 of a Grad-CAM map's peak,"),
        ((0.5, 0.02), "by 5.0e-01 in probability and 2.0e-02 of a Grad-CAM"),
        ((float("nan"), None), "by nan in probability,"),
    ],
)
def test_what_differs_from_torch_is_named(tiny_release: Path, apart: tuple[float, float | None], told: str) -> None:
    report: dict[str, Any] = {"backend": "openvino", "allowed": ALLOWED_DIFFERENCE}
    report |= dict(zip(("probability_difference", "heat_map_difference"), apart, strict=True))
    with pytest.raises(LeukoscopeError, match=f"its openvino graph differs from torch {told}"):
        require_like_torch(read_release(tiny_release), report)


def _noise(content: bytes) -> bytes:
    """The second half are other weights, all of them finite."""
    half = len(content) // 8 * 4
    noise = np.random.default_rng(0).standard_normal((len(content) - half) // 4, np.float32)
    return content[:half] + noise.tobytes() + content[half + noise.nbytes :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "half zeros": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "other weights": _noise,
    "not a number": lambda content: content[:-4000] + 1000 * np.float32(np.nan).tobytes(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", [NETWORK_FILE, HEAD_FILE, GRAPH_REPORT])
def test_a_damaged_network_is_named_and_compiled_again(
    kept: Path,
    tiny_release: Path,
    tmp_path: Path,
    cache_in_tmp: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[bytes], bytes],
) -> None:
    """A damaged network once called every cell ALL with 1.000, or advised to download the release again."""
    cell = draw_cell("ALL", subject=0, cell=0).image
    cache_in_tmp.setenv("LEUKOSCOPE_CACHE", str(kept))
    expected = Predictor.from_pretrained(tiny_release, backend="openvino")(cell, explain=True)
    cache_in_tmp.setenv("LEUKOSCOPE_CACHE", str(shutil.copytree(kept, tmp_path / "cache")))
    for file in cache_root().glob(f"graphs-*/{name}"):
        file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()

    prediction = Predictor.from_pretrained(tiny_release, backend="openvino")(cell, explain=True)

    assert prediction.decision == expected.decision
    assert list(prediction.probabilities.values()) == pytest.approx(list(expected.probabilities.values()), abs=1e-6)
    assert prediction.heatmaps is not None and expected.heatmaps is not None
    assert prediction.heatmaps["ALL"].evidence == pytest.approx(expected.heatmaps["ALL"].evidence, abs=1e-5)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{name}: damaged; it is made again")


@pytest.fixture
def restored_tf32() -> Iterator[None]:
    """The switches of TF32 as they were."""
    parts = (TF32, TF32.cudnn, TF32.cudnn.conv, TF32.cudnn.rnn, TF32.cuda.matmul)
    before = [part.fp32_precision for part in parts]
    yield
    for part, value in zip(parts, before, strict=True):
        part.fp32_precision = value


@pytest.mark.parametrize("whole", ["none", "tf32"])
def test_elsewhere_than_on_a_cpu_convolutions_keep_float32(tiny_release: Path, restored_tf32: None, whole: str) -> None:
    TF32.fp32_precision = whole
    TF32.cudnn.conv.fp32_precision = "tf32"
    release = load_release(tiny_release)

    TorchBackend(release.network, release.preprocessing)
    assert TF32.cudnn.conv.fp32_precision == "tf32"

    TorchBackend(release.network, release.preprocessing, "meta")
    assert TF32.cudnn.conv.fp32_precision == TF32.cuda.matmul.fp32_precision == "ieee"
    assert not TF32.cudnn.allow_tf32, "and can be read"


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried", "DefaultCPUAllocator: can't allocate memory"])
def test_used_up_memory_names_the_batch_size(
    tiny_release: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[Image.Image], text: str
) -> None:
    predictor = Predictor.from_pretrained(tiny_release, backend="torch")
    raising = [RuntimeError(text)]

    def full(*_: object) -> None:
        raise raising[0]

    monkeypatch.setattr(predictor.backend.network, "forward_features", full)  # type: ignore[union-attr]
    with pytest.raises(LeukoscopeError, match=r"^cpu: out of memory with 4 picture\(s\) at once; give .* such as 2$"):
        predictor(pictures[:4], batch_size=4)
    with pytest.raises(LeukoscopeError, match="at once; use --device cpu$"):
        predictor(pictures[0], explain=True)
    raising[0] = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        predictor(pictures[0])


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_bfloat16_moves_probabilities_a_little(
    cache: Path, tiny_release: Path, pictures: list[Image.Image], backend: str
) -> None:
    if backend == "openvino" and "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(LeukoscopeError, match="^precision 'bf16': this processor has no units for bfloat16; use"):
            Predictor.from_pretrained(tiny_release, backend=backend, precision="bf16")
        return
    exact, lower = (
        Predictor.from_pretrained(tiny_release, backend=backend, precision=one) for one in ("float32", "bf16")
    )
    assert (exact.backend.precision, lower.backend.precision) == ("float32", "bf16")
    for one, other in zip(exact(pictures, explain=True), lower(pictures, explain=True), strict=True):
        assert 0 < abs(one.probabilities["ALL"] - other.probabilities["ALL"]) < 0.05
        assert other.heatmaps is not None


def test_cores_are_counted_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() >= 1
    # As macOS, where `os` has no such function.
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "coat_tiny"], ids=["tokens", "a list of tensors"])
def test_a_network_without_a_map_of_channels_is_predicted_and_has_no_map(
    cache: Path, tmp_path: Path, pictures: list[Image.Image], architecture: str
) -> None:
    release = untrained(tmp_path / "release", {}, replace(timm_recipe(architecture, ""), image_size=32))
    ours = Predictor.from_pretrained(release, backend="auto")
    theirs = Predictor.from_pretrained(release, backend="torch")

    assert ours(pictures[1], explain=True).heatmaps is None
    for picture in pictures:
        assert ours(picture).probabilities == pytest.approx(theirs(picture).probabilities, abs=ALLOWED_DIFFERENCE)
    if architecture.startswith("vit"):
        assert ours.backend.name == "openvino"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"precision": "half"}, "precision 'half': unknown; choose one of float32, bf16"),
        ({"backend": "openvino", "device": "cuda"}, "backend 'openvino': computes on the CPU only; leave out device"),
        ({"backend": "torch", "device": "warp"}, "device 'warp': torch cannot compute there on this machine ("),
    ],
)
def test_what_cannot_be_had_is_refused(tiny_release: Path, options: dict[str, str], problem: str) -> None:
    with pytest.raises(LeukoscopeError) as error:
        Predictor.from_pretrained(tiny_release, **options)
    assert str(error.value).startswith(problem)


def test_without_a_gpu_driver_torch_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", none)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu_or_cpu() == "cpu"


@pytest.mark.parametrize(
    "value", ["", "y", "yes", "T", "true", "on", "1", "n", "no", "f", "False", "off", "0", "maybe"]
)
def test_accelerates_switch_is_read_as_accelerate_reads_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: name)  # a driver, and no nvidia-smi, as in some containers
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    if value == "maybe":
        with pytest.raises(LeukoscopeError, match="^ACCELERATE_USE_CPU=maybe: is neither true nor false"):
            gpu_or_cpu()
    else:
        assert gpu_or_cpu() == ("cpu" if value and str_to_bool(value) else "cuda")


def test_a_missing_package_is_named(tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (predictor, runtime):
        monkeypatch.setattr(module, "find_spec", lambda name: None)

    with pytest.raises(LeukoscopeError, match="^openvino: is not installed; pip install openvino$"):
        Predictor.from_pretrained(tiny_release, backend="openvino")
    assert Predictor.from_pretrained(tiny_release, backend="auto").backend.name == "torch"


def test_a_kept_network_reports_how_near_torch_it_lies(
    tiny_release: Path, tmp_path: Path, cache_in_tmp: pytest.MonkeyPatch
) -> None:
    cache_in_tmp.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    Predictor.from_pretrained(tiny_release, backend="openvino")
    (entry,) = entries()
    report = json.loads((entry.path / GRAPH_REPORT).read_text())
    assert 0 < report["probability_difference"] <= report["allowed"] == ALLOWED_DIFFERENCE
    assert report["model"] == tiny_release.name, "not the folders above it"


def test_a_prediction_by_a_kept_graph_imports_none_of_the_heavy_libraries(
    cache: Path, tiny_release: Path, tmp_path: Path
) -> None:
    Predictor.from_pretrained(tiny_release, backend="openvino")
    save_cell(tmp_path / "cell.png")
    code = f"""
import sys
from leukoscope import Predictor
predictor = Predictor.from_pretrained({str(tiny_release)!r}, backend="openvino")
assert "scipy" not in sys.modules  # needed only for a picture that may be a smear
prediction = predictor({str(tmp_path / "cell.png")!r}, explain=True)
assert prediction.heatmaps
heavy = {{"torch", "timm", "transformers", "datasets", "gradio", "sklearn", "pandas"}} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_a_signal_after_two_models_are_gone_is_no_crash(cache: Path, tiny_release: Path) -> None:
    Predictor.from_pretrained(tiny_release, backend="openvino")
    code = f"""
import gc, os, signal
from leukoscope import Predictor
first, second = (Predictor.from_pretrained({str(tiny_release)!r}, backend="openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda number, frame: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "heard\n"), ran.stderr


@pytest.mark.parametrize(("backend", "device"), [("auto", "cuda:0"), ("torch", "cuda:0"), ("openvino", "cpu")])
def test_the_gpu_is_for_torch_alone_and_a_backend_that_is_not_given_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, backend: str, device: str
) -> None:
    monkeypatch.setattr(runtime, "gpu_or_cpu", lambda: "cuda:0")
    monkeypatch.setenv("LEUKOSCOPE_BACKEND", "tensorrt")
    assert Runtime(backend).resolved() == Runtime(backend, device)
    assert Runtime(backend, "cpu").resolved() == Runtime(backend, "cpu")
    with pytest.raises(LeukoscopeError, match="^backend 'tensorrt': unknown; choose one of auto, torch, openvino$"):
        Runtime().resolved()
    monkeypatch.setenv("LEUKOSCOPE_BACKEND", backend)
    assert Runtime().resolved() == Runtime(backend, device)
    monkeypatch.delenv("LEUKOSCOPE_BACKEND")
    assert Runtime().resolved() == Runtime("auto", "cuda:0")
