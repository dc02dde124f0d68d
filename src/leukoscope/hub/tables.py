"""The tables of the README and of docs/, rendered from committed JSON between markers; nothing else is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leukoscope import LeukoscopeError
from leukoscope.cells.files import write_whole
from leukoscope.hub.wording import count, gain, joined_since, minutes, share, span, with_interval
from leukoscope.models.release_files import read_metrics
from leukoscope.training.reproduce import CLAIMS, PROTOCOLS, RANDOM, Claim


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
    rendered = {page: text for page, old in pages.items() if (text := _rendered(old, tables, page)) is not None}
    for name in tables:
        start, end = markers(name)
        if not any(start in text for text in pages.values()):
            raise LeukoscopeError(f"{readme} and docs/ beside it: lack the markers {start!r} and {end!r}; restore them")
    return [write_whole(page, text) for page, text in rendered.items()]


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
    return f"<!-- {name}: rendered by `leukoscope card` -->", f"<!-- end of {name} -->"


def _rendered(text: str, tables: Mapping[str, str], page: Path) -> str | None:
    """A page with its tables filled in; None where it holds none."""
    held = [name for name in tables if markers(name)[0] in text]
    for name in held:
        text = _between_markers(text, name, tables[name], page)
    return text if held else None


def _between_markers(text: str, name: str, table: str, page: Path) -> str:
    start, end = markers(name)
    before, rest = text.split(start, 1)
    if end not in rest:
        raise LeukoscopeError(f"{page}: lacks the marker {end!r} after {start!r}; restore it")
    return f"{before}{start}\n{table}\n{end}{rest.split(end, 1)[1]}"


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


def headline_table(releases: Sequence[Path]) -> str:
    """One row a release: what unseen subjects' cells, and unseen persons, are predicted with."""
    columns = [
        "release",
        "AUROC by subject",
        "AUROC at equal size",
        "balanced accuracy by subject",
        "weighted F1",
        "AUROC of persons",
        "of 100 healthy white cells, called leukaemic",
        "split by image: weighted F1",
        "cell size alone: AUROC by subject",
    ]
    rows = [_headline_row(release.name, read_metrics(release)) for release in releases]
    return "\n".join([f"| {' | '.join(columns)} |", f"|---|{'--:|' * 8}", *rows])


def _headline_row(name: str, metrics: Mapping[str, Any]) -> str:
    evaluations = metrics.get("evaluations", [])
    unseen = next((one for one in evaluations if one["split"]["disjoint_by"] != "cell"), None)
    by_image = next((one for one in evaluations if one["split"]["disjoint_by"] == "cell"), None)
    if unseen is None:
        return f"| `{name}` | {' | '.join(['–'] * 8)} |"
    keys = ("auroc_by_subject", "auroc_equal_size", "balanced_accuracy_by_subject", "f1_weighted")
    persons = (metrics.get("patients") or {}).get("measured", {}).get("auroc")
    cells = [
        f"`{name}`",
        *(with_interval(unseen, key) for key in keys),
        f"{share(persons['value'])} ({span(persons)})" if persons else "–",
        _of_100_healthy(metrics, "outcomes", [metrics["positive_label"]] if metrics.get("positive_label") else []),
        share(by_image["metrics"]["f1_weighted"]) if by_image else "–",
        share((unseen.get("size_only_baseline") or {}).get("auroc_by_subject")),
    ]
    return f"| {' | '.join(cells)} |"


def results_table(releases: Sequence[Path]) -> str:
    """Each release on unseen subjects beside the random split of the prior systems."""
    head = [
        "| release | tested on | patients on both sides? | cells | AUROC by subject | AUROC at equal size | "
        "balanced accuracy by subject | AUROC | weighted F1 | cell size alone, AUROC by subject |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows = [
        _result_row(release.name, block, shares_persons=bool(joined_since(metrics)))
        for release, metrics in ((release, read_metrics(release)) for release in releases)
        for block in metrics.get("evaluations", [])
    ]
    return "\n".join([*head, *rows])


def results_notes(releases: Sequence[Path]) -> str:
    """How each release of the results table was made, and what is known to flatter it."""
    return "\n".join(_training_note(release.name, read_metrics(release)) for release in releases)


def decisions_table(releases: Sequence[Path]) -> str:
    """How many cells of unseen subjects a release gives a class to, and how many healthy people's white cells."""
    columns = [
        "release",
        "share of unseen subjects' cells that get a class",
        "of these wrong",
        "white cells of healthy people",
        "of 100 called leukaemic",
        "of 100 given any class",
        "of 100 called leukaemic by the network alone",
    ]
    head = [f"| {' | '.join(columns)} |", "|---|--:|--:|--:|--:|--:|--:|"]
    return "\n".join([*head, *(_decisions_row(release.name, read_metrics(release)) for release in releases)])


def _decisions_row(name: str, metrics: Mapping[str, Any]) -> str:
    default = (metrics.get("decisions") or {}).get("abstention", {}).get("default", {})
    labels, cells = metrics["labels"], sum(kind["cells"] for kind in _healthy_kinds(metrics))
    leukaemic = [metrics["positive_label"]] if metrics.get("positive_label") else []
    answered = [share(default.get(key)) for key in ("coverage", "risk")]
    healthy = [
        _of_100_healthy(metrics, outcomes, wanted)
        for outcomes, wanted in (("outcomes", leukaemic), ("outcomes", labels), ("most_probable", leukaemic))
    ]
    return f"| {' | '.join([f'`{name}`', *answered, count(cells) if cells else '–', *healthy])} |"


def _healthy_kinds(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The kinds of healthy people's white cells that a release was shown."""
    return [kind for source in metrics.get("ood", {}).get("healthy", {}).values() for kind in source.values()]


def _of_100_healthy(metrics: Mapping[str, Any], outcomes: str, wanted: Sequence[str]) -> str:
    """Of 100 such cells, how many have one of the `wanted` classes as their outcome, or as most probable class."""
    kinds = _healthy_kinds(metrics)
    cells = sum(kind["cells"] for kind in kinds)
    if not cells or not wanted:
        return "–"
    return f"{100 * sum(kind[outcomes][label] for kind in kinds for label in wanted) / cells:.0f}"


def patients_table(releases: Sequence[Path]) -> str:
    """Persons told apart by all their cells: one row for each release that was measured so."""
    columns = [
        "release",
        "persons",
        "AUROC of persons",
        "sensitivity",
        "specificity",
        "given a class",
        "of these wrong",
        "cells needed",
    ]
    blocks = {release.name: read_metrics(release).get("patients") for release in releases}
    rows = [_patients_row(name, block) for name, block in blocks.items() if block]
    return "\n".join([f"| {' | '.join(columns)} |", "|---|--:|--:|--:|--:|--:|--:|--:|", *rows])


def _patients_row(name: str, block: Mapping[str, Any]) -> str:
    measured = block["measured"]

    def rate(key: str) -> str:
        return f"{share(measured[key]['share'])} ({span(measured[key])})"

    auroc = f"{share(measured['auroc']['value'])} ({span(measured['auroc'])})"
    cells = [f"`{name}`", count(measured["persons"]), auroc, rate("sensitivity"), rate("specificity")]
    cells += [count(measured["given_a_class"]), rate("error_rate"), count(block["least_cells"])]
    return f"| {' | '.join(cells)} |"


RESULT_METRICS = ("auroc_by_subject", "auroc_equal_size", "balanced_accuracy_by_subject", "auroc", "f1_weighted")
"""Of an evaluation, in the order in which README, cards and the demo show them."""


def _result_row(name: str, block: Mapping[str, Any], *, shares_persons: bool) -> str:
    baseline = block.get("size_only_baseline") or {}
    # Persons found under several ids after the measurement may stand on two sides of a split by subject.
    by_subject = "**a few**, found since" if shares_persons else "no"
    both_sides = {"cell": "**yes**", "subject": by_subject, "block": "not known, but no block of neighbouring images"}
    shown = [with_interval(block, metric) for metric in RESULT_METRICS]
    cells = " | ".join([*shown, share(baseline.get("auroc_by_subject"))])
    side = both_sides.get(block["split"]["disjoint_by"], "not known")
    return f"| `{name}` | {block['split']['detail']} | {side} | {count(block['metrics']['cells'])} | {cells} |"


def _training_note(name: str, metrics: Mapping[str, Any]) -> str:
    training, recipe = metrics["training"], metrics["recipe"]
    folds: list[dict[str, Any]] = next((e["folds"] for e in metrics["evaluations"] if "folds" in e), [])
    by_fold = ", ".join(share(fold["f1_weighted"]) for fold in folds)
    return (
        f"`{name}`: {recipe['architecture']} at {recipe['image_size']} px, {recipe['num_train_epochs']} epochs, from "
        f"{training['start_weights']}; released weights trained on {count(training['cells'])} cells in "
        f"{minutes(training['seconds'])}, the whole protocol in "
        f"{minutes(training.get('protocol_seconds', training['seconds']))} on {training['hardware']}. "
        f"Weighted F1 by fold: {by_fold or '–'}.{_known_leak(metrics)}\n"
    )


def _known_leak(metrics: Mapping[str, Any]) -> str:
    persons = joined_since(metrics)
    if not persons:
        return ""
    return (
        f" Measured before `leukoscope audit` found {', '.join(persons)} to be one person each: where its folds keep "
        "such ids apart, the figures flatter it."
    )


_LEAKAGE_FIGURES = {"f1_weighted": "weighted F1", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}


def leakage_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """What testing on patients seen in training adds, one row a data set, recipe and figure."""
    if not comparisons:
        return "Not measured yet."
    head = [
        "| data | recipe | training cells | figure | tested patients unseen | their other cells trained on | "
        "the leak is worth (over seeds) |",
        "|---|---|--:|---|--:|--:|--:|",
    ]
    return "\n".join([*head, *(row for result in comparisons for row in _leakage_rows(result)), ""])


def _leakage_rows(result: Mapping[str, Any]) -> list[str]:
    recipe, seeds = result["recipe"], result["seeds"]
    made = f"{recipe['architecture']}, {recipe['image_size']} px, {recipe['num_train_epochs']} epochs"
    # Where patients are not published, blocks stand in for them, and one patient may fill two.
    data = result["data"]["title"] + (" — blocks for patients" if result["data"]["unit"] == "block" else "")
    rows = []
    for figure, name in _LEAKAGE_FIGURES.items():
        if figure not in result["difference"]:
            continue
        unseen, seen = (sum(seed[side][figure] for seed in seeds) / len(seeds) for side in ("unseen", "seen"))
        spread = result["difference"][figure]
        worth = f"**{gain(spread['mean'])}** ({gain(spread['smallest'])} … {gain(spread['largest'])})"
        cells = count(round(sum(result["train_cells"]) / len(seeds)))
        rows.append(f"| {data} | {made} | {cells} | {name} | {share(unseen)} | {share(seen)} | {worth} |")
    return rows


def shortcuts_table(audits: Sequence[Mapping[str, Any]]) -> str:
    """What trivial features alone answer, one row a data set and feature."""
    if not audits:
        return "Not measured yet."
    head = [
        "| data | feature | tested on | balanced accuracy (chance) | weighted F1 | AUROC |",
        "|---|---|---|--:|--:|--:|",
    ]
    return "\n".join([*head, *(row for audit in audits for row in _shortcut_rows(audit)), ""])


def _shortcut_rows(audit: Mapping[str, Any]) -> list[str]:
    shortcuts = audit["shortcuts"]
    split, chance = shortcuts["split"], share(shortcuts["chance_balanced_accuracy"])
    tested = f"{split['folds']}-fold cross-validation by {split['disjoint_by']}"
    return [
        f"| {audit['data']['title']} | {feature} | {tested} | {share(figures['balanced_accuracy'])} ({chance}) | "
        f"{share(figures['f1_weighted'])} | {share(figures['auroc'])} |"
        for feature, figures in shortcuts["features"].items()
    ]


def prior_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every rebuilt prior system: the claim, what a split by image gives, and what unseen patients give."""
    made = _by_protocol(rows)
    head = [
        "| system | recipe | its author claims | measured, split by image | measured, unseen patients |",
        "|---|---|---|---|---|",
    ]
    table = [
        "| "
        + " | ".join([claim.system, f"`{claim.recipe}`", _claimed(claim), *_measured_both_ways(claim, made)])
        + " |"
        for claim in _claims()
    ]
    without_network = _without_network(rows)
    beside = (
        "The shares of ALL cells differ between the two columns, so compare balanced accuracies, and each row of C-NMC "
        "with the two that need no network. "
    )
    intervals = "in brackets 95 % intervals of drawing these anew, where there are enough of each class to draw from"
    said = [
        "Shares of cells answered right (accuracy), and on how many unseen subjects",
        *([intervals] if any(map(_by_subject, rows)) else []),
    ]
    return "\n".join(
        [
            *head,
            *table,
            *without_network,
            "",
            f"{'; '.join(said)}. {beside if without_network else ''}The data of system B name no patients: blocks of "
            "neighbouring images stand for them.",
        ]
    )


def _without_network(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What always answering the commonest class, and a cell's size alone, reach on the tests of C-NMC."""
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
        support = [figures["support"] for figures in row["metrics"]["per_class"].values()]
        commonest.append(f"{share(max(support) / sum(support))} · balanced {share(1 / len(support))}")
        alone = row["size_only_baseline"]
        size.append(f"{share(alone['accuracy'])} · balanced {share(alone['balanced_accuracy'])}")
    return [
        f"| – | *C-NMC: always the commonest class* | – | {' | '.join(commonest)} |",
        f"| – | *C-NMC: cell size alone* | – | {' | '.join(size)} |",
    ]


def prior_notes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where each prior system is described, what its description leaves open, and how our rows were made."""
    made = _by_protocol(rows)
    return "\n".join(f"- **{claim.system}** `{claim.recipe}`: {_prior_note(claim, made)}" for claim in _claims())


def _claims() -> list[Claim]:
    return sorted(CLAIMS.values(), key=lambda claim: claim.system)


def _by_protocol(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(recipe, protocol) → the row measured with it."""
    return {(row["claim"]["recipe"], row["protocol"]): row for row in rows}


def _claimed(claim: Claim) -> str:
    others = [f"{name} {share(value)}" for name, value in claim.figures.items() if name != "accuracy"]
    return " · ".join([share(claim.figures["accuracy"]), *others])


def _measured_both_ways(claim: Claim, made: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    return [_measured(made.get((claim.recipe, protocol))) for protocol in PROTOCOLS]


def _measured(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    figures = row["metrics"]
    shown = [f"**{share(figures['accuracy'])}**{_by_subject(row)}", f"balanced {share(figures['balanced_accuracy'])}"]
    if len(figures["per_class"]) > 2:
        shown.append(f"one-vs-rest {share(figures['one_vs_rest_accuracy'])}")
    if row["protocol"] != RANDOM:
        shown.append(f"{figures['subjects']} {row['data']['unit']}s")
    return " · ".join(shown)


def _by_subject(row: Mapping[str, Any]) -> str:
    interval = row["intervals"].get("by_subject", {}).get("accuracy")
    return f" ({span(interval)})" if interval else ""


def _prior_note(claim: Claim, made: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    rows = [made[claim.recipe, protocol] for protocol in PROTOCOLS if (claim.recipe, protocol) in made]
    said = f"{claim.source}; {claim.remark}."
    return " ".join([said, *map(_how_it_ran, rows)])


def _how_it_ran(row: Mapping[str, Any]) -> str:
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
    return "\n".join(map(_ablation, comparisons)) if comparisons else "Not measured yet."


def _ablation(comparison: Mapping[str, Any]) -> str:
    settings, first = comparison["settings"], comparison["compared_with"]
    cells = count(settings[0]["metrics"]["cells"])
    trained = count(max(settings[0]["train_cells"]))
    head = [
        f"{comparison['data']['title']}: {comparison['estimates']}, {cells} cells answered by networks trained on "
        f"{trained} each.",
        "",
        f"| setting | AUROC by subject | beside “{first}” | AUROC at equal size | balanced accuracy by subject | "
        "AUROC | weighted F1 | AUROC of subjects | training |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows = [_ablation_row(setting["name"], setting, first) for setting in settings]
    rows.append(_ablation_row("*the answers of all, averaged*", comparison["together"], first))
    return "\n".join([*head, *rows, ""])


def _ablation_row(name: str, setting: Mapping[str, Any], first: str) -> str:
    metrics, block = setting["metrics"], {"metrics": setting["metrics"], "intervals": setting}
    change = setting["difference"]["auroc_by_subject"]
    beside = "–"
    if name != first:
        beside = f"{gain(change['difference'])} ({gain(change['low'])} … {gain(change['high'])})"
    pooled = [share(metrics.get(key)) for key in ("auroc_equal_size", "balanced_accuracy_by_subject", "auroc")]
    spent = minutes(setting["training_seconds"]) if "training_seconds" in setting else "–"
    last = [*pooled, share(metrics["f1_weighted"]), share(metrics.get("subject_auroc")), spent]
    return f"| {' | '.join([name, with_interval(block, 'auroc_by_subject'), beside, *last])} |"


def fields_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """How well the cells of a smear are found, how fast, and how many of them a release takes as in distribution."""
    if not measured:
        return "Not measured yet."
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
    return "\n".join(["| measured | figure |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in rows)])


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
        f"| `{name.partition('-')[0]}.py` | {what} | {figure} | {_measured_on(benchmark)} |"
        for name, benchmark in measured.items()
        for what, figure in _comparisons(benchmark)
    ]
    if not rows:
        return "Not measured yet."
    again = "`PYTHONPATH=src python benchmarks/NAME.py --help` says how a benchmark is run again."
    return "\n".join(["| benchmark | measured | figure | on |", "|---|---|---|---|", *rows, "", again])


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
    yield from ((what, " · ".join(figures)) for what, figures in by_ratio.items())
    if "until_first_answer" in benchmark:
        seconds, asking = benchmark["seconds"], benchmark["seconds"]["answers"][0]
        parts = f"cloning {seconds['clone']:.0f}, installing {seconds['install']:.0f}, asking {asking:.0f}"
        yield (
            "seconds from a local `git clone` to the first explained answer",
            (f"**{benchmark['until_first_answer']:.0f}** ({parts})"),
        )
    if "levels" in benchmark:
        what = f"`{benchmark['model']}`, demo: predictions with heat maps a second; 95 % answered within"
        figures = [
            f"{level['clients']} at once **{level['per_second']:.1f}**, {level['p95_seconds']:.2f} s, "
            f"{level['errors']} errors"
            for level in benchmark["levels"]
        ]
        yield what, " · ".join(figures)
    if "memory_growth" in benchmark:
        speeds = " and ".join(f"{benchmark[part]['cells_a_second']:.0f}" for part in ("until_killed", "resumed"))
        growth, scored = benchmark["memory_growth"], f"{count(benchmark['cells'])} cells scored"
        memory = f"memory {growth['times_short_run']:.2f} times that of {count(benchmark['short_cells'])} cells"
        yield (
            f"`{benchmark['model']}`, {scored}: cells a second until killed, and resumed",
            f"**{speeds}**; {memory} (aim: {growth['aim']})",
        )
    if "times_faster_an_epoch" in benchmark:
        learnt = f"`{benchmark['recipe']}`, {benchmark['image_size']} px, {benchmark['data']}"
        yield (
            f"{learnt}: times as fast an epoch from kept features as from pixels",
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
