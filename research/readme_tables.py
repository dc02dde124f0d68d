"""The tables of the README and of docs/: rendered from committed JSON between markers, nothing in them is typed.

`make docs` renders them anew from the releases in model_card/ and from results/.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.registry import DATASETS, cells_of
from leukoscope.evaluation.bootstrap import bootstrap_subjects
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.files import write_atomic
from leukoscope.models.metrics import Estimate, Interval, Metrics, RuleFigures, Selective
from leukoscope.models.release import PREDICTIONS_FOLDER, WEIGHTS_FILE, read_metrics
from leukoscope.reports.tables import (
    Table,
    count,
    healthy_kinds,
    healthy_with_class,
    metric_name,
    new_aliases,
    recognised_rows,
    share,
    span,
    with_interval,
    with_span,
)
from research.external import sha256_of
from research.speed_table import speed_table
from research.tables import (
    NOT_MEASURED,
    ablation_table,
    beside_table,
    by_protocol,
    difference,
    gain,
    overstated,
    prior_sources,
    prior_table,
    read_results,
    split_rule_table,
)

SHOWN_METRICS = ("auroc_by_subject", "auroc_equal_size", "balanced_accuracy_by_subject")
PAGES = ("docs/*.md", "research/README.md")  # beside the README
RELEASES = sorted(path.parent for path in (ROOT / "model_card").glob("*/metrics.json"))


def update_tables(readme: Path, releases: Sequence[Path]) -> list[Path]:
    """Render every table anew, in the README and in the `PAGES` beside it, from the releases and `results/`.

    Returns:
        the pages that hold a table.

    Raises:
        LeukoscopeError: no such README, a table whose markers no page holds, or a result file that is damaged; every
            page is then as it was.
    """
    if not readme.is_file():
        raise LeukoscopeError(f"{readme}: no such file")
    tables = readme_tables(readme.parent / "results", releases)
    paths = (readme, *(page for name in PAGES for page in sorted(readme.parent.glob(name))))
    pages = {page: page.read_text(encoding="utf-8") for page in paths}
    changed = {}
    for name, table in tables.items():
        start, end = markers(name)
        holders = [page for page, text in pages.items() if start in text]
        if not holders:
            raise LeukoscopeError(f"{readme}, docs/, research/: lack the markers {start!r} and {end!r}; restore them")
        for page in holders:
            before, rest = pages[page].split(start, 1)
            if end not in rest:
                raise LeukoscopeError(f"{page}: lacks the marker {end!r} after {start!r}; restore it")
            pages[page] = changed[page] = f"{before}{start}\n{table}\n{end}{rest.split(end, 1)[1]}"
    return [write_atomic(page, changed[page]) for page in pages if page in changed]


def readme_tables(results: Path, releases: Sequence[Path]) -> dict[str, str]:
    """Name of each table → its Markdown."""
    found = {name: read_results(results / name) for name in ("prior", "leakage", "audit", "ablation")}
    further = read_results(results, "further_subjects.json")
    return {
        "headline": headline_table(releases),
        **findings(results, releases),
        "results": results_table(releases),
        "external": external_table(further, releases),
        "decisions": decisions_table(releases),
        "subjects": subjects_table(releases),
        "prior": prior_table(found["prior"]),
        "smears": smears_table(read_results(results, "smears.json")),
        "speed": speed_table(results / "benchmarks", releases),
        "beside": beside_table(read_results(results, "beside_releases.json")),
        "split-rule": split_rule_table(read_results(results, "system_f.json")),
        "prior-notes": prior_sources(),
        "leakage": leakage_table(found["leakage"]),
        "shortcuts": shortcuts_table(found["audit"]),
        "ablation": ablation_table(found["ablation"]),
        "datasets": str(datasets_table()),
    }


FINDINGS = ("leak", "size", "weighing", "layers", "batch", "refusal")


def findings(results: Path, releases: Sequence[Path]) -> dict[str, str]:
    """The figures below each finding of docs/results.md."""
    ours = next((m for m in map(read_metrics, releases) if m.subject_rule and m.ood), None)
    prior, leakage = overstated(by_protocol(read_results(results / "prior"))), read_results(results / "leakage")
    ablation, batch = read_results(results / "ablation"), read_results(results, "cross_batch.json")
    further = read_results(results, "further_subjects.json")
    if not all((ours, prior, leakage, ablation, batch, further)):
        return dict.fromkeys(FINDINGS, NOT_MEASURED)
    assert ours is not None
    clear = [one["difference"] for one in prior.values() if one["low"] > 0]
    seen = next(one["difference"]["balanced_accuracy"] for one in leakage if one["data"]["name"] == "cnmc2019")
    evaluation, settings = ours.evaluations[0], {one["name"]: one for one in ablation[0]["settings"]}
    size, measured, rule = evaluation.size_only_baseline, evaluation.metrics, ours.subject_rule
    assert size is not None and rule is not None and rule.size_only is not None
    evenly, alike = (settings[FROZEN + after]["metrics"] for after in ("", ", every cell alike"))
    other = batch[0]["over_the_three"]
    outside = further[0]["releases"][0]["one_view"]
    return {
        "leak": f"A split by image overstates {len(clear)} of {len(prior)} networks, by {min(clear):.3f} to "
        f"{max(clear):.3f} of balanced accuracy by subject; with the same recipe, as many training cells and "
        f"the same test cells by {share(seen['mean'])} ({share(seen['smallest'])} to {share(seen['largest'])}).",
        "size": f"AUROC by subject of cell size alone {share(size.auroc_by_subject)}, of the network "
        f"{share(measured.auroc_by_subject)}; at equal size {share(size.auroc_equal_size)} and "
        f"{share(measured.auroc_equal_size)}.",
        "weighing": f"With every cell alike instead of every subject alike, the AUROC over all cells goes from "
        f"{share(evenly['auroc'])} to {share(alike['auroc'])}, the AUROC by subject from "
        f"{share(evenly['auroc_by_subject'])} to {share(alike['auroc_by_subject'])}.",
        "layers": f"AUROC by subject of the head on frozen layers {share(evenly['auroc_by_subject'])}, of the "
        f"fine-tuned DenseNet121 {share(settings['subjects evenly']['metrics']['auroc_by_subject'])}; difference "
        f"{difference(settings[FROZEN]['difference']['auroc_by_subject'])}.",
        "batch": f"AUROC by subject {with_interval(evaluation, 'auroc_by_subject')} in cross-validation, "
        f"{share(other['auroc_by_subject'])} ({span(Interval(**other['intervals']['auroc_by_subject']))}) "
        f"from two official folds to the third, {with_span(Estimate(**outside['auroc_by_subject']))} on "
        f"{further[0]['subjects']} further subjects (cell size alone: "
        f"{share(further[0]['size_alone']['auroc_by_subject']['value'])}).",
        "refusal": f"Of 100 white cells of healthy donors of other laboratories, the network alone calls "
        f"{healthy_with_class(ours, _positive_label(ours), outcomes='most_probable')} leukaemic; with the detector "
        f"{healthy_with_class(ours)} get a class. AUROC of a subject's pooled cells "
        f"{with_span(rule.measured.auroc)}, by their size alone {with_span(rule.size_only.auroc)}.",
    }


# Settings of the ablation: of the release, and beside it.
FROZEN = "frozen levels 1 and 2, whole picture, 320 px"


def datasets_table() -> Table:
    """The data sets of the registry."""
    rows = []
    for info in DATASETS.values():
        counts = [count for labels in info.official_counts.values() for count in labels.values()]
        total = info.official_counts.get("", {}).get("", sum(counts))
        classes = ", ".join(info.labels) if 0 < len(info.labels) <= 5 else str(len(info.labels) or "open")
        title = f"[{info.title}]({info.url})" if info.url else info.title
        cells = count(total) if total else "–"
        rows.append(
            [f"`{info.name}`", title, info.pictures, info.subjects or "not named", info.licence, classes, cells]
        )
    columns = ("`--dataset_name`", "what it is", "pictures", "subjects", "licence", "classes", "cells")
    return Table(columns, rows, text_columns=6)


def markers(name: str) -> tuple[str, str]:
    """The lines between which a page holds the table of that name."""
    return f"<!-- rendered: {name} -->", f"<!-- end of {name} -->"


def _positive_label(metrics: Metrics) -> list[str]:
    return [metrics.positive_label] if metrics.positive_label else []


def headline_table(releases: Sequence[Path]) -> str:
    """What releases are worth on people they never saw, the outside check first, and cell size alone beside them.

    Releases of the same classes share a table.
    """
    by_labels: dict[tuple[str, ...], dict[str, Metrics]] = {}
    for release in releases:
        metrics = read_metrics(release)
        if metrics.data.unit == "subject" and metrics.unseen_evaluation is not None:
            by_labels.setdefault(tuple(metrics.labels), {})[release.name] = metrics
    tables = [str(_headline(labels, measured)) for labels, measured in by_labels.items()]
    outside = [
        metrics.further_subjects
        for measured in by_labels.values()
        for metrics in measured.values()
        if metrics.further_subjects
    ]
    statements = dict.fromkeys(block.estimates for block in outside)
    return "\n\n".join([*tables, *statements])


def _headline(labels: Sequence[str], measured: Mapping[str, Metrics]) -> Table:
    """One kind of test after the other, further people first; within each, a row a release."""
    rows: dict[str, dict[str, list[str]]] = {kind: {} for kind in ("outside", "unseen", "changed", "size")}
    for name, metrics in measured.items():
        outside = metrics.further_subjects
        dashes = ["–"] * (len(labels) + 1)
        rows["changed"][name] = ["their cells under small changes: not measured", f"`{name}`", *dashes]
        for row in recognised_rows(metrics):
            if row.kind not in rows:
                continue  # docs/results.md shows the batches
            tested = row.measured_on
            if row.kind == "outside" and outside and outside.earlier_weights:
                tested += f" (earlier weights of this recipe, {outside.measured})"
            key, release = ("", "–") if row.kind == "size" else (name, f"`{name}`")
            rows[row.kind][key] = [tested, release, *row.texts[1:]]
    heads = [f"of 100 {cells_of(label)}, recognised" for label in labels]
    columns = ("test, on people that its networks never saw", "release", *heads, "AUROC by subject")
    return Table(columns, [row for kind in rows.values() for row in kind.values()], text_columns=2)


def _normal_called_leukaemic(release: Path, metrics: Metrics) -> str:
    """Of 100 normal cells of an unseen subject, how many have the leukaemic class as their most probable one.

    Every subject weighs the same; with the 95 % interval from bootstrap samples of subjects.
    """
    unseen = next((test for test in metrics.evaluations if test.is_unseen), None)
    leukaemic, labels = _positive_label(metrics), metrics.labels
    normal = [row for row, label in enumerate(labels) if label not in leukaemic]
    file = release / PREDICTIONS_FOLDER / f"{unseen.name}.parquet" if unseen else None
    if not leukaemic or file is None or len(normal) != 1 or not file.is_file():
        return "–"
    cells = CellPredictions.load(file)
    weights, wrong = cells.subject_weights, cells.predicted != cells.references
    if weights is None:
        return "–"
    weights = weights * (cells.references == normal[0])
    interval = bootstrap_subjects(cells).mean_interval(wrong, weights, of_class=normal[0])
    assert interval is not None
    low, high = (100 * interval[end] for end in ("low", "high"))
    return f"{100 * np.average(wrong, weights=weights):.0f} ({low:.0f}–{high:.0f})"


def results_table(releases: Sequence[Path]) -> str:
    """Each release on unseen subjects beside the random split of the prior systems."""
    names = [metric_name(key) for key in SHOWN_METRICS]
    columns = ("release", "tested on", "same subjects in training and test?", "cells", *names)
    rows = []
    for release in releases:
        metrics = read_metrics(release)
        unit = metrics.data.unit
        # One subject under several ids may be on two sides of a split by subject.
        by_subject = "**a few**, found since" if new_aliases(metrics) else "no"
        both_sides = {
            "cell": "**yes**",
            "subject": by_subject,
            "block": "not known, but no block of neighbouring images",
        }
        for block in metrics.evaluations:
            shown = [with_interval(block, key) for key in SHOWN_METRICS]
            if unit != "subject":  # under a heading "by subject"
                pairs = zip(SHOWN_METRICS, shown, strict=True)
                shown = [
                    f"{one} by {unit}" if key.endswith("_by_subject") and one != "–" else one for key, one in pairs
                ]
            size = block.size_only_baseline
            alone = " / ".join(share(size.figure(key)) for key in SHOWN_METRICS[:2]) if size else "–"
            sides, cells = both_sides.get(block.split.disjoint_by, "not known"), count(block.metrics.cells)
            rows.append([f"`{release.name}`", block.split.detail, sides, cells, *shown, alone])
    return str(Table((*columns, "cell size alone: both AUROCs"), rows, text_columns=3))


def decisions_table(releases: Sequence[Path]) -> str:
    """How many cells of unseen subjects a release gives a class to, and how many healthy donors' white cells."""
    columns = (
        "release",
        "cells of unseen subjects that get a class",
        "wrong, of those that get a class",
        "white cells of healthy donors of other laboratories",
        "of 100 of these, given a class",
        "called leukaemic by the network alone",
        "of 100 normal cells of unseen subjects, called leukaemic by the network alone",
    )
    rows = []
    for release in releases:
        metrics = read_metrics(release)
        abstention = metrics.decisions and metrics.decisions.abstention
        default = abstention.default if abstention else Selective()
        cells, leukaemic = healthy_cells(metrics), _positive_label(metrics)
        rows.append(
            [
                f"`{release.name}`",
                *(share(part) for part in (default.coverage_by_subject, default.risk_by_subject)),
                count(cells) if cells else "–",
                healthy_with_class(metrics),
                healthy_with_class(metrics, leukaemic, outcomes="most_probable"),
                _normal_called_leukaemic(release, metrics),
            ]
        )
    return str(Table(columns, rows))


def subjects_table(releases: Sequence[Path]) -> str:
    """Prediction of subjects by all their cells: one row for each release that was measured so."""
    aurocs = ("AUROC, one prediction per subject", "the same for cell size alone", "difference")
    names = (*aurocs, "sensitivity", "specificity", "subjects given a class", "of these, wrong")
    rows = []
    for release in releases:
        block = read_metrics(release).subject_rule
        if block:
            measured = block.measured
            sensitivity, specificity, wrong = (
                with_span(rate, "share") for rate in (measured.sensitivity, measured.specificity, measured.error_rate)
            )
            decided = f"{count(measured.given_a_class)} of {count(measured.subjects)}"
            cells = count(block.least_cells)
            if not block.least_cells_suffice:
                cells = f"more than {cells}"
            alone = block.size_only or RuleFigures()
            size_gain = alone.difference.content() if alone.difference else None
            auroc = [with_span(measured.auroc), with_span(alone.auroc), difference(size_gain)]
            rows.append([f"`{release.name}`", *auroc, sensitivity, specificity, decided, wrong, cells])
    return str(Table(("release", *names, "cells needed"), rows))


def external_table(measured: Sequence[Mapping[str, Any]], releases: Sequence[Path]) -> str:
    """The outside check, of all its people and by batch; earlier weights of a release are named so."""
    if not measured:
        return NOT_MEASURED
    (content,) = measured
    today = {release.name: sha256_of(release) for release in releases if (release / WEIGHTS_FILE).is_file()}
    keys = ("auroc_by_subject", "auroc_equal_size", "recall_ALL_by_subject", "recall_HEM_by_subject")
    everybody = f"all {content['subjects']}"
    rows = []
    for row in content["releases"]:
        if row["release"] not in today:
            continue
        earlier = "" if today[row["release"]] == row["sha256"] else " (earlier weights)"
        by_people = {everybody: row["one_view"]}
        for name, batch in row.get("by_batch", {}).items():
            by_people[f"{batch['subjects']}, {name.replace('_', ' ')}"] = batch
        for people, figures in by_people.items():
            texts = [with_span(Estimate(**figures.get(key, {}))) for key in keys]
            rows.append([f"`{row['release']}`{earlier}", people, *texts])
    alone = [with_span(Estimate(**content["size_alone"].get(key, {}))) for key in keys]
    rows.append(["cell size alone", everybody, *alone])
    counts = ", ".join(f"{count(cells)} {cells_of(label)}" for label, cells in content["cells_by_class"].items())
    table = Table(("release", "people", *map(metric_name, keys)), rows, text_columns=2)
    return f"{content['data']}: {counts}, measured on {content['measured']}.\n\n{table}"


def leakage_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """What testing on subjects seen in training adds, one row a data set, recipe and metric."""
    if not comparisons:
        return NOT_MEASURED
    rows = []
    for result in comparisons:
        recipe, seeds = result["recipe"], result["seeds"]
        trained = f"{recipe['architecture']}, {recipe['image_size']} px, {recipe['num_train_epochs']} epochs"
        # Where subjects are not published, blocks stand in for them, and one subject may fill two.
        data = result["data"]["title"] + (" — blocks for subjects" if result["data"]["unit"] == "block" else "")
        cells = count(round(sum(result["train_cells"]) / len(seeds)))
        for key in ("f1_weighted", "balanced_accuracy", "auroc"):
            if key not in result["difference"]:
                continue
            unseen, seen = (sum(seed[side][key] for seed in seeds) / len(seeds) for side in ("unseen", "seen"))
            seeds_gain = result["difference"][key]
            worth = f"**{gain(seeds_gain['mean'])}** ({gain(seeds_gain['smallest'])} … {gain(seeds_gain['largest'])})"
            rows.append([data, trained, cells, metric_name(key), share(unseen), share(seen), worth])
    tested = (
        "trained on other subjects only",
        "trained on the tested subjects' other cells, too",
        "difference (smallest … largest)",
    )
    table = Table(("data", "recipe", "training cells", "metric", *tested), rows, text_columns=2)
    return f"{table}\n"


def shortcuts_table(audits: Sequence[Mapping[str, Any]]) -> str:
    """What trivial features alone reach, one row a data set and feature."""
    if not audits:
        return NOT_MEASURED
    rows = []
    for audit in audits:
        shortcuts = audit["shortcuts"]
        tested = f"{shortcuts['split']['folds']}-fold cross-validation by {shortcuts['split']['disjoint_by']}"
        chance = share(shortcuts["chance_balanced_accuracy"])
        for feature, measured in shortcuts["features"].items():
            accuracy = f"{share(measured['balanced_accuracy'])} ({chance})"
            by_subject, f1, auroc = (share(measured.get(key)) for key in ("auroc_by_subject", "f1_weighted", "auroc"))
            rows.append([audit["data"]["title"], feature, tested, by_subject, auroc, accuracy, f1])
    names = ("AUROC by subject (or block)", "AUROC", "balanced accuracy (chance)", "weighted F1")
    columns = ("data", "feature", "tested on", *names)
    return f"{Table(columns, rows, text_columns=3)}\n"


def healthy_cells(metrics: Metrics) -> int:
    """How many white cells of healthy donors a release was tested on."""
    return sum(kind.cells for kind in healthy_kinds(metrics))


def smears_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """How well the cells of a smear are found, and how fast."""
    if not measured:
        return NOT_MEASURED
    (smears,) = measured
    bccd = smears["bccd"]
    given, alone = bccd["test_scale_given"], bccd["test_scale_measured"]
    rows = [
        ("white cells found, scale given", _found(given)),
        ("white cells found, scale measured", _found(alone)),
        (
            "scale measured within 25 % of the true one",
            f"{alone['scale_within_25_percent']:.0%} of {alone['scale_read_in']} smears",
        ),
        ("CPU seconds a smear", f"scale given: {given['cpu_seconds']:.2f} · measured: {alone['cpu_seconds']:.2f}"),
    ]
    cells = f"{count(given['true'])} cells of BCCD's {count(given['smears'])} test smears, IoU .5"
    return str(Table(("measured", cells), rows, text_columns=2))


def _found(match: Mapping[str, Any]) -> str:
    return f"recall **{share(match['recall'])}**, precision **{share(match['precision'])}**"


if __name__ == "__main__":
    for written in update_tables(ROOT / "README.md", RELEASES):
        print(written.relative_to(ROOT))
