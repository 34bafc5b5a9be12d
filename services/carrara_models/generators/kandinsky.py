"""The UNet of Kandinsky 2.2: an image embedding and noise to latents; it sees no text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import KandinskyV22Pipeline, UNet2DConditionModel
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2 import downscale_height_and_width
from diffusers.utils.torch_utils import randn_tensor

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Contract, Kind, Port, TensorSpec
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import agreed_size_factor, sample_tensors
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.previews import preview_of_latents
from carrara_models.denoising.random import torch_generator
from carrara_models.denoising.schedulers import Samplers, load_samplers
from carrara_models.denoising.settings import (
    Settings,
    pipeline_defaults,
    settings_arguments,
    settle,
)
from carrara_models.denoising.together import advance_together, guided_with_variance_each
from carrara_models.denoising.unet_config import check_unet_inputs
from carrara_models.describing import described
from carrara_models.errors import BadFieldError, ContractError
from carrara_models.parts import DenoisingRequest, Described, Sample
from carrara_models.shared_contracts import movq_latents

# Those that the pipeline is for: it scales no input, as others would have it.
SCHEDULERS = ("ddpm", "ddim")
NEGATIVE = "negative_image_embeds"


@dataclass(frozen=True)
class KandinskyGenerator(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to `KandinskyV22Pipeline` on the CPU.

    Attributes:
        defaults: Settings of a request that says nothing.
    """

    unet: Any
    samplers: Samplers
    defaults: Settings

    def rows(self, request: DenoisingRequest) -> int:
        """Two with guidance, else one."""
        scale = request.guidance_scale
        scale = self.defaults.guidance_scale if scale is None else scale
        sample = request.sample
        return 2 if scale > 1 and sample is not None and NEGATIVE in sample.tensors else 1

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> DenoisingJob:
        """Checks the request, draws x_T and sets up the job's scheduler.

        Guidance is on if there is a negative image embedding and the scale is above 1. Sizes are
        rounded up, as the pipeline does, to multiples of the size factor's square.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The image embeddings or the consumer do not fit.
        """
        (port,), (produced,) = self.consumes, self.produces
        size_factor = agreed_size_factor(produced, request.consumer)
        settings = settle(
            request,
            defaults=self.defaults,
            height=self.defaults.height,
            width=self.defaults.width,
            multiple_of=1,
        )
        placed = {"device": self.device, "dtype": self.dtype}
        embeds = sample_tensors(request.sample, port.contract, **placed)
        guidance_scale = _guidance_of(request, settings.guidance_scale, embeds)
        rows = [embeds["image_embeds"]]
        if guidance_scale is not None:
            rows.insert(0, embeds[NEGATIVE])
        cells = downscale_height_and_width(settings.height, settings.width, size_factor)
        height, width = (count * size_factor for count in cells)
        if height * width > limits.MAX_PIXELS:
            name = "height" if settings.height >= settings.width else "width"
            allowed = (
                f"up to {limits.MAX_PIXELS} pixels in all; rounded up it is {height} x {width}"
            )
            raise BadFieldError(name, getattr(settings, name), allowed)
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
        generator = torch_generator(request.random_state)
        noise = randn_tensor(
            (1, self.unet.config.in_channels, *cells), generator=generator, **placed
        )
        return DenoisingJob(
            latents=noise * scheduler.init_noise_sigma,
            inputs={"image_embeds": torch.cat(rows)},
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            torch_generator=generator,
            height=height,
            width=width,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the UNet once for all jobs.

        Returns:
            For each job, in order, noise and variance [rows, 2 * C, h, w].
        """
        return call_network(jobs, self._call, one_by_one=True, numerics=self.numerics)

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        return advance_together(jobs, guided_with_variance_each(jobs, outputs))

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the latents [1, C, h, w], with the random state after the last draw."""
        return job.sample({"latents": job.latents})

    def _call(
        self, latents: torch.Tensor, timesteps: torch.Tensor, *, image_embeds: torch.Tensor
    ) -> torch.Tensor:
        return self.unet(
            latents,
            timesteps,
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": image_embeds},
            return_dict=False,
        )[0]


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> KandinskyGenerator:
    """Loads UNet and scheduler of a checkpoint that was opened for the generator.

    Raises:
        CheckpointError: A file is broken, or the UNet wants inputs that this family does not give.
    """
    unet = load_component(checkpoint, "unet", loader=UNet2DConditionModel, dtype=dtype)
    check_unet_inputs(
        checkpoint,
        unet.config,
        out_channels=(2 * unet.config.in_channels,),
        addition_embed_type=("image",),
        encoder_hid_dim_type=("image_proj",),
    )
    samplers = load_samplers(checkpoint, others=SCHEDULERS)
    call = inspect.signature(KandinskyV22Pipeline.__call__).parameters
    defaults = pipeline_defaults(
        checkpoint,
        scheduler=samplers.default,
        height=call["height"].default,
        width=call["width"].default,
    )
    width = unet.config.encoder_hid_dim
    produced = movq_latents(checkpoint, channels=unet.config.in_channels)
    return KandinskyGenerator(
        unet=unet.to(device),
        samplers=samplers,
        defaults=defaults,
        **described(
            checkpoint,
            {"unet": unet, "scheduler": samplers.own},
            consumes=(
                Port(
                    Contract(
                        kind=Kind.IMAGE_EMBEDS,
                        # The prior lies in a repository of its own: known in a cascade folder.
                        space=checkpoint.space("prior"),
                        tensors=(
                            TensorSpec("image_embeds", (1, width)),
                            TensorSpec(NEGATIVE, (1, width), required=False),
                        ),
                    )
                ),
            ),
            produces=(produced,),
            arguments=settings_arguments(defaults, schedulers=samplers.names, multiple_of=1),
            device=device,
            dtype=dtype,
            preview=preview_of_latents(checkpoint, produced, device=device),
        ),
    )


def _guidance_of(
    request: DenoisingRequest, guidance_scale: float, embeds: dict[str, torch.Tensor]
) -> float | None:
    """The scale; None where guidance is off."""
    if guidance_scale <= 1:
        return None
    if NEGATIVE in embeds:
        return guidance_scale
    if request.guidance_scale is not None:
        raise ContractError(
            f"guidance_scale is {guidance_scale:g}, but the sample has no {NEGATIVE}."
        )
    return None
