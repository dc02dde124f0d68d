"""Are a release's heat maps true? Four checks that a map which only looks right does not pass.

A faithful map depends on what the network learnt, marks pixels that its answer rests on, lies on the cell, and turns
with the picture. Each check gives figures with intervals and, beside them, what a map that knows nothing would reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.evaluation.heat import enlarged, heat_share, irrelevant_regions, is_flat, rank_correlation
from leukoscope.evaluation.intervals import Draws, cell_draws, subject_draws
from leukoscope.evaluation.metrics import CellPredictions
from leukoscope.inference.gradcam import explain_features
from leukoscope.inference.heatmaps import share_on_cell
from leukoscope.models.release import Release

BATCH = 32
# A map has some 25 to 100 values, so eight steps trace a curve as well as the 224 of the RISE paper.
STEPS = 8
RANDOM_MAPS = 2
# The blur's standard deviation as a share of the side. What narrower blurs leave of a cell, a C-NMC network still takes
# for one class (HEM, at 1/8 and less); at 1/4 its answer is nearly undecided, and the same for cells of both classes.
BLUR = 1 / 4

DEFINITIONS = {
    "map": "Grad-CAM (ReLU) of the class the network answers, from its last feature map",
    "randomisation": "Adebayo et al. 2018 (doi:10.48550/arXiv.1810.03292): rank correlation of a cell's map with that "
    "of a network whose layers, from the output backwards, are redrawn from normal distributions with each tensor's "
    "own mean and deviation, anew for every batch of cells (redrawn batch normalisation uses the batch's statistics); "
    "another_cell: with the trained network's map of another cell, which is what maps of any two cells share",
    "deletion": "Petsiuk et al. 2018 (doi:10.48550/arXiv.1806.07421): mean probability of the answered class while "
    "pixels, most evidence first, give way to a blurred copy of the picture; low is good",
    "insertion": "the same while pixels of the picture, most evidence first, replace a blurred copy; high is good",
    "random": "maps of independent uniform values on the grid of the heat map, enlarged alike",
    "centre": "one map for all pictures, falling off evenly from the centre",
    "outside_cell": "share of the enlarged map's sum outside the cell (brighter than black, holes filled), beside the "
    "share of the area there, which a uniform map would reach",
    "scale_bar_corner": "share of the enlarged map's sum in the lower right corner, a seventh of the side each way, "
    "beside the share of the area there, which a uniform map would reach",
    "rotation": "picture turned by 90°, 180° and 270°: rank correlation of the map turned back, absolute change of the "
    "answered class's probability, share of turns that change the answer",
}


def heatmap_checks(
    release: Release,
    pixels: np.ndarray,
    labels: np.ndarray,
    subjects: Sequence[str],
    *,
    background: str,
    sample: int = 200,
    perturbed: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """The "heat_maps" block of metrics.json: every check, on cells drawn evenly over classes and their subjects.

    It costs 7 forward passes for each sampled and 64 more for each perturbed cell. Intervals are 95 %, by subject
    where all are known. Cells with a flat map are counted, and left out where there is nothing to check.

    Args:
        release: a convolutional network's release.
        pixels: (N, S, S, 3) uint8, framed for the release; may be memory-mapped.
        labels: (N,) int, true classes in the release's order.
        subjects: N subject ids, "" where unknown.
        background: "black" for cells cut out on black, whose maps are held against the cell; else "smear", whose maps
            are held against the scale-bar corner.
        sample: cells checked.
        perturbed: how many of those go through deletion and insertion, by far the dearest check.

    Raises:
        LeukoscopeError: fewer than two cells, or a network without a feature map.
    """
    rows = even_sample(labels, subjects, sample, seed)
    if len(rows) < 2:
        raise LeukoscopeError(f"heat maps: {len(rows)} cell(s) to check of {len(pixels)} given; give 2 or more")
    cells = np.asarray(pixels[rows])
    probabilities, maps = explained(release, release.network, cells)
    answered = probabilities.argmax(axis=1)
    own = maps[np.arange(len(rows)), answered]
    people = tuple(subjects[row] for row in rows)
    drawing, unit = _draws(
        CellPredictions(tuple(map(str, rows)), people, labels[rows], probabilities, release.labels), seed
    )
    place, regions = irrelevant_regions(cells, background)
    found = {
        "randomisation": randomisation(release, cells, answered, own, seed),
        **perturbation(release, cells[:perturbed], answered[:perturbed], own[:perturbed], seed),
        place: heat_share(own, regions),
        "rotation": rotation(release, cells, answered, probabilities, own),
    }
    return {
        "estimates": "these weights, on the cells drawn, whether or not they were trained on",
        "cells": len(rows),
        "subjects": len(set(people) - {""}),
        "perturbed_cells": min(perturbed, len(rows)),
        "flat_maps": int(is_flat(own).sum()),
        "map_size": list(own.shape[1:]),
        "intervals": f"95 %, {unit} drawn anew within their class",
        "seed": seed,
        "definitions": DEFINITIONS,
        **{name: {key: _summary(values, drawing) for key, values in check.items()} for name, check in found.items()},
    }


def evidence_scale(
    release: Release,
    pixels: np.ndarray,
    labels: np.ndarray,
    subjects: Sequence[str],
    *,
    background: str = "black",
    sample: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """The "evidence_scale" block of metrics.json: how strong a cell's evidence is, and how much of it lies on the cell.

    Takes the cells that `heatmap_checks` takes; arguments as there.
    """
    rows = even_sample(labels, subjects, sample, seed)
    chosen = np.asarray(pixels[rows])
    probabilities, maps = explained(release, release.network, chosen)
    quantiles = np.quantile(maps.max(axis=(1, 2, 3)), (0.05, 0.5, 0.95)).tolist()
    on_cell = {}
    if background == "black":
        pairs = zip(maps[np.arange(len(rows)), probabilities.argmax(axis=1)], chosen, strict=True)
        shares = [share for heat, cell in pairs if (share := share_on_cell(heat, cell)) is not None]
        if shares:
            values = np.quantile(shares, (0.05, 0.5, 0.95)).tolist()
            on_cell = dict(zip(("on_cell_p05", "on_cell_median", "on_cell_p95"), values, strict=True))
    return {
        "estimates": "these weights, on the cells drawn, whether or not they were trained on",
        "definition": "largest value of a cell's Grad-CAMs (ReLU) of all classes; quantiles over the cells drawn",
        **on_cell,
        "cells": len(rows),
        "seed": seed,
        **dict(zip(("p05", "median", "p95"), quantiles, strict=True)),
    }


def even_sample(labels: np.ndarray, subjects: Sequence[str], size: int, seed: int) -> np.ndarray:
    """Draw cells evenly over classes and, within a class, over subjects; so is every beginning of the draw.

    Returns:
        (min(size, N),) rows.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(_turns([(labels[i], subjects[i]) for i in order]), kind="stable")]
    order = order[np.argsort(_turns([labels[i] for i in order]), kind="stable")]
    return order[:size]


def _turns(groups: Sequence[Hashable]) -> list[int]:
    """For each entry, how many of its group came before."""
    seen: Counter[Hashable] = Counter()
    turns = []
    for group in groups:
        turns.append(seen[group])
        seen[group] += 1
    return turns


def _draws(answers: CellPredictions, seed: int) -> tuple[Draws, str]:
    """Samples for the intervals, and what they draw."""
    try:
        return subject_draws(answers, seed=seed), "subjects"
    except LeukoscopeError:
        return cell_draws(answers, seed=seed), "cells"


def _summary(values: np.ndarray, drawing: Draws) -> dict[str, float | int | None]:
    """Mean and interval of a figure (n,) of the first n cells; NaN where it is not defined, and None if nowhere."""
    known = np.zeros((len(drawing.unit_of_cell), 2))
    known[: len(values)] = np.stack([np.nan_to_num(values), np.isfinite(values)], axis=1)
    cells = int(known[:, 1].sum())
    if not cells:
        return {"mean": None, "low": None, "high": None, "cells": 0}
    with np.errstate(invalid="ignore"):
        total, count = drawing.sums(known).T
        interval = drawing.interval(total / count)
    return {"mean": float(known[:, 0].sum() / cells), **interval, "cells": cells}


def explained(release: Release, network: nn.Module, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers and every class's heat map, with the release's preprocessing.

    Args:
        network: the release's own, or a changed copy of it.
        pixels: (N, S, S, 3), 0–255.

    Returns:
        probabilities (N, K) and maps (N, K, h, w), both float32.
    """
    device, answers = next(network.parameters()).device, []
    for batch in _batches(pixels):
        inputs = torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = network.forward_features(release.preprocessing.normalise(inputs))  # type: ignore[operator]
        logits, maps = explain_features(network, features)
        answers.append((logits.softmax(dim=1).cpu().numpy(), maps.cpu().numpy()))
    probabilities, heat = zip(*answers, strict=True)
    return np.concatenate(probabilities), np.concatenate(heat)


def _batches(cells: np.ndarray) -> list[np.ndarray]:
    return np.array_split(cells, -(-len(cells) // BATCH))


def randomisation(
    release: Release, pixels: np.ndarray, answered: np.ndarray, own: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """How much of each map is left once the network forgets, layer by layer from its output; see `DEFINITIONS`.

    Returns:
        name of the change → (N,) rank correlation, NaN where a map is flat.
    """
    layers = len(_layers(release.network))
    depths = {"last_layer": 1, "later_half": max(1, layers // 2), "all_layers": layers}
    found = {"another_cell": rank_correlation(own, np.roll(own, 1, axis=0))}
    generator = torch.Generator().manual_seed(seed)
    for name, depth in depths.items():
        # A new random network for each batch: one alone could resemble the trained one by chance.
        parts = [explained(release, _forgetful(release.network, depth, generator), cells) for cells in _batches(pixels)]
        maps = np.concatenate([heat for _, heat in parts])
        found[name] = rank_correlation(own, maps[np.arange(len(maps)), answered])
    return found


def _layers(network: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own, in the order they were defined, which is that of use in timm's networks."""
    return [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]


def _forgetful(network: nn.Module, depth: int, generator: torch.Generator) -> nn.Module:
    """A copy whose last `depth` layers know nothing."""
    copy = deepcopy(network)
    for layer in _layers(copy)[-depth:]:
        for weights in layer.parameters(recurse=False):
            drawn = torch.randn(weights.shape, generator=generator).to(weights.device)
            weights.data.copy_(drawn * weights.data.std(correction=0) + weights.data.mean())
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            # The statistics it learnt belong to the old weights; with them activations would die or explode.
            layer.train()
    return copy


def perturbation(
    release: Release, pixels: np.ndarray, answered: np.ndarray, own: np.ndarray, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Deletion and insertion along the maps, along random ones and from the centre; see `DEFINITIONS`.

    Returns:
        "deletion" and "insertion" → map, random, centre: (N,) mean probability along each; gain_over_random,
        gain_over_centre: by how much the map is the better guide; better_than_random: how often it is. NaN where a
        map is flat.
    """
    rng, grid = np.random.default_rng(seed), own.shape[1:]
    y, x = (np.linspace(-1, 1, side) for side in grid)
    centre = -(y[:, None] ** 2 + x**2)
    areas = np.full((2, len(pixels), 2 + RANDOM_MAPS), np.nan)
    for i in np.flatnonzero(~is_flat(own)):
        # Where the map is flat in places, chance decides, as smoothly as for its rivals.
        evidence = own[i] / own[i].max() + 1e-6 * rng.random(grid)
        maps = np.stack([evidence, centre, *rng.random((RANDOM_MAPS, *grid))])
        pictures = _perturbed(pixels[i], enlarged(maps, len(pixels[i])))
        probabilities, _ = explained(release, release.network, pictures.reshape(-1, *pixels[i].shape))
        areas[:, i] = probabilities[:, answered[i]].reshape(2, len(maps), STEPS).mean(axis=2)
    return {"deletion": _against_rivals(areas[0], sign=-1), "insertion": _against_rivals(areas[1], sign=1)}


def _perturbed(cell: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Deletion and insertion along M maps (M, S, S) of a picture (S, S, 3): (2, M, STEPS, S, S, 3) float32."""
    maps = len(evidence)
    order = np.argsort(-evidence.reshape(maps, -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1).reshape(maps, 1, *cell.shape[:2], 1)
    # The middles of equal steps, so that the mean over steps is the area under the curve.
    shares = (np.arange(STEPS) + 0.5) / STEPS
    first = rank < shares.reshape(-1, 1, 1, 1) * cell[..., 0].size
    blurred = blurred_copy(cell)
    return np.stack([np.where(first, blurred, cell), np.where(first, cell, blurred)])


def blurred_copy(cell: np.ndarray) -> np.ndarray:
    """A picture (S, S, 3) without its content, float32: what pixels are replaced by to take their evidence away.

    Blurred rather than black, since a black hole in a cell is new evidence: an edge that no cell has.
    """
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(cell.astype(np.float32), sigma=(BLUR * len(cell), BLUR * len(cell), 0))


def _against_rivals(areas: np.ndarray, sign: int) -> dict[str, np.ndarray]:
    """Areas (N, M) of the map, of the centre and of random maps; `sign` is 1 where more is better, else −1."""
    own, centre, random = areas[:, 0], areas[:, 1], areas[:, 2:]
    gains = sign * (own[:, None] - random)
    return {
        "map": own,
        "random": random.mean(axis=1),
        "centre": centre,
        "gain_over_random": gains.mean(axis=1),
        "gain_over_centre": sign * (own - centre),
        "better_than_random": (np.sign(gains).mean(axis=1) + 1) / 2,
    }


def rotation(
    release: Release, pixels: np.ndarray, answered: np.ndarray, probabilities: np.ndarray, own: np.ndarray
) -> dict[str, np.ndarray]:
    """What turning the picture by right angles does to the map and to the answer; see `DEFINITIONS`.

    Returns:
        correlation (NaN where a map is flat), probability_change (absolute) and answer_changes, each (N,), the mean
        of three turns.
    """
    rows = np.arange(len(pixels))
    turns = []
    for quarters in (1, 2, 3):
        after, maps = explained(release, release.network, np.rot90(pixels, quarters, axes=(1, 2)))
        back = np.rot90(maps[rows, answered], -quarters, axes=(1, 2))
        change = np.abs(after - probabilities)[rows, answered]
        turns.append((rank_correlation(own, back), change, after.argmax(axis=1) != answered))
    return {
        name: np.mean([turn[i] for turn in turns], axis=0)
        for i, name in enumerate(("correlation", "probability_change", "answer_changes"))
    }
