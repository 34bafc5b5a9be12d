"""unCLIP in Karlo's layout, tiny: a prior, a UNet that paints pixels, and two that enlarge them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    PriorTransformer,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from families.case import FamilyCase, Settings
from tiny_checkpoints import END, clip_text_config, write_json, write_tokenizer

WIDTH = 32  # of CLIP's embeddings
TIME = 16 * 4  # of the UNet's embedding of time

# In the SDK the UNet's arguments have no prefix; the pipeline calls it the decoder.
RENAMED = {
    "num_inference_steps": "decoder_num_inference_steps",
    "guidance_scale": "decoder_guidance_scale",
}

LOADERS = {
    "tokenizer": CLIPTokenizer,
    "text_encoder": CLIPTextModelWithProjection,
    "prior": PriorTransformer,
    "prior_scheduler": UnCLIPScheduler,
    "text_proj": UnCLIPTextProjModel,
    "decoder": UNet2DConditionModel,
    "decoder_scheduler": UnCLIPScheduler,
    "super_res_first": UNet2DModel,
    "super_res_last": UNet2DModel,
    "super_res_scheduler": UnCLIPScheduler,
}


def write(folder: Path) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token=END)
    CLIPTextModelWithProjection(clip_text_config(vocabulary, width=WIDTH)).save_pretrained(
        folder / "text_encoder"
    )
    write_prior(folder / "prior", width=WIDTH)
    text_proj = UnCLIPTextProjModel(
        clip_extra_context_tokens=2,
        clip_embeddings_dim=WIDTH,
        time_embed_dim=TIME,
        cross_attention_dim=24,
    )
    torch.nn.init.normal_(text_proj.learned_classifier_free_guidance_embeddings)
    text_proj.save_pretrained(folder / "text_proj")
    UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=8,
    ).save_pretrained(folder / "decoder")
    for name in ("super_res_first", "super_res_last"):
        UNet2DModel(
            sample_size=24,
            in_channels=6,
            out_channels=3,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
            add_attention=False,
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=8,
        ).save_pretrained(folder / name)
    schedulers = {
        "prior": {"prediction_type": "sample", "clip_sample_range": 5.0},
        "decoder": {"variance_type": "learned_range"},
        "super_res": {},
    }
    for name, changes in schedulers.items():
        UnCLIPScheduler(**changes).save_pretrained(folder / f"{name}_scheduler")
    write_json(
        folder / "model_index.json",
        {"_class_name": "UnCLIPPipeline", "_diffusers_version": "0.42.1"}
        | {name: [_library(name), loader.__name__] for name, loader in LOADERS.items()},
    )


def write_prior(folder: Path, *, width: int) -> None:
    prior = PriorTransformer(
        # torch's CPU kernels treat the last elements of a tensor by themselves, and so round them
        # otherwise, where rows are no multiples of 32. Those of real priors are.
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        embedding_dim=width,
        num_embeddings=77,
    )
    # What a fresh model has as zeros: nothing of its work would be seen.
    for parameter in (prior.clip_mean, prior.positional_embedding, prior.prd_embedding):
        torch.nn.init.normal_(parameter)
    torch.nn.init.uniform_(prior.clip_std, 0.5, 1.5)
    prior.save_pretrained(folder)


def paint(folders: Sequence[Path], settings: Settings) -> np.ndarray:
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    # `UnCLIPPipeline.from_pretrained` finds no UnCLIPTextProjModel in this version.
    components = {
        name: loader.from_pretrained(folders[0] / name) for name, loader in LOADERS.items()
    }
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it is deprecated
    pipeline = UnCLIPPipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(settings.pop("seed"))
    return np.asarray(pipeline(generator=generator, **settings).images[0])


def _library(name: str) -> str:
    if name == "text_proj":
        return "unclip"
    return "transformers" if LOADERS[name].__module__.startswith("transformers") else "diffusers"


CASE = FamilyCase(
    name="unclip",
    checkpoints=(write,),
    oracle=paint,
    settings={
        "guided": {
            "prompt": "a large red circle",
            "seed": 3,
            "prior_num_inference_steps": 4,
            "num_inference_steps": 3,
            "super_res_num_inference_steps": 2,
        },
        "prior-guided": {
            "prompt": "a blue square above a circle",
            "seed": 2**40 + 1,
            "prior_num_inference_steps": 2,
            "prior_guidance_scale": 2.5,
            "num_inference_steps": 4,
            "guidance_scale": 0.5,
            "super_res_num_inference_steps": 3,
        },
        "only-the-picture-guided": {
            "prompt": "",
            "seed": 5,
            "prior_num_inference_steps": 3,
            "prior_guidance_scale": 1.0,
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "super_res_num_inference_steps": 4,
        },
        "unguided": {
            "prompt": "a large red circle",
            "seed": 6,
            "prior_num_inference_steps": 3,
            "prior_guidance_scale": 1.0,
            "num_inference_steps": 3,
            "guidance_scale": 1.0,
        },
    },
    stages={
        "text-encoder": ("tokenizer", "text_encoder"),
        "prior": ("prior", "prior_scheduler"),
        "generator": ("text_proj", "decoder", "decoder_scheduler"),
        "super-res": ("super_res_first", "super_res_last", "super_res_scheduler"),
    },
)
