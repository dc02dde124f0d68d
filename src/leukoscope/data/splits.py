"""Splits: which cells are trained on and which are tested on.

A split is a list of cell ids, kept as `split.json` with the fingerprint of the data it was made from, so that any
run can use exactly the same cells again. The unit that must not stand on two sides (the subject, or the block of
neighbouring images where subjects are unknown) is asserted before training starts.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.data.images import encoded_content
from leukoscope.files import write_atomic

if TYPE_CHECKING:
    from datasets import Dataset

    from leukoscope.data.loading import LoadedCells

Strategy = Literal["subject", "subject-cv", "official", "random", "random-cv", "block", "block-cv", "all", "given"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
# Neighbouring file numbers of ball4 come from one slide: 3,256 images of 89 patients make about 37 an id.
BALL4_BLOCK = 37
# A test side of which one group owns more speaks of that group.
LARGEST_SHARE = 0.4
# Deals that a split is chosen from: enough to avoid such sides where the data allow it, few enough for seeds to differ.
_DEALS = 20
TRAIN_VAL_SPLIT = 0.15
"""Share of train that is set apart for validation where a data set's own splits have none."""
BY_IMAGE = "a split by image may have cells of one subject on two sides: its metrics do not apply to a new subject"
"""What is said of every split by image."""
SIDES = ("train", "validation", "test")
"""The sides that a data set's own splits may have, in this order; a row's `fold` then names its side."""
# One seventh for validation and one for test is the closest whole-fold share to the usual 70/15/15.
SUBJECT_FOLDS = 7


@dataclass(frozen=True)
class Split:
    """Which cells train, which choose the checkpoint, and which are only ever tested on.

    Attributes:
        group: what is disjoint between the sides: "subject", "block", or "cell" when only images are.
        train, validation, test: cell ids. `validation` may be empty: then the last epoch is kept.
        notes: what was left out to keep the sides disjoint, one line each.
    """

    strategy: str
    group: str
    seed: int
    data_fingerprint: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    detail: str = ""
    notes: tuple[str, ...] = ()

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
        """What a report names of it, ready for JSON."""
        named = {key: getattr(self, key) for key in ("strategy", "detail", "seed", "fingerprint", "test_fingerprint")}
        return {**named, "disjoint_by": self.group}

    def at_most(self, train: int | None, evaluation: int | None) -> Split:
        """The split with at most so many training cells, and validation and test cells each, sampled by its seed."""

        def draw(cells: tuple[str, ...], limit: int | None) -> tuple[str, ...]:
            if limit is None or limit >= len(cells):
                return cells
            kept = np.random.default_rng(self.seed).choice(len(cells), size=limit, replace=False)
            return tuple(cells[i] for i in sorted(kept))

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
    """Read a `split.json` and refuse it when it was made from other data.

    Args:
        disjoint: refuse one that has a subject (or block) on two sides, too.

    Raises:
        LeukoscopeError: no such file, not a split, or a fingerprint that is not this data's.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        sides: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        split = Split(**sides)
        texts = (split.data_fingerprint, *split.train, *split.validation, *split.test)
        if wrong := [value for value in texts if not isinstance(value, str)]:
            raise TypeError(f"{wrong[0]!r} is no text")
    except OSError as error:
        raise LeukoscopeError(f"--split_file {path}: cannot be read ({error.strerror}); give a split.json") from None
    except (json.JSONDecodeError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise LeukoscopeError(f"--split_file {path}: not a split.json written by Leukoscope ({error})") from None
    if split.group not in ("subject", "block", "cell"):
        raise LeukoscopeError(f"--split_file {path}: group {split.group!r} is unknown; draw a new split with --split")
    if split.data_fingerprint != data.fingerprint:
        raise LeukoscopeError(
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
    train_val_split: float = TRAIN_VAL_SPLIT,
) -> Split:
    """Draw a split and assert that its sides are disjoint.

    Args:
        strategy: `subject` (about 70/15/15, no subject on two sides), `subject-cv` (class-stratified k-fold by
            subject; `fold` is tested), `official` (the publisher's named folds), `random` (70/15/15 by image,
            stratified: the prior systems' protocol), `random-cv` (class-stratified k-fold by image), `block` (like
            `subject`, by blocks of neighbouring images), `block-cv` (like `subject-cv`, by blocks), `all` (train on
            everything, test on nothing: for a final release), `given` (the data set's own splits, cell for cell);
            None takes `given` where the data set has splits of its own, else `subject`.
        validation: set part of the training side apart to choose the checkpoint.
        train_val_split: `given` without a validation split: about which share of train that part is,
            0–1; of whole subjects at most a half.

    Raises:
        LeukoscopeError: unknown strategy, too few groups, missing folds, or data without the required group.
    """
    strategy = strategy or ("given" if data.own_splits else "subject")
    if strategy not in STRATEGIES:
        raise LeukoscopeError(f"--split {strategy}: unknown; choose one of {', '.join(STRATEGIES)}")
    if strategy in ("subject", "subject-cv", "official") and not any(data.train["subject"]):
        named = {"imagefolder": "give --subject_pattern or --subject_csv, or "}
        by_column = "name their column with --subject_column, or " if "/" in data.info.name else ""
        raise LeukoscopeError(
            f"--split {strategy}: the subjects of {data.info.title} are not known; "
            f"{named.get(data.info.name, by_column)}use --split {'block or ' * (data.info.group == 'block')}random "
            f"({BY_IMAGE})"
        )
    group = {"random": "cell", "random-cv": "cell", "block": "block", "block-cv": "block", "all": data.info.group}.get(
        strategy, "subject"
    )
    on_two_sides: list[str] = []
    if strategy == "given":
        if not data.own_splits:
            raise LeukoscopeError(
                f"--split given: {data.info.title} has no splits of its own; choose another --split, or name its "
                "splits with --train_split, --validation_split and --test_split"
            )
        group, on_two_sides = _group_of_own_splits(data)
    if not len(data.train):
        raise LeukoscopeError(f"{data.info.title}: holds no cell to train on, only the publisher's test; add its folds")
    drawing = _Drawing(data, group, seed)
    if strategy == "random":
        train, rest = drawing.by_image(drawing.everything, 0.30)
        val, test = drawing.by_image(rest, 0.5)
        detail = "70/15/15 by image"
    elif strategy == "random-cv":
        train, test = drawing.fold_by_image(fold, num_folds)
        train, val = drawing.by_image(train, 1 / (SUBJECT_FOLDS - 1)) if validation else (train, [])
        detail = f"fold {fold} of {num_folds} by image"
    elif strategy == "all":
        train, val, test, detail = drawing.everything, [], [], "every cell trains"
    elif strategy == "official":
        train, test = drawing.named(train_folds), drawing.named(test_folds)
        train, val = drawing.set_validation_apart(train) if validation else (train, [])
        detail = f"{'+'.join(train_folds)} → {'+'.join(test_folds)}"
    elif strategy == "given":
        train, val, test = ([i for i, fold in enumerate(drawing.folds) if fold == side] for side in SIDES)
        detail = "the data set's own splits"
        if not val and validation and train_val_split:
            train, val = drawing.validation_share(train, train_val_split)
            # Of whole groups it is another share than was asked for.
            share = len(val) / (len(train) + len(val))
            detail += f", {share:.0%} of train set apart for validation by {group.replace('cell', 'image')}"
    elif strategy in ("subject-cv", "block-cv"):
        train, test = drawing.fold(fold, num_folds)
        train, val = drawing.set_validation_apart(train) if validation else (train, [])
        detail = f"fold {fold} of {num_folds}"
    else:
        train, test = drawing.fold(0, SUBJECT_FOLDS)
        train, val = drawing.set_validation_apart(train)
        detail = f"about 70/15/15 by {group}"
    split = drawing.finish(strategy, train, val, test, detail)
    if on_two_sides:
        note = f"{len(on_two_sides)} subject(s) stand on two sides of the data set's own splits, e.g. {on_two_sides[0]}"
        split = replace(split, notes=(*split.notes, f"{note}; --split subject keeps each on one side"))
    return split


def own_split(data: LoadedCells) -> Split | None:
    """The splits that a data set has itself, without a validation side drawn for it; None where it has none."""
    return make_split(data, "given", validation=False) if data.own_splits else None


def _group_of_own_splits(data: LoadedCells) -> tuple[str, list[str]]:
    """What a data set's own splits keep on one side, "subject" or "cell", and the subjects on two sides."""
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for subject, side in zip(data.train["subject"][:], data.train["fold"][:], strict=True):
        sides[subject].add(side)
    both = sorted(subject for subject, on in sides.items() if subject and len(on) > 1)
    return "cell" if both or "" in sides else "subject", both


class _Drawing:
    """The rows of one data set and the ways to deal them out; all results are row indices."""

    def __init__(self, data: LoadedCells, group: str, seed: int):
        from datasets import concatenate_datasets

        self.data, self.group, self.seed = data, group, seed
        rows = concatenate_datasets(list(data.cells.values()))
        self.ids: list[str] = rows["cell_id"][:]
        self.folds: list[str] = rows["fold"][:]
        self.labels = np.asarray(rows["label"][:])
        self.groups = groups_of(data, group)
        # The publisher's own test set takes part only where it is named.
        self.everything = list(range(len(data.train)))

    def by_image(self, rows: list[int], share: float) -> tuple[list[int], list[int]]:
        """The rows without a random share of each class, and that share."""
        from sklearn.model_selection import train_test_split

        try:
            kept, apart = train_test_split(rows, test_size=share, stratify=self.labels[rows], random_state=self.seed)
        except ValueError as error:
            raise LeukoscopeError(f"split by image: too few cells of a class ({error}); gather more cells") from None
        return kept, apart

    def fold_by_image(self, fold: int, num_folds: int) -> tuple[list[int], list[int]]:
        from sklearn.model_selection import StratifiedKFold

        _check_fold(fold, num_folds)
        least = int(np.bincount(self.labels[self.everything]).min())
        if least < num_folds:
            raise LeukoscopeError(
                f"--num_folds {num_folds}: a class has {least} cells; give at most as many folds, or gather more cells"
            )
        folds = StratifiedKFold(num_folds, shuffle=True, random_state=self.seed)
        train, test = list(folds.split(self.everything, self.labels[self.everything]))[fold]
        return train.tolist(), test.tolist()

    def fold(self, fold: int, num_folds: int) -> tuple[list[int], list[int]]:
        _check_fold(fold, num_folds)
        advice = f"use --split {self.group}-cv with a smaller --num_folds, or gather more {self.group}s"
        return self._grouped_folds(self.everything, num_folds, advice)[fold]

    def set_validation_apart(self, train: list[int]) -> tuple[list[int], list[int]]:
        without = "subject-cv or official" if self.group == "subject" else "block-cv"
        advice = f"use --split {without} with --no_validation, or gather more {self.group}s"
        return self._grouped_folds(train, SUBJECT_FOLDS - 1, advice)[0]

    def validation_share(self, train: list[int], share: float) -> tuple[list[int], list[int]]:
        """The rows without about that share of them, by whole groups, and that share."""
        if self.group == "cell":
            return self.by_image(train, share)
        advice = f"give another --train_val_split (0 for no validation), or gather more {self.group}s"
        return self._grouped_folds(train, max(2, round(1 / share)), advice)[0]

    def _grouped_folds(self, rows: list[int], num_folds: int, advice: str) -> list[tuple[list[int], list[int]]]:
        """Deal whole groups out to folds, stratified by class and by size, as the seed decides.

        The groups of a class, largest first, are dealt in rounds of one per fold, in random order: so every fold tests
        as many groups of a class as any other, to one, and about as many cells, while seeds differ. (scikit-learn's
        `StratifiedGroupKFold` places groups greedily by size: where sizes differ as patients' do, its seed decides
        nothing.) Of several such deals the one is kept whose folds depend least on single groups.
        """
        labels = self.labels[rows]
        names, group_of = np.unique([self.groups[self.ids[i]] for i in rows], return_inverse=True)
        counts = np.zeros((len(names), len(self.data.info.labels)), dtype=int)
        np.add.at(counts, (group_of, labels), 1)
        for index, label in enumerate(self.data.info.labels):
            if (available := int((counts[:, index] > 0).sum())) < num_folds:
                raise LeukoscopeError(
                    f"class {label} has {available} {self.group}(s), fewer than the {num_folds} folds needed; {advice}"
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

    def named(self, folds: Sequence[str]) -> list[int]:
        known = sorted({fold for fold in self.folds if fold})
        for fold in folds:
            if fold not in known:
                raise LeukoscopeError(
                    f"official fold {fold!r}: not in the data, which has {', '.join(known) or 'none'}"
                )
        return [i for i, fold in enumerate(self.folds) if fold in folds]

    def finish(self, strategy: str, train: list[int], val: list[int], test: list[int], detail: str) -> Split:
        """Take from the training side every group that is also tested, then assert that the sides are disjoint."""
        tested = {self.groups[self.ids[i]] for i in test}
        kept = [i for i in train if self.groups[self.ids[i]] not in tested]
        kept_val = [i for i in val if self.groups[self.ids[i]] not in tested]
        notes = []
        if left_out := len(train) + len(val) - len(kept) - len(kept_val):
            both = sorted({self.groups[self.ids[i]] for i in [*train, *val]} & tested)
            notes.append(f"{left_out} training cells left out: {self.group} {', '.join(both)} is also tested")
        if train and not kept:
            raise LeukoscopeError(
                f"{detail}: no training cell is left, because each one's {self.group} is tested; choose other folds"
            )
        [(group, cells)] = Counter(self.groups[self.ids[i]] for i in test).most_common(1) or [("", 0)]
        if self.group != "cell" and cells > LARGEST_SHARE * len(test):
            share = f"{cells / len(test):.0%}"
            notes.append(f"{self.group} {group} owns {share} of the test cells: read the figures by {self.group}")
        split = Split(
            strategy,
            self.group,
            self.seed,
            self.data.fingerprint,
            train=tuple(self.ids[i] for i in kept),
            validation=tuple(self.ids[i] for i in kept_val),
            test=tuple(self.ids[i] for i in test),
            detail=detail,
            notes=tuple(notes),
        )
        assert_disjoint(split, self.groups)
        return split


def _check_fold(fold: int, num_folds: int) -> None:
    if num_folds < 2:
        raise LeukoscopeError(f"--num_folds {num_folds}: give 2 or more")
    if not 0 <= fold < num_folds:
        raise LeukoscopeError(f"--fold {fold}: there are folds 0 to {num_folds - 1} with --num_folds {num_folds}")


def _dealt(counts: np.ndarray, num_folds: int, rng: np.random.Generator) -> np.ndarray:
    """(G,) a fold for each group, dealt at random as `_grouped_folds` says; `counts` is (G, K) cells by class."""
    folds = np.zeros(len(counts), dtype=int)
    main_class, sizes = counts.argmax(axis=1), counts.sum(axis=1)
    for label in range(counts.shape[1]):
        round_: list[int] = []
        groups = np.flatnonzero(main_class == label)
        # Groups of one size come in random order, too.
        for group in groups[np.lexsort((rng.random(len(groups)), -sizes[groups]))]:
            round_ = round_ or rng.permutation(num_folds).tolist()
            folds[group] = round_.pop()
    return folds


def _unevenness(counts: np.ndarray, folds: np.ndarray, num_folds: int) -> float:
    """How far folds are from equal in cells of each class, and first of all from depending on no single group."""
    cells = np.asarray([counts[folds == fold].sum(axis=0) for fold in range(num_folds)])
    missing = int((cells == 0).sum())
    excess = sum(max(0.0, _largest_share(counts, folds == fold) - LARGEST_SHARE) for fold in range(num_folds))
    return 100 * missing + 10 * excess + float(np.abs(cells / cells.sum(axis=0) - 1 / num_folds).mean())


def _largest_share(counts: np.ndarray, chosen: np.ndarray) -> float:
    """The share of the cells of the chosen groups that the largest of these groups owns."""
    sizes = counts[chosen].sum(axis=1)
    return float(sizes.max(initial=0) / max(sizes.sum(), 1))


def assert_disjoint(split: Split, groups: dict[str, str]) -> None:
    """Raise `LeukoscopeError` naming a group that stands on two sides of the split."""
    sides: dict[str, str] = {}
    for side in ("train", "validation", "test"):
        for cell in getattr(split, side):
            if cell not in groups:
                raise LeukoscopeError(f"split: cell {cell} is not in the data; draw a new split with --split")
            other = sides.setdefault(groups[cell], side)
            if other != side:
                raise LeukoscopeError(
                    f"split: {split.group} {groups[cell]} is on both the {other} and the {side} side (cell {cell}); "
                    "figures from it would be inflated; draw a new split with --split"
                )


def groups_of(data: LoadedCells, group: str) -> dict[str, str]:
    """cell id → the group it belongs to ("subject", "block" or "cell")."""
    groups: dict[str, str] = {}
    for rows in data.cells.values():
        ids = rows["cell_id"][:]
        if group == "subject":
            groups.update(zip(ids, rows["subject"][:], strict=True))
        elif group == "block":
            groups.update(_blocks(rows))
        else:
            groups.update(zip(ids, ids, strict=True))
    return groups


def _blocks(rows: Dataset) -> dict[str, str]:
    """Blocks of neighbouring numbers within a class, joined where two hold the same file (union-find)."""
    ids, labels = rows["cell_id"][:], rows["label"][:]
    position: Counter[int] = Counter()
    block_of: dict[str, str] = {}
    for cell, label in sorted(zip(ids, labels, strict=True), key=lambda pair: _by_number(pair[0])):
        block_of[cell] = f"{rows.features['label'].int2str(label)}-{position[label] // BALL4_BLOCK:02d}"
        position[label] += 1
    parent = {block: block for block in block_of.values()}

    def root(block: str) -> str:
        while parent[block] != block:
            block = parent[block]
        return block

    for twins in identical_files(rows):
        first = root(block_of[twins[0]])
        for twin in twins[1:]:
            parent[root(block_of[twin])] = first
    return {cell: root(block) for cell, block in block_of.items()}


def _by_number(cell: str) -> list[tuple[int, str]]:
    """A key that sorts cell_2 before cell_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", cell)]


def identical_files(rows: Dataset) -> list[list[str]]:
    """Groups of cell ids whose image files are byte for byte the same."""
    from datasets import Image

    by_content: defaultdict[str, list[str]] = defaultdict(list)
    encoded = rows.select_columns(["image", "cell_id"]).cast_column("image", Image(decode=False))
    for row in encoded:
        by_content[sha256(encoded_content(row["image"])).hexdigest()].append(row["cell_id"])
    return [cells for cells in by_content.values() if len(cells) > 1]
