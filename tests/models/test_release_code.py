"""Releases of networks that timm does not know: transformers and Leukoscope give one answer, and only one runs code."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from leukoscope import LeukoscopeError, Predictor
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.synthetic import draw_cell
from leukoscope.models.build import build_network, classifier_parameters
from leukoscope.models.recipes import TIMM, get_recipe, with_overrides
from leukoscope.models.release import _SOURCES, CODE, load_release, rescale_classifier, save_release

SOURCE = {name: Path(package.__path__[0]) / name for name, package in _SOURCES.items()}
# Every head of the prior systems, over timm's smallest backbone; and the networks that timm lacks.
KINDS = (
    "prior_a_efficientnet_b3",
    "prior_b_densenet201",
    "prior_e_densenet121_frozen",
    "prior_c_alexnet",
    "prior_d_baseline_cnn",
    "densenet169_levels",
    "timm/resnetblur18",  # its blur filters are computed and stand in no file
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """An architecture, and a network of it that answers as decidedly as a trained one."""
    recipe = get_recipe(request.param)
    if recipe.name.startswith(TIMM):
        recipe = with_overrides(recipe, ["head.pooling=avg"])
    elif recipe.head is not None:
        recipe = replace(recipe, architecture="test_resnet", drop_path_rate=0.0)
    torch.manual_seed(0)
    network = build_network(recipe, 3).eval().requires_grad_(False)
    if recipe.architecture == "test_resnet":
        network.head.norm.running_mean.uniform_(0, 0.1)
    network.get_submodule(network.pretrained_cfg["classifier"]).weight.normal_(std=0.5)
    network.get_submodule(network.pretrained_cfg["classifier"]).bias.normal_()
    return recipe.architecture, network


def saved(directory: Path, kind: tuple[str, nn.Module]) -> Path:
    architecture, network = kind
    # Not ImageNet's mean and std, so that a default of anyone's shows.
    preprocessing = Preprocessing(64, 350 / 450, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    return save_release(
        directory,
        network,
        architecture=architecture,
        labels=("Early", "Pre", "Pro"),
        preprocessing=preprocessing,
        metrics={},
    )


@pytest.fixture(scope="module")
def release(kind: tuple[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("own") / "release", kind)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A release of the smallest network here, which a test may damage."""
    torch.manual_seed(0)
    return saved(tmp_path / "small", ("baseline_cnn", build_network(get_recipe("prior_d_baseline_cnn"), 3).eval()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two phantoms as PNG, and one photographed sideways as JPEG."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "black.png", folder / "smear.png", folder / "turned.jpg"]
    for path, background in zip(paths, ("black", "smear", "smear"), strict=True):
        cell = Image.fromarray(draw_cell("ALL", subject=3, cell=1, size=300, background=background).image)
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = {"exif": exif, "quality": 95} if path.suffix == ".jpg" else {}
        cell.crop((0, 0, 300, 200)).save(path, **turned)
    return paths


def logits(network: nn.Module) -> torch.Tensor:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network(pixels.to(memory_format=torch.channels_last))


def by_pipeline(release: Path, pictures: Sequence[Path]) -> np.ndarray:
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(release), trust_remote_code=True, device=-1)
    assert classify.model.dtype == torch.float32
    rows = []
    for picture in pictures:
        shares = {answer["label"]: answer["score"] for answer in classify(str(picture))}
        rows.append([shares[label] for label in ("Early", "Pre", "Pro")])
    return np.array(rows)


@pytest.mark.usefixtures("code_cache")
def test_the_pipeline_agrees_with_the_predictor_from_file_to_probability(release: Path, pictures: list[Path]) -> None:
    theirs = by_pipeline(release, pictures)
    ours = np.array([list(p.probabilities.values()) for p in Predictor.from_pretrained(release)(list(pictures))])

    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours[1] - ours[2]).max() > 2e-4, "the turn must matter for this test to mean anything"
    assert np.abs(ours[0] - ours[1]).max() > 1e-3, "pictures that all get one answer would hide a wrong preprocessing"


@pytest.mark.usefixtures("code_cache")
@pytest.mark.parametrize("name", ["small", "at_one_size"])
def test_the_pipeline_agrees_with_the_predictor_on_real_cells(
    name: str, request: pytest.FixtureRequest, real_data: Path
) -> None:
    release: Path = request.getfixturevalue(name)
    cells = sorted((real_data / "cnmc2019" / "samples-bmp").glob("*.bmp"))
    ours = np.array([list(p.probabilities.values()) for p in Predictor.from_pretrained(release)(list(cells))])
    assert len(cells) == 10 and np.abs(ours - by_pipeline(release, cells)).max() < 1e-4
    assert np.ptp(ours, axis=0).max() > 1e-3, "one answer for all would hide a wrong preprocessing"


def test_without_trust_the_pipeline_refuses_to_run_the_code(release: Path) -> None:
    from transformers import pipeline

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("image-classification", model=str(release), trust_remote_code=False)


@pytest.mark.usefixtures("code_cache")
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_either_file_leads_to_a_processor_that_shows_what_the_predictor_sees(
    small: Path, pictures: list[Path], file: str
) -> None:
    """For a folder transformers looks into config.json first, for a Hub repository into preprocessor_config.json."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(small, trust_remote_code=True, image_processor_filename=file)
    assert type(processor).__name__ == "LeukoscopeImageProcessor"
    preprocessing, picture = load_release(small).preprocessing, Image.open(pictures[1])
    ours = preprocessing.normalise(torch.tensor(preprocessing.frame(picture)).permute(2, 0, 1)[None])
    assert torch.allclose(processor(picture)["pixel_values"], ours, atol=1e-6)
    assert processor([picture, picture])["pixel_values"].shape == (2, 3, 64, 64)


def test_a_release_read_back_answers_as_the_network_did(release: Path, kind: tuple[str, nn.Module]) -> None:
    _, network = kind
    before, after = logits(network), logits(load_release(release).network)
    assert before.abs().max() > 0.5
    # The backbone went through half precision.
    assert torch.allclose(before, after, rtol=1e-2, atol=2e-2)


def test_all_but_the_last_layer_and_the_statistics_is_half_precision_on_disk(
    release: Path, kind: tuple[str, nn.Module]
) -> None:
    from safetensors.torch import load_file

    _, network = kind
    stored = load_file(release / "model.safetensors")
    assert stored.keys() == {f"network.{name}" for name in network.state_dict()}
    whole = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    last = f"network.{network.pretrained_cfg['classifier']}"
    assert whole == {f"{last}.weight", f"{last}.bias"} | {name for name in stored if ".running_" in name}
    loaded = load_release(release).network
    assert {t.dtype for t in loaded.state_dict().values()} <= {torch.float32, torch.int64}
    assert not loaded.training and all(p.dtype == torch.float32 for p in classifier_parameters(loaded))


def test_a_temperature_folds_into_the_last_layer(kind: tuple[str, nn.Module]) -> None:
    _, network = kind
    cooler = rescale_classifier(deepcopy(network), 2.5)
    assert torch.allclose(logits(cooler), logits(network) / 2.5, rtol=1e-5, atol=1e-6)


# Every cell at one size


@pytest.fixture(scope="module")
def cut_out(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One cell small and in a corner, large, cut by two edges, and no cell at all."""
    folder = tmp_path_factory.mktemp("cut_out")
    cell = Image.fromarray(draw_cell("ALL", subject=3, cell=1, size=200, background="black").image)
    places = {"corner": (80, (0, 160)), "large": (230, (5, 5)), "cut": (200, (-60, -70)), "empty": None}
    for name, place in places.items():
        picture = Image.new("RGB", (240, 240))
        if place:
            picture.paste(cell.resize((place[0], place[0])), place[1])
        picture.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in places]


@pytest.fixture(scope="module")
def at_one_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(get_recipe("densenet169_levels"), architecture="test_resnet")
    torch.manual_seed(0)
    network = build_network(recipe, 3).eval().requires_grad_(False)
    network.head.classifier.weight.normal_(std=0.5)
    return save_release(
        tmp_path_factory.mktemp("at_one_size") / "release",
        network,
        architecture="test_resnet",
        labels=("Early", "Pre", "Pro"),
        preprocessing=Preprocessing(96, 350 / 450, framing="cell"),
        metrics={},
    )


@pytest.mark.usefixtures("code_cache")
def test_the_pipeline_frames_a_cell_as_the_predictor_does(at_one_size: Path, cut_out: list[Path]) -> None:
    theirs = by_pipeline(at_one_size, cut_out)
    ours = np.array([list(p.probabilities.values()) for p in Predictor.from_pretrained(at_one_size)(cut_out)])
    assert np.abs(ours - theirs).max() < 1e-4


def test_a_cell_is_shown_at_one_size_wherever_it_lies(at_one_size: Path, cut_out: list[Path]) -> None:
    preprocessing = load_release(at_one_size).preprocessing
    corner, large = (preprocessing.frame(Image.open(path)) for path in cut_out[:2])
    areas = [(pixels.max(axis=2) > 8).mean() for pixels in (corner, large)]
    assert areas == pytest.approx([1 / 1.25**2] * 2, rel=0.06)
    # But for its resizing, the same picture.
    assert np.abs(corner.astype(int) - large).mean() < 12


def test_the_heat_map_lies_where_the_cell_was_cut_from(at_one_size: Path, cut_out: list[Path]) -> None:
    prediction = Predictor.from_pretrained(at_one_size)(cut_out[0], explain=True)
    left, top, right, bottom = prediction.view_box
    assert right - left == pytest.approx(bottom - top)
    assert (left + right) / 2 == pytest.approx(40, abs=6) and (top + bottom) / 2 == pytest.approx(200, abs=6)


def test_plain_timm_networks_cannot_frame_cells(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("test_resnet", num_classes=2)
    with pytest.raises(LeukoscopeError, match="timm frames no cell"):
        save_release(
            tmp_path / "release",
            network,
            architecture="test_resnet",
            labels=("ALL", "HEM"),
            preprocessing=Preprocessing(64, 1.0, framing="cell"),
            metrics={},
        )


# The code that travels along


@pytest.mark.parametrize("name", CODE)
def test_the_shipped_code_needs_nothing_of_leukoscope(name: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse(SOURCE[name].read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or "").partition(".")[0])
    beyond = imported - sys.stdlib_module_names
    assert beyond <= {"torch", "torchvision", "timm", "transformers", "numpy", "PIL", ".networks", ".framing"}


def test_a_saved_release_keeps_its_temperature_exactly(small: Path, tmp_path: Path) -> None:
    plain = load_release(small).network
    cooler = rescale_classifier(deepcopy(plain), 2.5)
    folded = load_release(saved(tmp_path / "folded", ("baseline_cnn", cooler))).network
    assert torch.allclose(logits(folded), logits(plain) / 2.5, rtol=1e-6, atol=1e-7)


def test_the_release_holds_the_very_files_of_this_installation(small: Path) -> None:
    assert sorted(path.name for path in small.iterdir()) == [
        "config.json",
        "framing.py",
        "metrics.json",
        "model.safetensors",
        "modeling_leukoscope.py",
        "networks.py",
        "preprocessor_config.json",
    ]
    assert all((small / name).read_bytes() == SOURCE[name].read_bytes() for name in CODE)


def test_leukoscope_never_runs_code_from_a_release(small: Path) -> None:
    for name in CODE:
        (small / name).write_text(f"open({str(small / 'sprung')!r}, 'w')\nraise SystemExit\n")
    Predictor.from_pretrained(small)(np.zeros((64, 64, 3), np.uint8), explain=True)
    assert not (small / "sprung").exists()
    for name in CODE:
        (small / name).unlink()
    load_release(small)


def test_a_release_of_timms_own_brings_no_code(tiny_release: Path) -> None:
    assert sorted(path.name for path in tiny_release.iterdir()) == ["config.json", "metrics.json", "model.safetensors"]
    embedded = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc" / "config.json"
    ours, theirs = (json.loads(path.read_text()) for path in (tiny_release / "config.json", embedded))
    assert list(ours) == list(theirs) and list(ours["pretrained_cfg"]) == list(theirs["pretrained_cfg"])


# Damage


def refusal(release: Path, **changes: object) -> str:
    config = json.loads((release / "config.json").read_text())
    (release / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(LeukoscopeError) as error:
        load_release(release)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_network_that_nobody_here_has_is_named(small: Path) -> None:
    assert refusal(small, architecture="densenet121") == (
        f"{small / 'config.json'}: no architecture 'densenet121' without a head of its own is known; update leukoscope "
        "and timm"
    )


def test_a_backbone_that_timm_lacks_is_named(small: Path) -> None:
    assert refusal(small, head={"pooling": "avg"}) == (
        f"{small / 'config.json'}: no architecture 'baseline_cnn' for a head of its own is known; update "
        "leukoscope and timm"
    )


@pytest.mark.parametrize(
    "head",
    [3, "avg", {"pooling": "median"}, {"width": 3}, {"hidden": [{"width": 8}]}, {"hidden": 3}, {"hidden": [{}]}],
    ids=str,
)
def test_a_senseless_head_is_named(small: Path, head: object) -> None:
    message = refusal(small, architecture="test_resnet", head=head)
    assert message.startswith(f"{small / 'config.json'}: test_resnet cannot be built with its head (")
    assert message.endswith("); restore it from the release")


def test_weights_of_another_head_are_named(small: Path) -> None:
    message = refusal(small, architecture="test_resnet", head={"pooling": "max"})
    assert message.startswith(f"{small / 'model.safetensors'}: not the weights of test_resnet with 3 labels (")


def test_a_full_copy_can_be_moved(small: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(small, tmp_path / "elsewhere"))
    assert load_release(moved).labels == ("Early", "Pre", "Pro")
