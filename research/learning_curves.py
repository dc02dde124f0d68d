"""Learning curves: metrics on unseen subjects against the number of training cells drawn, one curve a picture size.

One run gives a whole curve: the learning rate stays constant after a warm-up, and what is measured is the exponential
moving average of the weights, which stands in for the decay to zero at each length. A run goes on from its last
checkpoint, so a curve can be made longer at any time:

    python research/learning_curves.py RUN_FOLDER --draws 32000 -- --recipe efficientnet_b3 --image_size 224 --fold 0 …
    python research/learning_curves.py --summarise results/learning_curves

The first leaves about.json and, for each length, the test predictions and their metrics in RUN_FOLDER. The second reads
such folders and writes curves.json beside them: metrics over the folds that reached a length.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from accelerate.utils import set_seed

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.files import write_atomic
from leukoscope.models.build import build_network, load_start_weights
from leukoscope.models.release import write_json
from leukoscope.progress import note
from leukoscope.training.accelerator import keep_freed_memory, make_accelerator
from leukoscope.training.checkpoint import Checkpoints
from leukoscope.training.config import parse_config
from leukoscope.training.data import preprocessing_for
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import RunFolder
from leukoscope.training.train import choose_split
from leukoscope.training.trainer import Trainer

EPOCH_CELLS = 2000
# In epochs of `EPOCH_CELLS` draws.
MEASURED_AT = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 100)
COMMON = (
    *("--dataset_name", "cnmc2019", "--split", "subject-cv", "--num_folds", "5", "--no_validation"),
    *("--num_train_epochs", str(MEASURED_AT[-1])),
    *(
        "--override",
        f"epoch_cells={EPOCH_CELLS}",
        "ema_decay=0.998",
        "schedule=constant_with_warmup",
        "warmup_steps=60",
    ),
)


def run(folder: Path, flags: list[str], draws: int) -> None:
    """Train until `draws` cells were drawn, and keep the test predictions at each length of `MEASURED_AT`.

    Args:
        folder: checkpoints and predictions; a run that is there goes on.
        flags: of train.py, on top of `COMMON`.
    """
    config = parse_config([*COMMON, "--output_dir", str(folder), *flags])
    recipe = config.resolve()
    accelerator = make_accelerator(config, recipe)
    keep_freed_memory()
    set_seed(config.run.seed)
    data = config.data.load(recipe.image_size)
    network = build_network(recipe, len(data.info.labels))
    start = load_start_weights(network, recipe, config.start_weights)
    cells = frame_cells(data, preprocessing_for(recipe, data))
    split = choose_split(config, cells.data)
    folder.mkdir(parents=True, exist_ok=True)
    identity = RunIdentity.of(config, recipe, data=cells.data.fingerprint, split=split.fingerprint)
    run_folder = RunFolder(folder)
    run_folder.check(identity, resume=True)
    run_folder.save_identity(identity, config.as_dict())
    checkpoints = Checkpoints(run_folder)
    if run_folder.checkpoint_folders():
        checkpoints.resume()
    trainer = Trainer(accelerator, network, cells, split, recipe, seed=config.run.seed, checkpoints=checkpoints)
    about: dict[str, Any] = {
        "start_weights": start,
        "test_subjects": sorted({cells.subjects[row] for row in cells.rows(split.test)}),
    }
    about |= {"recipe": recipe.name, "image_size": recipe.image_size, "fold": config.data.fold}
    about |= {"learning_rate": recipe.learning_rate, "sampling": recipe.sampling, "flags": flags}
    write_atomic(folder / "about.json", json.dumps(about, indent=1))
    # Rows of an earlier session come first; the network is then already that of the last of them.
    for row in trainer.fit():
        epoch = row["epoch"]
        path = folder / f"{epoch * EPOCH_CELLS:06d}.parquet"
        if epoch in MEASURED_AT and epoch == trainer.state.epoch and not path.exists():
            unshifted = trainer.predict(split.test)
            counts = trainer.class_counts.cpu().numpy()
            predictions = with_class_frequencies(unshifted, counts)
            found = headline(measure(predictions)) | {"seconds": row["seconds"]}
            write_atomic(path.with_suffix(".json"), json.dumps(found, indent=1))
            replace(predictions, pixel_hashes=None).save(path)
            note(f"{folder.name} {epoch * EPOCH_CELLS:,} draws: {found}")
        if epoch * EPOCH_CELLS >= draws:
            break


def with_class_frequencies(predictions: CellPredictions, counts: np.ndarray) -> CellPredictions:
    """Undo the even sampling of classes, as `shift_class_frequencies` can for a release."""
    shifted = predictions.probabilities * counts / counts.sum()
    return replace(predictions, probabilities=shifted / shifted.sum(axis=1, keepdims=True))


def summarise(folder: Path) -> list[dict[str, Any]]:
    """One entry for each curve (recipe, picture size) and length: metrics over the folds that reached it."""
    runs: dict[tuple[str, int, str], dict[int, Path]] = {}
    for about_file in sorted(folder.glob("*/about.json")):
        about = json.loads(about_file.read_text(encoding="utf-8"))
        key = (about["recipe"], about["image_size"], about["start_weights"])
        runs.setdefault(key, {})[about["fold"]] = about_file.parent
    curves = []
    for (recipe, image_size, start), folds in sorted(runs.items()):
        about = {"recipe": recipe, "image_size": image_size, "start_weights": start}
        for draws in (epochs * EPOCH_CELLS for epochs in MEASURED_AT):
            reached = [fold for fold, run in sorted(folds.items()) if (run / f"{draws:06d}.parquet").exists()]
            if not reached:
                continue
            parts = [CellPredictions.load(folds[fold] / f"{draws:06d}.parquet") for fold in reached]
            metrics = headline(measure(pooled(parts)))
            subjects = len({subject for part in parts for subject in part.subjects})
            curves.append({**about, "draws": draws, "folds": reached, "subjects": subjects, "metrics": metrics})
    return curves


def main() -> None:
    """Train one curve, or summarise those that are there."""
    ours, _, flags = (" ".join(sys.argv[1:]) + " ").partition(" -- ")
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=32_000, help="Stop when so many cells were drawn.")
    parser.add_argument("--summarise", action="store_true", help="Write curves.json of the folder's runs.")
    given = parser.parse_args(ours.split())
    if given.summarise:
        about = {"notice": RESEARCH_NOTICE, "estimates": "recipe (folds of a 5-fold cross-validation by subject)"}
        write_json(given.folder / "curves.json", about | {"curves": summarise(given.folder)})
    else:
        run(given.folder, flags.split(), given.draws)


if __name__ == "__main__":
    main()
