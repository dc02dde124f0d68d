"""Lines of a style or a script that hold more than one rule, declaration or statement.

A small reader of CSS and JavaScript: it knows strings, comments, templates, regular expressions and brackets, and no
more grammar than the question needs. The text is read with literals and comments blanked, each in its own length.
"""

from __future__ import annotations

import re
from pathlib import Path

_CSS_LITERAL = re.compile(r"/\*.*?\*/|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|url\([^)]*\)", re.DOTALL)
_JS_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_JS_STRING = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'")
# Where a value may begin, so that a slash is not a division.
_JS_REGEX = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/[a-z]*")
_BEFORE_VALUE = re.compile(r"(?:^|[(,=:\[!&|?{};+\-*%<>~]|\breturn)\s*$")
# A brace after one of these opens a block of statements, not an object.
_BEFORE_BLOCK = re.compile(r"(?:^|\)|=>|\belse|\bdo|\btry|\bfinally|[;{}])\s*$")
_CLASS = re.compile(r"\bclass\b[^(){};]*$")
# These lists hold commas between brackets of statements, but no second statement.
_LIST_STATEMENT = re.compile(r"\s*(?:import|export)\b")


def packed_lines(path: Path) -> list[int]:
    """Numbers, from 1, of the packed lines of a .css or .js file, in order."""
    text = path.read_text(encoding="utf-8")
    return packed_css_lines(text) if path.suffix == ".css" else packed_js_lines(text)


def packed_css_lines(text: str) -> list[int]:
    """Lines with more than one of: a selector that opens a block, a declaration, a closing brace."""
    blanked = _CSS_LITERAL.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    numbers = []
    for number, line in enumerate(blanked.splitlines(), 1):
        code = line.strip()
        opens_before_the_end = "{" in code[:-1]
        closes_with_others = "}" in code and code != "}"
        declares_before_the_end = ";" in code[:-1]
        if opens_before_the_end or closes_with_others or declares_before_the_end:
            numbers.append(number)
    return numbers


def packed_js_lines(text: str) -> list[int]:
    """Lines on which a second statement begins: after `;`, after a comma between statements, or of one `const`."""
    code = _blanked_script(text)
    numbers = set()
    brackets: list[str] = []  # "(", "[", "{" of an object, or "b" of a block, for each that is open
    statement = 0  # where the present one begins
    for at, character in enumerate(code):
        in_block = not brackets or brackets[-1] == "b"
        if character in "([":
            brackets.append(character)
        elif character == "{":
            before = code[max(0, at - 200) : at]
            opens_block = bool(_BEFORE_BLOCK.search(before) or _CLASS.search(before))
            brackets.append("b" if opens_block else "{")
        elif character in ")]}":
            if brackets:
                brackets.pop()
        elif in_block and _begins_another(code, at, statement):
            numbers.add(code.count("\n", 0, at) + 1)
        opened_or_closed_block = character in "{}" and (not brackets or brackets[-1] == "b")
        if (in_block and character in ";\n") or opened_or_closed_block:
            statement = at + 1
    return sorted(numbers)


def _begins_another(code: str, at: int, statement: int) -> bool:
    """Whether a comma, or a semicolon between two statements of a line, stands at this place of a block."""
    if code[at] == ",":
        return not _LIST_STATEMENT.match(code, statement)
    if code[at] != ";":
        return False
    before = code[:at].rpartition("\n")[2]
    after = code[at + 1 :].partition("\n")[0]
    return bool(before.strip() and after.strip(" })];,"))


def _blanked_script(text: str) -> str:
    """A script of the same length in which comments are spaces, and strings, templates and expressions are `s`."""
    pieces: list[str] = []
    at = 0
    while at < len(text):
        end, filler = at, "s"
        if comment := _JS_COMMENT.match(text, at):
            end, filler = comment.end(), " "
        elif string := _JS_STRING.match(text, at):
            end = string.end()
        elif text[at] == "`":
            end = _end_of_template(text, at)
        elif text[at] == "/" and _BEFORE_VALUE.search("".join(pieces[-20:])):
            expression = _JS_REGEX.match(text, at)
            end = expression.end() if expression else at
        if end > at:
            pieces.append(re.sub(r"[^\n]", filler, text[at:end]))
            at = end
        else:
            pieces.append(text[at])
            at += 1
    return "".join(pieces)


def _end_of_template(text: str, start: int) -> int:
    """The place after the template that begins at a place with a backtick; what it inserts is part of it."""
    at = start + 1
    depth = 0  # of the braces of what is inserted
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "`" and depth:
            at = _end_of_template(text, at) - 1
        elif text[at] == "`":
            return at + 1
        elif text.startswith("${", at) or (depth and text[at] == "{"):
            depth += 1
            at += text[at] == "$"
        elif depth and text[at] == "}":
            depth -= 1
        at += 1
    return len(text)
