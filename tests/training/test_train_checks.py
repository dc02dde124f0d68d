"""What would end or spoil a run is refused before its first step, each with its own message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leukoscope import LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import Split, make_split
from leukoscope.models.recipes import Recipe
from leukoscope.training.config import parse_config
from leukoscope.training.data import require_whole_step
from leukoscope.training.train import choose_split, missing_classes

RECIPE = Recipe(name="small", architecture="test_resnet", base_model="", image_size=32, train_batch_size=4)


def _of(label: str, cell_ids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(cell for cell in cell_ids if label in cell)


def test_a_run_that_can_end_well_passes(tmp_path: Path, cells: FramedCells, split: Split) -> None:
    for sides in (split, make_split(cells.data, "all")):
        assert missing_classes(cells, sides) == ()


@pytest.mark.parametrize("side", ["validation", "test"])
def test_a_side_that_lacks_a_class_is_noted(cells: FramedCells, split: Split, side: str) -> None:
    thin: dict[str, Any] = {side: _of("HEM", getattr(split, side))}
    assert missing_classes(cells, replace(split, **thin)) == (
        f"{side} side: no cell of class ALL; its metrics cover the other classes only",
    )


@pytest.mark.parametrize("strategy", ["subject", "random"])
def test_a_validation_side_that_no_flag_leaves_out_is_named(cells: FramedCells, strategy: str) -> None:
    config = parse_config(["--no_validation", "--split", strategy])
    detail = make_split(cells.data, strategy).detail
    with pytest.raises(LeukoscopeError) as refused:
        choose_split(config, cells.data)
    assert str(refused.value) == (
        f"--no_validation: has no effect on split {strategy} ({detail}), which has validation cells; leave it out, or "
        "choose --split subject-cv, block-cv or random-cv"
    )


@pytest.mark.parametrize("strategy", ["subject-cv", "random-cv", "all"])
def test_elsewhere_no_cell_is_set_apart_for_validation(cells: FramedCells, strategy: str) -> None:
    folds = ["--num_folds", "2"] if strategy.endswith("-cv") else []
    config = parse_config(["--no_validation", "--split", strategy, *folds])
    assert choose_split(config, cells.data).validation == ()


@pytest.mark.parametrize(
    ("flags", "strategy"),
    [
        (["--fold", "3"], "subject"),
        (["--num_folds", "7"], "random"),
        (["--train_folds", "fold_1"], "subject"),
    ],
)
def test_a_flag_that_the_split_does_not_read_is_refused(cells: FramedCells, flags: list[str], strategy: str) -> None:
    detail = make_split(cells.data, strategy).detail
    with pytest.raises(LeukoscopeError) as refused:
        choose_split(parse_config(["--split", strategy, *flags]), cells.data)
    assert str(refused.value) == (
        f"{' '.join(flags)}: has no effect on split {strategy} ({detail}); leave it out, or choose another --split"
    )


def test_a_split_file_goes_with_no_other_flag_of_the_split(cells: FramedCells, tmp_path: Path) -> None:
    make_split(cells.data, "random-cv", num_folds=2).save(tmp_path / "split.json")
    file = ["--split_file", str(tmp_path / "split.json")]
    assert choose_split(parse_config(file), cells.data).strategy == "random-cv"
    for flags, refused in (
        (["--fold", "1"], "--fold 1: has no effect on "),
        (["--split", "random"], "--split random "),
    ):
        with pytest.raises(LeukoscopeError, match=f"^{refused}"):
            choose_split(parse_config([*file, *flags]), cells.data)


@pytest.mark.parametrize(
    ("size", "processes", "batches", "said"),
    [
        (32, 1, 1, "32"),
        (16, 2, 1, "16 × 2 processes"),
        (16, 1, 2, "16 × --gradient_accumulation_steps 2"),
        (8, 2, 2, "8 × 2 processes × --gradient_accumulation_steps 2"),
    ],
)
def test_a_step_larger_than_the_data_is_refused(size: int, processes: int, batches: int, said: str) -> None:
    accelerator: Any = SimpleNamespace(num_processes=processes, gradient_accumulation_steps=batches)
    require_whole_step(32, 32, size, accelerator)
    for cells, smaller in ((31, "31 training cells"), (99, "31 cells of an epoch (epoch_cells)")):
        with pytest.raises(LeukoscopeError) as refused:
            require_whole_step(cells, 31, size, accelerator)
        assert str(refused.value) == (
            f"--per_device_train_batch_size {said}: larger than the {smaller}; give a smaller one"
        )
