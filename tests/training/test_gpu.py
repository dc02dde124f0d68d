"""What only a GPU can break; each test runs on the CPU too, so that none is first run on a card.

`pytest -m gpu` runs them on a card, in under two minutes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from leukoscope import LeukoscopeError
from leukoscope.data.augmentation import Augmenter
from leukoscope.data.pixel_cache import FramedCells
from leukoscope.inference.predictor import Predictor
from leukoscope.models.recipes import UNCHANGED, Recipe
from leukoscope.training.checkpoint import Checkpoints
from leukoscope.training.data import FeatureInputs, make_inputs
from leukoscope.training.run_folder import RunFolder
from leukoscope.training.trainer import Trainer
from trainers import MakeTrainer

RECIPE = Recipe(
    name="small",
    architecture="test_resnet",
    base_model="",
    image_size=32,
    num_train_epochs=2,
    train_batch_size=4,
    drop_rate=0.1,
    ema_decay=0.9,
)
FROZEN = replace(RECIPE, frozen=("backbone",), augmentation=UNCHANGED, drop_rate=0.0, ema_decay=0.0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture
def trainer_on(device: torch.device, trainer_for: MakeTrainer) -> MakeTrainer:
    def make(recipe: Recipe = RECIPE, **flags: Any) -> Trainer:
        trainer = trainer_for(recipe, **{"deterministic": True} | flags)
        assert trainer.accelerator.device.type == device.type
        return trainer

    return make


# Waiting


class HostReads(TorchFunctionMode):
    """Counts where the host reads floating-point values, for which a GPU would have to finish its work.

    What is computed on the CPU in any case, such as numbers of rows, is of whole numbers.
    """

    NAMES = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES and args[0].dtype in (torch.float32, torch.float16, torch.bfloat16, torch.bool):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", [RECIPE, FROZEN], ids=["pixels", "features"])
def test_a_step_reads_nothing_and_an_epoch_five_values(
    trainer_on: MakeTrainer, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    trainer = trainer_on(replace(recipe, num_train_epochs=1))
    after_step, for_training, of_steps = trainer._after_step, trainer.inputs.for_training, []
    with HostReads() as reads:

        def counted() -> None:
            after_step()
            of_steps.append(sum(reads.found.values()))

        def augmented(*batch: Any) -> torch.Tensor:
            before = reads.found.copy()
            inputs = for_training(*batch)
            reads.found = before  # what is drawn for a batch lies on the CPU
            return inputs

        monkeypatch.setattr(trainer, "_after_step", counted)
        monkeypatch.setattr(trainer.inputs, "for_training", augmented)
        row = trainer._train_epoch()
        assert len(of_steps) == trainer.steps_per_epoch > 3 and row["train_loss"] > 0
        assert of_steps == [0] * len(of_steps)
        trainer._validate()
    assert sum(reads.found.values()) <= 5


@pytest.mark.gpu
def test_a_step_never_waits_for_the_card(
    trainer_on: MakeTrainer, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type != "cuda":
        pytest.skip("a CPU has nothing to wait for")
    trainer = trainer_on(replace(RECIPE, num_train_epochs=1), deterministic=False)
    step, batches = trainer._step, []

    def strict(*batch: torch.Tensor) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            batches.append(step(*batch))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return batches[-1]

    monkeypatch.setattr(trainer, "_step", strict)
    trainer._train_epoch()
    assert len(batches) > 3


# Numbers


def test_the_augmentation_is_that_of_the_cpu(device: torch.device, cells: FramedCells) -> None:
    pixels = torch.from_numpy(cells.pixels[:8].transpose(0, 3, 1, 2).copy())
    augment = Augmenter(replace(RECIPE.augmentation, rotation=180.0), "black", 0)
    here = augment(pixels.to(device), list(range(8)), 1).cpu()
    assert (here - augment(pixels, list(range(8)), 1)).abs().max() < 0.05


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_every_precision_learns_and_keeps_its_weights_in_float32(
    trainer_on: MakeTrainer, device: torch.device, precision: str
) -> None:
    if precision == "fp16" and device.type == "cpu":
        with pytest.raises(LeukoscopeError, match="fp16: needs a GPU"):
            trainer_on(mixed_precision=precision)
        return
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this card has no bf16 units")
    plain = replace(FROZEN, frozen=(), num_train_epochs=8, schedule="constant", learning_rate=0.003)
    trainer = trainer_on(plain, mixed_precision=precision)
    rows = list(trainer.fit())
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert {weight.dtype for weight in trainer.network.parameters()} == {torch.float32}


@pytest.mark.gpu
def test_a_step_that_overflows_in_fp16_is_skipped(trainer_on: MakeTrainer, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("fp16 needs a GPU")
    trainer = trainer_on(mixed_precision="fp16")
    trainer.accelerator.scaler._init_scale = 2.0**40
    before = {name: weight.clone() for name, weight in trainer.network.named_parameters()}
    batch = next(iter(trainer.loader))
    inputs = trainer.inputs.for_training(batch[0].to(device), batch[2], 0)
    with trainer.accelerator.accumulate(trainer.model):
        trainer._step(inputs, batch[1].to(device))
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.network.named_parameters())


def test_a_resumed_run_ends_with_the_same_weights(trainer_on: MakeTrainer, tmp_path: Path) -> None:
    whole = trainer_on()
    list(whole.fit())
    first = trainer_on(checkpoints=Checkpoints(RunFolder(tmp_path)))
    for _ in first.fit():
        break
    torch.rand(5, device=first.accelerator.device)
    checkpoints = Checkpoints(RunFolder(tmp_path))
    checkpoints.resume()
    resumed = trainer_on(checkpoints=checkpoints)
    list(resumed.fit())
    weights = zip(whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_validation_is_in_float32_whatever_the_training(
    device: torch.device, trainer_on: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hasattr(torch.backends, "fp32_precision"):
        monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    # By default a processor without bf16 units, and its kind are many, would train in float32.
    precision = "bf16" if device.type == "cpu" else None
    trainer = trainer_on(replace(RECIPE, num_train_epochs=1), mixed_precision=precision)
    list(trainer.fit())
    found = trainer.predict(trainer.split.test)
    rows = [trainer.cells.row_of[cell] for cell in found.cell_ids]
    pixels = torch.from_numpy(trainer.cells.pixels[rows].transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        logits = trainer.network.cpu().eval()(trainer.inputs.for_prediction(pixels))
    assert np.abs(logits.softmax(dim=1).numpy() - found.probabilities).max() < 1e-4


def test_features_are_those_of_the_cpu(trainer_on: MakeTrainer) -> None:
    trainer = trainer_on(replace(FROZEN, num_train_epochs=4))
    assert isinstance(trainer.inputs, FeatureInputs)
    pixels = torch.from_numpy(trainer.cells.pixels[:4].transpose(0, 3, 1, 2).copy())
    network = trainer.network.cpu().eval()
    with torch.inference_mode():
        mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (RECIPE.mean, RECIPE.std))
        features = network.forward_head(network.forward_features((pixels / 255 - mean) / std), pre_logits=True)  # type: ignore[operator]
    assert np.abs(trainer.inputs.items(np.arange(4))[:, 0].numpy() - features.numpy()).max() < 1e-3


def test_predictions_and_maps_are_those_of_the_cpu(device: torch.device, tiny_release: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    here, there = (
        Predictor.from_pretrained(tiny_release, backend="torch", device=one)(picture, explain=True)
        for one in (device.type, "cpu")
    )
    for label, probability in there.probabilities.items():
        assert here.probabilities[label] == pytest.approx(probability, abs=1e-4)
        assert here.heatmaps is not None and there.heatmaps is not None
        assert np.allclose(here.heatmaps[label].evidence, there.heatmaps[label].evidence, atol=1e-3)


# Limits


@pytest.mark.parametrize("where", ["training", "validation", "features"])
def test_memory_that_runs_out_names_flags(trainer_on: MakeTrainer, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    if where == "features":

        def starved(accelerator: Any, network: Any, *args: Any, **more: Any) -> Any:
            network.forward_features = full
            return make_inputs(accelerator, network, *args, **more)

        monkeypatch.setattr("leukoscope.training.trainer.make_inputs", starved)
        with pytest.raises(LeukoscopeError) as refused:
            trainer_on(replace(FROZEN, num_train_epochs=4))
    else:
        trainer = trainer_on()
        owner, name = (trainer, "_step") if where == "training" else (trainer.inputs, "for_prediction")
        monkeypatch.setattr(owner, name, full)
        with pytest.raises(LeukoscopeError) as refused:
            list(trainer.fit())
    assert ": out of memory with " in str(refused.value) and "; give a smaller --" in str(refused.value)


@pytest.mark.gpu
def test_the_default_precision_is_one_that_the_card_has(trainer_on: MakeTrainer, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("the recipe chooses on a CPU")
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert trainer_on(mixed_precision=None).accelerator.mixed_precision == ("bf16" if has_bf16 else "fp16")
