"""Prior systems stand beside their claims, and what needs no network below them."""

from __future__ import annotations

from typing import Any

from research.tables import ablation_table, by_protocol, overstated, prior_sources, prior_table

PRIOR: dict[str, Any] = {
    "protocol": "unseen",
    "claim": {"recipe": "prior_b_densenet201"},
    "recipe": {"image_size": 160},
    "data": {"name": "ball4", "title": "B-ALL", "unit": "block"},
    "split": {"detail": "about 70/15/15 by block"},
    "training": {
        "folds": [{"cells": 2300, "kept_epoch": 7, "epochs_run": 10}],
        "start_weights": "part of ImageNet DenseNet201",
        "seed": 0,
        "seconds": 1200.0,
        "hardware": "CPU",
    },
    "metrics": {
        "cells": 480,
        "subjects": 11,
        "accuracy": 0.9123,
        "balanced_accuracy": 0.9012,
        "per_class": {name: {} for name in ("Benign", "Early", "Pre", "Pro")},
    },
    "intervals": {"by_subject": {"accuracy": {"low": 0.85, "high": 0.96}}},
    "size_only_baseline": None,
    "under_trained": "",
}


def test_a_prior_system_stands_beside_its_claim() -> None:
    row = "| `prior_b_densenet201` | 0.996 | not run | 0.912 (0.85–0.96) | – |"
    assert row in prior_table([PRIOR]).splitlines()


def test_recipes_of_one_description_share_its_note() -> None:
    (note,) = (line for line in prior_sources().splitlines() if line.startswith("- **C**"))
    named = "`prior_c_resnet50`, `prior_c_efficientnet_b3`, `prior_c_alexnet`, `prior_c_vgg16`"
    assert note.startswith(f"- **C** {named}: a comparison of four networks in TensorFlow; ")


def test_what_needs_no_network_stands_below_the_prior_systems() -> None:
    row = PRIOR | {
        "claim": {"recipe": "prior_d_resnet"},
        "metrics": PRIOR["metrics"] | {"per_class": {"ALL": {"support": 75}, "HEM": {"support": 25}}},
        "size_only_baseline": {"accuracy": 0.8, "balanced_accuracy": 0.7},
        "data": PRIOR["data"] | {"name": "cnmc2019"},
    }
    training = row["training"] | {"folds": [row["training"]["folds"][0] | {"cells": 1}]}
    fewer = row | {"training": training, "size_only_baseline": dict.fromkeys(("accuracy",), 0)}
    both = [one | {"protocol": protocol} for one in (fewer, row) for protocol in ("random", "unseen")]
    lines = prior_table(both).splitlines()
    assert "| *C-NMC: always the commonest class* | – | 0.750 | 0.750 | – |" in lines
    assert "| *C-NMC: cell size alone* | – | 0.800 | 0.800 | – |" in lines
    better = {"accuracy": 0.81, "balanced_accuracy_by_subject": 0.62}
    worse = {"accuracy": 0.8, "balanced_accuracy_by_subject": 0.6}
    both = [
        row | {"protocol": protocol, "size_only_baseline": alone}
        for protocol, alone in (("random", better), ("unseen", worse))
    ]
    assert "*C-NMC: cell size alone* | – | 0.810 | 0.800 | +0.020 |" in prior_table(both)
    for others in (both[:1], [one | {"data": PRIOR["data"] | {"name": "imagefolder"}} for one in both]):
        assert "cell size alone*" not in prior_table(others)


def test_a_cross_validated_row_names_its_folds_and_the_price_of_the_leak() -> None:
    folds = [{"cells": 2300, "kept_epoch": 7, "epochs_run": 10}, {"cells": 2310, "kept_epoch": 4, "epochs_run": 9}]
    accuracy = {"difference": 0.08, "low": 0.02, "high": 0.15}
    leak = {"accuracy": accuracy, "balanced_accuracy_by_subject": {"difference": 0.05, "low": 0.01, "high": 0.12}}
    row = PRIOR | {"training": PRIOR["training"] | {"folds": folds}, "by_image_minus_unseen": leak}
    more = {"balanced_accuracy_by_subject": 0.85}
    row |= {"metrics": PRIOR["metrics"] | more, "recipe": {"image_size": 224, "num_train_epochs": 10}}
    table = prior_table([row])
    assert "| 0.912 (0.85–0.96) | +0.050 (+0.010 to +0.120) |" in table
    assert accuracy not in overstated(by_protocol([row])).values(), "a metric over all cells decides nothing"
    assert overstated(by_protocol([row])) == {"prior_b_densenet201": leak["balanced_accuracy_by_subject"]}
    assert overstated(by_protocol([row | {"under_trained": "predicts one class"}])) == {}
    grey = prior_table([row | {"under_trained": "predicts one class for nearly every cell"}])
    assert "| *under-trained: predicts one class for nearly every cell (0.912 (0.85–0.96))* | +0.050" in grey


def test_every_prior_system_has_a_row_before_anything_is_run() -> None:
    rows = [line for line in prior_table([]).splitlines() if "`prior_" in line and line.startswith("| ")]
    assert len(rows) == 10 and all(row.endswith("| not run | not run | – |") for row in rows)
    assert [row[9].upper() for row in rows] == list("ABCCCCDDDE")


def test_an_ablation_names_every_number_of_training_cells_and_whose_auroc_it_shows() -> None:
    metrics: dict[str, Any] = {
        "cells": 9000,
        "auroc_by_subject": 0.8,
        "auroc": 0.7,
        "f1_weighted": 0.6,
        "subject_auroc": 0.95,
    }
    metrics |= {"auroc_equal_size": None, "balanced_accuracy_by_subject": 0.65}
    interval = {"low": 0.75, "high": 0.99}
    measured = {"metrics": metrics, "by_subject": dict.fromkeys(("auroc_by_subject", "subject_auroc"), interval)}
    measured["difference"] = {"auroc_by_subject": {"difference": 0.01, "low": -0.02, "high": 0.03}}
    first = measured | {"name": "first", "train_cells": [5000, 6000, 6000], "training_seconds": 60}
    comparison = {"data": {"title": "Cells"}, "estimates": "recipe", "compared_with": "first", "settings": [first]}
    lines = ablation_table([comparison | {"together": measured}]).splitlines()
    assert lines[0] == "Cells: recipe, 9,000 cells predicted by networks trained on 5,000 · 6,000 cells."
    assert lines[2].endswith(" | weighted F1 | AUROC of subjects' mean logits |"), "hours spent compare nothing"
    assert lines[4] == ("| first | 0.800 (0.75–0.99) | – | – | 0.650 | 0.700 | 0.600 | 0.950 (0.75–0.99) |")
