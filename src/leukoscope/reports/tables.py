"""The tables of the README and of docs/: rendered from committed JSON between markers, nothing in them is typed.

The rows about releases come from `release_tables`; those about experiments and benchmarks are made here from results/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leukoscope import LeukoscopeError
from leukoscope.experiments.prior_systems import CLAIMS, PROTOCOLS, RANDOM, Claim
from leukoscope.files import write_atomic
from leukoscope.models.release_files import read_metrics
from leukoscope.reports.formatting import (
    Table,
    count,
    difference,
    gain,
    metric_name,
    minutes,
    new_aliases,
    share,
    span,
    with_interval,
    with_span,
)
from leukoscope.reports.release_tables import RESULT_METRICS, evaluation_row, healthy_kinds, healthy_share

_NOT_MEASURED = "Not measured yet."


def update_tables(readme: Path, releases: Sequence[Path]) -> list[Path]:
    """Render every table anew, in the README and in the pages of `docs/` beside it, from the releases and `results/`.

    Returns:
        the pages that hold a table.

    Raises:
        LeukoscopeError: no such README, a table whose markers no page holds, or a result file that is damaged; every
            page is then as it was.
    """
    if not readme.is_file():
        raise LeukoscopeError(f"--readme {readme}: no such file")
    tables = readme_tables(readme.parent / "results", releases)
    pages = {page: page.read_text() for page in (readme, *sorted((readme.parent / "docs").glob("*.md")))}
    changed = {}
    for name, table in tables.items():
        start, end = markers(name)
        holders = [page for page, text in pages.items() if start in text]
        if not holders:
            raise LeukoscopeError(f"{readme} and docs/ beside it: lack the markers {start!r} and {end!r}; restore them")
        for page in holders:
            before, rest = pages[page].split(start, 1)
            if end not in rest:
                raise LeukoscopeError(f"{page}: lacks the marker {end!r} after {start!r}; restore it")
            pages[page] = changed[page] = f"{before}{start}\n{table}\n{end}{rest.split(end, 1)[1]}"
    return [write_atomic(page, changed[page]) for page in pages if page in changed]


def readme_tables(results: Path, releases: Sequence[Path]) -> dict[str, str]:
    """Name of each table → its Markdown."""
    prior = read_results(results / "prior")
    return {
        "headline": headline_table(releases),
        "results": results_table(releases),
        "results-notes": results_notes(releases),
        "decisions": decisions_table(releases),
        "patients": patients_table(releases),
        "leakage": leakage_table(read_results(results / "leakage")),
        "shortcuts": shortcuts_table(read_results(results / "audit")),
        "prior": prior_table(prior),
        "prior-notes": prior_notes(prior),
        "ablation": ablation_table(read_results(results / "ablation")),
        "fields": fields_table(read_results(results, "fields.json")),
        "speed": speed_table(results / "benchmarks"),
    }


def markers(name: str) -> tuple[str, str]:
    """The lines between which a page holds the table of that name."""
    return f"<!-- {name}: rendered by `leukoscope release card` -->", f"<!-- end of {name} -->"


def read_results(folder: Path, pattern: str = "*.json") -> list[dict[str, Any]]:
    """Every JSON file of a results folder, by name; none where the folder is missing.

    Raises:
        LeukoscopeError: a damaged file.
    """

    def read(path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise LeukoscopeError(f"{path}: damaged ({error}); restore it from the repository") from None

    return [read(path) for path in sorted(folder.glob(pattern))]


def _positive_label(metrics: Mapping[str, Any]) -> list[str]:
    return [metrics["positive_label"]] if metrics.get("positive_label") else []


def headline_table(releases: Sequence[Path]) -> str:
    """One row a release: its metrics on the cells of unseen subjects, and on unseen persons."""
    columns = (
        "release",
        "AUROC by subject",
        "AUROC at equal size",
        "balanced accuracy by subject",
        "weighted F1",
        "AUROC of persons",
        "of 100 healthy white cells, called leukaemic",
        "split by image: weighted F1",
        "cell size alone: AUROC by subject",
    )
    rows = []
    for release in releases:
        metrics = read_metrics(release)
        evaluations = metrics.get("evaluations", [])
        unseen = next((one for one in evaluations if one["split"]["disjoint_by"] != "cell"), None)
        if unseen is None:
            rows.append([f"`{release.name}`", *["–"] * 8])
            continue
        by_image = next((one for one in evaluations if one["split"]["disjoint_by"] == "cell"), None)
        row = evaluation_row(metrics, unseen)
        keys = ("auroc_by_subject", "auroc_equal_size", "balanced_accuracy_by_subject", "f1_weighted")
        rows.append(
            [
                f"`{release.name}`",
                *(row[key] for key in keys),
                with_span((metrics.get("patients") or {}).get("measured", {}).get("auroc")),
                healthy_share(metrics, _positive_label(metrics)),
                share(by_image["metrics"]["f1_weighted"]) if by_image else "–",
                row["size_auroc"],
            ]
        )
    return str(Table(columns, rows))


def results_table(releases: Sequence[Path]) -> str:
    """Each release on unseen subjects beside the random split of the prior systems."""
    names = [metric_name(key) for key in RESULT_METRICS]
    columns = ("release", "tested on", "patients on both sides?", "cells", *names)
    rows = []
    for release in releases:
        metrics = read_metrics(release)
        for block in metrics.get("evaluations", []):
            row = evaluation_row(metrics, block)
            both_sides = row["both_sides"]
            for flattering in ("yes", "a few"):
                both_sides = both_sides.replace(flattering, f"**{flattering}**")
            shown = [row[key] for key in ("cells", *RESULT_METRICS, "size_auroc")]
            rows.append([f"`{release.name}`", row["detail"], both_sides, *shown])
    return str(Table((*columns, "cell size alone, AUROC by subject"), rows, text_columns=3))


def results_notes(releases: Sequence[Path]) -> str:
    """How each release of the results table was made, and what is known to make its metrics too good."""
    notes = []
    for release in releases:
        metrics = read_metrics(release)
        training, recipe = metrics["training"], metrics["recipe"]
        folds: list[dict[str, Any]] = next((e["folds"] for e in metrics["evaluations"] if "folds" in e), [])
        by_fold = ", ".join(share(fold["f1_weighted"]) for fold in folds)
        leak = ""
        if persons := new_aliases(metrics):
            leak = (
                f" Measured before `leukoscope data audit` found {', '.join(persons)} to be one person each: where its "
                "folds keep such ids apart, the metrics are too good."
            )
        notes.append(
            f"`{release.name}`: {recipe['architecture']} at {recipe['image_size']} px, {recipe['num_train_epochs']} "
            f"epochs, from {training['start_weights']}; released weights trained on {count(training['cells'])} cells "
            f"in {minutes(training['seconds'])}, the whole protocol in "
            f"{minutes(training.get('protocol_seconds', training['seconds']))} on {training['hardware']}. "
            f"Weighted F1 by fold: {by_fold or '–'}.{leak}\n"
        )
    return "\n".join(notes)


def decisions_table(releases: Sequence[Path]) -> str:
    """How many cells of unseen subjects a release gives a class to, and how many healthy people's white cells."""
    columns = (
        "release",
        "share of unseen subjects' cells that get a class",
        "of these wrong",
        "white cells of healthy people",
        "of 100 called leukaemic",
        "of 100 given any class",
        "of 100 called leukaemic by the network alone",
    )
    rows = []
    for release in releases:
        metrics = read_metrics(release)
        default = (metrics.get("decisions") or {}).get("abstention", {}).get("default", {})
        cells, leukaemic = sum(kind["cells"] for kind in healthy_kinds(metrics)), _positive_label(metrics)
        rows.append(
            [
                f"`{release.name}`",
                *(share(default.get(key)) for key in ("coverage", "risk")),
                count(cells) if cells else "–",
                healthy_share(metrics, leukaemic),
                healthy_share(metrics, metrics["labels"]),
                healthy_share(metrics, leukaemic, "most_probable"),
            ]
        )
    return str(Table(columns, rows))


def patients_table(releases: Sequence[Path]) -> str:
    """Prediction of persons by all their cells: one row for each release that was measured so."""
    names = ("persons", "AUROC of persons", "sensitivity", "specificity", "given a class", "of these wrong")
    rows = []
    for release in releases:
        if block := read_metrics(release).get("patients"):
            measured = block["measured"]
            sensitivity, specificity, wrong = (
                with_span(measured[key], "share") for key in ("sensitivity", "specificity", "error_rate")
            )
            persons, decided = count(measured["persons"]), count(measured["given_a_class"])
            auroc, cells = with_span(measured["auroc"]), count(block["least_cells"])
            rows.append([f"`{release.name}`", persons, auroc, sensitivity, specificity, decided, wrong, cells])
    return str(Table(("release", *names, "cells needed"), rows))


def leakage_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """What testing on patients seen in training adds, one row a data set, recipe and metric."""
    if not comparisons:
        return _NOT_MEASURED
    rows = []
    for result in comparisons:
        recipe, seeds = result["recipe"], result["seeds"]
        trained = f"{recipe['architecture']}, {recipe['image_size']} px, {recipe['num_train_epochs']} epochs"
        # Where patients are not published, blocks stand in for them, and one patient may fill two.
        data = result["data"]["title"] + (" — blocks for patients" if result["data"]["unit"] == "block" else "")
        cells = count(round(sum(result["train_cells"]) / len(seeds)))
        for key in ("f1_weighted", "balanced_accuracy", "auroc"):
            if key not in result["difference"]:
                continue
            unseen, seen = (sum(seed[side][key] for seed in seeds) / len(seeds) for side in ("unseen", "seen"))
            seeds_gain = result["difference"][key]
            worth = f"**{gain(seeds_gain['mean'])}** ({gain(seeds_gain['smallest'])} … {gain(seeds_gain['largest'])})"
            rows.append([data, trained, cells, metric_name(key), share(unseen), share(seen), worth])
    tested = ("tested patients unseen", "their other cells trained on", "the leak is worth (over seeds)")
    table = Table(("data", "recipe", "training cells", "metric", *tested), rows, text_columns=2)
    return f"{table}\n"


def shortcuts_table(audits: Sequence[Mapping[str, Any]]) -> str:
    """What trivial features alone reach, one row a data set and feature."""
    if not audits:
        return _NOT_MEASURED
    rows = []
    for audit in audits:
        shortcuts = audit["shortcuts"]
        tested = f"{shortcuts['split']['folds']}-fold cross-validation by {shortcuts['split']['disjoint_by']}"
        chance = share(shortcuts["chance_balanced_accuracy"])
        for feature, measured in shortcuts["features"].items():
            accuracy = f"{share(measured['balanced_accuracy'])} ({chance})"
            others = [share(measured[key]) for key in ("f1_weighted", "auroc")]
            rows.append([audit["data"]["title"], feature, tested, accuracy, *others])
    columns = ("data", "feature", "tested on", "balanced accuracy (chance)", "weighted F1", "AUROC")
    return f"{Table(columns, rows, text_columns=3)}\n"


def prior_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Every rebuilt prior system: the claim, what a split by image gives, and what unseen patients give."""
    measured = _by_protocol(results)
    rows = []
    for claim in _claims():
        others = [f"{name} {share(value)}" for name, value in claim.figures.items() if name != "accuracy"]
        claimed = " · ".join([share(claim.figures["accuracy"]), *others])
        both = [_measured(measured.get((claim.recipe, protocol))) for protocol in PROTOCOLS]
        rows.append([claim.system, f"`{claim.recipe}`", claimed, *both])
    without_network = _without_network(results)
    columns = ("system", "recipe", "its author claims", "measured, split by image", "measured, unseen patients")
    notes = ["Shares of cells predicted correctly (accuracy), and on how many unseen subjects"]
    if any(map(_by_subject, results)):
        notes.append("in brackets 95 % bootstrap intervals of these, where there are enough of each class")
    beside = (
        "The shares of ALL cells differ between the two columns, so compare balanced accuracies, and each row of C-NMC "
        "with the two that need no network. "
    )
    return (
        f"{Table(columns, [*rows, *without_network], text_columns=5)}\n\n"
        f"{'; '.join(notes)}. {beside if without_network else ''}The data of system B name no patients: blocks of "
        "neighbouring images stand for them."
    )


def _without_network(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What always predicting the commonest class, and a cell's size alone, reach on the tests of C-NMC."""
    tested = [
        [
            row
            for row in rows
            if row["protocol"] == protocol and row["size_only_baseline"] and row["data"]["name"] == "cnmc2019"
        ]
        for protocol in PROTOCOLS
    ]
    if not all(tested):
        return []
    commonest, size = [], []
    for measured in tested:
        # Size fitted on all training cells, where a system was trained on fewer.
        row = max(measured, key=lambda one: one["training"]["cells"])
        support = [one["support"] for one in row["metrics"]["per_class"].values()]
        commonest.append(f"{share(max(support) / sum(support))} · balanced {share(1 / len(support))}")
        alone = row["size_only_baseline"]
        size.append(f"{share(alone['accuracy'])} · balanced {share(alone['balanced_accuracy'])}")
    return [
        ["–", "*C-NMC: always the commonest class*", "–", *commonest],
        ["–", "*C-NMC: cell size alone*", "–", *size],
    ]


def prior_notes(results: Sequence[Mapping[str, Any]]) -> str:
    """Where each prior system is described, what its description leaves open, and how our rows were made."""
    measured, notes = _by_protocol(results), []
    for claim in _claims():
        keys = [(claim.recipe, protocol) for protocol in PROTOCOLS]
        runs = [_training_note(measured[key]) for key in keys if key in measured]
        notes.append(" ".join([f"- **{claim.system}** `{claim.recipe}`: {claim.source}; {claim.remark}.", *runs]))
    return "\n".join(notes)


def _claims() -> list[Claim]:
    return sorted(CLAIMS.values(), key=lambda claim: claim.system)


def _by_protocol(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(recipe, protocol) → the row measured with it."""
    return {(row["claim"]["recipe"], row["protocol"]): row for row in rows}


def _measured(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    metrics = row["metrics"]
    shown = [f"**{share(metrics['accuracy'])}**{_by_subject(row)}", f"balanced {share(metrics['balanced_accuracy'])}"]
    if len(metrics["per_class"]) > 2:
        shown.append(f"one-vs-rest {share(metrics['one_vs_rest_accuracy'])}")
    if row["protocol"] != RANDOM:
        shown.append(f"{metrics['subjects']} {row['data']['unit']}s")
    return " · ".join(shown)


def _by_subject(row: Mapping[str, Any]) -> str:
    interval = row["intervals"].get("by_subject", {}).get("accuracy")
    return f" ({span(interval)})" if interval else ""


def _training_note(row: Mapping[str, Any]) -> str:
    training, recipe, data, baseline = row["training"], row["recipe"], row["data"], row["size_only_baseline"]
    named = "By image" if row["protocol"] == RANDOM else "Unseen"
    size_alone = f" (accuracy of cell size alone: {share(baseline['accuracy'])})" if baseline else ""
    return (
        f"{named}: {data['title']}, {row['split']['detail']}, {count(training['cells'])} training and "
        f"{count(row['metrics']['cells'])} test cells{size_alone}, {recipe['image_size']} px, epoch "
        f"{training['kept_epoch']} of {training['epochs_run']} kept, from {training['start_weights']}, seed "
        f"{training['seed']}, {minutes(training['seconds'])} on {training['hardware']}."
    )


def ablation_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Settings of a recipe on unseen subjects, one table a comparison."""
    if not comparisons:
        return _NOT_MEASURED
    parts = []
    for comparison in comparisons:
        settings, first = comparison["settings"], comparison["compared_with"]
        parts.append(
            f"{comparison['data']['title']}: {comparison['estimates']}, {count(settings[0]['metrics']['cells'])} cells "
            f"predicted by networks trained on {count(max(settings[0]['train_cells']))} each.\n"
        )
        rows = []
        for setting in (*settings, {"name": "*the mean prediction of all*", **comparison["together"]}):
            metrics, auroc = setting["metrics"], {"metrics": setting["metrics"], "intervals": setting}
            beside = difference(setting["difference"]["auroc_by_subject"]) if setting["name"] != first else "–"
            keys = ("auroc_equal_size", "balanced_accuracy_by_subject", "auroc", "f1_weighted", "subject_auroc")
            spent = minutes(setting["training_seconds"]) if "training_seconds" in setting else "–"
            others = [share(metrics.get(key)) for key in keys]
            rows.append([setting["name"], with_interval(auroc, "auroc_by_subject"), beside, *others, spent])
        names = ("AUROC at equal size", "balanced accuracy by subject", "AUROC", "weighted F1", "AUROC of subjects")
        columns = ("setting", "AUROC by subject", f"beside “{first}”", *names, "training")
        parts.append(f"{Table(columns, rows)}\n")
    return "\n".join(parts)


def fields_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """How well the cells of a smear are found, how fast, and how many of them a release takes as in distribution."""
    if not measured:
        return _NOT_MEASURED
    (fields,) = measured
    bccd, gap = fields["bccd"], fields["domain_gap"]
    known = {"C-NMC, subjects the detector was not fitted on": gap["C-NMC in distribution, held-out subjects"]}
    known |= {name: cells["in_distribution_share"] for name, cells in gap["cut_outs"].items()}
    speeds = fields["speed"]["cpu_seconds_a_megapixel"]
    rows = [
        ("white cells found, scale given", _found(bccd["test_scale_given"])),
        ("white cells found, scale read from the red cells", _found(bccd["test_scale_from_red_cells"])),
        (
            "nuclei against ball4's own segmentation, Dice coefficient",
            _each({name: one["dice"] for name, one in fields["ball4"]["classes"].items()})
            + f" ({fields['ball4']['seen']})",
        ),
        (f"share of cells that `{Path(gap['model']).name}` takes as in distribution", _each(known)),
        ("CPU seconds a megapixel", " · ".join(f"{pitch}: {seconds:.2f}" for pitch, seconds in speeds.items())),
    ]
    return str(Table(("measured", "value"), rows, text_columns=2))


def _found(match: Mapping[str, Any]) -> str:
    cells = f"{count(match['true'])} cells in {count(match['fields'])} fields of BCCD's test list, boxes at IoU .5"
    return f"recall **{share(match['recall'])}**, precision **{share(match['precision'])}** ({cells})"


def _each(shares: Mapping[str, float]) -> str:
    return " · ".join(f"{name}: {share(value)}" for name, value in shares.items())


def speed_table(benchmarks: Path) -> str:
    """How fast: one row for each comparison that a benchmark gives, and how each is measured again."""
    measured = {path.stem: read_results(benchmarks, path.name)[0] for path in sorted(benchmarks.glob("*.json"))}
    rows = [
        # training-gpu.json was written by training.py.
        (f"`{name.partition('-')[0]}.py`", what, value, _measured_on(benchmark))
        for name, benchmark in measured.items()
        for what, value in _comparisons(benchmark)
    ]
    if not rows:
        return _NOT_MEASURED
    again = "`PYTHONPATH=src python benchmarks/NAME.py --help` says how a benchmark is run again."
    return f"{Table(('benchmark', 'measured', 'value', 'on'), rows, text_columns=4)}\n\n{again}"


def _comparisons(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was compared, and what came of it."""
    for row in benchmark.get("rows", []):
        if "times_faster" in row:
            # What names a row of a benchmark are its texts, in their order.
            named = ", ".join(value for value in row.values() if isinstance(value, str))
            times = (f"{kind} **{value:.2f}**" for kind, value in row["times_faster"].items())
            beside = f" as {benchmark['beside']}" if "beside" in benchmark else ""
            share_of_pure = row.get("share_of_pure_compute")
            pure = [] if share_of_pure is None else [f"{share(share_of_pure)} of pure compute's speed"]
            yield f"{named}: times as fast{beside}", " · ".join([*times, *pure])
    by_ratio: dict[str, list[str]] = {}
    for release in benchmark.get("releases", []):
        # Those that were aimed at; the file holds them all.
        for ratio in (ratio for ratio in release["ratios"] if "aim" in ratio):
            shown = f"`{release['model']}` **{ratio['value']:.2f}** (aim: {ratio['aim']})"
            by_ratio.setdefault(ratio["what"], []).append(shown)
    yield from ((what, " · ".join(values)) for what, values in by_ratio.items())
    if "until_first_answer" in benchmark:
        seconds, first = benchmark["seconds"], benchmark["seconds"]["answers"][0]
        parts = f"cloning {seconds['clone']:.0f}, installing {seconds['install']:.0f}, predicting {first:.0f}"
        yield (
            "seconds from a local `git clone` to the first explained prediction",
            (f"**{benchmark['until_first_answer']:.0f}** ({parts})"),
        )
    if "levels" in benchmark:
        what = f"`{benchmark['model']}`, demo: predictions with Grad-CAM maps a second; 95 % within"
        values = [
            f"{level['clients']} at once **{level['per_second']:.1f}**, {level['p95_seconds']:.2f} s, "
            f"{level['errors']} errors"
            for level in benchmark["levels"]
        ]
        yield what, " · ".join(values)
    if "memory_growth" in benchmark:
        speeds = " and ".join(f"{benchmark[part]['cells_a_second']:.0f}" for part in ("until_killed", "resumed"))
        growth, scored = benchmark["memory_growth"], f"{count(benchmark['cells'])} cells scored"
        memory = f"memory {growth['times_short_run']:.2f} times that of {count(benchmark['short_cells'])} cells"
        yield (
            f"`{benchmark['model']}`, {scored}: cells a second until killed, and resumed",
            f"**{speeds}**; {memory} (aim: {growth['aim']})",
        )
    if "times_faster_an_epoch" in benchmark:
        trained = f"`{benchmark['recipe']}`, {benchmark['image_size']} px, {benchmark['data']}"
        yield (
            f"{trained}: times as fast an epoch from kept features as from pixels",
            (f"**{benchmark['times_faster_an_epoch']:.2f}**, after {benchmark['seconds_to_keep']:.0f} s to keep them"),
        )


def _measured_on(benchmark: Mapping[str, Any]) -> str:
    if "hardware" in benchmark:
        return benchmark["hardware"]
    machine = benchmark["machine"]
    # A benchmark of the processor may run on a machine with a GPU.
    gpus = [gpu["name"] for gpu in machine["gpus"]] if benchmark.get("device") != "cpu" else []
    threads = [f"{benchmark['threads']} thread(s)"] if "threads" in benchmark else []
    return ", ".join(gpus or [machine["cpu"], *threads])
