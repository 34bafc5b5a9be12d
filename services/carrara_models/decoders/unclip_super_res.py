"""unCLIP's super-resolution: a small picture to a larger one, without the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import IMAGE, PIXELS, Port
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import check_consumer, sample_tensors
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.previews import preview_of_pixels
from carrara_models.denoising.random import torch_generator
from carrara_models.denoising.schedulers import (
    UNCLIP_MIN_STEPS,
    Samplers,
    check_variance,
    load_samplers,
)
from carrara_models.denoising.settings import (
    Settings,
    pipeline_defaults,
    settings_arguments,
    settle,
)
from carrara_models.denoising.together import advance_together
from carrara_models.denoising.unet_config import check_unet_inputs
from carrara_models.describing import described
from carrara_models.errors import CheckpointError
from carrara_models.parts import DenoisingRequest, Described, Sample

CHANNELS = 3


@dataclass
class SuperResJob(DenoisingJob):
    """One picture under way; at its last step it leaves the others."""

    @property
    def group(self) -> tuple[object, ...]:
        """The network of the last step is another one."""
        return (*super().group, self.is_last_step)


@dataclass(frozen=True)
class SuperRes(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to the end of `UnCLIPPipeline` on the CPU.

    Attributes:
        first: Of all steps but the last.
        last: Of the last step.
        defaults: Settings of a request that says nothing.
    """

    first: Any
    last: Any
    samplers: Samplers
    defaults: Settings

    def rows(self, request: DenoisingRequest) -> int:
        """One; there is no guidance."""
        return 1

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> SuperResJob:
        """Checks the request, draws x_T, enlarges the picture and sets up the scheduler.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The picture or the consumer does not fit.
        """
        (port,) = self.consumes
        check_consumer(self.produces, request.consumer)
        settings = settle(request, defaults=self.defaults)
        placed = {"device": self.device, "dtype": self.dtype}
        small = sample_tensors(request.sample, port.contract, **placed)["pixels"]
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
        generator = torch_generator(request.random_state)
        size = self.first.config.sample_size
        noise = randn_tensor((1, CHANNELS, size, size), generator=generator, **placed)
        enlarged = functional.interpolate(
            small, size=[size, size], mode="bicubic", align_corners=False, antialias=True
        )
        return SuperResJob(
            latents=noise * scheduler.init_noise_sigma,
            inputs={"enlarged": enlarged},
            guidance_scale=None,
            scheduler=scheduler,
            torch_generator=generator,
            height=size,
            width=size,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[SuperResJob]) -> list[torch.Tensor]:
        """Calls the network of the jobs' step once for all.

        Returns:
            For each job, in order, [1, C, H, W].
        """
        network = self.last if jobs[0].is_last_step else self.first

        def call(
            pixels: torch.Tensor, timesteps: torch.Tensor, *, enlarged: torch.Tensor
        ) -> torch.Tensor:
            beside = torch.cat([pixels, enlarged], dim=1)
            return network(beside, timesteps, return_dict=False)[0]

        return call_network(jobs, call, numerics=self.numerics)

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[SuperResJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        return advance_together(jobs, outputs)

    def finish(self, job: SuperResJob) -> Sample:
        """Gives the pixels [1, 3, H, W] as they are, with the random state after the last draw."""
        return job.sample({"pixels": job.latents})


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> SuperRes:
    """Loads both networks and the scheduler of a checkpoint that was opened for super-resolution.

    Raises:
        CheckpointError: A file is broken, or these do not fit together.
    """
    networks = {
        name: load_component(checkpoint, name, loader=UNet2DModel, dtype=dtype)
        for name in ("super_res_first", "super_res_last")
    }
    samplers = load_samplers(checkpoint, "super_res_scheduler", others=())
    for name, network in networks.items():
        _check(checkpoint, name, network.config)
        check_variance(
            samplers.own,
            checkpoint,
            "super_res_scheduler",
            learned=network.config.out_channels == 2 * CHANNELS,
        )
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default, prefix="super_res_")
    first, last = (network.to(device) for network in networks.values())
    return SuperRes(
        first=first,
        last=last,
        samplers=samplers,
        defaults=defaults,
        **described(
            checkpoint,
            {**networks, "super_res_scheduler": samplers.own},
            consumes=(Port(PIXELS),),
            produces=(PIXELS, IMAGE),
            arguments=settings_arguments(
                defaults,
                min_inference_steps=UNCLIP_MIN_STEPS,
                without=frozenset({"guidance_scale"}),
            ),
            device=device,
            dtype=dtype,
            preview=preview_of_pixels,
        ),
    )


def _check(checkpoint: Checkpoint, name: str, config: Any) -> None:
    check_unet_inputs(
        checkpoint,
        config,
        component=name,
        in_channels=(2 * CHANNELS,),
        out_channels=(CHANNELS, 2 * CHANNELS),
        time_embedding_type=("positional", "fourier"),
    )
    if not isinstance(config.sample_size, int):
        raise CheckpointError(
            f"{checkpoint.path / name / 'config.json'}: sample_size is {config.sample_size!r}; "
            "unCLIP paints squares, of one whole number."
        )
