"""The plot of docs/evaluation.md, drawn from the committed releases: `make docs`.

Left: how many cells each normal subject of C-NMC brings. Right: three AUROCs of cell size alone and of each release.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from leukoscope.evaluation.plots import BLUE, GREY, ORANGE, VERMILION, new_figure, plain, save_plot
from leukoscope.models.release import read_metrics

SHOWN = (
    ("auroc", "over all cells", GREY),
    ("auroc_by_subject", "every subject the same", BLUE),
    ("auroc_equal_size", "at equal size", VERMILION),
)


def main() -> None:
    """Draw docs/metrics.png from every C-NMC release in model_card/."""
    evaluations = {
        path.name.removeprefix("leukoscope-"): read_metrics(path)["evaluations"][0]
        for path in sorted((ROOT / "model_card").glob("leukoscope-*-cnmc*"))
    }
    figure = new_figure(9.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    _cells_by_subject(left, next(iter(evaluations.values())))
    _aurocs(right, evaluations)
    save_plot(figure, ROOT / "docs" / "metrics.png")


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
