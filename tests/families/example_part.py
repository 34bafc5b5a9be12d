"""The UNet of latent consistency models: embeddings, noise and a guidance scale to latents.

It was distilled from a guided model: the guidance scale is an input of the network, and there is no
negative half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Argument, Port, conditioning_contract
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import agreed_size_factor, conditioning_inputs
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
from carrara_models.denoising.together import advance_together
from carrara_models.denoising.unet_config import check_unet_inputs, prompt_embeds_width
from carrara_models.describing import described
from carrara_models.errors import CheckpointError
from carrara_models.parts import DenoisingRequest, Described, Sample
from carrara_models.shared_contracts import produced_latents

# By this argument the SDK knows that `guidance_scale` is an input of the network. It is always
# off: no negative half is encoded, and a caller with a negative prompt is told that it has no
# effect.
NO_TRUE_CFG = Argument("true_cfg_scale", minimum=1, maximum=1, default=1)


@dataclass(frozen=True)
class LatentConsistencyUNet(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to `LatentConsistencyModelPipeline`.

    Attributes:
        defaults: Settings of a request that says nothing; height and width are None where the size
            factor decides them and this part does not know it.
    """

    unet: Any
    samplers: Samplers
    defaults: Settings

    def rows(self, request: DenoisingRequest) -> int:
        """One: there is no negative half."""
        return 1

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> DenoisingJob:
        """Checks the request, draws x_T and sets up the job's scheduler.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The conditioning or the consumer does not fit.
        """
        (produced,), (consumed,) = self.produces, self.consumes
        config = self.unet.config
        size_factor = agreed_size_factor(produced, request.consumer)
        settings = settle(
            request,
            defaults=self.defaults,
            height=config.sample_size * size_factor,
            width=config.sample_size * size_factor,
            multiple_of=max(limits.PIXEL_MULTIPLE, size_factor),
        )
        placed = {"device": self.device, "dtype": self.dtype}
        inputs = conditioning_inputs(
            request.conditioning, consumed.contract, guided=False, **placed
        )
        inputs["guidance"] = self._embedded(settings.guidance_scale)
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
        generator = torch_generator(request.random_state)
        height, width = settings.height // size_factor, settings.width // size_factor
        noise = randn_tensor((1, config.in_channels, height, width), generator=generator, **placed)
        return DenoisingJob(
            latents=noise * scheduler.init_noise_sigma,
            inputs=inputs,
            guidance_scale=None,
            scheduler=scheduler,
            torch_generator=generator,
            height=settings.height,
            width=settings.width,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the UNet once for all jobs; gives [1, C, h, w] for each, in order."""
        return call_network(jobs, self._call, numerics=self.numerics)

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        return advance_together(jobs, outputs)

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the latents [1, C, h, w], with the random state after the last draw."""
        return job.sample({"latents": job.latents})

    def _embedded(self, guidance_scale: float) -> torch.Tensor:
        """The guidance scale as the UNet takes it, [1, `time_cond_proj_dim`]."""
        # As the pipeline does: in Imagen's words a scale of 1 is off, in the paper's 0.
        scale = torch.tensor([guidance_scale - 1])
        embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
            None,  # it needs nothing of a pipeline
            scale,
            embedding_dim=self.unet.config.time_cond_proj_dim,
        )
        return embedding.to(self.device, self.dtype)

    def _call(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        prompt_embeds: torch.Tensor,
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        return self.unet(
            latents,
            timesteps,
            timestep_cond=guidance,
            encoder_hidden_states=prompt_embeds,
            return_dict=False,
        )[0]


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> LatentConsistencyUNet:
    """Loads UNet and scheduler of a checkpoint that was opened for the generator.

    Raises:
        CheckpointError: A file is broken, or the UNet wants inputs that this family does not give.
    """
    unet = load_component(checkpoint, "unet", loader=UNet2DConditionModel, dtype=dtype)
    config = unet.config
    if config.time_cond_proj_dim is None:
        raise CheckpointError(f"{checkpoint.path / 'unet'}: this UNet takes no guidance scale.")
    check_unet_inputs(
        checkpoint,
        config,
        in_channels=(config.out_channels,),
        time_cond_proj_dim=(config.time_cond_proj_dim,),
    )
    samplers = load_samplers(checkpoint, others=())
    produced = produced_latents(checkpoint, channels=config.out_channels)
    size = config.sample_size * produced.size_factor
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default, height=size, width=size)
    arguments = settings_arguments(
        defaults, multiple_of=max(limits.PIXEL_MULTIPLE, produced.size_factor)
    )
    conditioning = conditioning_contract(
        {"prompt_embeds": (1, 0, prompt_embeds_width(config))},
        space=checkpoint.conditioning_space,
    )
    return LatentConsistencyUNet(
        unet=unet.to(device),
        samplers=samplers,
        defaults=defaults,
        **described(
            checkpoint,
            {"unet": unet, "scheduler": samplers.own},
            consumes=(Port(conditioning),),
            produces=(produced,),
            arguments=(*arguments, NO_TRUE_CFG),
            device=device,
            dtype=dtype,
            preview=preview_of_latents(checkpoint, produced, device=device),
        ),
    )
