"""The table of model families: which class of pipeline is served by which parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from carrara_models.checkpoints import Checkpoint

Role = Literal["text-encoder", "generator", "decoder"]


@dataclass(frozen=True)
class PartPlan:
    """How one part of a family is loaded.

    Attributes:
        components: Sub-folders that it needs, with the classes that `model_index.json` may name.
        module: Where its `load(checkpoint, *, device, dtype)` lives. A name, so that reading the
            table imports no torch.
    """

    components: Mapping[str, tuple[str, ...]]
    module: str


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    name: str
    parts: Mapping[Role, PartPlan]

    @property
    def components(self) -> dict[str, tuple[str, ...]]:
        """The components of all parts, with the classes that they may have."""
        return {
            name: classes
            for plan in self.parts.values()
            for name, classes in plan.components.items()
        }


# diffusers' KarrasDiffusionSchedulers: those that share one way of being called.
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(
        name="stable-diffusion",
        parts={
            "text-encoder": PartPlan(
                components={
                    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
                    "text_encoder": ("CLIPTextModel",),
                },
                module="carrara_models.text_encoders.clip",
            ),
            "generator": PartPlan(
                components={"unet": ("UNet2DConditionModel",), "scheduler": SCHEDULERS},
                module="carrara_models.generators.latent_unet",
            ),
            "decoder": PartPlan(
                components={"vae": ("AutoencoderKL",)},
                module="carrara_models.decoders.autoencoder_kl",
            ),
        },
    ),
}


def load_part(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Loads the part that the checkpoint was opened for, and nothing else.

    Returns:
        A `TextEncoder`, `Generator` or `Decoder` of `carrara_models.parts`, by the role.

    Raises:
        CheckpointError: A file is missing, broken or holds what this family cannot run.
    """
    plan = checkpoint.family.parts[checkpoint.role]
    return import_module(plan.module).load(checkpoint, device=device, dtype=dtype)
