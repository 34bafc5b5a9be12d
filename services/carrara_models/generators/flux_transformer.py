"""Flux's transformer: embeddings and noise to latents.

It sees the latents packed, each 2 x 2 cells as one token; outside of its call they never are. Its
guidance scale is an input, which the model was distilled to obey; classifier-free guidance beside
it has a scale of its own, `true_cfg_scale`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.utils.torch_utils import randn_tensor

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Argument, Port, conditioning_contract
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import agreed_size_factor, conditioning_inputs, guidance_of
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.previews import preview_of_latents
from carrara_models.denoising.random import torch_generator
from carrara_models.denoising.schedulers import Samplers, load_samplers
from carrara_models.denoising.settings import (
    Settings,
    chosen,
    pipeline_defaults,
    settings_arguments,
    settle,
)
from carrara_models.denoising.shifting import dynamic_shift
from carrara_models.denoising.together import advance_together, guided_together
from carrara_models.describing import described
from carrara_models.errors import CheckpointError
from carrara_models.parts import DenoisingRequest, Described, Sample
from carrara_models.shared_contracts import produced_latents

PATCH = 2  # cells along each side of a token
SAMPLE_SIZE = 128  # latent cells; `FluxPipeline` has it as a literal

TRUE_CFG_SCALE = Argument(
    "true_cfg_scale",
    minimum=limits.MIN_GUIDANCE_SCALE,
    maximum=limits.MAX_GUIDANCE_SCALE,
    default=1,
)


@dataclass(frozen=True)
class FluxTransformer(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to `FluxPipeline` on the CPU.

    Attributes:
        defaults: Settings of a request that says nothing; height and width are None where the size
            factor decides them and this part does not know it.
    """

    transformer: Any
    samplers: Samplers
    defaults: Settings

    def rows(self, request: DenoisingRequest) -> int:
        """Two with classifier-free guidance, else one."""
        scale = TRUE_CFG_SCALE.default if request.true_cfg_scale is None else request.true_cfg_scale
        return 2 if scale > 1 and "negative_prompt_embeds" in request.conditioning else 1

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> DenoisingJob:
        """Checks the request, draws x_T and sets up the job's scheduler.

        Classifier-free guidance is on if the negative embeddings are there and `true_cfg_scale` is
        above 1.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The conditioning or the consumer does not fit.
        """
        (produced,), (consumed,) = self.produces, self.consumes
        size_factor = agreed_size_factor(produced, request.consumer)
        settings = settle(
            request,
            defaults=self.defaults,
            height=SAMPLE_SIZE * size_factor,
            width=SAMPLE_SIZE * size_factor,
            multiple_of=max(limits.PIXEL_MULTIPLE, PATCH * size_factor),
        )
        true_cfg_scale = guidance_of(
            request, chosen(request, TRUE_CFG_SCALE), name="true_cfg_scale"
        )
        inputs = conditioning_inputs(
            request.conditioning,
            consumed.contract,
            guided=true_cfg_scale is not None,
            device=self.device,
            dtype=self.dtype,
        )
        if self.transformer.config.guidance_embeds:
            rows = 1 if true_cfg_scale is None else 2
            inputs["guidance"] = torch.full(
                [rows], settings.guidance_scale, device=self.device, dtype=torch.float32
            )
        height, width = settings.height // size_factor, settings.width // size_factor
        steps = settings.num_inference_steps
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=steps,
            device=self.device,
            sigmas=np.linspace(1.0, 1 / steps, steps),
            mu=dynamic_shift(self.samplers.own, tokens=(height // PATCH) * (width // PATCH)),
        )
        scheduler.set_begin_index(0)
        generator = torch_generator(request.random_state)
        channels = produced.tensors[0].shape[1]
        return DenoisingJob(
            latents=randn_tensor(
                (1, channels, height, width),
                generator=generator,
                device=self.device,
                dtype=self.dtype,
            ),
            inputs=inputs,
            guidance_scale=true_cfg_scale,
            scheduler=scheduler,
            torch_generator=generator,
            height=settings.height,
            width=settings.width,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the transformer once for all jobs.

        Args:
            jobs: Of one group; their steps, schedulers and guidance may all differ.

        Returns:
            For each job, in order, [rows, C, h, w].
        """
        # The pipeline calls the network once for each half, so each row's numbers are its own.
        return call_network(
            jobs, self._call, inputs=DenoisingJob.plain_input, chunk_rows=1, numerics=self.numerics
        )

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        return advance_together(jobs, guided_together(jobs, outputs))

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the latents [1, C, h, w], with the random state after the last draw."""
        return job.sample({"latents": job.latents})

    def _call(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows, channels, height, width = latents.shape
        packed = self.transformer(
            FluxPipeline._pack_latents(latents, rows, channels, height, width),  # [rows, hw/4, 4C]
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=guidance,
            pooled_projections=pooled_prompt_embeds,
            encoder_hidden_states=prompt_embeds,
            txt_ids=torch.zeros(prompt_embeds.shape[1], 3, device=self.device, dtype=self.dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                rows, height // PATCH, width // PATCH, self.device, self.dtype
            ),
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(packed, height, width, vae_scale_factor=1)


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> FluxTransformer:
    """Loads transformer and scheduler of a checkpoint that was opened for the generator.

    Raises:
        CheckpointError: A file is broken, or the transformer wants more than text and noise.
    """
    transformer = load_component(
        checkpoint, "transformer", loader=FluxTransformer2DModel, dtype=dtype
    )
    config = transformer.config
    _check_inputs(config, checkpoint)
    samplers = load_samplers(checkpoint, others=("flow-euler",))
    produced = produced_latents(checkpoint, channels=config.in_channels // PATCH**2)
    size = SAMPLE_SIZE * produced.size_factor
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default, height=size, width=size)
    arguments = settings_arguments(
        defaults,
        schedulers=samplers.names,
        multiple_of=max(limits.PIXEL_MULTIPLE, PATCH * produced.size_factor),
        without=frozenset() if config.guidance_embeds else frozenset({"guidance_scale"}),
    )
    shapes = {
        "prompt_embeds": (1, 0, config.joint_attention_dim),
        "pooled_prompt_embeds": (1, config.pooled_projection_dim),
    }
    return FluxTransformer(
        transformer=transformer.to(device),
        samplers=samplers,
        defaults=defaults,
        **described(
            checkpoint,
            {"transformer": transformer, "scheduler": samplers.own},
            consumes=(Port(conditioning_contract(shapes, space=checkpoint.conditioning_space)),),
            produces=(produced,),
            arguments=(*arguments, TRUE_CFG_SCALE),
            device=device,
            dtype=dtype,
            preview=preview_of_latents(checkpoint, produced, device=device),
        ),
    )


def _check_inputs(config: Any, checkpoint: Checkpoint) -> None:
    """Refuses the siblings that are fed pictures beside the noise, and other ways of packing."""
    if config.patch_size != 1 or (config.out_channels or config.in_channels) != config.in_channels:
        raise CheckpointError(
            f"{checkpoint.path / 'transformer' / 'config.json'}: this transformer takes "
            f"{config.in_channels} channels and makes {config.out_channels}, in patches of "
            f"{config.patch_size}; FluxPipeline gives it noise alone, packed once."
        )
