"""What a recipe sets for the epochs: loss, rate, selection; and that our recipes train as a plain loop does."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import get_scheduler

from leukoscope.data.augmentation import Augmenter
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.metrics import measure
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe, get_recipe
from leukoscope.models.weights import classifier_parameters, training_frequencies
from leukoscope.training.data import preprocessing_for
from leukoscope.training.optimization import keep_depthwise_float32, make_scheduler, parameter_groups
from leukoscope.training.selection import best_epoch
from leukoscope.training.trainer import Trainer
from trainers import MakeTrainer, scripted_validation

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


# Our recipes


def test_our_recipe_learns_bit_exactly_what_this_plain_loop_learns(
    trainer_for: MakeTrainer, cells: FramedCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: dict[str, Any] = {"block_config": (2, 2, 2, 2), "image_size": 32, "train_batch_size": 8, "drop_rate": 0.0}
    recipe = replace(get_recipe("densenet121"), **small, num_train_epochs=2, sampling="cells", max_grad_norm=0.5)
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
    norms = list[torch.Tensor]()
    for rows, epoch in batches:
        pixels = torch.from_numpy(cells.pixels[rows]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(cells.labels[rows])
        logits = twin(PREPROCESSING.normalise(augment(pixels, rows, epoch)))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.05, reduction="none")
        (loss * (counts.sum() / (2 * counts))[labels]).mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    assert len(batches) == 2 * (len(cells.labels) // 8) and max(norms) > 0.5, "gradients were clipped"
    for (name, one), other in zip(ours.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


# The loss


def test_validation_loss_is_the_training_loss_on_those_cells(trainer_for: MakeTrainer) -> None:
    recipe = replace(RECIPE, label_smoothing=0.1, num_train_epochs=1, ema_decay=0.9)
    trainer = trainer_for(recipe)
    (row,) = trainer.fit()
    answers = trainer.predict(trainer.split.validation)
    logs, truth = np.log(answers.probabilities), answers.references
    own, both = logs[np.arange(len(truth)), truth], logs.mean(axis=1)
    expected = float(-(0.9 * own + 0.1 * both).mean())
    assert row["val_loss"] == pytest.approx(expected, abs=1e-4)
    assert row["val_accuracy"] == pytest.approx((answers.predicted == truth).mean(), abs=1e-4)


def test_with_consistency_classes_are_learnt_from_cells_as_they_are_and_augmented_ones_get_the_same_logits(
    trainer_for: MakeTrainer,
) -> None:
    recipe = replace(WITHOUT_BATCH_NORM, num_train_epochs=1, consistency=0.7)
    trainer = trainer_for(recipe, split="all")
    items, labels, rows = next(iter(trainer.loader))
    inputs, unchanged = trainer.inputs.for_training(items, rows, 0), trainer.inputs.for_prediction(items)
    with torch.no_grad():
        logits, of_unchanged = trainer.model(inputs), trainer.model(unchanged)
    loss, accuracy = trainer._step(inputs, labels, unchanged)
    expected = F.cross_entropy(of_unchanged, labels) + 0.7 * ((logits - of_unchanged) ** 2).sum(dim=1).mean()
    assert float((logits - of_unchanged).abs().max()) > 1e-3, "augmentation changes the logits"
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(accuracy, (of_unchanged.argmax(dim=1) == labels).float().mean())


@pytest.mark.parametrize(
    ("weighted", "sampling", "presumed"),
    [(True, "cells", [1 / 2, 1 / 2]), (False, "cells", [2 / 3, 1 / 3]), (True, "subjects", [1 / 2, 1 / 2])],
)
def test_only_a_class_weighted_loss_over_cells_as_they_are_is_weighted(
    trainer_for: MakeTrainer, weighted: bool, sampling: Any, presumed: list[float]
) -> None:
    recipe = replace(RECIPE, class_weighted=weighted, sampling=sampling)
    trainer, labels, logits = trainer_for(recipe, split="all"), torch.tensor([0, 1]), torch.tensor([[0.3, -0.2]] * 2)
    weights = torch.tensor([0.75, 1.5] if weighted and sampling == "cells" else [1.0, 1.0])
    expected = (F.cross_entropy(logits, labels, reduction="none") * weights).mean()
    torch.testing.assert_close(trainer.compute_loss(logits, labels, trainer.network), expected)
    torch.testing.assert_close(training_frequencies(recipe, trainer.class_counts), torch.tensor(presumed))


def test_balanced_epochs_show_every_class_equally_often(trainer_for: MakeTrainer) -> None:
    trainer = trainer_for(replace(RECIPE, sampling="subjects", train_batch_size=4), split="all")
    shown = [int(label) for _ in range(4) for _, labels, _ in trainer.loader for label in labels]
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


# The figures of an epoch


def test_an_epoch_is_measured_on_all_validation_cells_by_subject(trainer_for: MakeTrainer) -> None:
    trainer = trainer_for(replace(RECIPE, num_train_epochs=1))
    (row,) = trainer.fit()
    predictions = trainer.predict(trainer.split.validation)
    assert sorted(predictions.cell_ids) == sorted(trainer.split.validation)
    metrics = measure(predictions)
    for name in ("balanced_accuracy", "balanced_accuracy_by_subject", "auroc_by_subject"):
        assert row[f"val_{name}"] == round(metrics[name], 5)


def test_an_epochs_line_fits_a_terminal(trainer_for: MakeTrainer, capsys: pytest.CaptureFixture[str]) -> None:
    list(trainer_for(replace(RECIPE, num_train_epochs=1)).fit())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1/1: train_loss ")]
    assert "val_balanced_accuracy" in line and len(line) <= 80


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


def test_batches_that_fill_no_step_are_left_out(trainer_for: MakeTrainer) -> None:
    trainer = trainer_for(replace(RECIPE, train_batch_size=4), split="all", gradient_accumulation_steps=4)
    seen = [len(labels) for _, labels, _ in trainer.loader]
    assert seen == [4] * 4, "of six batches the last two would make half a step"


# Speed


def test_an_epoch_says_how_fast_it_was(trainer_for: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    augmented = Augmenter.__call__

    def slowly(augment: Augmenter, pixels: torch.Tensor, rows: list[int], epoch: int) -> torch.Tensor:
        time.sleep(0.2)
        return augmented(augment, pixels, rows, epoch)

    monkeypatch.setattr(Augmenter, "__call__", slowly)
    (row,) = trainer_for(replace(RECIPE, num_train_epochs=1), split="all").fit()
    assert row["images_per_second"] == pytest.approx(24 / row["seconds"], rel=0.2)


# The rate, and what is kept


@pytest.mark.parametrize(("selected_by", "kept"), [("val_loss", 2), ("val_accuracy", 1), ("val_balanced_accuracy", 3)])
def test_the_recipe_says_which_metric_picks_the_epoch_and_training_stops_when_patience_ends(
    trainer_for: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    selected_by: SelectedBy,
    kept: int,
) -> None:
    trainer = trainer_for(replace(RECIPE, selected_by=selected_by, early_stopping_patience=2, num_train_epochs=9))
    seen = scripted_validation(
        trainer,
        monkeypatch,
        val_loss=[0.5, 0.3, 0.4, 0.5, 0.6],
        val_accuracy=[0.9, 0.7, 0.8, 0.8, 0.8],
        val_balanced_accuracy=[0.6, 0.7, 0.8, 0.7, 0.7],
    )
    assert len(list(trainer.fit())) == kept + 2, "two epochs after the best one it stops"
    assert trainer.select_epoch().epoch == kept
    assert all(torch.equal(v, seen[kept - 1][k]) for k, v in trainer.network.state_dict().items())
    said = capsys.readouterr().out
    assert "no better validation score for 2 epochs: stopped" in said and f"kept epoch {kept}: {selected_by} 0." in said


def test_pixels_are_standardised_as_the_recipe_says(cells: FramedCells) -> None:
    recipe = replace(RECIPE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    preprocessing = preprocessing_for(recipe, cells.data)
    assert (preprocessing.mean, preprocessing.std) == (recipe.mean, recipe.std)


def test_head_and_backbone_learn_at_their_own_rates_and_what_is_frozen_is_left_out() -> None:
    """Its BatchNorm is as new as the last layer. That biases and norms do not decay, the plain loop proves."""
    recipe = replace(RECIPE, architecture="densenet121", block_config=(1, 1), pooled_norm=True)
    network = build_network(recipe, 2)
    network.get_submodule("features.conv0").requires_grad_(False)
    rates = {id(p): group["lr"] for group in parameter_groups(network, recipe) for p in group["params"]}
    of_head = {id(p): 0.02 for p in network.get_submodule("classifier").parameters()}
    of_body = {id(p): 0.01 for n, p in network.named_parameters() if n.startswith("features.") and "conv0" not in n}
    assert rates == of_head | of_body


def test_a_row_names_the_rate_that_the_last_step_of_its_epoch_used(
    trainer_for: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(replace(RECIPE, schedule="cosine", num_train_epochs=2), split="all")
    step = trainer._step
    rates: list[float] = []

    def noted(*batch: Any) -> torch.Tensor:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return step(*batch)

    monkeypatch.setattr(trainer, "_step", noted)
    rows = list(trainer.fit())
    assert [row["learning_rate"] for row in rows] == [rates[trainer.steps_per_epoch - 1], rates[-1]]
    assert rates[0] != rates[-1] > 0


# The learning rate's course: a cosine with a share of warm-up is the plain loop's


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"schedule": "linear", "warmup_steps": 2}, [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ({"schedule": "constant_with_warmup", "warmup_share": 0.5}, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ({"schedule": "constant"}, [1] * 6),
    ],
)
def test_every_rate_follows_the_schedule_and_its_warm_up(settings: dict[str, Any], shares: list[float]) -> None:
    groups = [{"params": [torch.zeros(1)], "lr": 0.1}, {"params": [torch.zeros(1)], "lr": 0.4}]
    optimizer, rates = torch.optim.SGD(groups, lr=0.1), []
    schedule = make_scheduler(optimizer, replace(RECIPE, **settings), 6)
    for _ in range(6):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert np.allclose(rates, np.outer(shares, (0.1, 0.4)))


# Which epoch is kept, and the moment to stop


@pytest.mark.parametrize(
    ("patience", "scores", "kept", "stops"),
    [
        (2, (0.5, 0.7, 0.7, 0.6), [1, 2, 3, 3], [False, False, False, True]),  # the last of equal ones is kept
        (2, (0.5, 0.5, 0.5, 0.5), [1, 2, 3, 4], [False, False, True, True]),  # which are no gain to wait for
        (2, (0.5, 0.6, 0.4, 0.65, 0.6, 0.6), [1, 2, 2, 4, 4, 4], [False] * 5 + [True]),
        (3, (float("nan"), 0.1, float("nan")), [0, 2, 2], [False] * 3),
    ],
)
def test_the_best_epoch_is_kept_and_training_stops_after_epochs_without_gain(
    patience: int, scores: tuple[float, ...], kept: list[int], stops: list[bool]
) -> None:
    rows = [{"epoch": n + 1, "val_accuracy": score} for n, score in enumerate(scores)]
    selected = [best_epoch(rows[: n + 1], "val_accuracy", patience) for n in range(len(rows))]
    assert [one.epoch for one in selected] == kept
    reason = f"no better validation score for {patience} epochs"
    assert [one.stop_reason for one in selected] == [reason * stop for stop in stops]


def test_a_metric_by_subject_gives_way_to_its_pooled_form() -> None:
    pooled = {"epoch": 1, "val_balanced_accuracy": 0.9}
    by_subject = pooled | {"val_balanced_accuracy_by_subject": 0.5}
    wanted = "val_balanced_accuracy_by_subject"
    assert best_epoch([pooled], wanted, 3).watched == "val_balanced_accuracy"
    assert best_epoch([by_subject], wanted, 3).watched == wanted
