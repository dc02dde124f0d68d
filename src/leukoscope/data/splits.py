"""Splits: which cells are trained on and which are tested on.

A split is a list of cell ids, kept as `split.json` with the fingerprint of the data it was made from, so that any
run can use exactly the same cells again. The unit that must not stand on two sides (the subject, or the block of
neighbouring images where subjects are unknown) is asserted before training starts.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError

from leukoscope import ConfigError, DataError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.images import encoded_content
from leukoscope.data.names import SPLIT_SIDES
from leukoscope.files import write_atomic

if TYPE_CHECKING:
    from datasets import Dataset


Strategy = Literal["subject", "subject-cv", "official", "random", "random-cv", "block", "block-cv", "all", "given"]
Group = Literal["subject", "block", "cell"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
# The unit that a strategy keeps on one side; all others keep subjects.
_GROUPS: dict[str, Group] = {"random": "cell", "block": "block"}
# A test set where one group has a larger share of the cells measures that group.
LARGEST_SHARE = 0.4
# Deals that a split is chosen from: enough to avoid such test sets where the data allow it, few enough for seeds to
# differ.
_DEALS = 20
TRAIN_VAL_SPLIT = 0.15  # of train, set apart for validation where a data set's own splits have none
BY_IMAGE = "a split by image may have cells of one subject on two sides: its metrics do not apply to a new subject"
SUBJECTS_FOR_RULE = 3
"""Of each class, on a validation side: fewer fit no thresholds and no rule for subjects."""
# One seventh for validation and one for test is the closest whole-fold share to the usual 70/15/15.
SUBJECT_FOLDS = 7


@dataclass(frozen=True)
class Split:
    """Which cells (by id) train, which choose the checkpoint, and which are only ever tested on."""

    strategy: str
    group: Group  # what is disjoint between the sides; "cell": images alone
    seed: int
    data_fingerprint: str
    train: tuple[str, ...]
    validation: tuple[str, ...]  # may be empty: then the last epoch is kept
    test: tuple[str, ...]
    detail: str = ""
    notes: tuple[str, ...] = ()  # what was left out to keep the sides disjoint, or weakens the metrics, one line each

    @property
    def fingerprint(self) -> str:
        """sha256 over the cell ids of each side; equal splits have equal fingerprints."""
        sides = json.dumps([sorted(self.train), sorted(self.validation), sorted(self.test)])
        return sha256(sides.encode()).hexdigest()

    @property
    def test_fingerprint(self) -> str:
        """sha256 over the cell ids of the test side, which does not change with the validation side."""
        return sha256(json.dumps(sorted(self.test)).encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        """The fields that a report shows, ready for JSON."""
        named = {key: getattr(self, key) for key in ("strategy", "detail", "seed", "fingerprint", "test_fingerprint")}
        return {**named, "disjoint_by": self.group}

    def at_most(self, train: int | None, evaluation: int | None) -> Split:
        """The split with at most so many training cells, and validation and test cells each, sampled by its seed."""

        def draw(cells: tuple[str, ...], limit: int | None) -> tuple[str, ...]:
            if limit is None or limit >= len(cells):
                return cells
            drawn = np.random.default_rng(self.seed).choice(len(cells), size=limit, replace=False)
            return tuple(cells[i] for i in sorted(drawn))

        return replace(
            self,
            train=draw(self.train, train),
            validation=draw(self.validation, evaluation),
            test=draw(self.test, evaluation),
        )

    def save(self, path: Path) -> None:
        """Write `split.json` (aside, then renamed)."""
        write_atomic(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def load_split(path: str | Path, data: LoadedCells, *, disjoint: bool = True) -> Split:
    """Read a `split.json`; with `disjoint`, refuse one that has a subject (or block) on two sides, too.

    Raises:
        DataError: no such file, not a split, or a fingerprint that is not this data's.
    """
    try:
        split = TypeAdapter(Split).validate_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"--split_file {path}: cannot be read ({error.strerror}); give a split.json") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = " ".join(map(str, (*first["loc"], first["msg"])))
        raise DataError(f"--split_file {path}: not a split.json written by Leukoscope ({reason})") from None
    if split.data_fingerprint != data.fingerprint:
        raise DataError(
            f"--split_file {path}: was drawn from other data (fingerprint {split.data_fingerprint[:12]}, these cells "
            f"are {data.fingerprint[:12]}); use the data it was made from, or draw a new split with --split"
        )
    if disjoint:
        assert_disjoint(split, groups_of(data, split.group))
    return split


def make_split(
    data: LoadedCells,
    strategy: str | None,
    *,
    seed: int = 0,
    fold: int = 0,
    num_folds: int = 5,
    validation: bool = True,
    train_folds: Sequence[str] = ("fold_0",),
    test_folds: Sequence[str] = ("fold_1",),
) -> Split:
    """Draw a split and assert that its sides are disjoint.

    Args:
        strategy: `subject` (about 70/15/15 by subject), `subject-cv` (k-fold by subject; `fold` is tested), `block` and
            `block-cv` (the same by blocks of neighbouring images), `random` and `random-cv` (the same by image),
            `official` (the publisher's named folds), `all` (train on everything: for a final release), `given` (the
            data set's own splits); None takes `given` where there are some, else `subject`. All stratify by class.
        validation: set part of the training side apart to choose the checkpoint.

    Raises:
        LeukoscopeError: unknown strategy, too few groups, missing folds, or data without the required group.
    """
    if not strategy:
        strategy = "given" if data.own_splits else "subject"
    _require_possible(data, strategy)
    cells = _Cells(data, _unit_kept_whole(data, strategy), seed)
    train = cells.everything
    val = list[int]()
    test = list[int]()
    if strategy == "random":
        train, rest = cells.apart(train, 0.30)
        val, test = cells.apart(rest, 0.5)
        detail = "70/15/15 by image"
    elif strategy == "all":
        detail = "every cell trains"
    elif strategy == "given":
        train, val, test, detail = cells.own_sides(validation=validation)
    elif strategy == "official":
        train = cells.in_folds(train_folds)
        test = cells.in_folds(test_folds)
        detail = f"{'+'.join(train_folds)} → {'+'.join(test_folds)}"
    elif strategy.endswith("-cv"):
        train, test = cells.fold(fold, num_folds)
        detail = f"fold {fold} of {num_folds}{' by image' if cells.group == 'cell' else ''}"
    else:
        train, test = cells.fold(0, SUBJECT_FOLDS)
        detail = f"about 70/15/15 by {cells.group}"
    is_settled = strategy in ("random", "all", "given")  # set apart above, or without a validation side
    if strategy in ("subject", "block") or (validation and not is_settled):
        others = "subject-cv or official" if cells.group == "subject" else "block-cv"
        train, val = cells.apart(train, 1 / (SUBJECT_FOLDS - 1), f"use --split {others} with --no_validation")
    return cells.split(strategy, train, val, test, detail)


def own_split(data: LoadedCells) -> Split | None:
    """The splits that a data set has itself, without a validation side drawn for it; None where it has none."""
    if not data.own_splits:
        return None
    return make_split(data, "given", validation=False)


def split_unit(data: LoadedCells) -> Group:
    """The unit that a split must keep on one side: "subject", "block" or, if neither is known, "cell"."""
    if any(data.train["subject"][:]):
        return "subject"
    return "block" if data.info.group == "block" else "cell"


def cross_validation(data: LoadedCells) -> list[Split]:
    """Five folds by `split_unit`, or one for each unit of the rarest class; one random split where there are no units.

    Raises `DataError` where a class has fewer than two units.
    """
    unit = split_unit(data)
    if unit == "cell":
        return [make_split(data, "random")]
    cells = _Cells(data, unit, seed=0)
    fewest, label = cells.rarest(cells.everything)
    if fewest < 2:
        raise DataError(f"class {label} has {fewest} {unit}(s); two or more are needed to test on others")
    num_folds = min(5, fewest)
    return [make_split(data, f"{unit}-cv", fold=k, num_folds=num_folds, validation=False) for k in range(num_folds)]


def _require_possible(data: LoadedCells, strategy: str) -> None:
    """Refuse a strategy that is unknown, or that these data do not allow."""
    place = f"--split {strategy}"
    if strategy not in STRATEGIES:
        raise ConfigError(f"{place}: unknown; choose one of {', '.join(STRATEGIES)}")
    title = data.info.title
    if data.split_column and data.own_splits and strategy != "given":
        raise ConfigError(
            f"{place}: the column {data.split_column!r} is the data set's own split; leave --split out, or leave the "
            "column out with --split_column none"
        )
    if strategy in ("subject", "subject-cv", "official") and not any(data.train["subject"]):
        others = "block or random" if data.info.block_size else "random"
        raise DataError(
            f"{place}: the subjects of {title} are not known; {_how_to_name_subjects(data.info.name)}use --split "
            f"{others} ({BY_IMAGE})"
        )
    if strategy == "given" and not data.own_splits:
        raise DataError(
            f"{place}: {title} has no splits of its own called train, validation and test; choose another --split"
        )
    if not len(data.train):
        raise DataError(f"{title}: holds no cell to train on, only the publisher's test; add its folds")


def _how_to_name_subjects(name: str) -> str:
    """Advice on the flag that names the subjects of a data set; "" where there is none."""
    if name == "imagefolder":
        return "give --subject_pattern, --subject_folders or --labels, or "
    if "/" in name:
        return "name their column with --subject_column, or "
    return ""


def _unit_kept_whole(data: LoadedCells, strategy: str) -> Group:
    """The unit that a strategy keeps on one side."""
    if strategy == "all":
        return data.info.group
    if strategy == "given" and (divided_subjects(data) or not all(data.train["subject"])):
        return "cell"
    return _GROUPS.get(strategy.removesuffix("-cv"), "subject")


def divided_subjects(data: LoadedCells) -> list[str]:
    """The subjects whose cells a data set's own splits divide between two sides, sorted; [] where it has no splits."""
    if not data.own_splits:
        return []
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for subject, side in zip(data.train["subject"][:], data.train["fold"][:], strict=True):
        if subject:
            sides[subject].add(side)
    return sorted(subject for subject, of_subject in sides.items() if len(of_subject) > 1)


class _Cells:
    """The rows of one data set and the ways to deal them out; all results are row indices."""

    def __init__(self, data: LoadedCells, group: Group, seed: int):
        self.data = data
        self.group = group
        self.seed = seed
        self.ids: list[str] = data.rows["cell_id"][:]
        self.folds: list[str] = data.rows["fold"][:]
        self.labels = np.asarray(data.rows["label"][:])
        group_of = groups_of(data, group)
        self.groups = [group_of[cell] for cell in self.ids]
        self.notes: list[str] = []
        # The publisher's own test set takes part only where it is named.
        self.everything = list(range(len(data.train)))

    def apart(self, rows: list[int], share: float, advice: str = "") -> tuple[list[int], list[int]]:
        """Set whole groups apart, about this share of each class; return the other rows, then these."""
        if self.group != "cell":
            return self._folds_apart([test for _, test in self._grouped_folds(rows, max(2, round(1 / share)), advice)])
        from sklearn.model_selection import train_test_split

        try:
            others, apart = train_test_split(rows, test_size=share, stratify=self.labels[rows], random_state=self.seed)
        except ValueError as error:
            raise DataError(f"split by image: too few cells of a class ({error}); gather more cells") from None
        return others, apart

    def _folds_apart(self, folds: list[list[int]]) -> tuple[list[int], list[int]]:
        """The rows of all but the first of grouped folds, then those of the first.

        Where a rule for subjects can be fitted, it gets as many folds as hold `SUBJECTS_FOR_RULE` of each class, if as
        many are left to train on.
        """
        apart = folds[:1]
        others = folds[1:]
        if self.group == "subject" and len(self.data.info.labels) == 2 and self.data.info.positive_label:
            while others and self._fewest_subjects(apart) < SUBJECTS_FOR_RULE:
                gains = [(self._fewest_subjects([*apart, fold]), -len(fold)) for fold in others]
                apart.append(others.pop(gains.index(max(gains))))
            if self._fewest_subjects(others) < SUBJECTS_FOR_RULE:
                apart = folds[:1]
                others = folds[1:]
        if len(apart) > 1:
            parts = f"{len(apart)} of {len(folds)} parts"
            self.notes.append(f"validation has {parts}, so that a rule for subjects can be fitted")
        return sorted(chain.from_iterable(others)), sorted(chain.from_iterable(apart))

    def rarest(self, rows: Iterable[int]) -> tuple[int, str]:
        """The fewest groups that a class has in these rows, and that class; of several, the first in the alphabet."""
        pairs = {(self.labels[row], self.groups[row]) for row in rows}
        counts = Counter(label for label, _ in pairs)
        return min((counts[number], label) for number, label in enumerate(self.data.info.labels))

    def _fewest_subjects(self, folds: list[list[int]]) -> int:
        return self.rarest(chain.from_iterable(folds))[0]

    def own_sides(self, *, validation: bool) -> tuple[list[int], list[int], list[int], str]:
        """The data set's own sides and what they are; a missing validation side is taken from train if wanted."""
        train, val, test = ([i for i, fold in enumerate(self.folds) if fold == side] for side in SPLIT_SIDES)
        detail = "the data set's own splits"
        if validation and not val:
            train, val = self.apart(train, TRAIN_VAL_SPLIT, "leave the validation side out with --no_validation")
            # With whole groups, the share differs from the one that was asked for.
            share = len(val) / (len(train) + len(val))
            detail += f", {share:.0%} of train set apart for validation by {self.group.replace('cell', 'image')}"
        divided = divided_subjects(self.data)
        if divided:
            self.notes.append(
                f"{len(divided)} subject(s) are on two sides of the data set's own splits, e.g. {divided[0]}; --split "
                "subject keeps each on one side"
            )
        return train, val, test, detail

    def fold(self, fold: int, num_folds: int) -> tuple[list[int], list[int]]:
        """The training and the test side of one fold."""
        if num_folds < 2:
            raise ConfigError(f"--num_folds {num_folds}: give 2 or more")
        if not 0 <= fold < num_folds:
            raise ConfigError(f"--fold {fold}: there are folds 0 to {num_folds - 1} with --num_folds {num_folds}")
        if self.group != "cell":
            return self._grouped_folds(self.everything, num_folds)[fold]
        from sklearn.model_selection import StratifiedKFold

        labels = self.labels[self.everything]
        fewest, label = self.rarest(self.everything)
        if fewest < num_folds:
            advice = "give at most as many folds, or " if fewest > 1 else ""
            raise DataError(
                f"--num_folds {num_folds}: class {label} has {fewest} cell(s); {advice}gather more cells of it"
            )
        folds = list(StratifiedKFold(num_folds, shuffle=True, random_state=self.seed).split(labels, labels))
        return folds[fold][0].tolist(), folds[fold][1].tolist()

    def _grouped_folds(self, rows: list[int], num_folds: int, advice: str = "") -> list[tuple[list[int], list[int]]]:
        """Deal whole groups out to folds, stratified by class and by size, as the seed decides.

        The groups of a class, largest first, are dealt in rounds of one per fold, in random order, so that every fold
        tests about as many groups and cells of a class as any other; of several deals the one is kept whose folds
        depend least on single groups. (scikit-learn's `StratifiedGroupKFold` places groups greedily by size: where
        sizes differ as subjects' do, its seed decides nothing.)
        """
        names, group_of = np.unique([self.groups[i] for i in rows], return_inverse=True)
        counts = np.zeros((len(names), len(self.data.info.labels)), dtype=int)
        np.add.at(counts, (group_of, self.labels[rows]), 1)
        fewest, label = self.rarest(rows)
        if fewest < num_folds:
            if not advice and fewest > 1:
                advice = f"use --split {self.group}-cv --num_folds {fewest} --no_validation"
            fix = f"gather cells of more {self.group}s"
            if advice:
                fix = f"{advice}, or {fix}"
            raise DataError(
                f"class {label} has {fewest} {self.group}(s), fewer than the {num_folds} folds needed; {fix}"
            )
        rng = np.random.default_rng(self.seed)
        deals = [_dealt(counts, num_folds, rng) for _ in range(_DEALS)]
        fold_of_group = min(deals, key=lambda deal: _unevenness(counts, deal, num_folds))
        fold_of = fold_of_group[group_of]
        # The first fold is the test side of a single split: there, too, no group shall decide alone where it need not.
        largest = [_largest_share(counts, fold_of_group == fold) for fold in range(num_folds)]
        first = next((fold for fold in range(num_folds) if largest[fold] <= LARGEST_SHARE), int(np.argmin(largest)))
        order = [first, *(fold for fold in range(num_folds) if fold != first)]
        all_rows = np.asarray(rows)
        return [(all_rows[fold_of != fold].tolist(), all_rows[fold_of == fold].tolist()) for fold in order]

    def in_folds(self, folds: Sequence[str]) -> list[int]:
        """The rows of the publisher's folds of these names; raises `ConfigError` for one that the data do not have."""
        missing = [fold for fold in folds if fold not in self.folds]
        if missing:
            choices = ", ".join(sorted(set(self.folds) - {""})) or "none"
            raise ConfigError(f"official fold {missing[0]!r}: not in the data, which has {choices}")
        return [i for i, fold in enumerate(self.folds) if fold in folds]

    def split(self, strategy: str, train: list[int], val: list[int], test: list[int], detail: str) -> Split:
        """Take from the training side every group that is also tested, then assert that the sides are disjoint."""
        tested = Counter(self.groups[i] for i in test)  # group → its test cells
        train_apart = [i for i in train if self.groups[i] not in tested]
        val_apart = [i for i in val if self.groups[i] not in tested]
        notes = []
        left_out = len(train) + len(val) - len(train_apart) - len(val_apart)
        if left_out:
            both = sorted({self.groups[i] for i in [*train, *val]} & tested.keys())
            notes.append(f"{left_out} training cells left out: {self.group} {', '.join(both)} is also tested")
        if train and not train_apart:
            raise DataError(
                f"{detail}: no training cell is left, because each one's {self.group} is tested; choose other folds"
            )
        for group, count in tested.most_common(1):
            if self.group != "cell" and count > LARGEST_SHARE * len(test):
                share = f"{count / len(test):.0%}"
                notes.append(f"{self.group} {group} has {share} of the test cells: read the figures by {self.group}")
        split = Split(
            strategy=strategy,
            group=self.group,
            seed=self.seed,
            data_fingerprint=self.data.fingerprint,
            train=tuple(self.ids[i] for i in train_apart),
            validation=tuple(self.ids[i] for i in val_apart),
            test=tuple(self.ids[i] for i in test),
            detail=detail,
            notes=(*notes, *self.notes),
        )
        assert_disjoint(split, dict(zip(self.ids, self.groups, strict=True)))
        return split


def _dealt(counts: np.ndarray, num_folds: int, rng: np.random.Generator) -> np.ndarray:
    """(G,) a fold for each group, dealt at random as `_grouped_folds` says; `counts` is (G, K) cells by class."""
    folds = np.zeros(len(counts), dtype=int)
    main_class = counts.argmax(axis=1)
    sizes = counts.sum(axis=1)
    for label in range(counts.shape[1]):
        folds_left: list[int] = []  # of this round
        groups = np.flatnonzero(main_class == label)
        # Groups of one size come in random order, too.
        for group in groups[np.lexsort((rng.random(len(groups)), -sizes[groups]))]:
            if not folds_left:
                folds_left = rng.permutation(num_folds).tolist()
            folds[group] = folds_left.pop()
    return folds


def _unevenness(counts: np.ndarray, folds: np.ndarray, num_folds: int) -> float:
    """How unequal folds are: first missing classes, then groups that dominate a fold, then cells of each class."""
    cells = np.asarray([counts[folds == fold].sum(axis=0) for fold in range(num_folds)])
    missing = int((cells == 0).sum())
    excess = sum(max(0.0, _largest_share(counts, folds == fold) - LARGEST_SHARE) for fold in range(num_folds))
    return 100 * missing + 10 * excess + float(np.abs(cells / cells.sum(axis=0) - 1 / num_folds).mean())


def _largest_share(counts: np.ndarray, chosen: np.ndarray) -> float:
    """The share of the cells of the chosen groups that the largest of these groups owns."""
    sizes = counts[chosen].sum(axis=1)
    return float(sizes.max(initial=0) / max(sizes.sum(), 1))


def assert_disjoint(split: Split, groups: dict[str, str]) -> None:
    """Raise `DataError` naming a group that stands on two sides of the split."""
    sides: dict[str, str] = {}
    for side in SPLIT_SIDES:
        for cell in getattr(split, side):
            if cell not in groups:
                raise DataError(f"split: cell {cell} is not in the data; draw a new split with --split")
            other = sides.setdefault(groups[cell], side)
            if other != side:
                raise DataError(
                    f"split: {split.group} {groups[cell]} is on both the {other} and the {side} side (cell {cell}); "
                    "figures from it would be inflated; draw a new split with --split"
                )


def groups_of(data: LoadedCells, group: str) -> dict[str, str]:
    """cell id → the group it belongs to ("subject", "block" or "cell").

    Raises:
        DataError: blocks of a data set whose entry states no `block_size`.
    """
    block_size = data.info.block_size
    if group == "block":
        if not block_size:
            raise DataError(
                f"--split block: how many neighbouring pictures of {data.info.title} come from one slide is not known; "
                f"use --split subject, or random ({BY_IMAGE})"
            )
        return _blocks(data.rows, block_size)
    column = "subject" if group == "subject" else "cell_id"
    return dict(zip(data.rows["cell_id"][:], data.rows[column][:], strict=True))


def _blocks(rows: Dataset, block_size: int) -> dict[str, str]:
    """Blocks of neighbouring numbers within a class, joined where two hold byte for byte the same file."""
    position: Counter[int] = Counter()
    block_of: dict[str, str] = {}
    cells = zip(rows["cell_id"][:], rows["label"][:], strict=True)
    for cell, label in sorted(cells, key=lambda pair: _by_number(pair[0])):
        block_of[cell] = f"{rows.features['label'].int2str(label)}-{position[label] // block_size:02d}"
        position[label] += 1
    blocks_with: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        blocks_with[sha256(encoded_content(row["image"])).hexdigest()].add(block_of[row["cell_id"]])
    joined = {block: group[0] for group in linked(blocks_with.values()) for block in group}
    return {cell: joined[block] for cell, block in block_of.items()}


def linked(sets: Iterable[Collection[str]]) -> list[list[str]]:
    """Join sets of names that share some into groups, each sorted, the largest first."""
    groups: list[set[str]] = []
    for names in sets:
        touched = [group for group in groups if not group.isdisjoint(names)]
        groups = [group for group in groups if group not in touched] + [set(names).union(*touched)]
    return sorted(map(sorted, groups), key=lambda group: (-len(group), group))


def _by_number(cell: str) -> list[tuple[int, str]]:
    """A key that sorts cell_2 before cell_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", cell)]
