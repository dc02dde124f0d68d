"""Features of a frozen backbone: the same to train on as the cells, kept once, and never served when they are not."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.cache import cache_root
from leukoscope.data.augmentation import Augmentation, Augmenter
from leukoscope.data.changes import TRAINING_RANGES
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe, timm_recipe
from leukoscope.models.weights import round_as_stored
from leukoscope.training import data
from leukoscope.training.accelerator import make_accelerator
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.data import (
    CellDataset,
    FeatureInputs,
    PixelInputs,
    SubjectBalancedSampler,
    backbone_hash,
    can_cache_features,
    features_folder,
    features_suffice,
    frozen_features,
    make_inputs,
    prediction_loader,
)
from trainers import MIRRORED, SMALL, MakeTrainer

RECIPE = replace(
    SMALL,
    num_train_epochs=4,
    head_learning_rate=0.01,
    label_smoothing=0.0,
    augmentation=MIRRORED,
    frozen=("backbone",),
    schedule="constant",
    class_weighted=False,
)
PREPROCESSING = Preprocessing(32, 1.0)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_network(RECIPE, 2)


ALL_ROWS = np.arange(32)


def _kept(network: nn.Module, cells: FramedCells, rows: np.ndarray = ALL_ROWS) -> tuple[Path, np.ndarray]:
    folder = features_folder(network, cells, RECIPE)
    pixels = PixelInputs(cells, PREPROCESSING, Augmenter(MIRRORED, "black", 0))
    return folder, frozen_features(folder, rows, network, pixels).items(rows).numpy()


# Which systems it is for


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"augmentation": replace(MIRRORED, flips="none")}, True),
        ({"augmentation": replace(MIRRORED, rotation=20.0)}, False),
        ({"augmentation": replace(MIRRORED, brightness=0.1)}, False),
        ({"frozen": ()}, False),
        ({"frozen": ("features.conv0",)}, False),
        ({"drop_rate": 0.1}, False),
    ],
)
def test_only_a_wholly_frozen_backbone_shown_finitely_many_looks(change: dict[str, Any], kept: bool) -> None:
    assert can_cache_features(replace(RECIPE, **change)) is kept


def test_a_run_too_short_to_gain_by_it_uses_no_features_whatever_another_run_kept(cells: FramedCells) -> None:
    accelerator = _accelerator()
    for passes, kind in ((15, PixelInputs), (16, FeatureInputs), (15, PixelInputs)):  # a quarter of 32 cells, two looks
        inputs = make_inputs(accelerator, build_network(RECIPE, 2), cells, RECIPE, 0, rows=ALL_ROWS, passes=passes)
        assert isinstance(inputs, kind)


# The same to train on


def test_features_are_what_the_head_is_given_for_each_look(network: nn.Module, cells: FramedCells) -> None:
    _, features = _kept(network, cells)
    assert features.shape == (32, 2, network.num_features)
    assert features.dtype == np.float32
    pixels = torch.from_numpy(cells.pixels[5:9].transpose(0, 3, 1, 2).copy())
    network.eval()
    with torch.no_grad():
        for number, axes in enumerate(((), (3,))):
            whole = network(PREPROCESSING.normalise(pixels.flip(axes)))
            head: Any = network.get_submodule("classifier")
            torch.testing.assert_close(head(torch.from_numpy(features[5:9, number].copy())), whole)
    assert not np.allclose(features[:, 0], features[:, 1], atol=1e-4), "a mirrored cell has features of its own"


@pytest.mark.parametrize(("small_changes", "consistency"), [(0.0, 0.0), (0.8, 0.0), (1.0, 0.3)])
def test_a_head_learns_from_kept_features_what_it_learns_from_cells_and_nothing_else_changes(
    trainer_for: MakeTrainer, small_changes: float, consistency: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    augmentation = replace(MIRRORED, small_changes=small_changes)
    recipe = replace(RECIPE, augmentation=augmentation, consistency=consistency)
    fitted = []
    for share_that_pays in (0, math.inf):
        monkeypatch.setattr("leukoscope.training.data._RUN_SHARE", share_that_pays)
        trainer = trainer_for(recipe)
        fitted.append((trainer, list(trainer.fit())))
    (kept, kept_rows), (anew, anew_rows) = fitted
    assert (type(kept.inputs), type(anew.inputs)) == (FeatureInputs, PixelInputs)
    for kept_row, anew_row in zip(kept_rows, anew_rows, strict=True):
        timings = {"seconds", "images_per_second"}
        assert {k: v for k, v in kept_row.items() if k not in timings} == pytest.approx(
            {k: v for k, v in anew_row.items() if k not in timings}, abs=1e-4
        )
    for (name, one), other in zip(kept.network.state_dict().items(), anew.network.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, msg=(name + ": {}").format)
    ours, theirs = (one.predict(one.split.test) for one in (kept, anew))
    assert ours.cell_ids == theirs.cell_ids
    assert np.allclose(ours.probabilities, theirs.probabilities, atol=1e-4)
    assert anew_rows[0]["train_loss"] != anew_rows[-1]["train_loss"], "it did learn"
    set_seed(0)
    untrained = build_network(RECIPE, 2)
    round_as_stored(untrained, head=False)
    for trainer in (kept, anew):
        network: Any = trainer.network
        assert backbone_hash(network) == backbone_hash(untrained)
        assert not network.forward_features(torch.zeros(2, 3, 32, 32)).requires_grad


# Kept once, and served only when they are the ones asked for


def test_a_second_run_reads_what_the_first_one_kept(
    cells: FramedCells, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    folder, first = _kept(network, cells)
    written = {path: path.stat().st_ino for path in folder.iterdir()}
    _, second = _kept(network, cells)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == written
    assert np.array_equal(first, second)
    assert capsys.readouterr().out.splitlines() == [
        f"frozen backbone: features of 32 cells in 2 version(s) kept in {folder}",
        f"frozen backbone: features of 32 cells read from {folder}",
    ]


def test_only_the_cells_that_are_asked_for_are_computed_and_a_killed_run_loses_one_part(
    cells: FramedCells, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    killed: list[bool] = []
    compute = data._features_of

    def counting(rows: np.ndarray, *others: Any) -> np.ndarray:
        if len(computed) == 10 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        computed.extend(rows.tolist())
        return compute(rows, *others)

    monkeypatch.setattr(data, "_features_of", counting)
    monkeypatch.setattr(data, "_CELLS_PER_PASS", 2)
    with pytest.raises(KeyboardInterrupt):
        _kept(network, cells)
    assert computed == [*range(10)]
    _, some = _kept(network, cells, np.array([3, 4, 20, 30, 31]))
    assert computed[10:] == [20, 30, 31, 31], "two at a time, whatever is missing"
    monkeypatch.undo()
    _, every = _kept(network, cells)
    assert np.array_equal(every[[3, 4, 20, 30, 31]], some)
    shutil.rmtree(features_folder(network, cells, RECIPE))
    assert np.array_equal(_kept(network, cells)[1], every)


def test_the_head_does_not_matter_but_weights_looks_and_pictures_do(
    network: nn.Module, cells: FramedCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    def file(recipe: Recipe = RECIPE, these: FramedCells = cells) -> Path:
        return features_folder(network, these, recipe)

    first = file()
    with torch.no_grad():
        network.get_parameter("classifier.last.weight").add_(1)
    assert file() == first
    assert file(replace(RECIPE, augmentation=replace(MIRRORED, flips="both"))) != first
    changed = replace(RECIPE, augmentation=replace(MIRRORED, small_changes=0.5))
    of_changed = file(changed)
    assert of_changed != first
    apply, _, _ = TRAINING_RANGES["size"]
    monkeypatch.setitem(TRAINING_RANGES, "size", (apply, 0.5, 2.0))
    assert file(changed) != of_changed, "kept features are of other changes"
    other = frame_cells(cells.data, replace(PREPROCESSING, mean=(0.5, 0.5, 0.5)))
    assert file(these=other) != first
    with torch.no_grad():
        network.get_buffer("features.norm0.running_mean").add_(1e-3)
    assert file() != first


def test_damaged_features_are_computed_again_and_said_so(
    network: nn.Module, cells: FramedCells, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, expected = _kept(network, cells)
    path = max(folder.glob("*.npy"))
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 255]) + content[-8:])
    capsys.readouterr()
    _, again = _kept(network, cells)
    assert capsys.readouterr().err == f"{path}: damaged; it is made again\n"
    assert np.array_equal(again, expected)


def test_a_full_disk_is_said_before_the_long_work(
    network: nn.Module, cells: FramedCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(LeukoscopeError) as refused:
        _kept(network, cells)
    assert str(refused.value) == (
        f"{cache_root()}: cannot keep the frozen backbone's features there (No space left on device); "
        "free some space or set LEUKOSCOPE_CACHE to another folder"
    )


# Models of timm with their own head


def test_a_network_whose_last_layer_sees_other_features_learns_on_pixels(cells: FramedCells) -> None:
    picture = torch.rand(1, 3, 32, 32)
    for architecture in ("test_vit", "test_convnext", "test_efficientnet", "test_resnet"):
        recipe = replace(timm_recipe(architecture, "--recipe"), image_size=32)
        assert features_suffice(build_network(recipe, 2), picture), architecture
    # It pools the feature maps' channels away.
    small: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "global_attn_indexes": ()}
    segment_anything = timm.create_model("samvit_base_patch16", num_classes=2, **small)
    assert segment_anything(picture).shape == (1, 2)
    assert not features_suffice(segment_anything, picture)


# Cells come to the network a batch at a time


def _rows(cells: FramedCells) -> CellDataset:
    inputs = PixelInputs(cells, PREPROCESSING, Augmenter(Augmentation(), "black", seed=0))
    return CellDataset(inputs, cells.labels, np.arange(len(cells.labels))[::-1].copy())


def _accelerator(recipe: Recipe = RECIPE) -> Accelerator:
    return make_accelerator(TrainingConfig(run=RunArguments(mixed_precision="no")), recipe)


def test_batches_hold_the_cells_of_their_rows(own_cells: Path) -> None:
    cells = frame_cells(load_cells("imagefolder", str(own_cells)), PREPROCESSING)
    loader = prediction_loader(_rows(cells), 10, _accelerator())
    batches = list(loader)
    assert [len(rows) for _, _, rows in batches] == [10, 10, 10, 2]
    for items, labels, rows in batches:
        assert (items.shape[1:], items.dtype) == ((3, 32, 32), torch.uint8)
        assert np.array_equal(items.permute(0, 2, 3, 1).numpy(), cells.pixels[rows.numpy()])
        assert np.array_equal(labels.numpy(), cells.labels[rows.numpy()])
    assert torch.cat([rows for _, _, rows in batches]).tolist() == list(range(31, -1, -1))


# Subject-balanced epochs: who is shown how often, and in which order

# Class 0: a has 60 cells, b 6; class 1: c has 30, d 3, e 1.
SUBJECTS = ["a"] * 60 + ["b"] * 6 + ["c"] * 30 + ["d"] * 3 + ["e"]
LABELS = np.asarray([0] * 66 + [1] * 34)


def epoch(number: int, seed: int = 0) -> list[int]:
    sampler = SubjectBalancedSampler(LABELS, SUBJECTS, seed, size=len(LABELS))
    sampler.set_epoch(number)
    return list(sampler)


def test_classes_and_their_subjects_are_shown_equally_often() -> None:
    shown = epoch(0)
    assert len(shown) == len(LABELS)
    assert Counter(LABELS[shown].tolist()) == {0: 50, 1: 50}
    by_subject = Counter(SUBJECTS[i] for i in shown)
    assert (by_subject["a"], by_subject["b"]) == (25, 25)
    assert sorted(by_subject[s] for s in "cde") == [16, 17, 17]


@pytest.mark.parametrize(("cells", "size"), [(100, 10), (100, 250), (1, 1), (2, 2), (3, 3)])
def test_an_epoch_has_the_size_asked_for(cells: int, size: int) -> None:
    sampler = SubjectBalancedSampler(LABELS[-cells:], SUBJECTS[-cells:], 0, size=size)
    assert len(list(sampler)) == len(sampler) == size


def test_a_subjects_cells_take_turns() -> None:
    shown = Counter(epoch(0))
    assert set(shown[i] for i in range(60)) == {0, 1}, "25 of 60: none twice"
    assert {shown[i] for i in range(60, 66)} == {4, 5}, "25 among 6: four rounds and one more"


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch(3) == epoch(3)
    assert epoch(3) != epoch(4)
    assert epoch(3) != epoch(3, seed=1)


def test_cells_without_a_subject_share_one_turn_within_their_class() -> None:
    sampler = SubjectBalancedSampler(np.asarray([0, 0, 1, 1]), ["", "", "", ""], 0, size=4)
    assert Counter(sampler) == {0: 1, 1: 1, 2: 1, 3: 1}
