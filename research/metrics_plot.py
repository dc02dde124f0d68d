"""The plots of docs/evaluation.md and docs/results.md, drawn from committed JSON: `make docs`.

`metrics.png`: how many cells each normal subject of C-NMC brings; three AUROCs of cell size alone and of each release.
`findings.png`: a split by image beside unseen subjects, other batches, settings of a recipe, cells of other
laboratories.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from leukoscope.evaluation.plots import BLUE, GREY, ORANGE, VERMILION, new_figure, plain, save_plot
from leukoscope.models.release import read_metrics
from leukoscope.reports.release_tables import healthy_with_class
from research.readme_tables import FROZEN
from research.tables import by_protocol, read_results

SHOWN = (
    ("auroc", "over all cells", GREY),
    ("auroc_by_subject", "every subject the same", BLUE),
    ("auroc_equal_size", "at equal size", VERMILION),
)


def main() -> None:
    """Draw docs/metrics.png from every C-NMC release in model_card/, and docs/findings.png from results/ too."""
    evaluations = {
        path.name.removeprefix("leukoscope-"): read_metrics(path)["evaluations"][0]
        for path in sorted((ROOT / "model_card").glob("leukoscope-*-cnmc*"))
    }
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    _cells_by_subject(left, next(iter(evaluations.values())))
    _aurocs(right, evaluations)
    save_plot(figure, ROOT / "docs" / "metrics.png")
    figure = new_figure(9.0, 6.4)
    for draw, axes in zip((_leak, _batches, _layers, _refusals), figure.subplots(2, 2).flat, strict=True):
        draw(axes)
        plain(axes)
    save_plot(figure, ROOT / "docs" / "findings.png")


def _leak(axes: Any) -> None:
    rows = by_protocol(read_results(ROOT / "results" / "prior"))
    names = list(dict.fromkeys(recipe for recipe, _ in rows))
    for protocol, words, colour in (("random", "by image", ORANGE), ("unseen", "unseen subjects", BLUE)):
        values = [rows[name, protocol]["metrics"]["balanced_accuracy_by_subject"] for name in names]
        axes.plot(values, range(len(names)), "o", color=colour, label=words)
    axes.set_yticks(range(len(names)), [name.removeprefix("prior_") for name in names])
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.set_title("a  balanced accuracy by subject of ten networks", fontsize=9, loc="left")


def _intervals(axes: Any, rows: dict[str, tuple[float, dict[str, float]]], title: str) -> None:
    """AUROCs by subject with their intervals, the first row at the top."""
    for place, (value, ends) in enumerate(reversed(rows.values())):
        axes.errorbar(value, place, xerr=[[value - ends["low"]], [ends["high"] - value]], fmt="o", color=BLUE)
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title(f"{title}, AUROC by subject", fontsize=9, loc="left")


def _batches(axes: Any) -> None:
    (release, *_) = sorted((ROOT / "model_card").glob("*-cnmc"))
    own = read_metrics(release)["evaluations"][0]
    (batch,), (further,) = (
        read_results(ROOT / "results", f"{name}.json") for name in ("cross_batch", "further_subjects")
    )
    three, outside, alone = batch["over_the_three"], further["releases"][0]["one_view"], further["size_alone"]
    key = "auroc_by_subject"
    rows = {
        "cross-validation": (own["metrics"][key], own["intervals"]["by_subject"][key]),
        "third official fold": (three[key], three["intervals"][key]),
        f"{further['subjects']} further subjects": (outside[key]["value"], outside[key]),
        "of these, cell size alone": (alone[key]["value"], alone[key]),
    }
    _intervals(axes, rows, "b  other batches")


def _layers(axes: Any) -> None:
    (ablation,) = read_results(ROOT / "results" / "ablation")
    settings = {one["name"]: one for one in ablation["settings"]}
    names = {
        "frozen middle layers": FROZEN,
        "same, every cell alike": f"{FROZEN}, every cell alike",
        "frozen last layer": "frozen last level, whole picture, 224 px, every cell alike",
        "fine-tuned": "subjects evenly",
    }
    key = "auroc_by_subject"
    found = {words: settings[name] for words, name in names.items()}
    rows = {words: (one["metrics"][key], one["by_subject"][key]) for words, one in found.items()}
    _intervals(axes, rows, "c  settings of a recipe")


def _refusals(axes: Any) -> None:
    releases = {path.name: read_metrics(path) for path in sorted((ROOT / "model_card").glob("*-cnmc"))}
    for shift, (words, colour) in enumerate((("network alone: ALL", ORANGE), ("with the detector: any class", BLUE))):
        called = [
            float(healthy_with_class(one, ["ALL"], "most_probable") if shift == 0 else healthy_with_class(one))
            for one in releases.values()
        ]
        bars = axes.bar([n + 0.4 * shift for n in range(len(called))], called, width=0.36, color=colour, label=words)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks([n + 0.2 for n in range(len(releases))], [name.removeprefix("leukoscope-") for name in releases])
    axes.set_ylim(0, 130)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.set_title("d  of 100 white cells of healthy donors elsewhere", fontsize=9, loc="left")


def _cells_by_subject(axes: Any, evaluation: dict[str, Any]) -> None:
    subjects = evaluation["metrics"]["subjects"]
    normal = sorted(((s["cells"], name) for name, s in subjects.items() if s["label"] == "HEM"), reverse=True)
    cells = [count for count, _ in normal]
    axes.bar(range(len(cells)), cells, color=[ORANGE] * 3 + [GREY] * (len(cells) - 3))
    axes.set_xticks(range(len(cells)), [name for _, name in normal], rotation=90, fontsize=8)
    axes.set_ylabel("cells")
    axes.set_title(
        f"three of {len(cells)} normal subjects own {sum(cells[:3]) / sum(cells):.0%} of the cells", fontsize=9
    )
    plain(axes)


def _aurocs(axes: Any, evaluations: dict[str, dict[str, Any]]) -> None:
    size_only = next(iter(evaluations.values()))["size_only_baseline"]
    rows = {"cell size alone": size_only} | {name: one["metrics"] for name, one in evaluations.items()}
    for place, (key, words, colour) in enumerate(SHOWN):
        across = [number + (place - 1) * 0.26 for number in range(len(rows))]
        bars = axes.bar(across, [row[key] for row in rows.values()], width=0.24, color=colour, label=words)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xticks(range(len(rows)), list(rows), fontsize=9)
    axes.set_ylim(0.4, 1.0)
    axes.set_ylabel("AUROC, cross-validated")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
    plain(axes)


if __name__ == "__main__":
    main()
