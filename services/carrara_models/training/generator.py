"""Trains a latent diffusion UNet on the drawn world, behind a frozen text encoder and autoencoder.

Denoising score matching with v-prediction (Salimans and Ho 2022, App. D) on a DDPM schedule; the
noise levels are drawn from a normal distribution of the log signal-to-noise ratio.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from carrara_models.drawn_world.captions import write_caption
from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.evaluation.attributes import (
    CaptionKind,
    held_out_captions,
    score_pictures,
)
from carrara_models.evaluation.painting import PaintSettings, paint
from carrara_models.training.curriculum import PLAIN_CURRICULUM, Curriculum
from carrara_models.training.export import assemble
from carrara_models.training.loop import Batch, LoopSettings, Pace, run_loop
from carrara_models.training.sample_grids import save_grid
from carrara_models.training.text_encoder import tokenize

TRAIN_TIMESTEPS = 1000
# A linear schedule ends at a residual signal of 0.6 %, so that pure noise is a fair start; the
# scaled-linear one keeps 7 %, which would tint every background.
BETA_START, BETA_END = 1e-4, 0.02
SAMPLE_SCENES = 48
GRID_PICTURES = 32


@dataclass(frozen=True)
class GeneratorShape:
    """The size of the UNet; each width after the first halves the resolution and attends."""

    widths: tuple[int, ...] = (32, 64, 128)
    attention_heads: int = 4


@dataclass(frozen=True)
class GeneratorObjective:
    """What the UNet is trained on."""

    log_snr_mean: float = -1.0
    log_snr_deviation: float = 1.75
    uniform_share: float = 0.25
    """How many of the timesteps are drawn evenly instead. The first steps of a sampler lie far out
    in the normal distribution's tail; where the network is untrained, they put objects anywhere."""
    caption_dropout: float = 0.1
    """How often the empty caption stands for the scene's, for classifier-free guidance."""
    omit: float = 0.05
    """How often a caption leaves out one thing."""


def build_unet(
    shape: GeneratorShape, *, latent_channels: int, latent_size: int, text_width: int
) -> UNet2DConditionModel:
    """A UNet with fresh weights; the pooled caption joins the timestep (`addition_embed_type`)."""
    attending = len(shape.widths) - 1
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=shape.widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attending,
        up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",),
        cross_attention_dim=text_width,
        # The name is historical: with this class, it counts the heads.
        attention_head_dim=shape.attention_heads,
        norm_num_groups=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def training_schedule() -> DDPMScheduler:
    """The schedule that noise is added by; its config is what every sampler is built from."""
    return DDPMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        # `StableDiffusionPipeline` wants 1; trailing spacing does not read it.
        steps_offset=1,
    )


def sampling_scheduler() -> DPMSolverMultistepScheduler:
    """The sampler that the checkpoint ships with: dpm++2m."""
    return DPMSolverMultistepScheduler.from_config(
        training_schedule().config, algorithm_type="dpmsolver++", solver_order=2
    )


def sample_timesteps(
    count: int, *, log_snrs: Tensor, objective: GeneratorObjective, torch_generator: torch.Generator
) -> Tensor:
    """Timesteps [count], int64, whose log-SNR is nearest to normal draws; some drawn evenly.

    Args:
        count: How many.
        log_snrs: [T], float64, the log-SNR of each timestep, falling.
        objective: Mean and deviation of the draws, and how many are even.
        torch_generator: The source of the draws.
    """
    wanted = torch.randn(count, generator=torch_generator, dtype=torch.float64)
    wanted = objective.log_snr_mean + objective.log_snr_deviation * wanted
    middles = (log_snrs[1:] + log_snrs[:-1]) / 2
    normal = torch.searchsorted(-middles, -wanted)
    even = torch.randint(len(log_snrs), (count,), generator=torch_generator)
    is_even = torch.rand(count, generator=torch_generator) < objective.uniform_share
    return torch.where(is_even, even, normal)


def train_generator(
    folder: Path,
    *,
    text_encoder_folder: Path,
    autoencoder_folder: Path,
    settings: LoopSettings,
    pace: Pace,
    shape: GeneratorShape,
    objective: GeneratorObjective,
    painting: PaintSettings,
    curriculum: Curriculum = PLAIN_CURRICULUM,
    init: Path | None = None,
    resume: bool = False,
) -> None:
    """Trains in `folder`; leaves `unet/` and `scheduler/` there, in diffusers layout.

    `unet/` is renewed with the averaged weights at every sample, for a look from outside.

    Args:
        folder: Where the run lives.
        text_encoder_folder: Holds `tokenizer/` and `text_encoder/`.
        autoencoder_folder: Holds `vae/`, whose latents have unit variance times 1/scaling_factor.
        settings: The recipe.
        pace: Reports, device and workers.
        shape: The size of the UNet; unused with `init`.
        objective: What it is trained on.
        painting: How sample pictures are painted.
        curriculum: What the scenes hold, and in which languages captions tell it.
        init: A folder with a `unet/` to begin with, e.g. that of an earlier run.
        resume: Goes on from the snapshot in `folder`.
    """
    tokenizer = CLIPTokenizer.from_pretrained(text_encoder_folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(text_encoder_folder / "text_encoder")
    vae = AutoencoderKL.from_pretrained(autoencoder_folder / "vae")
    text_encoder.requires_grad_(False)
    vae.requires_grad_(False)
    resolution = vae.config.sample_size
    latent_size = resolution // 2 ** (len(vae.config.block_out_channels) - 1)
    torch.manual_seed(settings.seed)
    if init is None:
        unet = build_unet(
            shape,
            latent_channels=vae.config.latent_channels,
            latent_size=latent_size,
            text_width=text_encoder.config.hidden_size,
        )
    else:
        unet = UNet2DConditionModel.from_pretrained(init / "unet")
    # Without torch's fused attention, whose backward pass on a CPU took a third of each step.
    unet.set_attn_processor(AttnProcessor())
    schedule = training_schedule()
    alphas_cumprod = schedule.alphas_cumprod.double()
    log_snrs = (alphas_cumprod / (1 - alphas_cumprod)).log()

    @torch.no_grad()
    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng((settings.seed, step))
        torch_generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        scenes = [
            sample_scene(rng, max_objects=curriculum.max_objects)
            for _ in range(settings.batch_size)
        ]
        captions = [
            ""
            if rng.random() < objective.caption_dropout
            else write_caption(
                scene, rng, language=curriculum.draw_language(rng), omit=objective.omit
            )
            for scene in scenes
        ]
        pictures = draw_scenes(scenes, height=resolution, width=resolution)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            mean = vae.encode(pictures).latent_dist.mode().float()
        return {
            "latents": mean * vae.config.scaling_factor,
            "prompt_embeds": text_encoder(tokenize(tokenizer, captions)).last_hidden_state,
            "noise": torch.randn(mean.shape, generator=torch_generator),
            "timesteps": sample_timesteps(
                len(scenes),
                log_snrs=log_snrs,
                objective=objective,
                torch_generator=torch_generator,
            ),
        }

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        noisy = schedule.add_noise(latents, noise, timesteps)
        velocity = schedule.get_velocity(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, batch["prompt_embeds"]).sample
        return F.mse_loss(predicted.float(), velocity), {}

    pipeline = assemble(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=sampling_scheduler(),
    )
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    samples = {
        language: held_out_captions(
            SAMPLE_SCENES // len(curriculum.languages),
            seed=1,
            kind=CaptionKind(language, curriculum.max_objects),
        )
        for language in curriculum.languages
    }

    def on_sample(step: int) -> Mapping[str, float]:
        unet.save_pretrained(folder / "unet")
        scores: dict[str, float] = {}
        for language, (scenes, captions) in samples.items():
            pictures = paint(pipeline, captions, painting)
            suffix = "" if len(samples) == 1 else f"_{language}"
            grid = folder / f"sample-{step:06d}{suffix}.png"
            save_grid(pictures[:GRID_PICTURES], grid)
            shares = score_pictures(pictures, scenes)
            scores |= {f"{name}{suffix}": share for name, share in shares.items()}
        return scores

    run_loop(
        unet,
        folder=folder,
        settings=settings,
        pace=pace,
        batch_at=batch_at,
        loss_of=loss_of,
        on_sample=on_sample,
        resume=resume,
    )
    unet.save_pretrained(folder / "unet")
