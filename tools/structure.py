"""How the source reads: `make structure`.

Prints by package how densely statements are packed, how many names say nothing and how many nodes of the syntax tree
there are, beside their ceilings (density.py), the functions and files that are long, and styles and scripts with packed
lines (packed.py). With `--check` it prints only what exceeds a limit, and fails if anything does; `make quality` runs
that.
tests/docs/test_structure.py asserts that no import is part of a circle.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from density import (
    LIMITS,
    NODE_CEILINGS,
    SOURCE,
    densities,
    faults_of_constants,
    faults_of_density,
    faults_of_size,
    nodes_by_group,
)
from packed import packed_lines

# Where splitting is worth a thought; no limits.
LONG_FILE = 450
LONG_FUNCTION = 60
# At most so many lines of text that is not Python, by the pattern of its files.
TEXT_CEILINGS = {"hub/static_space.*": 450}


def long_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines, from `def` to the last, of each function with more than `LONG_FUNCTION`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > LONG_FUNCTION:
                yield node.name, lines


def faults_of_pages(source: Path = SOURCE) -> list[str]:
    """One line for each style or script with packed lines, and for text that exceeds its ceiling."""
    faults = []
    for pattern, ceiling in TEXT_CEILINGS.items():
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in source.glob(pattern))
        if lines > ceiling:
            faults.append(f"{pattern}: {lines} lines, at most {ceiling}")
    for path in sorted(source.rglob("*")):
        if path.suffix not in (".css", ".js"):
            continue
        numbers = packed_lines(path)
        if numbers:
            places = ", ".join(str(number) for number in numbers[:5])
            more = ", …" if len(numbers) > 5 else ""
            name = path.relative_to(source).as_posix()
            faults.append(f"{name}: {len(numbers)} lines too long, or with two statements or rules ({places}{more})")
    return faults


def all_faults() -> list[str]:
    """One line for whatever exceeds a limit."""
    return [
        *faults_of_density(densities()["all"]),
        *faults_of_size(nodes_by_group()),
        *faults_of_constants(),
        *faults_of_pages(),
    ]


def print_densities() -> None:
    """Print what density.py counts, by package."""
    kinds = "".join(f"{kind:>16}" for kind in LIMITS)
    print(f"{'':<12}{'files':>6}{'statements':>12}{kinds}{'placeholders':>14}{'generic names':>15}")
    for name, density in densities().items():
        rates = "".join(f"{density.per_thousand(kind):>16.1f}" for kind in LIMITS)
        names = f"{density.counts['placeholders']:>14}{density.counts['generic']:>15}"
        print(f"{name:<12}{density.files:>6}{density.counts['statements']:>12,}{rates}{names}")


def print_sizes() -> None:
    """Print the nodes of each group beside its ceiling."""
    nodes = nodes_by_group()
    for group, ceiling in NODE_CEILINGS.items():
        print(f"{group:<12}{nodes[group]:>10,} nodes, at most {ceiling:>7,}")
    print(f"{'all':<12}{sum(nodes.values()):>10,} nodes")


def print_long() -> None:
    """Print the files and functions where splitting is worth a thought."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONG_FILE:
            print(f"{module}: {lines} lines")
        for function, count in long_functions(path):
            print(f"{module}, {function}: {count} lines")


def main() -> int:
    """The exit status: 1 with `--check` and a fault, else 0."""
    faults = all_faults()
    if "--check" in sys.argv[1:]:
        print("\n".join(faults) or "The source keeps its limits.")
        return int(bool(faults))
    print_densities()
    print()
    print_sizes()
    print()
    print_long()
    print("\n" + "\n".join(faults))
    return 0


if __name__ == "__main__":
    sys.exit(main())
