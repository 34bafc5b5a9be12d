"""Trains the UNet that paints an image embedding: what DALL-E 2 calls its decoder, in latents.

The result has the layout of Kandinsky 2.2: `KandinskyV22Pipeline` loads it. Its MoVQ is a VAE of
ours with the codebook left out, as that pipeline decodes without a look into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, VQModel
from torch import Tensor

from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.training.curriculum import PLAIN_CURRICULUM, Curriculum
from carrara_models.training.denoisers import SAMPLES, Examples, train_denoiser
from carrara_models.training.generator import GeneratorShape
from carrara_models.training.loop import Batch, LoopSettings, Pace
from carrara_models.training.objectives import Objective, build_schedule
from carrara_models.training.prior import Towers, load_towers


def build_image_unet(
    shape: GeneratorShape, *, latent_channels: int, latent_size: int, embedding_width: int
) -> UNet2DConditionModel:
    """A UNet with fresh weights, told of an image embedding and nothing else."""
    attending = len(shape.widths) - 1
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        # The second half is for a variance that stays untrained.
        out_channels=2 * latent_channels,
        block_out_channels=shape.widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attending,
        up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",),
        cross_attention_dim=shape.widths[-1],
        # The name is historical: with this class, it counts the heads.
        attention_head_dim=shape.attention_heads,
        norm_num_groups=8,
        addition_embed_type="image",
        encoder_hid_dim_type="image_proj",
        encoder_hid_dim=embedding_width,
    )


def train_image_unet(
    folder: Path,
    *,
    clip_folder: Path,
    autoencoder_folder: Path,
    settings: LoopSettings,
    pace: Pace,
    shape: GeneratorShape,
    objective: Objective,
    on_sample: Callable[[UNet2DConditionModel, int], Mapping[str, float]],
    curriculum: Curriculum = PLAIN_CURRICULUM,
    embedding_dropout: float = 0.1,
    resume: bool = False,
) -> None:
    """Trains in `folder`; leaves `unet/`, `scheduler/` and `movq/` there.

    Args:
        clip_folder: Where `train_clip` left its towers.
        autoencoder_folder: Holds `vae/`, whose latents have unit variance.
        on_sample: Called with the UNet, which holds the averaged parameters, and the step.
        curriculum: The part of the drawn world that is taught.
        embedding_dropout: How often the embedding of an even grey, which is a picture of zeros,
            stands for the picture's own; the pipeline's guidance is away from it.
        resume: Goes on from the snapshot in `folder`.
    """
    towers = load_towers(clip_folder)
    vae = AutoencoderKL.from_pretrained(autoencoder_folder / "vae")
    vae.requires_grad_(False)
    resolution = vae.config.sample_size
    torch.manual_seed(settings.seed)
    unet = build_image_unet(
        shape,
        latent_channels=vae.config.latent_channels,
        latent_size=resolution // 2 ** (len(vae.config.block_out_channels) - 1),
        embedding_width=towers.image_encoder.config.projection_dim,
    )
    schedule = build_schedule(objective, variance_type="fixed_small")
    nothing = embedding_of_nothing(towers)

    def examples_at(rng: np.random.Generator, _: torch.Generator) -> Batch:
        scenes = [
            sample_scene(rng, max_objects=curriculum.max_objects)
            for _ in range(settings.batch_size)
        ]
        pictures = draw_scenes(scenes, height=resolution, width=resolution)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            latents = vae.encode(pictures).latent_dist.mode().float()
        seen = pictures
        if towers.resolution != resolution:
            seen = draw_scenes(scenes, height=towers.resolution, width=towers.resolution)
        dropped = torch.from_numpy(rng.random(len(scenes)) < embedding_dropout)
        embeds = torch.where(dropped[:, None], nothing, towers.encode_pictures(seen))
        return {SAMPLES: latents * vae.config.scaling_factor, "image_embeds": embeds}

    def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        added = {"image_embeds": batch["image_embeds"]}
        output = unet(noisy, timesteps, encoder_hidden_states=None, added_cond_kwargs=added).sample
        return output.chunk(2, dim=1)[0]

    def sample(step: int) -> Mapping[str, float]:
        unet.save_pretrained(folder / "unet")
        return on_sample(unet, step)

    DDIMScheduler.from_config(schedule.config).save_pretrained(folder / "scheduler")
    build_movq(vae).save_pretrained(folder / "movq")
    train_denoiser(
        unet,
        folder=folder,
        settings=settings,
        pace=pace,
        schedule=schedule,
        objective=objective,
        examples=Examples(examples_at, predict),
        on_sample=sample,
        resume=resume,
    )
    unet.save_pretrained(folder / "unet")


@torch.no_grad()
def embedding_of_nothing(towers: Towers) -> Tensor:
    """Of a picture of zeros, [1, E]: what the pipeline takes for an absent negative prompt."""
    side = towers.resolution
    return towers.encode_pictures(torch.zeros(1, 3, side, side))


@torch.no_grad()
def build_movq(vae: AutoencoderKL) -> VQModel:
    """The same encoder and decoder as a `VQModel`, which knows no variance and no factor.

    Args:
        vae: With `scaling_factor` 1.
    """
    config = vae.config
    if config.scaling_factor != 1:
        raise ValueError(
            f"scaling_factor is {config.scaling_factor}; KandinskyV22Pipeline has none"
        )
    channels = config.latent_channels
    movq = VQModel(
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        act_fn=config.act_fn,
        latent_channels=channels,
        vq_embed_dim=channels,
        num_vq_embeddings=1,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.sample_size,
        mid_block_add_attention=config.mid_block_add_attention,
    )
    weights = {
        name: tensor
        for name, tensor in vae.state_dict().items()
        if not name.startswith(("quant_conv.", "encoder.conv_out."))
    }
    # The means are the first half of what the pointwise convolution makes of the encoder's output:
    # both are linear, and become one.
    mixing = vae.quant_conv.weight[:channels, :, 0, 0]  # [C, 2C]
    last = vae.encoder.conv_out
    weights["encoder.conv_out.weight"] = torch.einsum("ij,jklm->iklm", mixing, last.weight)
    weights["encoder.conv_out.bias"] = mixing @ last.bias + vae.quant_conv.bias[:channels]
    weights["quant_conv.weight"] = torch.eye(channels)[:, :, None, None]
    weights["quant_conv.bias"] = torch.zeros(channels)
    weights["quantize.embedding.weight"] = movq.quantize.embedding.weight
    movq.load_state_dict(weights)
    return movq
