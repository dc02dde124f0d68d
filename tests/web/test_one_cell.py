"""The tab "One cell" without a browser: a result drawn by a real network, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE, Predictor
from leukoscope.cells.phantoms import PHANTOM_LABELS, draw_cell
from leukoscope.inference.decision import ABSTAIN, OUT_OF_DISTRIBUTION
from leukoscope.web import one_cell, panels, words
from leukoscope.web.shelf import Shelf


def _predict(releases: Mapping[str, Path]) -> Callable[..., Any]:
    """What answers at /predict."""
    from leukoscope.web.demo import build_demo

    (endpoint,) = (block.fn for block in build_demo(Shelf(releases)).fns.values() if block.api_name == "predict")
    assert endpoint is not None
    return endpoint


def _view() -> one_cell.View:
    """The components that show a result, outside of any page."""
    with gradio.Blocks():
        return one_cell.View.build()


EMBEDDED = Path(__file__).parents[2] / "model_card"
CNMC = EMBEDDED / "leukoscope-densenet121-cnmc"
BLANK = Image.new("RGB", (40, 40), "white")


def test_panels_escape_what_strangers_wrote_and_carry_the_notice() -> None:
    hostile = "<script>x</script>"
    page = panels.answer({hostile: 0.9, "b": 0.1}, words.Judgement(hostile, hostile))
    page += panels.pictures(BLANK, BLANK, hostile, hostile, 1.0) + panels.remark(hostile)
    page += panels.reading(hostile, {"Model": hostile}, hostile) + panels.message(hostile, hostile)
    assert "<script>" not in page
    assert RESEARCH_NOTICE in page


def test_probabilities_without_a_class_are_folded_under_what_they_are_not() -> None:
    shares = {"ALL": 0.8, "HEM": 0.2}
    given = panels.answer(shares, words.Judgement("ALL", "said"))
    withheld = panels.answer(shares, words.Judgement("No class: the model abstains.", "said", has_class=False))
    assert given.count("<li") == withheld.count("<li") == 2
    assert "<details" not in given and "Probabilities: no result" not in given
    before, after = withheld.split("<details")
    assert "No class: the model abstains." in before and "80" not in before
    assert (
        "<summary>Probabilities: no result for this picture</summary>" in after and " open" not in after.split(">")[0]
    )


def test_a_result_opens_at_the_most_probable_class_and_keeps_a_point_that_the_release_has() -> None:
    from leukoscope.web import look

    view = _view()
    seen = look.examine(Shelf({"cnmc": CNMC}), *look.example(0), "cnmc")
    for asked, chosen in (("", ""), ("youden", "youden"), ("of another release", "")):
        shown = view.show(seen, 0.5, asked)
        assert shown[view.point].value == chosen
        assert shown[view.point].choices[0] == ("the most probable class", "")
        assert [value for _, value in shown[view.point].choices] == ["", *seen.thresholds.operating_points]
        assert shown[view.answer] == panels.answer(seen.prediction.probabilities, seen.judgement(chosen))
    assert seen.decision("") == seen.prediction.decision


def test_a_picture_of_nothing_is_answered_without_a_class_by_the_endpoint(tmp_path: Path) -> None:
    Image.new("RGB", (450, 450), "white").save(tmp_path / "blank.png")
    for point in ("", "sensitivity_95"):
        outcome, probabilities, _, text, decision = _predict({"cnmc": CNMC})(str(tmp_path / "blank.png"), "cnmc", point)
        assert outcome == decision["outcome"] == OUT_OF_DISTRIBUTION
        assert decision["operating_point"] == point
        assert decision["ood_score"] > 1 and decision["reasons"][0]["value"] == decision["ood_score"]
        assert decision["reasons"][0]["code"].startswith("ood_") and decision["reasons"][0]["limit"] == 1
        assert set(probabilities) == {"ALL", "HEM"}
        assert text.startswith("Out of distribution: no class is given.")


def test_a_result_is_redrawn_without_asking_the_model_again(tiny_release: Path) -> None:
    from leukoscope.web import look

    shelf = Shelf({"tiny": tiny_release})
    image, caption = look.example(0)
    seen = look.examine(shelf, image, caption, "tiny")
    shown, strong = look.draw(seen, "ALL", 0.9)
    _, bare = look.draw(seen, "ALL", 0.0)
    left, top, right, bottom = (round(edge) for edge in seen.prediction.view_box)
    inside = (left + 4, top + 4, right - 4, bottom - 4)
    assert np.array_equal(np.asarray(bare.crop(inside)), np.asarray(shown.crop(inside)))
    assert not np.array_equal(np.asarray(strong), np.asarray(bare))
    text = look.summary(seen)
    assert text.startswith("The model ")
    assert "brings no calibration: its percentages are not how often it is right; and no OOD detector" in text
    assert "Model tiny, local files; " in text
    assert text.endswith(RESEARCH_NOTICE)


def test_examples_are_three_of_each_label_and_never_the_same() -> None:
    from leukoscope.web import look

    drawn = [look.example(number) for number in range(len(look.EXAMPLES))]
    assert [caption for _, caption in drawn] == ["Synthetic ALL"] * 3 + ["Synthetic HEM"] * 3
    assert len({image.tobytes() for image, _ in drawn}) == 6


def test_examples_of_smears_are_one_of_each_label() -> None:
    from leukoscope.web import look

    drawn = [look.smear_example(number) for number in range(len(look.SMEAR_EXAMPLES))]
    assert [caption.split(", ")[1] for _, caption in drawn] == ["Benign", "Early", "Pre", "Pro"]


@pytest.mark.parametrize(("name", "shown"), [("cnmc", "examples"), ("ball4", "smear-examples")])
def test_the_page_opens_with_examples_that_its_first_model_knows(name: str, shown: str) -> None:
    from leukoscope.web.demo import build_demo

    (folder,) = sorted(EMBEDDED.glob(f"leukoscope-densenet*-{name}"))
    blocks = build_demo(Shelf({name: folder})).blocks.values()
    visible = {block.elem_id: block.visible for block in blocks if block.elem_id in ("examples", "smear-examples")}
    assert visible == {"examples": shown == "examples", "smear-examples": shown == "smear-examples"}


@pytest.mark.slow
def test_every_smear_offered_is_in_distribution_and_given_its_class() -> None:
    from leukoscope.web import look

    offered = [look.smear_example(number)[0] for number in range(len(look.SMEAR_EXAMPLES))]
    said = Predictor.from_pretrained(EMBEDDED / "leukoscope-densenet201-ball4")(offered)
    assert [one.outcome for one in said] == [label for label, _ in look.SMEAR_EXAMPLES]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "efficientnet-b3"])
def test_the_synthetic_cells_are_in_distribution_and_never_taken_for_the_other_class(name: str) -> None:
    predictor = Predictor.from_pretrained(EMBEDDED / f"leukoscope-{name}-cnmc")
    for label in PHANTOM_LABELS:
        drawn = [draw_cell(label, subject=subject, cell=cell).image for subject in range(12) for cell in range(4)]
        said = predictor(drawn)
        assert np.mean([one.most_probable == label for one in said]) >= 0.9, f"{name} does not take them for {label}"
        known = [one.checks.ood_score is not None and one.checks.ood_score <= 1 for one in said]
        assert np.mean(known) >= 0.9, f"{name} takes {label} for out of distribution"
        # It may abstain from a drawing.
        assert {one.outcome for one in said} <= {label, ABSTAIN, OUT_OF_DISTRIBUTION}


def test_a_saved_result_says_who_answered_and_that_it_is_research(tiny_release: Path) -> None:
    from leukoscope.web import look, sheet

    seen = look.examine(Shelf({"tiny": tiny_release}), look.example(0)[0], "../my <cell>.png", "tiny")
    file = sheet.save_look(seen, "HEM", 0.5)
    assert file.name == "leukoscope----my--cell-.png"
    with Image.open(BytesIO(file.content)) as image:
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
        assert image.text["Source"] == "model tiny, revision of a local folder"
        assert image.text["Description"] == look.summary(seen)
        assert image.width > image.height > 450


def test_an_operating_point_that_a_release_lacks_is_refused(tiny_release: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "cell.png")
    with pytest.raises(gradio.Error, match="operating point 'best': tiny has none; give one of these, or none"):
        _predict({"tiny": tiny_release})(str(tmp_path / "cell.png"), "tiny", "best")


def test_what_was_forgotten_is_to_be_given_again() -> None:
    from leukoscope.web.demo import build_demo

    blocks = [block for block in build_demo(Shelf({})).fns.values() if hasattr(block.fn, "__qualname__")]
    told = "This was read too long ago; give it again."
    saves = [block for block in blocks if block.fn.__name__ == "pack"]
    assert len(saves) == 8
    for save in saves:
        with pytest.raises(gradio.Error, match=told):
            save.fn(*[None] * len(save.inputs))
    handlers = {block.fn.__qualname__: block.fn for block in blocks if block.fn.__module__ == one_cell.__name__}
    assert list(handlers["_wire.<locals>.on_redraw"](None, "ALL", 0.5).values()) == [panels.placeholder(told)]
    assert handlers["_wire.<locals>.on_point"](None, "youden") == panels.placeholder(told)
    assert handlers["_wire_views.<locals>.on_ask"](None) == panels.placeholder(told)
