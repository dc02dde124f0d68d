"""The page in English and German: one table holds every text, and the visitor's language chooses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio
import pytest
from gradio.context import LocalContext
from starlette.requests import Request

from gradio_events import event
from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.field import drawing_font
from leukoscope.inference.prediction import Reason
from leukoscope.models.release import read_metrics
from leukoscope.web.app import build_demo
from leukoscope.web.batch_results import BatchResult, predict_batch, save_report
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.result import example, predict_cell
from leukoscope.web.tabs.batch import sample_batch
from leukoscope.web.tabs.evidence import evidence_page
from leukoscope.web.text import (
    GRADIO,
    LANGUAGES,
    TEXTS,
    Localised,
    LocalisedChoices,
    in_english,
    language,
    local_number,
    reason_text,
    t,
)

SOURCE = Path(__file__).parents[2] / "src" / "leukoscope"
WEB = sorted((SOURCE / "web").rglob("*.py"))
CNMC = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
PLACEHOLDER = re.compile(r"{(\w+)}")


@contextmanager
def visited(address: str = "/", browser: str = "") -> Iterator[None]:
    """As if a visitor's event were being handled."""
    headers = [(b"accept-language", browser.encode())] if browser else []
    scope = {"type": "http", "path": "/", "query_string": address.partition("?")[2].encode(), "headers": headers}
    token = LocalContext.request.set(gradio.Request(Request(scope)))
    try:
        yield
    finally:
        LocalContext.request.reset(token)


@pytest.fixture
def german() -> Iterator[None]:
    with visited("/?lang=de"):
        yield


@pytest.mark.parametrize(
    ("address", "browser", "spoken"),
    [
        ("/", "de-AT,de;q=0.9,en;q=0.8", "de"),
        ("/", "fr-FR,fr;q=0.9,de;q=0.5", "de"),
        ("/", "en-GB,en;q=0.9,de;q=0.8", "en"),
        ("/", "fr", "en"),
        ("/", "", "en"),
        ("/?lang=de&tab=cell", "en-US", "de"),
        ("/?lang=en", "de", "en"),
        ("/?lang=xx", "de", "de"),
    ],
)
def test_the_address_comes_before_the_browser(address: str, browser: str, spoken: str) -> None:
    with visited(address, browser):
        assert language() == spoken
        with in_english():
            assert language() == "en"
    assert language() == "en"


def test_both_languages_have_every_text_with_the_same_placeholders() -> None:
    for key, texts in TEXTS.items():
        assert set(texts) == set(LANGUAGES), key
        assert len({frozenset(PLACEHOLDER.findall(text)) for text in texts.values()}) == 1, key
    assert all(set(texts) == set(LANGUAGES) for texts in GRADIO.values())
    assert t("notice") == RESEARCH_NOTICE


def test_no_text_of_the_page_tells_a_visitor_to_type_a_command() -> None:
    shown = [text for texts in TEXTS.values() for text in texts.values()]
    for text in shown:
        assert not re.search(r"`|(^| )--\w|\bpip\b|\bpython |leukoscope [a-z]|hf auth|release folder", text), text


def _docstrings(tree: ast.Module) -> set[int]:
    """Ids of the strings that stand alone, which nobody is shown."""
    return {
        id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
    }


# What holds words, yet is no text: JavaScript, style sheets, programs to copy, names of arguments to be typed, and what
# is looked for in other packages' sentences.
_NO_TEXT = {"CSS", "VIEW", "CLICK", "ADDRESS", "BOX", "BUSY", "READY", "SORT", "NAMED_AS_WRITTEN", "REVEAL", "_FOLLOW",
            "_SAVE", "_PYTHON", "_PYTHON_MORE", "_JAVASCRIPT", "_CURL", "_MCP", "SYSTEM_FONTS", "ENDPOINTS",
            "SNIPPETS", "FLAG", "GUESSED"}  # fmt: skip
# Answers to a program, lines on the terminal, and what becomes part of an error.
_NOT_ON_THE_PAGE = ("app.py: Leukoscope is ready at", "app.py: This server keeps", "batch_files.py: ",
                    "upload.py: one cell", "upload.py: crop it", "upload.py: a field", "upload.py: cut it",
                    "upload.py: of a local folder", "evidence.py: mean colour")  # fmt: skip


def test_no_english_text_stands_outside_the_table() -> None:
    """Two English words in a row in a string of the web package are a text, which belongs into texts.json."""
    found = []
    for file in WEB:
        tree = ast.parse(file.read_text())
        skipped = _docstrings(tree)
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            no_text = any(isinstance(one, ast.Name) and one.id in _NO_TEXT for one in targets)
            if no_text or isinstance(node, ast.Raise) or getattr(getattr(node, "func", None), "attr", "") == "append":
                skipped |= {id(one) for one in ast.walk(node)}  # errors have a test of their own
        for node in ast.walk(tree):
            if id(node) in skipped or not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            bare = re.sub(r"<[^>]*>?|[\w-]+=\"[^\"]*\"?|lk-[\w-]+", "", node.value)
            if re.search(r"\b[a-zA-Z][a-z]+ [a-z]{2,}\b", bare):
                found.append(f"{file.name}: {node.value}")
    assert [one for one in found if not one.startswith(_NOT_ON_THE_PAGE)] == []


def test_numbers_have_the_signs_of_the_language(german: None) -> None:
    assert local_number("1,234.5 (0.81–0.94)") == "1.234,5 (0,81–0,94)"
    with in_english():
        assert local_number("1,234.5") == "1,234.5"


def test_every_reason_of_a_decision_has_a_text() -> None:
    from leukoscope.inference.prediction import REASON_TEXTS

    for code in REASON_TEXTS:
        reason = Reason(code, 0.38, 0.25)
        said = reason.text.replace("%", "\u00a0%").replace("95 \u00a0%", "95 %")
        assert code.startswith(("ood_", "other_")) or reason_text(reason).lower() == f"{said}.".lower()
        with visited("/?lang=de"):
            assert reason_text(reason) != reason.text and "{" not in reason_text(reason), code


def test_what_other_packages_say_is_marked_as_english(german: None, tmp_path: Path) -> None:
    page = evidence_page("cnmc", read_metrics(CNMC))
    assert page.count("<section") == page.count('<section lang="en">') > 5
    models, cells = ModelCache({"cnmc": CNMC}), sample_batch()
    some = replace(cells, files=[*cells.files[:3], *cells.files[-3:]])
    *_, few = predict_batch(models, some, "cnmc", r"synthetic-(\d)")
    assert isinstance(few, BatchResult)
    report = save_report(models, few, "1", "Probe 7").content.decode()
    assert '<html lang="en">' in report and "Report on the cells of Probe 7" in report


def test_what_is_drawn_has_its_letters() -> None:
    missing = drawing_font(15).getmask("\uffff")
    assert all(bytes(drawing_font(15).getmask(letter)) != bytes(missing) for letter in "äöüÄÖÜßé–µ²")


def test_a_result_is_told_in_german_and_to_a_program_in_english(german: None, tmp_path: Path) -> None:
    models = ModelCache({"cnmc": CNMC})
    result = predict_cell(models, *example(0), "cnmc")
    text = result.summary()
    assert text.startswith("Das Modell sagt ALL (leukämischer Blast) vorher") and text.endswith(t("notice"))
    assert result.caption == "Synthetisch: ALL" and "Fläche" in result.morphology
    assert result.decision_text().short == "Sieht aus wie ein leukämischer Blast"
    example(0)[0].save(tmp_path / "cell.png")
    (endpoint,) = (block.fn for block in build_demo(models).fns.values() if block.api_name == "predict")
    assert endpoint is not None
    *_, told, _ = endpoint(str(tmp_path / "cell.png"), "cnmc")
    assert told.startswith("The model predicts ALL") and told.endswith(RESEARCH_NOTICE)
    with pytest.raises(gradio.Error, match="is not an image; give one of BMP"):
        (tmp_path / "page.png").write_text("no picture")
        endpoint(str(tmp_path / "page.png"), "cnmc")


def _is_shown(block: Any) -> bool:
    """Whether a component can be seen: the endpoints' inputs lie in a hidden group."""
    return block is None or ((block.visible is not False or bool(block.elem_id)) and _is_shown(block.parent))


def test_every_text_of_the_page_is_given_in_the_visitor_s_language() -> None:
    demo = build_demo(ModelCache({"cnmc": CNMC}))
    english = []
    for block in demo.blocks.values():
        for name in ("label", "info", "placeholder", "value", "choices"):
            value = block.constructor_args.get(name)
            words = re.search(r"[a-z]{2}", re.sub("<.*?>", "", value)) if isinstance(value, str) else name == "choices"
            if value and words and not isinstance(value, Localised | LocalisedChoices) and _is_shown(block):
                english.append(value)
    # The summary starts with the hint, which no visitor sees before the example's result; names stay as they are.
    names = {"cnmc", "names", "Python", "JavaScript", "curl"}
    assert {one for one in english if t("cell_hint") not in one} <= names

    localise = event(demo, "localise")
    with visited("/?lang=de"):
        given = localise.fn()
    assert len(given) == len(localise.outputs) > 40
    assert not any("preprocess" in vars(block) for block in localise.outputs), "an update would undo what was replaced"
    assert {"label": "Zellen", "__type__": "update"} in given
    assert localise.fn() == [gradio.skip()] * len(given), "an English page stays as it is"
