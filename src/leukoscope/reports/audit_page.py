"""The HTML page of an audit: what would inflate metrics, then each finding with pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukoscope.audit import ODDITIES, ScannedCells, open_cell
from leukoscope.evaluation.baselines import FEATURES
from leukoscope.evaluation.plots import CLASS_COLOURS, new_figure, plain
from leukoscope.reports.formatting import Table, count, share
from leukoscope.reports.html import Picture, Section, cell_picture, plot_picture, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Findings = Mapping[str, Any]
_SHOWN_PAIRS = 21
_SHOWN_ODD = 7
_SHOWN_SIZES = 8
_SIDE = 128  # pixels of a shown picture
_NAMED_SUBJECTS = 60  # at most, below their boxes
_CROSSED = {
    "pairs": "pairs",
    "subjects": "across subjects, as published",
    "classes": "across classes",
    "official_folds": "across official folds",
    "split_sides": "across the sides of the split",
    "units": "across what splits keep together",
    "inflates": "would inflate metrics",
}


def write_audit_page(path: Path, findings: Findings, seen: ScannedCells) -> Path:
    """Write the findings of `audit_cells`, with pictures of their cells."""
    data = findings["data"]
    lead = [f"{data['cells']:,} pictures. {data['citation']}".strip()]
    if data["synthetic"]:
        lead.append("These cells are synthetic: metrics on them say nothing about patients.")
    return write_page(path, f"Audit: {data['title']}", lead, list(_sections(findings, seen)))


def _sections(findings: Findings, seen: ScannedCells) -> Iterator[Section]:
    """What would inflate metrics, then each finding with its pictures."""
    data, split, lines = findings["data"], findings["split"], findings["inflating"]
    scope = f"the split checked ({split['strategy']}, {split['detail']})" if split else f"splits by {data['unit']}"
    nothing = f"Nothing was found that would inflate metrics on {scope}."
    yield Section("What would inflate metrics", lines or [nothing], verdict="bad" if lines else "good")
    if findings["warnings"]:
        yield Section("Shortcuts outside the cell", findings["warnings"], verdict="warning")
    if findings["subject_aliases"]["groups"]:
        yield _aliases(findings["subject_aliases"])
    yield from _copies(findings, seen)
    yield _shortcuts(findings)
    yield _classes(findings)
    yield _sizes(findings)
    yield _odd_pictures(findings["odd_pictures"], seen)
    counts = findings["counts"]
    lines = [f"Unreadable: {message}" for message in findings["unreadable"]]
    lines += [f"Counts differ: {line}" for line in counts["differences"]] + counts["passed_over"]
    nothing = "Every file could be read, and no count differs from a published one."
    yield Section("Files and counts", lines or [nothing], verdict="warning" if lines else "good")


def _aliases(aliases: Findings) -> Section:
    rows = []
    for group in aliases["groups"]:
        links = (
            f"{' – '.join(link['subjects'])}: {link['identical']} identical, {link['near']} near-identical"
            for link in group["links"]
        )
        joined = "all" if group["known"] else f"not {', '.join(group['unjoined'])}"
        rows.append((" = ".join(group["subjects"]), joined, "; ".join(links)))
    text = [
        "Subject ids that share cells belong to one subject: kept apart, they put it on both sides of a split.",
        f"Proposed subject_aliases: {', '.join(f'{other} → {one}' for other, one in aliases['proposed'].items())}",
    ]
    columns = ("one subject", "already joined when loading", "pairs of pictures they share")
    known = all(group["known"] for group in aliases["groups"])
    return Section("Subjects under several ids", text, Table(columns, rows), verdict="warning" if known else "bad")


def _copies(findings: Findings, seen: ScannedCells) -> Iterator[Section]:
    duplicates = findings["duplicates"]
    kinds, criteria = (duplicates["identical"], duplicates["near"]), duplicates["criteria"]
    text = [
        "Identical means every pixel. Near-identical pictures have perceptual hashes that differ in at most "
        f"{criteria['hash_bits_at_most']} of 255 bits and, reduced to 32 × 32, differ by at most "
        f"{criteria['difference_at_most']:g} grey levels with a correlation of at least "
        f"{criteria['correlation_at_least']:g}, as they lie or after a turn or flip.",
        f"Splits keep a {findings['data']['unit']} on one side; a pair within one does no harm there.",
    ]
    verdict = "bad" if any(kind["inflates"] for kind in kinds) else ""
    yield Section("Copies", text, copies_table(findings), verdict=verdict)
    for heading, identical in (("Identical pictures", True), ("Near-identical pictures", False)):
        if pairs := _telling([pair for pair in duplicates["pairs"] if pair["identical"] == identical]):
            shown = min(_SHOWN_PAIRS, len(pairs))
            about = f"{shown} of {len(pairs)}, those first that would inflate metrics or lie in two subjects."
            yield Section(heading, [about], pictures=[_pair_picture(pair, seen) for pair in pairs[:shown]])


def _shortcuts(findings: Findings) -> Section:
    shortcuts = findings["shortcuts"]
    if "not_measured" in shortcuts:
        return Section("Shortcuts", [f"Not measured: {shortcuts['not_measured']}"], verdict="warning")
    tested = shortcuts["split"]
    text = [
        "What logistic regression predicts from features that have nothing to do with a cell's inner structure. "
        "A network is worth what it adds to these.",
        f"Tested on {shortcuts['cells']:,} cells, {tested['folds']} fold(s), {tested['strategy']}, disjoint by "
        f"{tested['disjoint_by']}. Chance: balanced accuracy {shortcuts['chance_balanced_accuracy']:.3f}. "
        f"Left out — {shortcuts['left_out']}.",
    ]
    table = shortcuts_table(findings)
    rows = [(*row, FEATURES[row[0]]) for row in table.rows]
    return Section("Shortcuts", text, Table((*table.columns, "what it is"), rows))


def _classes(findings: Findings) -> Section:
    mixed, subjects, text = findings["subjects_in_two_classes"], findings["subjects"], []
    if mixed["subjects"]:
        named = "; ".join(
            f"{subject} ({', '.join(f'{number} {label}' for label, number in cells.items())})"
            for subject, cells in mixed["subjects"].items()
        )
        expected = "" if mixed["suspect"] else " Most subjects have several, so this is the rule here."
        text.append(f"Subjects with cells of two classes: {named}.{expected}")
    rows = [
        (label, count(of["cells"]), count(of["subjects"]) if subjects else "–")
        for label, of in findings["classes"].items()
    ]
    pictures = []
    if subjects:
        alt = "Bars: cells of each subject, by class"
        pictures.append(plot_picture(cells_figure(findings), alt, "Cells of each subject, as published."))
    else:
        text.append("Subjects are not known: no metric can be shown to hold for a subject the model never saw.")
    verdict = "bad" if mixed["suspect"] else "" if subjects else "warning"
    table = Table(("class", "cells", "subjects, as published"), rows)
    return Section("Classes and subjects", text, table, pictures, verdict)


def _sizes(findings: Findings) -> Section:
    sizes = findings["picture_sizes"]
    rows = [(size, count(number)) for size, number in list(sizes.items())[:_SHOWN_SIZES]]
    text = [] if len(sizes) <= _SHOWN_SIZES else [f"The {_SHOWN_SIZES} most common of {len(sizes)} picture sizes."]
    pictures = []
    if findings["data"]["background"] == "black":
        alt = "Boxes: the cells' bounding-box area by class and by subject"
        caption = "Area of the box around a cell: boxes hold the middle half, whiskers 90 % of the cells."
        pictures.append(plot_picture(areas_figure(findings), alt, caption))
    return Section("Sizes", text, Table(("width × height in pixels", "pictures"), rows), pictures)


def _odd_pictures(odd: Findings, seen: ScannedCells) -> Section:
    rows, pictures = [], []
    for name, meaning in ODDITIES.items():
        rows.append((name, count(odd["counts"][name]), meaning))
        for one in [one for one in odd["pictures"] if one["why"][0] == name][:_SHOWN_ODD]:
            caption = f"{one['cell']}: {', '.join(one['why'])}"
            pictures.append(cell_picture(open_cell(seen.rows[one["row"]]), f"Picture {one['cell']}", caption))
    verdict = "warning" if odd["pictures"] else "good"
    return Section("Odd pictures", (), Table(("what", "pictures", "meaning"), rows), pictures, verdict)


def copies_table(findings: Findings) -> Table:
    """Counts of the copies that cross subjects, classes and splits, as far as these are known."""
    known = {
        "subjects": findings["subjects"],
        "official_folds": findings["data"]["official_folds"],
        "split_sides": findings["split"],
    }
    kinds = [findings["duplicates"][kind] for kind in ("identical", "near")]
    crossed = {name: text for name, text in _CROSSED.items() if known.get(name, True)}
    rows = [(text, *(count(kind[name]) for kind in kinds)) for name, text in crossed.items()]
    return Table(("copies", "identical", "near-identical"), rows)


def shortcuts_table(findings: Findings) -> Table:
    """Metrics of each feature alone, "–" where one could not be measured; no rows where none was measured."""
    keys = ("balanced_accuracy", "f1_weighted", "auroc")
    features = findings["shortcuts"].get("features", {})
    rows = [(name, *(share(measured[key]) for key in keys)) for name, measured in features.items()]
    return Table(("predicted from", "balanced accuracy", "weighted F1", "AUROC"), rows)


def _telling(pairs: Sequence[Findings]) -> list[Findings]:
    """Sort pairs: harmful ones first, then those across subjects, each two subjects in turn, least alike first."""
    turn: Counter[tuple[str, ...]] = Counter()
    ranked = []
    for pair in sorted(pairs, key=lambda pair: -pair["difference"]):
        between = tuple(sorted(pair["subjects"]))
        ranked.append((not pair["across"]["inflates"], not pair["across"]["subjects"], turn[between], pair))
        turn[between] += 1
    return [pair for *_, pair in sorted(ranked, key=lambda entry: entry[:3])]


def _pair_picture(pair: Findings, seen: ScannedCells) -> Picture:
    """One picture above the other."""
    from PIL import Image

    both = Image.new("RGB", (_SIDE, 2 * _SIDE + 4), "white")
    for place, row in enumerate(pair["rows"]):
        both.paste(open_cell(seen.rows[row]).resize((_SIDE, _SIDE)), (0, place * (_SIDE + 4)))
    names = " above ".join(pair["cells"])
    how = "identical" if pair["identical"] else f"{pair['difference']:.1f} grey levels apart"
    caption = f"{pair['cells'][0]} / {pair['cells'][1]}: {how}{', turned' if pair['turned'] else ''}"
    return cell_picture(both, f"Two pictures of one cell, {names}", caption, side=2 * _SIDE + 4)


def cells_figure(findings: Findings) -> Figure:
    """Plot the number of cells of each subject, one panel per class, most first."""
    figure = new_figure(9.5, 2.6)
    for axes, (label, colour, subjects) in _panels(figure, findings, lambda s: -sum(s["cells"].values())):
        heights = [subject["cells"][label] for _, subject in subjects]
        axes.bar(range(len(subjects)), heights, color=colour)
        _name_subjects(axes, [name for name, _ in subjects])
        axes.set_title(f"{label} · {len(subjects)} subjects", fontsize=10, loc="left", color=colour)
    figure.axes[0].set_ylabel("cells")
    return figure


def areas_figure(findings: Findings) -> Figure:
    """Plot quantiles of the cells' area: of each class, then of its subjects, smallest first."""
    figure = new_figure(9.5, 3.2)
    for axes, (label, colour, subjects) in _panels(figure, findings, lambda s: s["area"][2]):
        named = [("all", findings["classes"][label]), *subjects]
        keys = ("whislo", "q1", "med", "q3", "whishi")
        boxes = [dict(zip(keys, of["area"] or [0] * 5, strict=True)) for _, of in named]
        drawn = axes.bxp(boxes, positions=range(len(named)), widths=0.7, showfliers=False, patch_artist=True)
        for number, box in enumerate(drawn["boxes"]):
            box.set(facecolor=colour, alpha=0.9 if number == 0 else 0.45, edgecolor=colour)
        for median in drawn["medians"]:
            median.set_color("black")
        _name_subjects(axes, [name for name, _ in named])
        axes.set_title(label, fontsize=10, loc="left", color=colour)
    figure.axes[0].set_ylabel("share of the picture")
    return figure


def _panels(
    figure: Figure, findings: Findings, order: Callable[[Findings], float]
) -> Iterator[tuple[Axes, tuple[str, str, list[tuple[str, Findings]]]]]:
    """One panel per class: its axes, its name, its colour and its subjects in order."""
    subjects_of = sorted(findings["subjects"].items(), key=lambda named: order(named[1]))
    of_class = {label: [one for one in subjects_of if label in one[1]["cells"]] for label in findings["classes"]}
    ratios = [len(subjects) + 3 for subjects in of_class.values()]
    panels = figure.subplots(1, len(of_class), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for number, (axes, (label, subjects)) in enumerate(zip(panels, of_class.items(), strict=True)):
        plain(axes)
        yield axes, (label, CLASS_COLOURS[number % len(CLASS_COLOURS)], subjects)


def _name_subjects(axes: Axes, names: Sequence[str]) -> None:
    if len(names) > _NAMED_SUBJECTS:
        axes.set_xticks([])
        axes.set_xlabel("subjects", fontsize=8)
        return
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
