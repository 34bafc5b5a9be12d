"""Trains the denoiser that paints: latents or pixels, told a caption or an image embedding.

What it is told and what it denoises follow from the runs that it is trained behind:

| behind | layout of the result |
|---|---|
| a text encoder and an autoencoder | Stable Diffusion's |
| a text encoder | DeepFloyd IF's base: pixels |
| a CLIP and an autoencoder | Kandinsky 2.2's UNet, which paints an image embedding |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    IFPipeline,
    KandinskyV22Pipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from torch import Tensor

from carrara_models.drawn_world.captions import write_plain_caption
from carrara_models.evaluation.painting import PaintSettings, paint
from carrara_models.pixels import painted_to_uint8
from carrara_models.training.clip_towers import Towers, embedding_of_nothing, load_towers
from carrara_models.training.colour_jitter import jitter
from carrara_models.training.data.drawn import DrawnWorld
from carrara_models.training.data.examples import Source
from carrara_models.training.data.settings import DataSettings, open_source
from carrara_models.training.denoisers import SAMPLES, DenoisingTask, train_denoiser
from carrara_models.training.donors import take_over, tell_by_embedding
from carrara_models.training.errors import RecipeError
from carrara_models.training.export import NO_CHECKERS, assemble
from carrara_models.training.loop import SKIPPED, Batch, LoopSettings, Pace, Samples
from carrara_models.training.movq import build_movq
from carrara_models.training.objectives import BOUNDED, Objective, build_schedule
from carrara_models.training.randomness import Draw, chosen_of
from carrara_models.training.run_folders import load_component
from carrara_models.training.samples import (
    SampleCaptions,
    SampleSettings,
    join,
    sample_captions,
)
from carrara_models.training.text_conditioning import (
    PROMPT_EMBEDS,
    FrozenTextEncoder,
    colourless_where,
    empty_where,
)
from carrara_models.training.unets import (
    UNetShape,
    build_unet,
    told_a_caption,
    told_an_image_embedding,
    use_plain_attention,
)

IMAGE_EMBEDS = "image_embeds"
PIXEL_CHANNELS = 3
FITTED_PICTURES = 2048


@dataclass(frozen=True)
class GeneratorSettings:
    """A run of a generator."""

    text_encoder: Path | None = None
    """A folder with a `tokenizer/` and a `text_encoder/`."""
    clip: Path | None = None
    """A folder that a run of a CLIP left, in place of a text encoder."""
    autoencoder: Path | None = None
    """A folder with a `vae/`, whose latents have unit variance; None denoises pixels."""
    init: Path | None = None
    """A folder with a `unet/` to begin with, such as that of an earlier run."""
    donor: Path | None = None
    """A folder with another `unet/`, wider, of fewer levels or told something else: this one begins
    with what it has of that one (`donors`). Behind a CLIP, a checkpoint of Stable Diffusion's
    layout: its captions are what the image embedding is turned into, to begin with."""
    resolution: int = 32
    """Of the pixels; with an autoencoder its own holds."""
    dropout: float = 0.1
    """How often the empty caption, or the embedding of nothing, stands for the picture's own: what
    classifier-free guidance leads away from."""
    colour_jitter: float = 0.0
    """Share of the pictures whose colours are turned at random. Their captions are told without the
    names of colours, and of their embeddings nothing is told: the UNet then takes no colour for
    impossible where it never saw a shape in it."""
    embedding_cache: Path | None = None
    """A folder to keep captions' states in; worth its disk where captions come back."""
    data: DataSettings = DataSettings()
    shape: UNetShape = UNetShape()
    objective: Objective = Objective()
    samples: SampleSettings = SampleSettings()
    loop: LoopSettings = LoopSettings(
        steps=9000,
        batch_size=24,
        learning_rate=1.6e-3,
        betas=(0.9, 0.98),
        warmup_steps=200,
    )


class _Space(Protocol):
    """What is denoised."""

    channels: int
    size: int  # of the samples, h = w
    resolution: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Samples [B, C, h, w] of pixels [B, 3, H, W]."""


class _Condition(Protocol):
    """What the UNet is told, and how its pipeline paints."""

    out_channels_factor: int

    def unet_options(
        self, shape: UNetShape, donor: UNet2DConditionModel | None
    ) -> dict[str, Any]: ...

    def tell_as(
        self,
        unet: UNet2DConditionModel,
        donor: UNet2DConditionModel,
        checkpoint: Path,
        source: Source,
    ) -> None:
        """Begins with telling `unet` what `donor` was told, where that is something else."""

    def tell(
        self, captions: Sequence[str], pixels: Tensor, dropped: Tensor, jittered: Tensor
    ) -> Batch: ...

    def call(
        self, unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, batch: Batch
    ) -> Tensor: ...

    def paint(
        self, unet: UNet2DConditionModel, chosen: SampleCaptions, settings: PaintSettings
    ) -> NDArray[np.uint8]: ...


def train_generator(
    folder: Path, settings: GeneratorSettings, *, pace: Pace, resume: bool = False
) -> None:
    """Trains in `folder`; leaves `unet/` and `scheduler/` there, behind a CLIP `movq/` too.

    `unet/` is renewed with the averaged weights at every sample, for a look from outside.

    Args:
        folder: Where the run lives.
        settings: The recipe.
        pace: Reports, device and workers.
        resume: Goes on from the snapshot in `folder`.
    """
    if (settings.text_encoder is None) == (settings.clip is None):
        raise RecipeError("a generator is trained behind a text_encoder or a clip, one of the two")
    if settings.init is not None and settings.donor is not None:
        raise RecipeError("a generator begins with an init or a donor, not with both")
    data = settings.data
    if settings.donor is not None and settings.clip is not None and (data.strokes or data.blobs):
        raise RecipeError(
            "a donor behind a clip is for pictures with captions that tell all: set data.strokes=0 "
            "and data.blobs=0"
        )
    loop, objective = settings.loop, settings.objective
    vae = None
    if settings.autoencoder is not None:
        vae = load_component(AutoencoderKL, settings.autoencoder, "vae")
        vae.eval().requires_grad_(False)
    space: _Space = (
        _Pixels(settings.resolution) if vae is None else _Latents(vae, bfloat16=loop.bfloat16)
    )
    schedule = build_schedule(objective, **_schedule_options(settings))
    sampler = build_sampler(schedule, objective)
    condition: _Condition
    if settings.text_encoder is not None:
        texts = FrozenTextEncoder(settings.text_encoder, cache=settings.embedding_cache)
        if vae is None:
            texts.check_tells_pixels()
        condition = _Captions(texts, vae, sampler)
    else:
        assert settings.clip is not None
        if vae is None:
            raise RecipeError("behind a clip, latents are denoised: name an autoencoder too")
        condition = _ImageEmbeddings(load_towers(settings.clip), vae, sampler)
    source = open_source(
        settings.data, height=space.resolution, width=space.resolution, seed=loop.seed
    )
    torch.manual_seed(loop.seed)
    donor = None
    if settings.donor is not None:
        donor = load_component(UNet2DConditionModel, settings.donor, "unet")
    if settings.init is None:
        unet = build_unet(
            settings.shape,
            in_channels=space.channels,
            out_channels=space.channels * condition.out_channels_factor,
            size=space.size,
            **condition.unet_options(settings.shape, donor),
        )
        if settings.donor is not None and donor is not None:
            take_over(unet, donor)
            condition.tell_as(unet, donor, settings.donor, source)
    else:
        unet = load_component(UNet2DConditionModel, settings.init, "unet")
    use_plain_attention(unet)

    def batch_at(positions: Sequence[int]) -> Batch:
        examples = source.examples(positions)
        dropped = chosen_of(loop.seed, Draw.DROPOUT, positions, settings.dropout)
        pixels, jittered = jitter(
            examples.pixels, positions, share=settings.colour_jitter, seed=loop.seed
        )
        return {
            SAMPLES: space.encode(pixels),
            SKIPPED: examples.skipped_counts(),
            **condition.tell(examples.captions, pixels, dropped, jittered),
        }

    def predict(noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        return condition.call(unet, noisy, timesteps, batch)[:, : space.channels]

    chosen = sample_captions(settings.samples, settings.data, source)
    painting = PaintSettings(
        num_inference_steps=settings.samples.num_inference_steps,
        guidance_scale=settings.samples.guidance_scale,
        seed=loop.seed,
        batch_size=settings.samples.batch_size,
    )

    def on_sample(step: int) -> Samples:
        unet.save_pretrained(folder / "unet")
        return join([each.samples(condition.paint(unet, each, painting)) for each in chosen])

    writes = train_denoiser(
        unet,
        folder=folder,
        settings=loop,
        pace=pace,
        schedule=schedule,
        objective=objective,
        task=DenoisingTask(batch_at, predict),
        on_sample=on_sample,
        resume=resume,
    )
    if writes:
        unet.save_pretrained(folder / "unet")
        sampler.save_pretrained(folder / "scheduler")
        if settings.clip is not None and vae is not None:
            build_movq(vae).save_pretrained(folder / "movq")


def build_sampler(schedule: Any, objective: Objective) -> DPMSolverMultistepScheduler:
    """dpm++2m on the schedule that was trained on; along straight paths for flow.

    Pixels stay in their range, as the schedule keeps them.
    """
    if objective.target == "flow":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=schedule.config.num_train_timesteps,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        )
    bounded = BOUNDED if schedule.config.clip_sample else {}
    return DPMSolverMultistepScheduler.from_config(
        schedule.config, algorithm_type="dpmsolver++", solver_order=2, **bounded
    )


def _schedule_options(settings: GeneratorSettings) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if settings.autoencoder is None:
        options["clip_sample"] = True
    if settings.autoencoder is None or settings.clip is not None:
        # IF's and Kandinsky's UNets have channels for a variance, which stay untrained.
        options["variance_type"] = "fixed_small"
    return options


class _Pixels:
    channels = PIXEL_CHANNELS

    def __init__(self, resolution: int) -> None:
        self.size = self.resolution = resolution

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels


class _Latents:
    def __init__(self, vae: AutoencoderKL, *, bfloat16: bool) -> None:
        self._vae, self._bfloat16 = vae, bfloat16
        self.channels = vae.config.latent_channels
        self.resolution = vae.config.sample_size
        self.size = self.resolution // 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            mean = self._vae.encode(pixels).latent_dist.mode().float()
        return mean * self._vae.config.scaling_factor


class _Captions(_Condition):
    """A caption's states: Stable Diffusion with an autoencoder, DeepFloyd IF's base without."""

    def __init__(self, texts: FrozenTextEncoder, vae: AutoencoderKL | None, sampler: Any) -> None:
        self._texts, self._vae, self._sampler = texts, vae, sampler
        # IF splits the output in two: the second half is for a variance.
        self.out_channels_factor = 2 if vae is None else 1

    def unet_options(self, shape: UNetShape, donor: UNet2DConditionModel | None) -> dict[str, Any]:
        return told_a_caption(text_width=self._texts.width)

    def tell(
        self, captions: Sequence[str], pixels: Tensor, dropped: Tensor, jittered: Tensor
    ) -> Batch:
        return self._texts.encode(empty_where(dropped, colourless_where(jittered, captions)))

    def call(
        self, unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, batch: Batch
    ) -> Tensor:
        return unet(noisy, timesteps, batch[PROMPT_EMBEDS]).sample

    def paint(
        self, unet: UNet2DConditionModel, chosen: SampleCaptions, settings: PaintSettings
    ) -> NDArray[np.uint8]:
        parts = {
            "tokenizer": self._texts.tokenizer,
            "text_encoder": self._texts.model,
            "unet": unet,
            "scheduler": self._sampler,
        }
        pipeline: Any
        if self._vae is not None:
            pipeline = assemble(vae=self._vae, **parts)
        else:
            pipeline = IFPipeline(**parts, **NO_CHECKERS)
        return paint(pipeline, chosen.captions, settings)


class _ImageEmbeddings(_Condition):
    """The embedding of the picture itself by CLIP's image tower; a prior makes it of a caption."""

    out_channels_factor = 2  # the second half is for a variance

    def __init__(self, towers: Towers, vae: AutoencoderKL, sampler: Any) -> None:
        self._towers, self._sampler = towers, sampler
        self._movq = build_movq(vae).eval()
        self._resolution = vae.config.sample_size
        self._nothing = embedding_of_nothing(towers)

    def unet_options(self, shape: UNetShape, donor: UNet2DConditionModel | None) -> dict[str, Any]:
        width = shape.widths[-1] if donor is None else donor.config.cross_attention_dim
        return told_an_image_embedding(embedding_width=self._towers.width, token_width=width)

    def tell_as(
        self,
        unet: UNet2DConditionModel,
        donor: UNet2DConditionModel,
        checkpoint: Path,
        source: Source,
    ) -> None:
        """Turns image embeddings into the states of captions that tell the same."""
        texts = FrozenTextEncoder(checkpoint)
        examples = source.examples(range(FITTED_PICTURES))
        captions = examples.captions
        if isinstance(source, DrawnWorld):
            captions = [
                write_plain_caption(scene) for scene, _ in source.scenes(range(FITTED_PICTURES))
            ]
        tell_by_embedding(
            unet,
            donor,
            embeds=self._towers.encode_pictures(examples.pixels),
            states=texts.encode(captions)[PROMPT_EMBEDS],
            last_norm=texts.model.final_layer_norm,
        )

    def tell(
        self, captions: Sequence[str], pixels: Tensor, dropped: Tensor, jittered: Tensor
    ) -> Batch:
        embeds = self._towers.encode_pictures(pixels)
        return {IMAGE_EMBEDS: torch.where((dropped | jittered)[:, None], self._nothing, embeds)}

    def call(
        self, unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, batch: Batch
    ) -> Tensor:
        added = {IMAGE_EMBEDS: batch[IMAGE_EMBEDS]}
        return unet(noisy, timesteps, encoder_hidden_states=None, added_cond_kwargs=added).sample

    def paint(
        self, unet: UNet2DConditionModel, chosen: SampleCaptions, settings: PaintSettings
    ) -> NDArray[np.uint8]:
        sampler = DDIMScheduler.from_config(self._sampler.config)
        pipeline = KandinskyV22Pipeline(unet=unet, scheduler=sampler, movq=self._movq)
        pipeline.set_progress_bar_config(disable=True)
        embeds = self._towers.encode_pictures(chosen.true_pictures(self._resolution))
        painted = pipeline(
            image_embeds=embeds,
            negative_image_embeds=self._nothing.expand_as(embeds),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=[
                torch.Generator().manual_seed(settings.seed + index) for index in range(len(embeds))
            ],
            height=self._resolution,
            width=self._resolution,
            output_type="np",
        ).images
        return painted_to_uint8(painted)
