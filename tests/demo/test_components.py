"""What is drawn: no text of a value is code, in keys and beside its neighbours, too."""

from __future__ import annotations

import re

import pytest

from leukoscope.demo.components import (
    DEMO_FOLDER,
    CellStage,
    PeoplePlot,
    PictureStrip,
    SmearStage,
    VerdictCard,
    harmless,
)

ATTACKS = (
    "${document.body.remove()}",
    "$",
    "{document.body.remove()}",
    "`+document.body.remove()+`",
    "\\",
    "{{#each}}",
    "{{{value}}}",
    "<img src=x onerror=document.body.remove()>",
    "\" onmouseover='document.body.remove()",
    "&lt;script&gt;",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_is_code_whatever_holds_it(attack: str) -> None:
    drawn = harmless({attack: [attack, (attack, 1, None, True)]})
    ((key, (first, (second, *rest))),) = drawn.items()
    assert key == first == second and rest == [1, None, True]
    assert not re.search(r"[$`{}<>\"'\\]|&(?!#\d+;)", key), key


def test_every_component_writes_its_value_so() -> None:
    for component in (VerdictCard, CellStage, SmearStage, PeoplePlot):
        assert component({}).postprocess({"verdict": "${1}"}) == {"verdict": "&#36;&#123;1&#125;"}
    strip = PictureStrip([{"name": "1"}], "a cell")
    assert strip.postprocess({"example": "`", "files": []})["example"] == "&#96;"
    assert strip.postprocess(None) == {"tiles": [{"name": "1"}], "shows": "a cell", "many": False}


def test_templates_fill_in_texts_by_three_braces_and_run_no_other_code() -> None:
    for template in DEMO_FOLDER.glob("drawn/*.html"):
        text = template.read_text(encoding="utf-8")
        code = re.findall(r"\$\{[^}]*\}", text.replace("{{{", "").replace("}}}", ""))
        assert all("value?.example ===" in part for part in code), template.name
    for style in DEMO_FOLDER.glob("drawn/*.css"):
        assert "${" not in style.read_text(encoding="utf-8") and "`" not in style.read_text(encoding="utf-8"), (
            style.name
        )
