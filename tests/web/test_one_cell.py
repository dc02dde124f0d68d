"""The tab "One cell" without a browser: words, uploads, the model shelf, and a result drawn by a real network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
from PIL import Image

from hub_server import Hub
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.inference.verdicts import Thresholds
from leukoscope.web import panels, words
from leukoscope.web.shelf import Shelf, find_releases, listed_models, weights_bytes


def _predict(releases: Mapping[str, Path]) -> Callable[..., Any]:
    """What answers at /predict."""
    from leukoscope.web.demo import build_demo

    (endpoint,) = (block.fn for block in build_demo(Shelf(releases)).fns.values() if block.api_name == "predict")
    assert endpoint is not None
    return endpoint


BLANK = Image.new("RGB", (40, 40), "white")


def cut_out_cell(side: int = 40) -> Image.Image:
    """A bright square cell that fills the left half of a black view."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, : side // 2] = 120
    return Image.fromarray(pixels)


DECIDED = Thresholds("ALL", {"sensitivity_95": 0.35, "specificity_95": 0.92}, abstain_below=0.7)


@pytest.mark.parametrize(
    ("probability", "point", "headline", "because"),
    [
        (0.93, "specificity_95", "ALL-like, leukaemic blast: above the 95 %-specificity threshold.", "lies at 92 %."),
        (0.78, "specificity_95", "HEM-like, normal precursor: below the 95 %-specificity threshold.", "ALL has 78 %;"),
        (0.78, "sensitivity_95", "ALL-like, leukaemic blast: above the 95 %-sensitivity threshold.", "lies at 35 %."),
        (0.40, "sensitivity_95", "Not sure: the model abstains.", "HEM (normal precursor), has 60 %; below 70 %"),
        (0.40, "sensitivity_95", "Not sure: the model abstains.", "Made to choose: ALL-like"),
        (0.78, "", "The model leans towards ALL (leukaemic blast), 78 %, and is not firm about it.", ""),
    ],
)
def test_a_cell_is_judged_at_the_operating_point_or_not_at_all(
    probability: float, point: str, headline: str, because: str
) -> None:
    judged = words.judgement({"ALL": probability, "HEM": 1 - probability}, DECIDED, point)
    assert judged.headline.replace("\u00a0", " ") == headline
    assert because in judged.because.replace("\u00a0", " ")


def test_a_cell_the_guard_does_not_know_is_not_judged() -> None:
    judged = words.judgement({"ALL": 0.99, "HEM": 0.01}, DECIDED, "sensitivity_95", recognised=False)
    assert judged.headline == "This does not look like the cells this model knows."
    assert "it means nothing" in judged.because


def test_eight_views_agree_or_it_is_said_that_they_do_not() -> None:
    alike = words.agreement("ALL", ["ALL"] * 8, [0.8, *[0.9] * 7])
    assert alike.startswith("All 8 turned and mirrored views are answered ALL; the probability of ALL lies between 80")
    apart = words.agreement("ALL", ["ALL", "HEM"], [0.8, 0.3])
    assert apart.startswith("Only 1 of 2") and apart.endswith("do not rely on it.")


def test_evidence_weaker_than_another_class_s_is_said() -> None:
    heatmaps = {"ALL": np.full((2, 2), 1.0), "HEM": np.full((2, 2), 4.0)}
    assert words.weak_evidence(heatmaps, "ALL") == "Little evidence: it amounts to 25\u00a0% of what speaks for HEM."
    assert words.weak_evidence(heatmaps, "HEM") == ""


@pytest.mark.parametrize(
    ("probability", "opening"),
    [
        (0.97, "The model reads this cell as ALL (leukaemic blast): 97\u00a0%."),
        (0.75, "The model leans towards ALL (leukaemic blast), 75\u00a0%, and is not firm"),
        (0.55, "The model is undecided: ALL (leukaemic blast) 55\u00a0%, HEM (normal precursor) 45\u00a0%."),
    ],
)
def test_verdict_is_as_firm_as_the_probability(probability: float, opening: str) -> None:
    assert words.verdict({"HEM": 1 - probability, "ALL": probability}).startswith(opening)


def test_verdict_names_an_unknown_label_plainly() -> None:
    assert "reads this cell as basophil: 95" in words.verdict({"basophil": 0.95, "other": 0.05})


@pytest.mark.parametrize(("share", "text"), [(0.004, "<1"), (0.996, ">99"), (1.0, "100"), (0.0, "0")])
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert words.percent(share) == f"{text}\u00a0%"


def test_evidence_on_a_cut_out_cell_is_shared_between_cell_and_background() -> None:
    heat = np.array([[3.0, 1.0]], np.float32)
    text = words.evidence(heat, cut_out_cell(), "ALL")
    # Bilinear between two cells of 3 and 1: the left half holds 2.75 of 4 parts.
    assert text.startswith("69\u00a0% of the evidence for ALL lies on the cell, 31\u00a0% on background")
    assert "the cell fills 50\u00a0% of what the model saw" in text
    assert "do not rely" not in text


def test_evidence_on_the_background_is_a_warning() -> None:
    text = words.evidence(np.array([[0.0, 1.0]], np.float32), cut_out_cell(), "HEM")
    assert "Most of it is not on the cell: do not rely on this answer." in text


def test_evidence_in_a_smear_is_placed() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    assert words.evidence(heat, BLANK, "Pro") == (
        "Half of the evidence for Pro lies in 6\u00a0% of what the model saw, around its upper right."
    )


def test_an_empty_heat_map_is_said_to_be_empty() -> None:
    assert "Nothing the model saw speaks for ALL" in words.evidence(np.zeros((3, 3)), cut_out_cell(), "ALL")


def test_synthetic_training_is_said() -> None:
    (said,) = words.warnings({"data": {"synthetic": True}})
    assert "trained on synthetic phantoms" in said
    assert words.warnings({"data": {"synthetic": False}}) == words.warnings({}) == ()


def test_panels_escape_what_strangers_wrote_and_carry_the_notice() -> None:
    hostile = "<script>x</script>"
    page = panels.answer({hostile: 0.9, "b": 0.1}, words.Judgement(hostile, hostile))
    page += panels.pictures(BLANK, BLANK, hostile, hostile, 1.0) + panels.remark(hostile)
    page += panels.reading(hostile, {"Model": hostile}, hostile) + panels.message(hostile, hostile)
    assert "<script>" not in page
    assert RESEARCH_NOTICE in page


def test_embedded_releases_are_found_by_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / ".half.tmp").mkdir()
    (tmp_path / ".half.tmp" / "config.json").write_text("{}")
    (tmp_path / "template.md").write_text("no release")
    (tmp_path / "notes").mkdir()
    assert find_releases(tmp_path) == {"a": tmp_path / "a", "b": tmp_path / "b"}
    assert find_releases(tmp_path / "missing") == {}


def test_shelf_keeps_the_models_used_last(tiny_release: Path) -> None:
    one = weights_bytes(Shelf({"a": tiny_release}).predictor("a"))
    shelf = Shelf(dict.fromkeys("abc", tiny_release), capacity=2 * one)
    first = shelf.predictor("a")
    shelf.predictor("b")
    assert shelf.predictor("a") is first
    shelf.predictor("c")
    assert shelf.loaded == ["a", "c"]


def test_shelf_keeps_the_model_asked_for_however_large(tiny_release: Path) -> None:
    shelf = Shelf(dict.fromkeys("ab", tiny_release), capacity=1)
    shelf.predictor("a")
    shelf.predictor("b")
    assert shelf.loaded == ["b"]


def test_a_hub_model_too_large_for_a_visitor_is_not_fetched(
    hub: Hub, tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.storage.create("owner/tiny", private=False)
    repository = hub.repository("owner/tiny")
    files = {path.name: hub.storage.keep(path.read_bytes(), large=False) for path in tiny_release.iterdir()}
    repository.branches["main"] = repository.add(files, "a release", repository.branches["main"]).oid
    monkeypatch.setattr("leukoscope.web.shelf.MAX_DOWNLOAD", 2**20)
    with pytest.raises(
        LeukoscopeError, match=r"^owner/tiny: holds 13 MB, more than the 1 MB fetched for a visitor; run"
    ):
        Shelf({}).predictor("owner/tiny")
    assert not (tmp_path / "hub-cache").exists()
    assert Shelf({}, ["owner/tiny"]).predictor("owner/tiny").labels == ("ALL", "HEM")


@pytest.mark.parametrize(
    "name", ["../secrets", "/etc", "C:\\models", "name", "a/b/c", "owner/name@", "owner/..", "a--b/c"]
)
def test_shelf_refuses_what_is_no_model_name(name: str) -> None:
    with pytest.raises(LeukoscopeError, match="is no model name: pick one \\(x\\) or type a Hub id"):
        Shelf({"x": Path("x")}).predictor(name)


def test_listed_models_come_before_embedded_releases(tmp_path: Path) -> None:
    (tmp_path / "models.txt").write_text("owner/b@v1\n\n owner/a \n")
    listed = listed_models(tmp_path / "models.txt")
    assert Shelf({"x": Path("x")}, listed).names == ["owner/b@v1", "owner/a", "x"]
    assert listed_models(tmp_path / "missing.txt") == []


def test_shelf_says_how_to_get_a_model() -> None:
    with pytest.raises(LeukoscopeError, match="No model is embedded. Train one with `accelerate launch train.py`"):
        Shelf({}).predictor(None)
    with pytest.raises(LeukoscopeError, match="No model is chosen"):
        Shelf({"x": Path("x")}).predictor(" ")


def test_shelf_passes_a_broken_release_on_as_one_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LeukoscopeError, match=r"config\.json: damaged"):
        Shelf({"broken": tmp_path}).predictor("broken")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_folder_of_this_machine_is_never_opened_for_a_visitor(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_cache: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "secret").symlink_to(tiny_release)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LeukoscopeError, match="^runs/secret: the Hub cannot be reached"):
        Shelf({"tiny": tiny_release}).predictor("runs/secret")


def test_a_damaged_hub_model_is_told_without_this_machine_s_folders(tmp_path: Path, hub_cache: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = hub_cache / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{")
    with pytest.raises(LeukoscopeError, match=r"^owner/name/config\.json: damaged") as refused:
        Shelf({}).predictor(f"owner/name@{commit}")
    assert str(tmp_path) not in str(refused.value)


class TestUploads:
    """An upload is read once and deleted, whatever it held."""

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
        (tmp_path / "cache" / "hash").mkdir(parents=True)
        return tmp_path / "cache" / "hash"

    def test_a_cell_is_read_and_its_file_deleted(self, cache: Path) -> None:
        from leukoscope.web.upload import read_upload

        cut_out_cell().save(cache / "cell.bmp")
        assert read_upload(cache / "cell.bmp").size == (40, 40)
        assert not (cache / "cell.bmp").exists()

    def test_a_file_outside_the_cache_is_left_alone(self, cache: Path, tmp_path: Path) -> None:
        from leukoscope.web.upload import read_upload

        cut_out_cell().save(tmp_path / "mine.png")
        read_upload(tmp_path / "mine.png")
        assert (tmp_path / "mine.png").exists()

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("text.png", b"no picture", "text.png: is not an image; give one of BMP, PNG"),
            ("empty.png", b"", r"empty.png: the file is empty \(0 bytes\)"),
            ("long.bmp", b"BM" + bytes(20 * 2**20), "long.bmp: is over 20 MB; crop it to the cell"),
        ],
    )
    def test_a_bad_file_is_named_without_its_folder_and_deleted(
        self, cache: Path, name: str, content: bytes, problem: str
    ) -> None:
        from leukoscope.cells.images import UnreadableImage
        from leukoscope.web.upload import read_upload

        (cache / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match=f"^{problem}"):
            read_upload(cache / name)
        assert not (cache / name).exists()

    @pytest.mark.parametrize(("model", "problem"), [("/etc", "'/etc' is no model name"), (None, "No model is chosen")])
    def test_a_bad_model_name_leaves_no_upload_behind(self, cache: Path, model: str | None, problem: str) -> None:
        cut_out_cell().save(cache / "cell.png")
        with pytest.raises(gradio.Error, match=f"^['\"]?{problem}"):
            _predict({"x": Path("x")})(str(cache / "cell.png"), model)
        assert not (cache / "cell.png").exists()

    def test_a_missing_picture_is_one_clear_message(self) -> None:
        with pytest.raises(gradio.Error, match="image: no picture was sent; give one image file"):
            _predict({"x": Path("x")})(None, "x")

    def test_a_whole_slide_is_not_one_cell(self, cache: Path) -> None:
        from leukoscope.cells.images import UnreadableImage
        from leukoscope.web.upload import read_upload

        Image.new("L", (4000, 3000)).save(cache / "wide.png")
        with pytest.raises(UnreadableImage, match="wide.png: is 4000×3000 pixels, more than the 8 megapixels"):
            read_upload(cache / "wide.png")


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
    assert "Model tiny, local files; " in text
    assert text.endswith(RESEARCH_NOTICE)


def test_examples_are_three_of_each_label_and_never_the_same() -> None:
    from leukoscope.web import look

    drawn = [look.example(number) for number in range(len(look.EXAMPLES))]
    assert [caption for _, caption in drawn] == ["Synthetic ALL"] * 3 + ["Synthetic HEM"] * 3
    assert len({image.tobytes() for image, _ in drawn}) == 6


def test_a_cell_is_shown_in_all_eight_positions() -> None:
    from leukoscope.web.look import turned_and_mirrored

    pixels = np.zeros((3, 4, 3), np.uint8)
    pixels[0, 0] = 255
    views = turned_and_mirrored(Image.fromarray(pixels))
    corners = {(view.size, tuple(np.argwhere(np.asarray(view)[..., 0])[0].tolist())) for view in views}
    assert len(views) == len(corners) == 8
    assert np.array_equal(np.asarray(views[0]), pixels)


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
