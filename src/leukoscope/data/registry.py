"""The data sets Leukoscope knows: one entry each, holding all that loading, splitting, cards and pages need to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from leukoscope import DataError
from leukoscope.data.layouts import CNMC_PRELIM_LABELS, Finder, cells_named, find_class_folders, find_cnmc_cells

# Outcomes without a class, of `inference.prediction`: no class may be called so.
RESERVED_LABELS = ("abstain", "out of distribution", "not a cell", "too few cells")
PRELIMINARY_TEST = "preliminary_test"
EMPTY_SLIDE_RGB = (246, 254, 252)
"""Where a smear shows neither cell nor plasma: the median over 60 pictures of ball4 of their brightest quarters."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before a single image is opened."""

    name: str
    title: str
    licence: str
    citation: str = ""
    url: str = ""
    labels: tuple[str, ...] = ()  # in the order of the network's outputs; () where its folders name them
    meanings: Mapping[str, str] = field(default_factory=dict)  # label → what one cell of it is, such as pre-B blast
    plurals: Mapping[str, str] = field(default_factory=dict)  # label → its cells in words; others are "<label> cells"
    positive_label: str = ""  # the class that "sensitivity" is of; "" where the field has none
    normal_label: str = ""  # the class of cells that are not malignant; "" where there is none, or several
    block_size: int = 0  # without subjects: how many pictures of neighbouring numbers may come from one slide
    background: Literal["black", "smear"] = "smear"  # what surrounds a cell, and what augmentation fills corners with
    crop_pct: float = 1.0  # the central share of the shorter side that the network sees
    find_cells: Finder | None = None  # in a local folder; None for data sets that are drawn
    official_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # partition → label ("": all)
    subject_aliases: Mapping[str, str] = field(default_factory=dict)  # subject id → another id of the same subject
    subjects: str = ""  # where the subject of a cell is named; "" where no file says
    hub_id: str | None = None  # the Hub data set used when no local folder is given
    synthetic: bool = False
    layout: str = ""  # how its files lie, said where none is found
    held_out: tuple[str, ...] = (PRELIMINARY_TEST,)  # partitions that are a test of their own, which no split touches
    other_folders: tuple[str, ...] = ()  # folders of images that are no cells of their own; they need no mention
    picture_side: int | None = None  # pixels, where all pictures are squares that show cells at one scale
    pictures: str = ""  # kind and size in pixels of the files, for a table
    recipe: str = ""  # that did best on its cells; "" for the default of `train.py`
    traps: tuple[str, ...] = ()  # what a user of the set should know, one sentence each
    copy_of: str = ""  # what a data set of the Hub is a copy of, by its card: `leukoscope: {dataset_name: NAME}`

    @property
    def group(self) -> Literal["subject", "block"]:
        """The unit that must not stand on two sides of a split."""
        return "block" if self.block_size else "subject"

    def canonical_subject(self, subject: str) -> str:
        """The subject a cell counts for, once known aliases are joined."""
        seen: set[str] = set()
        # Aliases may form a chain, or by mistake a circle.
        while subject in self.subject_aliases and subject not in seen:
            seen.add(subject)
            subject = self.subject_aliases[subject]
        return subject

    def about(self) -> dict[str, Any]:
        """The fields that a report shows, ready for JSON."""
        facts = {key: getattr(self, key) for key in ("name", "title", "licence", "citation", "synthetic")}
        facts["unit"] = self.group
        if self.copy_of:
            facts["copy_of"] = self.copy_of
        return facts


_LMU_CODES = {
    "NGS": 8484, "LYT": 3937, "MYO": 3268, "MON": 1789, "EOS": 424, "NGB": 109, "BAS": 79, "EBO": 78, "PMO": 70,
    "MYB": 42, "MOB": 26, "PMB": 18, "KSC": 15, "MMZ": 15, "LYA": 11,
}  # fmt: skip
_MARROW_CODES = (
    "ABE", "ART", "BAS", "BLA", "EBO", "EOS", "FGC", "HAC", "KSC", "LYI", "LYT", "MMZ", "MON", "MYB", "NGB", "NGS",
    "NIF", "OTH", "PEB", "PLM", "PMO",
)  # fmt: skip
_MLL23_COUNTS = {
    "basophil": 616, "eosinophil": 2448, "hairy_cell": 3265, "lymphocyte": 5532, "lymphocyte_large_granular": 1849,
    "lymphocyte_neoplastic": 180, "lymphocyte_reactive": 33, "metamyelocyte": 483, "monocyte": 2510,
    "myeloblast": 8606, "myelocyte": 747, "neutrophil_band": 687, "neutrophil_segmented": 7170,
    "normoblast": 2071, "plasma_cell": 1658, "promyelocyte": 745, "promyelocyte_atypical": 2033, "smudge_cell": 988,
}  # fmt: skip
_PBC_COUNTS = {
    "basophil": 1218, "eosinophil": 3117, "erythroblast": 1551, "ig": 2895, "lymphocyte": 1214, "monocyte": 1420,
    "neutrophil": 3329, "platelet": 2348,
}  # fmt: skip
_AML_LABELS = ("control", "PML_RARA", "NPM1", "CBFB_MYH11", "RUNX1_RUNX1T1")
_RAABIN_LABELS = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")


def _one_of(labels: Iterable[str]) -> str:
    return f"(?P<label>{'|'.join(labels)})"


_ENTRIES = (
    DatasetInfo(
        name="cnmc2019",
        title="C-NMC 2019 (ISBI 2019 challenge)",
        labels=("ALL", "HEM"),
        meanings={"ALL": "leukaemic blast", "HEM": "normal cell"},
        plurals={"ALL": "blasts", "HEM": "normal cells"},
        positive_label="ALL",
        normal_label="HEM",
        licence="CC BY 3.0 (TCIA)",
        citation="Gupta, A. & Gupta, R. (2019). ALL Challenge dataset of ISBI 2019 (C-NMC 2019). "
        "The Cancer Imaging Archive. https://doi.org/10.7937/tcia.2019.dc64i46r",
        url="https://doi.org/10.7937/tcia.2019.dc64i46r",
        background="black",
        # The central 350 of 450 pixels hold 97 % of the cells whole.
        crop_pct=350 / 450,
        picture_side=450,
        pictures="cells cut out on black, stain-normalised, BMP 450",
        subjects="file name",
        recipe="densenet169_block2",
        find_cells=find_cnmc_cells,
        official_counts={
            "fold_0": {"ALL": 2397, "HEM": 1130},
            "fold_1": {"ALL": 2418, "HEM": 1163},
            "fold_2": {"ALL": 2457, "HEM": 1096},
            "preliminary_test": {"ALL": 1219, "HEM": 648},
        },
        # One subject under several ids: `leukoscope audit` finds the same cells, identical pixel for pixel or
        # photographed again (H6, H7, 44, H24, 17; 16 and 15 by a single cell each), under each of these groups.
        subject_aliases={
            **{alias: "51" for alias in ("55", "75", "78")},
            **{alias: "H2" for alias in ("H4", "H5", "H6", "H7")},
            **{alias: "20" for alias in ("16", "17", "21")},
            "h3": "H10",
            "H24": "H14",
            "44": "43",
            "15": "1",
        },
        hub_id="dwb2023/cnmc-leukemia-2019",
        layout="…/fold_{0,1,2}/{all,hem}/UID_<subject>_<frame>_<cell>_<label>.bmp (of the preliminary test: "
        f"1.bmp, named in {CNMC_PRELIM_LABELS} beside it)",
    ),
    DatasetInfo(
        name="ball4",
        title="B-ALL, four classes (Ghaderzadeh et al. 2021)",
        labels=("Benign", "Early", "Pre", "Pro"),
        meanings={
            "Benign": "benign haematogone",
            "Early": "early pre-B blast",
            "Pre": "pre-B blast",
            "Pro": "pro-B blast",
        },
        normal_label="Benign",
        licence="ODbL 1.0 (database); contents © the original authors",
        citation="Ghaderzadeh, M. et al. (2021). A fast and efficient CNN model for B-ALL diagnosis and its "
        "subtypes classification using peripheral blood smear images. Int. Journal of Intelligent Systems.",
        url="https://www.kaggle.com/datasets/mehradaria/leukemia",
        # 3,256 pictures of 89 subjects are about 37 of each.
        block_size=37,
        pictures="fields of view, JPG 224",
        find_cells=cells_named(
            rf"WBC-(?:Malignant-)?{_one_of(('Benign', 'Early', 'Pre', 'Pro'))}-\d+", r"\w+", without=("Segmented",)
        ),
        official_counts={"": {"Benign": 504, "Early": 985, "Pre": 963, "Pro": 804}},
        layout="…/Original/{Benign,Early,Pre,Pro}/WBC-….jpg",
        other_folders=("Segmented",),
    ),
    DatasetInfo(
        name="mll23",
        title="MLL23 (Shetab Boushehri et al. 2025)",
        labels=tuple(_MLL23_COUNTS),
        licence="CC BY 4.0",
        citation="Shetab Boushehri, S. et al. (2025). A large expert-annotated single-cell peripheral blood "
        "dataset for hematological disease diagnostics. Scientific Data 12, 1773. "
        "https://doi.org/10.1038/s41597-025-06223-x",
        url="https://doi.org/10.5281/zenodo.14277609",
        pictures="single cells, TIF 288",
        find_cells=cells_named(rf"{_one_of(_MLL23_COUNTS)}/(?P<cell>(?P=label)_\d+)", "tiff?"),
        official_counts={"": _MLL23_COUNTS},
        layout="…/<class>/<class>_0001.TIF",
        traps=("adults only",),
    ),
    DatasetInfo(
        name="aml-mll",
        title="AML-Cytomorphology MLL/Helmholtz (the label is the person's, not the cell's)",
        labels=_AML_LABELS,
        licence="see TCIA",
        citation="Hehr, M. et al. (2023). Explainable AI identifies diagnostic cells of genetic AML subtypes. PLOS "
        "Digital Health e0000187. https://doi.org/10.7937/6PPE-4020",
        url="https://doi.org/10.7937/6PPE-4020",
        pictures="single cells, TIF 144",
        subjects="folder",
        find_cells=cells_named(rf"{_one_of(_AML_LABELS)}/(?P<subject>[A-Z]{{3}})/image_\d+", "tiff?"),
        official_counts={"": {"control": 20_305, "": 81_214}},
        layout="…/data/{control,PML_RARA,NPM1,CBFB_MYH11,RUNX1_RUNX1T1}/<subject>/image_0.tif",
        traps=("every cell bears the label of its person: most cells of a leukaemic slide are normal",),
    ),
    DatasetInfo(
        name="aml-lmu",
        title="AML-Cytomorphology LMU (Matek et al. 2019)",
        labels=tuple(_LMU_CODES),
        licence="CC BY 3.0",
        citation="Matek, C. et al. (2019). Human-level recognition of blast cells in acute myeloid leukaemia with "
        "convolutional neural networks. Nature Machine Intelligence 1, 538–544. "
        "https://doi.org/10.7937/tcia.2019.36f5o9ld",
        url="https://doi.org/10.7937/tcia.2019.36f5o9ld",
        pictures="single cells, TIFF 400 with an alpha channel",
        find_cells=cells_named(rf"{_one_of(_LMU_CODES)}/(?P<cell>(?P=label)_\d+)(?: \([\d_ ]+UTC\))?", "tiff?"),
        official_counts={"": _LMU_CODES},
        layout="…/<code>/<code>_0001.tiff",
        traps=("MYO is the myeloblast and MYB the myelocyte: the two are easily taken for each other",),
    ),
    DatasetInfo(
        name="pbc",
        title="PBC (Acevedo et al. 2020)",
        labels=tuple(_PBC_COUNTS),
        licence="CC BY 4.0",
        citation="Acevedo, A. et al. (2020). A dataset of microscopic peripheral blood cell images for development "
        "of automatic recognition systems. Data in Brief 30, 105474. https://doi.org/10.17632/snkd93bnjr.1",
        url="https://doi.org/10.17632/snkd93bnjr.1",
        pictures="single cells, JPG 360 × 363",
        find_cells=cells_named(rf"{_one_of(_PBC_COUNTS)}/(?P<cell>[A-Z]+_\d+)", "jpe?g", without=("wbc_resized",)),
        official_counts={"": _PBC_COUNTS},
        layout="…/<class>/<finer class>_<number>.jpg",
        other_folders=("wbc_resized",),
        traps=(
            "healthy persons only",
            "some pictures are there twice, one of them under two classes (EO_225902 = BNE_191112)",
        ),
    ),
    DatasetInfo(
        name="bm-mll",
        title="Bone-Marrow-Cytomorphology MLL/Helmholtz/Fraunhofer (Matek et al. 2021)",
        labels=_MARROW_CODES,
        licence="CC BY 4.0",
        citation="Matek, C. et al. (2021). Highly accurate differentiation of bone marrow cell morphologies using "
        "deep neural networks on a large image data set. Blood 138, 1917–1927. "
        "https://doi.org/10.7937/TCIA.AXH3-T579",
        url="https://doi.org/10.7937/TCIA.AXH3-T579",
        pictures="single cells of bone marrow, JPG 250",
        find_cells=cells_named(rf"{_one_of(_MARROW_CODES)}/(?:\d+-\d+/)?(?P<cell>(?P=label)_\d+)", "jpe?g"),
        official_counts={"": {"": 171_375}},
        layout="…/<code>/0001-1000/<code>_00001.jpg",
        traps=("bone marrow, not blood",),
    ),
    DatasetInfo(
        name="raabin",
        title="Raabin-WBC (Kouzehkanan et al. 2022)",
        labels=_RAABIN_LABELS,
        licence="free access; no licence stated",
        citation="Kouzehkanan, Z. M. et al. (2022). A large dataset of white blood cells containing cell locations "
        "and types, along with segmented nuclei and cytoplasm. Scientific Reports 12, 1123. "
        "https://doi.org/10.1038/s41598-021-04426-x",
        url="https://raabindata.com",
        pictures="single cells, JPG 575",
        find_cells=cells_named(
            rf"(?P<fold>Train|TestA|TestB)/{_one_of(_RAABIN_LABELS)}/[^/]+",
            "jpe?g",
            names={"Train": "train", "TestA": "test"},
        ),
        official_counts={"": {"": 14_514}, "train": {"": 10_175}},
        layout="…/{Train,TestA,TestB}/{Basophil,Eosinophil,Lymphocyte,Monocyte,Neutrophil}/….jpg",
        held_out=("TestB",),
        traps=("TestB comes from another microscope and camera; no split touches it",),
    ),
    DatasetInfo(
        name="imagefolder",
        title="Own class folders",
        licence="yours",
        subjects="pattern, folder or table",
        pictures="yours",
        find_cells=find_class_folders,
        layout="<class>/<image>, one folder per class, or <class>/<subject>/<image> with --subject_folders",
    ),
    DatasetInfo(
        name="phantoms",
        title="Phantoms: synthetic cells drawn by Leukoscope",
        labels=("ALL", "HEM"),
        positive_label="ALL",
        licence="Apache-2.0",
        citation="Synthetic cells drawn by Leukoscope; they show no patient.",
        background="black",
        crop_pct=350 / 450,
        subjects="drawn",
        pictures="cells on black",
        synthetic=True,
    ),
)

DATASETS = {info.name: info for info in _ENTRIES}


def meanings_of_labels() -> dict[str, str]:
    """Label → what one cell of it is, by the first data set whose entry says it."""
    meanings: dict[str, str] = {}
    for info in DATASETS.values():
        for label, meaning in info.meanings.items():
            meanings.setdefault(label, meaning)
    return meanings


def cells_of(label: str) -> str:
    """The cells of a class in words, by the first data set whose entry says it."""
    return next((info.plurals[label] for info in DATASETS.values() if label in info.plurals), f"{label} cells")


def ground_rgb(info: DatasetInfo | None) -> tuple[int, int, int]:
    """The colour that cells lie on: of an empty slide for smears, black for cut-out cells and where no entry says."""
    entry = None
    if info is not None:
        entry = DATASETS.get(info.name) or DATASETS.get(info.copy_of)
    if entry is None or entry.name == "imagefolder" or entry.background == "black":
        return (0, 0, 0)
    return EMPTY_SLIDE_RGB


def dataset_info(name: str) -> DatasetInfo:
    """The registry entry of a data set; raises `DataError` naming the known ones."""
    if name not in DATASETS:
        raise DataError(
            f"--dataset_name {name}: unknown data set; choose one of {', '.join(DATASETS)} or a Hub id like owner/name"
        )
    return DATASETS[name]


def register_dataset(info: DatasetInfo) -> None:
    """Add a data set of your own to `DATASETS` for this process; training, audit and evaluation then know its name.

    Args:
        info: its entry. `find_cells` finds its cells in a folder: `leukoscope.data.layouts.cells_named` makes such a
            function from a regular expression over their paths.

    Raises:
        DataError: a name that is taken or looks like a Hub id, an entry without `find_cells`, a positive label that is
            no label, or a label that has another meaning.
    """
    entry = f"register_dataset: data set {info.name!r}"
    if not info.name or "/" in info.name:
        raise DataError(f"{entry}: give a name without a slash; one with a slash is a data set on the Hub")
    if info.name in DATASETS:
        raise DataError(f"{entry}: the name is taken by {DATASETS[info.name].title!r}; give another name")
    if info.find_cells is None:
        raise DataError(f"{entry}: has no find_cells; make it with leukoscope.data.layouts.cells_named")
    if info.positive_label and info.positive_label not in info.labels:
        raise DataError(
            f"{entry}: positive_label {info.positive_label!r} is not one of labels {', '.join(info.labels)}; correct it"
        )
    reserved = [label for label in info.labels if label in RESERVED_LABELS]
    if reserved:
        raise DataError(f"{entry}: {reserved[0]!r} is an outcome without a class; rename this label")
    DATASETS[info.name] = info
