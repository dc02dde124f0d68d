"""A release must give one answer however it is loaded, refuse damage by name, and be saved whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from leukoscope import LeukoscopeError, Predictor
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.models.build import build_network, model_args
from leukoscope.models.metrics import SCHEMA_VERSION, Metrics
from leukoscope.models.recipes import get_recipe
from leukoscope.models.release import read_arrays, read_release
from leukoscope.models.weights import load_release, rescale_classifier, save_release
from leukoscope.synthetic import Background, draw_cell

REPOSITORY = Path(__file__).parents[2]
EMBEDDED = sorted(path.parent for path in (REPOSITORY / "model_card").glob("*/config.json"))

Answers = np.ndarray
"""(pictures, classes) probabilities, classes in the release's label order."""


def by_pipeline(release: Path, pictures: Sequence[Path]) -> Answers:
    from transformers import pipeline

    labels = json.loads((release / "config.json").read_text())["label_names"]
    classify = pipeline("image-classification", model=str(release), device=-1)
    assert classify.model.dtype == torch.float32
    rows = []
    for picture in pictures:
        shares = {answer["label"]: answer["score"] for answer in classify(str(picture), top_k=len(labels))}
        rows.append([shares[label] for label in labels])
    return np.array(rows)


def by_timm(release: Path, pictures: Sequence[Path]) -> Answers:
    import timm
    from timm.data import create_transform, resolve_data_config

    network = timm.create_model(f"local-dir:{release}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=network))
    inputs = torch.stack([transform(Image.open(picture).convert("RGB")) for picture in pictures])
    with torch.inference_mode():
        return network(inputs).softmax(dim=1).numpy()


def by_predictor(release: Path, pictures: Sequence[Path]) -> Answers:
    return np.array([list(p.probabilities.values()) for p in Predictor.from_pretrained(release)(list(pictures))])


WAYS: tuple[Callable[[Path, Sequence[Path]], Answers], ...] = (by_pipeline, by_timm, by_predictor)


def assert_one_answer(release: Path, pictures: Sequence[Path]) -> Answers:
    answers = {way.__name__: way(release, pictures) for way in WAYS}
    reference = answers["by_predictor"]
    assert np.ptp(reference[:, 0]) > 1e-3, "pictures that all get one answer would hide a wrong preprocessing"
    for way, answer in answers.items():
        # timm alone sees a turned photograph as it lies.
        upright = [row for row, picture in enumerate(pictures) if way != "by_timm" or picture.name != "turned.jpg"]
        assert np.abs(answer - reference)[upright].max() < 1e-4, f"{way} differs"
    return reference


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("phantoms")
    paths = []
    for label, background in product(("ALL", "HEM"), get_args(Background)):
        paths.append(folder / f"{label}-{background}.png")
        cell = draw_cell(label, subject=3, cell=1, size=300, background=background)
        Image.fromarray(cell.image).crop((0, 0, 300, 260)).save(paths[-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, orientation in {"turned.jpg": exif, "plain.jpg": Image.Exif()}.items():
        paths.append(folder / name)
        Image.open(paths[1]).crop((0, 0, 300, 200)).save(paths[-1], quality=95, exif=orientation)
    return paths


def test_three_ways_of_loading_give_one_answer_on_phantoms(
    tiny_release: Path, vit_release: Path, phantoms: list[Path]
) -> None:
    config = json.loads((vit_release / "config.json").read_text())
    assert config["model_args"] == {"img_size": 64}, "a vision transformer at another size than its own"
    assert config["pretrained_cfg"]["fixed_input_size"] is True
    assert_one_answer(vit_release, phantoms)
    *_, turned, plain = assert_one_answer(tiny_release, phantoms)
    assert np.abs(turned - plain).max() > 1e-4


@pytest.mark.parametrize(
    "release", [pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path != EMBEDDED[0])) for path in EMBEDDED]
)
def test_embedded_releases_give_one_answer_on_real_cells(release: Path, real_data: Path) -> None:
    cells = sorted((real_data / "cnmc2019" / "samples-bmp").glob("*.bmp"))
    assert cells, f"LEUKOSCOPE_DATA={real_data}: holds no cnmc2019/samples-bmp/*.bmp"
    assert_one_answer(release, cells[::3])


def test_no_release_contains_code(tiny_release: Path, vit_release: Path) -> None:
    for release in (tiny_release, vit_release, *EMBEDDED):
        paths = list(release.rglob("*"))
        assert not [path for path in paths if path.suffix in (".py", ".pyc", ".so", ".pkl", ".bin", ".pt")]
        assert not [path for path in paths if path.suffix == ".json" and "auto_map" in path.read_text()]
    assert sorted(path.name for path in tiny_release.iterdir()) == ["config.json", "metrics.json", "model.safetensors"]


def test_code_in_a_folder_is_never_run(copy: Path) -> None:
    (copy / "modeling.py").write_text(f"open({str(copy / 'sprung')!r}, 'w')\nraise SystemExit\n")
    change_config(copy, auto_map={"AutoModelForImageClassification": "modeling.Network"}, model_type="leukoscope")
    load_release(copy)
    Predictor.from_pretrained(copy)(np.zeros((64, 64, 3), np.uint8))
    assert not (copy / "sprung").exists()


def test_the_backbone_is_half_precision_on_disk_and_all_is_float32_when_loaded(tiny_release: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(tiny_release / "model.safetensors")
    loaded = load_release(tiny_release).network.state_dict()

    assert stored["features.conv0.weight"].dtype == torch.float16
    assert stored["classifier.weight"].dtype == stored["classifier.bias"].dtype == torch.float32
    assert stored["features.norm5.running_var"].dtype == torch.float32
    assert {t.dtype for t in loaded.values()} == {torch.float32, torch.int64}
    assert torch.equal(loaded["features.conv0.weight"], stored["features.conv0.weight"].float())
    assert torch.equal(loaded["classifier.weight"], stored["classifier.weight"])


def test_saved_preprocessing_shows_the_network_what_training_did(tmp_path: Path) -> None:
    """At 224 px the picture is first resized to 224 / (350/450) = 288: a rounded crop_pct would make that 287."""
    trained = Preprocessing(224, 350 / 450)
    save_tiny(tmp_path / "release", preprocessing=trained)
    picture = Image.fromarray(draw_cell("ALL", subject=0, cell=0, size=450, background="smear").image)

    served = load_release(tmp_path / "release").preprocessing

    assert np.array_equal(served.frame(picture), trained.frame(picture))


# Damage


@pytest.fixture
def copy(tiny_release: Path, tmp_path: Path) -> Path:
    """A copy of the release, without labels in metrics.json, that a test may damage."""
    folder = Path(shutil.copytree(tiny_release, tmp_path / "copy"))
    (folder / "metrics.json").write_text('{"schema_version": 3}')
    return folder


def change_config(release: Path, **changes: object) -> None:
    config = json.loads((release / "config.json").read_text())
    (release / "config.json").write_text(json.dumps({**config, **changes}))


def refusal(release: Path) -> str:
    with pytest.raises(LeukoscopeError) as error:
        load_release(release)
    return str(error.value)


def test_what_is_missing_is_named(copy: Path) -> None:
    none = copy / "none"
    assert refusal(none) == f"{none}: no such model folder; give a release folder or a Hub id like owner/name"
    (copy / "model.safetensors").unlink()
    said = "no such weights file; give a .safetensors file"
    assert refusal(copy) == f"{copy / 'model.safetensors'}: {said}"
    (copy / "config.json").unlink()
    assert refusal(copy) == f"{copy}: has no config.json; give the folder of a release"


@pytest.mark.parametrize("keep", [0, 4, 1000, -1000])
def test_damaged_weights_are_named(copy: Path, keep: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    said = rf"^{weights}: not a whole safetensors file \(.*\); download or copy it again; pickled weights are never"
    assert re.search(said, refusal(copy))


def test_weights_that_git_lfs_has_not_fetched_are_named(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 28000000\n")
    assert refusal(copy) == f"{weights}: is a Git LFS pointer, not the file itself; run `git lfs pull`"


@pytest.mark.skipif(sys.platform != "linux", reason="no such file on Windows or macOS")
def test_weights_that_the_system_does_not_give_are_named() -> None:
    with pytest.raises(LeukoscopeError, match=r"^/proc/self/mem: cannot be read \(.*\); check who may read it$"):
        read_arrays(Path("/proc/self/mem"))


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", "[]", "null"])
def test_a_damaged_config_is_named(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    assert re.search(rf"^{copy / 'config.json'}: damaged \(.*\); restore it from the release", refusal(copy))


CFG = Preprocessing(96, 0.9).to_pretrained_cfg()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"label_names": "AB"},
            "damaged (label_names is 'AB'; input should be a valid list); restore it from the release, or give "
            "another: only timm image classifiers with label names load here",
        ),
        ({"label_names": list("ABC")}, "damaged (label_names has 3 entries but the head has 2 outputs); restore"),
        ({"label_names": ["ALL", "ALL"]}, "damaged (label_names is ['ALL', 'ALL']; the labels must be different); "),
        ({"label_names": ["ALL", ["HEM"]]}, "damaged (label_names.1 is ['HEM']; input should be a valid string); "),
        ({"label_names": ["ALL"], "num_classes": 1}, "damaged (label_names is ['ALL']; list should have at least 2 "),
        ({"architecture": None}, "damaged (architecture is None; "),
        ({"architecture": "leukonet9000"}, "timm has no architecture 'leukonet9000'; update timm"),
        ({"pretrained_cfg": {}}, "pretrained_cfg has no preprocessing that is supported ("),
        ({"pretrained_cfg": None}, "damaged (pretrained_cfg is None; "),
        ({"pretrained_cfg": CFG | {"crop_mode": "squash"}}, "pretrained_cfg has .* (crop_mode is 'squash'; only the"),
        ({"pretrained_cfg": CFG | {"input_size": [3, 6000, 6000]}}, ".*image_size is 6000; input should be less than"),
        ({"pretrained_cfg": CFG | {"input_size": [3, 2.5, 2.5]}}, ".*image_size is 2.5; input should be a valid "),
        ({"pretrained_cfg": CFG | {"mean": [123.7, 116.3, 103.5]}}, ".*mean is .*; input should be less than"),
        ({"pretrained_cfg": CFG | {"crop_pct": 1e-4}}, ".*would be resized to 960000 pixels, more than 4096"),
        ({"model_args": {"no_such_argument": 1}}, "damaged (model_args.no_such_argument"),
        ({"model_args": [1]}, "damaged (model_args is [1]; "),
        ({"model_args": {"checkpoint_path": "weights.pth"}}, "damaged (model_args.checkpoint_path"),
        ({"model_args": {"block_config": [9999] * 4}}, "damaged (model_args.block_config"),
        ({"model_args": {"img_size": 10**6}}, "damaged (model_args.img_size"),
        ({"architecture": "test_resnet", "model_args": {"global_pool": "foo"}}, "test_resnet cannot be built with its"),
    ],
    ids=str,
)
def test_a_config_of_no_release_is_named_with_its_value(copy: Path, change: dict[str, Any], said: str) -> None:
    change_config(copy, **change)
    wanted = re.escape(f"{copy / 'config.json'}: {said}").replace(r"\.\*", ".*")
    assert re.match(wanted, refusal(copy))


@pytest.mark.parametrize(
    ("change", "network"),
    [
        ({"model_args": None}, "densenet121 with 2 labels"),
        ({"label_names": ["ALL", "HEM", "OTHER"], "num_classes": 3}, "densenet121 with 3 labels"),
        ({"architecture": "densenet169", "model_args": {}}, "densenet169 with 2 labels"),
        # A billion numbers, for which the memory is never asked.
        ({"architecture": "vit_giant_patch14_dinov2", "model_args": {}}, "vit_giant_patch14_dinov2 with 2 labels"),
    ],
)
def test_a_config_of_other_weights_is_named(
    copy: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], network: str
) -> None:
    create = timm.create_model

    def planned(*given: Any, **options: Any) -> Any:
        assert torch.empty(0).device.type == "meta", "it would take memory"
        return create(*given, **options)

    monkeypatch.setattr(timm, "create_model", planned)
    change_config(copy, **change)
    message = refusal(copy)
    assert message.startswith(f"{copy / 'model.safetensors'}: not the weights of {network} (")
    assert message.endswith("restore config.json and model.safetensors from one release")


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_a_json_file_of_a_gigabyte_or_nested_without_end_is_named_and_not_read(copy: Path, name: str) -> None:
    good = (copy / name).read_text()
    # Deep, but where nothing is looked for.
    (copy / name).write_text(good.replace("{", '{"deep": ' + "[" * 10_000 + "]" * 10_000 + ",", 1))
    assert refusal(copy).startswith(f"{copy / name}: damaged (") and len(refusal(copy)) < 500
    with (copy / name).open("wb") as file:
        file.truncate(10**9)
    assert refusal(copy) == (
        f"{copy / name}: damaged (has 1,000 MB, and a release's has less than 100); restore it from the release"
    )
    (copy / name).unlink()
    (copy / name).mkdir()
    assert refusal(copy).startswith(f"{copy}")


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ([], "its content is []; input should be a valid dictionary or instance of Metrics: download or copy "),
        ({"data": None}, "data is None; input should be a valid dictionary"),
        ({"subject_rule": {"positive_label": "ALL"}}, "subject_rule.least_cells is missing"),
        ({"positive_label": "cat"}, "positive_label is 'cat', not one of ALL, HEM; restore it from the release"),
    ],
)
def test_metrics_of_another_shape_are_named(copy: Path, metrics: object, problem: str) -> None:
    (copy / "metrics.json").write_text(json.dumps(metrics))

    assert refusal(copy).startswith(f"{copy / 'metrics.json'}: {problem}")


def test_labels_in_another_order_than_in_metrics_are_refused(copy: Path) -> None:
    """Without checksums nothing else tells that every answer would be the other class's."""
    (copy / "metrics.json").write_text(json.dumps({"labels": ["HEM", "ALL"]}))
    assert refusal(copy).startswith(
        f"{copy / 'config.json'}: label_names is ['ALL', 'HEM'], but labels in metrics.json is ['HEM', 'ALL'];"
    )


def test_metrics_that_say_little_or_are_missing_are_no_problem_but_another_version_is(copy: Path) -> None:
    path = copy / "metrics.json"
    for version in (SCHEMA_VERSION - 1, SCHEMA_VERSION + 1, "3"):
        path.write_text(json.dumps({"schema_version": version}))
        assert refusal(copy) == (
            f"{path}: schema_version is {version!r}, but only {SCHEMA_VERSION} is supported; download the release "
            "again or use the version of Leukoscope that made it"
        )
    said = {"data": {}, "evaluations": [{"name": "x"}], "decisions": {"estimates": "x"}, "loss": [0.3]}
    path.write_text(json.dumps(said))
    filled_in = {"decisions": {"estimates": "x", "cells_of": "validation"}}
    assert load_release(copy).metrics.content() == said | filled_in
    path.unlink()
    assert load_release(copy).metrics == Metrics()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "cnmc2019"}, True),
        ({"name": "ball4"}, False),
        ({"name": "imagefolder"}, None),
        ({"name": "lab/cells", "copy_of": "cnmc2019"}, True),
        (None, None),
    ],
)
def test_a_release_knows_whether_it_takes_cells_cut_out_on_black(
    copy: Path, data: dict[str, str] | None, expected: bool | None
) -> None:
    (copy / "metrics.json").write_text(json.dumps({} if data is None else {"data": data}))

    assert read_release(copy).takes_cut_outs is expected


# Saving


def save_tiny(directory: Path, **changes: object) -> Path:
    recipe = replace(get_recipe("densenet121"), block_config=(2, 2, 2, 2))
    arguments: dict[str, Any] = {
        "network": build_network(recipe, 2),
        "architecture": "densenet121",
        "labels": ("ALL", "HEM"),
        "preprocessing": Preprocessing(96, 1.0),
        "metrics": Metrics(),
        **changes,
    }
    return save_release(directory, model_args=model_args(recipe), **arguments)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saving_again_replaces_the_release_and_leaves_nothing_aside(copy: Path) -> None:
    (copy / "stray.txt").write_text("of the older release")
    save_tiny(copy, metrics=Metrics(notice="newer"))

    assert sorted(content(copy)) == ["config.json", "metrics.json", "model.safetensors"]
    assert load_release(copy).metrics.notice == "newer"
    assert [path.name for path in copy.parent.iterdir() if "copy" in path.name] == ["copy"]


def test_what_cannot_be_saved_leaves_the_older_release_alone(copy: Path) -> None:
    before = content(copy.parent)
    with pytest.raises(TypeError):
        save_tiny(copy, metrics=Metrics.model_validate({"accuracy": object()}))
    assert content(copy.parent) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes, which makes writes fail")
def test_a_full_disk_leaves_the_older_release_alone(copy: Path) -> None:
    import resource

    before, limits = content(copy.parent), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(LeukoscopeError) as error:
            save_tiny(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert str(error.value).startswith(f"{copy}: the release cannot be written there (")
    assert content(copy.parent) == before


# Temperature


@pytest.fixture(scope="module")
def decided() -> torch.nn.Module:
    """A densenet121 whose head, unlike a new one, gives logits of a trained network's size."""
    torch.manual_seed(0)
    network: Any = build_network(get_recipe("densenet121"), 3).eval().requires_grad_(False)
    network.get_classifier().weight.normal_(std=0.1)
    network.get_classifier().bias.normal_()
    return network


def logits(network: torch.nn.Module) -> torch.Tensor:
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network(pixels.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("temperature", [0.37, 2.5])
def test_folding_a_temperature_equals_scaling_the_logits_and_a_release_keeps_it_exactly(
    decided: torch.nn.Module, tmp_path: Path, temperature: float
) -> None:
    before = logits(decided)
    folded = rescale_classifier(deepcopy(decided), temperature)

    assert before.abs().max() > 0.5, "logits near 0 would agree whatever was folded"
    assert torch.allclose(logits(folded), before / temperature, rtol=1e-6, atol=1e-6)
    about: dict[str, Any] = {"preprocessing": Preprocessing(96, 1.0), "metrics": Metrics(), "labels": ("A", "B", "C")}
    saved = [
        logits(load_release(save_release(tmp_path / name, one, architecture="densenet121", **about)).network)
        for name, one in (("plain", decided), ("folded", folded))
    ]
    assert torch.allclose(saved[1], saved[0] / temperature, rtol=1e-5, atol=1e-5), "halves would be 1e-3 apart"


def test_a_temperature_that_is_none_is_refused(decided: torch.nn.Module) -> None:
    for temperature in (0, -1.0, float("nan"), float("inf")):
        said = f"^temperature {temperature}: not a positive number; fit it on out-of-fold predictions$"
        with pytest.raises(LeukoscopeError, match=said):
            rescale_classifier(decided, temperature)
