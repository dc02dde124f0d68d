"""Metrics of a release's maps: four checks that a map fails when it only looks plausible.

A faithful map depends on the learnt weights, marks pixels that the prediction depends on, lies on the cell, and turns
with the image. Each check gives metrics with intervals and, for comparison, those of a map without information.
`passes_map_checks` turns them into one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.data.images import foreground
from leukoscope.data.pixel_cache import PixelRows
from leukoscope.evaluation.baselines import SCALE_BAR_SIDE
from leukoscope.evaluation.bootstrap import BootstrapSamples, bootstrap_cells, bootstrap_subjects
from leukoscope.evaluation.predictions import CellPredictions, even_sample
from leukoscope.inference.backends import TorchBackend
from leukoscope.inference.gradcam import share_on_cell
from leukoscope.inference.prediction import EVIDENCE, NO_MAP, passes_map_checks, softmax
from leukoscope.inference.predictor import float32_backend
from leukoscope.inference.tta import VIEWS, turned, turned_back
from leukoscope.models.weights import Release
from leukoscope.progress import progress, track

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Backend

AT_ONCE = 8
"""Cells computed at once, which share a random network; of more, the activations do not fit a processor's cache."""
# A map has some 25 to 100 values, so eight steps trace a curve as well as the 224 of the RISE paper.
STEPS = 8
RANDOM_MAPS = 2
# The blur's standard deviation as a share of the side. After narrower blurs a C-NMC network still predicts one class
# for all cells (HEM, at 1/8 and less); at 1/4 its probabilities are near 0.5, and the same for cells of both classes.
BLUR = 1 / 4
ESTIMATES = "these weights, on the cells drawn, whether or not they were trained on"

DEFINITIONS = {
    "map": "evidence for the class the network answers, relative to a blank picture, from the last feature map; its "
    "positive part",
    "randomisation": "Adebayo et al. 2018 (doi:10.48550/arXiv.1810.03292): rank correlation of a cell's map with that "
    "of a network whose layers, from the output backwards, are redrawn from normal distributions with each tensor's "
    "own mean and deviation, anew for every eight cells (redrawn batch normalisation uses their statistics); "
    "another_cell: with the trained network's map of another cell, chosen at random: what maps of any two cells share",
    "deletion": "Petsiuk et al. 2018 (doi:10.48550/arXiv.1806.07421): mean probability of the answered class while "
    "pixels, most evidence first, give way to a blurred copy of the picture; low is good",
    "insertion": "the same while pixels of the picture, most evidence first, replace a blurred copy; high is good",
    "random": "maps of independent uniform values on the grid of the heat map, enlarged alike",
    "centre": "one map for all pictures, falling off evenly from the centre",
    "outside_cell": "share of the enlarged map's sum outside the cell (brighter than black, holes filled), beside the "
    "share of the area there, which a uniform map would reach",
    "scale_bar_corner": "share of the enlarged map's sum in the lower right corner, a seventh of the side each way, "
    "beside the share of the area there, which a uniform map would reach",
    "rotation": "the seven other views of a cell, turned by right angles and mirrored: correlation (Pearson) of the "
    "cell's map with each of theirs, turned back, beside that with another cell's map; absolute change of the answered "
    "class's probability, share of views that change the answer",
    "average of views": "the map averaged over the eight views, as test-time augmentation gives it, which turns with "
    "the cell by construction: correlation (Pearson) with another cell's, share of its sum on the region named",
    "passed": "correlation under rotation is at least .6, and at least .3 above that with another cell's map, and "
    "deletion gains over random maps with an interval above 0",
}


def explanation_blocks(
    release: Release,
    pixels: np.ndarray | PixelRows,
    labels: np.ndarray,
    subjects: Sequence[str],
    *,
    background: str,
    sample: int = 200,
    perturbed: int = 50,
) -> dict[str, dict[str, Any]]:
    """Make two blocks of metrics.json from cells sampled evenly over classes and their subjects.

    They cost some 15 forward passes for each sampled and 64 more for each perturbed cell. Intervals are 95 %, by
    subject where all are known. Cells with a flat map are counted, and left out where there is nothing to check.
    Fewer than two cells are an error.

    Args:
        pixels: (N, S, S, 3) uint8, framed for the release; may be memory-mapped.
        labels: (N,) int, true classes in the release's order.
        subjects: N subject ids, "" where unknown.
        background: "black" for cells cut out on black, whose maps are compared with the cell; else "smear", whose maps
            are compared with the scale-bar corner.
        sample: cells checked.
        perturbed: how many of those go through deletion and insertion, the most expensive check.

    Returns:
        `heat_maps`: every check, and whether the maps passed. `evidence_scale`: the usual maximum of a map, and its
        usual share on a cell on black. {} for a network without maps.
    """
    seed, rows = 0, even_sample(labels, subjects, sample, seed=0)
    if len(rows) < 2:
        raise LeukoscopeError(f"heat maps: {len(rows)} cell(s) to check of {len(pixels)} given; give 2 or more")
    cells = np.asarray(pixels[rows])
    backend = float32_backend(release, VIEWS * len(rows) + 64 * min(perturbed, len(rows)))
    if backend(cells[:1], explain=True).maps is None:
        return {}
    probabilities, maps = predict_with_maps(backend, cells)
    predicted = probabilities.argmax(axis=1)
    own = np.maximum(maps[np.arange(len(rows)), predicted], 0)
    ids, owners = tuple(map(str, rows)), tuple(subjects[row] for row in rows)
    boot, unit = _resampled(CellPredictions(ids, owners, labels[rows], probabilities, release.labels), seed)
    place = "outside_cell" if background == "black" else "scale_bar_corner"
    regions = ~cell_masks(cells) if background == "black" else scale_bar_corner(cells.shape[1])[None]
    found = {
        "randomisation": randomisation(release, cells, predicted, own, seed),
        **perturbation(backend, cells[:perturbed], predicted[:perturbed], own[:perturbed], seed),
        place: heat_share(own, regions),
    }
    of_views, signed = predict_views(backend, cells, predicted)
    averaged, others = np.maximum(signed.mean(axis=0), 0), other_cells(len(cells), seed)
    found["rotation"] = rotation(of_views, signed, predicted, others)
    found["average_of_views"] = {
        "another_cell": pearson_correlation(averaged, averaged[others]),
        place: heat_share(averaged, regions)["heat"],
    }
    checks: dict[str, Any] = {
        "estimates": ESTIMATES,
        "method": EVIDENCE,
        "cells": len(rows),
        "subjects": len(set(owners) - {""}),
        "perturbed_cells": min(perturbed, len(rows)),
        "flat_maps": int(is_flat(own).sum()),
        "map_size": list(own.shape[1:]),
        "intervals": f"95 %, {unit} drawn anew within their class",
        "seed": seed,
        "definitions": DEFINITIONS,
        **{name: {key: _summary(values, boot) for key, values in check.items()} for name, check in found.items()},
    }
    checks["passed"] = passes_map_checks(checks)
    return {"heat_maps": checks, "evidence_scale": _scale(maps, own, cells, background, seed)}


def _resampled(table: CellPredictions, seed: int) -> tuple[BootstrapSamples, str]:
    """Bootstrap samples of subjects or, where these do not allow it, of cells; and which of the two."""
    try:
        return bootstrap_subjects(table, seed=seed), "subjects"
    except LeukoscopeError:
        return bootstrap_cells(table, seed=seed), "cells"


def _scale(maps: np.ndarray, own: np.ndarray, cells: np.ndarray, background: str, seed: int) -> dict[str, Any]:
    """The "evidence_scale" block of signed maps (N, K, h, w), and of those of the predicted class."""

    def quantiles(values: Any, *names: str) -> dict[str, float]:
        return dict(zip(names, np.quantile(values, (0.05, 0.5, 0.95)).tolist(), strict=True))

    on_cell = [share_on_cell(*pair) for pair in zip(own, cells, strict=True)] if background == "black" else []
    shares = [share for share in on_cell if share is not None]
    return {
        "estimates": ESTIMATES,
        "definition": "largest value of a cell's maps of all classes; quantiles over the cells drawn",
        "method": EVIDENCE,
        **(quantiles(shares, "on_cell_p05", "on_cell_median", "on_cell_p95") if shares else {}),
        "cells": len(cells),
        "seed": seed,
        **quantiles(np.maximum(maps, 0).max(axis=(1, 2, 3)), "p05", "median", "p95"),
    }


def _summary(values: np.ndarray, boot: BootstrapSamples) -> dict[str, float | int | None]:
    """Mean and interval of a metric (n,) of the first n cells, where it is not NaN; None if nowhere."""
    known = np.zeros(len(boot.unit_of_cell), dtype=bool)
    known[: len(values)] = np.isfinite(values)
    padded = np.zeros(len(known))
    padded[known] = values[np.isfinite(values)]
    interval = boot.mean_interval(padded, known) if known.any() else None
    mean = float(padded[known].mean()) if known.any() else None
    return {"mean": mean, **(interval or {"low": None, "high": None}), "cells": int(known.sum())}


def predict_with_maps(backend: Backend, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute (N, K) probabilities and (N, K, h, w) signed maps of (N, S, S, 3) uint8 images; an error without maps."""
    found = [backend(batch, explain=True) for batch in _batches(pixels, AT_ONCE)]
    maps = [one.maps for one in found if one.maps is not None]
    if not maps:
        raise LeukoscopeError(f"this model {NO_MAP}; check those of a convolutional network")
    return softmax(np.concatenate([one.logits for one in found])), np.concatenate(maps)


def predict_views(backend: Backend, pixels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the eight views of each cell, the upright one first: probabilities (8, N, K), signed maps (8, N, h, w).

    The maps are those of the predicted class, turned back onto the upright cell.
    """
    rows, found = np.arange(len(pixels)), []
    for view in track(range(VIEWS), "maps of turned cells"):
        probabilities, maps = predict_with_maps(backend, turned(pixels, view))
        found.append((probabilities, turned_back(maps[rows, predicted], view)))
    probabilities, maps = zip(*found, strict=True)
    return np.stack(probabilities), np.stack(maps)


def other_cells(cells: int, seed: int) -> np.ndarray:
    """(N,) for each cell the number of another one, each taken once; the same for the same seed."""
    order = np.random.default_rng(seed).permutation(cells)
    others = np.empty(cells, int)
    others[order] = np.roll(order, 1)
    return others


def _batches(cells: np.ndarray, most: int) -> list[np.ndarray]:
    return np.array_split(cells, -(-len(cells) // most))


def randomisation(
    release: Release, pixels: np.ndarray, predicted: np.ndarray, own: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Compare each map with that of networks whose weights are randomised from the output on; see `DEFINITIONS`.

    It gives name of the change → (N,) rank correlation, NaN where a map is flat.
    """
    layers = len(_layers(release.network))
    depths = {"last_layer": 1, "later_half": max(1, layers // 2), "all_layers": layers}
    cells = len(own)
    others = (np.arange(cells) + np.random.default_rng(seed).integers(1, cells, cells)) % cells
    found = {"another_cell": rank_correlation(own, own[others])}
    generator = torch.Generator().manual_seed(seed)
    batches = _batches(pixels, AT_ONCE)
    with progress("maps of random networks", len(depths) * len(batches)) as advance:
        for name, depth in depths.items():
            parts = []
            for batch in batches:
                # A new random network for each batch: one alone could resemble the trained one by chance.
                network = _randomised(release.network, depth, generator)
                random = TorchBackend(network, release.preprocessing, blank_rgb=release.blank_rgb)
                random(batch)  # its batch normalisation takes the statistics of these cells
                network.eval()
                maps = random(batch, explain=True).maps
                assert maps is not None
                parts.append(maps)
                advance()
            found[name] = rank_correlation(own, np.concatenate(parts)[np.arange(cells), predicted])
    return found


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


def perturbation(
    backend: Backend, pixels: np.ndarray, predicted: np.ndarray, own: np.ndarray, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Measure deletion and insertion along the maps, along random ones and from the centre; see `DEFINITIONS`.

    Returns:
        "deletion" and "insertion" → map, random, centre: (N,) mean probability along each; gain_over_random,
        gain_over_centre: by how much the map is the better guide; better_than_random: how often it is. NaN where a
        map is flat.
    """
    rng, grid = np.random.default_rng(seed), own.shape[1:]
    y, x = (np.linspace(-1, 1, side) for side in grid)
    centre = -(y[:, None] ** 2 + x**2)
    areas = np.full((2, len(pixels), 2 + RANDOM_MAPS), np.nan)
    for i in track(np.flatnonzero(~is_flat(own)).tolist(), "deletion and insertion along maps"):
        # Where the map is flat in places, chance decides, as smoothly as for the maps it is compared with.
        evidence = own[i] / own[i].max() + 1e-6 * rng.random(grid)
        maps = np.stack([evidence, centre, *rng.random((RANDOM_MAPS, *grid))])
        pictures = _perturbed(pixels[i], enlarged(maps, len(pixels[i])))
        batches = _batches(pictures.reshape(-1, *pixels[i].shape), AT_ONCE)
        probabilities = softmax(np.concatenate([backend(batch).logits for batch in batches]))
        areas[:, i] = probabilities[:, predicted[i]].reshape(2, len(maps), STEPS).mean(axis=2)
    found = {}
    # A small area is good for deletion, a large one for insertion.
    for name, sign, area in (("deletion", -1, areas[0]), ("insertion", 1, areas[1])):
        gains = sign * (area[:, :1] - area[:, 2:])
        found[name] = {
            "map": area[:, 0],
            "random": area[:, 2:].mean(axis=1),
            "centre": area[:, 1],
            "gain_over_random": gains.mean(axis=1),
            "gain_over_centre": sign * (area[:, 0] - area[:, 1]),
            "better_than_random": (np.sign(gains).mean(axis=1) + 1) / 2,
        }
    return found


def _perturbed(cell: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Deletion and insertion along M maps (M, S, S) of an image (S, S, 3): (2, M, STEPS, S, S, 3) uint8."""
    from scipy.ndimage import gaussian_filter

    maps = len(evidence)
    order = np.argsort(-evidence.reshape(maps, -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1).reshape(maps, 1, *cell.shape[:2], 1)
    # The middles of equal steps, so that the mean over steps is the area under the curve.
    shares = (np.arange(STEPS) + 0.5) / STEPS
    first = rank < shares.reshape(-1, 1, 1, 1) * cell[..., 0].size
    # Blurred rather than black, since a black hole in a cell is new evidence: an edge that no cell has.
    blur = BLUR * len(cell)
    blurred = gaussian_filter(cell.astype(np.float32), sigma=(blur, blur, 0)).round().astype(np.uint8)
    return np.stack([np.where(first, blurred, cell), np.where(first, cell, blurred)])


def rotation(
    probabilities: np.ndarray, signed: np.ndarray, predicted: np.ndarray, others: np.ndarray
) -> dict[str, np.ndarray]:
    """Measure what turning and mirroring a cell does to its map and to its prediction; see `DEFINITIONS`.

    Args:
        probabilities, signed: of `predict_views`.
        predicted, others: (N,) the upright cells' classes, and for each cell the number of another one.

    Returns:
        correlation with the other views' maps, another_cell and their difference gain_over_another_cell (NaN where the
        cell's or the other cell's map is flat), probability_change (absolute) and answer_changes, each (N,), the mean
        of seven views.
    """
    maps, rows = np.maximum(signed, 0), np.arange(len(predicted))
    # A view whose map is flat shares nothing with the cell's: left out, it would make maps look steadier than they are.
    own = np.mean([np.nan_to_num(pearson_correlation(maps[0], view)) for view in maps[1:]], axis=0)
    own[is_flat(maps[0])] = np.nan
    another = pearson_correlation(maps[0], maps[0][others])
    change = np.abs(probabilities[1:, rows, predicted] - probabilities[0, rows, predicted])
    return {
        "correlation": own,
        "another_cell": another,
        "gain_over_another_cell": own - another,
        "probability_change": change.mean(axis=0),
        "answer_changes": (probabilities[1:].argmax(axis=2) != predicted).mean(axis=0),
    }


def cell_masks(pixels: np.ndarray) -> np.ndarray:
    """Find the cells in (N, S, S, 3) uint8 images of cells on black: (N, S, S) bool, holes within a cell filled."""
    from scipy.ndimage import binary_fill_holes

    return np.stack([binary_fill_holes(foreground(cell)) for cell in pixels])


def scale_bar_corner(size: int) -> np.ndarray:
    """Return (S, S) bool, the lower right corner where ball4 shows its scale bar; `size` is S in pixels."""
    side = round(size * SCALE_BAR_SIDE)
    corner = np.zeros((size, size), dtype=bool)
    corner[size - side :, size - side :] = True
    return corner


def heat_share(maps: np.ndarray, regions: np.ndarray) -> dict[str, np.ndarray]:
    """Measure how much of maps (N, h, w), ≥ 0, lies in the regions (N, S, S) bool of their images; (1, S, S) for all.

    Returns:
        heat: (N,) share of the enlarged map's sum, NaN for flat maps; area: share of the image, which a uniform map
        would have there; excess: heat less area.
    """
    heat = enlarged(maps, regions.shape[1])
    heat[is_flat(maps)] = np.nan
    share = (heat * regions).sum(axis=(1, 2)) / heat.sum(axis=(1, 2))
    area = np.broadcast_to(regions.mean(axis=(1, 2)), share.shape)
    return {"heat": share, "area": area, "excess": share - area}


def enlarged(maps: np.ndarray, size: int) -> np.ndarray:
    """Enlarge maps (N, h, w) to (N, S, S) float32, bilinear between cell centres as overlays show them."""
    grid = torch.from_numpy(np.asarray(maps, dtype=np.float32))[:, None]
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[:, 0].numpy()


def is_flat(maps: np.ndarray) -> np.ndarray:
    """Return (N,) bool: maps (N, h, w) with one value everywhere, hence without information."""
    return np.ptp(maps.reshape(len(maps), -1), axis=1) == 0


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute Spearman's correlation of each of (N, h, w) maps with its counterpart: (N,); NaN where one is flat."""
    from scipy.stats import rankdata

    return pearson_correlation(*(rankdata(m.reshape(len(m), -1), axis=1) for m in (maps, others)))


def pearson_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation of each map with its counterpart; as `rank_correlation`."""
    a, b = (m.reshape(len(m), -1).astype(np.float64) for m in (maps, others))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
