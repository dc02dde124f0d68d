"""What a recipe sets for the epochs: loss, rate, selection; and that our recipes train as a plain loop does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import nn
from transformers import get_scheduler

from leukoscope.data.augmentation import Augmentation, Augmenter
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import make_split
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe, get_recipe
from leukoscope.models.weights import classifier_parameters, load_release, round_as_stored, save_release
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.data import FeatureInputs, preprocessing_for
from leukoscope.training.losses import training_frequencies
from leukoscope.training.train import make_accelerator
from leukoscope.training.trainer import Trainer, keep_depthwise_float32, parameter_groups

PREPROCESSING = Preprocessing(32, 1.0)
RECIPE = Recipe(
    name="small",
    architecture="test_resnet",
    base_model="",
    image_size=32,
    num_train_epochs=3,
    train_batch_size=8,
    learning_rate=0.01,
    head_learning_rate=0.02,
    label_smoothing=0.0,
    drop_rate=0.0,
    class_weighted=False,
    schedule="constant",
)
# Without batch normalisation, so that two batches of 4 weigh as one of 8.
WITHOUT_BATCH_NORM = replace(RECIPE, architecture="test_vit")
MakeTrainer = Callable[..., Trainer]
SelectedBy = Literal["val_loss", "val_accuracy", "val_balanced_accuracy"]


class SGDTrainer(Trainer):
    """Moves weights in proportion to their gradients, which AdamW does not."""

    def create_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameter_groups(self.network, self.recipe), momentum=0.9)


@pytest.fixture
def cells(own_cells: Path) -> FramedCells:
    # An uneven set: two thirds of the cells are ALL.
    for subject in range(8):
        (own_cells / "HEM" / f"HEM{subject}_1.png").unlink()
    data = load_cells("imagefolder", str(own_cells), subject_pattern=r"/(?P<subject>\w+)_", image_size=64)
    return frame_cells(data, PREPROCESSING)


@pytest.fixture
def trainer_for(cells: FramedCells) -> MakeTrainer:
    """A trainer for a recipe's network on a few cells, with the flags of a run."""

    def make(
        recipe: Recipe,
        *,
        split: str = "subject",
        trainer_class: type[Trainer] = Trainer,
        of: FramedCells = cells,
        **flags: Any,
    ) -> Trainer:
        config = TrainingConfig(run=RunArguments(**{"mixed_precision": "no", **flags}))
        set_seed(config.run.seed)
        accelerator = make_accelerator(config, recipe)
        network = build_network(recipe, 2)
        sides = make_split(of.data, split)
        return trainer_class(accelerator, network, of, sides, recipe, seed=config.run.seed)

    return make


def _scripted(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, **columns: list[float]
) -> list[dict[str, torch.Tensor]]:
    """Prescribe the validation metrics of each epoch; returns the weights that each of them was given for."""
    seen: list[dict[str, torch.Tensor]] = []

    def validate() -> dict[str, float]:
        seen.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
        return {name: values[len(seen) - 1] for name, values in columns.items()}

    monkeypatch.setattr(trainer, "_validate", validate)
    return seen


# Precision


def test_depthwise_convolutions_compute_in_float32_under_autocast() -> None:
    depthwise, pointwise = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1)
    keep_depthwise_float32(nn.Sequential(depthwise, pointwise))
    picture = torch.zeros(1, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert depthwise(picture.bfloat16()).dtype is torch.float32
        assert pointwise(depthwise(picture)).dtype is torch.bfloat16, "autocast goes on behind it"
        with pytest.raises(RuntimeError, match="expected input"):
            depthwise(torch.zeros(1, 3, 8, 8))
        assert pointwise(picture).dtype is torch.bfloat16, "also after an error"
    assert pointwise(depthwise(picture)).dtype is torch.float32, "outside of autocast nothing changes"


# What is measured is what is released


def test_answers_are_those_of_the_release_in_float32_though_training_was_in_bf16(
    trainer_for: MakeTrainer, cells: FramedCells, tmp_path: Path
) -> None:
    """Answers of half precision, or of weights that are rounded only when they are saved, are another network's."""
    trainer = trainer_for(RECIPE, split="all", mixed_precision="bf16")
    network = trainer.network
    list(trainer.fit())
    round_as_stored(network)
    ids = tuple(cells.data.train["cell_id"])
    answers = trainer.predict(ids)

    folder = save_release(
        tmp_path / "release", network, architecture="test_resnet", labels=("ALL", "HEM"), preprocessing=PREPROCESSING,
        metrics={},
    )  # fmt: skip
    released = load_release(folder).network
    order = [cells.row_of[cell] for cell in answers.cell_ids]
    pixels = torch.from_numpy(np.ascontiguousarray(cells.pixels[order].transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        expected = released(PREPROCESSING.normalise(pixels)).softmax(dim=1).numpy()
    assert np.abs(answers.probabilities - expected).max() < 1e-6


def test_features_computed_once_are_those_of_the_release(trainer_for: MakeTrainer, cells: FramedCells) -> None:
    still = Augmentation(0.0, 0.0, 0.0, 0.0, rotation=0.0, flips="none")
    densenet: dict[str, Any] = {"architecture": "densenet121", "block_config": (1, 1), "pooled_norm": True}
    recipe = replace(RECIPE, **densenet, frozen=("backbone",), augmentation=still)
    trainer = trainer_for(recipe, split="all")
    network = trainer.network
    list(trainer.fit())
    assert isinstance(trainer.inputs, FeatureInputs)
    ids = tuple(cells.data.train["cell_id"])
    head = {k: v.clone() for k, v in network.get_submodule("classifier").state_dict().items()}
    before = trainer.predict(ids)
    round_as_stored(network)
    network.get_submodule("classifier").load_state_dict(head)
    pixels = torch.from_numpy(np.ascontiguousarray(cells.pixels[cells.rows(before.cell_ids)].transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        expected = network.eval()(PREPROCESSING.normalise(pixels)).softmax(dim=1).numpy()
    assert np.abs(before.probabilities - expected).max() < 1e-6


# Our recipes


def test_our_recipe_learns_bit_exactly_what_this_plain_loop_learns(
    trainer_for: MakeTrainer, cells: FramedCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: dict[str, Any] = {"block_config": (2, 2, 2, 2), "image_size": 32, "train_batch_size": 8}
    recipe = replace(get_recipe("densenet121"), **small, num_train_epochs=2, drop_rate=0.0, sampling="cells")
    trainer, batches = trainer_for(recipe, split="all"), []
    augmented = Augmenter.__call__

    def recorded(augment: Augmenter, pixels: torch.Tensor, rows: list[int], epoch: int) -> torch.Tensor:
        batches.append((rows, epoch))
        return augmented(augment, pixels, rows, epoch)

    monkeypatch.setattr(Augmenter, "__call__", recorded)
    ours, twin = trainer.network, build_network(recipe, 2)
    twin.load_state_dict(ours.state_dict())
    list(trainer.fit())
    monkeypatch.undo()

    head = {id(p) for p in classifier_parameters(twin)}
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for p in twin.parameters():
        groups.setdefault((1e-3 if id(p) in head else 2e-4, 0.05 if p.ndim > 1 else 0.0), []).append(p)
    settings = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    optimizer = torch.optim.AdamW(settings, fused=True)
    schedule = get_scheduler("cosine", optimizer, round(0.1 * len(batches)), len(batches))
    counts = torch.bincount(torch.from_numpy(cells.labels)).float()
    augment = Augmenter(recipe.augmentation, cells.data.info.background, seed=0)
    twin.train()
    for rows, epoch in batches:
        pixels = torch.from_numpy(cells.pixels[rows]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(cells.labels[rows])
        logits = twin(PREPROCESSING.normalise(augment(pixels, rows, epoch)))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.05, reduction="none")
        (loss * (counts.sum() / (2 * counts))[labels]).mean().backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    assert len(batches) == 2 * (len(cells.labels) // 8)
    for (name, one), other in zip(ours.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_early_layers_that_are_frozen_record_no_gradients(trainer_for: MakeTrainer) -> None:
    early = get_recipe("densenet201").frozen
    small: dict[str, Any] = {"block_config": (2, 2, 2, 2), "image_size": 32, "train_batch_size": 8}
    recipe = replace(get_recipe("densenet121"), **small, frozen=early, num_train_epochs=1)
    trainer = trainer_for(recipe, split="all")
    network = trainer.network
    seen: list[tuple[bool, bool]] = []
    last = network.get_submodule("features.transition2")
    last.register_forward_hook(lambda module, _, output: seen.append((module.training, output.requires_grad)))
    before = {k: v.clone() for k, v in last.state_dict().items()}
    list(trainer.fit())
    assert seen
    assert set(seen) == {(False, False)}, "in eval mode, with nothing to differentiate below it"
    assert all(torch.equal(v, last.state_dict()[k]) for k, v in before.items())


# The loss


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_validation_loss_is_the_training_loss_on_those_cells(trainer_for: MakeTrainer, ema_decay: float) -> None:
    recipe = replace(RECIPE, label_smoothing=0.1, num_train_epochs=1, ema_decay=ema_decay)
    trainer = trainer_for(recipe)
    (row,) = trainer.fit()
    answers = trainer.predict(trainer.split.validation)
    logs, truth = np.log(answers.probabilities), answers.references
    own, both = logs[np.arange(len(truth)), truth], logs.mean(axis=1)
    expected = float(-(0.9 * own + 0.1 * both).mean())
    assert row["val_loss"] == pytest.approx(expected, abs=1e-4)
    assert row["val_accuracy"] == pytest.approx((answers.predicted == truth).mean(), abs=1e-4)


def test_only_a_class_weighted_loss_is_weighted(trainer_for: MakeTrainer, cells: FramedCells) -> None:
    labels, logits = torch.tensor([0, 1]), torch.tensor([[0.3, -0.2], [0.3, -0.2]])
    each = F.cross_entropy(logits, labels, reduction="none")
    weights = len(cells.labels) / (2 * torch.bincount(torch.from_numpy(cells.labels)).float())
    for weighted, expected in ((True, (each * weights).mean()), (False, each.mean())):
        recipe = replace(RECIPE, class_weighted=weighted)
        trainer = trainer_for(recipe, split="all")
        torch.testing.assert_close(trainer.loss(logits, labels), expected)
        shares = torch.bincount(torch.from_numpy(cells.labels)) / len(cells.labels)
        presumed = torch.full((2,), 0.5) if weighted else shares
        torch.testing.assert_close(training_frequencies(recipe, trainer.loss.class_counts), presumed)


def test_classes_sampled_equally_are_not_weighted_too(trainer_for: MakeTrainer) -> None:
    recipe = replace(RECIPE, sampling="subjects", class_weighted=True)
    loss = trainer_for(recipe, split="all").loss
    assert loss.class_weights.tolist() == [1.0, 1.0]
    assert training_frequencies(recipe, loss.class_counts).tolist() == [0.5, 0.5]


def test_balanced_epochs_show_every_class_equally_often(
    trainer_for: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, sampling="subjects", train_batch_size=4, num_train_epochs=4)
    trainer = trainer_for(recipe, split="all")
    shown: list[int] = []
    fed = trainer._step

    def noted(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        shown.extend(labels.tolist())
        return fed(inputs, labels)

    monkeypatch.setattr(trainer, "_step", noted)
    list(trainer.fit())
    classes = np.bincount(shown)
    assert abs(classes[0] - classes[1]) <= 0.1 * len(shown), "though two thirds of the cells are ALL"


def test_the_mean_of_the_weights_is_what_is_judged_kept_and_released(
    trainer_for: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, ema_decay=0.99, num_train_epochs=2, train_batch_size=4)
    trainer = trainer_for(recipe)
    network = trainer.network
    judged: list[torch.Tensor] = []
    validate = trainer._validate

    def seen() -> dict[str, float]:
        assert trainer.state.eval_network is not network
        assert trainer.state.average and trainer.state.average.get_decay(2) < 0.5, "start weights are soon forgotten"
        judged.append(trainer.state.eval_network.get_parameter("fc.weight").detach().clone())
        return validate()

    monkeypatch.setattr(trainer, "_validate", seen)
    course = trainer.fit()
    next(course)
    assert not torch.equal(judged[0], network.get_parameter("fc.weight")), "the learner is ahead of the mean"
    list(course)
    assert torch.equal(network.get_parameter("fc.weight"), judged[trainer.select_epoch().epoch - 1])
    assert trainer.state.eval_network is network


@pytest.mark.parametrize(("limit", "clipped"), [(None, False), (1e-6, True)])
def test_gradients_are_clipped_only_where_the_recipe_says_so(
    trainer_for: MakeTrainer, limit: float | None, clipped: bool
) -> None:
    recipe = replace(RECIPE, weight_decay=0.0, max_grad_norm=limit, num_train_epochs=1)
    trainer = trainer_for(recipe, split="all", trainer_class=SGDTrainer)
    network = trainer.network
    before = network.get_parameter("fc.weight").detach().clone()
    list(trainer.fit())
    moved = float((network.get_parameter("fc.weight") - before).detach().abs().max())
    assert (moved < 1e-6) is clipped


# Several batches per step


def test_a_step_of_several_batches_learns_from_their_mean(trainer_for: MakeTrainer, cells: FramedCells) -> None:
    recipe = replace(WITHOUT_BATCH_NORM, num_train_epochs=3, class_weighted=True)
    networks = []
    for batch, steps in ((8, 1), (4, 2)):
        its = replace(recipe, train_batch_size=batch)
        trainer = trainer_for(its, split="all", trainer_class=SGDTrainer, gradient_accumulation_steps=steps)
        networks.append(trainer.network)
        rows = list(trainer.fit())
        assert trainer.steps_per_epoch == len(cells.labels) // 8
        assert len(rows) == 3
    for (name, one), other in zip(networks[0].state_dict().items(), networks[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_batches_that_fill_no_step_are_left_out(trainer_for: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(replace(RECIPE, train_batch_size=4), split="all", gradient_accumulation_steps=4)
    seen: list[int] = []
    step = trainer._step

    def noted(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(len(labels))
        return step(inputs, labels)

    monkeypatch.setattr(trainer, "_step", noted)
    list(trainer.fit())
    assert seen == [4] * 4 * 3, "of six batches the last two would make half a step"


# Speed


def test_an_epoch_says_how_fast_it_was(trainer_for: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    augmented = Augmenter.__call__

    def slowly(augment: Augmenter, pixels: torch.Tensor, rows: list[int], epoch: int) -> torch.Tensor:
        time.sleep(0.2)
        return augmented(augment, pixels, rows, epoch)

    monkeypatch.setattr(Augmenter, "__call__", slowly)
    trainer = trainer_for(replace(RECIPE, num_train_epochs=2), split="all")
    for row in trainer.fit():
        assert row["images_per_second"] == pytest.approx(24 / row["seconds"], rel=0.2)


# The rate, and what is kept


@pytest.mark.parametrize(("selected_by", "kept"), [("val_loss", 2), ("val_accuracy", 1), ("val_balanced_accuracy", 3)])
def test_the_recipe_says_which_metric_picks_the_epoch(
    trainer_for: MakeTrainer, monkeypatch: pytest.MonkeyPatch, selected_by: SelectedBy, kept: int
) -> None:
    trainer = trainer_for(replace(RECIPE, selected_by=selected_by))
    seen = _scripted(
        trainer,
        monkeypatch,
        val_loss=[0.5, 0.3, 0.4],
        val_accuracy=[0.9, 0.7, 0.8],
        val_balanced_accuracy=[0.6, 0.7, 0.8],
    )
    network = trainer.network
    list(trainer.fit())
    assert trainer.select_epoch().epoch == kept
    assert all(torch.equal(v, seen[kept - 1][k]) for k, v in network.state_dict().items())


def test_pixels_are_standardised_as_the_recipe_says(cells: FramedCells) -> None:
    recipe = replace(RECIPE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    preprocessing = preprocessing_for(recipe, cells.data)
    assert (preprocessing.mean, preprocessing.std) == (recipe.mean, recipe.std)
    white = preprocessing.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert white.min() == white.max() == 1
