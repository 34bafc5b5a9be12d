"""Kandinsky 2.2, tiny: a checkpoint of the prior, and one of the UNet with a MoVQ of size factor 4.

The pipeline rounds sizes up to multiples of 16, the factor's square; some below are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import (
    DDPMScheduler,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from transformers import (
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from carrara_models.denoising.schedulers import SCHEDULERS
from families.case import FamilyCase, Settings
from families.unclip import write_prior
from tiny_checkpoints import END, clip_text_config, write_json, write_tokenizer

WIDTH = 40  # of CLIP's embeddings


def write_prior_checkpoint(folder: Path) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token=END)
    CLIPTextModelWithProjection(clip_text_config(vocabulary, width=WIDTH)).save_pretrained(
        folder / "text_encoder"
    )
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        )
    ).save_pretrained(folder / "image_encoder")
    write_prior(folder / "prior", width=WIDTH)
    UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0).save_pretrained(
        folder / "scheduler"
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "KandinskyV22PriorPipeline",
            "_diffusers_version": "0.42.1",
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "image_processor": [None, None],
            "prior": ["diffusers", "PriorTransformer"],
            "scheduler": ["diffusers", "UnCLIPScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
        },
    )


def write_decoder_checkpoint(folder: Path, *, variance_type: str) -> None:
    UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=24,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    VQModel(
        block_out_channels=(32, 32, 32),  # spatial norm has 32 groups
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=16,
        vq_embed_dim=4,
    ).save_pretrained(folder / "movq")
    DDPMScheduler(
        beta_schedule="linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        variance_type=variance_type,
    ).save_pretrained(folder / "scheduler")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "KandinskyV22Pipeline",
            "_diffusers_version": "0.42.1",
            "movq": ["diffusers", "VQModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        },
    )


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = dict(settings)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    text = {name: settings.pop(name) for name in ("prompt", "negative_prompt") if name in settings}
    of_prior = {name: value for name, value in settings.items() if name.startswith("prior_")}
    prior = KandinskyV22PriorPipeline.from_pretrained(folders[0], image_processor=None)
    pipeline = KandinskyV22Pipeline.from_pretrained(folders[1])
    if name := settings.pop("scheduler", None):
        class_name, overrides = SCHEDULERS[name]
        own = pipeline.scheduler.config
        pipeline.scheduler = getattr(diffusers, class_name).from_config(own, **overrides)
    for each in (prior, pipeline):
        each.set_progress_bar_config(disable=True)
    embeds = prior(
        **text,
        **{name.removeprefix("prior_"): value for name, value in of_prior.items()},
        generator=generator,
    )
    images = pipeline(
        **embeds,
        **{name: value for name, value in settings.items() if name not in of_prior},
        generator=generator,
    ).images
    return np.asarray(images[0])


STAGES = {
    "text-encoder": ("tokenizer", "text_encoder", "image_encoder"),
    "prior": ("prior", "scheduler"),
    "generator": ("unet", "scheduler"),
    "decoder": ("movq",),
}

CASE = FamilyCase(
    name="kandinsky",
    checkpoints=(
        write_prior_checkpoint,
        partial(write_decoder_checkpoint, variance_type="fixed_small"),
    ),
    oracle=paint,
    settings={
        "absent-negative": {
            "prompt": "a large red circle",
            "seed": 3,
            "prior_num_inference_steps": 4,
            "num_inference_steps": 3,
            "height": 64,
            "width": 64,
        },
        "negative": {
            "prompt": "a blue square above a circle",
            "negative_prompt": "on the white background",
            "seed": 2**40 + 1,
            "prior_num_inference_steps": 2,
            "prior_guidance_scale": 2.5,
            "num_inference_steps": 4,
            "guidance_scale": 7.0,
            "scheduler": "ddim",
            "height": 64,
            "width": 64,
        },
        "empty-negative-unguided-prior": {
            "prompt": "a large red circle",
            "negative_prompt": "",
            "seed": 5,
            "prior_num_inference_steps": 3,
            "prior_guidance_scale": 1.0,
            "num_inference_steps": 2,
            "height": 63,
            "width": 49,
        },
        "negative-unguided": {
            "prompt": "a large red circle",
            "negative_prompt": "blue",
            "seed": 6,
            "prior_num_inference_steps": 3,
            "prior_guidance_scale": 1.0,
            "num_inference_steps": 3,
            "guidance_scale": 1.0,
            "height": 50,
            "width": 90,
        },
        "only-the-prior-guided": {
            "prompt": "",
            "seed": 7,
            "prior_num_inference_steps": 2,
            "num_inference_steps": 3,
            "guidance_scale": 0.5,
            "scheduler": "ddim",
            "height": 32,
            "width": 64,
        },
        "only-the-picture-guided": {
            "prompt": "a small square",
            "seed": 8,
            "prior_num_inference_steps": 3,
            "prior_guidance_scale": 0.0,
            "num_inference_steps": 2,
            "height": 48,
            "width": 48,
        },
        "unguided": {
            "prompt": "a small square",
            "seed": 9,
            "prior_num_inference_steps": 3,
            "prior_guidance_scale": 0.0,
            "num_inference_steps": 2,
            "guidance_scale": 0.0,
            "height": 48,
            "width": 48,
        },
    },
    stages=STAGES,
)

LEARNED_VARIANCE = FamilyCase(
    name="kandinsky-learned-variance",
    checkpoints=(
        write_prior_checkpoint,
        partial(write_decoder_checkpoint, variance_type="learned_range"),
    ),
    oracle=paint,
    settings={
        "guided": {
            "prompt": "a large red circle",
            "negative_prompt": "blue",
            "seed": 3,
            "prior_num_inference_steps": 2,
            "num_inference_steps": 3,
            "height": 32,
            "width": 32,
        },
        "unguided": {
            "prompt": "a large red circle",
            "seed": 4,
            "prior_num_inference_steps": 2,
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "height": 32,
            "width": 32,
        },
    },
    stages=STAGES,
)
