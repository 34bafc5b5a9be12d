"""Puts trained parts together as checkpoints that diffusers' pipelines load, and Carrara serves.

Three layouts: Stable Diffusion's in one folder; DeepFloyd IF's and Kandinsky 2.2's in two each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    StableDiffusionPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5Tokenizer,
)

from carrara_models.cascade_folders import CascadeStage, write_cascade
from carrara_models.checkpoints import MANIFEST, MANIFEST_FORMAT, open_checkpoint, stages_of
from carrara_models.denoising.schedulers import SCHEDULERS
from carrara_models.training.objectives import BOUNDED
from carrara_models.training.run_folders import load_component

SUPER_RESOLUTION_PREFIX = "super_res_"
# What DeepFloyd IF's pipelines would have beside the parts that paint.
NO_CHECKERS: Mapping[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "watermarker": None,
    "requires_safety_checker": False,
}


@dataclass(frozen=True)
class DefaultSettings:
    """What a checkpoint is painted with when a request does not say."""

    num_inference_steps: int = 20
    guidance_scale: float = 2.5
    height: int = 64
    width: int = 64


@dataclass(frozen=True)
class PixelDefaults:
    """What a pixel cascade is painted with when a request does not say; sizes are the UNets'.

    Attributes:
        clean_caption: Whether captions are cleaned as DeepFloyd's were, which takes Chinese out.
    """

    num_inference_steps: int = 20
    guidance_scale: float = 2.5
    clean_caption: bool = False
    super_res_num_inference_steps: int = 10
    super_res_guidance_scale: float = 1.0
    super_res_noise_level: int = 50


@dataclass(frozen=True)
class UnclipDefaults:
    """What a prior and its decoder are painted with when a request does not say."""

    prior_num_inference_steps: int = 10
    prior_guidance_scale: float = 2.0
    num_inference_steps: int = 20
    guidance_scale: float = 2.5
    height: int = 64
    width: int = 64


def assemble(
    *,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    scheduler: DPMSolverMultistepScheduler,
) -> StableDiffusionPipeline:
    """The pipeline of the parts, without a safety checker."""
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_checkpoint(
    output: Path,
    *,
    text_encoder_folder: Path,
    autoencoder_folder: Path,
    generator_folder: Path,
    defaults: DefaultSettings,
) -> None:
    """Writes a checkpoint in diffusers layout and its `carrara.json`, weights in float16.

    Args:
        output: Folder of the checkpoint; created, files of the same names are replaced.
        text_encoder_folder: Holds `tokenizer/` and `text_encoder/`.
        autoencoder_folder: Holds `vae/`.
        generator_folder: Holds `unet/` and `scheduler/`.
        defaults: Written to `carrara.json`.
    """
    pipeline = assemble(
        tokenizer=load_component(CLIPTokenizer, text_encoder_folder, "tokenizer"),
        text_encoder=load_component(CLIPTextModel, text_encoder_folder, "text_encoder"),
        vae=load_component(AutoencoderKL, autoencoder_folder, "vae"),
        unet=load_component(UNet2DConditionModel, generator_folder, "unet"),
        scheduler=load_component(DPMSolverMultistepScheduler, generator_folder, "scheduler"),
    )
    _save(pipeline, output, defaults=asdict(defaults))


def export_pixel_cascade(
    output: Path,
    *,
    text_encoder_folder: Path,
    base_folder: Path,
    super_resolution_folder: Path,
    defaults: PixelDefaults,
    scheduler: str = "dpm++2m",
) -> None:
    """Writes a cascade folder in DeepFloyd IF's layout: `base/` and `super-resolution/`.

    The text encoder lies in the base alone.

    Args:
        output: Created; files of the same names are replaced.
        text_encoder_folder: Holds `tokenizer/` and `text_encoder/`, a T5's.
        base_folder: Holds `unet/` and `scheduler/`.
        super_resolution_folder: Holds `unet/`, `scheduler/` and `image_noising_scheduler/`.
        defaults: Written to each folder's `carrara.json`.
        scheduler: Name of the sampler that both ship with: "ddpm" as they were trained, or another
            one of `SCHEDULERS`, made from that.
    """
    base = IFPipeline(
        tokenizer=load_component(T5Tokenizer, text_encoder_folder, "tokenizer"),
        text_encoder=load_component(T5EncoderModel, text_encoder_folder, "text_encoder"),
        unet=load_component(UNet2DConditionModel, base_folder, "unet"),
        scheduler=_pixel_sampler(scheduler, base_folder),
        **NO_CHECKERS,
    )
    super_resolution = IFSuperResolutionPipeline(
        tokenizer=None,
        text_encoder=None,
        unet=load_component(UNet2DConditionModel, super_resolution_folder, "unet"),
        scheduler=_pixel_sampler(scheduler, super_resolution_folder),
        image_noising_scheduler=load_component(
            DDPMScheduler, super_resolution_folder, "image_noising_scheduler"
        ),
        **NO_CHECKERS,
    )
    larger = {
        name: value
        for name, value in asdict(defaults).items()
        if name.startswith(SUPER_RESOLUTION_PREFIX)
    }
    smaller = {name: value for name, value in asdict(defaults).items() if name not in larger}
    _save(base, output / "base", defaults=smaller)
    _save(super_resolution, output / "super-resolution", defaults=larger)
    _save_cascade(output, ["base", "super-resolution"])


def export_unclip_cascade(
    output: Path,
    *,
    clip_folder: Path,
    prior_folder: Path,
    image_unet_folder: Path,
    defaults: UnclipDefaults,
) -> None:
    """Writes a cascade folder in Kandinsky 2.2's layout: `prior/` and `decoder/`.

    Args:
        output: Created; files of the same names are replaced.
        clip_folder: Holds `tokenizer/`, `text_encoder/`, `image_encoder/` and `image_processor/`.
        prior_folder: Holds `prior/` and `scheduler/`.
        image_unet_folder: Holds `unet/`, `scheduler/` and `movq/`.
        defaults: Written to each folder's `carrara.json`.
    """
    prior = KandinskyV22PriorPipeline(
        tokenizer=load_component(CLIPTokenizer, clip_folder, "tokenizer"),
        text_encoder=load_component(CLIPTextModelWithProjection, clip_folder, "text_encoder"),
        image_encoder=load_component(CLIPVisionModelWithProjection, clip_folder, "image_encoder"),
        image_processor=load_component(CLIPImageProcessorPil, clip_folder, "image_processor"),
        prior=load_component(PriorTransformer, prior_folder, "prior"),
        scheduler=load_component(UnCLIPScheduler, prior_folder, "scheduler"),
    )
    decoder = KandinskyV22Pipeline(
        unet=load_component(UNet2DConditionModel, image_unet_folder, "unet"),
        scheduler=load_component(DDIMScheduler, image_unet_folder, "scheduler"),
        movq=load_component(VQModel, image_unet_folder, "movq"),
    )
    of_prior = {
        name: value for name, value in asdict(defaults).items() if name.startswith("prior_")
    }
    others = {name: value for name, value in asdict(defaults).items() if name not in of_prior}
    _save(prior, output / "prior", defaults=of_prior)
    _save(decoder, output / "decoder", defaults=others)
    _save_cascade(output, ["prior", "decoder"])


def _pixel_sampler(name: str, run: Path) -> Any:
    """A sampler that keeps what it takes for the clean picture in the pixels' range."""
    class_name, overrides = SCHEDULERS[name]
    left = load_component(DPMSolverMultistepScheduler, run, "scheduler")
    if left.config.use_flow_sigmas:
        return left  # the others know no straight paths
    own = DDPMScheduler.from_config(left.config, thresholding=False)  # it clips
    if class_name == type(own).__name__:
        return own
    return getattr(diffusers, class_name).from_config(own.config, **overrides, **BOUNDED)


def _save(pipeline: DiffusionPipeline, output: Path, *, defaults: Mapping[str, Any]) -> None:
    pipeline.to(torch.float16).save_pretrained(output)
    for config in output.glob("*/config.json"):
        _make_plain(config)
    for file in output.glob("*/tokenizer.json"):
        _make_dense(file)
    document = {"format": MANIFEST_FORMAT, "defaults": defaults}
    (output / MANIFEST).write_text(json.dumps(document, indent=2) + "\n")


def _save_cascade(output: Path, names: Sequence[str]) -> None:
    write_cascade(
        output,
        {
            stage: CascadeStage(
                plan.role,
                output / name,
                open_checkpoint(output / name, stage=stage).fingerprint,
            )
            for name in names
            for stage, plan in stages_of(output / name).items()
        },
    )


def _make_dense(file: Path) -> None:
    """Without indentation, which is half of it."""
    document = json.loads(file.read_text(encoding="utf-8"))
    dense = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    file.write_text(dense + "\n", encoding="utf-8")


def _make_plain(config: Path) -> None:
    """Takes out what a config says of where and how it was saved.

    The folder that a component was loaded from means nothing elsewhere. And transformers follows a
    saved dtype where diffusers loads float32, so that the two halves of a pipeline would not fit.
    """
    document = json.loads(config.read_text())
    document.pop("_name_or_path", None)
    if "dtype" in document:
        document["dtype"] = "float32"
    config.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
