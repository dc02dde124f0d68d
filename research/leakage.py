"""How much leakage of subjects inflates metrics: the same test cells, with and without their subjects in training.

Most published results split by image, not by subject. To measure the effect, a seed selects subjects and sets half of
each one's cells aside for testing. One network is trained on other subjects only; the second on equally many cells of
each class sampled from everybody, the tested subjects' other halves included. Recipe, seed, number of training cells
and test cells are the same, and no epoch is chosen on any of them: the two results differ by the leak alone.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import require_writable
from leukoscope.data.cells import LoadedCells
from leukoscope.data.pixel_cache import without_damaged
from leukoscope.data.splits import Group, Split, assert_disjoint, groups_of
from leukoscope.evaluation.metrics import headline
from leukoscope.models.release import read_metrics, write_json
from leukoscope.protocol import ProtocolRun, finish, refuse_split_flags
from leukoscope.training.config import TrainingConfig, parse_config
from research.commands import make_parser, run

UNSEEN, SEEN = "unseen", "seen"
# A quarter of a class's cells belongs to the selected subjects; half of those are tested.
_SELECTED_SHARE = 0.25


def leakage_pair(data: LoadedCells, seed: int, *, max_train_cells: int | None = None) -> dict[str, Split]:
    """Make the two splits that are compared.

    Args:
        seed: selects the subjects, their tested halves and the training cells.
        max_train_cells: train on at most this many cells, on both sides.

    Returns:
        `unseen` (nobody tested is trained on) and `seen` (their other cells are), with the same test cells and equally
        many training cells of each class. Where a data set names no subjects, its blocks take their place.

    Raises:
        LeukoscopeError: a class with fewer than two subjects.
    """
    rng = np.random.default_rng(seed)
    ids, labels = np.asarray(data.train["cell_id"][:]), np.asarray(data.train["label"][:])
    unit_of = groups_of(data, data.info.group)
    units = np.asarray([unit_of[cell] for cell in ids])
    selected = np.isin(units, sorted(_select_units(data, units, labels, rng)))
    tested = np.zeros(len(units), dtype=bool)
    for unit in np.unique(units):
        rows = np.flatnonzero(units == unit)
        tested[rng.permutation(rows)[: (len(rows) + 1) // 2]] = True
    tested &= selected
    # Training cells of each class: all there are, or as many as wanted in their proportion.
    counts = np.bincount(labels[~selected], minlength=len(data.info.labels))
    if max_train_cells is not None and max_train_cells < counts.sum():
        counts = (counts * (max_train_cells / counts.sum())).astype(int)
    sides: dict[str, tuple[np.ndarray, Group]] = {UNSEEN: (~selected, data.info.group), SEEN: (~tested, "cell")}
    splits = {}
    for name, (pool, group) in sides.items():
        of_class = [np.flatnonzero(pool & (labels == k)) for k in range(len(counts))]
        sampled = [rng.choice(rows, size=count, replace=False) for rows, count in zip(of_class, counts, strict=True)]
        train = tuple(ids[np.sort(np.concatenate(sampled))].tolist())
        detail = f"tested {data.info.group}s {name} in training"
        splits[name] = Split("leakage", group, seed, data.fingerprint, train, (), tuple(ids[tested].tolist()), detail)
        assert_disjoint(splits[name], groups_of(data, group))
    return splits


def _select_units(data: LoadedCells, units: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> set[str]:
    """Random subjects of each class until they hold a quarter of its cells; at least one is not selected."""
    selected: set[str] = set()
    for k, name in enumerate(data.info.labels):
        of_class, cells = np.unique(units[labels == k], return_counts=True)
        if len(of_class) < 2 or "" in of_class:
            raise LeukoscopeError(
                f"class {name} has {len(set(of_class) - {''})} known {data.info.group}(s); measuring leakage needs "
                "two or more per class: name the subjects of your cells (--subject_pattern or --labels)"
            )
        order, wanted = rng.permutation(len(of_class)), _SELECTED_SHARE * cells.sum()
        before = np.cumsum(cells[order]) - cells[order]
        selected |= set(of_class[order[:-1]][before[:-1] < wanted].tolist())
    return selected


def leakage_runs(config: TrainingConfig, seeds: Sequence[int]) -> Iterator[ProtocolRun]:
    """List the runs of a comparison; their splits are made and written below the configuration's output folder."""
    refuse_split_flags(config, "num_folds")
    data = without_damaged(config.data.load(config.resolve().image_size))
    config.output_dir.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for side, split in leakage_pair(data, seed, max_train_cells=config.data.max_train_samples).items():
            file = config.output_dir / f"{side}-{seed}.json"
            split.save(file)
            # --max_train_samples stays: by it a run of another comparison is told from this one's.
            its_data = replace(config.data, split_file=str(file))
            run = replace(config.run, output_dir=str(config.output_dir / f"{side}-{seed}"), seed=seed)
            yield ProtocolRun(f"{side}-{seed}", TrainingConfig(its_data, config.model, run))


def compare_leakage(runs: Sequence[ProtocolRun]) -> dict[str, Any]:
    """Compare finished runs, ready for `write_json`.

    Returns:
        recipe, data, hardware and versions of the runs; `seeds`, each with the metrics of both sides and their
        difference; and `difference`, the mean over seeds with the smallest and largest, of the metrics that all have.
    """
    made = {run.name: read_metrics(run.folder) for run in runs}
    seeds: list[dict[str, Any]] = []
    train_cells = []
    for name in (name for name in made if name.startswith(UNSEEN)):
        seed = int(name.split("-")[1])
        metrics = {side: made[f"{side}-{seed}"].evaluations[0].metrics for side in (UNSEEN, SEEN)}
        sides = {side: headline(measured.content()) for side, measured in metrics.items()}
        known = [key for key, value in sides[UNSEEN].items() if None not in (value, sides[SEEN][key])]
        difference = {key: sides[SEEN][key] - sides[UNSEEN][key] for key in known}
        seeds.append({"seed": seed, "test_cells": metrics[UNSEEN].cells, **sides, "difference": difference})
        train_cells.append(made[name].training.cells)
    shared = [key for key in seeds[0]["difference"] if all(key in seed["difference"] for seed in seeds)]
    values = {key: [seed["difference"][key] for seed in seeds] for key in shared}
    first = next(iter(made.values()))
    return {
        "notice": RESEARCH_NOTICE,
        "estimates": "what testing on subjects whose other cells were trained on adds to a figure",
        "recipe": first.recipe.content(),
        "data": {key: getattr(first.data, key) for key in ("name", "title", "fingerprint", "unit", "citation")},
        "start_weights": first.training.start_weights,
        "train_cells": train_cells,
        "seeds": seeds,
        "difference": {
            key: {"mean": float(np.mean(each)), "smallest": min(each), "largest": max(each)}
            for key, each in values.items()
        },
        "training_seconds": sum(metrics.training.seconds for metrics in made.values()),
        "hardware": first.training.hardware,
        "versions": first.training.versions,
    }


def measure_leakage(config: TrainingConfig, seeds: Sequence[int], results: Path) -> dict[str, Any]:
    """Make the runs that are not finished, then write the comparison to `results`.

    Raises:
        LeukoscopeError: too few subjects, or finished runs made with other settings.
    """
    comparison = compare_leakage(finish(list(leakage_runs(config, seeds))))
    results.parent.mkdir(parents=True, exist_ok=True)
    write_json(results, comparison)
    return comparison


def parser() -> ArgumentParser:
    """The program's own flags; those of train.py, such as --recipe and --max_train_samples, follow."""
    made = make_parser("leakage", __doc__)
    made.add_argument("--output", type=Path, required=True, help="JSON file for the comparison.")
    made.add_argument("--seeds", type=int, default=3, help="How many splits are made, each with a seed of its own.")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Make the runs that are not finished, then compare."""
    given, flags = parser().parse_known_args(argv)
    if given.seeds < 1:
        raise LeukoscopeError(f"--seeds {given.seeds}: give 1 or more")
    require_writable(given.output.parent)
    comparison = measure_leakage(parse_config(flags), range(given.seeds), given.output)
    for name, spread in comparison["difference"].items():
        print(f"{name}: {spread['mean']:+.3f} ({spread['smallest']:+.3f} to {spread['largest']:+.3f})")
    print(f"{given.output}\n{RESEARCH_NOTICE}")


if __name__ == "__main__":
    run(main)
