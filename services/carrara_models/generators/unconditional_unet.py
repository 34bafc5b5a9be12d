"""The unconditional UNet of DDPM and DDIM: noise to pixels, without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import IMAGE, PIXELS
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import check_consumer
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.previews import preview_of_pixels
from carrara_models.denoising.random import torch_generator
from carrara_models.denoising.schedulers import Samplers, load_samplers
from carrara_models.denoising.settings import (
    ETA,
    Settings,
    chosen,
    pipeline_defaults,
    settings_arguments,
    settle,
)
from carrara_models.denoising.together import advance_together
from carrara_models.denoising.unet_config import check_unet_inputs
from carrara_models.describing import described
from carrara_models.parts import DenoisingRequest, Described, Sample


@dataclass(frozen=True)
class UnconditionalUNet(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to `DDPMPipeline` and `DDIMPipeline`.

    Attributes:
        defaults: Settings of a request that says nothing.
        height: Of all its pictures.
        width: Of all its pictures.
    """

    unet: Any
    samplers: Samplers
    defaults: Settings
    height: int
    width: int

    def rows(self, request: DenoisingRequest) -> int:
        """One: there is no guidance."""
        return 1

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> DenoisingJob:
        """Checks the request, draws x_T and sets up the job's scheduler.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The consumer does not fit.
        """
        check_consumer(self.produces, request.consumer)
        settings = settle(request, defaults=self.defaults)
        eta = chosen(request, ETA)
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
        generator = torch_generator(request.random_state)
        return DenoisingJob(
            latents=randn_tensor(
                (1, self.unet.config.in_channels, self.height, self.width),
                generator=generator,
                device=self.device,
                dtype=self.dtype,
            ),
            inputs={},
            guidance_scale=None,
            scheduler=scheduler,
            torch_generator=generator,
            height=self.height,
            width=self.width,
            eta=eta,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the UNet once for all jobs.

        On the CPU it is called for each: its attention lays several rows out channels last.

        Returns:
            For each job, in order, [1, 3, H, W].
        """
        return call_network(jobs, self._call, one_by_one=True, numerics=self.numerics)

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        return advance_together(jobs, outputs)

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the pixels [1, 3, H, W] as they are, with the random state after the last draw."""
        return job.sample({"pixels": job.latents})

    def _call(self, pixels: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        # Whole, as these schedulers count them: a learned embedding of time looks them up.
        return self.unet(pixels, timesteps.to(torch.int64), return_dict=False)[0]


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> UnconditionalUNet:
    """Loads UNet and scheduler of a checkpoint that was opened for the generator.

    Raises:
        CheckpointError: A file is broken, or the UNet is no unconditional painter of RGB pictures.
    """
    unet = load_component(checkpoint, "unet", loader=UNet2DModel, dtype=dtype)
    channels = PIXELS.tensors[0].shape[1]
    check_unet_inputs(checkpoint, unet.config, in_channels=(channels,), out_channels=(channels,))
    samplers = load_samplers(checkpoint, others=("ddpm", "ddim"), in_pixels=True)
    if checkpoint.pipeline_class == "DDIMPipeline":  # it makes that of any scheduler
        samplers = replace(samplers, default=checkpoint.defaults.scheduler or "ddim")
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    arguments = settings_arguments(
        defaults, schedulers=samplers.names, without=frozenset({"guidance_scale"})
    )
    return UnconditionalUNet(
        unet=unet.to(device),
        samplers=samplers,
        defaults=defaults,
        height=height,
        width=width,
        **described(
            checkpoint,
            {"unet": unet, "scheduler": samplers.own},
            consumes=(),
            produces=(IMAGE, PIXELS),
            arguments=(*arguments, ETA),
            device=device,
            dtype=dtype,
            preview=preview_of_pixels,
        ),
    )
