"""Checks of a release's maps, which a map fails when it only looks plausible: blocks of metrics.json.

    python -m research.map_checks RELEASE --train_dir DIR [--method evidence|occlusion]

writes the blocks of the maps of one method alone: heat_maps and evidence_scale of the one-pass maps, occlusion_maps and
occlusion_scale of the maps by covering.

A faithful map depends on the learnt weights, marks pixels that the prediction depends on, and turns with the cell. A
map here is what a prediction shows. A one-pass map is the mean over a cell's eight views, turned back; right angles are
therefore no check, and the cell is turned by 30°. Each metric has an interval, and beside it that of a map without
information.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from torch import nn

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.images import foreground, open_encoded
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import PixelRows
from leukoscope.evaluation.bootstrap import BootstrapSamples, bootstrap_cells, bootstrap_subjects
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.gradcam import share_on_cell
from leukoscope.inference.prediction import NO_MAP, NUM_VIEWS, softmax, turned, turned_back
from leukoscope.inference.runtime import TorchBackend, torch_backend
from leukoscope.models.metrics import EVIDENCE_METHOD, OCCLUSION_METHOD
from leukoscope.models.release import read_metrics, write_metrics
from leukoscope.models.weights import Release, load_release
from leukoscope.progress import progress, track
from leukoscope.reports.card import write_card
from research.commands import make_parser, run
from research.covering import covering_maps

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Backend

# Method → the blocks of metrics.json that hold what the checks of its maps found, and how strong they usually are.
MAP_BLOCKS = {EVIDENCE_METHOD: "heat_maps", OCCLUSION_METHOD: "occlusion_maps"}
SCALE_BLOCKS = {EVIDENCE_METHOD: "evidence_scale", OCCLUSION_METHOD: "occlusion_scale"}
AT_ONCE = 8
"""Cells computed at once, which share a random network; of more, the activations do not fit a processor's cache."""
OWN_AT_LEAST = 0.6
"""Correlation that `passes_map_checks` asks for."""
ANGLE = 30
# A map has some 25 to 100 values, so eight steps trace a curve as well as the 224 of the RISE paper.
STEPS = 8
RANDOM_MAPS = 2
RANDOMISED_CELLS = {EVIDENCE_METHOD: 48, OCCLUSION_METHOD: 16}
"""Method → cells, of those drawn, whose maps are compared with those of random networks."""
# The blur's standard deviation as a share of the side. After narrower blurs a C-NMC network still predicts one class
# for all cells (HEM, at 1/8 and less); at 1/4 its probabilities are near 0.5, and the same for cells of both classes.
BLUR = 1 / 4
ESTIMATES = "these weights, on the cells drawn, whether or not they were trained on"

MAP_DEFINITIONS = {
    EVIDENCE_METHOD: "evidence for the class the network answers, relative to a blank picture, from the last feature "
    "map: the mean over the eight dihedral views of a cell, turned back; its positive part",
    OCCLUSION_METHOD: "Zeiler and Fergus 2014 (doi:10.1007/978-3-319-10590-1_53): how far the margin of the class the "
    "network answers (its logit less the largest other one) falls when one of 8 × 8 places of the framed picture gives "
    "way to a blurred copy (Gaussian, standard deviation a quarter of the side) through a round Gaussian window "
    "(standard deviation 3/4 of a place); its positive part; 0 at places outside a cell on black",
}
DEFINITIONS = {
    "rotation": f"correlation (Pearson, in the circle that every turn covers) of a cell's map with that of the cell "
    f"turned by {ANGLE}°, turned back; of the same from a network of random weights (untrained), of the cell's "
    "silhouette with itself, and of the cell's map with another cell's",
    "randomisation": "Adebayo et al. 2018 (doi:10.48550/arXiv.1810.03292): rank correlation of a cell's map with that "
    "of a network whose layers, from the output backwards, are redrawn from normal distributions with each tensor's "
    "own mean and deviation, anew for every eight cells (redrawn batch normalisation uses their statistics)",
    "deletion": "Petsiuk et al. 2018 (doi:10.48550/arXiv.1806.07421): mean probability of the answered class while "
    "pixels, most evidence first, give way to a blurred copy of the picture; gains are above 0 where the map is a "
    "better guide than independent uniform values on its grid (random), or than one map that falls off evenly from "
    "the centre",
    "passed": f"correlation at {ANGLE}° is at least .6 and above that with the map of random weights, and deletion "
    "gains over random maps, both with intervals apart",
}


def even_sample(labels: np.ndarray, subjects: Sequence[str], size: int) -> np.ndarray:
    """Sample up to `size` rows evenly over classes and, within a class, over subjects; so is every first part of it."""
    order = np.random.default_rng(0).permutation(len(labels))
    for groups in (list(zip(labels.tolist(), subjects, strict=True)), labels.tolist()):
        seen: Counter[Any] = Counter()
        ranks = []  # of each cell, how many of its group came before
        for row in order:
            ranks.append(seen[groups[row]])
            seen[groups[row]] += 1
        order = order[np.argsort(ranks, kind="stable")]
    return order[:size]


def explanation_blocks(
    release: Release,
    pixels: np.ndarray | PixelRows,
    labels: np.ndarray,
    subjects: Sequence[str],
    *,
    background: str,
    sample: int = 48,
    method: str = EVIDENCE_METHOD,
) -> dict[str, dict[str, Any]]:
    """Make two blocks of metrics.json from cells sampled evenly over classes and their subjects.

    They cost some 120 forward passes for each cell. Intervals are 95 %, by subject where all are known.

    Args:
        pixels: (N, S, S, 3) uint8, framed for the release; may be memory-mapped.
        labels: (N,) int, true classes in the release's order.
        subjects: N subject ids, "" where unknown.
        background: "black" for cells cut out on black, else "smear".
        sample: cells checked.
        method: of the maps, a key of `MAP_BLOCKS`.

    Returns:
        of `MAP_BLOCKS`: every check, and whether the maps passed. Of `SCALE_BLOCKS`: the usual maximum of a map, and
        its usual share on a cell on black. {} for a network without maps.

    Raises:
        LeukoscopeError: fewer than two cells.
    """
    seed, rows = 0, even_sample(labels, subjects, sample)
    if len(rows) < 2:
        raise LeukoscopeError(f"heat maps: {len(rows)} cell(s) to check of {len(pixels)} given; give 2 or more")
    cells = np.asarray(pixels[rows])
    backend = torch_backend(release)
    if method == EVIDENCE_METHOD and backend(cells[:1], explain=True).maps is None:
        return {}
    predict = PREDICT_WITH_MAPS[method]
    probabilities, maps = predict(backend, cells)
    predicted, every = probabilities.argmax(axis=1), np.arange(len(rows))
    own, generator = maps[every, predicted], torch.Generator().manual_seed(seed)
    oblique = rotated(cells, ANGLE)
    turned_maps = predict(backend, oblique)[1][every, predicted]
    some = slice(RANDOMISED_CELLS[method])
    pictures = {"last_layer": [cells[some]], "all_layers": [cells[some], oblique[some]]}
    layers = {"last_layer": 1, "all_layers": len(_layers(release.network))}
    random = {
        depth: _maps_of_random(release, predict, pictures[depth], predicted[some], layers[depth], generator)
        for depth in pictures
    }
    silhouette = np.stack([foreground(cell) for cell in cells]).astype(np.float32)
    others = other_cells(len(cells), seed)
    rotation = {
        "correlation": consistency(own, turned_maps, cells.shape[1]),
        "untrained": _of_all(consistency(random["all_layers"][0], random["all_layers"][1], cells.shape[1]), len(rows)),
        "another_cell": consistency(own, own[others], cells.shape[1], angle=0),
    }
    if background == "black":
        again = np.stack([foreground(cell) for cell in oblique]).astype(np.float32)
        rotation["silhouette"] = consistency(silhouette, again, cells.shape[1])
    found = {
        "rotation": rotation,
        "randomisation": {
            **{depth: _of_all(rank_correlation(own[some], both[0]), len(rows)) for depth, both in random.items()},
            "another_cell": rank_correlation(own, own[others]),
        },
        "deletion": deletion(backend, cells, predicted, own, seed),
    }
    ids, owners = tuple(map(str, rows)), tuple(subjects[row] for row in rows)
    table = CellPredictions(ids, owners, labels[rows], probabilities, release.labels)
    boot, unit = _resampled(table, seed)
    checks: dict[str, Any] = {
        "estimates": ESTIMATES,
        "method": method,
        "views": NUM_VIEWS if method == EVIDENCE_METHOD else 1,
        "cells": len(rows),
        "subjects": len(set(owners) - {""}),
        "flat_maps": int(is_flat(own).sum()),
        "map_size": list(own.shape[1:]),
        "intervals": f"95 %, {unit} drawn anew within their class",
        "seed": seed,
        "definitions": {"map": MAP_DEFINITIONS[method]} | DEFINITIONS,
        **{name: {key: _summary(values, boot) for key, values in check.items()} for name, check in found.items()},
    }
    checks["passed"] = passes_map_checks(checks)
    scale = _scale(maps, own, cells, background, seed, method)
    return {MAP_BLOCKS[method]: checks, SCALE_BLOCKS[method]: scale}


def _of_all(values: np.ndarray, count: int) -> np.ndarray:
    """Values of the first cells, as those of `count` cells: NaN where there is none."""
    return np.concatenate([values, np.full(count - len(values), np.nan)])


def passes_map_checks(block: Mapping[str, Any]) -> bool:
    """Return whether a release's maps passed the checks that are needed to say that it looks at the cell.

    A cell's map must agree with that of the cell turned (mean correlation ≥ .6), better than the maps of random weights
    do (95 % intervals apart), and taking away what it marks must lower the class's probability more than taking away
    random pixels (interval above 0).
    """
    own, untrained = block["rotation"]["correlation"], block["rotation"].get("untrained")
    gain = block["deletion"]["gain_over_random"]["low"]
    return untrained is not None and bool(own["mean"] >= OWN_AT_LEAST and own["low"] > untrained["high"] and gain > 0)


def _resampled(table: CellPredictions, seed: int) -> tuple[BootstrapSamples, str]:
    """Bootstrap samples of subjects or, where these do not allow it, of cells; and which of the two."""
    try:
        return bootstrap_subjects(table, seed=seed), "subjects"
    except LeukoscopeError:
        return bootstrap_cells(table, seed=seed), "cells"


def _scale(
    maps: np.ndarray, own: np.ndarray, cells: np.ndarray, background: str, seed: int, method: str
) -> dict[str, Any]:
    """The block of `SCALE_BLOCKS` of maps (N, K, h, w), and of those of the predicted class."""

    def quantiles(values: Any, *names: str) -> dict[str, float]:
        return dict(zip(names, np.quantile(values, (0.05, 0.5, 0.95)).tolist(), strict=True))

    on_cell = [share_on_cell(*pair) for pair in zip(own, cells, strict=True)] if background == "black" else []
    shares = [share for share in on_cell if share is not None]
    return {
        "estimates": ESTIMATES,
        "definition": "largest value of a cell's maps of all classes; quantiles over the cells drawn",
        "method": method,
        "views": NUM_VIEWS if method == EVIDENCE_METHOD else 1,
        **(quantiles(shares, "on_cell_p05", "on_cell_median", "on_cell_p95") if shares else {}),
        "cells": len(cells),
        "seed": seed,
        **quantiles(maps.max(axis=(1, 2, 3)), "p05", "median", "p95"),
    }


def _summary(values: np.ndarray, boot: BootstrapSamples) -> dict[str, float | int | None]:
    """Mean and interval of a metric (N,), where it is not NaN; None if nowhere."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0)
    interval = boot.mean_interval(filled, known) if known.any() else None
    mean = float(filled[known].mean()) if known.any() else None
    return {"mean": mean, **(interval or {"low": None, "high": None}), "cells": int(known.sum())}


def predict_with_maps(backend: Backend, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S, 3) uint8 → (N, K) probabilities of the upright view, (N, K, h, w) maps ≥ 0, the mean of eight views.

    Raises:
        LeukoscopeError: a network without maps.
    """
    logits, maps = [], []
    for batch in track(_batches(pixels, AT_ONCE), "maps of cells"):
        views = [backend(turned(batch, view), explain=True) for view in range(NUM_VIEWS)]
        back = [turned_back(one.maps, view) for view, one in enumerate(views) if one.maps is not None]
        if not back:
            raise LeukoscopeError(f"this model {NO_MAP}; check those of a convolutional network")
        logits.append(views[0].logits)
        maps.append(np.maximum(np.mean(back, axis=0, dtype=np.float32), 0))
    return softmax(np.concatenate(logits)), np.concatenate(maps)


def predict_with_covering(backend: Backend, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S, 3) uint8 → (N, K) probabilities, (N, K, h, w) maps by covering, ≥ 0."""
    logits = np.concatenate([backend(batch).logits for batch in _batches(pixels, AT_ONCE)])
    cells = zip(pixels, logits, strict=True)
    maps = [covering_maps(backend, cell, row) for cell, row in track(list(cells), "maps by covering")]
    return softmax(logits), np.stack(maps)


PredictWithMaps = Callable[["Backend", np.ndarray], tuple[np.ndarray, np.ndarray]]
PREDICT_WITH_MAPS: dict[str, PredictWithMaps] = {
    EVIDENCE_METHOD: predict_with_maps,
    OCCLUSION_METHOD: predict_with_covering,
}


def rotated(pixels: np.ndarray, angle: float) -> np.ndarray:
    """Turn (N, S, S, 3) uint8 pictures about their centres; what comes in from outside has the border's median."""
    pictures = []
    for picture in pixels:
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        fill = tuple(np.median(border, axis=0).astype(int).tolist())
        turned_picture = Image.fromarray(picture).rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)
        pictures.append(np.asarray(turned_picture))
    return np.stack(pictures)


def consistency(maps: np.ndarray, others: np.ndarray, size: int, *, angle: float = ANGLE) -> np.ndarray:
    """Correlate maps (N, h, w) with those of pictures turned by `angle`, turned back: (N,); NaN where one is flat."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = np.hypot(x, y) <= size / 2
    ours, theirs = enlarged(maps, size), enlarged(others, size)
    back = [np.asarray(Image.fromarray(one).rotate(-angle, Image.Resampling.BILINEAR)) for one in theirs]
    found = pearson_correlation(ours[:, inside], np.stack(back)[:, inside])
    found[is_flat(maps) | is_flat(others)] = np.nan
    return found


def other_cells(cells: int, seed: int) -> np.ndarray:
    """(N,) for each cell the number of another one, each taken once; the same for the same seed."""
    order = np.random.default_rng(seed).permutation(cells)
    others = np.empty(cells, int)
    others[order] = np.roll(order, 1)
    return others


def _batches(cells: np.ndarray, most: int) -> list[np.ndarray]:
    return np.array_split(cells, -(-len(cells) // most))


def _maps_of_random(
    release: Release,
    predict: PredictWithMaps,
    pictures: Sequence[np.ndarray],
    predicted: np.ndarray,
    depth: int,
    generator: torch.Generator,
) -> list[np.ndarray]:
    """The maps of each set of pictures from networks whose last `depth` layers have random weights.

    A new random network serves each batch of cells: one alone could resemble the trained one by chance.
    """
    numbers = _batches(np.arange(len(predicted)), AT_ONCE)
    parts: list[list[np.ndarray]] = [[] for _ in pictures]
    with progress("maps of random networks", len(numbers)) as advance:
        for chosen in numbers:
            network = _randomised(release.network, depth, generator)
            random = TorchBackend(network, release.preprocessing, blank_rgb=release.blank_rgb)
            random(pictures[0][chosen])  # its batch normalisation takes the statistics of these cells
            network.eval()
            for part, cells in zip(parts, pictures, strict=True):
                maps = predict(random, cells[chosen])[1]
                part.append(maps[np.arange(len(chosen)), predicted[chosen]])
            advance()
    return [np.concatenate(part) for part in parts]


def _layers(network: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own, in the order they were defined, which is that of use in timm's networks."""
    return [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]


def _randomised(network: nn.Module, depth: int, generator: torch.Generator) -> nn.Module:
    """A copy whose last `depth` layers have random weights."""
    copy = deepcopy(network)
    for layer in _layers(copy)[-depth:]:
        for weights in layer.parameters(recurse=False):
            random = torch.randn(weights.shape, generator=generator).to(weights.device)
            weights.data.copy_(random * weights.data.std(correction=0) + weights.data.mean())
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            # The running statistics belong to the old weights; with them activations would vanish or explode. Those of
            # the first batch replace them, so that the blank picture is then normalised as the cells are.
            layer.momentum = 1.0
            layer.train()
    return copy


def deletion(
    backend: Backend, pixels: np.ndarray, predicted: np.ndarray, own: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Measure deletion along the maps, along random ones and from the centre; see `DEFINITIONS`.

    Returns:
        map, random, centre: (N,) mean probability along each; gain_over_random, gain_over_centre: by how much the map
        is the better guide. NaN where a map is flat.
    """
    rng, grid = np.random.default_rng(seed), own.shape[1:]
    y, x = (np.linspace(-1, 1, side) for side in grid)
    centre = -(y[:, None] ** 2 + x**2)
    areas = np.full((len(pixels), 2 + RANDOM_MAPS), np.nan)
    for i in track(np.flatnonzero(~is_flat(own)).tolist(), "deletion along maps"):
        # Where the map is flat in places, chance decides, as smoothly as for the maps it is compared with.
        evidence = own[i] / own[i].max() + 1e-6 * rng.random(grid)
        maps = np.stack([evidence, centre, *rng.random((RANDOM_MAPS, *grid))])
        pictures = _without_marked(pixels[i], enlarged(maps, len(pixels[i])))
        batches = _batches(pictures.reshape(-1, *pixels[i].shape), AT_ONCE)
        probabilities = softmax(np.concatenate([backend(batch).logits for batch in batches]))
        areas[i] = probabilities[:, predicted[i]].reshape(len(maps), STEPS).mean(axis=1)
    along, from_centre, random = areas[:, 0], areas[:, 1], areas[:, 2:].mean(axis=1)
    return {
        "map": along,
        "random": random,
        "centre": from_centre,
        "gain_over_random": random - along,
        "gain_over_centre": from_centre - along,
    }


def _without_marked(cell: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """An image (S, S, 3) with more and more pixels blurred along M maps (M, S, S): (M, STEPS, S, S, 3) uint8."""
    order = np.argsort(-evidence.reshape(len(evidence), -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1).reshape(len(evidence), 1, *cell.shape[:2], 1)
    # The middles of equal steps, so that the mean over steps is the area under the curve.
    shares = (np.arange(STEPS) + 0.5) / STEPS
    first = rank < shares.reshape(-1, 1, 1, 1) * cell[..., 0].size
    # Blurred rather than black, since a black hole in a cell is new evidence: an edge that no cell has.
    blur = BLUR * len(cell)
    blurred = gaussian_filter(cell.astype(np.float32), sigma=(blur, blur, 0)).round().astype(np.uint8)
    return np.where(first, blurred, cell)


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """Enlarge maps (N, h, w) to (N, S, S) float32, bilinear between cell centres as overlays show them."""
    grid = torch.from_numpy(np.asarray(maps, dtype=np.float32))[:, None]
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


def is_flat(maps: np.ndarray) -> np.ndarray:
    """Return (N,) bool: maps (N, h, w) with one value everywhere, hence without information."""
    return np.ptp(maps.reshape(len(maps), -1), axis=1) == 0


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute Spearman's correlation of each of (N, h, w) maps with its counterpart: (N,); NaN where one is flat."""
    return pearson_correlation(*(rankdata(m.reshape(len(m), -1), axis=1) for m in (maps, others)))


def pearson_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation of each map with its counterpart; as `rank_correlation`."""
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in (maps, others))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def map_blocks(release: Path, train_dir: Path, method: str, *, sample: int = 48) -> dict[str, dict[str, Any]]:
    """Make the blocks of one method from the cells that a release was made from; only those drawn are decoded."""
    loaded = load_release(release)
    data = load_cells(loaded.metrics.data.name, train_dir, image_size=2 * loaded.preprocessing.image_size)
    train = data.train.select_columns(["label", "subject"])
    drawn = even_sample(np.asarray(train["label"][:]), train["subject"][:], sample)
    rows = data.rows.select(drawn)
    names = data.info.labels
    labels = np.array([loaded.labels.index(names[label]) for label in rows["label"][:]])
    pictures = [open_encoded(row["image"], row["cell_id"]) for row in rows]
    pixels = np.stack([loaded.preprocessing.frame(picture) for picture in pictures])
    return explanation_blocks(
        loaded, pixels, labels, rows["subject"][:], background=data.info.background, sample=sample, method=method
    )


def parser() -> ArgumentParser:
    """The program's flags."""
    flags = make_parser("map_checks", __doc__)
    flags.add_argument("release", type=Path, help="Folder of a release.")
    flags.add_argument("--train_dir", type=Path, required=True, help="The cells that it was made from.")
    flags.add_argument(
        "--method", choices=sorted(MAP_BLOCKS), default=OCCLUSION_METHOD, help="Of the maps that are checked."
    )
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Check the maps of one method, write their blocks, and render the card."""
    given = parser().parse_args(argv)
    blocks = map_blocks(given.release, given.train_dir, given.method)
    write_metrics(given.release, read_metrics(given.release).changed(**blocks))
    print(f"{write_card(given.release)}\n{RESEARCH_NOTICE}")


if __name__ == "__main__":
    run(main)
