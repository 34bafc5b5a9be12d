"""The prior of unCLIP and Kandinsky 2.2: a text's embeddings and noise to an image embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PriorTransformer
from diffusers.utils.torch_utils import randn_tensor

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Contract, Kind, Port, TensorSpec
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import (
    check_consumer,
    checked,
    conditioning_inputs,
    guidance_of,
)
from carrara_models.denoising.job import DenoisingJob
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
from carrara_models.denoising.together import advance_together, guided_together
from carrara_models.describing import described
from carrara_models.errors import CheckpointError, ContractError
from carrara_models.parts import DenoisingRequest, Described, Sample
from carrara_models.shared_contracts import projected_contract


@dataclass
class PriorJob(DenoisingJob):
    """One image embedding under way.

    Attributes:
        zero_image_embeds: [1, E]; goes on as the negative embedding, where none is painted.
    """

    zero_image_embeds: torch.Tensor | None = None


@dataclass(frozen=True)
class Prior(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to diffusers' pipelines on the CPU.

    Attributes:
        defaults: Settings of a request that says nothing.
        is_kandinsky: Whether it makes a negative embedding too: painted beside the positive one
            where the negative prompt was given (two rows), else that of a picture of zeros.
            And whether guidance is off at 1 and below.
    """

    prior: Any
    samplers: Samplers
    defaults: Settings
    is_kandinsky: bool

    def rows(self, request: DenoisingRequest) -> int:
        """One for each embedding that is painted, twice as many with guidance."""
        scale = request.guidance_scale
        scale = self.defaults.guidance_scale if scale is None else scale
        guides = "negative_prompt_embeds" in request.conditioning
        guides = guides and (scale > 1 or not self.is_kandinsky)
        painted = request.conditioning.get("prompt_embeds")
        return (1 if painted is None else len(painted)) * (2 if guides else 1)

    @torch.no_grad()
    def start(self, request: DenoisingRequest) -> PriorJob:
        """Checks the request, draws x_T and sets up the job's scheduler.

        Raises:
            BadFieldError: A setting or the random state is outside its range.
            ContractError: The conditioning or the consumer does not fit.
        """
        (consumed,) = self.consumes
        check_consumer(self.produces, request.consumer)
        settings = settle(request, defaults=self.defaults)
        guidance_scale = guidance_of(
            request, settings.guidance_scale, at_any_scale=not self.is_kandinsky
        )
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
        zero = self._zero_image_embeds(request) if self.is_kandinsky else None
        generator = torch_generator(request.random_state)
        noise = randn_tensor(
            (len(request.conditioning["prompt_embeds"]), self.prior.config.embedding_dim),
            generator=generator,
            device=self.device,
            dtype=self.dtype,
        )
        return PriorJob(
            latents=noise * scheduler.init_noise_sigma,
            inputs=inputs,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            torch_generator=generator,
            height=0,
            width=0,
            zero_image_embeds=zero,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the transformer once for all jobs; gives [rows, E] for each, in order."""
        return call_network(jobs, self._call, numerics=self.numerics)

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[PriorJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        return advance_together(jobs, guided_together(jobs, outputs))

    @torch.no_grad()
    def finish(self, job: PriorJob) -> Sample:
        """Gives `image_embeds` [1, E], of Kandinsky with the `negative_` twin."""
        embeds = self.prior.post_process_latents(job.latents)
        if not self.is_kandinsky:
            return job.sample({"image_embeds": embeds})
        if job.zero_image_embeds is not None:
            negative = job.zero_image_embeds
        else:
            embeds, negative = embeds.chunk(2)
        return job.sample({"image_embeds": embeds, "negative_image_embeds": negative})

    def _call(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        *,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
        prompt_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        return self.prior(
            latents,
            timestep=timesteps,
            proj_embedding=pooled_prompt_embeds,
            encoder_hidden_states=prompt_embeds,
            attention_mask=prompt_attention_mask,
            return_dict=False,
        )[0]

    def _zero_image_embeds(self, request: DenoisingRequest) -> torch.Tensor | None:
        """Of a picture of zeros; None where the negative embedding is painted."""
        (port,) = self.consumes
        specs = {spec.name: spec for spec in port.contract.tensors}
        has_zero = "zero_image_embeds" in request.conditioning
        wanted, beside = (1, "beside") if has_zero else (2, "without")
        for name in ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"):
            if (rows := len(request.conditioning[name])) != wanted:
                raise ContractError(
                    f"{name} have {rows} rows; {wanted} are taken {beside} zero_image_embeds."
                )
        if not has_zero:
            return None
        zero = checked(specs["zero_image_embeds"], request.conditioning)
        return zero.to(self.device, self.dtype)


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> Prior:
    """Loads prior and scheduler of a checkpoint that was opened for the prior.

    Raises:
        CheckpointError: A file is broken, or the prior wants other inputs than its pipeline gives.
    """
    is_kandinsky = checkpoint.pipeline_class == "KandinskyV22PriorPipeline"
    scheduler, prefix = ("scheduler", "") if is_kandinsky else ("prior_scheduler", "prior_")
    samplers = load_samplers(checkpoint, scheduler, others=())
    check_variance(samplers.own, checkpoint, scheduler, learned=False)
    prior = load_component(checkpoint, "prior", loader=PriorTransformer, dtype=dtype)
    _check_inputs(prior.config, checkpoint)
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default, prefix=prefix)
    width = prior.config.embedding_dim
    names = ("image_embeds", "negative_image_embeds") if is_kandinsky else ("image_embeds",)
    return Prior(
        prior=prior.to(device),
        samplers=samplers,
        defaults=defaults,
        is_kandinsky=is_kandinsky,
        **described(
            checkpoint,
            {"prior": prior, scheduler: samplers.own},
            consumes=(
                Port(
                    projected_contract(
                        length=prior.config.num_embeddings,
                        width=width,
                        pooled_width=prior.config.embedding_proj_dim or width,
                        image_width=width if is_kandinsky else None,
                        space=checkpoint.conditioning_space,
                    )
                ),
            ),
            produces=(
                Contract(
                    kind=Kind.IMAGE_EMBEDS,
                    space=checkpoint.space("prior"),
                    tensors=tuple(TensorSpec(name, (1, width)) for name in names),
                ),
            ),
            arguments=settings_arguments(defaults, min_inference_steps=UNCLIP_MIN_STEPS),
            device=device,
            dtype=dtype,
        ),
    )


def _check_inputs(config: Any, checkpoint: Checkpoint) -> None:
    """Refuses priors that take something else than a text's embeddings, or hand on another width.

    Beside the text's tokens stand four more: the pooled text, the time, the noisy embedding, and
    the one whose output is read.
    """
    wants = {
        "added_emb_type": config.added_emb_type != "prd",
        "encoder_hid_proj_type": config.encoder_hid_proj_type != "linear",
        "additional_embeddings": config.additional_embeddings != 4,
        "clip_embed_dim": config.clip_embed_dim not in (None, config.embedding_dim),
    }
    if refused := [name for name, is_other in wants.items() if is_other]:
        raise CheckpointError(
            f"{checkpoint.path / 'prior' / 'config.json'}: this prior wants other inputs "
            f"({', '.join(refused)}) than {checkpoint.pipeline_class} gives."
        )
