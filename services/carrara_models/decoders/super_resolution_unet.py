"""DeepFloyd IF's super-resolution: a picture of any size, noised, to a larger one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from carrara_models.checkpoints import Checkpoint
from carrara_models.contracts import Argument
from carrara_models.denoising.fitting import sample_tensors
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.pixel_unet import PixelUNet, load_pixel_unet
from carrara_models.denoising.schedulers import load_scheduler
from carrara_models.denoising.settings import chosen, noise_level_argument
from carrara_models.parts import DenoisingRequest


@dataclass(frozen=True)
class SuperResolutionUNet(PixelUNet):
    """A `carrara_models.parts.Denoiser`; bit-identical to `IFSuperResolutionPipeline` on the CPU.

    Attributes:
        noising_scheduler: Noises the picture that it is given.
        noise_level: The argument, with its range.
    """

    noising_scheduler: Any
    noise_level: Argument

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> DenoisingJob:
        """Checks the request, draws x_T and then the noise of the low-resolution picture.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The conditioning, the picture or the consumer does not fit.
        """
        _, takes = self.consumes
        pixels = sample_tensors(
            request.sample, takes.contract, device=self.device, dtype=self.dtype
        )["pixels"]
        level = torch.tensor([chosen(request, self.noise_level)], device=self.device)
        job = super().start(request)
        upscaled = functional.interpolate(
            pixels, (job.height, job.width), mode="bilinear", align_corners=True
        )
        noise = randn_tensor(
            upscaled.shape, generator=job.torch_generator, device=self.device, dtype=self.dtype
        )
        job.picture = self.noising_scheduler.add_noise(upscaled, noise, timesteps=level)
        job.inputs = {**job.inputs, "noise_level": level.expand(job.rows)}
        return job


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> SuperResolutionUNet:
    """Loads UNet and both schedulers; the safety checker and the watermarker never.

    Raises:
        CheckpointError: A file is broken, or the UNet wants inputs that this family does not give.
    """
    noising_scheduler = load_scheduler(checkpoint, "image_noising_scheduler")
    noise_level = noise_level_argument(
        checkpoint, maximum=noising_scheduler.config.num_train_timesteps - 1
    )
    return SuperResolutionUNet(
        noising_scheduler=noising_scheduler,
        noise_level=noise_level,
        **load_pixel_unet(
            checkpoint,
            device=device,
            dtype=dtype,
            takes_picture=True,
            further=(noise_level,),
            image_noising_scheduler=noising_scheduler,
        ),
    )
