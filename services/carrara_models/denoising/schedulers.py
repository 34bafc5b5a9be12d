"""Samplers by name: diffusers' schedulers, made from the checkpoint's own scheduler config.

| name | class | what is set beyond the checkpoint's config |
|---|---|---|
| ddpm, ddim | DDPMScheduler, DDIMScheduler | latents have no range to clip to |
| pndm | PNDMScheduler | the four Runge-Kutta warm-up rounds are skipped, as Stable Diffusion does |
| lms, euler, heun | LMS-, Euler-, HeunDiscreteScheduler | the plain spacing of sigmas |
| euler-ancestral | EulerAncestralDiscreteScheduler | - |
| dpm++2m | DPMSolverMultistepScheduler | DPM-Solver++, second order, midpoint; plain sigmas |
| dpm++2m-karras | DPMSolverMultistepScheduler | the same, with the sigmas of Karras et al. 2022 |
| unipc | UniPCMultistepScheduler | the plain spacing of sigmas |

The name of the checkpoint's own class always means the checkpoint's own config, nothing added; of
a class without a name here, the class's name is its name. Flow matching has samplers of its own:

| flow-euler, flow-heun | FlowMatchEuler-, FlowMatchHeunDiscreteScheduler | - |
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict

from carrara_models.checkpoints import Checkpoint
from carrara_models.denoising.recent import Recent
from carrara_models.errors import BadFieldError, CheckpointError

Overrides = Mapping[str, Any]

UNCLIPPED: Overrides = {"clip_sample": False}
PLAIN_SIGMAS: Overrides = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
KARRAS_SIGMAS: Overrides = {**PLAIN_SIGMAS, "use_karras_sigmas": True}
DPMPP_2M: Overrides = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
}

SCHEDULERS: Mapping[str, tuple[str, Overrides]] = {
    "ddpm": ("DDPMScheduler", UNCLIPPED),
    "ddim": ("DDIMScheduler", UNCLIPPED),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", PLAIN_SIGMAS),
    "euler": ("EulerDiscreteScheduler", PLAIN_SIGMAS),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", PLAIN_SIGMAS),
    "dpm++2m": ("DPMSolverMultistepScheduler", {**DPMPP_2M, **PLAIN_SIGMAS}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {**DPMPP_2M, **KARRAS_SIGMAS}),
    "unipc": ("UniPCMultistepScheduler", PLAIN_SIGMAS),
}


FLOW_SCHEDULERS: Mapping[str, tuple[str, Overrides]] = {
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
}

_ALL = {**SCHEDULERS, **FLOW_SCHEDULERS}

# How many schedulers are kept to be copied, by their settings.
MAX_PROTOTYPES = 64

# unCLIP's scheduler spreads its steps from the last timestep to the first, and so needs both.
UNCLIP_MIN_STEPS = 2


@dataclass(frozen=True)
class Samplers:
    """Makes schedulers for jobs; each job needs one of its own, as they hold state.

    Attributes:
        own: The checkpoint's scheduler; only its class and config are used.
        default: The name that stands for None.
        others: The names that may be chosen beside it.
        in_pixels: Whether x_t are pixels, whose range clips them as the checkpoint's config says.
    """

    own: Any
    default: str
    others: tuple[str, ...] = tuple(SCHEDULERS)
    in_pixels: bool = False
    _prototypes: Recent[Any] = field(
        init=False, default_factory=lambda: Recent(MAX_PROTOTYPES), repr=False, compare=False
    )

    @property
    def own_name(self) -> str:
        """The name of the checkpoint's own scheduler; its class's where it is none of the ten."""
        return _own_name(self.own)

    @property
    def names(self) -> tuple[str, ...]:
        """All known names, the default first."""
        return tuple(dict.fromkeys((self.default, self.own_name, *self.others)))

    def new(
        self,
        name: str | None,
        *,
        num_inference_steps: int,
        device: torch.device,
        **timestep_options: Any,
    ) -> Any:
        """Makes a scheduler with its timesteps set.

        Args:
            name: None for the default.
            timestep_options: What else the pipeline gives `set_timesteps`, such as `mu`.

        Raises:
            BadFieldError: The name is unknown, or this scheduler cannot take so many steps.
        """
        name = self.default if name is None else name
        # diffusers reads a signature for each field of a config, which takes milliseconds.
        options = ((option, _hashable(timestep_options[option])) for option in timestep_options)
        key = (name, num_inference_steps, device, *options)
        prototype = self._prototypes.get(
            key, lambda: self._made(name, num_inference_steps, device, timestep_options)
        )
        return _copied(prototype)

    def _made(
        self,
        name: str,
        num_inference_steps: int,
        device: torch.device,
        timestep_options: Mapping[str, Any],
    ) -> Any:
        if name == self.own_name:
            scheduler = type(self.own).from_config(self.own.config)
        elif name in self.others:
            class_name, overrides = _ALL[name]
            if self.in_pixels and overrides == UNCLIPPED:
                overrides = {}
            scheduler = getattr(diffusers, class_name).from_config(self.own.config, **overrides)
        else:
            raise BadFieldError("scheduler", name, f"one of {', '.join(self.names)}")
        _set_timesteps(scheduler, name, num_inference_steps, device, timestep_options)
        return scheduler


def load_scheduler(checkpoint: Checkpoint, component: str = "scheduler") -> Any:
    """Reads a scheduler's config.

    Raises:
        CheckpointError: The config is broken.
    """
    class_name = checkpoint.index[component]
    folder = checkpoint.path / component
    try:
        return getattr(diffusers, class_name).from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise CheckpointError(f"{folder} cannot be loaded as {class_name}: {error}") from error


def check_variance(
    scheduler: Any, checkpoint: Checkpoint, component: str, *, learned: bool
) -> None:
    """Refuses unCLIP's scheduler where its network does not predict the variance that it wants.

    Args:
        learned: Whether the network predicts a variance.

    Raises:
        CheckpointError: What the scheduler's config says.
    """
    variance_type = scheduler.config.variance_type
    if variance_type != ("learned_range" if learned else "fixed_small_log"):
        raise CheckpointError(
            f"{checkpoint.path / component}: the variance_type {variance_type!r} does not fit its "
            f"network, which predicts {'the variance too' if learned else 'no variance'}."
        )


def load_samplers(
    checkpoint: Checkpoint,
    component: str = "scheduler",
    *,
    others: tuple[str, ...] = tuple(SCHEDULERS),
    mends_early_configs: bool = False,
    in_pixels: bool = False,
) -> Samplers:
    """Reads the config of the checkpoint's scheduler, from which all are made.

    Args:
        others: The names that may be chosen beside the checkpoint's own.
        mends_early_configs: Whether the pipeline mends configs as `StableDiffusionPipeline` does.
        in_pixels: As of `Samplers`.

    Raises:
        CheckpointError: The config is broken, or `carrara.json` names an unknown scheduler.
    """
    own = load_scheduler(checkpoint, component)
    if mends_early_configs:
        own._internal_dict = _as_the_pipeline_mends_it(own.config)
    default = checkpoint.defaults.scheduler or _own_name(own)
    if default not in (*others, _own_name(own)):
        known = ", ".join(others)
        raise CheckpointError(
            f"{checkpoint.path}: carrara.json names the scheduler {default!r}; known: {known}."
        )
    return Samplers(own=own, default=default, others=others, in_pixels=in_pixels)


def takes_variance(scheduler: Any) -> bool:
    """Whether `scheduler.step` wants the variance that the network predicts beside the noise.

    diffusers' pipelines ask the config alone, which keeps the entry for classes that know no
    variance, such as DDIM's; their step would then fail over the channels.
    """
    return _knows_variance(type(scheduler)) and scheduler.config.variance_type in (
        "learned",
        "learned_range",
    )


@cache
def _knows_variance(scheduler: type) -> bool:
    return "variance_type" in inspect.signature(scheduler.__init__).parameters  # type: ignore[misc]


def _as_the_pipeline_mends_it(config: Mapping[str, Any]) -> FrozenDict:
    """Corrects what `StableDiffusionPipeline` corrects of early checkpoints."""
    mended = dict(config)
    if mended.get("steps_offset", 1) != 1:
        mended["steps_offset"] = 1
    if mended.get("clip_sample", False) is True:
        mended["clip_sample"] = False
    return FrozenDict(mended)


def _hashable(value: Any) -> Any:
    return tuple(value.tolist()) if isinstance(value, np.ndarray | torch.Tensor) else value


def _copied(scheduler: Any) -> Any:
    """One that steps for itself: schedulers write into their lists, and into no tensor."""
    twin = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(twin, name, list(value))
    return twin


def _own_name(own: Any) -> str:
    class_name = type(own).__name__
    names = [name for name, (known, _) in _ALL.items() if known == class_name]
    if class_name == "DPMSolverMultistepScheduler":
        return "dpm++2m-karras" if own.config.use_karras_sigmas else "dpm++2m"
    return names[0] if names else class_name


def _set_timesteps(
    scheduler: Any,
    name: str,
    num_inference_steps: int,
    device: torch.device,
    options: Mapping[str, Any],
) -> None:
    """Sets the timesteps and looks at them, as diffusers would only fail in the middle of a job."""
    trained = scheduler.config.num_train_timesteps
    allowed = f"fewer steps for the scheduler {name}, which was trained on {trained} timesteps"
    if name == "UnCLIPScheduler" and not UNCLIP_MIN_STEPS <= num_inference_steps <= trained:
        allowed = f"{UNCLIP_MIN_STEPS} to {trained} for the scheduler {name}"
        raise BadFieldError("num_inference_steps", num_inference_steps, allowed)
    try:
        if "sigmas" in options:  # their number is the number of steps
            scheduler.set_timesteps(device=device, **options)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device, **options)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise BadFieldError("num_inference_steps", num_inference_steps, allowed) from error
    timesteps = scheduler.timesteps
    # Flow matching looks nothing up by timestep, and begins at the last of them: sigma 1.
    flows = "FlowMatch" in type(scheduler).__name__ or scheduler.config.get("use_flow_sigmas")
    last = trained if flows else trained - 1
    outside = len(timesteps) == 0 or timesteps.max() > last or timesteps.min() < 0
    # Multistep solvers divide by the distance between neighbours in log-SNR.
    repeats = hasattr(scheduler, "lambda_t") and bool((scheduler.sigmas.diff() == 0).any())
    if outside or repeats:
        raise BadFieldError("num_inference_steps", num_inference_steps, allowed)
