"""The tabs "Evidence" and "Code" without a browser: a release is shown as it speaks of itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import gradio
import numpy as np
import pytest
from starlette.datastructures import URL

from gradio_events import event
from leukoscope import Predictor
from leukoscope.models.release import ReleaseInfo
from leukoscope.reports.evidence import Scores, scores_of
from leukoscope.web.app import build_demo
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.tabs import code as use_from_code
from leukoscope.web.tabs import evidence
from leukoscope.web.tabs.evidence import evidence_page, lead_sentences, points_table

RELEASES = Path(__file__).parents[3] / "model_card"
RELEASE = RELEASES / "leukoscope-densenet169-cnmc"
METRICS = json.loads((RELEASE / "metrics.json").read_text())


def release(folder: Path | None, metrics: dict[str, object]) -> ReleaseInfo:
    """A release that is never loaded."""
    return ReleaseInfo(("ALL", "HEM"), None, metrics, "a", folder=folder)  # type: ignore[arg-type]


def test_every_figure_shown_is_the_release_s_own() -> None:
    page = evidence_page("a", METRICS)
    assert page.count("<section lang=") == 10
    for block in METRICS["evaluations"]:
        assert block["split"]["detail"] in page
        assert f"{block['metrics']['f1_weighted']:.3f} <span" in page
    assert f"{METRICS['evaluations'][0]['shortcut_baselines']['mean colour']['auroc']:.3f}" in page
    assert f"{METRICS['heat_maps']['rotation']['correlation']['mean']:.3f}" in page
    subjects = METRICS["evaluations"][0]["metrics"]["subjects"]
    name, worst = min(subjects.items(), key=lambda item: item[1]["accuracy"])
    said = f"the worst is {name} ({worst['label']}) with {worst['accuracy']:.3f} of {worst['cells']} cells"
    assert said in page
    assert page.count("data:image/svg+xml;base64,") == 2


def test_what_eight_views_gain_is_shown_where_it_was_measured() -> None:
    one = {"a": 0.85, "b": 0.84, "difference": 0.01, "low": -0.02, "high": 0.03}
    block = {
        "estimates": "recipe (cross-validated)",
        "definition": "four quarter turns of a cell, each also mirrored",
        "cells": 1200,
        "difference": dict.fromkeys(("f1_weighted", "balanced_accuracy", "auroc"), one),
    }
    page = evidence_page("a", METRICS | {"views": block})
    assert "+0.010 (-0.02 to 0.03)" in page


def test_heat_maps_without_evidence_have_no_figures() -> None:
    nothing = {"mean": None, "low": None, "high": None, "cells": 0}
    block = {"estimates": "these weights", "cells": 12, "subjects": 3, "definitions": {}, "deletion": {"gain": nothing}}
    page = evidence_page("a", METRICS | {"heat_maps": block})
    assert "<td>gain</td><td>–</td>" in page


def test_blocks_of_images_are_not_called_subjects() -> None:
    metrics = json.loads((RELEASES / "leukoscope-densenet201-ball4" / "metrics.json").read_text())
    page = evidence_page("a", metrics)
    assert "Block by block" in page and "Accuracy of each of 88 blocks by class" in page
    assert "AUROC by block" in page and "3,256 cells of 88 blocks" in page
    before, after = re.sub(r"<[^>]*>", " ", page).split("What it was trained on")
    assert "subject" not in before.split("What each check means")[0] and "subject" not in after
    assert "20 Pro blocks: it is not known of how many people" in after


def test_what_was_not_measured_is_left_out() -> None:
    bare = {"labels": ["ALL", "HEM"], "data": METRICS["data"], "training": METRICS["training"],
            "evaluations": [{**METRICS["evaluations"][3], "shortcut_baselines": None}]}  # fmt: skip
    page = evidence_page("a", bare)
    assert (
        "Are its probabilities" not in page
        and "Grad-CAM maps faithful" not in page
        and "Baselines without a network" not in page
    )
    assert "<script>" not in evidence_page("<script>", {})
    assert "has no measurements of its own" in evidence_page("a", {})


def test_a_sensitivity_is_reached_by_the_highest_threshold_that_does() -> None:
    scores = Scores(np.asarray([0.1, 0.5, 0.7, 0.9]), np.asarray([0.2, 0.3, 0.6, 0.65]))
    rates = scores.at_sensitivity(0.75)
    assert (rates.threshold, rates.sensitivity, rates.specificity) == (0.5, 0.75, 0.5)
    assert scores.at_sensitivity(1).threshold == 0.1
    ppv, npv = rates.predictive_values(0.5)
    assert ppv == pytest.approx(0.6)
    assert npv == pytest.approx(2 / 3)
    assert rates.predictive_values(0.1)[0] == pytest.approx(0.075 / (0.075 + 0.45))


@pytest.mark.parametrize("folder", sorted(RELEASES.glob("*-cnmc")), ids=lambda folder: folder.name)
def test_the_chosen_point_agrees_with_the_release_s_own(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = scores_of(release(folder, metrics))
    assert scores is not None
    point = metrics["decisions"]["operating_points"]["points"]["sensitivity_95"]
    threshold, fitted = point["threshold"], point["fitted"]
    # Its threshold stands on the scale of the probabilities that the release gives.
    assert (scores.positives >= threshold).mean() == pytest.approx(fitted["sensitivity"], abs=1e-5)
    assert (scores.negatives < threshold).mean() == pytest.approx(fitted["specificity"], abs=1e-5)
    # Fitted with every subject weighing the same, it finds another share of all cells than 95 %; figures are stored
    # rounded, hence half a cell less.
    rates = scores.at_sensitivity(fitted["sensitivity"] - 0.5 / len(scores.positives))
    assert rates.threshold == pytest.approx(threshold, abs=1e-3)
    assert rates.sensitivity == pytest.approx(fitted["sensitivity"], abs=1e-3)
    assert rates.specificity == pytest.approx(fitted["specificity"], abs=1e-3)


def test_without_committed_answers_the_named_points_are_shown() -> None:
    assert scores_of(release(None, METRICS)) is None
    shown = points_table(METRICS, None, 0.95, 0.5)
    assert "PPV at 50\u00a0%" in shown and "NPV at 50\u00a0%" in shown
    assert "PPV at 10\u00a0%" in points_table(METRICS, None, 0.95, 0.1), "a predictive value names its prevalence"
    assert "Youden" in shown and "sensitivity, chosen" not in shown and "comes without predictions" in shown
    assert "names no operating points" in points_table({}, None, 0.95, 0.5)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"evaluations": [{"name": "x"}]}, "a: its metrics.json lacks &#x27;data&#x27;; restore it from the release"),
        (
            {"decisions": {"operating_points": {"positive_label": "ALL", "points": {"youden": {"threshold": 0.5}}}}},
            "a: its metrics.json lacks &#x27;cross_fitted&#x27;; restore it from the release",
        ),
        ({"evaluations": [METRICS["evaluations"][0] | {"split": 3}], "data": METRICS["data"], "training": {}},
         "a: its metrics.json "),
    ],
)  # fmt: skip
def test_measurements_that_are_not_whole_are_told(said: dict[str, object], problem: str) -> None:
    class One(ModelCache):
        def predictor(self, choice: str | None) -> Predictor:
            return SimpleNamespace(release=release(None, said))  # type: ignore[return-value]

    page, about = evidence._shown(lambda choice, language: evidence.evidence_of(One({}), choice), "a", 0.95, 0.5)
    assert problem in page and about == ""


def test_the_endpoint_gives_the_release_s_metrics(tiny_release: Path) -> None:
    demo = build_demo(ModelCache({"tiny": tiny_release}))
    (endpoint,) = (block.fn for block in demo.fns.values() if block.api_name == "evidence")
    assert endpoint is not None
    assert endpoint("tiny") == json.loads((tiny_release / "metrics.json").read_text())
    with pytest.raises(gradio.Error, match="is no model name"):
        endpoint("/etc")


def test_every_named_endpoint_is_described(tiny_release: Path) -> None:
    demo = build_demo(ModelCache({"tiny": tiny_release}))
    public = {f"/{block.api_name}" for block in demo.fns.values() if block.api_visibility == "public"}
    assert public == set(use_from_code.ENDPOINTS)


def test_the_snippets_take_as_many_values_as_the_endpoint_gives(tiny_release: Path) -> None:
    demo = build_demo(ModelCache({"tiny": tiny_release}))
    (endpoint,) = (block for block in demo.fns.values() if block.api_name == "predict")
    given = [getattr(block, "label", None) for block in endpoint.outputs]
    assert given == ["outcome", "probabilities", "grad_cam", "text", "decision"]
    described = use_from_code.ENDPOINTS["/predict"].split(" → ")[1]
    assert [one.split(" (")[0] for one in described.split(", ")] == given
    written = use_from_code.snippets("http://127.0.0.1:1/", "tiny", "tiny")
    assert f"{', '.join(given)} = prediction" in written["Python"]
    assert f"[{', '.join(given)}]".replace("grad_cam", "gradCam") in written["JavaScript"]


def test_what_is_no_models_name_stands_in_no_program(tiny_release: Path) -> None:
    demo = build_demo(ModelCache({"tiny": tiny_release}))
    fill = event(demo, "fill").fn

    def visit_of(headers: dict[str, str]) -> SimpleNamespace:
        return SimpleNamespace(request=SimpleNamespace(base_url=URL("http://127.0.0.1:1/"), headers=headers))

    visit = visit_of({})
    assert 'x"' not in "".join(fill('x");__import__("os").system("ls")#', visit))
    assert '"tiny"' in fill("tiny", visit)[0] and "http://127.0.0.1:1/" in fill("tiny", visit)[0]
    behind_a_proxy = visit_of({"x-forwarded-proto": "https,http"})
    assert all("https://127.0.0.1:1/" in text for text in fill("tiny", behind_a_proxy)[:1])


def test_a_model_of_whole_pictures_is_asked_for_no_field(tiny_release: Path) -> None:
    demo = build_demo(ModelCache({"ball4": RELEASES / "leukoscope-densenet201-ball4", "tiny": tiny_release}))
    fill = event(demo, "fill").fn
    visit = SimpleNamespace(request=SimpleNamespace(base_url=URL("http://127.0.0.1:1/"), headers={}))
    _, program, *_ = fill("ball4", visit)
    assert '"tiny", 0, api_name="/field"' in program and '"ball4", "", api_name="/batch"' in program


def test_the_snippets_are_whole_programs() -> None:
    written = use_from_code.snippets("http://127.0.0.1:1/", "a", "a")
    for title in ("Python", "Python: fields and batches"):
        compile(written[title], "snippet", "exec")
    # Its open connection would keep Node running for ever.
    assert written["JavaScript"].rstrip().endswith("client.close()")
    for endpoint in ("/predict", "/field", "/batch"):
        assert any(f'api_name="{endpoint}"' in text for text in written.values()), endpoint
    assert all("http://127.0.0.1:1/" in text for text in written.values())


def test_missing_mcp_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("gradio.mcp.GradioMCPServer.StreamableHTTPSessionManager", raising=False)
    assert not use_from_code.serves_mcp()
    demo = build_demo(ModelCache({}))
    texts = [str(getattr(block, "value", "")) for block in demo.blocks.values()]
    assert any("does not offer the Model Context Protocol" in text for text in texts)


def test_evidence_begins_with_three_plain_sentences() -> None:
    assert lead_sentences(METRICS) == [
        "If it had to name a class for each of 100 cells of people it has not seen, 85 would be right. "
        "Cell size alone: 78.",
        "Of 100 cells like its own it refuses 2, and on 17 it abstains.",
        "Its maps failed our tests: they show where it reacts, not why.",
    ]
    blocks = {**METRICS, "data": {**METRICS["data"], "unit": "block"}}
    assert lead_sentences(blocks)[0].startswith("Its data names no people: if it had to name")
    assert lead_sentences({}) == []
