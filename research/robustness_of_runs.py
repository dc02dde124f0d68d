"""Measure a release under small changes with the fold networks that there are, and write the block into its metrics.

    python -m research.robustness_of_runs RELEASE RUN [RUN ...] --train_dir DIR [--cells 2000] [--output JSON]

`leukoscope protocol` measures it at its end, with the networks of all folds. Where some were not kept, the others do:
each RUN is the folder of a training on all folds but one, and its network predicts changed cells of that one. The block
says how many cells and subjects it was measured on. With --output, it goes into a file of its own instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.robustness import robustness_of_folds
from leukoscope.models.release import read_metrics, write_json, write_metrics
from leukoscope.models.weights import load_release
from leukoscope.reports.tables import robustness_table
from leukoscope.training.run_folder import RunFolder
from research.commands import make_parser, run


def tested_by(folder: Path, recipe: str) -> tuple[Path, CellPredictions]:
    """A finished training of this recipe: the folder of its network, and what that predicted of its test cells."""
    files = RunFolder(folder)
    if not files.is_finished:
        raise LeukoscopeError(f"{folder}: holds no finished training; give it time, or leave it out")
    metrics = read_metrics(folder)
    if metrics.recipe.name != recipe:
        raise LeukoscopeError(f"{folder}: is of recipe {metrics.recipe.name}, the release of {recipe}")
    return files.release, CellPredictions.load(files.predictions)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the block, print its table, and write it."""
    parser = make_parser("robustness_of_runs", __doc__)
    parser.add_argument("release", type=Path, help="Folder of a release made by `leukoscope protocol`.")
    parser.add_argument("runs", type=Path, nargs="+", help="Folders of trainings, each with one fold held out.")
    parser.add_argument("--train_dir", type=Path, required=True, help="The cells that it was made from.")
    parser.add_argument("--cells", type=int, default=2000, help="Cells that are changed, over all runs.")
    parser.add_argument("--output", type=Path, help="File for the block, which the release then does not get.")
    flags = parser.parse_args(argv)
    release = load_release(flags.release)
    folds = [tested_by(folder, release.metrics.recipe.name) for folder in flags.runs]
    preprocessing = release.preprocessing
    data = load_cells(release.metrics.data.name, flags.train_dir, image_size=2 * preprocessing.image_size)
    block = robustness_of_folds(flags.release, folds, frame_cells(data, preprocessing), at_most=flags.cells)
    if flags.output:
        content = {"notice": RESEARCH_NOTICE, "release": flags.release.name, "robustness": block.content()}
        write_json(flags.output, content)
    else:
        write_metrics(flags.release, read_metrics(flags.release).changed(robustness=block))
    print(f"{robustness_table(block, release.labels)}\n{RESEARCH_NOTICE}")


if __name__ == "__main__":
    run(main)
