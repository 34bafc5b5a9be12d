"""The latent UNet of Stable Diffusion 1.x and 2.x: embeddings and noise to latents."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from packaging.version import InvalidVersion, Version

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Argument, Component, Contract, Kind, Port, TensorSpec
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.numerics import exact_rows
from carrara_models.denoising.random import torch_generator
from carrara_models.denoising.schedulers import Samplers, load_samplers
from carrara_models.denoising.settings import Settings, settings_arguments, settle
from carrara_models.errors import CheckpointError, ContractError
from carrara_models.generators.fitting import agreed_size_factor, conditioning_rows
from carrara_models.parts import DenoisingRequest, Sample


@dataclass(frozen=True)
class LatentUNet:
    """A `carrara_models.parts.Generator`; bit-identical to `StableDiffusionPipeline` on the CPU.

    Attributes:
        defaults: Settings of a request that says nothing; height and width are None where the size
            factor decides them and this part does not know it.
        sample_height: Of the latents that the UNet was trained on.
        sample_width: Of the latents that the UNet was trained on.
    """

    unet: Any
    samplers: Samplers
    defaults: Settings
    sample_height: int
    sample_width: int
    fingerprint: str
    family: str
    components: tuple[Component, ...]
    consumes: tuple[Port, ...]
    produces: tuple[Contract, ...]
    arguments: tuple[Argument, ...]
    device: torch.device
    dtype: torch.dtype

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
        prompt_embeds, guidance_scale = conditioning_rows(
            request.conditioning, consumed.contract, guidance_scale=settings.guidance_scale
        )
        if guidance_scale is None and (request.guidance_scale or 0) > 1:
            raise ContractError(
                f"guidance_scale is {request.guidance_scale:g}, but the conditioning has no "
                "negative_prompt_embeds: the prompt was encoded without guidance."
            )
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
        )
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
            prompt_embeds=prompt_embeds.to(device=self.device, dtype=self.dtype),
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            torch_generator=generator,
            num_inference_steps=settings.num_inference_steps,
            height=settings.height,
            width=settings.width,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the UNet once for all jobs.

        Args:
            jobs: Of one group; their steps, schedulers and guidance may all differ.

        Returns:
            For each job, in order, [rows, C, h, w].
        """
        rows = [job.rows for job in jobs]
        # The embedding of time turns timesteps into float32 first, so nothing is lost here.
        timesteps = [job.timestep.to(torch.float32).expand(job.rows) for job in jobs]
        exact = len(jobs) > 1 and self.device.type == "cpu"
        with exact_rows(rows) if exact else contextlib.nullcontext():
            output = self.unet(
                torch.cat([job.network_input() for job in jobs]),
                torch.cat(timesteps),
                encoder_hidden_states=torch.cat([job.prompt_embeds for job in jobs]),
                return_dict=False,
            )[0]
        return list(output.split(rows))

    @torch.no_grad()
    def advance(self, job: DenoisingJob, output: torch.Tensor) -> None:
        """Moves one job one step on by its own scheduler.

        Raises:
            NumericalError: The new latents hold NaN or infinity.
        """
        job.advance(output)

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the latents [1, C, h, w], with the random state after the last draw."""
        if job.step < job.num_steps:
            raise RuntimeError(f"the job is at step {job.step} of {job.num_steps}")
        return Sample(
            tensors={"latents": job.latents},
            height=job.height,
            width=job.width,
            random_state=job.torch_generator.get_state(),
        )


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> LatentUNet:
    """Loads UNet and scheduler of a checkpoint that was opened for the generator.

    Raises:
        CheckpointError: A file is broken, or the UNet wants inputs that this family does not give.
    """
    unet = load_component(checkpoint, "unet", loader=UNet2DConditionModel, dtype=dtype)
    _check_inputs(unet.config, checkpoint)
    samplers = load_samplers(checkpoint)
    produced = _produced(checkpoint, channels=unet.config.out_channels)
    sample_height, sample_width = _sample_size(unet.config)
    size = produced.size_factor
    call = inspect.signature(StableDiffusionPipeline.__call__).parameters
    chosen = checkpoint.defaults
    defaults = Settings(
        num_inference_steps=chosen.num_inference_steps or call["num_inference_steps"].default,
        guidance_scale=call["guidance_scale"].default
        if chosen.guidance_scale is None
        else float(chosen.guidance_scale),
        scheduler=samplers.default,
        height=chosen.height or sample_height * size or None,
        width=chosen.width or sample_width * size or None,
    )
    width = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    return LatentUNet(
        unet=unet.to(device),
        samplers=samplers,
        defaults=defaults,
        sample_height=sample_height,
        sample_width=sample_width,
        fingerprint=checkpoint.fingerprint,
        family=checkpoint.family.name,
        components=(
            Component(
                "unet",
                type(unet).__name__,
                checkpoint.fingerprints["unet"],
                unet.num_parameters(),
            ),
            Component(
                "scheduler",
                type(samplers.own).__name__,
                checkpoint.fingerprints["scheduler"],
                0,
            ),
        ),
        consumes=(
            Port(
                Contract(
                    kind=Kind.CONDITIONING,
                    space=checkpoint.fingerprints.get("text_encoder", ""),
                    tensors=(
                        TensorSpec("prompt_embeds", (1, 0, width)),
                        TensorSpec("negative_prompt_embeds", (1, 0, width), required=False),
                    ),
                )
            ),
        ),
        produces=(produced,),
        arguments=settings_arguments(
            defaults, schedulers=samplers.names, multiple_of=max(limits.PIXEL_MULTIPLE, size)
        ),
        device=device,
        dtype=dtype,
    )


def _produced(checkpoint: Checkpoint, *, channels: int) -> Contract:
    """What is known of the latents: all of it beside the VAE's config, else only their channels."""
    known: dict[str, Any] = {}
    if config := checkpoint.config("vae"):
        known["size_factor"] = 2 ** (len(config["block_out_channels"]) - 1)
        known["scaling_factor"] = float(config.get("scaling_factor", 0.18215))
    return Contract(
        kind=Kind.LATENTS,
        space=checkpoint.fingerprints.get("vae", ""),
        tensors=(TensorSpec("latents", (1, channels, 0, 0)),),
        **known,
    )


def _check_inputs(config: Any, checkpoint: Checkpoint) -> None:
    """Refuses UNets that want more than noise, time and text: another pipeline feeds those."""
    wants = {
        "in_channels": config.in_channels != config.out_channels,
        "time_cond_proj_dim": config.time_cond_proj_dim is not None,
        "class_embed_type": config.class_embed_type is not None,
        "num_class_embeds": config.num_class_embeds is not None,
        "addition_embed_type": config.addition_embed_type not in (None, "text"),
        "encoder_hid_dim_type": config.encoder_hid_dim_type not in (None, "text_proj"),
    }
    if refused := [name for name, is_other in wants.items() if is_other]:
        raise CheckpointError(
            f"{checkpoint.path / 'unet' / 'config.json'}: this UNet wants more than noise, time "
            f"and text ({', '.join(refused)}); {checkpoint.pipeline_class} does not give it."
        )


def _sample_size(config: Any) -> tuple[int, int]:
    size = config.sample_size
    if not isinstance(size, int):
        return int(size[0]), int(size[1])
    try:
        is_early = Version(Version(config.get("_diffusers_version", "1")).base_version) < Version(
            "0.9.0.dev0"
        )
    except InvalidVersion:
        is_early = False
    # Early configs of Stable Diffusion say 32 and mean 64; the pipeline mends them the same way.
    size = 64 if is_early and size < 64 else size
    return size, size
