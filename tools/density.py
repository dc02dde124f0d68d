"""How densely the source is written, by `ast`: what `make structure` prints and `tools/structure.py --check` limits.

A statement is every `ast.stmt` node of src/leukoscope, app.py and train.py: imports, definitions and docstrings count,
too. Per 1,000 of them:

- several values: assignments such as `a, b = x, y`, with a tuple or list on both sides;
- walrus: `:=`;
- conditional: `x if condition else y`;
- nested: comprehensions or generator expressions with another one inside, the outermost counted.

Nodes, as numbers: every node of the syntax tree counts ideas however they are laid out. `GROUPS` says which packages
share a ceiling; a ceiling only goes down.

Names, as numbers: assignments to a variable, a loop variable included, and parameters, that are called by one of
`PLACEHOLDERS` or `GENERIC`. Attributes and keyword arguments do not count.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "leukoscope"
SCRIPTS = (ROOT / "app.py", ROOT / "train.py")
# Words that do not say what a value is; those of GENERIC are sometimes the right ones.
PLACEHOLDERS = frozenset(
    ["one", "found", "said", "told", "given", "shown", "made", "kept", "has", "about", "known", "soon"]
)
GENERIC = frozenset(["item", "entry", "value", "result", "data", "obj", "tmp"])
# Constants of one word that say enough wherever they are imported.
CLEAR_CONSTANTS = frozenset(["DATASETS", "RECIPES", "TIMM", "TORCH", "OPENVINO", "F32", "BF16", "ABSTAIN", "REFUSED"])
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# At most so many of each in 1,000 statements, and so many placeholders in all.
LIMITS = {"several values": 5.0, "walrus": 2.0, "conditional": 20.0, "nested": 0.5}
MOST_PLACEHOLDERS = 40
MOST_NODES_PER_STATEMENT = 12.0
# Modules and packages that share the ceiling of another package; "top" is every other module beside the packages.
GROUPS = {"audit": "evaluation", "benchmark": "evaluation", "split_check": "evaluation", "protocol": "training"}
# At most so many nodes of the syntax tree. A package may give to another: of 718 that reports and the demo lost, 431
# went to four others.
NODE_CEILINGS = {
    "cli": 10_501,
    "data": 33_244,
    "demo": 20_882,
    "evaluation": 27_148,
    "hub": 3_456,
    "inference": 18_596,
    "models": 12_134,
    "reports": 7_431,
    "top": 8_128,
    "training": 20_731,
}


@dataclass
class Density:
    """What is counted in some files."""

    files: int
    counts: Counter[str]

    def per_thousand(self, kind: str) -> float:
        """How many of one of `LIMITS` there are in 1,000 statements."""
        return 1000 * self.counts[kind] / max(self.counts["statements"], 1)


def is_several_values(node: ast.AST) -> bool:
    """Whether a node is an assignment such as `a, b = x, y`."""
    if not isinstance(node, ast.Assign):
        return False
    sequences = (ast.Tuple, ast.List)
    return isinstance(node.value, sequences) and any(isinstance(target, sequences) for target in node.targets)


def holds_comprehension(node: ast.AST) -> bool:
    """Whether a node is a comprehension with another one inside."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    return any(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node) if inner is not node)


def assigned_name(node: ast.AST) -> str:
    """The variable or parameter that a node gives a value, or ""."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    return ""


def count_file(path: Path) -> Counter[str]:
    """What the docstring of this module names, counted in one Python file."""
    counts: Counter[str] = Counter()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        counts["nodes"] += 1
        counts["statements"] += isinstance(node, ast.stmt)
        counts["several values"] += is_several_values(node)
        counts["walrus"] += isinstance(node, ast.NamedExpr)
        counts["conditional"] += isinstance(node, ast.IfExp)
        counts["nested"] += holds_comprehension(node)
        name = assigned_name(node)
        counts["placeholders"] += name in PLACEHOLDERS
        counts["generic"] += name in GENERIC
    return counts


def densities(source: Path = SOURCE, scripts: tuple[Path, ...] = SCRIPTS) -> dict[str, Density]:
    """By package, by name; modules beside the packages and the scripts are "top", and "all" is the sum."""
    packages: dict[str, Density] = defaultdict(lambda: Density(0, Counter()))
    for path in (*sorted(source.rglob("*.py")), *scripts):
        package = "top"
        if path.is_relative_to(source) and path.parent != source:
            package = path.relative_to(source).parts[0]
        counts = count_file(path)
        for name in (package, "all"):
            packages[name].files += 1
            packages[name].counts += counts
    return {name: packages[name] for name in (*sorted(packages.keys() - {"all"}), "all")}


def nodes_by_group(source: Path = SOURCE, scripts: tuple[Path, ...] = SCRIPTS) -> dict[str, int]:
    """Nodes of the syntax tree in each group of `NODE_CEILINGS`."""
    nodes = dict.fromkeys(NODE_CEILINGS, 0)
    for path in (*sorted(source.rglob("*.py")), *scripts):
        name = "top"
        if path.is_relative_to(source):
            name = path.relative_to(source).with_suffix("").parts[0]
        group = GROUPS.get(name, name)
        if group not in NODE_CEILINGS:
            group = "top"
        nodes[group] += count_file(path)["nodes"]
    return nodes


def faults_of_size(nodes: Mapping[str, int]) -> list[str]:
    """One line for each group with more nodes than its ceiling."""
    return [
        f"{group}: {nodes[group]:,} nodes of the syntax tree, at most {ceiling:,}"
        for group, ceiling in NODE_CEILINGS.items()
        if nodes[group] > ceiling
    ]


def faults_of_density(density: Density) -> list[str]:
    """One line for each limit that the density of the whole source exceeds."""
    faults = []
    for kind, limit in LIMITS.items():
        rate = density.per_thousand(kind)
        if rate > limit:
            faults.append(f"{kind}: {rate:.1f} in 1,000 statements, at most {limit:g}")
    nodes_per_statement = density.counts["nodes"] / max(density.counts["statements"], 1)
    if nodes_per_statement > MOST_NODES_PER_STATEMENT:
        faults.append(f"nodes per statement: {nodes_per_statement:.1f}, at most {MOST_NODES_PER_STATEMENT:g}")
    placeholders = density.counts["placeholders"]
    if placeholders > MOST_PLACEHOLDERS:
        faults.append(f"names that say nothing: {placeholders} assigned, at most {MOST_PLACEHOLDERS}")
    return faults


def module_constants(path: Path) -> Iterator[tuple[str, str]]:
    """Name and value, as source text, of each constant that a module assigns at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        for target in targets:
            yield from _constants_of(target, node.value)


def _constants_of(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, str]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for name, part in zip(target.elts, value.elts, strict=True):
            yield from _constants_of(name, part)
    elif isinstance(target, ast.Name) and target.id.isupper() and value is not None:
        yield target.id, ast.unparse(value)


def faults_of_constants(source: Path = SOURCE) -> list[str]:
    """One line for each public constant with two values, and for each of one word that another module imports."""
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    imported: set[str] = set()
    for path in sorted(source.rglob("*.py")):
        module = path.relative_to(source).as_posix()
        for name, text in module_constants(path):
            values[name][text].append(module)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported |= {alias.name for alias in node.names}
    faults = []
    for name, places in sorted(values.items()):
        modules = ", ".join(sorted({module for part in places.values() for module in part}))
        if len(places) > 1 and not name.startswith("_"):
            faults.append(f"{name} has {len(places)} values, in {modules}: name what each belongs to")
        if name in imported and "_" not in name and name not in CLEAR_CONSTANTS:
            faults.append(f"{name} of {modules} is imported elsewhere: name what it belongs to")
    return faults
