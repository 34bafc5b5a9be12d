"""DeepFloyd IF's UNets: they paint pixels, and predict noise and variance together.

The base model and its super-resolution share all of it but what they start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import IMAGE, PIXELS, Argument, Port, conditioning_contract
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import (
    check_consumer,
    conditioning_inputs,
    guidance_of,
    guided_rows,
)
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
from carrara_models.denoising.together import advance_together, guided_with_variance_each
from carrara_models.denoising.unet_config import (
    check_unet_inputs,
    prompt_embeds_width,
    size_multiple,
)
from carrara_models.describing import described
from carrara_models.parts import DenoisingRequest, Described, Sample

CHANNELS = 3


@dataclass(frozen=True)
class PixelUNet(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to `IFPipeline` on the CPU.

    Attributes:
        defaults: Settings of a request that says nothing.
        size_multiple: Of height and width.
    """

    unet: Any
    samplers: Samplers
    defaults: Settings
    size_multiple: int

    def rows(self, request: DenoisingRequest) -> int:
        """Two with guidance, else one."""
        return guided_rows(request, default=self.defaults.guidance_scale)

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> DenoisingJob:
        """Checks the request, draws x_T and sets up the job's scheduler.

        Guidance is on if the negative embeddings are there and the scale is above 1.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The conditioning or the consumer does not fit.
        """
        check_consumer(self.produces, request.consumer)
        settings = settle(
            request,
            defaults=self.defaults,
            height=self.defaults.height,
            width=self.defaults.width,
            multiple_of=self.size_multiple,
        )
        guidance_scale = guidance_of(request, settings.guidance_scale)
        inputs = conditioning_inputs(
            request.conditioning,
            self.consumes[0].contract,
            guided=guidance_scale is not None,
            device=self.device,
            dtype=self.dtype,
        )
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
        if hasattr(scheduler, "set_begin_index"):  # as the pipeline does
            scheduler.set_begin_index(0)
        generator = torch_generator(request.random_state)
        noise = randn_tensor(
            (1, CHANNELS, settings.height, settings.width),
            generator=generator,
            device=self.device,
            dtype=self.dtype,
        )
        return DenoisingJob(
            latents=noise * scheduler.init_noise_sigma,
            inputs=inputs,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            torch_generator=generator,
            height=settings.height,
            width=settings.width,
            eta=chosen(request, ETA),
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the UNet once for all jobs.

        Args:
            jobs: Of one group; their steps, schedulers and guidance may all differ.

        Returns:
            For each job, in order, noise and variance [rows, 6, H, W].
        """
        return call_network(
            jobs, self._call, inputs=_network_input, one_by_one=True, numerics=self.numerics
        )

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order.

        Schedulers that take a variance are given the network's.
        """
        return advance_together(jobs, guided_with_variance_each(jobs, outputs))

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the pixels [1, 3, H, W] as they are, with the random state after the last draw."""
        return job.sample({"pixels": job.latents})

    def _call(
        self,
        pixels: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        prompt_embeds: torch.Tensor,
        noise_level: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.unet(
            pixels,
            timesteps,
            encoder_hidden_states=prompt_embeds,
            class_labels=noise_level,
            return_dict=False,
        )[0]


def load_pixel_unet(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    further: tuple[Argument, ...] = (),
    takes_picture: bool = False,
    **components: Any,
) -> dict[str, Any]:
    """Loads UNet and scheduler; gives the fields of `PixelUNet`.

    Args:
        further: Arguments that only this part has.
        takes_picture: Whether a picture stands beside x_t, and its noise level beside t.
        components: What else this part has loaded, by name.

    Raises:
        CheckpointError: A file is broken, or the UNet wants inputs that its pipeline does not give.
    """
    unet = load_component(checkpoint, "unet", loader=UNet2DConditionModel, dtype=dtype)
    config = unet.config
    given = {
        "in_channels": (CHANNELS * (2 if takes_picture else 1),),
        "out_channels": (2 * CHANNELS,),
        "addition_embed_type": (None, "text"),
    }
    if takes_picture:
        given |= {
            "class_embed_type": (None, "timestep"),
            "num_class_embeds": (None, config.num_class_embeds),
        }
    check_unet_inputs(checkpoint, config, **given)
    samplers = load_samplers(checkpoint, in_pixels=True)
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default, height=height, width=width)
    multiple_of = max(limits.PIXEL_MULTIPLE, size_multiple(config))
    arguments = settings_arguments(defaults, schedulers=samplers.names, multiple_of=multiple_of)
    conditioning = conditioning_contract(
        {"prompt_embeds": (1, 0, prompt_embeds_width(config))},
        space=checkpoint.conditioning_space,
    )
    return {
        "unet": unet.to(device),
        "samplers": samplers,
        "defaults": defaults,
        "size_multiple": multiple_of,
        **described(
            checkpoint,
            {"unet": unet, "scheduler": samplers.own, **components},
            consumes=(Port(conditioning), *([Port(PIXELS)] if takes_picture else [])),
            produces=(PIXELS, IMAGE),
            arguments=(*arguments, ETA, *further),
            device=device,
            dtype=dtype,
            preview=preview_of_pixels,
        ),
    }


def _network_input(job: DenoisingJob) -> list[torch.Tensor]:
    """x_t, with the low-resolution picture beside it; the scheduler scales both, as diffusers."""
    x = job.latents if job.picture is None else torch.cat([job.latents, job.picture], dim=1)
    return job.doubled(job.scaled(x))
