"""The UNet of Stable Diffusion's x4 upscaler: a picture, noised, to the latents of a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import PIXELS, Argument, Port, conditioning_contract
from carrara_models.decoders.autoencoder_kl import UPSCALER_SCALING_FACTOR
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import (
    agreed_size_factor,
    conditioning_inputs,
    guidance_of,
    guided_rows,
    sample_tensors,
)
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.previews import preview_of_latents
from carrara_models.denoising.random import torch_generator
from carrara_models.denoising.schedulers import Samplers, load_samplers, load_scheduler
from carrara_models.denoising.settings import (
    ETA,
    Settings,
    chosen,
    noise_level_argument,
    pipeline_defaults,
    settings_arguments,
    settle,
)
from carrara_models.denoising.together import advance_together, guided_together
from carrara_models.denoising.unet_config import check_unet_inputs, prompt_embeds_width
from carrara_models.describing import described
from carrara_models.errors import ContractError
from carrara_models.parts import DenoisingRequest, Described, Sample
from carrara_models.shared_contracts import produced_latents


@dataclass(frozen=True)
class UpscalingUNet(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to `StableDiffusionUpscalePipeline`.

    Pixels are taken as they are, in [-1, 1]. diffusers takes the range from the numbers: a picture
    in [-1, 1] without any negative one it maps once more, to [0, 1]. Here that never happens.

    Attributes:
        low_res_scheduler: Noises the picture that it is given.
        defaults: Settings of a request that says nothing.
        noise_level: The argument, with its range.
    """

    unet: Any
    samplers: Samplers
    low_res_scheduler: Any
    defaults: Settings
    noise_level: Argument

    def rows(self, request: DenoisingRequest) -> int:
        """Two with guidance, else one."""
        return guided_rows(request, default=self.defaults.guidance_scale)

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> DenoisingJob:
        """Checks the request, draws the noise of the low-resolution picture and then x_T.

        Guidance is on if the negative embeddings are there and the scale is above 1.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The conditioning, the picture or the consumer does not fit.
        """
        (produced,), (consumed, takes) = self.produces, self.consumes
        size_factor = agreed_size_factor(produced, request.consumer)
        pixels = sample_tensors(
            request.sample, takes.contract, device=self.device, dtype=self.dtype
        )["pixels"]
        height, width = pixels.shape[2:]
        _check_size(height, width, size_factor=size_factor)
        settings = settle(request, defaults=self.defaults)
        level = torch.tensor([chosen(request, self.noise_level)], device=self.device)
        guidance_scale = guidance_of(request, settings.guidance_scale)
        inputs = conditioning_inputs(
            request.conditioning,
            consumed.contract,
            guided=guidance_scale is not None,
            device=self.device,
            dtype=self.dtype,
        )
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
        generator = torch_generator(request.random_state)
        noise, x_T = (
            randn_tensor(
                (1, channels, height, width),
                generator=generator,
                device=self.device,
                dtype=self.dtype,
            )
            for channels in (pixels.shape[1], self.unet.config.out_channels)
        )
        job = DenoisingJob(
            latents=x_T * scheduler.init_noise_sigma,
            inputs=inputs,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            torch_generator=generator,
            height=height * size_factor,
            width=width * size_factor,
            eta=chosen(request, ETA),
            picture=self.low_res_scheduler.add_noise(pixels, noise, level),
        )
        job.inputs = {**inputs, "noise_level": level.expand(job.rows)}
        return job

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the UNet once for all jobs.

        Args:
            jobs: Of one group; their steps, schedulers, noise levels and guidance may all differ.

        Returns:
            For each job, in order, [rows, C, h, w].
        """
        return call_network(jobs, self._call, inputs=_network_input, numerics=self.numerics)

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        return advance_together(jobs, guided_together(jobs, outputs))

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the latents [1, C, h, w], as many cells as the picture had pixels."""
        return job.sample({"latents": job.latents})

    def _call(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        prompt_embeds: torch.Tensor,
        noise_level: torch.Tensor,
    ) -> torch.Tensor:
        return self.unet(
            latents,
            timesteps,
            encoder_hidden_states=prompt_embeds,
            class_labels=noise_level,
            return_dict=False,
        )[0]


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> UpscalingUNet:
    """Loads UNet and both schedulers of a checkpoint that was opened for the upscaler.

    Raises:
        CheckpointError: A file is broken, or the UNet wants inputs that this family does not give.
    """
    unet = load_component(checkpoint, "unet", loader=UNet2DConditionModel, dtype=dtype)
    config = unet.config
    (pixels,) = PIXELS.tensors
    check_unet_inputs(
        checkpoint,
        config,
        in_channels=(config.out_channels + pixels.shape[1],),
        class_embed_type=(None, "timestep"),
        num_class_embeds=(config.num_class_embeds,),
    )
    samplers = load_samplers(checkpoint)
    low_res_scheduler = load_scheduler(checkpoint, "low_res_scheduler")
    noise_level = noise_level_argument(
        checkpoint,
        maximum=min(
            checkpoint.options.get("max_noise_level", 350),
            (config.num_class_embeds or low_res_scheduler.config.num_train_timesteps) - 1,
            low_res_scheduler.config.num_train_timesteps - 1,
        ),
    )
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default)
    arguments = settings_arguments(defaults, schedulers=samplers.names)
    produced = produced_latents(checkpoint, channels=config.out_channels)
    if produced.scaling_factor:
        produced = replace(produced, scaling_factor=UPSCALER_SCALING_FACTOR)
    conditioning = conditioning_contract(
        {"prompt_embeds": (1, 0, prompt_embeds_width(config))},
        space=checkpoint.conditioning_space,
    )
    return UpscalingUNet(
        unet=unet.to(device),
        samplers=samplers,
        low_res_scheduler=low_res_scheduler,
        defaults=defaults,
        noise_level=noise_level,
        **described(
            checkpoint,
            {"unet": unet, "low_res_scheduler": low_res_scheduler, "scheduler": samplers.own},
            consumes=(Port(conditioning), Port(PIXELS)),
            produces=(produced,),
            arguments=(*arguments, noise_level, ETA),
            device=device,
            dtype=dtype,
            preview=preview_of_latents(checkpoint, produced, device=device),
        ),
    )


def _check_size(height: int, width: int, *, size_factor: int) -> None:
    """Refuses what the pipeline would scale to another size first, and what would be too large."""
    if height % size_factor or width % size_factor:
        raise ContractError(
            f"The pixels are {height} x {width}; the upscaler takes multiples of {size_factor}."
        )
    if height * width * size_factor**2 > limits.MAX_PIXELS:
        raise ContractError(
            f"The pixels are {height} x {width}, {size_factor} times as high and wide when "
            f"upscaled; at most {limits.MAX_PIXELS} pixels are painted."
        )


def _network_input(job: DenoisingJob) -> list[torch.Tensor]:
    """x_t as the scheduler scales it, with the picture beside it as it is."""
    return job.doubled(torch.cat([job.scaled(job.latents), job.picture], dim=1))
