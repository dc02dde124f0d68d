"""The page in English and German: one table holds every text, and the visitor's language chooses."""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import gradio
import pytest
from gradio.context import LocalContext
from starlette.requests import Request

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.field import drawing_font
from leukoscope.inference.prediction import Reason
from leukoscope.reports.evidence import evidence_sections
from leukoscope.web.app import build_demo
from leukoscope.web.batch_files import MAX_FILES
from leukoscope.web.batch_results import BatchResult, predict_batch, save_report
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.result import example, predict_cell
from leukoscope.web.tabs.batch import sample_batch
from leukoscope.web.tabs.evidence import evidence_page
from leukoscope.web.text import (
    GRADIO,
    LANGUAGES,
    MESSAGES,
    TEXTS,
    Localised,
    LocalisedChoices,
    in_english,
    language,
    t,
    translate,
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
    for key, texts in MESSAGES.items():
        given = set(PLACEHOLDER.findall(texts["match"]))
        # Some say less on the page than on the command line, never more.
        assert all(set(PLACEHOLDER.findall(text)) <= given for text in texts.values()), key
        assert texts["de"] and set(texts) <= {"match", *LANGUAGES}, key
    assert all(set(texts) == set(LANGUAGES) for texts in GRADIO.values())
    assert t("notice") == RESEARCH_NOTICE
    assert f"{MAX_FILES:,}" in t("batch_hint")


def test_no_text_of_the_page_tells_a_visitor_to_type_a_command() -> None:
    shown = [text for texts in TEXTS.values() for text in texts.values()]
    shown += [texts.get(one, texts["match"]) for texts in MESSAGES.values() for one in LANGUAGES]
    for text in shown:
        assert not re.search(r"`|(^| )--\w|\bpip\b|\bpython |leukoscope [a-z]|hf auth|release folder", text), text


def _docstrings(tree: ast.Module) -> set[int]:
    """Ids of the strings that stand alone, which nobody is shown."""
    return {
        id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
    }


# What holds words, yet is no text: JavaScript, style sheets, programs to copy, and names of arguments to be typed.
_NO_TEXT = {"CSS", "VIEW", "CLICK", "ADDRESS", "NAMED_AS_WRITTEN", "_REFUSAL", "_REVEAL", "_SAVE", "_PYTHON",
            "_PYTHON_MORE", "_JAVASCRIPT", "_CURL", "_MCP", "SYSTEM_FONTS", "ENDPOINTS", "SNIPPETS"}  # fmt: skip
# Answers to a program, lines on the terminal, and what becomes part of an error.
_NOT_ON_THE_PAGE = ("app.py: Leukoscope is ready at", "app.py: This server keeps", "batch_files.py: ",
                    "upload.py: one cell", "upload.py: crop it", "upload.py: a field", "upload.py: cut it",
                    "upload.py: of a local folder")  # fmt: skip


def test_no_english_text_stands_outside_the_table() -> None:
    """Two English words in a row in a string of the web package are a text, which belongs into texts.json."""
    found = []
    for file in WEB:
        tree = ast.parse(file.read_text())
        skipped = _docstrings(tree)
        for node in ast.walk(tree):
            named = isinstance(node, ast.Assign | ast.AnnAssign)
            targets = (node.targets if isinstance(node, ast.Assign) else [node.target]) if named else []
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


def _raised(file: Path) -> Iterator[str]:
    """A sample of each message that a module raises or lists as a problem: x for whatever it puts in."""
    for node in ast.walk(ast.parse(file.read_text())):
        call = node.exc if isinstance(node, ast.Raise) else node
        name = getattr(getattr(call, "func", None), "id", "") or getattr(getattr(call, "func", None), "attr", "")
        if not isinstance(call, ast.Call) or name not in ("LeukoscopeError", "UnreadableImage") or not call.args:
            continue
        if isinstance(call.args[0], ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "x"  # type: ignore[misc]
                for part in call.args[0].values
            )
        elif isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value)


# Raised for programs, by the command line, or with an array in hand.
_FOR_PROGRAMS = ("operating point x", "port x", "GRADIO_SERVER_PORT", "x: has shape", "x: x labels", "temperature x",
                 "comparison: ", "x: no such model folder")  # fmt: skip
_MET_BY_VISITORS = ("data/images.py", "models/release_files.py", "models/release.py", "evaluation/bootstrap.py")


def test_every_error_that_a_visitor_can_meet_is_told_in_german(german: None) -> None:
    raised = {text for file in (*WEB, *(SOURCE / name for name in _MET_BY_VISITORS)) for text in _raised(file)}
    assert len(raised) > 40
    told = {text for text in raised if translate(text) == text}
    from_parts = {"x", "x: x", "x: x (x); copy or export it again", "x: names neither a subject nor a label; x"}
    assert {text for text in told if not text.startswith(_FOR_PROGRAMS)} <= from_parts


@pytest.mark.parametrize(
    ("said", "german_text"),
    [
        ("cat.pdf: is not an image; give one of BMP, PNG, JPG, TIFF, WEBP",
         "cat.pdf: ist kein Bild; unterstützt werden BMP, PNG, JPG, TIFF, WEBP"),
        ("big.png: is over 20 MB; crop it to the cell",
         "big.png: ist größer als 20 MB; schneiden Sie es auf die Zelle zu"),
        ("a.tif: is a CMYK (print) image; convert it to 8-bit RGB first",
         "a.tif: ist ein CMYK-Bild (für den Druck); wandeln Sie es zuerst in 8-Bit-RGB um"),
        ("set 1,5.zip: would unpack to 1,234 MB, more than 200 MB; split it",
         "set 1,5.zip: würde entpackt 1.234 MB groß, mehr als 200 MB; teilen Sie es auf"),
        ("set.zip: 4 file(s) left out, no pictures that can be read: .txt 3, .heic 1; export them as PNG or JPEG",
         "set.zip: 4 Datei(en) ausgelassen, keine lesbaren Bilder: .txt 3, .heic 1; exportieren Sie sie als PNG oder "
         "JPEG"),
        ("5 nucleated cell(s), 5 of them whole within the field. 3 ALL, 1 HEM; no class: 1 abstain. 80% of the whole "
         "cells are like those the model was trained on.",
         "Kernhaltige Zellen: 5, davon ganz im Bildfeld: 5. 3 ALL, 1 HEM; ohne Klasse: Enthaltungen: 1. 80\u00a0% der "
         "ganzen Zellen ähneln denen, mit denen das Modell trainiert wurde."),
        ("class ALL: only subject P1 has it; intervals by subject need two or more subjects per class",
         "Klasse ALL: Nur die Person P1 hat Zellen davon; Intervalle über Personen brauchen je Klasse mindestens zwei "
         "Personen"),
        ("0.887 (0.81–0.94)", "0,887 (0,81–0,94)"),
        ("-0.025 (-0.05 to -0.00)", "-0,025 (-0,05 bis -0,00)"),
        ("30, 43, 5", "30, 43, 5"),
        ("2,000", "2.000"),
        ("C-NMC 2019", "C-NMC 2019"),
        ("something that the table lacks", "something that the table lacks"),
    ],
)  # fmt: skip
def test_what_other_packages_say_is_translated_with_its_numbers(german: None, said: str, german_text: str) -> None:
    assert translate(said) == german_text
    with in_english():
        assert translate(said).replace("\u00a0%", "%") == said, "on the page, a space stands before the per cent sign"


def test_a_message_of_the_command_line_is_another_on_the_page() -> None:
    said = "a/b: access is restricted; accept its terms on https://huggingface.co/a/b and run `hf auth login`"
    assert translate(said) == "a/b: access is restricted; name a model that is open"
    said = "a/b/config.json: timm has no architecture 'foo'; update timm"
    told = "a/b/config.json: the timm of this server has no architecture 'foo'; name another model"
    assert translate(said) == told


def test_every_reason_of_a_decision_is_translated(german: None) -> None:
    from leukoscope.inference.prediction import REASON_TEXTS

    for code in REASON_TEXTS:
        said = Reason(code, 0.38, 0.25).text
        assert translate(said) != said and "{" not in translate(said), code


@pytest.mark.parametrize("name", ["densenet169-cnmc", "densenet201-ball4", "efficientnet-b3-cnmc"])
def test_the_evidence_of_every_release_is_translated(german: None, name: str) -> None:
    from leukoscope.models.release_files import read_metrics

    same = set()
    metrics = read_metrics(CNMC.parent / f"leukoscope-{name}")
    for section in evidence_sections(metrics):
        table = [section.table.columns, *section.table.rows] if section.table else []
        said = [section.heading, *section.text, *(one for row in table for one in row), *section.terms.values()]
        said += [picture.alt for picture in section.pictures]
        same |= {one for one in said if re.search(r"[a-z]{3}", one) and translate(one) == one}
    # Names: of the data, its licence and citation, folds, networks and machines.
    names = r"C-NMC|CC BY|ODbL|B-ALL|Gupta|Ghaderzadeh|fold_|densenet|tf_eff|ImageNet|stem and|channels|\d+ epochs"
    assert [one for one in same if not re.match(names, one)] == []
    # An SVG names each text that it draws in a comment.
    pictures = re.findall(r'svg\+xml;base64,([^"]+)"', evidence_page(name, metrics))
    drawn = [one for svg in pictures for one in re.findall(r"<!-- (.+?) -->", base64.b64decode(svg).decode())]
    assert "Genauigkeit (Anteil der Zellen)" in drawn and "0,8" in drawn
    assert [
        one for one in drawn if re.search(r"\d\.\d|\b(of|the|cells|subjects?|blocks?|persons|share|as)\b", one)
    ] == []


def test_the_saved_report_and_pictures_are_german_too(german: None) -> None:
    models, cells = ModelCache({"cnmc": CNMC}), sample_batch()
    some = replace(cells, files=[*cells.files[:3], *cells.files[-3:]])
    *_, few = predict_batch(models, some, "cnmc", r"synthetic-(\d)")
    assert isinstance(few, BatchResult)
    rule = {**few.metrics["patients"], "least_cells": 2}
    for result in (few, replace(few, metrics={**few.metrics, "patients": rule})):
        report = save_report(models, result, "1", "Probe 7").content.decode()
        assert '<html lang="de">' in report and "Bericht über die Zellen von Probe 7" in report
        said = unescape(re.sub(r"(?s)<style>.*?</style>", "", report))
        said = " ".join([re.sub(r"<[^>]*>", " ", said), *re.findall(r'(?:alt|aria-label)="([^"]+)"', report)])
        said = said.replace(few.metrics["data"]["citation"], "")
        assert re.findall(r"\b(?:of|the|cells?|in use|and|not|with|shown?|the|probability)\b", said) == []
    assert "Keine Klasse: zu wenige Zellen" in save_report(models, few, "1", "").content.decode()
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

    (localise,) = (fn for fn in demo.fns.values() if getattr(fn.fn, "__name__", "") == "localise")
    assert localise.fn is not None
    with visited("/?lang=de"):
        given = localise.fn()
    assert len(given) == len(localise.outputs) > 40
    assert not any("preprocess" in vars(block) for block in localise.outputs), "an update would undo what was replaced"
    assert {"label": "Zelle", "__type__": "update"} in given
    assert localise.fn() == [gradio.skip()] * len(given), "an English page stays as it is"
