"""Any model of timm trains, is released, and answers alike wherever it is loaded."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from transformers import pipeline

from drawn import save_cell
from leukoscope import LeukoscopeError, Predictor
from leukoscope.inference.prediction import ABSTAIN, NOT_A_CELL, OUT_OF_DISTRIBUTION
from leukoscope.models.build import StartWeights, build_network, load_start_weights
from leukoscope.models.recipes import timm_recipe
from leukoscope.models.release import OOD_FILE, read_metrics
from leukoscope.reports.card import write_card
from leukoscope.synthetic import smear_picture
from leukoscope.training.config import parse_config
from leukoscope.training.train import train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "has_map"),
    [
        ("resnet18", 64, True),
        ("convnext_atto", 64, True),
        ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", 64, False),
    ],
)
def test_it_trains_an_epoch_is_released_and_answers_alike(
    model: str, size: int, has_map: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / "cache"))
    flags = ["--image_size", str(size), "--num_train_epochs", "1", "--max_train_samples", "48"]
    small = ["--max_eval_samples", "16", "--output_dir", str(tmp_path / "run")]
    release = train(parse_config(["--model_name_or_path", model, *flags, *small])) / "release"
    metrics = json.loads((release / "metrics.json").read_text())
    assert metrics["recipe"]["name"].startswith(f"timm/{model.removeprefix('timm/')}")
    pictures = [save_cell(tmp_path / f"{k}.png", k, subject=1, cell=1, size=200) for k in ("ALL", "HEM")]

    predictions = Predictor.from_pretrained(release)(pictures, explain=True)
    ours = np.array([list(prediction.probabilities.values()) for prediction in predictions])

    classify = pipeline("image-classification", model=str(release), device=-1)
    theirs = [{row["label"]: row["score"] for row in classify(str(picture))} for picture in pictures]
    assert np.abs(ours - np.array([[row[k] for k in ("ALL", "HEM")] for row in theirs])).max() < 1e-4
    network = timm.create_model(f"local-dir:{release}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=network))
    with torch.inference_mode():
        logits = network(torch.stack([transform(Image.open(picture).convert("RGB")) for picture in pictures]))
    assert np.abs(ours - logits.softmax(dim=1).numpy()).max() < 1e-4
    assert (predictions[0].heatmaps is not None) is has_map

    config = parse_config(["--model_name_or_path", str(release), "--dataset_name", "phantoms"])
    assert config.model.model_name_or_path == str(release)
    assert (config.model.recipe, config.model.image_size) == (metrics["recipe"]["name"], size)


def test_a_model_and_a_recipe_are_refused() -> None:
    with pytest.raises(LeukoscopeError, match="resnet18 and --recipe exclude each other; leave one out"):
        parse_config(["--model_name_or_path", "resnet18", "--recipe", "densenet121"])


def test_a_folder_that_holds_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match=f"^--model_name_or_path {tmp_path}: has no config.json; give the folder"):
        parse_config(["--model_name_or_path", str(tmp_path)])
    encoder = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(encoder))
    with pytest.raises(LeukoscopeError, match=f"^--model_name_or_path {tmp_path}/config.json: damaged .label_names"):
        parse_config(["--model_name_or_path", str(tmp_path)])


@pytest.mark.parametrize("size", [56, 224])
def test_an_encoder_s_file_is_what_dinov2_starts_from(tmp_path: Path, size: int) -> None:
    donor = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224)
    save_file(donor.state_dict(), tmp_path / "model.safetensors")
    recipe = replace(timm_recipe("vit_small_patch14_dinov2", "--recipe"), image_size=size)
    assert recipe.frozen == ("backbone",)
    network = build_network(recipe, 2)
    load_start_weights(network, recipe, StartWeights(file=tmp_path / "model.safetensors"))
    ours, theirs = network.state_dict(), donor.state_dict()
    blocks = [name for name in theirs if name.startswith("blocks.")]
    assert len(blocks) == 12 * 14 and all(torch.equal(ours[name], theirs[name]) for name in blocks)
    assert torch.equal(ours["pos_embed"], theirs["pos_embed"]) == (size == 224)


# A release of a single training decides like one of a protocol


def trained(cells: Path, out: Path, split: str, image_size: int) -> Path:
    """The release of a small network, trained for an epoch."""
    words = ("--dataset_name", "cnmc2019", "--train_dir", cells, "--split", split, "--image_size", image_size)
    small = ("--num_train_epochs", 1, "--mixed_precision", "no", "--from_scratch", "--override", "block_config=[2,2,2]")
    return train(parse_config([str(word) for word in (*words, *small, "--output_dir", out)])) / "release"


@pytest.mark.slow
def test_a_release_trained_with_a_validation_side_refuses_and_abstains(
    few_real_cells: Path, real_data: Path, tmp_path: Path
) -> None:
    release = trained(few_real_cells, tmp_path / "run", "subject", 64)
    metrics = read_metrics(release).content()
    assert metrics["calibration"]["estimates"] == "these weights, on the subjects that chose their epoch"
    assert metrics["decisions"]["fitted_on"]["subjects"]["HEM"] >= 2
    assert metrics["ood"]["held_out"]["cells"] < sum(1 for _ in few_real_cells.rglob("UID_*")), (
        "tested cells fit nothing"
    )
    predictor = Predictor.from_pretrained(release)
    neutrophil = sorted((real_data / "pbc" / "neutrophil").iterdir())[0]
    for picture in (Image.new("RGB", (450, 450), "white"), Image.fromarray(smear_picture("Pre", 0)), neutrophil):
        assert predictor(picture).outcome in (OUT_OF_DISTRIBUTION, NOT_A_CELL)
    outcomes = [prediction.outcome for prediction in predictor(sorted(few_real_cells.rglob("UID_*"))[::3])]
    assert ABSTAIN in outcomes and outcomes.count(OUT_OF_DISTRIBUTION) < len(outcomes) / 4
    card = write_card(release).read_text(encoding="utf-8")
    assert "gives no class below a probability of" in card and "a picture without a cell it still names" not in card


@pytest.mark.slow
def test_a_release_without_a_validation_side_says_what_it_lacks(few_real_cells: Path, tmp_path: Path) -> None:
    release = trained(few_real_cells, tmp_path / "run", "all", 32)
    assert (
        not (release / OOD_FILE).exists()
        and not {"calibration", "decisions", "ood"} & read_metrics(release).content().keys()
    )
    said = re.sub(r"\s+", " ", write_card(release).read_text(encoding="utf-8"))
    assert "On a picture without a cell it still names a class." in said and "are not calibrated" in said
    white = Predictor.from_pretrained(release)(np.full((450, 450, 3), 255, np.uint8))
    assert white.outcome in ("ALL", "HEM"), "it names a class for every picture"
