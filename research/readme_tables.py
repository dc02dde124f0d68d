"""The tables of the README and of docs/: rendered from committed JSON between markers, nothing in them is typed.

`make docs` renders them anew from the releases in model_card/ and from results/.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.registry import DATASETS
from leukoscope.evaluation.bootstrap import bootstrap_subjects
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.files import write_atomic
from leukoscope.models.release import OF_FIELDS, PREDICTIONS, WEIGHTS, read_metrics
from leukoscope.reports.formatting import Table, count, difference, gain, metric_name, share, span, with_span
from leukoscope.reports.release_tables import (
    RESULT_METRICS,
    cells_needed,
    evaluation_row,
    healthy_given,
    many,
    recognised_rows,
    unseen_evaluation,
)
from research.external import sha256_of
from research.tables import NOT_MEASURED, ablation_table, beside_table, prior_sources, prior_table, read_results

RELEASES = sorted(path.parent for path in (ROOT / "model_card").glob("*/metrics.json"))


def update_tables(readme: Path, releases: Sequence[Path]) -> list[Path]:
    """Render every table anew, in the README and in the pages of `docs/` beside it, from the releases and `results/`.

    Returns:
        the pages that hold a table.

    Raises:
        LeukoscopeError: no such README, a table whose markers no page holds, or a result file that is damaged; every
            page is then as it was.
    """
    if not readme.is_file():
        raise LeukoscopeError(f"{readme}: no such file")
    tables = readme_tables(readme.parent / "results", releases)
    paths = (readme, *sorted((readme.parent / "docs").glob("*.md")))
    pages = {page: page.read_text(encoding="utf-8") for page in paths}
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
        "decisions": decisions_table(releases),
        "subjects": subjects_table(releases),
        "leakage": leakage_table(read_results(results / "leakage")),
        "shortcuts": shortcuts_table(read_results(results / "audit")),
        "prior": prior_table(prior),
        "beside": beside_table(read_results(results, "beside_releases.json")),
        "prior-notes": prior_sources(),
        "cross-batch": cross_batch_table(read_results(results, "cross_batch.json")),
        "curves": curves_table(read_results(results / "learning_curves")),
        "ablation": ablation_table(read_results(results / "ablation")),
        "external": external_table(read_results(results, "further_subjects.json"), releases),
        "smears": smears_table(read_results(results, "smears.json")),
        "speed": speed_table(results / "benchmarks"),
        "flags": str(flags_table()),
        "datasets": str(datasets_table()),
    }


# The flags of transformers' examples/pytorch/image-classification/run_image_classification_no_trainer.py.
HF_FLAGS = (
    *("dataset_name", "train_dir", "validation_dir", "max_train_samples", "max_eval_samples", "train_val_split"),
    *("model_name_or_path", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate"),
    *("weight_decay", "num_train_epochs", "max_train_steps", "gradient_accumulation_steps", "lr_scheduler_type"),
    *("num_warmup_steps", "output_dir", "seed", "push_to_hub", "hub_model_id", "hub_token", "trust_remote_code"),
    *("checkpointing_steps", "resume_from_checkpoint", "with_tracking", "report_to", "ignore_mismatched_sizes"),
    *("image_column_name", "label_column_name"),
)
# Ours → those of timm's train.py that mean the same.
TIMM_FLAGS = {
    **{"dataset_name": "--dataset", "train_dir": "data_dir"},
    **{"model_name_or_path": "--model --pretrained", "image_size": "--img-size"},
    **{"pretrained_weights": "--initial-checkpoint", "config": "--config", "num_train_epochs": "--epochs"},
    **{"per_device_train_batch_size": "--batch-size"},
    **{"gradient_accumulation_steps": "--grad-accum-steps", "learning_rate": "--lr", "weight_decay": "--weight-decay"},
    "mixed_precision": "--amp",
    **{"torch_compile": "--torchcompile", "seed": "--seed"},
    **{"resume_from_checkpoint": "--resume", "output_dir": "--output", "report_to": "--log-wandb"},
    "override": "--opt --sched --warmup-epochs --drop --drop-path --smoothing --mean --std --interpolation "
    "--model-ema-decay --clip-grad",
}
# Where a flag of the same name is not quite the same, and why one is missing.
FLAG_REMARKS = {
    "dataset_name": "A name known here or a Hub id; without it, phantoms.",
    "train_dir": "Also needs `--dataset_name imagefolder`, or the name of the data set in the folder.",
    "validation_dir": "Put class folders into `train/`, `validation/` and `test/` below `train_dir`.",
    "train_val_split": "0.15 if the data have no validation split; `--no_validation` for none.",
    "per_device_eval_batch_size": "Twice the training batch.",
    "max_train_steps": "Set the length of an epoch by `--override epoch_cells=…`.",
    "with_tracking": "`--report_to` is enough.",
    "model_name_or_path": "Models of timm and releases; no other models of transformers.",
    "lr_scheduler_type": "`--override schedule=…`; default: the recipe's, mostly cosine.",
    "num_warmup_steps": "`--override warmup_steps=…`; default: a tenth of all steps.",
    "seed": "Default: 0, so that every run can be repeated.",
    "report_to": "trackio, tensorboard or wandb, one at a time.",
    "checkpointing_steps": "Default: epoch; `no` for none.",
    "resume_from_checkpoint": "`latest` finds the checkpoint by itself.",
    "ignore_mismatched_sizes": "Not needed: other classes always get a new head.",
    "hub_token": "Use `HF_TOKEN` or `hf auth login`.",
    "trust_remote_code": "Code of a model or a data set is never run.",
}


def flags_table() -> Table:
    """The flags of `leukoscope train` beside those of Hugging Face's example script and of timm's train.py."""
    from dataclasses import fields

    from leukoscope.training.config import DataArguments, ModelArguments, RunArguments

    ours = [field.name for kind in (DataArguments, ModelArguments, RunArguments) for field in fields(kind)]
    rows = []
    for flag in (*ours, *(flag for flag in HF_FLAGS if flag not in ours)):
        timm = " ".join(f"`{name}`" for name in TIMM_FLAGS.get(flag, "").split())
        named = [f"`--{flag}`" if flag in known else "–" for known in (ours, HF_FLAGS)]
        rows.append([*named, timm or "–", FLAG_REMARKS.get(flag, "")])
    columns = ("leukoscope train", "run_image_classification_no_trainer.py", "timm's train.py", "remark")
    return Table(columns, rows, text_columns=4)


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
    return f"<!-- {name}: rendered by `make docs` -->", f"<!-- end of {name} -->"


def _positive_label(metrics: Mapping[str, Any]) -> list[str]:
    return [metrics["positive_label"]] if metrics.get("positive_label") else []


def headline_table(releases: Sequence[Path]) -> str:
    """What a release is worth on people it never saw: by cross-validation, outside, and beside cell size alone."""
    by_labels: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = {}
    for release in releases:
        metrics = read_metrics(release)
        if metrics["data"]["unit"] == "subject" and unseen_evaluation(metrics) is not None:
            by_labels.setdefault(tuple(metrics["labels"]), []).append((release.name, metrics))
    tables = []
    for labels, measured in by_labels.items():
        rows, alone = [], []
        for name, metrics in measured:
            outside = metrics.get("further_subjects") or {}
            for on, *values in recognised_rows(metrics):
                if on.startswith("cell size alone"):
                    alone = ["cell size alone", on.removeprefix("cell size alone, "), *values]
                else:
                    old = f" (earlier weights of this recipe, {outside.get('measured')})"
                    rows.append(
                        [f"`{name}`", on + old * (bool(outside.get("earlier_weights")) and "further" in on), *values]
                    )
        heads = [f"of 100 {many(label)}, recognised" for label in labels]
        table = Table(
            ("release", "tested on people it never saw", *heads, "AUROC by subject"), [*rows, alone], text_columns=2
        )
        tables.append(str(table))
    statements = dict.fromkeys(
        block["estimates"]
        for one in by_labels.values()
        for _, metrics in one
        if (block := metrics.get("further_subjects"))
    )
    return "\n\n".join([*tables, *statements])


def _row(metrics: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, str]:
    """As `evaluation_row`; under a heading "by subject", a metric of another unit says so."""
    row, unit = evaluation_row(metrics, block), metrics["data"]["unit"]
    return {
        key: f"{value} by {unit}" if key.endswith("_by_subject") and unit != "subject" and value != "–" else value
        for key, value in row.items()
    }


def _normal_called_leukaemic(release: Path, metrics: Mapping[str, Any]) -> str:
    """Of 100 normal cells of an unseen subject, how many have the leukaemic class as their most probable one.

    Every subject weighs the same; with the 95 % interval from bootstrap samples of subjects.
    """
    unseen = next((e for e in metrics.get("evaluations", []) if e["split"]["disjoint_by"] != "cell"), None)
    leukaemic, labels = _positive_label(metrics), metrics.get("labels", [])
    normal = [row for row, label in enumerate(labels) if label not in leukaemic]
    file = release / PREDICTIONS / f"{unseen['name']}.parquet" if unseen else None
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
    names = [metric_name(key) for key in RESULT_METRICS]
    columns = ("release", "tested on", "same subjects in training and test?", "cells", *names)
    rows = []
    for release in releases:
        metrics = read_metrics(release)
        for block in metrics.get("evaluations", []):
            row = _row(metrics, block)
            both_sides = row["both_sides"]
            for flattering in ("yes", "a few"):
                both_sides = both_sides.replace(flattering, f"**{flattering}**")
            shown = [row[key] for key in ("cells", *RESULT_METRICS, "size_aurocs")]
            rows.append([f"`{release.name}`", row["detail"], both_sides, *shown])
    return str(Table((*columns, "cell size alone: AUROC by subject / at equal size"), rows, text_columns=3))


def decisions_table(releases: Sequence[Path]) -> str:
    """How many cells of unseen subjects a release gives a class to, and how many healthy donors' white cells."""
    columns = (
        "release",
        "cells of unseen subjects that get a class",
        "of these, wrong",
        "of these, wrong by true class (over all cells)",
        "white cells of healthy donors of other laboratories",
        "of 100 of these, called leukaemic",
        "of 100 of these, given any class",
        "of 100 of these, called leukaemic by the network alone",
        "of 100 normal cells of unseen subjects, called leukaemic by the network alone",
    )
    rows = []
    for release in releases:
        metrics = read_metrics(release)
        default = (metrics.get("decisions") or {}).get("abstention", {}).get("default", {})
        cells, leukaemic = healthy_cells(metrics), _positive_label(metrics)
        rows.append(
            [
                f"`{release.name}`",
                *(share(default.get(key)) for key in ("coverage_by_subject", "risk_by_subject")),
                " · ".join(
                    f"{label} {share(found['risk'])} ({span(found['intervals']['risk'])})"
                    for label, found in default.get("per_class", {}).items()
                )
                or "–",
                count(cells) if cells else "–",
                healthy_given(metrics, leukaemic),
                healthy_given(metrics, metrics["labels"]),
                healthy_given(metrics, leukaemic, "most_probable"),
                _normal_called_leukaemic(release, metrics),
            ]
        )
    return str(Table(columns, rows))


def subjects_table(releases: Sequence[Path]) -> str:
    """Prediction of subjects by all their cells: one row for each release that was measured so."""
    aurocs = ("AUROC, one prediction per subject", "the same for cell size alone", "difference")
    names = ("subjects", *aurocs, "sensitivity", "specificity", "given a class", "of these, wrong")
    rows = []
    for release in releases:
        if block := read_metrics(release).get("subject_rule"):
            measured = block["measured"]
            sensitivity, specificity, wrong = (
                with_span(measured[key], "share") for key in ("sensitivity", "specificity", "error_rate")
            )
            subjects, decided = count(measured["subjects"]), count(measured["given_a_class"])
            alone, cells = block.get("size_only") or {}, cells_needed(block)
            auroc = [with_span(measured["auroc"]), with_span(alone.get("auroc")), difference(alone.get("difference"))]
            rows.append([f"`{release.name}`", subjects, *auroc, sensitivity, specificity, decided, wrong, cells])
    return str(Table(("release", *names, "cells needed"), rows))


def external_table(measured: Sequence[Mapping[str, Any]], releases: Sequence[Path]) -> str:
    """The outside check, with every metric; a row whose weights are no release's says so."""
    if not measured:
        return NOT_MEASURED
    (content,) = measured
    today = {release.name: sha256_of(release) for release in releases if (release / WEIGHTS).is_file()}
    keys = list(content["releases"][0]["one_view"])
    rows = []
    for row in content["releases"]:
        state = "these weights" if today.get(row["release"]) == row["sha256"] else "earlier weights of this recipe"
        if row["release"] not in today:
            state = "no release any more"
        weights = f"{state}, {content['measured']}"
        rows.append([f"`{row['release']}`", weights, *(with_span(row["one_view"].get(key)) for key in keys)])
    alone = content["size_alone"]
    rows.append(["cell size alone", "", *(with_span(alone.get(key)) for key in keys)])
    counts = ", ".join(f"{count(cells)} {many(label)}" for label, cells in content["cells_by_class"].items())
    table = Table(("release", "weights", *map(metric_name, keys)), rows, text_columns=2)
    return f"{content['data']}: {counts}. One view of each cell; in brackets 95 % intervals by subject.\n\n{table}"


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


def cross_batch_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """A row for each official fold that is tested: by networks of the other two, and by those of five folds."""
    if not measured:
        return NOT_MEASURED
    (result,) = measured
    releases = {
        name: folds
        for name, folds in result["out_of_fold_by_official_fold"]["systems"].items()
        if name.startswith("leukoscope-")
    }
    rows = []
    for fold, one in {**result["by_tested_fold"], "all three": result["over_the_three"]}.items():
        metrics = [
            f"{share(one[key])} ({span(one['intervals'][key])})"
            for key in ("auroc_by_subject", "auroc_equal_size", "balanced_accuracy_by_subject")
        ]
        out_of_fold = [share(folds[fold]["auroc_by_subject"]) if fold in folds else "–" for folds in releases.values()]
        rows.append(
            [f"`{fold}`" if "_" in fold else fold, count(one["cells"]), str(one["subjects"]), *metrics, *out_of_fold]
        )
    heads = ("AUROC by subject", "AUROC at equal size", "balanced accuracy by subject")
    return str(
        Table(
            (
                *("tested on", "cells", "subjects"),
                *(f"trained on the other two: {head}" for head in heads),
                *(f"five folds by subject, {name}: AUROC by subject" for name in releases),
            ),
            rows,
        )
    )


def curves_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Learning curves: a row for each recipe and picture size, a column for each number of cells drawn."""
    curves = [curve for result in results for curve in result["curves"]]
    keys = list(dict.fromkeys((one["recipe"], one["image_size"], tuple(one["folds"])) for one in curves))
    lengths = sorted({one["draws"] for one in curves})
    rows = []
    for recipe, size, folds in keys:
        measured = {
            one["draws"]: one["metrics"]
            for one in curves
            if (one["recipe"], one["image_size"], tuple(one["folds"])) == (recipe, size, folds)
        }
        shown = [
            " / ".join(share(measured[draws][key]) for key in ("auroc", "auroc_by_subject", "auroc_equal_size"))
            if draws in measured
            else "–"
            for draws in lengths
        ]
        rows.append([recipe, f"{size} px", ", ".join(map(str, folds)), *shown])
    heads = [f"{count(draws)} cells" for draws in lengths]
    table = Table(("recipe", "picture", "folds", *heads), rows, text_columns=3)
    return f"AUROC over all cells / by subject / at equal size, after that many training cells:\n\n{table}"


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


def healthy_cells(metrics: Mapping[str, Any]) -> int:
    """How many white cells of healthy donors a release was tested on; who gave those of fields is not known."""
    sources = metrics.get("ood", {}).get("healthy", {})
    return sum(kind["cells"] for name, source in sources.items() if name != OF_FIELDS for kind in source.values())


def smears_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """How well the cells of a smear are found, how fast, and how many of them a release takes as in distribution."""
    if not measured:
        return NOT_MEASURED
    (smears,) = measured
    bccd, gap = smears["bccd"], smears["domain_gap"]
    given, alone = bccd["test_scale_given"], bccd["test_scale_measured"]
    known = {"C-NMC, subjects the detector was not fitted on": gap["C-NMC in distribution, held-out subjects"]}
    known |= {name: cells["in_distribution_share"] for name, cells in gap["cut_outs"].items()}
    rows = [
        ("white cells found, scale given", _found(given)),
        ("white cells found, scale measured", _found(alone)),
        (
            "scale measured within 25 % of the true one",
            f"{alone['scale_within_25_percent']:.0%} of {alone['scale_read_in']} smears",
        ),
        (f"share of cells that `{Path(gap['model']).name}` takes as in distribution", _each(known)),
        ("CPU seconds a smear", f"scale given: {given['cpu_seconds']:.2f} · measured: {alone['cpu_seconds']:.2f}"),
    ]
    return str(Table(("measured", "value"), rows, text_columns=2))


def _found(match: Mapping[str, Any]) -> str:
    cells = f"{count(match['true'])} cells in {count(match['smears'])} smears of BCCD's test list, boxes at IoU .5"
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
        return NOT_MEASURED
    again = "`PYTHONPATH=src python research/benchmarks/NAME.py --help` shows how to repeat a benchmark."
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
        # Those that were aimed at; and pipeline at its fastest, of which only its batches have an aim.
        for ratio in release["ratios"]:
            if "aim" in ratio or ratio["what"].endswith("many: times faster than pipeline"):
                aim = f" (aim: {ratio['aim']})" if "aim" in ratio else ""
                by_ratio.setdefault(ratio["what"], []).append(f"`{release['model']}` **{ratio['value']:.2f}**{aim}")
    yield from ((what, " · ".join(values)) for what, values in by_ratio.items())
    if "until_first_answer" in benchmark:
        seconds, first = benchmark["seconds"], benchmark["seconds"]["answers"][0]
        parts = f"cloning {seconds['clone']:.0f}, installing {seconds['install']:.0f}, predicting {first:.0f}"
        yield (
            "seconds from a local `git clone` to the first explained prediction",
            (f"**{benchmark['until_first_answer']:.0f}** ({parts})"),
        )
    if "levels" in benchmark:
        what = f"`{benchmark['model']}`, demo: predictions with Grad-CAM maps per second; 95 % within"
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
            f"`{benchmark['model']}`, {scored}: cells per second until killed, and resumed",
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


if __name__ == "__main__":
    for written in update_tables(ROOT / "README.md", RELEASES):
        print(written.relative_to(ROOT))
