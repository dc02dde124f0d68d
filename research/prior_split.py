"""System F: how much of a published figure comes from copies, and how much from people on both sides of its split.

The published notebook of Braga and Dantas (VISAPP 2026, arXiv 2601.01026) splits by image: scikit-learn's
`train_test_split` over the indices of 12,488 files, of which 6,458 are HEM although C-NMC 2019 has 4,037. This program
rebuilds that split on the cells at hand, with copies in the same proportion, and divides the same images in two other
ways: with every copy beside its original, and with every subject on one side. Heads are fitted to frozen features of an
EfficientNet-B3, because training the published EfficientNetV2-B3 takes a GPU; layers that learn may gain more from
images that they have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from timm import create_model
from torchvision.transforms import v2

from leukoscope import RESEARCH_NOTICE
from leukoscope.data.images import open_encoded
from leukoscope.data.loading import load_cells
from leukoscope.evaluation.metrics import measure, versions
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.release import open_safetensors, write_json
from leukoscope.progress import progress
from research.commands import make_parser, run

# As in the notebook: files of each class, and originals that C-NMC has.
PUBLISHED_FILES = {"ALL": 6030, "HEM": 6458}
PUBLISHED_ORIGINALS = {"ALL": 8491, "HEM": 4037}
TEST_SHARE = 0.2
REPETITIONS = 5
ARCHITECTURE = "tf_efficientnet_b3"
START_WEIGHTS = "channels selected from ImageNet EfficientNet-B4"
SIDE = 112  # pixels
CROP = 350  # of 450 pixels, as for our own networks
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIVISIONS = {
    "by image": "copies and people on both sides, as in the notebook",
    "by original": "people on both sides; each copy beside its original",
    "by subject": "neither",
}
METRICS = ("accuracy", "f1_weighted", "auroc", "balanced_accuracy", "balanced_accuracy_by_subject", "auroc_by_subject")


def choose_images(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the cells at hand in the notebook's proportions; a row that comes again stands for a copy.

    Args:
        labels: (N,) 0 for ALL, 1 for HEM.

    Returns:
        (M,) rows: of ALL a sample without repetition, of HEM every cell and then copies.
    """
    generator = np.random.default_rng(seed)
    leukaemic = np.flatnonzero(labels == 0)
    normal = np.flatnonzero(labels == 1)
    sampled = round(len(leukaemic) * PUBLISHED_FILES["ALL"] / PUBLISHED_ORIGINALS["ALL"])
    copies = round(len(normal) * (PUBLISHED_FILES["HEM"] / PUBLISHED_ORIGINALS["HEM"] - 1))
    chosen = generator.choice(leukaemic, sampled, replace=False)
    copied = generator.choice(normal, copies, replace=False)
    return np.concatenate([np.sort(chosen), normal, np.sort(copied)])


def frozen_features(pictures: Sequence[Image.Image], network: torch.nn.Module) -> np.ndarray:
    """(N, D) pooled features of pictures, before the classifier."""
    batch = torch.stack([_framed(picture) for picture in pictures])
    with torch.inference_mode():
        return network(batch).numpy()


def _framed(picture: Image.Image) -> torch.Tensor:
    cropped = v2.functional.center_crop(v2.functional.to_image(picture), [CROP, CROP])
    small = v2.functional.resize(cropped, [SIDE, SIDE], antialias=True)
    return v2.functional.normalize(v2.functional.to_dtype(small, torch.float32, scale=True), MEAN, DEVIATION)


def divide(division: str, images: np.ndarray, labels: np.ndarray, subjects: np.ndarray, seed: int) -> np.ndarray:
    """(M,) True where an image is tested; about `TEST_SHARE` of them, stratified by class.

    A seed is a random draw by image, and otherwise the number of the fold that is tested.

    Args:
        division: one of `DIVISIONS`.
        images: (M,) row of the original that each image shows.
        labels, subjects: (M,) of each image.
    """
    if division == "by image":
        _, tested = train_test_split(np.arange(len(images)), test_size=TEST_SHARE, stratify=labels, random_state=seed)
        return np.isin(np.arange(len(images)), tested)
    groups = images if division == "by original" else subjects
    # Other seeds would hardly divide large groups in another way, so that each repetition tests another fold.
    number_of_folds = round(1 / TEST_SHARE)
    folds = StratifiedGroupKFold(number_of_folds, shuffle=True, random_state=0)
    _, tested = list(folds.split(images, labels, groups))[seed % number_of_folds]
    return np.isin(np.arange(len(images)), tested)


def heads() -> dict[str, Any]:
    """The classifiers fitted to frozen features: a linear one, and one that can follow single images."""
    return {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)),
        "support vectors (RBF)": make_pipeline(StandardScaler(), SVC(C=10)),
    }


def measure_division(
    head: Any, features: np.ndarray, tested: np.ndarray, labels: np.ndarray, subjects: np.ndarray
) -> dict[str, float]:
    """Fit a head to the images that are not tested, and measure it on the others."""
    head.fit(features[~tested], labels[~tested])
    rows = np.flatnonzero(tested)
    normal = expit(head.decision_function(features[rows]))
    probabilities = np.stack([1 - normal, normal], axis=1)
    predictions = CellPredictions(
        tuple(map(str, rows)), tuple(subjects[rows]), labels[rows], probabilities, ("ALL", "HEM")
    )
    measured = measure(predictions)
    return {metric: measured[metric] for metric in METRICS if measured.get(metric) is not None}


def summarise(repetitions: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, smallest and largest of each metric over repetitions."""
    summary = {}
    for metric in METRICS:
        values = [measured[metric] for measured in repetitions if metric in measured]
        if values:
            summary[metric] = {"mean": float(np.mean(values)), "smallest": min(values), "largest": max(values)}
    return summary


def main() -> None:
    """Compute features, fit the heads in every division, and write the result."""
    parser = make_parser("prior_split", __doc__)
    parser.add_argument("train_dir", type=Path, help="folder of C-NMC 2019")
    parser.add_argument("start_weights", type=Path, help=f"safetensors of {ARCHITECTURE}: {START_WEIGHTS}")
    parser.add_argument("--features", type=Path, default=Path("runs/prior_split.npz"), help="kept between calls")
    parser.add_argument("--output", type=Path, default=Path("results/system_f.json"))
    arguments = parser.parse_args()
    data = load_cells("cnmc2019", arguments.train_dir)
    cells = data.train.cast_column("image", data.rows.features["image"])
    cell_labels = np.asarray(cells["label"][:])
    cell_subjects = np.asarray(cells["subject"][:])
    images = choose_images(cell_labels, seed=0)
    if arguments.features.is_file():
        with np.load(arguments.features, allow_pickle=False) as kept:
            features = kept["features"]
    else:
        features = _all_features(cells, images, arguments.start_weights)
        arguments.features.parent.mkdir(parents=True, exist_ok=True)
        np.savez(arguments.features, features=features)
    labels = cell_labels[images]
    subjects = cell_subjects[images]
    measured: dict[str, dict[str, Any]] = {}
    for division, remark in DIVISIONS.items():
        measured[division] = {"remark": remark, "heads": {}}
        for name, head in heads().items():
            repetitions = []
            for seed in range(REPETITIONS):
                tested = divide(division, images, labels, subjects, seed)
                repetitions.append(measure_division(head, features, tested, labels, subjects))
            measured[division]["heads"][name] = summarise(repetitions)
            print(division, name, measured[division]["heads"][name]["accuracy"], flush=True)
    write_json(
        arguments.output,
        {
            "notice": RESEARCH_NOTICE,
            "system": "F",
            "source": "Braga and Dantas, VISAPP 2026, arXiv 2601.01026; its published notebook splits by image",
            "claim": {"f1": 0.9789, "patient_wise_accuracy": 0.9815},
            "network": {
                "features": f"{ARCHITECTURE} at {SIDE} px, frozen",
                "start_weights": START_WEIGHTS,
                "not_rebuilt": "EfficientNetV2-B3, all layers trained",
            },
            "data": {"name": data.info.name, "fingerprint": data.fingerprint, "citation": data.info.citation},
            "images": len(images),
            "copies": len(images) - len(np.unique(images)),
            "copies_are": "flips, a rotation by any angle and ± 10 % of brightness, chosen here",
            "repetitions": REPETITIONS,
            "test_share": TEST_SHARE,
            "divisions": measured,
            "versions": versions(),
        },
    )


def _all_features(cells: Any, images: np.ndarray, start_weights: Path) -> np.ndarray:
    """(M, D) features of each image; an image whose row came before is a changed copy."""
    torch.manual_seed(0)
    network = create_model(ARCHITECTURE, pretrained=False, num_classes=0).eval()
    missing = network.load_state_dict(
        {name: tensor.float() for name, tensor in open_safetensors(start_weights, load_file).items()}, strict=False
    )
    print("tensors that stay random:", ", ".join(missing.missing_keys) or "none", flush=True)
    change = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomRotation(180), v2.ColorJitter(brightness=0.1)])
    seen: set[int] = set()
    features = []
    batch_size = 32
    with progress("features", total=len(images)) as advance:
        for start in range(0, len(images), batch_size):
            pictures = []
            for row in images[start : start + batch_size].tolist():
                picture = open_encoded(cells[row]["image"], cells[row]["cell_id"])
                pictures.append(change(picture) if row in seen else picture)
                seen.add(row)
            features.append(frozen_features(pictures, network))
            advance(len(pictures))
    return np.concatenate(features)


if __name__ == "__main__":
    run(main)
