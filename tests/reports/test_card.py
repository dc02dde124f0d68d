"""Model cards: every figure comes from metrics.json, and what is missing is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from hub_server import Hub
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli import app
from leukoscope.evaluation.assess import ESTIMATES
from leukoscope.evaluation.metrics import NOT_KNOWN
from leukoscope.models.build import FROM_SCRATCH
from leukoscope.models.metrics import Metrics
from leukoscope.models.release import write_metrics
from leukoscope.reports.card import CARD_PLOTS, draw_examples, draw_plots, render_card, write_card
from release_fixtures import METRICS, ROBUSTNESS

REPOSITORY = Path(__file__).parents[2]
Card = Callable[..., str]
EMBEDDED = sorted(path.parent for path in (REPOSITORY / "model_card").glob("*/metrics.json"))


@pytest.fixture
def card(release: Path) -> Card:
    """Renders the card of the release with changed blocks of metrics.json: those of dicts are changed by key."""

    def rendered(*, hub_id: str = "", licence: str = "", **blocks: Any) -> str:
        changed = {key: METRICS.get(key, {}) | new if isinstance(new, dict) else new for key, new in blocks.items()}
        (release / "metrics.json").write_text(json.dumps(METRICS | changed))
        return render_card(release, hub_id=hub_id, licence=licence)

    return rendered


HEADINGS = ("name", "How good it is", "Use it", "What it was trained on", "What it is not for", "Maps", "More", "Cite")


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_network_without_a_map_is_not_said_to_have_one(
    release: Path, release_metrics: dict[str, Any], vit_release: Path, tmp_path: Path
) -> None:
    promised = ("A map shows where", "explain=True")
    assert all(text in render_card(release) for text in promised)

    copy = shutil.copytree(vit_release, tmp_path / "vit")
    unmeasured = {key: block for key, block in release_metrics.items() if key != "heat_maps"}
    (copy / "metrics.json").write_text(json.dumps(unmeasured))
    card = render_card(copy)
    assert "It gives no Grad-CAM map" in card
    assert not any(text in card for text in promised)


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        (None, "**This model's Grad-CAM maps were not checked.** Do not say"),
        (False, "**This model's Grad-CAM maps failed our checks.** Do not say"),
        (True, "This model's Grad-CAM maps passed our checks."),
    ],
)
def test_a_card_says_whether_the_maps_were_checked_and_passed(card: Card, passed: bool | None, text: str) -> None:
    shown = card(heat_maps={"method": "evidence", "passed": passed})
    assert text in shown
    assert ("Do not say that the network looks at what these maps mark" in shown) == (not passed)


def test_the_hub_finds_it_by_both_libraries_and_reads_its_results(release: Path) -> None:
    card = front_matter(render_card(release))
    assert card["tags"][:3] == ["image-classification", "timm", "transformers"]
    assert (card["library_name"], card["license"]) == ("timm", "apache-2.0")
    assert card["datasets"] == ["dwb2023/cnmc-leukemia-2019"] and "widget" not in card, "it has no example pictures"
    honest = card["model-index"][0]["results"][0]["metrics"]
    assert [(m["type"], m["value"]) for m in honest] == [
        ("roc_auc", 0.777),
        ("balanced_accuracy", 0.701),
        ("f1", 0.833),
    ]
    assert len(card["model-index"][0]["results"]) == 1, "the split by image is no result of it"
    assert honest[0]["name"] == "AUROC by subject"


@pytest.mark.parametrize(
    ("name", "on_the_hub"),
    [("lab/cells", ["lab/cells"]), ("ball4", None), ("imagefolder", None), ("/data/ann/parquet", None), ("./p", None)],
)
def test_only_an_id_of_the_hub_is_named_as_data_set(card: Card, name: str, on_the_hub: list[str] | None) -> None:
    assert front_matter(card(data={"name": name})).get("datasets") == on_the_hub


def test_what_stands_in_metrics_is_text_and_no_template(card: Card) -> None:
    assert "\n{{ 6 - 7 }} cells: 7,779 cells" in card(data={"title": "{{ 6 - 7 }} cells"})


def test_names_are_shown_as_they_are_and_format_nothing(card: Card) -> None:
    """Class names, subject ids and titles come from somebody's folders and tables."""
    strange, plain = "*a* <img src=x>", "b_1"
    evaluation = json.loads(json.dumps(METRICS["evaluations"][0]).replace("ALL", strange).replace("HEM", plain))
    of_class = {"coverage_by_subject": 0.7, "risk": 0.1}
    default: dict[str, Any] = {"threshold": 0.64, "coverage_by_subject": 0.8, "risk_by_subject": 0.1}
    default["per_class"] = {strange: of_class, plain: of_class}
    rendered = card(
        labels=[strange, plain],
        positive_label=strange,
        evaluations=[evaluation],
        decisions={"abstention": {"default": default}},
        training={"class_frequencies": {strange: 0.5, plain: 0.5}},
        data={
            "name": "lab/cells",
            "title": "_our_ [cells](http://x)",
            "citation": "Ann 2020\n\n# Approved for diagnosis\n```",
            "licence": "MIT](http://x)\n\n# Approved",
            "count_differences": ["fold <b>: 3 cells here"],
        },
    )
    shown = rendered.split("---\n", 2)[2]
    headings = [line for line in shown.splitlines() if line.startswith("#")]
    assert not any("Approved" in line for line in headings) and len(headings) == len(HEADINGS)
    assert strange not in shown and shown.count(r"\*a\* \<img src=x\>") == 4, "in the heads of tables, too"
    assert shown.count("b_1") == 4, "within a word it formats nothing"
    assert r"\_our\_ \[cells\](http://x): 7,779 cells" in shown
    assert r"Licence of the data: MIT\](http://x) # Approved." in shown
    assert shown.count("```") % 2 == 0 and "\nAnn 2020 # Approved for diagnosis" in shown


def test_card_states_notice_data_start_weights_and_limits(card: Card) -> None:
    said = card(hub_id="lab/cells")
    for text in (
        'model="lab/cells"',
        RESEARCH_NOTICE,
        "| cross-validation, 2 people | 100 | 19 | 0.777 |",
        "| cell size alone, the same 2 people | – | – | 0.722 |",
        "@software{leukoscope,",
        "channels selected from ImageNet EfficientNet-B4",
        "differ from the published set in 1 count(s).",
        "Gupta & Gupta 2019.",
        "no clinical validation",
        "not calibrated",
    ):
        assert text in said


def test_synthetic_models_say_so(card: Card) -> None:
    assert "Trained on synthetic phantoms" in card(data={"synthetic": True})


def test_subjects_found_since_it_was_measured_are_a_known_leak(card: Card) -> None:
    assert "Known leak" not in card()
    said = card(training={"subjects": ["1", "15", "51", "H2", "H6", "H7"]}).replace("\n", " ")
    assert "one subject each, found since: 1 = 15, H2 = H6 = H7." in said


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


def test_own_data_are_not_called_published(card: Card) -> None:
    assert "Its authors published the data without names" in card()
    own = {"name": "imagefolder", "title": "Own class folders", "citation": "", "licence": "yours"}
    said = card(data=own)
    assert "our own" not in said and "yours" not in said, "the reader of a card is not its author"
    assert "The author's own cells: 7,779 cells" in said and "No licence of the data is stated." in said
    assert front_matter(said).keys().isdisjoint({"license", "datasets"})
    assert front_matter(card(data=own, licence="mit"))["license"] == "mit"
    assert "authors published" not in said and "Nothing is recorded of the subjects' age" in said
    assert "The data: " not in said


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_a_committed_card_is_the_rendered_one_on_one_page_and_its_figures_stand_in_its_metrics(embedded: Path) -> None:
    card = (embedded / "README.md").read_text()
    assert card == render_card(embedded) and "\nlicense: apache-2.0\n" in card and len(card.split()) <= 1100
    known = {f"{abs(number):.3f}" for number in _numbers(json.loads((embedded / "metrics.json").read_text()))}
    shown = set(re.findall(r"\b[01]\.\d{3}\b", card))
    assert shown and shown <= known


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_a_committed_card_is_what_the_hubs_own_library_reads(hub: Hub, embedded: Path) -> None:
    card = ModelCard.load(embedded / "README.md")
    card.validate()
    assert hub.requests == ["POST /api/validate-yaml"]
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    rows = [metric for result in front_matter(str(card))["model-index"][0]["results"] for metric in result["metrics"]]
    assert len(card.data.eval_results) == len(rows) > 2
    assert {one.task_type for one in card.data.eval_results} == {"image-classification"}


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
        ({"start_weights": "channels selected from ImageNet EfficientNet-B4"}, None),
        ({"started_from": {"release": "lab/cells", "revision": "0" * 40}}, "lab/cells"),
        ({"started_from": {"release": "my-release", "revision": None}}, None),
    ],
)
def test_the_hub_repository_it_started_from_is_its_base_model(
    card: Card, training: dict[str, Any], base_model: str | None
) -> None:
    said = card(recipe={"base_model": "timm/densenet121.ra_in1k"}, training=training)
    assert front_matter(said).get("base_model") == base_model


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
    card: Card, base_model: str, training: dict[str, Any], licence: str | None
) -> None:
    training = {"start_weights": "fine-tuned from lab/cells"} | training
    assert front_matter(card(recipe={"base_model": base_model}, training=training)).get("license") == licence


def test_what_kept_its_start_weights_is_said_as_it_is(card: Card) -> None:
    assert "The network started from channels selected from" in card()
    chain = "fine-tuned from lab/cells, itself started from ImageNet"
    before = {"start_weights": chain, "started_from": {"release": "lab/cells", "revision": "0" * 40}}
    assert f"The network was {chain}. All its layers but the head" in card(
        recipe={"frozen": ["backbone"]}, training=before
    )


BLOCKS = REPOSITORY / "model_card" / "leukoscope-densenet201-ball4"


def test_a_block_is_called_a_subject_nowhere_on_its_card() -> None:
    card = render_card(BLOCKS)
    for text in ("of unseen blocks' fields of view ", "Every block counts the same", "**Its data name no people**"):
        assert text in card
    text = card.replace("\n", " ")
    assert "3,256 fields of view of" in text and "of 100 fields of view of blocks that the check was not" in text
    assert "![Accuracy of each block's fields of view, by class" in card
    assert "of 100 Benign fields of view, recognised" in card and "Benign cells" not in card
    assert "subject" not in card.replace("figures/subjects.png", "")


@pytest.mark.parametrize(("estimates", "perhaps_seen"), [(ESTIMATES, False), (NOT_KNOWN, True)])
def test_a_recalibrated_release_speaks_of_the_subjects_it_was_recalibrated_on(
    tmp_path: Path, estimates: str, perhaps_seen: bool
) -> None:
    metrics = json.loads((BLOCKS / "metrics.json").read_text())
    split = {"strategy": "all", "detail": "every recalibration cell", "disjoint_by": "subject", "seed": 0}
    tested = {key: metrics["evaluations"][0][key] for key in ("metrics", "intervals")}
    metrics["evaluations"].append(tested | {"name": "recalibration", "estimates": estimates, "split": split})
    metrics["recalibration"] = {"from": "x", "data": "the author's own cells", "cells": 500, "subjects": 20}
    metrics["calibration"]["estimates"] = estimates
    shutil.copy(BLOCKS / "config.json", tmp_path)
    write_metrics(tmp_path, Metrics.model_validate(metrics))
    card = render_card(tmp_path)
    assert "| every recalibration cell, " in card and "Its data name no people" not in card
    assert ("trained the network cannot be told" in card) == perhaps_seen
    results = front_matter(card)["model-index"][0]["results"]
    assert {result["dataset"]["config"] for result in results} == {"block_cv"}, "own cells are of no data set"


ONE = {"value": 0.42, "low": 0.32, "high": 0.63}
FURTHER: dict[str, Any] = {
    "subjects": 34,
    "measured": "2026-11-27",
    "estimates": "34 further subjects: in view.",
    "sha256": "x",
}
FURTHER |= {key: ONE for key in ("recall_ALL_by_subject", "recall_HEM_by_subject", "auroc_by_subject")}
FURTHER["by_batch"] = {"fold_2": {"subjects": 13, "cells": 101, "auroc_by_subject": ONE}}


def test_loading_and_saving_a_card_merges_no_two_measurements(card: Card, tmp_path: Path) -> None:
    """The Hub's library joins results of one data set, config and split."""
    path = tmp_path / "README.md"
    path.write_text(card(further_subjects=FURTHER | {"earlier_weights": False}))
    before = front_matter(path.read_text())["model-index"][0]["results"]
    ModelCard.load(path).save(path)
    after = front_matter(path.read_text())["model-index"][0]["results"]

    def measured(results: list[dict[str, Any]]) -> dict[str, list[tuple[str, float]]]:
        return {r["dataset"]["config"]: [(m["name"], m["value"]) for m in r["metrics"]] for r in results}

    assert len(before) == len(after) > 1
    assert measured(after) == measured(before)


def test_a_split_by_image_alone_does_not_apply_to_a_new_subject(card: Card) -> None:
    said = "no figure here applies to a new subject"
    assert said not in card()
    by_image = card(evaluations=[one for one in METRICS["evaluations"] if one["split"]["disjoint_by"] == "cell"])
    assert said in by_image and "| 70/15/15 by image | 96 | 50 | 0.855 |" in by_image
    assert "No test metrics: every cell at hand trained it." in card(evaluations=[])


@pytest.mark.parametrize("earlier", [False, True])
def test_the_outside_check_stands_before_the_cross_validation_and_names_earlier_weights(
    card: Card, earlier: bool
) -> None:
    said = card(further_subjects=FURTHER | {"earlier_weights": earlier})
    assert "| 34 further people | 42 (32–63) | 42 (32–63) | 0.420 (0.32–0.63) |" in said
    assert said.index("34 further people") < said.index("| 13 of these, fold 2 |") < said.index("| cross-validation")
    assert ("of **earlier weights of this recipe** (2026-11-27)" in said) == earlier
    (result, _) = front_matter(said)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.42


def test_coverage_is_stated_by_class_and_what_the_detector_refuses_beside_it(card: Card) -> None:
    of_class = {"coverage": 0.6, "coverage_by_subject": 0.7, "risk": 0.1}
    default: dict[str, Any] = {"threshold": 0.64, "coverage_by_subject": 0.83, "risk_by_subject": 0.1}
    default["per_class"] = {"ALL": of_class, "HEM": {"coverage": 0.5}}
    kind = {"cells": 50, "outcomes": {"ALL": 1, "HEM": 0}, "most_probable": {"ALL": 45, "HEM": 5}}
    ood = {"held_out": {"kept_share_by_subject": 0.98}, "healthy": {"white cells": {"lymphocyte": kind}}}
    said = " ".join(card(decisions={"abstention": {"default": default}}, ood=ood).split())
    assert "no class below a probability of 0.640. 83 % of unseen subjects' cells get one (ALL 70 %, HEM 50 %)" in said
    assert "(ALL 70 %, HEM 50 %); 10 % of the classes given are wrong." in said, "of those that get one, not of all"
    assert "98 of 100 cells of subjects that the check was not fitted on pass it, and 2 of 100 white cells" in said


def test_an_example_picture_comes_with_what_the_release_predicts(tiny_release: Path, tmp_path: Path) -> None:
    release = shutil.copytree(tiny_release, tmp_path / "release")
    metrics = json.loads((release / "metrics.json").read_text()) if (release / "metrics.json").is_file() else {}
    (release / "metrics.json").write_text(json.dumps(METRICS | {"labels": metrics.get("labels", METRICS["labels"])}))
    draw_examples(release)
    widget = front_matter(render_card(release))["widget"]
    assert [one["src"] for one in widget] == ["examples/phantom_ALL.png", "examples/phantom_HEM.png"]
    for one in widget:
        assert [found["label"] for found in one["output"]] == ["ALL", "HEM"]
        assert sum(found["score"] for found in one["output"]) == pytest.approx(1, abs=0.002)


# A card's figures are drawn from the release's own numbers


@pytest.fixture(scope="module")
def assessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of an embedded release without its figures."""
    target = tmp_path_factory.mktemp("assessed") / "copy"
    return shutil.copytree(EMBEDDED[0], target, ignore=shutil.ignore_patterns("figures"))


def test_a_card_shows_its_plot_and_the_same_again(assessed: Path) -> None:
    (file,) = draw_plots(assessed)
    assert file.name == "subjects.png"
    with Image.open(file) as picture:
        assert picture.width > 400 and len(set(picture.convert("L").getdata())) > 20, "it shows something"
    assert f"![{CARD_PLOTS['subjects'].format(unit='subject', pictures='cells')}](figures/subjects.png)" in render_card(
        assessed
    )
    first = file.read_bytes()
    assert draw_plots(assessed)[0].read_bytes() == first


def test_without_folds_the_plot_is_the_confusion_matrix(release: Path, release_metrics: dict[str, Any]) -> None:
    by_image = release_metrics | {"evaluations": release_metrics["evaluations"][1:]}
    (release / "metrics.json").write_text(json.dumps(by_image))
    assert [file.name for file in draw_plots(release)] == ["confusion.png"]
    assert write_card(release).read_text().count("![") == 1


def test_a_folder_that_cannot_be_written_ends_in_one_line(release: Path) -> None:
    (release / "figures").write_text("a file where the folder should be")
    with pytest.raises(LeukoscopeError, match=r"plot cannot be written there \(.*\); check who may write there$"):
        draw_plots(release)


def test_a_card_that_cannot_be_written_ends_in_one_line(release: Path) -> None:
    (release / "README.md").mkdir()
    with pytest.raises(LeukoscopeError, match=r"README.md: cannot be written \(.*\); check who may write there$"):
        write_card(release)


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_embedded_cards_show_their_figure(embedded: Path) -> None:
    assert [file.name for file in (embedded / "figures").iterdir()] == ["subjects.png"]
    assert "(figures/subjects.png)" in (embedded / "README.md").read_text()


def test_a_card_of_single_cells_says_how_smears_are_read(card: Card) -> None:
    rendered = card()
    assert "Not for smears" not in rendered
    assert "as `leukoscope smear` cuts it out." in rendered


def test_a_card_says_why_its_release_predicts_for_no_subject(card: Card) -> None:
    reason = "it needs 3 validation subjects of each class, and there are 2 of ALL and 3 of HEM"
    assert f"It predicts for no subject (`leukoscope patient`): {reason}." in card(subject_rule_missing=reason)
    assert "It predicts for no subject" not in card()


def test_a_card_says_how_the_answers_hold_when_the_picture_changes(card: Card) -> None:
    assert "When the picture changes" not in card()
    text = card(robustness=ROBUSTNESS)
    assert "### When the picture changes a little" in text
    assert "| 10 % larger | 0.0 | 11.2 | 0.0 | 0.0 | 0.688 |" in text
    assert "on 1,200 cells of 41 subjects" in text
    assert "Unchanged, the AUROC is 0.811." in text
