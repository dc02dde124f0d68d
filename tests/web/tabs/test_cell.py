"""The tab "Cell" without a browser: a result drawn by a real network, and what is saved of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import unescape
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from leukoscope import RESEARCH_NOTICE, Predictor
from leukoscope.data.registry import OUT_OF_DISTRIBUTION
from leukoscope.evaluation.morphology import parts_of
from leukoscope.inference.prediction import Decision, HeatMap
from leukoscope.web import panels
from leukoscope.web.batch_files import BatchFile
from leukoscope.web.batch_results import BatchResult, predict_batch
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.result import (
    EXAMPLES,
    SMEAR_EXAMPLES,
    Foreign,
    covered,
    example,
    part_at,
    predict_cell,
    result_image,
    save_result,
    smear_example,
    turned,
)
from leukoscope.web.tabs.batch import sample_batch
from leukoscope.web.tabs.cell import CellTab, cover_text, turn_text
from leukoscope.web.tabs.field import EXAMPLE_PITCH, example_field, predict_field, strip
from leukoscope.web.text import t


def _predict(releases: Mapping[str, Path]) -> Callable[..., Any]:
    """What answers at /predict."""
    from leukoscope.web.app import build_demo

    (endpoint,) = (block.fn for block in build_demo(ModelCache(releases)).fns.values() if block.api_name == "predict")
    assert endpoint is not None
    return endpoint


def _tab(models: ModelCache | None = None) -> CellTab:
    """The tab, outside of any page."""
    with gradio.Blocks():
        model = gradio.Dropdown()
        with gradio.Tabs():
            return CellTab(models or ModelCache({}), model)


EMBEDDED = Path(__file__).parents[3] / "model_card"
CNMC = EMBEDDED / "leukoscope-densenet169-cnmc"
BLANK = Image.new("RGB", (40, 40), "white")


def test_an_interval_in_a_table_is_not_broken_at_its_dash() -> None:
    found = panels.table(("metric", "value"), [("AUROC", "0,887 (0,81–0,94)")])
    assert '<td>0,887 <span style="white-space: nowrap">(0,81–0,94)</span></td>' in found


def test_panels_escape_what_strangers_wrote() -> None:
    hostile = "<script>x</script>"
    result = predict_cell(ModelCache({"cnmc": CNMC}), *example(0), "cnmc", remark=hostile)
    shares = {hostile: 0.9, "b": 0.1}
    heat = next(iter((result.prediction.heatmaps or {}).values()))
    maps = {label: replace(heat, label=label) for label in shares}
    prediction = replace(result.prediction, probabilities=shares, heatmaps=maps, decision=Decision(hostile))
    result = replace(result, caption=hostile, model=hostile, prediction=prediction)
    page = panels.decision(result) + panels.pictures(result, hostile, 0.5) + panels.explanation(result, hostile)
    page += panels.note(hostile) + panels.message(hostile, hostile) + panels.forms(hostile, [(hostile, result)])
    assert "<script>" not in page and page.count("&lt;script&gt;") > 8


def test_probabilities_without_a_class_are_folded_under_what_they_are_not() -> None:
    models = ModelCache({"cnmc": CNMC})
    given = panels.decision(predict_cell(models, *example(0), "cnmc"))
    withheld = panels.decision(predict_cell(models, BLANK.resize((450, 450)), "blank", "cnmc"))
    assert given.count("<b>") == 2 and "<details" not in given and "Probabilities: no result" not in given
    before, after = withheld.split("<details")
    assert "Out of distribution: no class is given." in before and "leukaemic" not in before
    assert (
        "<summary>Probabilities: no result for this picture</summary>" in after and " open" not in after.split(">")[0]
    )


def test_a_refused_picture_is_told_what_is_foreign_and_where() -> None:
    result = predict_cell(ModelCache({"cnmc": CNMC}), BLANK.resize((450, 450)), "blank", "cnmc")
    assert result.foreign is not None and set(result.foreign.distances) == {"colour", "texture", "shape"}
    assert result.foreign.distances["colour"] > 1 and result.foreign.map.evidence.max() > 0
    page = panels.decision(result) + panels.pictures(result, "ALL", 0.5)
    assert page.count('class="lk-range"') == 3 and "farther than usual" in page
    assert len(re.findall(r"\d+\.\d", re.sub("<.*?>", "", panels.decision(result)))) == 1, "one figure, the OOD score"
    assert "Where its colours are unlike" in page and "Map for ALL" not in page
    known = predict_cell(ModelCache({"cnmc": CNMC}), *example(0), "cnmc")
    assert known.foreign is None and "lk-range" not in panels.decision(known)


def test_a_map_beside_the_nuclei_of_a_smear_is_a_caution() -> None:
    """The check vanished for smears: > 99 % stood there with two ticks."""
    models = ModelCache({"ball4": EMBEDDED / "leukoscope-densenet201-ball4"})
    result = predict_cell(models, *smear_example(0), "ball4")
    nuclei = parts_of(result.image)["nucleus"]
    for on_nuclei in (True, False):
        heat = (nuclei if on_nuclei else ~nuclei).astype(np.float32)
        maps = {label: HeatMap(heat, label) for label in result.prediction.probabilities}
        box = (0.0, 0.0, float(result.image.width), float(result.image.height))
        drawn = replace(result, prediction=replace(result.prediction, heatmaps=maps, view_box=box))
        assert ("lies on nuclei, which fill" in panels.decision(drawn)) != on_nuclei


def test_a_cell_is_turned_and_its_parts_are_covered(tiny_release: Path) -> None:
    models = ModelCache({"tiny": tiny_release})
    result = predict_cell(models, *example(3), "tiny")
    four = turned(models, result)
    assert four[0] is result and np.array_equal(np.asarray(four[1].image), np.rot90(np.asarray(result.image)))
    assert turn_text(four).startswith("Turned, ")
    parts = parts_of(result.image)
    assert list(parts) == ["nucleus", "cytoplasm", "outside"] and sum(part.sum() for part in parts.values()) == 450**2
    found = covered(models, result)
    for name, one in found.items():
        changed = (np.asarray(one.image) != np.asarray(result.image)).any(axis=2)
        assert changed.any() and not (changed & ~parts[name]).any(), name
    assert cover_text(result, found).count("→") == 3
    assert list(covered(models, result, [part_at(result.image, 0, 0)])) == ["outside"]
    assert covered(models, replace(result, image=BLANK)) == {} and "No nucleus" in cover_text(result, {})


@pytest.mark.parametrize(
    ("picture", "kind"), [("cell", "cell"), ("crop", "crop"), ("field", "field"), ("blank", "cell")]
)
def test_the_picture_decides_what_is_shown(picture: str, kind: str) -> None:
    models = ModelCache({"cnmc": CNMC, "ball4": EMBEDDED / "leukoscope-densenet201-ball4"})
    tab = _tab(models)
    field = example_field()[0]
    boxes = [one.cell.box for one in predict_field(models, field, "", "cnmc", EXAMPLE_PITCH).reading.cells]
    left, top, right, bottom = boxes[2]
    image = {
        "cell": lambda: example(0)[0],
        "crop": lambda: field.crop((left - 60, top - 60, right + 60, bottom + 60)),
        "field": lambda: field,
        "blank": lambda: BLANK.resize((450, 450)),
    }[picture]()
    shown = tab.read(image, "a.png", "", "cnmc", 0.5, "")
    result, read = shown[tab.result], shown[tab.field.result]
    assert (result is not None, read is not None) == {"cell": (True, False), "crop": (True, True),
                                                      "field": (False, True)}[kind]  # fmt: skip
    if kind == "crop":
        assert result.measured is not None and "Cut out of your picture" in shown[tab.summary]
    if kind == "field":
        assert "Click a cell below" in shown[tab.summary]
    # A model of whole pictures reads the smear as it is.
    if kind == "crop":
        whole = tab.read(image, "a.png", "", "ball4", 0.5, "")
        assert whole[tab.result].image is image and whole[tab.field.result] is None


def test_a_refused_smear_gets_one_tap_to_what_fits_it() -> None:
    models = ModelCache({"cnmc": CNMC, "ball4": EMBEDDED / "leukoscope-densenet201-ball4"})
    tab, (smear, caption) = _tab(models), smear_example(0)
    refused = predict_cell(models, smear, caption, "cnmc")
    assert tab._proposal(refused).value == "Cut its cells out"
    # The kind of statistic that it is refused for is never said to be as usual.
    assert refused.foreign is not None
    near = replace(refused, foreign=replace(refused.foreign, distances=dict.fromkeys(refused.foreign.distances, 0.9)))
    assert panels.foreign(near).count("farther than usual") == 1 and panels.foreign(near).count("as usual") == 2
    again = replace(refused, remark="No cell could be cut out: …")
    assert tab._proposal(again).value == "Read it with ball4"
    cell = predict_cell(models, *example(0), "ball4")
    assert cell.foreign is not None and tab._proposal(cell).value == "Read it with cnmc"
    assert not tab._proposal(predict_cell(models, *example(0), "cnmc")).visible


def test_a_result_opens_at_the_most_probable_class_and_keeps_a_point_that_the_release_has() -> None:
    tab = _tab()
    result = predict_cell(ModelCache({"cnmc": CNMC}), *example(0), "cnmc")
    for asked, chosen in (("", ""), ("youden", "youden"), ("of another release", "")):
        shown = tab.show(result, 0.5, asked)
        assert shown[tab.point].value == chosen
        assert shown[tab.point].choices[0] == ("the most probable class", "")
        assert [value for _, value in shown[tab.point].choices] == ["", *result.thresholds.operating_points]
        assert shown[tab.summary] == panels.decision(result, chosen)
    assert result.decision("") is result.prediction.decision


def test_a_cell_that_is_predicted_again_stands_once_in_the_visit() -> None:
    tab, models = _tab(), ModelCache({"cnmc": CNMC})
    first, again, second = (predict_cell(models, *example(number), "cnmc") for number in (0, 0, 1))
    kept: list[Any] = []
    for result in (first, second, again):
        kept, strip = tab._on_result(result, kept, "cnmc")
    assert kept == [second, again] and kept[1] is again
    assert strip.count("<li>") == 2


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
    models = ModelCache({"tiny": tiny_release})
    image, caption = example(0)
    result = predict_cell(models, image, caption, "tiny")
    shown, strong = result.pictures("ALL", 0.9)
    _, bare = result.pictures("ALL", 0.0)
    assert bare is not None
    left, top, right, bottom = (round(edge) for edge in result.prediction.view_box)
    inside = (left + 4, top + 4, right - 4, bottom - 4)
    grey = np.asarray(shown.convert("L").convert("RGB").crop(inside)).astype(int)
    outline = (86, 180, 233)
    differs = (np.asarray(bare.crop(inside)) != grey).any(axis=2)
    assert (np.asarray(bare.crop(inside))[differs] == outline).all() and differs.mean() < 0.1
    assert not np.array_equal(np.asarray(strong), np.asarray(bare))
    text = result.summary()
    assert text.startswith("The model ")
    assert "has no calibration: its percentages are not how often it is right." in text and "no OOD detector" in text
    assert "Model tiny, local files; " in text
    assert text.endswith(RESEARCH_NOTICE)


def test_examples_are_three_of_each_label_and_never_the_same() -> None:
    drawn = [example(number) for number in range(len(EXAMPLES))]
    assert [caption for _, caption in drawn] == ["Synthetic ALL"] * 3 + ["Synthetic HEM"] * 3
    assert len({image.tobytes() for image, _ in drawn}) == 6


def test_examples_of_smears_are_one_of_each_label() -> None:
    drawn = [smear_example(number) for number in range(len(SMEAR_EXAMPLES))]
    assert [caption.split(", ")[1] for _, caption in drawn] == ["Benign", "Early", "Pre", "Pro"]


@pytest.mark.parametrize(("name", "shown"), [("cnmc", "examples"), ("ball4", "smear-examples")])
def test_the_page_opens_with_examples_that_its_first_model_knows(name: str, shown: str) -> None:
    from leukoscope.web.app import build_demo

    (folder,) = sorted(EMBEDDED.glob(f"leukoscope-densenet*-{name}"))
    blocks = build_demo(ModelCache({name: folder})).blocks.values()
    visible = {block.elem_id: block.visible for block in blocks if block.elem_id in ("examples", "smear-examples")}
    assert visible == {"examples": shown == "examples", "smear-examples": shown == "smear-examples"}


@pytest.mark.slow
def test_every_smear_offered_is_in_distribution_and_given_its_class() -> None:
    offered = [smear_example(number)[0] for number in range(len(SMEAR_EXAMPLES))]
    said = Predictor.from_pretrained(EMBEDDED / "leukoscope-densenet201-ball4")(offered)
    assert [one.outcome for one in said] == [label for label, _ in SMEAR_EXAMPLES]


@pytest.mark.parametrize("name", ["densenet169", "efficientnet-b3"])
def test_every_synthetic_cell_offered_is_given_its_class(name: str) -> None:
    predictor = Predictor.from_pretrained(EMBEDDED / f"leukoscope-{name}-cnmc")
    for number, (label, *_) in enumerate(EXAMPLES):
        predicted = predictor(example(number)[0])
        assert predicted.outcome == label, (name, number)


def test_a_saved_result_says_who_answered_and_that_it_is_research(tiny_release: Path) -> None:
    result = predict_cell(ModelCache({"tiny": tiny_release}), example(0)[0], "../my <cell>.png", "tiny")
    assert result.prediction.most_probable == "HEM"
    file = save_result(result, "ALL", 0.5)
    assert file.name == "leukoscope----my--cell-.png"
    with Image.open(BytesIO(file.content)) as image:
        assert isinstance(image, PngImageFile)
        assert image.text["Disclaimer"] == RESEARCH_NOTICE
        assert image.text["Source"] == "model tiny, revision of a local folder"
        assert image.text["Description"] == result.summary(label="ALL") != result.summary()
        assert "map for ALL" in image.text["Description"], "the map that the picture shows"
        assert image.width > image.height > 450


def _chosen(tab: CellTab, model: str, result: Any, field: Any, batch: Any) -> dict[Any, Any]:
    """What the page shows once another model is chosen: result, field and batch were shown before."""
    page: dict[Any, Any] = {}
    for step in tab._on_model(model, 0.5, "", result, field, batch, ""):
        page |= step
    return page


def test_another_model_reads_the_field_again_and_opens_the_same_cell(tiny_release: Path) -> None:
    ball4 = EMBEDDED / "leukoscope-densenet201-ball4"
    models = ModelCache({"one": tiny_release, "other": tiny_release, "ball4": ball4})
    tab = _tab(models)
    field = predict_field(models, *example_field(), "one", EXAMPLE_PITCH)
    opened = tab.field.cell(field, 2)
    assert opened.morphology["Area"].split()[0] in strip(field), "one figure for the area of one cell"
    for cell, caption in ((None, None), (opened, "Cell 3 of Synthetic field")):
        page = _chosen(tab, "other", cell, field, None)
        read, again = page[tab.field.result], page[tab.result]
        assert read.reading.model == "other" and len(read.reading.cells) == len(field.reading.cells)
        assert (again and (again.caption, again.model)) == (caption and (caption, "other"))
    # A model of whole pictures reads the picture, and from there another one the field.
    page = _chosen(tab, "ball4", opened, field, None)
    assert page[tab.result].image is field.image and page[tab.result].model == "ball4"
    page = _chosen(tab, "one", page[tab.result], None, None)
    scale = page[tab.field.result].reading.field.scale
    assert scale.um_per_pixel == EXAMPLE_PITCH and not scale.guessed, "the scale that was given is not lost"
    # What cannot be loaded leaves the field where it is.
    page = _chosen(tab, "no model", opened, field, None)
    assert page[tab.field.result] is field and "is no model name" in page[tab.summary]
    # A cell whose field is gone is not decided without it.
    page = _chosen(tab, "other", opened, None, None)
    assert page[tab.result] is None and "is a cell of a field that one read; open the field anew" in page[tab.summary]


def test_another_model_reads_a_batch_again(tiny_release: Path) -> None:
    models = ModelCache({"one": tiny_release, "other": tiny_release})
    tab, (*_, batch) = _tab(models), predict_batch(models, sample_batch(), "one", r"([^/]+)/")
    assert isinstance(batch, BatchResult)
    page = _chosen(tab, "other", None, None, batch)
    again = page[tab.batch.result]
    assert again.model == "other" and [row.name for row in again.rows] == [row.name for row in batch.rows]
    assert [row.subject for row in again.rows] == [row.subject for row in batch.rows]
    lost = replace(batch, rows=(replace(batch.rows[0], picture=b""),))
    lost = replace(lost, given=replace(batch.given, files=[BatchFile("1.png", lost.rows[0].kept)]))
    page = _chosen(tab, "other", None, None, lost)
    assert page[tab.batch.result].model == "one" and "this one is not among them" in page[tab.summary]


def test_a_cell_of_the_visit_leaves_its_field_where_it_is(tiny_release: Path) -> None:
    models = ModelCache({"one": tiny_release})
    tab = _tab(models)
    field = predict_field(models, *example_field(), "one", EXAMPLE_PITCH)
    kept = [tab.field.cell(field, 0), predict_cell(models, *example(0), "one")]
    for index, stays in enumerate((True, False)):
        picked = SimpleNamespace(index=index)
        page = tab._on_kept(kept, field, None, "one", 0.5, "", picked)  # type: ignore[arg-type]
        assert (tab.field.result not in page) == stays and page[tab.result] is kept[index]


def test_everything_shown_follows_from_the_decision_at_the_operating_point() -> None:
    models = ModelCache({"cnmc": CNMC})
    tab, result = _tab(models), predict_cell(models, *example(0), "cnmc")
    limit = result.thresholds.operating_points["specificity_95"]
    shares = {"ALL": limit - 0.01, "HEM": 1.01 - limit}  # most probably ALL, and HEM at this point
    prediction = replace(result.prediction, probabilities=shares)
    result = replace(result, prediction=replace(prediction, decision=result.thresholds.decide(shares)))
    assert (result.called(), result.called("specificity_95")) == ("ALL", "HEM")
    page = tab._on_point(result, "specificity_95", 0.5)
    assert page[tab.label].value == "HEM" and "Map for HEM" in page[tab.pictures]
    said = "below the 95\u00a0%-specificity threshold"
    assert said in page[tab.explanation] and "predicts" not in page[tab.explanation]
    assert page[tab.summary].index("<b>HEM</b>") < page[tab.summary].index("<b>ALL</b>")
    assert "<b>HEM " in panels.forms("", [("0°", result)], "specificity_95")
    assert turn_text([result, result], "specificity_95").startswith("Turned, it stays HEM")
    assert cover_text(result, {"nucleus": result}, "specificity_95").startswith("Without its nucleus: HEM")
    page = tab._on_draw(result, "ALL", 0.5, False, "specificity_95")
    assert said in page[tab.explanation] and "Map for ALL" in page[tab.pictures]


def test_a_field_whose_cells_are_all_cut_by_the_edge_is_not_said_to_hold_none(tiny_release: Path) -> None:
    models = ModelCache({"one": tiny_release})
    tab, image = _tab(models), example_field()[0]
    box = predict_field(models, image, "a.png", "one", EXAMPLE_PITCH).reading.cells[0].cell.box
    middle = (box[0] + box[2]) // 2
    for crop, hint in (((middle, 0, *image.size), "click_a_cell"), ((middle, box[1], box[2] + 4, box[3]), "field_cut")):
        field = predict_field(models, image.crop(crop), "a.png", "one", EXAMPLE_PITCH)
        assert t(hint) in tab._show_field(field, "", 0.5, 0)[tab.summary]


def test_a_field_read_at_another_scale_closes_the_cell_of_the_scale_before(tiny_release: Path) -> None:
    models = ModelCache({"one": tiny_release})
    tab, field = _tab(models), predict_field(models, *example_field(), "one")
    assert tab.field.show(field)[tab.field.pitch] == 0, "guessed; what was given for another field is gone"
    page = tab._on_pitch(field, 1.2 * EXAMPLE_PITCH, 0.5)
    assert page[tab.field.result].reading.field.scale.um_per_pixel == page[tab.field.pitch] == 1.2 * EXAMPLE_PITCH
    assert page[tab.result] is None, "its crop was of the scale before"
    assert "scale 900.0 µm per pixel" in tab._on_pitch(field, 900.0, 0.5)[tab.field.summary]


def test_a_tap_opens_the_whole_cell_nearest_to_it() -> None:
    models = ModelCache({"cnmc": CNMC, "ball4": EMBEDDED / "leukoscope-densenet201-ball4"})
    tab, (image, caption) = _tab(models), example_field()
    field = predict_field(models, image, caption, "cnmc", EXAMPLE_PITCH)
    left, top, right, bottom = field.reading.cells[1].cell.box
    tap = SimpleNamespace(value=[(left - 2) / image.width, (top - 2) / image.height])
    for model in ("cnmc", "ball4"):
        refused = predict_cell(models, image, caption, model, um_per_pixel=EXAMPLE_PITCH)
        refused = replace(refused, foreign=refused.foreign or Foreign({}, HeatMap(np.zeros((2, 2), np.float32), "")))
        page = tab._on_tap(refused, model, 0.5, "", tap)  # type: ignore[arg-type]
        shown = page[tab.result].image
        if model == "cnmc":
            assert page[tab.result].caption == "Cell 2 of Synthetic field" and page[tab.field.result] is not None
        else:
            whole = np.asarray(image.crop((left, top, right, bottom)))
            found = np.lib.stride_tricks.sliding_window_view(np.asarray(shown), whole.shape)[:, :, 0]
            assert (found == whole).all(axis=(2, 3, 4)).any(), "no edge of the crop cuts the cell"


def test_a_saved_result_holds_the_bars_and_the_colour_scale() -> None:
    seen = predict_cell(ModelCache({"cnmc": CNMC}), *example(0), "cnmc")
    drawn = np.asarray(result_image(seen, "ALL", 0.5))
    share, width = max(seen.prediction.probabilities.values()), drawn.shape[1] - 40
    bar = (drawn == (0x6B, 0x3F, 0xA0)).all(axis=2)
    assert bar.any(axis=0).sum() == pytest.approx(share * width, abs=2)
    track = (drawn == (0xE7, 0xE4, 0xEE)).all(axis=2)
    assert track.any(axis=0).sum() >= 0.5 * width, "the other class's bar"
    # The bright end of the scale stands below the right picture, on white.
    below = drawn[470:, drawn.shape[1] // 2 :].astype(int)
    assert (abs(below - (252, 255, 164)).sum(axis=2) < 6).any()
    withheld = predict_cell(ModelCache({"cnmc": CNMC}), Image.new("RGB", (450, 450), "white"), "blank", "cnmc")
    assert not (np.asarray(result_image(withheld, "ALL", 0.5)) == (0x6B, 0x3F, 0xA0)).all(axis=2).any()


def test_an_operating_point_that_a_release_lacks_is_refused(tiny_release: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "cell.png")
    with pytest.raises(gradio.Error, match="operating point 'best': tiny has none; give one of these, or none"):
        _predict({"tiny": tiny_release})(str(tmp_path / "cell.png"), "tiny", "best")


def test_what_was_forgotten_is_to_be_given_again() -> None:
    from leukoscope.web.app import build_demo

    blocks = build_demo(ModelCache({})).fns.values()
    inputs = [(block.fn, len(block.inputs)) for block in blocks if block.fn and hasattr(block.fn, "__qualname__")]
    told = t("result_deleted")
    saves = [(pack, count) for pack, count in inputs if pack.__name__ == "pack"]
    assert len(saves) == 8
    for pack, count in saves:
        with pytest.raises(gradio.Error, match=told):
            pack(*[None] * count)
    handlers = {fn.__qualname__.split(".")[-1]: fn for fn, _ in inputs if "CellTab" in fn.__qualname__}
    assert list(handlers["_on_draw"](None, "ALL", 0.5, False, "").values()) == [panels.placeholder(told)]
    assert list(handlers["_on_point"](None, "youden", 0.5).values()) == [panels.placeholder(told)]
    assert handlers["_on_turn"](None, "") == handlers["_on_cover"](None, "") == panels.placeholder(told)


# A network without Grad-CAM maps


def test_a_model_without_maps_shows_the_cell_and_says_so(vit_release: Path) -> None:
    result = predict_cell(ModelCache({"vit": vit_release}), *example(0), "vit")
    shown = _tab().show(result, 0.5, "")
    html = "".join(value for value in shown.values() if isinstance(value, str))
    assert t("no_map") in unescape(html)
    assert "Map for" not in html
    assert t("no_map") in result.summary()
    assert result_image(result, "ALL", 0.5).width > 0


def test_the_endpoint_of_a_model_without_maps_gives_none(vit_release: Path, tmp_path: Path) -> None:
    example(0)[0].save(tmp_path / "cell.png")
    outcome, _, covered, text, _ = _predict({"vit": vit_release})(str(tmp_path / "cell.png"), "vit", "")
    assert outcome in ("ALL", "HEM")
    assert covered is None
    assert t("no_map") in text
