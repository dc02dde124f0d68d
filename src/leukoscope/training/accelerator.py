"""The device, the processes and the precision that a training runs on, as an `accelerate.Accelerator`."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, InitProcessGroupKwargs

from leukoscope import ConfigError
from leukoscope.files import first_line
from leukoscope.inference.runtime import forbid_tf32, must_use_cpu, usable_cores
from leukoscope.models.recipes import Recipe
from leukoscope.progress import note
from leukoscope.training.config import TrainingConfig

TRAINING_PRECISIONS = ("no", "fp16", "bf16")
# How torchrun, `accelerate launch` and three kinds of MPI tell a process how many they started.
_LAUNCHED_PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LAUNCHED_PRECISION = "ACCELERATE_MIXED_PRECISION"
# glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def cpu_has_bf16() -> bool:
    """Whether PyTorch convolves in bf16 on this processor; elsewhere it emulates bf16, far slower than float32."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(config: TrainingConfig, recipe: Recipe, on_gpu: bool) -> tuple[str, str]:
    """Choose the precision: that of the flag, of the launcher, or the default of this device, in this order.

    Returns:
        one of `TRAINING_PRECISIONS`, and what chose it.

    Raises:
        ConfigError: an unknown precision, or one that this device does not have.
    """
    # Convolutions in bf16 need a GPU of compute capability 8.0; older ones are slow in it or fail.
    if on_gpu:
        emulated = not torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        emulated = not cpu_has_bf16()
    # `accelerate launch` always sets it: to "no" where neither its flag nor its configuration names one.
    launched = os.environ.get(_LAUNCHED_PRECISION)
    name = config.run.mixed_precision or launched
    if not name:
        return _default_precision(recipe, on_gpu, emulated)
    flag = "--mixed_precision"
    if not config.run.mixed_precision:
        flag = "accelerate launch --mixed_precision"
    if name not in TRAINING_PRECISIONS:
        raise ConfigError(f"{flag} {name}: unknown; give one of {', '.join(TRAINING_PRECISIONS)}")
    if name == "fp16" and not on_gpu:
        raise ConfigError(f"{flag} fp16: needs a GPU, and this run has none; give bf16 or no")
    reason = flag.removesuffix(" --mixed_precision")
    if name == "bf16" and emulated:
        reason += ", slowly: this device has no bf16 units"
    return name, reason


def _default_precision(recipe: Recipe, on_gpu: bool, emulated: bool) -> tuple[str, str]:
    if on_gpu and emulated:
        return "fp16", "this GPU has no bf16 units"
    if on_gpu:
        return "bf16", "the default on a GPU"
    if emulated and recipe.cpu_precision == "bf16":
        return "no", "this processor has no bf16 units"
    return recipe.cpu_precision, "the recipe's default on a CPU"


def make_accelerator(config: TrainingConfig, recipe: Recipe) -> Accelerator:
    """Make the accelerator for CPU, GPU or several, and print its precision; its `project_dir` is the run folder.

    Raises:
        LeukoscopeError: as `choose_precision`; processes that a launcher started and that do not know of each other; or
            a GPU that this PyTorch cannot compute on.
    """
    on_gpu = torch.cuda.is_available() and not must_use_cpu()
    precision, reason = choose_precision(config, recipe, on_gpu)
    forbid_tf32()  # validation and prediction are to be a release's
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(config.run.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not config.run.deterministic  # batches of training all have one shape
    # One process may train several recipes in turn, each in its own precision.
    AcceleratorState._reset_state()
    if torch.distributed.is_available():
        # Imported after the connection is made, as DistributedDataParallel does, it would keep that open for good.
        from torch.distributed.nn import functional  # noqa: F401

    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=config.run.report_to,
        project_dir=config.output_dir,
        # Given here, it is not taken from the environment, which a checkpoint does not record.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.run.gradient_accumulation_steps),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.run.seed),
        # While the first process downloads, decodes or computes features, the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    _require_connected_processes(accelerator, config)
    note(f"{accelerator.num_processes} process(es) on {accelerator.device.type}")
    note(f"precision {precision}: {reason}")
    _require_working_device(accelerator)
    _use_all_cores(accelerator)
    return accelerator


def _require_connected_processes(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Raise `ConfigError` if a launcher started processes that do not find each other.

    Without a GPU, Accelerate ignores a launcher unless it is told to use the CPU: each process would train alone.
    """
    launched = max(int(os.environ.get(name) or 1) for name in _LAUNCHED_PROCESSES)
    if accelerator.num_processes < launched:
        raise ConfigError(
            f"{launched} processes were started and each would train alone into --output_dir {config.output_dir}: "
            "Accelerate found no GPU for them; set ACCELERATE_USE_CPU=true before the command (in a notebook "
            "os.environ['ACCELERATE_USE_CPU'] = 'true' before notebook_launcher), or start one process"
        )


def _require_working_device(accelerator: Accelerator) -> None:
    """Raise `ConfigError` for a GPU that is older than those this PyTorch was built for."""
    try:
        torch.ones(1, device=accelerator.device).add_(1)
    except RuntimeError as error:
        raise ConfigError(
            f"{accelerator.device}: PyTorch {torch.__version__} cannot compute on it ({first_line(error)}); install a "
            "build for this GPU, or set ACCELERATE_USE_CPU=true"
        ) from None


def _use_all_cores(accelerator: Accelerator) -> None:
    """Give a launched process on a CPU its share of the cores.

    `accelerate launch` without a configuration sets OMP_NUM_THREADS=1, which would leave all cores but one idle.
    """
    launched = bool(os.environ.get(_LAUNCHED_PRECISION))
    if launched and accelerator.device.type == "cpu" and torch.get_num_threads() == 1:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, usable_cores() // local_processes))


def close_connection() -> None:
    """Close the connection between the processes of a run, if there is one; nothing may be trained afterwards.

    A process that ends with it open is sometimes aborted: a thread of the connection frees a tensor when Python cannot.
    """
    gc.collect()  # a trainer refers to itself, and its network to the connection
    PartialState().destroy_process_group()


def keep_freed_memory() -> None:
    """Let glibc keep the memory that this process frees; does nothing without glibc.

    It returns every large block to the system at once. A training step on a CPU asks for the same blocks again, and the
    page faults that this costs take between a tenth and nearly half of its time.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never: large pictures take more than any limit it could be given
