"""Measure a release out of fold under small changes where the networks of its folds were not kept.

    python -m research.robustness_baseline RELEASE --train_dir DIR --output DIR [--cells 2000]

For a frozen backbone with a linear head only. Such a head is linear in the pooled features, so that of a fold is found
again from the release's own out-of-fold predictions: their logits are solved for the head's weights, and cells that the
solution has not seen show how exact it is. Features are kept in `--output`, a few cells a file, and the same command
goes on where it was stopped. The cells come subject by subject in turns, so that the first ones have every subject.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.changes import CHANGES
from leukoscope.data.images import open_encoded
from leukoscope.data.loading import load_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.robustness import even_sample
from leukoscope.files import atomic_file
from leukoscope.inference.ood import picture_statistics
from leukoscope.models.release import PREDICTIONS
from leukoscope.models.weights import Release, load_release
from leukoscope.progress import track
from research.commands import make_parser, run

UPRIGHT_PER_FILE, CHANGED_PER_FILE = 64, 4
HEAD_CELLS = 3000
"""Upright cells that the heads are solved from: of five folds 600 each, for 513 unknowns."""


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
            inputs = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
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
        for change in CHANGES.values():
            yield self.preprocessing.frame(change(picture, black=self.black))


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the features that are missing."""
    parser = make_parser("robustness_baseline", __doc__)
    parser.add_argument("release", type=Path, help="Folder of a release made by `leukoscope protocol`.")
    parser.add_argument("--train_dir", type=Path, required=True, help="The cells that it was made from.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the features.")
    parser.add_argument("--cells", type=int, default=2000, help="Cells that are changed.")
    parser.add_argument("--head_cells", type=int, default=HEAD_CELLS, help="Upright cells that heads are solved from.")
    flags = parser.parse_args(argv)
    release = load_release(flags.release)
    name = release.metrics["evaluations"][0]["name"]
    stored = CellPredictions.load(flags.release / PREDICTIONS / f"{name}.parquet")
    data = load_cells(release.metrics["data"]["name"], flags.train_dir, image_size=2 * release.preprocessing.image_size)
    files = FeatureFiles(flags.output, data, release.preprocessing, black=data.info.background == "black")
    order = [stored.cell_ids[row] for row in even_sample(stored.subjects, len(stored.cell_ids))]
    backbone = pooled_features(release)
    files.write("upright", order[: flags.head_cells], UPRIGHT_PER_FILE, backbone)
    files.write("changed", order[: flags.cells], CHANGED_PER_FILE, backbone)


if __name__ == "__main__":
    run(main)
