"""The tables of ablations and prior systems, as programs print them and docs/results.md shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leukoscope import LeukoscopeError
from leukoscope.models.metrics import Evaluation, Interval
from leukoscope.reports.tables import Table, count, metric_name, share, span, with_interval
from research.prior_claims import CLAIMS, PROTOCOLS, Claim

NOT_MEASURED = "Not measured yet."
# Which difference says whether a split by image promises too much: over cells, three subjects would decide it.
_DECIDES = "balanced_accuracy_by_subject"


def read_results(folder: Path, pattern: str = "*.json") -> list[dict[str, Any]]:
    """Every JSON file of a results folder, by name; none where the folder is missing.

    Raises:
        LeukoscopeError: a damaged file.
    """

    def read(path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LeukoscopeError(f"{path}: damaged ({error}); restore it from the repository") from None

    return [read(path) for path in sorted(folder.glob(pattern))]


def gain(value: float | None) -> str:
    """A difference of shares, always with its sign; a dash for a missing value."""
    return "–" if value is None else f"{value:+.3f}"


def difference(estimate: Mapping[str, Any] | None) -> str:
    """A difference of shares and its interval; a dash where there is none."""
    return (
        "–" if not estimate else f"{gain(estimate['difference'])} ({gain(estimate['low'])} to {gain(estimate['high'])})"
    )


def prior_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Every rebuilt prior system: the claim, what a split by image gives, and what unseen subjects give."""
    measured = by_protocol(results)
    rows = []
    for claim in _claims():
        both = [measured.get((claim.recipe, protocol)) for protocol in PROTOCOLS]
        leak = (both[1] or {}).get("by_image_minus_unseen")
        accuracies = [_accuracy(row) for row in both]
        gained = difference(leak[_DECIDES]) if leak else "–"
        rows.append([f"`{claim.recipe}`", share(claim.figures["accuracy"]), *accuracies, gained])
    columns = (
        *("system", "accuracy claimed", "accuracy, split by image", "accuracy, unseen subjects"),
        "balanced accuracy by subject: by image less unseen",
    )
    note = (
        "The data of system B name no subjects; blocks of neighbouring images stand for them. The intervals are not "
        "adjusted for their number, and each row has one seed."
    )
    return f"{Table(columns, [*rows, *_without_network(results)])}\n\n{note}"


def _accuracy(row: Mapping[str, Any] | None) -> str:
    """A row's accuracy with its interval by subject."""
    if row is None:
        return "not run"
    interval = row["intervals"].get("by_subject", {}).get("accuracy")
    shown = f"{share(row['metrics']['accuracy'])}{f' ({span(Interval(**interval))})' if interval else ''}"
    return f"*under-trained: {row['under_trained']} ({shown})*" if row["under_trained"] else shown


def overstated(measured: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Recipe → by how much a split by image is better than unseen subjects, with the interval of the difference.

    Of recipes measured in both ways and trained long enough.
    """
    found = {}
    for claim in _claims():
        both = [measured.get((claim.recipe, protocol), {}) for protocol in PROTOCOLS]
        leak = both[1].get("by_image_minus_unseen")
        if leak and not any(row.get("under_trained") for row in both):
            found[claim.recipe] = leak[_DECIDES]
    return found


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
    # Fitted on all training cells, where a system had fewer.
    both = [max(found, key=lambda one: max(fold["cells"] for fold in one["training"]["folds"])) for found in tested]
    alone = [row["size_only_baseline"] for row in both]
    supports = [[one["support"] for one in row["metrics"]["per_class"].values()] for row in both]
    commonest = [share(max(support) / sum(support)) for support in supports]
    leak = gain(alone[0][_DECIDES] - alone[1][_DECIDES]) if all(_DECIDES in one for one in alone) else "–"
    return [
        ["*C-NMC: always the commonest class*", "–", *commonest, "–"],
        ["*C-NMC: cell size alone*", "–", *(share(one["accuracy"]) for one in alone), leak],
    ]


def split_rule_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """System F: the same images divided in three ways, what heads reach on each, and what was not rebuilt."""
    if not measured:
        return NOT_MEASURED
    system = measured[0]
    rows = []
    for division, block in system["divisions"].items():
        figures = [_over_draws(metrics.get(key)) for metrics in block["heads"].values() for key in SPLIT_RULE_METRICS]
        rows.append([division, block["remark"], *figures])
    heads = next(iter(system["divisions"].values()))["heads"]
    names = [f"{head}: {metric_name(key)}" for head in heads for key in SPLIT_RULE_METRICS]
    table = Table(("images divided", "on both sides", *names), rows, text_columns=2)
    claim = system["claim"]
    network = system["network"]
    note = (
        f"System F: {system['source']}. Claimed: F1 {share(claim['f1'])}, patient-wise "
        f"{share(claim['patient_wise_accuracy'])}. {count(system['images'])} images, {count(system['copies'])} of them "
        f"copies ({system['copies_are']}). Heads on {network['features']}; not rebuilt: {network['not_rebuilt']}. Mean "
        f"of {system['repetitions']} draws (smallest–largest)."
    )
    return f"{table}\n\n{note}"


SPLIT_RULE_METRICS = ("accuracy", "balanced_accuracy_by_subject")


def _over_draws(summary: Mapping[str, float] | None) -> str:
    """Mean of a metric over draws of the split, and its range."""
    if summary is None:
        return "–"
    return f"{share(summary['mean'])} ({share(summary['smallest'])}–{share(summary['largest'])})"


def prior_sources() -> str:
    """Where each prior system is described, and what its description leaves open."""
    recipes: dict[str, list[str]] = {}
    for claim in _claims():
        recipes.setdefault(f"{claim.source}; {claim.remark}.", []).append(claim.recipe)
    systems = {claim.recipe: claim.system for claim in _claims()}
    return "\n".join(
        f"- **{systems[named[0]]}** {', '.join(f'`{recipe}`' for recipe in named)}: {note}"
        for note, named in recipes.items()
    )


def _claims() -> list[Claim]:
    return sorted(CLAIMS.values(), key=lambda claim: claim.system)


def by_protocol(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(recipe, protocol) → the row measured with it."""
    return {(row["claim"]["recipe"], row["protocol"]): row for row in rows}


def beside_table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Every rebuilt system on unseen subjects, and what each release has more than it and than another release."""
    if not measured:
        return NOT_MEASURED
    releases = measured[0]["releases"]
    first = releases[0]["beside"]
    keys = list(next(iter(first.values())))
    rows = []
    for release in releases:
        own = next(iter(release["beside"].values()))
        rows.append(["–", f"`{release['release']}`", *(share(own[key]["a"]) for key in keys), *["–"] * len(releases)])
    for recipe in sorted(first, key=lambda recipe: -first[recipe][keys[0]]["b"]):
        more = [difference(release["beside"][recipe][keys[0]]) for release in releases]
        rows.append([CLAIMS[recipe].system, f"`{recipe}`", *(share(first[recipe][key]["b"]) for key in keys), *more])
    names = [f"{metric_name(keys[0])}: `{release['release']}` less this" for release in releases]
    table = Table(("system", "network", *map(metric_name, keys), *names), rows, text_columns=2)
    ahead = []
    for release in releases:
        found = [beside[keys[0]] for beside in release["beside"].values()]
        better, clear = sum(one["difference"] > 0 for one in found), sum(one["low"] > 0 for one in found)
        behind = sum(one["difference"] < 0 for one in found)
        ahead.append(
            f"`{release['release']}` is ahead of {better} of {len(found)} systems, {clear} of them with an interval "
            f"above zero, and behind {behind}"
        )
    pairs = [
        (f"`{pair['release']}`", f"`{pair['other']}`", *(difference(pair[key]) for key in keys))
        for pair in measured[0]["pairs"]
    ]
    releases_table = Table(("release", "less release", *map(metric_name, keys)), pairs, text_columns=2)
    said = f"{'; '.join(ahead)}. The intervals are not adjusted for their number."
    return f"{table}\n\n{said}\n\n{releases_table}"


def ablation_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Settings of a recipe on unseen subjects, one table a comparison."""
    if not comparisons:
        return NOT_MEASURED
    parts = []
    for comparison in comparisons:
        settings, first = comparison["settings"], comparison["compared_with"]
        trained_on = " · ".join(map(count, dict.fromkeys(settings[0]["train_cells"])))
        parts.append(
            f"{comparison['data']['title']}: {comparison['estimates']}, {count(settings[0]['metrics']['cells'])} cells "
            f"predicted by networks trained on {trained_on} cells.\n"
        )
        rows = []
        keys = ("auroc_equal_size", "balanced_accuracy_by_subject", "auroc", "f1_weighted")
        for setting in (*settings, {"name": "*the mean prediction of all*", **comparison["together"]}):
            metrics = setting["metrics"]
            measured = Evaluation.model_validate(
                {"metrics": metrics, "intervals": {"by_subject": setting["by_subject"]}}
            )
            beside = difference(setting["difference"]["auroc_by_subject"]) if setting["name"] != first else "–"
            others = [share(metrics.get(key)) for key in keys]
            subjects = with_interval(measured, "subject_auroc")
            rows.append([setting["name"], with_interval(measured, "auroc_by_subject"), beside, *others, subjects])
        columns = ("setting", "AUROC by subject", f"beside “{first}”", *map(metric_name, (*keys, "subject_auroc")))
        parts.append(f"{Table(columns, rows)}\n")
    return "\n".join(parts)
