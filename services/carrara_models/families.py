"""The table of model families: which class of pipeline is served by which parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

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
        optional: Components that a checkpoint may leave out.
        reads: Components of which it needs the `config.json` alone; a pruned folder has that too.
    """

    role: Role
    components: Mapping[str, tuple[str, ...]]
    module: str
    optional: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        parts: By the name of the stage that serves each, in the order of the image's way. The one
            that everybody means is called as its role is; a sibling of the same role has a name of
            its own ("prior", "super-res"), which is the prefix of its arguments too.
    """

    name: str
    parts: Mapping[str, PartPlan]

    @property
    def components(self) -> dict[str, tuple[str, ...]]:
        """The components of all parts, with the classes that they may have."""
        return {
            name: classes
            for plan in self.parts.values()
            for name, classes in plan.components.items()
        }


def argument_prefix(stage: str) -> str:
    """What the arguments of a stage begin with where they could be those of a sibling.

    "prior" gives "prior_"; stages that are called as their role is have no prefix.
    """
    return "" if stage in get_args(Role) else stage.replace("-", "_") + "_"


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

UNCLIP_SCHEDULERS = ("UnCLIPScheduler",)

CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")

VAE_DECODER = PartPlan(
    role="decoder",
    components={"vae": ("AutoencoderKL",)},
    module="carrara_models.decoders.autoencoder_kl",
)
LATENT_UNET = PartPlan(
    role="generator",
    components={"unet": ("UNet2DConditionModel",), "scheduler": SCHEDULERS},
    module="carrara_models.generators.latent_unet",
)

UNCONDITIONAL_UNET = PartPlan(
    role="generator",
    components={"unet": ("UNet2DModel",), "scheduler": ("DDPMScheduler", "DDIMScheduler")},
    module="carrara_models.generators.unconditional_unet",
)
CLIP_TEXT_ENCODER = PartPlan(
    role="text-encoder",
    components={"tokenizer": CLIP_TOKENIZERS, "text_encoder": ("CLIPTextModel",)},
    module="carrara_models.text_encoders.clip",
)
DEEPFLOYD_TEXT_ENCODER = PartPlan(
    role="text-encoder",
    components={"tokenizer": T5_TOKENIZERS, "text_encoder": ("T5EncoderModel",)},
    module="carrara_models.text_encoders.deepfloyd_t5",
)

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(
        name="stable-diffusion",
        parts={
            "text-encoder": CLIP_TEXT_ENCODER,
            "generator": LATENT_UNET,
            "decoder": VAE_DECODER,
        },
    ),
    "StableDiffusionXLPipeline": Family(
        name="stable-diffusion-xl",
        parts={
            "text-encoder": PartPlan(
                role="text-encoder",
                components={
                    "tokenizer": CLIP_TOKENIZERS,
                    "tokenizer_2": CLIP_TOKENIZERS,
                    "text_encoder": ("CLIPTextModel",),
                    "text_encoder_2": ("CLIPTextModelWithProjection",),
                },
                module="carrara_models.text_encoders.clip_pair",
            ),
            "generator": LATENT_UNET,
            "decoder": VAE_DECODER,
        },
    ),
    "StableDiffusion3Pipeline": Family(
        name="stable-diffusion-3",
        parts={
            "text-encoder": PartPlan(
                role="text-encoder",
                components={
                    "tokenizer": CLIP_TOKENIZERS,
                    "tokenizer_2": CLIP_TOKENIZERS,
                    "tokenizer_3": T5_TOKENIZERS,
                    "text_encoder": ("CLIPTextModelWithProjection",),
                    "text_encoder_2": ("CLIPTextModelWithProjection",),
                    "text_encoder_3": ("T5EncoderModel",),
                },
                module="carrara_models.text_encoders.clip_pair_t5",
                optional=frozenset({"tokenizer_3", "text_encoder_3"}),
                reads=frozenset({"transformer"}),
            ),
            "generator": PartPlan(
                role="generator",
                components={
                    "transformer": ("SD3Transformer2DModel",),
                    "scheduler": FLOW_SCHEDULERS,
                },
                module="carrara_models.generators.latent_transformer",
            ),
            "decoder": VAE_DECODER,
        },
    ),
    "IFPipeline": Family(
        name="deepfloyd-if",
        parts={
            "text-encoder": DEEPFLOYD_TEXT_ENCODER,
            "generator": PartPlan(
                role="generator",
                components={"unet": ("UNet2DConditionModel",), "scheduler": SCHEDULERS},
                module="carrara_models.generators.pixel_unet",
            ),
        },
    ),
    "IFSuperResolutionPipeline": Family(
        name="deepfloyd-if-super-resolution",
        parts={
            "text-encoder": DEEPFLOYD_TEXT_ENCODER,
            "super-res": PartPlan(
                role="decoder",
                components={
                    "unet": ("UNet2DConditionModel",),
                    "scheduler": SCHEDULERS,
                    "image_noising_scheduler": ("DDPMScheduler",),
                },
                module="carrara_models.decoders.super_resolution_unet",
            ),
        },
    ),
    "StableDiffusionUpscalePipeline": Family(
        name="stable-diffusion-x4-upscaler",
        parts={
            "text-encoder": CLIP_TEXT_ENCODER,
            "upscaler": PartPlan(
                role="decoder",
                components={
                    "unet": ("UNet2DConditionModel",),
                    "low_res_scheduler": ("DDPMScheduler",),
                    "scheduler": SCHEDULERS,
                },
                module="carrara_models.decoders.upscaling_unet",
            ),
            "decoder": VAE_DECODER,
        },
    ),
    "DDPMPipeline": Family(name="ddpm", parts={"generator": UNCONDITIONAL_UNET}),
    "DDIMPipeline": Family(name="ddim", parts={"generator": UNCONDITIONAL_UNET}),
    "UnCLIPPipeline": Family(
        name="unclip",
        parts={
            "text-encoder": PartPlan(
                role="text-encoder",
                components={
                    "tokenizer": CLIP_TOKENIZERS,
                    "text_encoder": ("CLIPTextModelWithProjection",),
                },
                module="carrara_models.text_encoders.clip_projection",
            ),
            "prior": PartPlan(
                role="generator",
                components={
                    "prior": ("PriorTransformer",),
                    "prior_scheduler": UNCLIP_SCHEDULERS,
                },
                module="carrara_models.generators.prior",
            ),
            "generator": PartPlan(
                role="generator",
                components={
                    "text_proj": ("UnCLIPTextProjModel",),
                    "decoder": ("UNet2DConditionModel",),
                    "decoder_scheduler": UNCLIP_SCHEDULERS,
                },
                module="carrara_models.generators.unclip",
            ),
            "super-res": PartPlan(
                role="decoder",
                components={
                    "super_res_first": ("UNet2DModel",),
                    "super_res_last": ("UNet2DModel",),
                    "super_res_scheduler": UNCLIP_SCHEDULERS,
                },
                module="carrara_models.decoders.unclip_super_res",
            ),
        },
    ),
    "FluxPipeline": Family(
        name="flux",
        parts={
            "text-encoder": PartPlan(
                role="text-encoder",
                components={
                    "tokenizer": CLIP_TOKENIZERS,
                    "tokenizer_2": T5_TOKENIZERS,
                    "text_encoder": ("CLIPTextModel",),
                    "text_encoder_2": ("T5EncoderModel",),
                },
                module="carrara_models.text_encoders.clip_t5",
            ),
            "generator": PartPlan(
                role="generator",
                components={
                    "transformer": ("FluxTransformer2DModel",),
                    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
                },
                module="carrara_models.generators.flux_transformer",
            ),
            "decoder": VAE_DECODER,
        },
    ),
    "PixArtSigmaPipeline": Family(
        name="pixart-sigma",
        parts={
            "text-encoder": PartPlan(
                role="text-encoder",
                components={"tokenizer": T5_TOKENIZERS, "text_encoder": ("T5EncoderModel",)},
                module="carrara_models.text_encoders.masked_states",
            ),
            "generator": PartPlan(
                role="generator",
                components={
                    # The published checkpoints name the class that it was taken from.
                    "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),
                    "scheduler": SCHEDULERS,
                },
                module="carrara_models.generators.latent_transformer",
            ),
            "decoder": VAE_DECODER,
        },
    ),
    "SanaPipeline": Family(
        name="sana",
        parts={
            "text-encoder": PartPlan(
                role="text-encoder",
                components={
                    "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
                    "text_encoder": ("Gemma2Model",),
                },
                module="carrara_models.text_encoders.masked_states",
            ),
            "generator": PartPlan(
                role="generator",
                components={
                    "transformer": ("SanaTransformer2DModel",),
                    "scheduler": ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
                },
                module="carrara_models.generators.latent_transformer",
            ),
            "decoder": PartPlan(
                role="decoder",
                components={"vae": ("AutoencoderDC",)},
                module="carrara_models.decoders.autoencoder_dc",
            ),
        },
    ),
    "KandinskyV22PriorPipeline": Family(
        name="kandinsky-2.2-prior",
        parts={
            "text-encoder": PartPlan(
                role="text-encoder",
                components={
                    "tokenizer": CLIP_TOKENIZERS,
                    "text_encoder": ("CLIPTextModelWithProjection",),
                    "image_encoder": ("CLIPVisionModelWithProjection",),
                },
                module="carrara_models.text_encoders.clip_projection",
            ),
            "prior": PartPlan(
                role="generator",
                components={"prior": ("PriorTransformer",), "scheduler": UNCLIP_SCHEDULERS},
                module="carrara_models.generators.prior",
            ),
        },
    ),
    "KandinskyV22Pipeline": Family(
        name="kandinsky-2.2",
        parts={
            "generator": PartPlan(
                role="generator",
                components={
                    "unet": ("UNet2DConditionModel",),
                    "scheduler": ("DDPMScheduler", "DDIMScheduler"),
                },
                module="carrara_models.generators.kandinsky",
            ),
            "decoder": PartPlan(
                role="decoder",
                components={"movq": ("VQModel",)},
                module="carrara_models.decoders.movq",
            ),
        },
    ),
}


# What kind of service each name stands for; a name means the same role in every family.
STAGE_ROLES: Mapping[str, Role] = {
    stage: plan.role for family in FAMILIES.values() for stage, plan in family.parts.items()
}


def load_part(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> Any:
    """Loads the part that the checkpoint was opened for, and nothing else.

    Returns:
        A `TextEncoder`, `Denoiser` or `Decoder` of `carrara_models.parts`.

    Raises:
        CheckpointError: A file is missing, broken or holds what this family cannot run.
    """
    module = import_module(checkpoint.plan.module)
    return module.load(checkpoint, device=device, dtype=dtype)
