"""What would end or spoil a run is refused before its first step, each with its own message."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leukoscope import LeukoscopeError
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.data.splits import BY_IMAGE, Split, make_split
from leukoscope.models.recipes import get_recipe
from leukoscope.training.config import parse_config
from leukoscope.training.data import with_batch_that_fits
from leukoscope.training.train import choose_split, missing_classes, missing_fits


@pytest.mark.parametrize("side", ["validation", "test", ""])
def test_a_side_that_lacks_a_class_is_noted(cells: FramedCells, split: Split, side: str) -> None:
    thin: dict[str, Any] = {side: tuple(cell for cell in getattr(split, side) if "HEM" in cell)} if side else {}
    assert missing_classes(cells, make_split(cells.data, "all")) == ()
    assert missing_classes(cells, replace(split, **thin)) == (
        (f"{side} side: no cell of class ALL; its metrics cover the other classes only",) if side else ()
    )


def test_what_cannot_be_fitted_is_said_before_training(cells: FramedCells, split: Split) -> None:
    cells = replace(cells, data=cells.data.with_positive("ALL"))
    never, rule = missing_fits(cells, replace(split, validation=tuple(cell for cell in cells.row_of if "ALL" in cell)))
    assert never.startswith("the release will never abstain: class HEM: 0 subject(s) have it; calibration")
    assert rule.startswith("no rule for subjects will be fitted: it needs 3 validation subjects of each class")
    (rule,) = missing_fits(cells, replace(split, validation=()))
    assert "and there are 0 of ALL and 0 of HEM" in rule
    by_image = missing_fits(cells, make_split(cells.data, "random"))
    assert by_image[-1] == f"no rule for subjects will be fitted: {BY_IMAGE}"


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
        (["--no_validation"], "random"),
    ],
)
def test_a_flag_that_the_split_does_not_read_is_refused(cells: FramedCells, flags: list[str], strategy: str) -> None:
    detail, unread = make_split(cells.data, strategy).detail, "; leave it out, or choose another --split"
    with pytest.raises(LeukoscopeError) as refused:
        choose_split(parse_config(["--split", strategy, *flags]), cells.data)
    assert str(refused.value) == f"{flags[0]}: has no effect on split {strategy} ({detail}){unread}"


def test_a_split_file_goes_with_no_other_flag_of_the_split(cells: FramedCells, tmp_path: Path) -> None:
    make_split(cells.data, "random-cv", num_folds=2).save(tmp_path / "split.json")
    file = ["--split_file", str(tmp_path / "split.json")]
    assert choose_split(parse_config(file), cells.data).strategy == "random-cv"
    for flags, refused in ((["--fold", "1"], "--fold: has no effect on "), (["--split", "random"], "--split random ")):
        with pytest.raises(LeukoscopeError, match=f"^{refused}"):
            choose_split(parse_config([*file, *flags]), cells.data)


@pytest.mark.parametrize(("size", "processes", "batches"), [(32, 1, 1), (16, 2, 1), (16, 1, 2), (8, 2, 2)])
def test_data_smaller_than_a_step_get_smaller_batches_which_is_said(
    size: int, processes: int, batches: int, caplog: pytest.LogCaptureFixture
) -> None:
    accelerator: Any = SimpleNamespace(num_processes=processes, gradient_accumulation_steps=batches)
    recipe = replace(get_recipe("densenet121"), train_batch_size=size)
    caplog.set_level("INFO", "leukoscope")
    assert with_batch_that_fits(recipe, 32, accelerator) == recipe and not caplog.messages
    assert with_batch_that_fits(recipe, 31, accelerator).train_batch_size == 31 // (processes * batches)
    assert caplog.messages == [f"batches of {31 // (processes * batches)} cells, not {size}: an epoch has 31 cells"]
    with pytest.raises(LeukoscopeError, match="^0 training cells: fewer than the [124] batches of an optimiser step; "):
        with_batch_that_fits(recipe, 0, accelerator)


# Memory kept: a process that frees and asks again for the same large blocks meets no page faults

FAULTS = """
import resource
from leukoscope.training.accelerator import keep_freed_memory

def page_faults():
    for _ in range(3):
        b"x" * 2**26
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * 2**26  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = page_faults()
keep_freed_memory()
print(returned, page_faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux, where glibc is")
def test_freed_blocks_are_used_again_without_page_faults(warm: str) -> None:
    printed = subprocess.run([warm, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    returned, kept = map(int, printed.split())
    assert kept < returned / 10
