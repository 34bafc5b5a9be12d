"""Puts trained parts together as one checkpoint that `StableDiffusionPipeline` loads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class DefaultSettings:
    """What a checkpoint is painted with when a request does not say."""

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
        tokenizer=CLIPTokenizer.from_pretrained(text_encoder_folder / "tokenizer"),
        text_encoder=CLIPTextModel.from_pretrained(text_encoder_folder / "text_encoder"),
        vae=AutoencoderKL.from_pretrained(autoencoder_folder / "vae"),
        unet=UNet2DConditionModel.from_pretrained(generator_folder / "unet"),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(generator_folder / "scheduler"),
    )
    pipeline.to(torch.float16).save_pretrained(output)
    for config in output.glob("*/config.json"):
        _make_plain(config)
    document = {"format": 1, "defaults": asdict(defaults)}
    (output / "carrara.json").write_text(json.dumps(document, indent=2) + "\n")


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
