"""From a network and its cells to what the epochs run on: inputs, loader, learner, optimiser and state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.cells.splits import Split
from leukoscope.cells.transforms import Augmenter
from leukoscope.models.recipes import Recipe
from leukoscope.training.averaging import make_average
from leukoscope.training.batch_size import require_fitting, try_step
from leukoscope.training.config import RunArguments
from leukoscope.training.features import HeadOnFeatures
from leukoscope.training.inputs import Inputs, Rows, inputs_and_learner, training_loader
from leukoscope.training.objective import Objective
from leukoscope.training.optim import make_optimizer
from leukoscope.training.sampling import SubjectBalancedSampler
from leukoscope.training.schedule import BestEpoch, PlateauController
from leukoscope.training.state import TrainingState
from leukoscope.training.step import Step, loss_groups


@dataclass
class Prepared:
    """What the epochs run on; see `Engine` for learner, answerer and batch size."""

    inputs: Inputs
    loader: DataLoader[Any]
    learner: nn.Module
    answerer: nn.Module
    step: Step
    state: TrainingState
    batch_size: int


def prepare(
    accelerator: Accelerator,
    network: nn.Module,
    cells: FramedCells,
    split: Split,
    recipe: Recipe,
    preprocessing: Preprocessing,
    run: RunArguments,
    objective: Objective,
    judge: PlateauController | BestEpoch,
    *,
    keep_features: bool = True,
) -> Prepared:
    """Put everything that fitting needs on the device; what the recipe freezes is frozen.

    Raises:
        LeukoscopeError: fewer training cells than a step takes, or a GPU too small for one of them.
    """
    for name in recipe.frozen:
        network.get_submodule(name).requires_grad_(False)
    rows = cells.rows(split.train)
    labels, subjects = cells.labels[rows], [cells.subjects[row] for row in rows]
    augment = _augmenter(recipe, cells, rows, run.seed)
    inputs, whole_or_head = inputs_and_learner(
        accelerator, network, cells, split, recipe, preprocessing, augment, keep_features=keep_features
    )
    train = Rows(inputs, cells.labels, rows)
    batch_size = _fitting_batch_size(accelerator, recipe, whole_or_head, train)
    shown = min(recipe.epoch_cells or len(train), len(train))
    sampler: Sampler[int] = RandomSampler(train, num_samples=shown)
    if recipe.sampling != "cells":
        power = 0.5 if recipe.sampling == "subjects_sqrt" else 0.0
        sampler = SubjectBalancedSampler(labels, subjects, run.seed, size=shown, power=power)
    loader = training_loader(train, batch_size, accelerator, sampler)
    # Row numbers stay on the CPU, where the augmentation draws from them; the rest is moved when its turn comes.
    learner, optimizer, loader = accelerator.prepare(
        whole_or_head, make_optimizer(network, recipe), loader, device_placement=[True, True, False]
    )
    # Prepared, the network would always be in the precision of training; the step asks for that itself, and answers
    # are given in float32.
    accelerator.unwrap_model(learner, keep_fp32_wrapper=False)
    if run.torch_compile:
        # A wrapper: what is saved is the network inside, under its own names.
        learner = torch.compile(learner)
    groups = loss_groups(objective, rows, labels, subjects)
    step = Step(accelerator, recipe, objective, network, learner, optimizer, groups)
    average = make_average(network, recipe)
    answerer = learner
    if average is not None:
        answerer = HeadOnFeatures(average.module) if isinstance(whole_or_head, HeadOnFeatures) else average.module
    state = TrainingState(accelerator, network, optimizer, judge, average, objective.subject_weights)
    return Prepared(inputs, loader, learner, answerer, step, state, batch_size)


def _augmenter(recipe: Recipe, cells: FramedCells, train_rows: np.ndarray, seed: int) -> Augmenter:
    """The recipe's augmentation of these cells.

    Raises:
        LeukoscopeError: sizes to be pooled of cells that are not cut out.
    """
    background = cells.data.info.background
    if not recipe.augmentation.pooled_size:
        return Augmenter(recipe.augmentation, background, seed)
    if background != "black":
        raise LeukoscopeError(
            f"{recipe.name}: augmentation.pooled_size needs cells cut out on black, and {cells.data.info.title} has "
            "smears; add --override augmentation.pooled_size=false"
        )
    areas = np.zeros(len(cells.pixels))
    own = cells.areas_of(train_rows)
    assert own is not None, "cells are cut out"
    areas[train_rows] = own
    return Augmenter(recipe.augmentation, background, seed, areas=areas, pool=np.sort(areas[train_rows]))


def _fitting_batch_size(accelerator: Accelerator, recipe: Recipe, learner: nn.Module, train: Rows) -> int:
    """How many cells of a batch each process takes at a time; tried on a GPU, whose memory cannot be had on credit."""
    size, device = recipe.train_batch_size, accelerator.device
    if device.type != "cuda" or len(train) < size:
        return size
    items, _, rows = train.__getitems__(list(range(size)))
    batch = train.inputs.for_training(items.to(device), rows, epoch=0)
    optimizer = partial(make_optimizer, recipe=recipe)
    return require_fitting(accelerator, recipe, lambda cells: try_step(accelerator, learner, optimizer, batch[:cells]))
