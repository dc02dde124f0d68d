"""Measure a release with a frozen backbone out of fold under small changes, in a fraction of the time.

    python -m research.robustness_baseline RELEASE --train_dir DIR --output DIR [--cells 2000] [--runs DIR]

For a frozen backbone with a linear head only: the networks of the folds share the backbone, so that its features of a
changed cell are computed once, also for a later release with the same backbone. A head is linear in the pooled
features. With `--runs` the heads are those of the protocol's runs. Where these were not kept, the head of a fold is
found again from the release's own out-of-fold predictions: its difference from the release's head is solved for, and
cells that the solution has not seen show how exact it is. Features are kept in `--output`, a few cells a file, and the
same command goes on where it was stopped. The cells come subject by subject in turns, so that the first ones have every
subject. `--measure JSON` writes the block of those that are there, and a table of what was predicted beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.changes import PICTURE_CHANGES
from leukoscope.data.images import open_encoded
from leukoscope.data.loading import load_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.robustness import DecidedCells, even_sample, robustness_block
from leukoscope.files import atomic_file
from leukoscope.inference.ood import fit_detector, picture_statistics
from leukoscope.inference.prediction import Checks, Thresholds, softmax
from leukoscope.models.release import PREDICTIONS_FOLDER, ROBUSTNESS_BLOCK, write_json
from leukoscope.models.weights import Release, load_release
from leukoscope.progress import track
from leukoscope.reports.release_tables import robustness_table
from research.commands import make_parser, run

UPRIGHT_PER_FILE, CHANGED_PER_FILE = 64, 4
HEAD_CELLS = 1500
"""Upright cells that the heads are solved from: of five folds 300 each, beside the release's own head."""


def pooled_features(release: Release) -> Callable[[np.ndarray], np.ndarray]:
    """The frozen backbone on one thread of OpenVINO: (B, S, S, 3) uint8 → (B, F) float32 pooled features."""
    import openvino
    import torch

    network: Any = release.network
    if not hasattr(network, "features") or not hasattr(network.features, "norm5"):
        raise LeukoscopeError(f"{release.name}: is no DenseNet with a linear head; its heads cannot be solved for")
    # The release lifts every channel above zero by it, so that its ReLU changes nothing.
    network.features.norm5 = torch.nn.Identity()

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor(release.preprocessing.mean).view(1, 3, 1, 1) * 255)
            self.register_buffer("std", torch.tensor(release.preprocessing.std).view(1, 3, 1, 1) * 255)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            mean = self.get_buffer("mean")
            deviation = self.get_buffer("std")
            inputs = (pixels.permute(0, 3, 1, 2).float() - mean) / deviation
            features: torch.Tensor = self.network.forward_head(self.network.forward_features(inputs), pre_logits=True)
            return features

    side = release.preprocessing.image_size
    graph = openvino.convert_model(Pooled().eval(), example_input=torch.zeros(2, side, side, 3, dtype=torch.uint8))
    graph.reshape([-1, side, side, 3])
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    return lambda pixels: np.array(compiled(pixels)[0])


class FeatureFiles:
    """Features and OOD statistics of cells, upright and changed, in files that a stopped run continues."""

    def __init__(self, folder: Path, data: LoadedCells, preprocessing: Preprocessing, *, black: bool):
        self.folder, self.preprocessing, self.black = folder, preprocessing, black
        self.rows = data.rows
        self.row_of = {cell: row for row, cell in enumerate(self.rows["cell_id"][:])}

    def write(
        self, kind: str, cells: Sequence[str], per_file: int, backbone: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Compute what is missing of a `kind`, "upright" or "changed", for these cells, in their order."""
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        present = set(self.cells(kind))
        missing = [cell for cell in cells if cell not in present]
        before = len(list(folder.glob("*.npz")))
        for number, first in enumerate(track(range(0, len(missing), per_file), f"features of {kind} cells"), before):
            some, features, statistics = missing[first : first + per_file], [], []
            for cell in some:
                pictures = np.stack(list(self._framed(cell, kind)))
                features.append(np.concatenate([backbone(picture[None]) for picture in pictures]))
                statistics.append(np.stack([picture_statistics(picture) for picture in pictures]))
            with atomic_file(folder / f"{number:05d}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, cells=np.asarray(some), features=np.stack(features), statistics=np.stack(statistics))

    def cells(self, kind: str) -> list[str]:
        """The cells that there is something of, in the order of `read`."""
        parts = [np.load(path) for path in sorted((self.folder / kind).glob("*.npz"))]
        return [str(cell) for part in parts for cell in part["cells"]]

    def read(self, kind: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """What there is of a kind: N cells, (N, V, F) features and (N, V, 22) statistics."""
        cells = self.cells(kind)
        if not cells:
            raise LeukoscopeError(f"{self.folder / kind}: holds no features yet; let the program run longer")
        parts = [np.load(path) for path in sorted((self.folder / kind).glob("*.npz"))]
        features, statistics = (np.concatenate([part[key] for part in parts]) for key in ("features", "statistics"))
        return cells, features, statistics

    def _framed(self, cell: str, kind: str) -> Iterator[np.ndarray]:
        picture = open_encoded(self.rows[self.row_of[cell]]["image"], cell)
        if kind == "upright":
            yield self.preprocessing.frame(picture)
            return
        for change in PICTURE_CHANGES.values():
            yield self.preprocessing.frame(change(picture, black=self.black))


# From features to predictions


def solve_heads(
    features: np.ndarray, logits: np.ndarray, folds: np.ndarray, prior: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Find the head of each fold from the logits that its network gave.

    The head of the release, which was fitted to all cells, is nearly each fold's: only the difference is solved for,
    in the directions in which cells differ most.

    Args:
        features: (N, F) of upright cells.
        logits: (N,) of the first class over the second, by the network of the cell's fold.
        folds: (N,) int.
        prior: (F,) the release's weights.

    Returns:
        (folds, F + 1) weights and bias, and how far the logits of a sixth of the cells lie from those of a head that
        was solved without them.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    centred = features - mean
    # The difference is taken to be larger where standardised features vary more.
    variances, directions = np.linalg.eigh(np.cov((centred / deviation).T))
    scale = directions * np.sqrt(variances.clip(0)) / deviation[:, None]
    projected = centred @ scale
    heads, apart = [], []

    def solve(rows: np.ndarray) -> np.ndarray:
        """(F + 1,) the head that gives these rows their logits."""
        difference = logits[rows] - centred[rows] @ prior
        offset = np.square(projected).sum(axis=1).mean()
        kernel = projected[rows] @ projected[rows].T + offset
        kernel += np.eye(len(rows)) * 1e-8 * np.trace(kernel) / len(rows)
        dual = np.linalg.solve(kernel, difference)
        weights = prior + scale @ (projected[rows].T @ dual)
        return np.append(weights, offset * dual.sum() - weights @ mean)

    for fold in range(int(folds.max()) + 1):
        rows = np.flatnonzero(folds == fold)
        left_out = rows[::6]
        checked = solve(np.setdiff1d(rows, left_out))
        apart.append(features[left_out] @ checked[:-1] + checked[-1] - logits[left_out])
        heads.append(solve(rows))
    differences = np.concatenate(apart)
    return np.stack(heads), {"cells": len(features), "checked_on": len(differences), **_apart(differences)}


def release_head(release: Release) -> np.ndarray:
    """(F + 1,) weights and bias of the first class over the second on pooled features, without the temperature."""
    network: Any = release.network
    norm = network.features.norm5
    weight = network.classifier.weight.double()
    slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * slope
    of_class = weight[0] - weight[1]
    bias = of_class @ shift + network.classifier.bias[0].double() - network.classifier.bias[1].double()
    temperature = release.metrics.get("calibration", {}).get("temperature", 1.0)
    head: np.ndarray = np.append((of_class * slope).detach().numpy(), bias.item()) * temperature
    return head


def heads_of_runs(
    runs: Path, features: np.ndarray, logits: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the heads of a protocol's folds; arguments but `runs`, and what is returned, as of `solve_heads`."""
    heads = [release_head(load_release(runs / f"cv-{fold}" / "release")) for fold in range(int(folds.max()) + 1)]
    of_cell = np.stack(heads)[folds]
    differences = (features * of_cell[:, :-1]).sum(axis=1) + of_cell[:, -1] - logits
    return np.stack(heads), {"checked_on": len(differences), **_apart(differences)}


def _apart(differences: np.ndarray) -> dict[str, float]:
    """How far logits lie apart."""
    return {
        "rms_of_logits": float(np.sqrt(np.square(differences).mean())),
        "largest_of_logits": float(np.abs(differences).max()),
    }


def predicted(
    release: Release, stored: CellPredictions, files: FeatureFiles, runs: Path | None
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """A table of every changed cell, as it is and under each change, out of fold; and how exact its heads are.

    Its columns: cell_id, change ("" for none), logit, uncalibrated, and ood_score. `runs` is the protocol's folder.
    """
    assert stored.folds is not None
    row_of = {cell: row for row, cell in enumerate(stored.cell_ids)}
    upright, features, statistics = files.read("upright")
    rows = np.asarray([row_of[cell] for cell in upright])
    logits = np.log(stored.probabilities[:, 0]) - np.log(stored.probabilities[:, 1])
    upright_features = features[:, 0].astype(float)
    if runs:
        heads, exactness = heads_of_runs(runs, upright_features, logits[rows], stored.folds[rows])
    else:
        prior = release_head(release)[:-1]
        heads, exactness = solve_heads(upright_features, logits[rows], stored.folds[rows], prior)
    subjects = np.asarray(stored.subjects)
    detectors = []
    for fold in range(len(heads)):
        others = stored.folds[rows] != fold
        detector, _ = fit_detector(statistics[others, 0], subjects[rows[others]].tolist())
        detectors.append(detector)
    statistics_of = dict(zip(upright, statistics[:, 0], strict=True))
    table: dict[str, list[Any]] = {"cell_id": [], "change": [], "logit": [], "ood_score": []}
    for cell, of_changes, its_statistics in zip(*files.read("changed"), strict=True):
        row = row_of[cell]
        head, detector = heads[stored.folds[row]], detectors[stored.folds[row]]
        its_logits = [logits[row], *(of_changes.astype(float) @ head[:-1] + head[-1])]
        distances = detector.distances(np.stack([statistics_of[cell], *its_statistics]))
        table["cell_id"] += [cell] * (1 + len(PICTURE_CHANGES))
        table["change"] += ["", *PICTURE_CHANGES]
        table["logit"] += [float(logit) for logit in its_logits]
        table["ood_score"] += (distances / detector.limit).tolist()
    return table, exactness


def block_of(
    table: Mapping[str, Sequence[Any]], stored: CellPredictions, metrics: Mapping[str, Any], exactness: dict[str, Any]
) -> dict[str, Any]:
    """The block `robustness` of a table of `predicted`, decided as the release decides."""
    row_of = {cell: row for row, cell in enumerate(stored.cell_ids)}
    temperature = metrics.get("calibration", {}).get("temperature", 1.0)
    thresholds, versions = Thresholds.from_metrics(metrics), dict[str, DecidedCells]()
    changes, scores = np.asarray(table["change"]), np.asarray(table["ood_score"])
    for name in ("", *PICTURE_CHANGES):
        mine = np.flatnonzero(changes == name)
        some = stored.take([row_of[table["cell_id"][i]] for i in mine.tolist()])
        logits = np.asarray(table["logit"])[mine] / temperature
        probabilities = softmax(np.stack([logits, np.zeros(len(logits))], axis=1))
        outcomes = tuple(
            thresholds.decide(dict(zip(stored.label_names, shares, strict=True)), Checks(ood_score=score)).outcome
            for shares, score in zip(probabilities.tolist(), scores[mine].tolist(), strict=True)
        )
        versions[name] = DecidedCells(replace(some, probabilities=probabilities), outcomes)
    unchanged = versions.pop("")
    cells = {"cells": len(unchanged.outcomes), "drawn_from": len(stored.cell_ids), "seed": 0}
    block = robustness_block(unchanged, versions, estimates=OUT_OF_FOLD)
    return {"sample": cells, "heads": exactness, **block}


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the features that are missing, or with --measure the block of those that are there."""
    parser = make_parser("robustness_baseline", __doc__)
    parser.add_argument("release", type=Path, help="Folder of a release made by `leukoscope protocol`.")
    parser.add_argument("--train_dir", type=Path, required=True, help="The cells that it was made from.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the features.")
    parser.add_argument("--cells", type=int, default=2000, help="Cells that are changed.")
    parser.add_argument("--head_cells", type=int, default=HEAD_CELLS, help="Upright cells that heads are solved from.")
    parser.add_argument("--runs", type=Path, help="Folder of the protocol's runs, where it was kept.")
    parser.add_argument("--measure", type=Path, metavar="JSON", help="Compute nothing, write the block.")
    flags = parser.parse_args(argv)
    release = load_release(flags.release)
    name = release.metrics["evaluations"][0]["name"]
    stored = CellPredictions.load(flags.release / PREDICTIONS_FOLDER / f"{name}.parquet")
    data = load_cells(release.metrics["data"]["name"], flags.train_dir, image_size=2 * release.preprocessing.image_size)
    files = FeatureFiles(flags.output, data, release.preprocessing, black=data.info.background == "black")
    if flags.measure:
        table, exactness = predicted(release, stored, files, flags.runs)
        block = block_of(table, stored, release.metrics, exactness)
        pq.write_table(pa.table(table), flags.measure.with_suffix(".parquet"))
        write_json(flags.measure, {"notice": RESEARCH_NOTICE, "release": flags.release.name, ROBUSTNESS_BLOCK: block})
        print(f"{robustness_table(block)}\n{flags.measure}\n{RESEARCH_NOTICE}")
        return
    order = [stored.cell_ids[row] for row in even_sample(stored.subjects, len(stored.cell_ids))]
    backbone = pooled_features(release)
    # Every changed cell is compared with itself unchanged.
    files.write("upright", order[: max(flags.head_cells, flags.cells)], UPRIGHT_PER_FILE, backbone)
    files.write("changed", order[: flags.cells], CHANGED_PER_FILE, backbone)


if __name__ == "__main__":
    run(main)
