"""Many pictures at once: files, or one zip, checked for size before a picture is read and never unpacked to disk.

Labels and subjects come from a CSV, labels also from the folders of a zip, subjects also from the names.
"""

from __future__ import annotations

import posixpath
import re
import stat
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath

from leukoscope import LeukoscopeError
from leukoscope.data.cell_tables import HEADER, FileIndex, parse_csv
from leukoscope.data.images import IMAGE_SUFFIXES
from leukoscope.data.layouts import begins_as_image, is_junk, left_out
from leukoscope.web.upload import MAX_BYTES, file_name

MAX_FILES, MAX_UNPACKED, MAX_ZIP = 2000, 200 * 2**20, 64 * 2**20
MAX_TABLES, MAX_TABLE, MAX_ROWS = 4, 2**20, 20_000
LONGEST_NAME = 255
MOST_LABELS, MOST_UNKNOWN, LONGEST_LABEL = 20, 20, 60
LONGEST_PATTERN, PATTERN_SECONDS = 200, 0.5
# What reading an entry of a damaged zip raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class BatchFile:
    """One file of a batch, not yet read.

    `name` is as given, within a zip with its folders, after the zip's own name where two zips hold the same names.
    """

    name: str
    read: Callable[[], bytes]


@dataclass
class Batch:
    """The files given together.

    Attributes:
        labels, subjects: file name → its entry in a CSV.
        label_tables: label → the CSV that gives it first.
        problems: one sentence for each file that cannot be used.
        archive: name of the one zip that all pictures come from, without its suffix; "" where there is none.
    """

    files: list[BatchFile] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    label_tables: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    archive: str = ""

    def label_of(self, name: str, classes: Sequence[str]) -> str:
        """A file's true class: by the CSV, else by the innermost folder that names one; "" where neither does."""
        known = {one.casefold(): one for one in classes}
        by_table = self.labels.get(name)
        named = [by_table] if by_table else reversed(PurePosixPath(name).parts[:-1])
        return next((known[one.casefold()] for one in named if one.casefold() in known), "")

    def unknown_labels(self, classes: Sequence[str]) -> list[str]:
        """One sentence for each label of a CSV that is none of the classes, at most 20 and how many more there are."""
        known = {one.casefold() for one in classes}
        unknown = [(label, table) for label, table in self.label_tables.items() if label.casefold() not in known]
        lines = [
            f"{table}: label {label[:LONGEST_LABEL]!r} is none of {', '.join(classes)}"
            for label, table in unknown[:MOST_LABELS]
        ]
        more = len(unknown) - MOST_LABELS
        return [*lines, f"{more} more labels are none of {', '.join(classes)}"] if more > 0 else lines


def is_batch(paths: Sequence[str]) -> bool:
    """Whether an upload is more than one picture: several files, a zip or a table."""
    return len(paths) > 1 or zipfile.is_zipfile(paths[0]) or paths[0].casefold().endswith(".csv")


def open_batch(paths: Sequence[str]) -> Batch:
    """List what was uploaded; no picture is read here, each is read when it is needed: the files must stay until then.

    Raises:
        LeukoscopeError: too many files or bytes, a zip with path tricks, or a CSV that cannot be read.
    """
    for path in paths:
        if not Path(path).is_file():
            raise LeukoscopeError(f"{file_name(path)}: is no longer here; send it again")
    if (size := sum(Path(path).stat().st_size for path in paths)) > MAX_UNPACKED:
        raise LeukoscopeError(
            f"{len(paths)} files of {size // 2**20} MB were given; at most {MAX_UNPACKED // 2**20} MB fit in one "
            "batch: split it"
        )
    given: list[tuple[str, list[BatchFile]]] = []  # a zip's own name, "" for a loose file, and what is in it
    others: list[str] = []  # one sentence for each zip that holds files of other kinds
    # A zip stays open until the next is read: its directory is parsed once, not again for each picture.
    opened = lru_cache(maxsize=1)(zipfile.ZipFile)
    for path in paths:
        name = file_name(path)
        if zipfile.is_zipfile(path):
            entries = _entries(path, name, opened)
            kinds = Counter(kind for file, kind in entries if kind)
            others += [f"{name}: {left_out(kinds)}"] if kinds else []
            given.append((PurePosixPath(name).stem, [file for file, kind in entries if not kind]))
        elif Path(path).stat().st_size > MAX_BYTES:
            raise LeukoscopeError(f"{name}: is over {MAX_BYTES // 2**20} MB; give pictures of single cells, or a zip")
        else:
            given.append(("", [BatchFile(name, Path(path).read_bytes)]))
    files = _apart(given)
    tables = [file for file in files if _is_table(file)]
    batch = Batch([file for file in files if not _is_table(file)], problems=others)
    if len(batch.files) > MAX_FILES:
        raise LeukoscopeError(f"{len(batch.files)} files were given; at most {MAX_FILES} fit in one batch: split it")
    if len(tables) > MAX_TABLES:
        raise LeukoscopeError(f"{len(tables)} CSVs were given; at most {MAX_TABLES} belong to one batch: join them")
    # The first file of each name stays: rows are told apart by it.
    first: dict[str, BatchFile] = {}
    for file in batch.files:
        if file.name in first:
            batch.problems.append(f"{file.name}: is the name of two files; only the first is used: rename the other")
        first.setdefault(file.name, file)
    batch.files = list(first.values())
    if len(paths) == 1:
        batch.archive = given[0][0]
    _read_tables(tables, batch)
    return batch


def _is_table(file: BatchFile) -> bool:
    return file.name.casefold().endswith(".csv")


def _apart(given: Sequence[tuple[str, Sequence[BatchFile]]]) -> list[BatchFile]:
    """All files; where two zips hold a picture of one name, as of one subject each, names begin with their zip's."""
    held = Counter(name for stem, files in given if stem for name in {one.name for one in files if not _is_table(one)})
    apart = max(held.values(), default=0) > 1
    return [
        replace(file, name=f"{stem}/{file.name}") if apart and stem else file for stem, files in given for file in files
    ]


def _entries(path: str, name: str, opened: Callable[[str], zipfile.ZipFile]) -> list[tuple[BatchFile, str]]:
    """The files of a zip, each with "", or with the kind of one that is neither a picture nor a table."""
    if Path(path).stat().st_size > MAX_ZIP:
        raise LeukoscopeError(f"{name}: is over {MAX_ZIP // 2**20} MB; split it")
    try:
        entries = [entry for entry in opened(path).infolist() if not entry.is_dir() and not _is_added(entry.filename)]
    except (zipfile.BadZipFile, OSError, ValueError):
        raise LeukoscopeError(f"{name}: the zip is damaged; pack it again") from None
    _require_safe(entries, name)
    files = [BatchFile(entry.filename, partial(_unpacked, path, entry, opened)) for entry in entries]
    return [(file, _other_kind(opened(path), entry)) for file, entry in zip(files, entries, strict=True)]


def _other_kind(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    """The suffix of an entry that is neither a picture, by its name or its first bytes, nor a table; else ""."""
    kind = PurePosixPath(entry.filename).suffix.lower()
    if kind in (*IMAGE_SUFFIXES, ".csv"):
        return ""
    try:
        with archive.open(entry) as file:
            is_image = begins_as_image(file.read(16))
    except _DAMAGED:
        is_image = False
    return "" if is_image else kind or "no suffix"


def _is_added(name: str) -> bool:
    """Whether a file manager, not the visitor, put an entry into a zip."""
    return any(is_junk(part) for part in PurePosixPath(name).parts if not part.startswith(".."))


def _require_safe(entries: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse zip bombs and path tricks by the zip's directory; no more than its sizes is ever unpacked."""
    if len(entries) > MAX_FILES + 1:
        raise LeukoscopeError(f"{name}: holds {len(entries)} files; at most {MAX_FILES} fit in one batch: split it")
    if (size := sum(entry.file_size for entry in entries)) > MAX_UNPACKED:
        raise LeukoscopeError(
            f"{name}: would unpack to {size // 2**20} MB, more than {MAX_UNPACKED // 2**20} MB; split it"
        )
    for entry in entries:
        if len(entry.filename) > LONGEST_NAME:
            raise LeukoscopeError(
                f"{name}: holds {entry.filename[:LONGEST_LABEL]}…, a name of {len(entry.filename)} letters; at most "
                f"{LONGEST_NAME} are read: rename it"
            )
        parts = PurePosixPath(entry.filename).parts
        if ".." in parts or "\\" in entry.filename or re.match("/|[A-Za-z]:", entry.filename):
            raise LeukoscopeError(f"{name}: holds the path {entry.filename!r}, which leads out of it; pack it again")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise LeukoscopeError(f"{name}: {entry.filename} is a link, not a file; pack the pictures themselves")
        if entry.flag_bits & 1:
            raise LeukoscopeError(f"{name}: {entry.filename} is encrypted; pack it without a password")
        # Of other methods, Python's zipfile expands a whole chunk before it counts what came out.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise LeukoscopeError(f"{name}: {entry.filename} is not packed by deflate; pack it again as a plain zip")
        if entry.file_size > MAX_BYTES:
            raise LeukoscopeError(f"{name}: {entry.filename} is over {MAX_BYTES // 2**20} MB; crop it to one cell")


def _unpacked(path: str, entry: zipfile.ZipInfo, opened: Callable[[str], zipfile.ZipFile]) -> bytes:
    try:
        return opened(path).read(entry)
    except _DAMAGED:
        raise LeukoscopeError(f"{entry.filename}: is damaged within its zip; pack it again") from None


def _read_tables(tables: Sequence[BatchFile], batch: Batch) -> None:
    """Take labels and subjects from CSVs, and list the rows that cannot be used."""
    endings = _endings([file.name for file in batch.files])
    index = FileIndex(endings)
    # File → its different entries, each with the CSV that gives it first.
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    subjects: dict[str, dict[str, str]] = defaultdict(dict)
    for file in tables:
        content = file.read()
        if len(content) > MAX_TABLE:
            raise LeukoscopeError(f"{file.name}: is over {MAX_TABLE // 2**20} MB; give one row per picture")
        if max(content.count(b"\n"), content.count(b"\r")) > MAX_ROWS:
            raise LeukoscopeError(f"{file.name}: holds more than {MAX_ROWS:,} rows; give one row per picture")
        table = parse_csv(content, file.name)
        if not table.has_subjects and not any(row.label for row in table.rows):
            raise LeukoscopeError(f"{file.name}: names neither a subject nor a label; {HEADER}")
        batch.problems += table.notes
        rows = [(row, _named(row.file, file.name, index, endings)) for row in table.rows]
        unknown = [row.file for row, pictures in rows if not pictures]
        batch.problems += [
            f"{file.name}: names {one[:LONGEST_NAME]!r}, which was not given" for one in unknown[:MOST_UNKNOWN]
        ]
        if (more := len(unknown) - MOST_UNKNOWN) > 0:
            batch.problems.append(f"{file.name}: names {more} more files that were not given")
        if unclear := [row.file for row, pictures in rows if len(pictures) > 1]:
            batch.problems.append(
                f"{file.name}: {unclear[0]!r} is the name of several pictures; write the folder before it (rows like "
                f"this: {len(unclear)})"
            )
        for row, pictures in rows:
            if len(pictures) != 1:
                continue
            if row.label:
                labels[pictures[0]].setdefault(row.label, file.name)
                batch.label_tables.setdefault(row.label, file.name)
            if row.subject:
                subjects[pictures[0]].setdefault(row.subject, file.name)
    batch.labels = _agreed("label", labels, batch.problems)
    batch.subjects = _agreed("subject", subjects, batch.problems)


def _agreed(column: str, given: Mapping[str, Mapping[str, str]], problems: list[str]) -> dict[str, str]:
    """File → its entry, where rows give it but one; a problem for each other file."""
    for file, found in given.items():
        if len(found) > 1:
            (one, _), (other, table) = islice(found.items(), 2)
            problems.append(
                f"{table}: {file} is there with the {column} {one[:LONGEST_LABEL]!r} and with "
                f"{other[:LONGEST_LABEL]!r}; neither is used: keep one of the two rows"
            )
    return {file: entry for file, (entry, *others) in given.items() if not others}


def _endings(names: Sequence[str]) -> dict[str, list[str]]:
    """Each ending of the pictures' paths (study/P1/1.png, P1/1.png, 1.png) → the pictures that it names."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split("/")
        for first in range(1, len(parts)):
            found["/".join(parts[first:])].append(name)
    return found | {name: [name] for name in names}


def _named(file: str, table: str, index: FileIndex, endings: Mapping[str, list[str]]) -> list[str]:
    """The pictures that a CSV's row may mean: from the CSV's own folder on, else by the end of their paths."""
    for one in (posixpath.join(posixpath.dirname(table), file), file):
        if found := index.find(posixpath.normpath(one)):
            return sorted({name for ending in found for name in endings[ending]})
    return []


def subjects_of(names: Sequence[str], pattern: str, by_table: Mapping[str, str]) -> dict[str, str]:
    """File name → subject: by the CSV, else what a pattern finds in the name; "" where neither names one.

    The pattern's group `subject` is the subject, else its first group, else all of it. One that is no regular
    expression, or takes too long, is an error.
    """
    # Unlike the standard library's, these patterns can be stopped: a visitor's may run for hours.
    import regex

    if len(pattern) > LONGEST_PATTERN:
        raise LeukoscopeError(f"pattern of {len(pattern)} letters; give one of at most {LONGEST_PATTERN}")
    try:
        wanted = regex.compile(pattern)
        found = {name: wanted.search(name, timeout=PATTERN_SECONDS) if pattern else None for name in names}
    except regex.error as error:
        raise LeukoscopeError(f"pattern {pattern!r}: {error}; give a regular expression such as ^([^_]+)_") from None
    except TimeoutError:
        raise LeukoscopeError(f"pattern {pattern!r}: takes too long; give one without nested repeats") from None
    group = "subject" if "subject" in wanted.groupindex else min(wanted.groups, 1)
    return {name: by_table.get(name) or (match and match[group]) or "" for name, match in found.items()}


# Tried in this order on the names of a batch; the first that finds several subjects in all of them is suggested. Words
# alone, such as Anna Schmidt, are looked for in folders only.
SUGGESTIONS = (
    r"UID_(H?\d+)_",
    r"(?:^|/)([^/]*\d[^/]*)/[^/]+$",
    r"(?:^|/)([A-Za-z]+[-_ ]?\d+)[-_ .][^/]*\.[^/.]+$",
    r"(?:^|/)([^/_-]*\d[^/_-]*)[_-][^/]*$",
    r"(?:^|/)([^/]+)/[^/]+$",
)
FOLDERS = (SUGGESTIONS[1], SUGGESTIONS[-1])
# Folders that name no subject, beside the classes and folds of a cross-validation.
_NO_SUBJECT = (r"fold[-_ ]?\d+", r"train\w*", r"test\w*", r"val\w*", r"images?", r"pictures?", r"cells?", r"data\w*",
               r"normal", r"healthy", r"benign", r"malignant", r"blasts?", r"leuk\w+", r"controls?", r"cases?",
               r"patients?", r"subjects?")  # fmt: skip


def suggested_pattern(names: Sequence[str], classes: Sequence[str]) -> str:
    """A pattern that finds the subjects in file names, for `subjects_of`; "" where none seems to.

    It must name a subject for every file, two subjects at least (one, where it is a folder or C-NMC's name), and two
    files per subject on average, as a number of its own for each file is the file's; and what it finds may be no class
    of the release and no fold of a cross-validation.
    """
    unfit = re.compile("|".join((*_NO_SUBJECT, *map(re.escape, classes))), re.IGNORECASE)
    for pattern in SUGGESTIONS:
        found = subjects_of(names, pattern, {})
        subjects = set(found.values())
        least = 1 if pattern in (SUGGESTIONS[0], *FOLDERS) else 2
        if "" not in subjects and least <= len(subjects) <= len(found) / 2 and not any(map(unfit.fullmatch, subjects)):
            return pattern
    return ""
