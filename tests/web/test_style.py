"""The page's style and scripts: one rule a block, one declaration a line, in the theme's own colours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "src" / "leukoscope" / "web"
STYLE = (WEB / "page.css").read_text(encoding="utf-8")
LINES = [line for line in re.sub(r"/\*.*?\*/", "", STYLE, flags=re.DOTALL).splitlines() if line.strip()]


def test_every_rule_is_a_block_and_every_declaration_a_line() -> None:
    depth = 0
    for line in LINES:
        inside = re.sub(r'"[^"]*"', '""', line.strip())
        indent = len(line) - len(line.lstrip())
        assert indent == 2 * (depth - (inside == "}")), f"indented otherwise: {line!r}"
        assert inside.endswith(("{", "}", ";", ",")), line
        assert inside == "}" or "}" not in inside, f"more than a line's worth: {line!r}"
        assert inside.count(";") <= 1 and not ("{" in inside and ";" in inside), f"packed: {line!r}"
        depth += inside.endswith("{") - (inside == "}")
    assert depth == 0


def test_nothing_is_important_and_type_has_the_sizes_of_the_drawn_page() -> None:
    assert "!important" not in STYLE, "a theme variable, or a longer selector, spares it"
    sizes = set(re.findall(r"font-size: ([^;]+);", STYLE))
    assert sizes <= {"13px", "15px", "18px", "24px", "28px", "inherit"}


def test_colours_are_named_once_for_light_and_once_for_dark() -> None:
    light, dark = (
        re.search(rf"^{start} {{\n(.*?)^}}", STYLE, re.MULTILINE | re.DOTALL) for start in (":root", r"\.dark")
    )
    assert light and dark
    names = [set(re.findall(r"(--lk-[\w-]+):", block[1])) for block in (light, dark)]
    assert names[1] <= names[0] and {"--lk-accent", "--lk-class-0", "--lk-none", "--lk-warn"} <= names[1]


def test_a_refused_cell_has_one_form_in_a_bar_its_legend_and_the_head_of_a_plot() -> None:
    """It was hatched in the bar, and a ring in the legend below it; a short hollow part of a bar looked like a D."""
    one_rule = (
        r":root \.lk-bar \.lk-unlike,\n"
        r":root \.lk-ends \.lk-unlike::before,\n"
        r":root \.lk-dot\.lk-unlike,\n"
        r":root \.lk-many b\.lk-unlike::before {\n  background: (color-mix\(.*?\));"
    )
    fill = re.search(one_rule, STYLE)
    assert fill
    assert f":root .lk-row circle.lk-unlike {{\n  fill: {fill[1]};" in STYLE, "in the plot, too"


@pytest.mark.parametrize("script", sorted(path.name for path in WEB.glob("*.js")))
def test_a_line_of_a_script_is_one_statement(script: str) -> None:
    for line in (WEB / script).read_text(encoding="utf-8").splitlines():
        code = re.sub(r"'[^']*'|`[^`]*`|//.*|\bfor \(.*?;.*?;.*?\)", "", line)
        assert code.count(";") == 0 or script == "folder.js", f"{script}: {line}"
