"""Start weights are the right ones, whole and safe to read, or the run does not start."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import HTTPError
from safetensors.torch import save_file
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import (
    FROM_SCRATCH,
    StartWeights,
    build_network,
    copy_weights,
    load_start_weights,
    pooled_norm_densenet,
    rewrite_for_timm,
)
from leukoscope.models.recipes import Recipe, get_recipe, timm_recipe, with_overrides
from leukoscope.models.weights import backbone_state, classifier_names, classifier_parameters, freeze, head_parameters

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return get_recipe("densenet121")


@pytest.fixture(scope="module")
def donor(recipe: Recipe) -> Tensors:
    """A whole densenet121 with the thousand classes of ImageNet."""
    torch.manual_seed(1)
    return dict(build_network(recipe, 1000).state_dict())


@pytest.fixture
def network(recipe: Recipe) -> nn.Module:
    torch.manual_seed(2)
    return build_network(recipe, 2)


def _contiguous(tensors: Tensors) -> Tensors:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _saved(tensors: Tensors, path: Path, **about: Any) -> StartWeights:
    save_file(_contiguous(tensors), path)
    return StartWeights(path, **about)


def _refusal(network: nn.Module, recipe: Recipe, start: StartWeights) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        load_start_weights(network, recipe, start)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def _backbone(network: nn.Module) -> Tensors:
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if not name.startswith("classifier")}


def test_fills_the_backbone_weights_and_statistics_alike_and_never_the_head(
    network: nn.Module, recipe: Recipe, donor: Tensors, tmp_path: Path
) -> None:
    head = [p.clone() for p in classifier_parameters(network)]
    fitting = {"classifier.weight": torch.ones(2, 1024), "classifier.bias": torch.ones(2)}
    halves = {name: t.half() if t.is_floating_point() else t for name, t in donor.items()}
    headless = {name: tensor for name, tensor in donor.items() if not name.startswith("classifier")}
    for name, tensors in {"whole": donor, "two classes": donor | fitting, "headless": headless, "half": halves}.items():
        blank = {key: torch.zeros_like(tensor) for key, tensor in _backbone(network).items()}
        network.load_state_dict(blank, strict=False)
        assert load_start_weights(network, recipe, _saved(tensors, tmp_path / f"{name}.safetensors")) == name
        assert all(torch.equal(tensor, tensors[key].to(tensor.dtype)) for key, tensor in _backbone(network).items())
        assert all(torch.equal(a, b) for a, b in zip(head, classifier_parameters(network), strict=True))
    named = _saved(donor, tmp_path / "w.safetensors", name="channels selected from DenseNet169")
    assert load_start_weights(network, recipe, named) == named.name, "what the card will say"


def test_weights_of_another_architecture_are_refused(
    network: nn.Module, recipe: Recipe, donor: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    other = dict(build_network(get_recipe("densenet201"), 2).state_dict())
    for tensors, problem in (
        (other, r"\d+ tensors differ, e.g. size mismatch for .*"),
        (donor | {"features.extra": torch.zeros(3)}, "1 tensors differ, e.g. unknown tensor features.extra"),
        (donor | {"features.conv0.weight": torch.zeros(64, 3, 3, 3)}, r"1 tensors differ, e.g. size mismatch for f.*"),
    ):
        wanted = rf"{path}: these weights are not for densenet121 \({problem}\); give weights of densenet121"
        assert re.fullmatch(wanted, _refusal(network, recipe, _saved(tensors, path)))


def test_missing_tensors_are_refused_unless_declared(
    network: nn.Module, recipe: Recipe, donor: Tensors, tmp_path: Path
) -> None:
    gap = [name for name in donor if name.startswith("features.denseblock4.denselayer16.conv2")]
    assert gap == ["features.denseblock4.denselayer16.conv2.weight"]
    holey = _saved({name: tensor for name, tensor in donor.items() if name not in gap}, tmp_path / "holey.safetensors")
    assert _refusal(network, recipe, holey) == (
        f"{holey.file}: lacks 1 tensors of densenet121, e.g. {gap[0]}; give a complete file, "
        "or declare the gap with --pretrained_may_miss PATTERN"
    )
    elsewhere = replace(holey, may_miss=("features.denseblock3.*",))
    assert "lacks 1 tensors" in _refusal(network, recipe, elsewhere), "another gap was declared"
    random = network.get_parameter(gap[0]).clone()
    load_start_weights(network, recipe, replace(holey, may_miss=("features.denseblock4.denselayer16.*",)))
    assert torch.equal(network.get_parameter(gap[0]), random), "what is missing stays random"
    assert torch.equal(network.get_parameter("features.conv0.weight"), donor["features.conv0.weight"])


def test_pickled_weights_are_refused_unopened(network: nn.Module, recipe: Recipe, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    for suffix in (".bin", ".pth", ".pt", ".ckpt", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        torch.save({"features.conv0.weight": Trap()}, path)
        message = _refusal(network, recipe, StartWeights(path))
        assert message.startswith(f"{path}: not a whole safetensors file (")
        assert message.endswith("); download or copy it again; pickled weights are never read, since they can run code")
    assert not (tmp_path / "sprung").exists()


def test_a_network_goes_on_from_another_with_or_without_its_outputs(recipe: Recipe, network: nn.Module) -> None:
    torch.manual_seed(4)
    donor = build_network(recipe, 3)
    new_head = [p.clone() for p in classifier_parameters(network)]
    copy_weights(network, donor, None, source="donor")
    body = _backbone(donor)
    assert all(torch.equal(tensor, body[name]) for name, tensor in _backbone(network).items())
    assert all(torch.equal(a, b) for a, b in zip(new_head, classifier_parameters(network), strict=True))
    copy_weights(network, donor, (2, 0), source="donor")
    for ours, theirs in zip(classifier_parameters(network), classifier_parameters(donor), strict=True):
        assert torch.equal(ours, theirs[[2, 0]])


def test_a_network_does_not_go_on_from_one_built_otherwise(recipe: Recipe, network: nn.Module) -> None:
    for other in (get_recipe("densenet201"), get_recipe("densenet169_block2")):
        with pytest.raises(LeukoscopeError) as refused:
            copy_weights(network, build_network(other, 2), (0, 1), source="x/y")
        assert str(refused.value).startswith("x/y: is not the recipe's network (")
        assert str(refused.value).endswith("); give the recipe and --override of its training")


def test_from_scratch_changes_nothing_and_asks_no_network(network: nn.Module, recipe: Recipe) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    # A Hub id that cannot be had: asking for it would raise.
    nowhere = replace(recipe, base_model="nobody/no-such-weights")
    assert load_start_weights(network, nowhere, StartWeights(from_scratch=True)) == FROM_SCRATCH
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_an_unreachable_hub_ends_in_one_clear_message(
    network: nn.Module, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(base_model: str, reason: str) -> str:
        fix = "check the network, give --pretrained_weights FILE.safetensors, or train with --from_scratch"
        return rf"{base_model}: its weights cannot be fetched from the Hub \({reason}\); {fix}"

    for base_model, reason in (
        ("nobody/no-such-weights", "HF_HUB_OFFLINE is set"),
        ("no such id", "Repo id must .*"),
        ("one/two/three", "Repo id must .*"),
    ):
        message = _refusal(network, replace(recipe, base_model=base_model), StartWeights())
        assert re.fullmatch(said(base_model, reason), message)

    def hang_up(*_: object, **__: object) -> None:
        raise HTTPError("Server disconnected.")

    monkeypatch.setattr("leukoscope.models.build.hf_hub_download", hang_up)
    assert re.fullmatch(said(recipe.base_model, "Server disconnected"), _refusal(network, recipe, StartWeights()))


@pytest.mark.parametrize("name", ["efficientnet_b3", "densenet169_block2"])
def test_a_new_head_starts_undecided(name: str) -> None:
    network = build_network(get_recipe(name), 2)
    weight = next(p for p in classifier_parameters(network) if p.ndim > 1)
    bound = weight.shape[1] ** -0.5
    assert 0.5 * bound < weight.abs().max() <= bound * 1.001


def test_inceptions_auxiliary_tensors_are_left_out_of_a_published_file(tmp_path: Path) -> None:
    recipe = timm_recipe("inception_v3", "--recipe")
    network = build_network(recipe, 2)
    published = {k: torch.full_like(v, 0.5) for k, v in network.state_dict().items() if k.split(".")[0] != "fc"}
    published |= {"AuxLogits.conv0.conv.weight": torch.zeros(128, 768, 1, 1), "AuxLogits.fc.bias": torch.zeros(1000)}
    load_start_weights(network, recipe, _saved(published, tmp_path / "inception_v3.safetensors"))
    assert torch.all(network.get_parameter("Conv2d_1a_3x3.conv.weight") == 0.5)


@pytest.mark.parametrize("pooled_norm", [True, False])
def test_a_densenet_that_ends_early_takes_the_weights_of_the_whole_one(pooled_norm: bool, tmp_path: Path) -> None:
    whole = timm.create_model("densenet169")
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    recipe = replace(get_recipe("densenet169_block2"), pooled_norm=pooled_norm)
    network = build_network(recipe, 2)
    head = [p.clone() for p in head_parameters(network)]
    load_start_weights(network, recipe, StartWeights(file=tmp_path / "whole.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(head, head_parameters(network), strict=True))
    ours, theirs = backbone_state(network), whole.state_dict()
    blocks = [name for name in ours if "block" in name and "num_batches" not in name]
    assert len(blocks) > 100 and all(torch.equal(ours[name], theirs[name]) for name in blocks)


# Any model of timm


def test_a_model_without_weights_on_the_hub_starts_from_a_file_or_from_scratch() -> None:
    recipe, network = timm_recipe("test_resnet", "--model_name_or_path"), nn.Identity()
    unpublished = replace(recipe, base_model="")
    assert _refusal(network, unpublished, StartWeights()) == (
        f"{recipe.name}: the Hub has no weights of it; give --pretrained_weights FILE.safetensors, or train with "
        "--from_scratch"
    )
    assert load_start_weights(network, unpublished, StartWeights(from_scratch=True)) == FROM_SCRATCH
    assert timm_recipe("legacy_seresnet18", "--model_name_or_path").base_model == ""


@pytest.mark.parametrize("name", ["convnext_atto", "poolformer_s12"])
def test_weights_that_timm_cannot_read_as_a_models_are_refused(name: str, tmp_path: Path) -> None:
    recipe = timm_recipe(name, "--model_name_or_path")
    other = _saved(dict(timm.create_model("test_vit").state_dict()), tmp_path / "vit.safetensors")
    message = _refusal(timm.create_model(name, num_classes=2), recipe, other)
    assert message.startswith(f"{other.file}: these weights are not for {name} (")


def test_position_embeddings_are_resampled_to_another_picture_size(tmp_path: Path) -> None:
    recipe = replace(timm_recipe("test_vit", "--model_name_or_path"), image_size=64)
    donor = timm.create_model("test_vit", num_classes=7)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    network = build_network(recipe, 2)
    load_start_weights(network, recipe, StartWeights(file=tmp_path / "donor.safetensors"))
    assert donor.get_parameter("pos_embed").shape[1] > network.get_parameter("pos_embed").shape[1] == 1 + 4 * 4
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(network.get_parameter(name), donor.get_parameter(name))
    assert torch.equal(network.get_parameter("pos_embed")[:, 0], donor.get_parameter("pos_embed")[:, 0])


@pytest.mark.parametrize(("name", "size", "said"), [
    ("test_vit", 65, "its patches are 16 px wide: the size must be a multiple of that"),
    ("swin_tiny_patch4_window7_224", 3, "its patches are 4 px wide"),
    ("without a last layer", 32, "it has no last layer that gives classes"),
])  # fmt: skip
def test_a_size_that_a_model_of_timm_cannot_take_is_named(name: str, size: int, said: str) -> None:
    def create(architecture: str, **arguments: Any) -> Any:
        network: Any = timm.create_model(architecture, **arguments)
        network.pretrained_cfg["classifier"] = None
        return network

    no_layer = name == "without a last layer"
    recipe = replace(timm_recipe("test_vit" if no_layer else name, "--model_name_or_path"), image_size=size)
    with pytest.raises(LeukoscopeError, match=rf"cannot be built for pictures of {size} px \({said}"):
        build_network(recipe, 2, create if no_layer else None)


# Which parameters are a network's last layer, its head and its backbone


@pytest.mark.parametrize(
    ("name", "head", "tensors"), [("timm/test_vit", "head", 2), ("densenet169_block2", "classifier", 4)]
)
def test_a_frozen_backbone_is_all_but_the_head(name: str, head: str, tensors: int) -> None:
    network = build_network(replace(get_recipe(name), image_size=32), 2).train()
    freeze(network, ("backbone",))
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert len(trained) == tensors and all(name.startswith(f"{head}.") for name in trained)
    assert {name.split(".")[0] for name, module in network.named_modules() if module.training} == {"", head}
    assert backbone_state(network).keys() == {k for k in network.state_dict() if not k.startswith(f"{head}.")}


def test_named_modules_are_frozen_alone_with_their_statistics() -> None:
    network: Any = timm.create_model("test_resnet", num_classes=2).train()
    freeze(network, ("bn1",))
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["bn1.weight", "bn1.bias"]
    assert [name for name, module in network.named_modules() if not module.training] == ["bn1"]


def test_a_distilled_network_has_two_last_layers() -> None:
    with torch.device("meta"):
        network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    assert classifier_names(network) == ["head", "head_dist"]
    assert len(head_parameters(network)) == len(classifier_parameters(network)) == 4


# A DenseNet trained with BatchNorm after pooling is released as a timm DenseNet with the same probabilities

BLOCKS: dict[str, Any] = {"block_config": [6, 12]}


def network_of(classes: int = 3) -> Any:
    torch.manual_seed(0)
    network: Any = pooled_norm_densenet("densenet121", classes, **BLOCKS).eval().requires_grad_(False)
    norm = network.classifier.norm
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.normal_(), norm.bias.normal_()
    network.classifier.last.weight.normal_(std=0.1)
    network.classifier.last.bias.normal_()
    return network


def rewritten(network: nn.Module, pixels: torch.Tensor) -> Any:
    plain = timm.create_model("densenet121", num_classes=network.num_classes, **BLOCKS)
    return rewrite_for_timm(network, plain, pixels)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, 64, 64)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_plain_network_has_the_same_probabilities(pixels: torch.Tensor, classes: int) -> None:
    network = network_of(classes)
    plain = rewritten(network, pixels)
    other = torch.randn(3, 3, 96, 96)
    for given in (pixels, other):
        assert torch.allclose(plain(given).softmax(1), network(given).softmax(1), atol=1e-6)


def test_nothing_is_clipped_and_the_average_place_activates_no_class(pixels: torch.Tensor) -> None:
    plain = rewritten(network_of(), pixels)
    features = plain.forward_features(pixels)
    assert float(features.min()) > 0
    maps = torch.einsum("kc,bchw->bkhw", plain.classifier.weight, features)
    assert maps.mean(dim=(0, 2, 3)).abs().max() < 1e-3 * maps.abs().max()


def test_only_a_densenet_can_be_trained_so() -> None:
    recipe = with_overrides(get_recipe("efficientnet_b3"), ["pooled_norm=true", "drop_path_rate=0"])
    with pytest.raises(LeukoscopeError, match=r"cannot be built .*leave out what --override changes"):
        build_network(recipe, 2)


def test_a_network_that_is_not_the_same_is_reported(pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leukoscope.models.build._TOLERANCE", -1.0)
    with pytest.raises(LeukoscopeError, match="has logits that differ by .*; report this$"):
        rewritten(network_of(), pixels)
