"""Model cards: every figure comes from metrics.json, and what is missing is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli import app
from leukoscope.evaluation.assess import ESTIMATES
from leukoscope.evaluation.metrics import NOT_KNOWN, class_report
from leukoscope.models.build import FROM_SCRATCH
from leukoscope.reports.card import render_card, write_card
from leukoscope.reports.release_tables import detailed_evaluation
from research.checks import KINDS

REPOSITORY = Path(__file__).parents[2]
EMBEDDED = sorted(path.parent for path in (REPOSITORY / "model_card").glob("*/metrics.json"))


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter_says_which_estimate_each_figure_is(release: Path) -> None:
    results = front_matter(render_card(release))["model-index"][0]["results"]
    f1 = {r["dataset"]["name"]: next(m for m in r["metrics"] if m["type"] == "f1") for r in results}
    assert f1["C-NMC 2019 — 2-fold cross-validation by subject"]["value"] == 0.833
    assert "estimates: recipe (cross-validated)" in f1["C-NMC 2019 — 2-fold cross-validation by subject"]["name"]
    assert "subjects on both sides" in f1["C-NMC 2019 — 70/15/15 by image"]["name"]


def test_a_network_without_a_map_is_not_said_to_have_one(
    release: Path, release_metrics: dict[str, Any], vit_release: Path, tmp_path: Path
) -> None:
    promised = ("A Grad-CAM map shows where", "explain=True")
    assert all(text in render_card(release) for text in promised)

    copy = shutil.copytree(vit_release, tmp_path / "vit")
    unmeasured = {key: block for key, block in release_metrics.items() if key != "heat_maps"}
    (copy / "metrics.json").write_text(json.dumps(unmeasured))
    card = render_card(copy)
    assert "It gives no Grad-CAM map" in card
    assert not any(text in card for text in promised)


def test_the_hub_finds_it_by_both_libraries_and_reads_its_results(release: Path) -> None:
    card = front_matter(render_card(release))
    assert card["tags"][:3] == ["image-classification", "timm", "transformers"]
    assert (card["library_name"], card["license"]) == ("timm", "apache-2.0")
    assert card["datasets"] == ["dwb2023/cnmc-leukemia-2019"] and "widget" not in card, "it has no example pictures"
    honest = card["model-index"][0]["results"][0]["metrics"]
    assert [(m["type"], m["value"]) for m in honest[:3]] == [
        ("roc_auc", 0.777),
        ("balanced_accuracy", 0.701),
        ("balanced_accuracy", 0.722),
    ]
    assert honest[0]["name"] == "AUROC, each subject weighing the same; estimates: recipe (cross-validated)"


@pytest.mark.parametrize(
    ("name", "on_the_hub"),
    [("lab/cells", ["lab/cells"]), ("ball4", None), ("imagefolder", None), ("/data/ann/parquet", None), ("./p", None)],
)
def test_only_an_id_of_the_hub_is_named_as_data_set(
    release: Path, release_metrics: dict[str, Any], name: str, on_the_hub: list[str] | None
) -> None:
    release_metrics["data"]["name"] = name
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert front_matter(render_card(release)).get("datasets") == on_the_hub


def test_what_stands_in_metrics_is_text_and_no_template(release: Path, release_metrics: dict[str, Any]) -> None:
    release_metrics["data"]["title"] = "{{ 6 * 7 }} cells"
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert "\n{{ 6 * 7 }} cells: 7,779 cells" in render_card(release)


def test_card_states_notice_data_start_weights_and_limits(release: Path) -> None:
    card = render_card(release)
    for text in (
        RESEARCH_NOTICE,
        "channels selected from ImageNet EfficientNet-B4",
        "fold_2 ALL: 413 cells here, 2,457 published",
        "Gupta & Gupta 2019.",
        "no external clinical validation",
        "not calibrated",
    ):
        assert text in card


def test_card_lists_subjects_worst_first(release: Path) -> None:
    card = render_card(release)
    assert card.index("| H10 | HEM | 405 | 0.192 |") < card.index("| 16 | ALL | 53 | 1.000 |")


def test_a_figure_that_does_not_exist_is_a_dash(release: Path) -> None:
    card = render_card(release)
    assert "| 0 | 617 | 1 | – | 0.700 | 0.801 |" in card
    random_row = next(line for line in card.splitlines() if line.startswith("| 70/15/15 by image"))
    assert random_row.endswith("| –, – |")


def test_what_tta_gains_stands_on_the_card(release: Path, release_metrics: dict[str, Any]) -> None:
    one = {"a": 0.85, "b": 0.84, "difference": 0.01, "low": -0.02, "high": 0.03}
    release_metrics["views"] = {
        "estimates": "recipe (cross-validated)",
        "definition": "four quarter turns of a cell, each also mirrored",
        "network_passes_per_cell": 8,
        "cells": 1200,
        "difference": dict.fromkeys(("f1_weighted", "balanced_accuracy", "auroc"), one),
        "agreeing_cells": {"cells": 1200, "accuracy": 0.9},
        "disagreeing_cells": {"cells": 0, "accuracy": None},
    }
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    card = render_card(release)
    assert "| weighted F1 | 0.840 | 0.850 | +0.010 (-0.02 to 0.03) |" in card
    assert "It costs 8 passes of the network a cell." in card


def test_maps_without_evidence_are_said_to_be_flat(release: Path, release_metrics: dict[str, Any]) -> None:
    nothing = {"mean": None, "low": None, "high": None, "cells": 0}
    release_metrics["heat_maps"] = {
        "estimates": "these weights", "cells": 12, "subjects": 3, "flat_maps": 12, "intervals": "95 %",
        "definitions": {}, "deletion": {"gain_over_random": nothing}, "insertion": {"gain_over_random": nothing},
    }  # fmt: skip
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    card = render_card(release)
    assert "Every one of these maps is flat" in card and "lowers the predicted" not in card
    assert "| deletion | gain over random | – |" in card


@pytest.mark.parametrize(
    ("another", "said"),
    [
        ((-0.3, -0.2), "**The first is higher: a map shows little of what that layer learnt.**"),
        ((0.2, 0.3), "The first is lower: a map depends on what that layer learnt."),
        ((-0.1, 0.05), "The intervals overlap: whether a map depends on what that layer learnt is not clear."),
    ],
)
def test_what_stays_of_a_map_is_said_as_its_intervals_say_it(
    release: Path, release_metrics: dict[str, Any], another: tuple[float, float], said: str
) -> None:
    gain = {"gain_over_random": {"mean": 0.1, "low": 0.05, "high": 0.2, "cells": 9}}
    itself = {"mean": 0.1, "low": 0.0, "high": 0.15, "cells": 9}
    other = {"mean": sum(another) / 2, "low": another[0], "high": another[1], "cells": 9}
    release_metrics["heat_maps"] = {
        "estimates": "these weights", "cells": 12, "subjects": 3, "flat_maps": 0, "intervals": "95 %",
        "definitions": {}, "deletion": gain, "insertion": gain,
        "randomisation": {"last_layer": itself, "another_cell": other},
    }  # fmt: skip
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert f"). {said}" in render_card(release)


def test_what_gets_no_class_stands_on_the_card(release: Path, release_metrics: dict[str, Any]) -> None:
    blank = {"shows": KINDS["blank"], "to_be_refused": True, "pictures": 4, "auroc": 23 / 24, "refused_share": 0.75}
    ood: dict[str, Any] = {
        "estimates": "cells of subjects that the detector was not fitted on",
        "held_out": {
            "kept_share": 5 / 6,
            "kept_share_by_subject": 0.75,
            "worst_subject": {"subject": "b", "cells": 2, "kept_share": 0.5},
        },
        "kinds": {"blank": blank},
        "not_measured": [what for kind, what in KINDS.items() if kind != "blank"],
    }
    outcomes = {"ALL": 1, "HEM": 2, "abstain": 3, "out of distribution": 40, "not a cell": 0}
    kind = {"pictures": 50, "cells": 46, "outcomes": outcomes, "most_probable": {"ALL": 45, "HEM": 1}}
    ood["healthy"] = {"white cells": {"lymphocyte": kind}, "white cells of fields": {"JPEGImages": kind}}
    (release / "metrics.json").write_text(json.dumps(release_metrics | {"ood": ood}))

    card = render_card(release)

    assert "Of the cells of subjects that it was not fitted on, it lets 0.750 pass" in card
    assert "(of all cells 0.833; of the worst subject's 0.500)" in card
    assert f"| {KINDS['blank']} | 4 | 0.958 | 0.750 |" in card
    assert f"Not measured: {'; '.join(what for kind, what in KINDS.items() if kind != 'blank')}." in card
    assert "| white cells | cells | ALL | HEM | no class | network alone: ALL / HEM |" in card
    assert "| lymphocyte | 46 | 1 | 2 | 43 | 45 / 1 |" in card
    assert "| of fields of view, donors not described | 46 | 1 | 2 | 43 | 45 / 1 |" in card
    assert "white cells of fields of\nview whose donors are not described. " in card
    del ood["healthy"]["white cells of fields"]
    (release / "metrics.json").write_text(json.dumps(release_metrics | {"ood": ood}))
    assert "donors nobody" not in render_card(release)
    release_metrics["ood"] = {name: value for name, value in ood.items() if name != "healthy"}
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert "healthy donors" not in render_card(release)


def test_synthetic_models_say_so(release: Path, release_metrics: dict[str, Any]) -> None:
    release_metrics["data"]["synthetic"] = True
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert "Trained on synthetic phantoms" in render_card(release)


def test_subjects_found_since_it_was_measured_are_a_known_leak(release: Path, release_metrics: dict[str, Any]) -> None:
    assert "Known leak" not in render_card(release)
    release_metrics["training"]["subjects"] = ["1", "15", "51", "H2", "H6", "H7"]
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert "one subject each: 1 = 15, H2 = H6 = H7. Where" in render_card(release).replace("\n", " ")


def test_hub_id_replaces_the_folder_in_the_examples(release: Path) -> None:
    assert 'model="lab/cells"' in render_card(release, hub_id="lab/cells")


@pytest.mark.parametrize("block", ["data", "recipe", "training", "evaluations", ""])
def test_no_card_without_measurements(release: Path, release_metrics: dict[str, Any], block: str) -> None:
    metrics = {key: value for key, value in release_metrics.items() if key != block}
    (release / "metrics.json").write_text(json.dumps(metrics))
    if not block:
        (release / "metrics.json").unlink()
    result = CliRunner().invoke(app, ["release", "card", str(release)])
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {release / 'metrics.json'}: missing, or without {block or 'labels'!r}; a card is")
    assert result.exit_code == 1 and not (release / "README.md").exists()


def test_a_split_by_image_does_not_hold_for_a_new_subject(release: Path, release_metrics: dict[str, Any]) -> None:
    alone, row = (
        "**No metric on this card applies\n  to a new subject.**",
        "test, so it does not apply to a new subject.",
    )
    assert alone not in render_card(release) and row in render_card(release), "one of two rows is by image"
    by_image = [e for e in release_metrics["evaluations"] if e["split"]["disjoint_by"] == "cell"]
    (release / "metrics.json").write_text(json.dumps(release_metrics | {"evaluations": by_image}))
    assert alone in render_card(release)
    by_subject = [e for e in release_metrics["evaluations"] if e["split"]["disjoint_by"] == "subject"]
    (release / "metrics.json").write_text(json.dumps(release_metrics | {"evaluations": by_subject}))
    assert "a new subject" not in render_card(release)


def test_own_data_are_not_called_published(release: Path, release_metrics: dict[str, Any]) -> None:
    assert "The data were published by their authors" in render_card(release)
    release_metrics["data"] |= {"name": "imagefolder", "title": "Own class folders", "citation": ""}
    release_metrics["data"]["licence"] = "yours"
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    card = render_card(release)
    assert "our own" not in card and "yours" not in card, "the reader of a card is not its author"
    assert "The author's own cells: 7,779 cells" in card and "No licence of the data is stated." in card
    assert front_matter(card).keys().isdisjoint({"license", "datasets"})
    assert front_matter(render_card(release, licence="mit"))["license"] == "mit"
    assert "published by their authors" not in card and "Nothing is recorded of the subjects' age" in card
    assert "The data: " not in card


def test_write_card_leaves_no_half_written_file(release: Path) -> None:
    assert write_card(release).name == "README.md"
    assert not list(release.glob(".*"))


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_committed_cards_are_the_rendered_ones(embedded: Path) -> None:
    card = (embedded / "README.md").read_text()
    assert card == render_card(embedded) and "\nlicense: apache-2.0\n" in card


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_every_figure_of_a_committed_card_stands_in_its_metrics(embedded: Path) -> None:
    metrics = json.loads((embedded / "metrics.json").read_text())
    # Counts stand in the confusion matrix; the card shows them as shares too.
    evaluation = detailed_evaluation(metrics)
    assert evaluation is not None
    tested = evaluation["metrics"]
    shares = [[cells / sum(row) for cells in row] for row in tested["confusion_matrix"]]
    known = {f"{abs(number):.3f}" for number in _numbers([metrics, class_report(tested), shares])}
    shown = set(re.findall(r"\b[01]\.\d{3}\b", (embedded / "README.md").read_text()))
    assert shown and shown <= known


def test_every_share_of_the_confusion_table_is_of_its_class(release: Path) -> None:
    card = render_card(release)
    assert "| ALL | 834 | 800 (0.959) | 34 (0.041) |\n| HEM | 400 | 199 (0.497) | 201 (0.502) |" in card
    assert "Estimates: recipe (cross-validated)." in card
    assert "| ALL | 0.801 | 0.959 | 0.502 | 0.873 |\n| HEM | 0.855 | 0.502 | 0.959 | 0.633 |" in card
    assert "one-vs-rest" not in card, "with two classes it is the plain accuracy"


FOUR = ("Benign", "Early", "Pre", "Pro")


@pytest.fixture
def four_classes(release: Path, release_metrics: dict[str, Any]) -> Path:
    """The release with four classes of ten cells: two Early taken for Pre, one Pre for Pro, Pro untested."""
    matrix = [[10, 0, 0, 0], [0, 8, 2, 0], [0, 0, 9, 1], [0, 0, 0, 0]]
    block = release_metrics["evaluations"][0]
    per_class = {
        name: {"precision": 0.9, "recall": row[k] / 10, "f1": 0.9, "support": sum(row)}
        for k, (name, row) in enumerate(zip(FOUR, matrix, strict=True))
    }
    block["metrics"] |= {"cells": 30, "accuracy": 0.9, "per_class": per_class, "confusion_matrix": matrix}
    release_metrics |= {"labels": list(FOUR), "positive_label": "", "evaluations": [block]}
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    return release


def test_four_classes_are_shown_each_against_the_rest(four_classes: Path) -> None:
    card = render_card(four_classes)
    assert "| class | precision | sensitivity (recall) | specificity | F1 | one-vs-rest accuracy |" in card
    assert "| Pre | 0.900 | 0.900 | 0.900 | 0.900 | 0.900 |" in card
    assert "| *mean over classes* | 0.900 | 0.900 | 0.967 | 0.900 | 0.944 |" in card
    assert "its mean looks better than the plain accuracy of 0.900" in card


def test_a_class_without_tested_cells_has_no_shares(four_classes: Path) -> None:
    assert "| Pro | 0 | 0 (–) | 0 (–) | 0 (–) | 0 (–) |" in render_card(four_classes)


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in _numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in _numbers(v)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    ("training", "base_model"),
    [
        ({"start_weights": "pretrained weights timm/densenet121.ra_in1k"}, "timm/densenet121.ra_in1k"),
        ({"start_weights": "pretrained weights timm/densenet121.ra_in1k"}, "timm/densenet121.ra_in1k"),
        ({"start_weights": "channels selected from ImageNet EfficientNet-B4"}, None),
        ({"started_from": {"release": "lab/cells", "revision": "0" * 40}}, "lab/cells"),
        ({"started_from": {"release": "my-release", "revision": None}}, None),
    ],
)
def test_the_hub_repository_it_started_from_is_its_base_model(
    release: Path, release_metrics: dict[str, Any], training: dict[str, Any], base_model: str | None
) -> None:
    release_metrics["recipe"]["base_model"] = "timm/densenet121.ra_in1k"
    release_metrics["training"] |= training
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert front_matter(render_card(release)).get("base_model") == base_model


CONVNEXT = "timm/convnextv2_tiny.fcmae_ft_in22k_in1k"


@pytest.mark.parametrize(
    ("base_model", "training", "licence"),
    [
        ("", {"start_weights": FROM_SCRATCH}, "apache-2.0"),
        ("timm/densenet121.ra_in1k", {"start_weights": "pretrained weights timm/densenet121.ra_in1k"}, "apache-2.0"),
        ("timm/resnet50.tv_in1k", {"start_weights": "pretrained weights timm/resnet50.tv_in1k"}, "apache-2.0"),
        (CONVNEXT, {"start_weights": f"pretrained weights {CONVNEXT}"}, None),
        (CONVNEXT, {"start_weights": "somebody's file"}, None),
        ("timm/resnet50.none", {"start_weights": "pretrained weights timm/resnet50.none"}, None),
        ("timm/resnet50.tv_in1k", {"started_from": {"release": "lab/cells", "revision": "0" * 40}}, None),
    ],
)
def test_a_licence_is_stated_only_where_the_start_weights_allow_it(
    release: Path, release_metrics: dict[str, Any], base_model: str, training: dict[str, Any], licence: str | None
) -> None:
    release_metrics["recipe"]["base_model"] = base_model
    release_metrics["training"] |= {"start_weights": "fine-tuned from lab/cells"} | training
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert front_matter(render_card(release)).get("license") == licence
    assert front_matter(render_card(release, licence="mit"))["license"] == "mit"


def test_what_kept_its_start_weights_is_said_as_it_is(release: Path, release_metrics: dict[str, Any]) -> None:
    assert "The network started from channels selected from" in render_card(release)
    release_metrics["recipe"]["frozen"] = ["backbone"]
    release_metrics["training"]["start_weights"] = "fine-tuned from lab/cells, itself started from ImageNet"
    release_metrics["training"]["started_from"] = {"release": "lab/cells", "revision": "0" * 40}
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    card = render_card(release)
    assert (
        "The network was fine-tuned from lab/cells, itself started from ImageNet.\nAll its layers but the head" in card
    )


BLOCKS = REPOSITORY / "model_card" / "leukoscope-densenet201-ball4"


def test_a_block_is_called_a_subject_nowhere_on_its_card() -> None:
    card = render_card(BLOCKS)
    for text in ("Of unseen blocks' cells, ", "of the worst block's", "%, blocks drawn anew", "each block's cells"):
        assert text in card
    assert "subject" not in card.replace("figures/subjects.png", "")


@pytest.mark.parametrize(
    ("estimates", "said"),
    [(ESTIMATES, "its network never saw"), (NOT_KNOWN, "that its network may have seen in training")],
)
def test_a_recalibrated_release_speaks_of_the_subjects_it_was_recalibrated_on(
    tmp_path: Path, estimates: str, said: str
) -> None:
    metrics = json.loads((BLOCKS / "metrics.json").read_text())
    split = {"strategy": "all", "detail": "every recalibration cell", "disjoint_by": "subject", "seed": 0}
    tested = {key: metrics["evaluations"][0][key] for key in ("metrics", "intervals")}
    metrics["evaluations"].append(tested | {"name": "recalibration", "estimates": estimates, "split": split})
    metrics["recalibration"] = {"from": "x", "data": "the author's own cells", "cells": 500, "subjects": 20}
    metrics["calibration"]["estimates"] = estimates
    shutil.copy(BLOCKS / "config.json", tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    card = render_card(tmp_path)
    assert f"On subjects {said}, each subject weighing the same: AUROC **" in card
    assert ("of subjects unseen by the network that predicted" in card) == (estimates == ESTIMATES)
    results = front_matter(card)["model-index"][0]["results"]
    assert {result["dataset"]["config"] for result in results} == {"block_cv", "random"}, "own cells are of no data set"


def test_loading_and_saving_a_card_merges_no_two_measurements(release: Path, tmp_path: Path) -> None:
    """The Hub's library joins results of one data set, config and split: a leak's F1 would join an honest one's."""
    from huggingface_hub import ModelCard

    path = tmp_path / "README.md"
    path.write_text(render_card(release))
    before = front_matter(path.read_text())["model-index"][0]["results"]
    ModelCard.load(path).save(path)
    after = front_matter(path.read_text())["model-index"][0]["results"]

    def measured(results: list[dict[str, Any]]) -> dict[str, list[tuple[str, float]]]:
        return {r["dataset"]["config"]: [(m["name"], m["value"]) for m in r["metrics"]] for r in results}

    assert len(before) == len(after) > 1
    assert measured(after) == measured(before)
