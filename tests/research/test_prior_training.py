"""How prior systems are trained: optimiser, penalty, plateau and PreciseBN, beside what `Trainer` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.models.recipes import get_recipe
from leukoscope.training.checkpoint import Checkpoints
from leukoscope.training.data import Inputs
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import RunFolder
from leukoscope.training.trainer import Trainer
from research.prior_networks import build_prior, penalty
from research.prior_recipes import Head, Hidden, Penalty, Plateau, PriorRecipe
from research.prior_training import PriorTrainer, follow_plateau, make_optimizer, recompute_batch_norm
from trainers import MakeTrainer, scripted_validation

Optimizer = Literal["adamw", "adam", "adamax", "sgd"]
RECIPE = PriorRecipe(
    name="small",
    architecture="test_resnet",
    base_model="",
    image_size=32,
    num_train_epochs=3,
    train_batch_size=8,
    learning_rate=0.01,
    head_learning_rate=0.02,
    weight_decay=0.5,
    label_smoothing=0.0,
    head=Head(hidden=(Hidden(8),)),
    class_weighted=False,
    schedule="constant",
)
IDENTITY = RunIdentity({}, {})


@pytest.fixture
def trainer_for(trainer_for: MakeTrainer) -> MakeTrainer:
    return partial(trainer_for, build=build_prior, trainer_class=PriorTrainer)


# The optimiser


@pytest.mark.parametrize(
    ("name", "kind", "numbers"),
    [
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "fused": True}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "amsgrad": False, "fused": True}),
        ("adamax", torch.optim.Adamax, {"betas": (0.9, 0.999)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": False, "fused": True}),
    ],
)
def test_a_recipe_names_its_optimiser(name: Optimizer, kind: type, numbers: dict[str, object]) -> None:
    optimizer = make_optimizer(build_prior(RECIPE, 2), replace(RECIPE, optimizer=name))
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {key: group[key] for key in numbers} == numbers


@pytest.mark.parametrize(("name", "spares"), [("adamw", True), ("adam", False), ("adamax", False), ("sgd", False)])
def test_adamw_spares_biases_and_norms_and_the_others_decay_everything(name: Optimizer, spares: bool) -> None:
    network = build_prior(RECIPE, 2)
    groups = make_optimizer(network, replace(RECIPE, optimizer=name)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for parameter in network.parameters():
        assert decay[id(parameter)] == (0.0 if spares and parameter.ndim == 1 else 0.5)


# The loss


def test_training_and_validation_loss_hold_the_penalty(trainer_for: MakeTrainer) -> None:
    recipe = replace(RECIPE, penalty=Penalty(weight_l2=0.5, bias_l1=0.25), num_train_epochs=1)
    trainer = trainer_for(recipe)
    (row,) = trainer.fit()
    predictions = trainer.predict(trainer.split.validation)
    own = np.log(predictions.probabilities)[np.arange(len(predictions.references)), predictions.references]
    strength = float(penalty(trainer.network, recipe).detach())
    assert strength > 0.1 and row["val_loss"] == pytest.approx(float(-own.mean()) + strength, abs=1e-4)
    assert row["train_loss"] > strength


def test_recomputed_statistics_are_those_of_the_ema(trainer_for: MakeTrainer, cells: FramedCells) -> None:
    recipe = replace(RECIPE, ema_decay=0.9, batch_norm_cells=16, num_train_epochs=2)
    trainer = trainer_for(recipe, split="all")
    list(trainer.fit())
    network = trainer.network
    kept = network.get_buffer("backbone.bn1.running_mean").clone()
    rows = cells.rows(trainer.split.train)
    spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), 16)).astype(int)]
    recompute_batch_norm(network.train(), trainer.inputs, spread, trainer.accelerator, recipe.train_batch_size)
    torch.testing.assert_close(network.get_buffer("backbone.bn1.running_mean"), kept, rtol=1e-3, atol=1e-4)


def test_a_plateau_cuts_every_rate_stops_and_restores_its_best_epoch(
    trainer_for: MakeTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(RECIPE, num_train_epochs=9, plateau=Plateau("val_accuracy", 0.5, patience=1, stop_patience=2))
    trainer = trainer_for(replace(recipe, early_stopping_patience=1))
    seen = scripted_validation(trainer, monkeypatch, val_accuracy=[0.6, 0.5, 0.8, 0.8, 0.7, 0.9], val_loss=[1.0] * 6)
    rows = list(trainer.fit())
    assert [row["learning_rate"] for row in rows] == [0.01, 0.01, 0.005, 0.005, 0.0025]
    assert (len(rows), trainer.select_epoch().epoch) == (5, 3)
    assert all(torch.equal(v, seen[2][k]) for k, v in trainer.network.state_dict().items())
    said = capsys.readouterr().out
    assert "2 cuts of the learning rate brought no gain: stopped" in said
    assert "kept epoch 3: val_accuracy 0.800" in said


def test_a_plateau_needs_validation_cells(trainer_for: MakeTrainer) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        trainer_for(replace(RECIPE, plateau=Plateau()), split="all")
    assert str(refused.value) == (
        "--recipe small: its learning rate follows the validation cells and split all (every cell trains) has none; "
        "leave out --no_validation or choose another --split"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd", "selected_by": "val_loss"},
        {"optimizer": "adamax", "plateau": Plateau("val_loss", 0.5, 1, 9)},
    ],
    ids=["sgd", "adamax with a plateau"],
)
def test_a_killed_run_resumes_bit_exactly(trainer_for: MakeTrainer, tmp_path: Path, change: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **change)
    whole = trainer_for(recipe)
    rows = list(whole.fit())
    assert ("momentum" in whole.optimizer.param_groups[0]) == (recipe.optimizer == "sgd")
    next(trainer_for(recipe, checkpoints=Checkpoints(RunFolder(tmp_path))).fit())
    checkpoints = Checkpoints(RunFolder(tmp_path))
    checkpoints.resume()
    resumed = trainer_for(recipe, checkpoints=checkpoints)
    columns = ("train_loss", "val_loss", "learning_rate")
    assert [[row[k] for k in columns] for row in resumed.fit()] == [[row[k] for k in columns] for row in rows]
    assert resumed.select_epoch() == whole.select_epoch()
    after = resumed.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in whole.network.state_dict().items())


def test_a_recipe_of_the_core_trains_as_with_its_own_trainer(trainer_for: MakeTrainer) -> None:
    small: dict[str, Any] = {"block_config": (1, 1), "image_size": 32, "train_batch_size": 8, "num_train_epochs": 1}
    recipe = replace(get_recipe("densenet121"), **small)
    trainers = [trainer_for(recipe, split="all", trainer_class=kind) for kind in (PriorTrainer, Trainer)]
    for trainer in trainers:
        set_seed(0)
        list(trainer.fit())
    ours, theirs = (trainer.network.state_dict() for trainer in trainers)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# The plateau, walked epoch by epoch


@dataclass
class Walk:
    """A scripted course: train accuracy, the monitored value, and what must follow from each epoch."""

    plateau: Plateau
    rows: list[tuple[float, float]]
    improved: str
    rates: list[float]
    stops: bool = True


NAN = float("nan")
ACCURACY = Plateau("val_accuracy", factor=0.5, patience=1, stop_patience=3)
LOSS = Plateau("val_loss", factor=0.1, patience=2, stop_patience=2)
SYSTEM_E = Plateau("val_loss", factor=0.5, patience=1, stop_patience=3, until_train_accuracy=0.9)

WALKS = {
    "three cuts in a row, though better than the last": Walk(
        ACCURACY, [(0, 0.5), (0, 0.3), (0, 0.4), (0, 0.45)], "+---", [1, 0.5, 0.25, 0.125]
    ),
    "an equal score is no improvement": Walk(ACCURACY, [(0, 0.5)] * 4, "+---", [1, 0.5, 0.25, 0.125]),
    "a gain starts the count of cuts anew, and the rate stays low": Walk(
        ACCURACY,
        [(0, 0.5), (0, 0.4), (0, 0.4), (0, 0.6), (0, 0.5), (0, 0.5), (0, 0.5)],
        "+--+---",
        [1, 0.5, 0.25, 0.25, 0.125, 0.0625, 0.03125],
    ),
    "patience 2 waits two epochs a cut": Walk(
        LOSS, [(0, 1.0), (0, 1.1), (0, 1.2), (0, 1.0), (0, 1.3)], "+----", [1, 1, 0.1, 0.1, 0.01]
    ),
    "a gain within the patience starts the waiting anew": Walk(
        LOSS, [(0, 1.0), (0, 1.1), (0, 0.9), (0, 1.0), (0, 1.0)], "+-+--", [1, 1, 1, 1, 0.1], stops=False
    ),
    "a loss that is no number is never better": Walk(
        LOSS, [(0, NAN), (0, NAN), (0, 1.0), (0, NAN)], "--+-", [1, 0.1, 0.1, 0.1], stops=False
    ),
    "training accuracy counts below the limit, whatever the loss": Walk(
        SYSTEM_E, [(0.6, 1.0), (0.7, 2.0), (0.8, 3.0), (0.5, 0.5)], "+++-", [1, 1, 1, 0.5], stops=False
    ),
    "from the limit on the loss counts, against its lowest so far": Walk(
        SYSTEM_E, [(0.6, 1.0), (0.8, 0.5), (0.9, 0.6), (0.95, 0.4)], "++-+", [1, 1, 0.5, 0.5], stops=False
    ),
    "cuts in a row are counted across the change": Walk(
        SYSTEM_E, [(0.8, 0.5), (0.7, 0.5), (0.75, 0.6), (0.92, 0.7)], "+---", [1, 0.5, 0.25, 0.125]
    ),
    "falling below the limit, training accuracy counts again": Walk(
        SYSTEM_E, [(0.85, 0.9), (0.95, 0.5), (0.89, 0.4), (0.96, 0.45)], "++--", [1, 1, 0.5, 0.25], stops=False
    ),
}


def _rows(walk: Walk) -> list[dict[str, float]]:
    return [
        {"epoch": number, "train_accuracy": accuracy, walk.plateau.monitor: value}
        for number, (accuracy, value) in enumerate(walk.rows, start=1)
    ]


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS.keys())
def test_a_plateau_follows_a_scripted_course(walk: Walk) -> None:
    rows = _rows(walk)
    followed = [follow_plateau(rows[:end], walk.plateau) for end in range(1, len(rows) + 1)]
    improved = "".join("-+"[selection.epoch == number] for number, (selection, _) in enumerate(followed, start=1))
    assert improved == walk.improved
    assert [rate for _, rate in followed] == pytest.approx(walk.rates)
    assert [bool(selection.stop_reason) for selection, _ in followed] == [False] * (len(rows) - 1) + [walk.stops]


def test_it_says_what_it_watched_and_why_it_stops() -> None:
    rows = _rows(Walk(SYSTEM_E, [(0.89, 1.0), (0.9, 0.9), (0.2, 1.0), (0.2, 1.0), (0.2, 1.0)], "", []))
    assert [follow_plateau(rows[:end], SYSTEM_E)[0].watched for end in (1, 2)] == ["train_accuracy", "val_loss"]
    assert follow_plateau(rows, SYSTEM_E)[0].stop_reason == "3 cuts of the learning rate brought no gain"


# Statistics of batch normalisation, taken anew: those of the cells shown, and what is frozen keeps its own


VALUES = np.random.default_rng(0).normal(5.0, 3.0, size=(40, 2)).astype(np.float32)


class Numbers:
    """Inputs that are numbers already."""

    decodes = False

    def items(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(VALUES[rows])

    def for_training(self, items: torch.Tensor, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        raise AssertionError("statistics are taken without augmentation")

    def for_prediction(self, items: torch.Tensor) -> torch.Tensor:
        return items


NUMBERS = cast("Inputs", Numbers())


def network() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.Dropout(0.9)).train()


def test_statistics_are_the_mean_over_whole_batches() -> None:
    net = network()
    net.get_buffer("0.running_mean").fill_(-100.0)

    recompute_batch_norm(net, NUMBERS, np.arange(35), Accelerator(cpu=True), batch_size=10)

    batches = VALUES[:30].reshape(3, 10, 2)
    assert torch.allclose(net.get_buffer("0.running_mean"), torch.from_numpy(batches.mean(axis=(0, 1))), atol=1e-5)
    assert torch.allclose(
        net.get_buffer("0.running_var"), torch.from_numpy(batches.var(axis=1, ddof=1).mean(axis=0)), rtol=1e-5
    )
    assert net[0].momentum == 0.1, "training goes on with the momentum it had"
    assert not any(module.training for module in net.modules())


def test_what_is_frozen_keeps_its_statistics() -> None:
    net = network()
    net[0].eval()
    net.get_buffer("0.running_mean").fill_(1.0)

    recompute_batch_norm(net, NUMBERS, np.arange(20), Accelerator(cpu=True), batch_size=10)

    assert net.get_buffer("0.running_mean").tolist() == [1.0, 1.0]
    assert net.get_buffer("1.running_mean").tolist() == pytest.approx((VALUES[:20].mean(axis=0) - 1).tolist(), abs=1e-3)

    recompute_batch_norm(fewer := network(), NUMBERS, np.arange(6), Accelerator(cpu=True), batch_size=10)
    assert torch.allclose(fewer.get_buffer("0.running_mean"), torch.from_numpy(VALUES[:6].mean(axis=0)), atol=1e-5)
