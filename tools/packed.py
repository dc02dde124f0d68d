"""Lines of a style or a script that hold more than one rule, declaration or statement, or are too long."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST_LINE = 120
# Texts, comments and addresses, in which marks mean nothing.
_LITERAL = re.compile(r"/\*.*?\*/|//[^\n]*|url\([^)]*\)|([\"'`])(?:\\.|(?!\1)[^\\])*\1", re.DOTALL)
_FOR = re.compile(r"\bfor \([^;]*;[^;]*;[^;]*\)")
_TWO_RULES = re.compile(r"[{};].|.\}")
_TWO_STATEMENTS = re.compile(r"[^;];\s*[^\s})]")


def packed_lines(path: Path) -> list[int]:
    """Numbers, from 1, of the packed lines of a .css or .js file, in order."""
    text = path.read_text(encoding="utf-8")
    packed = _TWO_RULES if path.suffix == ".css" else _TWO_STATEMENTS
    blanked = _LITERAL.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    lines = zip(text.splitlines(), blanked.splitlines(), strict=True)
    return [
        number
        for number, (line, code) in enumerate(lines, 1)
        if len(line) > LONGEST_LINE or packed.search(_FOR.sub("", code).strip())
    ]
