"""unCLIP's UNet, which its makers call the decoder: image embedding and text to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import IMAGE, PIXELS, Contract, Kind, Port, TensorSpec
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import (
    check_consumer,
    conditioning_inputs,
    guidance_of,
    sample_tensors,
)
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
from carrara_models.denoising.together import advance_together, guided_with_variance_each
from carrara_models.denoising.unet_config import check_unet_inputs
from carrara_models.describing import described
from carrara_models.errors import CheckpointError, ContractError
from carrara_models.parts import DenoisingRequest, Described, Sample
from carrara_models.shared_contracts import projected_contract

CHANNELS = 3


@dataclass(frozen=True)
class UnclipGenerator(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to `UnCLIPPipeline` on the CPU.

    Attributes:
        text_proj: Makes tokens and an addition to the time embedding out of both embeddings.
        defaults: Settings of a request that says nothing.
    """

    text_proj: Any
    decoder: Any
    samplers: Samplers
    defaults: Settings

    def rows(self, request: DenoisingRequest) -> int:
        """Two with guidance, else one."""
        return 2 if "negative_prompt_embeds" in request.conditioning else 1

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> DenoisingJob:
        """Checks the request, projects the embeddings, draws x_T and sets up the scheduler.

        Guidance is on if the negative embeddings are there, whatever its scale.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The conditioning, the image embedding or the consumer does not fit.
        """
        check_consumer(self.produces, request.consumer)
        settings = settle(request, defaults=self.defaults)
        guidance_scale = guidance_of(request, settings.guidance_scale, at_any_scale=True)
        texts, image = (port.contract for port in self.consumes)
        placed = {"device": self.device, "dtype": self.dtype}
        conditioning = conditioning_inputs(
            request.conditioning, texts, guided=guidance_scale is not None, **placed
        )
        embeds = sample_tensors(request.sample, image, **placed)["image_embeds"]
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
        generator = torch_generator(request.random_state)
        inputs = self._inputs(embeds, guides=guidance_scale is not None, **conditioning)
        size = self.decoder.config.sample_size
        noise = randn_tensor((1, CHANNELS, size, size), generator=generator, **placed)
        return DenoisingJob(
            latents=noise * scheduler.init_noise_sigma,
            inputs=inputs,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            torch_generator=generator,
            height=size,
            width=size,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the UNet once for all jobs.

        Returns:
            For each job, in order, noise and variance [rows, 6, H, W].
        """
        return call_network(jobs, self._call, one_by_one=True, numerics=self.numerics)

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        return advance_together(jobs, guided_with_variance_each(jobs, outputs))

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the pixels [1, 3, H, W], clamped to [-1, 1] as the pipeline does."""
        return job.sample({"pixels": job.latents.clamp(-1, 1)})

    def _inputs(
        self,
        image_embeds: torch.Tensor,
        *,
        guides: bool,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
        prompt_attention_mask: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """What the UNet takes: tokens [rows, K + L, D], their mask, and what is added to time."""
        if prompt_attention_mask.shape[1] != prompt_embeds.shape[1]:
            raise ContractError(
                f"prompt_attention_mask is for {prompt_attention_mask.shape[1]} tokens; "
                f"prompt_embeds have {prompt_embeds.shape[1]}."
            )
        tokens, added_to_time = self.text_proj(
            image_embeddings=image_embeds,
            prompt_embeds=pooled_prompt_embeds,
            text_encoder_hidden_states=prompt_embeds,
            do_classifier_free_guidance=guides,
        )
        further = self.text_proj.clip_extra_context_tokens
        return {
            "tokens": tokens,
            "added_to_time": added_to_time,
            "mask": functional.pad(prompt_attention_mask, (further, 0), value=True),
        }

    def _call(
        self,
        pixels: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        tokens: torch.Tensor,
        added_to_time: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        return self.decoder(
            pixels,
            timesteps,
            encoder_hidden_states=tokens,
            class_labels=added_to_time,
            attention_mask=mask,
            return_dict=False,
        )[0]


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> UnclipGenerator:
    """Loads projection, UNet and scheduler of a checkpoint that was opened for the generator.

    Raises:
        CheckpointError: A file is broken, or these do not fit together.
    """
    text_proj = load_component(checkpoint, "text_proj", loader=UnCLIPTextProjModel, dtype=dtype)
    decoder = load_component(checkpoint, "decoder", loader=UNet2DConditionModel, dtype=dtype)
    samplers = load_samplers(checkpoint, "decoder_scheduler", others=())
    _check(checkpoint, text_proj.config, decoder.config)
    check_variance(samplers.own, checkpoint, "decoder_scheduler", learned=True)
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default, prefix="decoder_")
    width = text_proj.config.clip_embeddings_dim
    return UnclipGenerator(
        text_proj=text_proj.to(device),
        decoder=decoder.to(device),
        samplers=samplers,
        defaults=defaults,
        **described(
            checkpoint,
            {"text_proj": text_proj, "decoder": decoder, "decoder_scheduler": samplers.own},
            consumes=(
                Port(
                    projected_contract(
                        length=0,
                        width=width,
                        pooled_width=width,
                        image_width=None,
                        space=checkpoint.conditioning_space,
                    )
                ),
                Port(
                    Contract(
                        kind=Kind.IMAGE_EMBEDS,
                        space=checkpoint.space("prior"),
                        tensors=(TensorSpec("image_embeds", (1, width)),),
                    )
                ),
            ),
            produces=(PIXELS, IMAGE),
            arguments=settings_arguments(defaults, min_inference_steps=UNCLIP_MIN_STEPS),
            device=device,
            dtype=dtype,
            preview=preview_of_pixels,
        ),
    )


def _check(checkpoint: Checkpoint, text_proj: Any, decoder: Any) -> None:
    check_unet_inputs(
        checkpoint,
        decoder,
        component="decoder",
        in_channels=(CHANNELS,),
        out_channels=(2 * CHANNELS,),
        class_embed_type=("identity",),
        encoder_hid_dim_type=(None,),
        cross_attention_dim=(text_proj.cross_attention_dim,),
    )
    if not isinstance(decoder.sample_size, int):
        raise CheckpointError(
            f"{checkpoint.path / 'decoder' / 'config.json'}: sample_size is "
            f"{decoder.sample_size!r}; unCLIP paints squares, of one whole number."
        )
