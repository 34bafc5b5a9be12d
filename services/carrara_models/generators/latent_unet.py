"""The latent UNet of Stable Diffusion 1.x, 2.x and XL: embeddings and noise to latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from packaging.version import InvalidVersion, Version

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Argument, Port, conditioning_contract
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.fitting import (
    agreed_size_factor,
    conditioning_inputs,
    guidance_of,
    guided_rows,
)
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.previews import preview_of_latents
from carrara_models.denoising.random import torch_generator
from carrara_models.denoising.schedulers import Samplers, load_samplers
from carrara_models.denoising.settings import (
    ETA,
    GUIDANCE_RESCALE,
    Settings,
    chosen,
    pipeline_defaults,
    settings_arguments,
    settle,
)
from carrara_models.denoising.together import advance_together, guided_together
from carrara_models.describing import described
from carrara_models.errors import CheckpointError
from carrara_models.parts import DenoisingRequest, Described, Sample
from carrara_models.shared_contracts import produced_latents

# SDXL is told the size of the training picture and where it was cropped; pixels.
_SIZES = tuple(
    Argument(name, minimum=0, maximum=limits.MAX_CONDITIONING_SIZE, length=2)
    for name in (
        "original_size",
        "target_size",
        "crops_coords_top_left",
        "negative_original_size",
        "negative_target_size",
        "negative_crops_coords_top_left",
    )
)


@dataclass(frozen=True)
class LatentUNet(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to diffusers' pipelines on the CPU.

    Attributes:
        defaults: Settings of a request that says nothing; height and width are None where the size
            factor decides them and this part does not know it.
        sample_height: Of the latents that the UNet was trained on.
        sample_width: Of the latents that the UNet was trained on.
        is_xl: Whether the UNet takes pooled embeddings and sizes too.
    """

    unet: Any
    samplers: Samplers
    defaults: Settings
    sample_height: int
    sample_width: int
    is_xl: bool

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
        (produced,), (consumed,) = self.produces, self.consumes
        size_factor = agreed_size_factor(produced, request.consumer)
        settings = settle(
            request,
            defaults=self.defaults,
            height=self.sample_height * size_factor,
            width=self.sample_width * size_factor,
            multiple_of=max(limits.PIXEL_MULTIPLE, size_factor),
        )
        guidance_scale = guidance_of(request, settings.guidance_scale)
        inputs = conditioning_inputs(
            request.conditioning,
            consumed.contract,
            guided=guidance_scale is not None,
            device=self.device,
            dtype=self.dtype,
        )
        if self.is_xl:
            inputs["time_ids"] = self._time_ids(
                request, settings, guided=guidance_scale is not None
            )
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
        if self.is_xl and hasattr(scheduler, "set_begin_index"):  # as its pipeline does
            scheduler.set_begin_index(0)
        generator = torch_generator(request.random_state)
        noise = randn_tensor(
            (
                1,
                self.unet.config.in_channels,
                settings.height // size_factor,
                settings.width // size_factor,
            ),
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
            guidance_rescale=chosen(request, GUIDANCE_RESCALE),
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the UNet once for all jobs.

        Args:
            jobs: Of one group; their steps, schedulers and guidance may all differ.

        Returns:
            For each job, in order, [rows, C, h, w].
        """
        return call_network(jobs, self._call, numerics=self.numerics)

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
        pooled_prompt_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        added = {"text_embeds": pooled_prompt_embeds, "time_ids": time_ids}
        return self.unet(
            latents,
            timesteps,
            encoder_hidden_states=prompt_embeds,
            added_cond_kwargs=added if self.is_xl else None,
            return_dict=False,
        )[0]

    def _time_ids(
        self, request: DenoisingRequest, settings: Settings, *, guided: bool
    ) -> torch.Tensor:
        """Original size, crop and target size as SDXL embeds them, [rows, 6]."""
        said = {argument.name: chosen(request, argument) for argument in _SIZES}
        painted = (settings.height, settings.width)
        positive = (
            *(said["original_size"] or painted),
            *(said["crops_coords_top_left"] or (0, 0)),
            *(said["target_size"] or painted),
        )
        negative = positive
        if said["negative_original_size"] and said["negative_target_size"]:
            negative = (
                *said["negative_original_size"],
                *(said["negative_crops_coords_top_left"] or (0, 0)),
                *said["negative_target_size"],
            )
        rows = [negative, positive] if guided else [positive]
        return torch.tensor(rows, dtype=self.dtype, device=self.device)


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> LatentUNet:
    """Loads UNet and scheduler of a checkpoint that was opened for the generator.

    Raises:
        CheckpointError: A file is broken, or the UNet wants inputs that this family does not give.
    """
    is_xl = checkpoint.pipeline_class == "StableDiffusionXLPipeline"
    unet = load_component(checkpoint, "unet", loader=UNet2DConditionModel, dtype=dtype)
    _check_inputs(unet.config, checkpoint, is_xl=is_xl)
    samplers = load_samplers(checkpoint, mends_early_configs=not is_xl)
    produced = produced_latents(checkpoint, channels=unet.config.out_channels)
    sample_height, sample_width = _sample_size(unet.config, is_xl=is_xl)
    size = produced.size_factor
    defaults = pipeline_defaults(
        checkpoint,
        scheduler=samplers.default,
        height=sample_height * size,
        width=sample_width * size,
    )
    arguments = settings_arguments(
        defaults, schedulers=samplers.names, multiple_of=max(limits.PIXEL_MULTIPLE, size)
    )
    width = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    specs = {"prompt_embeds": (1, 0, width)}
    if is_xl:
        specs["pooled_prompt_embeds"] = (1, _pooled_width(unet.config))
    return LatentUNet(
        unet=unet.to(device),
        samplers=samplers,
        defaults=defaults,
        sample_height=sample_height,
        sample_width=sample_width,
        is_xl=is_xl,
        **described(
            checkpoint,
            {"unet": unet, "scheduler": samplers.own},
            consumes=(Port(conditioning_contract(specs, space=checkpoint.conditioning_space)),),
            produces=(produced,),
            arguments=(*arguments, ETA, GUIDANCE_RESCALE, *(_SIZES if is_xl else ())),
            device=device,
            dtype=dtype,
            preview=preview_of_latents(checkpoint, produced, device=device),
        ),
    )


def _pooled_width(config: Any) -> int:
    """Of the pooled embedding: what is left of the added embedding beside six sizes."""
    return config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim


def _check_inputs(config: Any, checkpoint: Checkpoint, *, is_xl: bool) -> None:
    """Refuses UNets that want more than this pipeline gives them."""
    added = ("text_time",) if is_xl else (None, "text")
    wants = {
        "in_channels": config.in_channels != config.out_channels,
        "time_cond_proj_dim": config.time_cond_proj_dim is not None,
        "class_embed_type": config.class_embed_type is not None,
        "num_class_embeds": config.num_class_embeds is not None,
        "addition_embed_type": config.addition_embed_type not in added,
        "encoder_hid_dim_type": config.encoder_hid_dim_type not in (None, "text_proj"),
    }
    if refused := [name for name, is_other in wants.items() if is_other]:
        raise CheckpointError(
            f"{checkpoint.path / 'unet' / 'config.json'}: this UNet wants other inputs "
            f"({', '.join(refused)}) than {checkpoint.pipeline_class} gives."
        )


def _sample_size(config: Any, *, is_xl: bool) -> tuple[int, int]:
    size = config.sample_size
    if not isinstance(size, int):
        return int(size[0]), int(size[1])
    if is_xl:
        return size, size
    try:
        is_early = Version(Version(config.get("_diffusers_version", "1")).base_version) < Version(
            "0.9.0.dev0"
        )
    except InvalidVersion:
        is_early = False
    # Early configs of Stable Diffusion say 32 and mean 64; the pipeline mends them the same way.
    size = 64 if is_early and size < 64 else size
    return size, size
