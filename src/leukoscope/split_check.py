"""Check anybody's split: are people, or copies of one image, on both sides of it?

`read_split_lists` reads the names. `check_split` says which subjects and copies are on several sides, what is missing,
what a metric on such a test set is worth, and gives the words for a review. It opens no image; `leukoscope audit DIR
--split_file` also compares the pictures.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Any

from leukoscope import RESEARCH_NOTICE, DataError, __version__
from leukoscope.data.folder import subject_rule
from leukoscope.data.layouts import ImageFolder
from leukoscope.data.registry import DATASETS, DatasetInfo, dataset_info
from leukoscope.data.split_lists import NamedSplit, SplitLists, read_split_lists

MAX_EXAMPLES = 10
"""Names given of each finding in the report."""
MIN_TEST_SUBJECTS = 3
"""Of each class; a test set with fewer measures these people rather than the class."""
_TREE = Path("/split")  # where the names are pretended to lie, so that a data set's finder can read them

# How libraries and people name the copies that they make of an image: Keras (aug_0_123), Roboflow (_bmp.rf.<hash>),
# Augmentor (folder_original_NAME.bmp_<uuid>), file managers (" - Copy", " (1)").
_COPY_WORD = (
    r"(?:aug(?:mented|mentation)?|h?flip(?:ped)?|[hvlrud]{1,2}[_-]?flip|flip[_-]?[hvlrudxy]{1,2}|rot(?:at(?:ed?|ion))?|"
    r"mirror(?:ed)?|copy|dup(?:licate)?|crop(?:ped)?|noisy?|noise|blur(?:red)?|bright(?:ness|er)?|contrast|zoom(?:ed)?|"
    r"shift(?:ed)?|shear(?:ed)?|transposed?|smote|synthetic)"
)
_COPY_SUFFIX = re.compile(rf"(?:[ _.-]+{_COPY_WORD}[ _.-]*\d*(?:deg)?)+$|\s\(\d+\)$", re.IGNORECASE)
_COPY_PREFIX = re.compile(rf"^(?:{_COPY_WORD}\d*[ _.-]+(?:\d+[ _.-]+)*)+(?=\D)", re.IGNORECASE)
_ROBOFLOW = re.compile(r"_(?:bmp|jpe?g|png|tiff?)\.rf\.[0-9a-f]{8,}$", re.IGNORECASE)
_AUGMENTOR = re.compile(r"^.*_original_(?P<name>.+)\.(?:bmp|jpe?g|png|tiff?)_[0-9a-f-]{36}$", re.IGNORECASE)


@dataclass(frozen=True)
class ImageName:
    """The facts that the name of an image gives; "" for an unknown one.

    Attributes:
        original: name of the image that it is, or is a copy of; equal for all copies of one image.
        subject: as the data set counts it, its aliases joined.
        published_subject: as the name has it.
    """

    original: str
    is_copy: bool
    label: str = ""
    subject: str = ""
    published_subject: str = ""


@dataclass(frozen=True)
class Finding:
    """One fault of a split: what it is, how often, and in a sentence."""

    kind: str
    count: int
    examples: tuple[str, ...]
    sentence: str


def check_split(
    split_file: str | Path | SplitLists,
    dataset_name: str = "",
    *,
    files: Sequence[str] = (),
    subject_pattern: str | None = None,
) -> dict[str, Any]:
    """Check a published split by its image names.

    Args:
        split_file: table, lists, folder or row numbers, as `read_split_lists` reads them, or what it has read.
        dataset_name: an entry of `DATASETS`, whose names tell subject and class; "" takes the entry that knows most.
        files: the sorted names that row numbers count from.
        subject_pattern: a regular expression with the group `subject`, for names of no known data set.

    Returns:
        Ready for JSON: `data`, `sides` (of each split: images, subjects and classes), `findings` (each with `kind`,
        `count`, `examples`, `sentence`; [] for a clean split), `worth` (what a metric on it estimates) and `review`
        (one paragraph for a review).

    Raises:
        DataError: a file that is no split, an unknown data set, or names of which nothing is known.
    """
    lists = split_file if isinstance(split_file, SplitLists) else read_split_lists(split_file, files)
    if not any(lists.splits):
        raise DataError(f"--split_file {lists.source}: names no image; give a split that lists images")
    info = dataset_info(dataset_name) if dataset_name else _likely_dataset(lists.names, subject_pattern)
    images = _read_names(lists, info, subject_pattern)
    findings = [
        *_crossing_subjects(lists.splits, images),
        *_copies_across(lists.splits, images),
        *_more_than_published(info, images),
        *_incomplete_sides(lists.splits, images),
    ]
    has_subjects = any(image.subject for image in images.values())
    worth = _worth(findings, has_subjects)
    return {
        "notice": RESEARCH_NOTICE,
        "leukoscope": __version__,
        "split_file": lists.source,
        "data": {"name": info.name, "title": info.title} if info else None,
        "images": len(images),
        "without_subject": sum(not image.subject for image in images.values()),
        "sides": [_described(split, images) for split in lists.splits],
        "findings": [asdict(finding) for finding in findings],
        "worth": worth,
        "review": _review(lists, info, images, findings, worth),
    }


def with_pictures(report: Mapping[str, Any], audit: Mapping[str, Any], unmatched: Sequence[str]) -> dict[str, Any]:
    """A report of `check_split` with what comparing the pictures of the same cells added.

    Args:
        audit: from `audit_cells`, of the split's sides.
        unmatched: names of the split that are no cell of the data.
    """
    findings = list(report["findings"])
    across = [pair["cells"] for pair in audit["duplicates"]["pairs"] if pair["across"]["split_sides"]]
    if across:
        sentence = (
            f"{len(across):,} pairs of images on two sides show one picture, identical or nearly so, for example "
            f"{' and '.join(across[0])}."
        )
        examples = tuple(" = ".join(cells) for cells in across[:MAX_EXAMPLES])
        findings.append(asdict(Finding("pictures", len(across), examples, sentence)))
    pictures = {
        "compared": audit["data"]["cells"],
        "names_without_picture": len(unmatched),
        "examples_without_picture": list(unmatched[:MAX_EXAMPLES]),
        "pairs_across_sides": len(across),
    }
    review = report["review"]
    if across:
        review += f" Comparing the pictures, we also found that {sentence}"
    return {**report, "findings": findings, "pictures": pictures, "review": review}


# Names


def _likely_dataset(names: Sequence[str], subject_pattern: str | None) -> DatasetInfo | None:
    """The known data set whose finder recognises most of the names, at least half; None for none."""
    if subject_pattern:
        return None
    sample = names[:: max(1, len(names) // 200)]
    recognised = {}
    for info in DATASETS.values():
        if info.find_cells and info.name != "imagefolder":
            recognised[info.name] = sum(bool(cell_named(info, name)) for name in sample)
    best = max(recognised, key=lambda name: recognised[name])
    if recognised[best] >= len(sample) / 2:
        return DATASETS[best]
    return None


def _read_names(lists: SplitLists, info: DatasetInfo | None, subject_pattern: str | None) -> dict[str, ImageName]:
    """Each name of a split and what it tells; the table's own subjects and classes come first."""
    subject_of = None
    if subject_pattern:
        subject_of = subject_rule(subject_pattern)
    images = {}
    for name in lists.names:
        original, is_copy = original_of(name)
        label = lists.labels.get(name, "")
        subject = lists.subjects.get(name, "")
        if subject_of and not subject:
            subject = subject_of(name)
        cell = None
        if info:
            cell = cell_named(info, name)
        if cell:
            label = label or cell[0]
            subject = subject or cell[1]
        joined = subject
        if info:
            joined = info.canonical_subject(subject)
        images[name] = ImageName(original, is_copy, label, joined, subject)
    return images


@cache
def original_of(name: str) -> tuple[str, bool]:
    """The image that a file shows, without folders and suffix, and whether the file's name says that it is a copy.

    `HEM/UID_H10_1_1_hem_aug3.png` shows `UID_H10_1_1_hem` and is a copy of it.
    """
    stem = PurePosixPath(name.replace("\\", "/")).name
    suffix = PurePosixPath(stem).suffix
    if 1 < len(suffix) <= 5 and not suffix[1:].isdecimal():
        stem = stem.removesuffix(suffix)
    match = _AUGMENTOR.match(stem)
    if match:
        return match["name"], True
    original = _COPY_SUFFIX.sub("", _ROBOFLOW.sub("", stem))
    original = _COPY_PREFIX.sub("", original) or stem
    return original, original != stem


def cell_named(info: DatasetInfo, name: str) -> tuple[str, str] | None:
    """(class, subject) of an image name by a data set's finder; None where it does not know the name."""
    if info.find_cells is None:
        return None
    original, _ = original_of(name)
    suffix = PurePosixPath(name).suffix or ".png"
    relative = PurePosixPath(name.replace("\\", "/").lstrip("/")).with_name(original + suffix)
    for candidate in (original + suffix, str(relative)):
        folder = ImageFolder(_TREE, [_TREE / candidate], [])
        for cell in info.find_cells(folder):
            return cell.label, cell.subject
    return None


# Findings


def _crossing_subjects(splits: Sequence[NamedSplit], images: Mapping[str, ImageName]) -> Iterable[Finding]:
    """Subjects tested, or validated, whose other images are trained on."""
    for tested, trained, kind, purpose in (
        ("test", ("train", "validation"), "subjects", "tested"),
        ("validation", ("train",), "subjects_validation", "used for validation"),
    ):
        worst: Finding | None = None
        divided = 0
        for split in splits:
            finding = _shared_subjects(split, images, tested, trained, kind, purpose)
            if finding:
                divided += 1
                if worst is None or finding.count > worst.count:
                    worst = finding
        if worst:
            repeated = ""
            if len(splits) > 1:
                repeated = f" In {divided} of {len(splits)} splits; this is the worst."
            yield Finding(worst.kind, worst.count, worst.examples, worst.sentence + repeated)


def _shared_subjects(
    split: NamedSplit, images: Mapping[str, ImageName], tested: str, trained: Sequence[str], kind: str, purpose: str
) -> Finding | None:
    published: defaultdict[str, set[str]] = defaultdict(set)
    for side in trained:
        for name in split.sides.get(side, ()):
            published[images[name].subject].add(images[name].published_subject)
    of_subject: defaultdict[str, list[str]] = defaultdict(list)
    for name in split.sides.get(tested, ()):
        if images[name].subject:
            of_subject[images[name].subject].append(name)
    shared = sorted(subject for subject in of_subject if subject in published)
    if not shared:
        return None
    examples = []
    for subject in shared:
        tested_ids = {images[name].published_subject for name in of_subject[subject]}
        if tested_ids & published[subject]:
            examples.append(subject)
        else:  # only the data set's list of aliases shows it
            examples.append(f"{min(tested_ids)} (the same person as {min(published[subject])})")
    affected = sum(len(of_subject[subject]) for subject in shared)
    share = affected / len(split.sides[tested])
    also = "has" if len(shared) == 1 else "have"
    sentence = (
        f"{len(shared):,} of {len(of_subject):,} subjects {purpose} {also} other images in training, for example "
        f"{', '.join(examples[:3])}: {affected:,} of {len(split.sides[tested]):,} images ({share:.0%})."
    )
    return Finding(kind, len(shared), tuple(examples[:MAX_EXAMPLES]), sentence)


def _copies_across(splits: Sequence[NamedSplit], images: Mapping[str, ImageName]) -> Iterable[Finding]:
    """Tested images of which a copy, by its name, is trained on."""
    worst: list[tuple[str, str]] = []
    tested = 0
    for split in splits:
        trained: defaultdict[str, list[str]] = defaultdict(list)
        for side in ("train", "validation"):
            for name in split.sides.get(side, ()):
                trained[images[name].original].append(name)
        pairs = []
        for name in split.sides.get("test", ()):
            twins = [twin for twin in trained[images[name].original] if _is_copy_pair(name, twin, images)]
            if twins:
                pairs.append((name, twins[0]))
        if len(pairs) > len(worst):
            worst = pairs
            tested = len(split.sides["test"])
    if worst:
        name, twin = worst[0]
        same = "the same name" if name == twin else twin
        sentence = (
            f"{len(worst):,} of {tested:,} tested images ({len(worst) / tested:.0%}) are, by their names, copies of "
            f"training images, for example {name} and {same}."
        )
        yield Finding("copies", len(worst), tuple(name for name, _ in worst[:MAX_EXAMPLES]), sentence)


def _is_copy_pair(name: str, twin: str, images: Mapping[str, ImageName]) -> bool:
    """Whether two names that show one original are the same, or one is a copy; not where their classes differ."""
    if name == twin:
        return images[name].subject != name  # a list of subjects names no image
    labels = {images[name].label, images[twin].label} - {""}
    return len(labels) < 2 and (images[name].is_copy or images[twin].is_copy)


def _more_than_published(info: DatasetInfo | None, images: Mapping[str, ImageName]) -> Iterable[Finding]:
    """Classes of which the split names more images than the data set has: copies must be among them."""
    if info is None or not info.official_counts:
        return
    published = Counter[str]()
    for counts in info.official_counts.values():
        published.update(counts)
    named = Counter(image.label for image in images.values() if image.label)
    for label, count in sorted(named.items()):
        if label in published and count > published[label]:
            sentence = (
                f"{count:,} images of {label} are named, but {info.title} has {published[label]:,}: at least "
                f"{count - published[label]:,} are copies."
            )
            yield Finding("more_than_published", count - published[label], (label,), sentence)


def _incomplete_sides(splits: Sequence[NamedSplit], images: Mapping[str, ImageName]) -> Iterable[Finding]:
    """A side, a class of a side, or the subjects of a tested class that are missing."""
    for split in splits:
        where = ""
        if split.name:
            where = f"{split.name}: "
        for side in ("train", "test"):
            if side not in split.sides:
                yield Finding("side_missing", 1, (side,), f"{where}no image is on the {side} side.")
        labels = {}
        for side, names in split.sides.items():
            labels[side] = {images[name].label for name in names} - {""}
        for side, present in labels.items():
            for label in sorted(set().union(*labels.values()) - present):
                yield Finding("class_missing", 1, (label,), f"{where}the {side} side has no image of {label}.")
    yield from _few_test_subjects(splits, images)


def _few_test_subjects(splits: Sequence[NamedSplit], images: Mapping[str, ImageName]) -> Iterable[Finding]:
    """Classes tested on few subjects; the folds of a cross-validation are counted together, as they are measured."""
    subjects_of: defaultdict[str, set[str]] = defaultdict(set)
    for split in splits:
        for name in split.sides.get("test", ()):
            if images[name].label and images[name].subject:
                subjects_of[images[name].label].add(images[name].subject)
    for label, subjects in sorted(subjects_of.items()):
        if len(subjects) < MIN_TEST_SUBJECTS:
            sentence = (
                f"the test side has {len(subjects)} subject(s) of {label}, {', '.join(sorted(subjects))}: metrics of "
                "this class measure these people."
            )
            yield Finding("few_test_subjects", len(subjects), tuple(sorted(subjects)), sentence)


# What it is worth


def leak_measurements() -> dict[str, Any]:
    """By how much splits by image overstated networks in Leukoscope's own measurements, rendered from results/."""
    return json.loads((package_files("leukoscope") / "leak_measurements.json").read_text(encoding="utf-8"))


def _worth(findings: Sequence[Finding], has_subjects: bool) -> str:
    kinds = {finding.kind for finding in findings}
    if "side_missing" in kinds:
        return "Without images to train on and images to test on, nothing can be said of how it does on new subjects."
    if not kinds & {"subjects", "copies"}:
        if not has_subjects:
            return "The names do not give subjects, so it is unknown how it does on new subjects."
        return "By its names, the split tests on subjects that no training image shows."
    leak = leak_measurements()
    by_image = leak["by_image_minus_by_subject"]
    same_images = leak["same_test_cells"]
    return (
        "A metric on this test set does not estimate how the model does on new subjects. In Leukoscope's own "
        f"measurements on other networks, a split by image overstated {by_image['overstated']} of "
        f"{by_image['networks']} networks, by {by_image['smallest']:.3f} to {by_image['largest']:.3f} of balanced "
        f"accuracy by subject; with the same recipe and the same test images by {same_images['mean']:.3f} "
        f"({same_images['smallest']:.3f} to {same_images['largest']:.3f}). The effect on this model was not measured."
    )


def _review(
    lists: SplitLists,
    info: DatasetInfo | None,
    images: Mapping[str, ImageName],
    findings: Sequence[Finding],
    worth: str,
) -> str:
    """One paragraph for a review; sober, and only of what the names show."""
    title = info.title if info else "the images"
    splits = "split" if len(lists.splits) == 1 else f"{len(lists.splits)} splits"
    known_by = "file names"
    if lists.subjects:
        known_by = "file names and the subjects that it names"
    opening = (
        f"We checked the {splits} of {title} in {PurePosixPath(lists.source).name} ({len(images):,} images) by "
        f"{known_by}, with Leukoscope {__version__}."
    )
    if not findings:
        return f"{opening} We found no subject and no copy of an image on two sides. {worth}"
    advice = (
        "Please report the results with all images of a subject, and all copies of an image, on one side, and state "
        "the number of subjects on each."
    )
    return " ".join([opening, *(_sentence_case(finding.sentence) for finding in findings[:5]), worth, advice])


def _sentence_case(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _described(split: NamedSplit, images: Mapping[str, ImageName]) -> dict[str, Any]:
    """Images, subjects and classes on each side of one split."""
    sides = {}
    for side, names in split.sides.items():
        subjects = {images[name].subject for name in names} - {""}
        labels = Counter(images[name].label for name in names if images[name].label)
        sides[side] = {"images": len(names), "subjects": len(subjects), "classes": dict(sorted(labels.items()))}
    return {"name": split.name, **sides}
