"""A checkpoint of DINOv2's layout becomes timm's network with the very same numbers, and nothing pickled is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from typer.testing import CliRunner

from leukoscope import LeukoscopeError
from leukoscope.cli import app
from leukoscope.models.dinov2 import convert_dinov2, timm_tensors
from leukoscope.training.config import parse_config
from leukoscope.training.train import train

Tensors = dict[str, torch.Tensor]


def _dinov2(width: int, depth: int, *, giant: bool = False) -> Tensors:
    """A network's tensors as DINOv2's code names them, with random numbers."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + 16 * 16, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    hidden = 4096 if giant else 4 * width
    first, second, factor = ("w12", "w3", 2) if giant else ("fc1", "fc2", 1)
    for i in range(depth):
        for name, shape in {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
            "ls1.gamma": (width,), "ls2.gamma": (width,),
            f"mlp.{first}.weight": (factor * hidden, width), f"mlp.{first}.bias": (factor * hidden,),
            f"mlp.{second}.weight": (width, hidden), f"mlp.{second}.bias": (width,),
        }.items():  # fmt: skip
            shapes[f"blocks.{i}.{name}"] = shape
    return {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}


def _as_dinobloom(tensors: Tensors) -> dict[str, Any]:
    """The layout of DinoBloom's files: the teacher with the heads of its training."""
    teacher = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    return {"teacher": teacher | {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.last.bias": torch.zeros(2)}}


@pytest.fixture(scope="module")
def small() -> Tensors:
    torch.manual_seed(0)
    return _dinov2(384, 12)


@pytest.mark.parametrize("layout", [_as_dinobloom, dict, lambda tensors: {"model": dict(tensors)}])
def test_it_becomes_timms_network_with_the_same_numbers(
    small: Tensors, layout: Callable[[Tensors], dict[str, Any]], tmp_path: Path
) -> None:
    torch.save(layout(small), tmp_path / "DinoBloom-S.pth")
    folder = convert_dinov2(tmp_path / "DinoBloom-S.pth", tmp_path / "dinobloom-s")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044, "others may read it"
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    state = network.state_dict()
    assert state.keys() == small.keys() - {"mask_token"}
    assert all(torch.equal(tensor, small[name]) for name, tensor in state.items())
    assert tuple(network.pretrained_cfg["input_size"]) == (3, 224, 224)
    assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 384)


@pytest.mark.parametrize(
    ("width", "depth", "architecture"), [(768, 12, "base"), (1024, 24, "large"), (1536, 40, "giant")]
)
def test_the_larger_ones_map_as_a_whole(width: int, depth: int, architecture: str) -> None:
    with torch.device("meta"):
        tensors = _dinov2(width, depth, giant=architecture == "giant")
    name, size, mapped = timm_tensors(_as_dinobloom(tensors)["teacher"])
    assert (name, size) == (f"vit_{architecture}_patch14_dinov2", 224)
    assert len(mapped) == len(tensors) - 1


def test_blocks_that_were_trained_in_chunks_are_numbered_through(small: Tensors) -> None:
    chunked = {
        f"blocks.{int(name.split('.')[1]) // 6}.{name.removeprefix('blocks.')}"
        if name.startswith("blocks.")
        else name: v
        for name, v in small.items()
    }
    assert "blocks.1.6.norm1.weight" in chunked
    _, _, mapped = timm_tensors(chunked)
    assert torch.equal(mapped["blocks.6.norm1.weight"], small["blocks.6.norm1.weight"])


class _Opens:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["WOULD_MAKE"],)


def test_pickled_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WOULD_MAKE", str(tmp_path / "made"))
    torch.save({"teacher": _Opens()}, tmp_path / "bad.pth")
    with pytest.raises(LeukoscopeError) as refused:
        convert_dinov2(tmp_path / "bad.pth", tmp_path / "out")
    assert str(refused.value) == (
        f"{tmp_path / 'bad.pth'}: is no checkpoint of tensors alone; anything else in it could run code and is never "
        "loaded; give a checkpoint of DINOv2's layout"
    )
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_is_named(small: Tensors, tmp_path: Path) -> None:
    def refusal(content: Any, name: str = "w.pth") -> str:
        torch.save(content, tmp_path / name)
        with pytest.raises(LeukoscopeError) as refused:
            convert_dinov2(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(refused.value).removeprefix(f"{tmp_path / name}: ")

    assert refusal({"epoch": 3}) == "holds no network's tensors by name; give a checkpoint of DINOv2's layout"
    assert refusal({"conv1.weight": torch.zeros(1)}).startswith("holds no DINOv2 vision transformer with patches of 14")
    holey = {name: tensor for name, tensor in small.items() if name != "blocks.3.ls1.gamma"}
    assert refusal(holey) == "is no whole vit_small_patch14_dinov2: 1 tensors differ, e.g. blocks.3.ls1.gamma"
    assert refusal({3: torch.zeros(1)}) == "holds no network's tensors by name; give a checkpoint of DINOv2's layout"
    for name, shape in {"norm.weight": (), "pos_embed": (257, 384), "patch_embed.proj.weight": (14,)}.items():
        other = {**small, name: torch.zeros(shape)}
        assert refusal(other).startswith("holds no DINOv2 vision transformer with patches of 14 px")
    for text in ("no checkpoint", "hello world"):
        (tmp_path / "text.pth").write_text(text)
        with pytest.raises(LeukoscopeError, match="text.pth: is no checkpoint of tensors alone"):
            convert_dinov2(tmp_path / "text.pth", tmp_path / "out")
    with pytest.raises(LeukoscopeError, match="none.pth: cannot be read"):
        convert_dinov2(tmp_path / "none.pth", tmp_path / "out")
    with pytest.raises(LeukoscopeError, match="is there already; name a new folder"):
        convert_dinov2(tmp_path / "w.pth", tmp_path)


@pytest.mark.slow
def test_a_run_starts_from_it_frozen_with_kept_features(
    small: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / "cache"))
    torch.save(_as_dinobloom(small), tmp_path / "DinoBloom-S.pth")
    result = CliRunner().invoke(app, ["release", "convert", str(tmp_path / "DinoBloom-S.pth"), str(tmp_path / "s")])
    assert result.exit_code == 0, result.output
    config = parse_config(
        ["--model_name_or_path", str(tmp_path / "s"), "--image_size", "56", "--output_dir", str(tmp_path / "run")]
    )
    assert config.resolve().frozen == ("backbone",)
    run = train(config)
    said = capsys.readouterr().out
    assert "vit_small_patch14_dinov2 at 56 px, starting from dinobloom-s of s" in said
    assert "frozen backbone: features of 480 cells in 1 mirrored version(s) kept in" in said
    released = timm.create_model(f"local-dir:{run / 'release'}", pretrained=True).state_dict()
    name = "blocks.11.attn.qkv.weight"
    assert torch.equal(released[name], small[name].half().float())
