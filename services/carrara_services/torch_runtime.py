"""Loads a part, and sets what its numbers depend on: device, data type, threads, versions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from carrara_models.acceleration import in_openvino
from carrara_models.acceleration.fast import best_precision, engine_of, made_fast
from carrara_models.checkpoints import Checkpoint
from carrara_models.families import load_part
from carrara_services.compiled_cache import compiled_cache
from carrara_services.denoising.memory_probe import CudaMemory
from carrara_services.serving.describe import Runtime
from carrara_services.serving.settings import Settings, SettingsError

COMPILERS = ("g++", "clang++")  # what torch.compile builds its kernels with
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def device_of(settings: Settings) -> torch.device:
    """Finds the device that the settings name.

    Raises:
        SettingsError: There is no such device.
    """
    device = torch.device(settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"--device {settings.device}: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def is_exact(settings: Settings, *, device: torch.device) -> bool:
    """Whether numerics are exact: as told, else on a CPU.

    Raises:
        SettingsError: They cannot be.
    """
    on_cpu = device.type == "cpu"
    exact = settings.numerics == "exact" or (settings.numerics is None and on_cpu)
    if exact and not on_cpu:
        raise SettingsError(f"--numerics exact: only on a CPU, not with --device {settings.device}")
    if exact and settings.engine != "torch":
        raise SettingsError(f"--engine {settings.engine}: only with --numerics fast")
    if settings.engine == "compile" and on_cpu and not any(map(shutil.which, COMPILERS)):
        wanted = " or ".join(COMPILERS)
        raise SettingsError(f"--engine compile: on a CPU it needs a C++ compiler, {wanted}")
    if settings.engine == "openvino" and not on_cpu:
        raise SettingsError(
            f"--engine openvino: only on a CPU, not with --device {settings.device}"
        )
    if settings.engine == "openvino" and not in_openvino.is_installed():
        raise SettingsError("--engine openvino: pip install 'carrara[openvino]'")
    return exact


def dtype_of(settings: Settings, *, device: torch.device, exact: bool, role: str) -> torch.dtype:
    """Gives the data type of the networks.

    As told; else float32 where numerics are exact, and of text encoders on a CPU, whose work is
    small; else what the device computes fastest in.
    """
    if settings.dtype is not None:
        return DTYPES[settings.dtype]
    if exact or (role == "text-encoder" and device.type == "cpu"):
        return torch.float32
    return best_precision(device)


def memory_to_fit(settings: Settings, *, device: torch.device) -> CudaMemory | None:
    """What a batch of a denoiser has to fit into, where nobody says how many rows it may have."""
    if device.type == "cpu" or settings.max_batch_rows is not None:
        return None
    return CudaMemory(device)


def max_batch(settings: Settings, *, device: torch.device, on_gpu: int) -> int:
    """How many pictures or texts are done together where numerics are fast.

    As told; else one on a CPU, which one keeps busy: others would only wait for the last.
    """
    return settings.max_batch_rows or (1 if device.type == "cpu" else on_gpu)


def use_threads(settings: Settings) -> None:
    """Sets how many threads torch computes with, where the settings say so."""
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)


def runtime_of(
    device: torch.device, *, dtype: torch.dtype, exact: bool = True, engine: str = "torch"
) -> Runtime:
    """Describes where and how a part on `device` computes, with networks of `dtype`."""
    device_memory = None
    if device.type == "cpu":
        name = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    else:
        name = torch.cuda.get_device_name(device)
        # Both read counters of torch's allocator, so that asking never waits for the device.
        device_memory = {
            "allocated": lambda: torch.cuda.memory_allocated(device),
            "reserved": lambda: torch.cuda.memory_reserved(device),
        }
    libraries = ["carrara", "torch", "diffusers", "transformers"]
    if engine == "openvino":
        libraries.append("openvino")
    return Runtime(
        exact=exact,
        engine=engine,
        precision=str(dtype).removeprefix("torch."),
        device=name,
        num_threads=torch.get_num_threads(),
        versions={library: metadata.version(library) for library in libraries},
        device_memory=device_memory,
    )


def load(checkpoint: Checkpoint, *, settings: Settings, role: str) -> tuple[Any, Runtime]:
    """Loads the part that the checkpoint was opened for.

    Returns:
        A part of `carrara_models.parts`, and how it computes.

    Raises:
        SettingsError: There is no such device, or it cannot do what the settings want.
        CheckpointError: The checkpoint cannot be used.
    """
    _quiet_libraries()
    device = device_of(settings)
    exact = is_exact(settings, device=device)
    use_threads(settings)
    dtype = dtype_of(settings, device=device, exact=exact, role=role)
    part = load_part(checkpoint, device=device, dtype=dtype)
    dtype = part.dtype  # an autoencoder may insist on its own
    engine = engine_of(part, settings.engine)
    if engine == "openvino" and dtype not in (able := in_openvino.precisions()):
        known = " or ".join(name for name, of in DTYPES.items() if of in able)
        raise SettingsError(f"--dtype: with --engine openvino this CPU computes in {known}")
    if not exact:
        cache = None if engine == "torch" else compiled_cache(settings.cache_dir)
        part = made_fast(part, engine=engine, tile_size=settings.tile_size, cache=cache)
    if settings.also_accepts:
        ports = (replace(port, also_accepts=settings.also_accepts) for port in part.consumes)
        part = replace(part, consumes=tuple(ports))
    return part, runtime_of(device, dtype=dtype, exact=exact, engine=engine)


def _quiet_libraries() -> None:
    """Sends what the model libraries say to this process's own logs, and lets them draw no bars."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_default_handler()
        library.enable_propagation()
        library.disable_progress_bar()
        library.set_verbosity_error()  # they warn of packages that no stage needs
