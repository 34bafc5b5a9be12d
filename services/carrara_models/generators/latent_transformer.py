"""The transformers of Stable Diffusion 3, PixArt-Sigma and Sana: text and noise to latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel, SD3Transformer2DModel
from diffusers.utils.torch_utils import randn_tensor

from carrara_models import limits
from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Port, conditioning_contract
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.binning import (
    PIXART_BINS,
    SANA_BINS,
    USE_RESOLUTION_BINNING,
    Bins,
    nearest_bin,
)
from carrara_models.denoising.fitting import (
    agreed_size_factor,
    conditioning_inputs,
    guidance_of,
    guided_rows,
)
from carrara_models.denoising.job import DenoisingJob
from carrara_models.denoising.previews import preview_of_latents
from carrara_models.denoising.random import torch_generator
from carrara_models.denoising.schedulers import SCHEDULERS, Samplers, load_samplers
from carrara_models.denoising.settings import (
    ETA,
    Settings,
    chosen,
    pipeline_defaults,
    settings_arguments,
    settle,
)
from carrara_models.denoising.shifting import dynamic_shift
from carrara_models.denoising.together import advance_together, guided_together
from carrara_models.describing import described
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.parts import DenoisingRequest, Described, Sample
from carrara_models.shared_contracts import produced_latents


@dataclass(frozen=True)
class Habits:
    """How a pipeline uses its transformer.

    Attributes:
        transformer: The transformer's class.
        widths: For each tensor of the conditioning, the name that the transformer's config has for
            its last dimension; None for masks, which have one number per token.
        names: What the transformer calls each tensor of the conditioning.
        constants: What it is given beside these.
        samplers: The names that may be chosen beside the checkpoint's own scheduler.
        scales_latents: Whether x_T and each x_t are scaled as the scheduler says.
        keeps_float32: Whether the latents are float32, whatever the transformer computes in.
        shifts_by_size: Whether the scheduler is told the shift for the size of the picture.
        bins: Sizes that are painted, by the transformer's sample size.
        size: Height and width where nothing is said; None: they follow from the sample size.
    """

    transformer: Any
    widths: Mapping[str, str | None]
    names: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    samplers: tuple[str, ...] = ()
    scales_latents: bool = False
    keeps_float32: bool = False
    shifts_by_size: bool = False
    bins: Mapping[int, Bins] = field(default_factory=dict)
    size: int | None = None


MASKED = {
    "prompt_embeds": "encoder_hidden_states",
    "prompt_attention_mask": "encoder_attention_mask",
}
HABITS: Mapping[str, Habits] = {
    "StableDiffusion3Pipeline": Habits(
        transformer=SD3Transformer2DModel,
        widths={
            "prompt_embeds": "joint_attention_dim",
            "pooled_prompt_embeds": "pooled_projection_dim",
        },
        names={
            "prompt_embeds": "encoder_hidden_states",
            "pooled_prompt_embeds": "pooled_projections",
        },
        samplers=("flow-euler", "flow-heun"),
        shifts_by_size=True,
    ),
    "PixArtSigmaPipeline": Habits(
        transformer=PixArtTransformer2DModel,
        widths={"prompt_embeds": "caption_channels", "prompt_attention_mask": None},
        names=MASKED,
        constants={"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        samplers=tuple(SCHEDULERS),
        scales_latents=True,
        bins=PIXART_BINS,
    ),
    "SanaPipeline": Habits(
        transformer=SanaTransformer2DModel,
        widths={"prompt_embeds": "caption_channels", "prompt_attention_mask": None},
        names=MASKED,
        keeps_float32=True,
        bins=SANA_BINS,
        size=1024,
    ),
}


@dataclass(frozen=True)
class LatentTransformer(Described):
    """A `carrara_models.parts.Denoiser`; bit-identical to diffusers' pipelines on the CPU.

    Attributes:
        defaults: Settings of a request that says nothing; height and width are None where the size
            factor decides them and this part does not know it.
    """

    transformer: Any
    habits: Habits
    samplers: Samplers
    defaults: Settings

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
        settings, resize_to = self._settle(request, size_factor=size_factor)
        guidance_scale = guidance_of(request, settings.guidance_scale)
        inputs = conditioning_inputs(
            request.conditioning,
            consumed.contract,
            guided=guidance_scale is not None,
            device=self.device,
            dtype=self.dtype,
        )
        config, generator = self.transformer.config, torch_generator(request.random_state)
        height, width = settings.height // size_factor, settings.width // size_factor
        options = {}
        if self.samplers.own.config.get("use_dynamic_shifting"):
            tokens = (height // config.patch_size) * (width // config.patch_size)
            options["mu"] = dynamic_shift(self.samplers.own, tokens=tokens)
        scheduler = self.samplers.new(
            settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            device=self.device,
            **options,
        )
        noise = randn_tensor(
            (1, config.in_channels, height, width),
            generator=generator,
            device=self.device,
            dtype=torch.float32 if self.habits.keeps_float32 else self.dtype,
        )
        return DenoisingJob(
            latents=noise * scheduler.init_noise_sigma if self.habits.scales_latents else noise,
            inputs=inputs,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            torch_generator=generator,
            height=settings.height,
            width=settings.width,
            eta=chosen(request, ETA) if ETA in self.arguments else 0.0,
            resize_to=resize_to,
        )

    @torch.no_grad()
    def predict(self, jobs: Sequence[DenoisingJob]) -> list[torch.Tensor]:
        """Calls the transformer once for all jobs.

        Args:
            jobs: Of one group; their steps, schedulers and guidance may all differ.

        Returns:
            For each job, in order, [rows, C, h, w]; C is doubled where it predicts a variance too.
        """
        scaled, plain = DenoisingJob.network_input, DenoisingJob.plain_input
        return call_network(
            jobs,
            self._call,
            inputs=scaled if self.habits.scales_latents else plain,
            numerics=self.numerics,
        )

    @torch.no_grad()
    def advance(
        self, jobs: Sequence[DenoisingJob], outputs: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        """Takes jobs one step on; gives what went wrong with each, in order."""
        channels = jobs[0].latents.shape[1]
        dtype = jobs[0].latents.dtype
        guided = guided_together(jobs, [output.to(dtype) for output in outputs])
        # What stands behind is a variance, which the pipelines leave unused.
        return advance_together(jobs, [output[:, :channels] for output in guided])

    def finish(self, job: DenoisingJob) -> Sample:
        """Gives the latents [1, C, h, w], with the random state after the last draw."""
        return job.sample({"latents": job.latents})

    def _settle(
        self, request: DenoisingRequest, *, size_factor: int
    ) -> tuple[Settings, tuple[int, int] | None]:
        """The settings with the size to paint; and, where that is a bin, the size asked for."""
        config, habits = self.transformer.config, self.habits
        bins = habits.bins.get(config.sample_size)
        is_binned = bins is not None and chosen(request, USE_RESOLUTION_BINNING)
        if request.use_resolution_binning and bins is None:
            raise BadFieldError("use_resolution_binning", True, "off: this model has no bins")
        size = habits.size or config.sample_size * size_factor
        cell = 1 if is_binned else size_factor * config.patch_size
        settings = settle(
            request,
            defaults=self.defaults,
            height=size,
            width=size,
            multiple_of=max(limits.PIXEL_MULTIPLE, cell),
        )
        resize_to = None
        if is_binned:
            resize_to = (settings.height, settings.width)
            height, width = nearest_bin(*resize_to, bins)
            settings = replace(settings, height=height, width=width)
        if longest := config.get("pos_embed_max_size"):  # SD3 learned positions up to here
            longest *= config.patch_size * size_factor
            for name in ("height", "width"):
                if getattr(settings, name) > longest:
                    raise BadFieldError(name, getattr(settings, name), f"at most {longest}")
        return settings, resize_to

    def _call(
        self, latents: torch.Tensor, timesteps: torch.Tensor, **conditioning: torch.Tensor
    ) -> torch.Tensor:
        return self.transformer(
            latents.to(self.dtype),
            timestep=timesteps * self.transformer.config.get("timestep_scale", 1.0),
            **{self.habits.names[name]: tensor for name, tensor in conditioning.items()},
            **self.habits.constants,
            return_dict=False,
        )[0]


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> LatentTransformer:
    """Loads transformer and scheduler of a checkpoint that was opened for the generator.

    Raises:
        CheckpointError: A file is broken, or the transformer wants inputs that its pipeline does
            not give.
    """
    habits = HABITS[checkpoint.pipeline_class]
    transformer = load_component(checkpoint, "transformer", loader=habits.transformer, dtype=dtype)
    config = transformer.config
    samplers = _load_samplers(checkpoint, habits)
    _check_inputs(transformer, checkpoint)
    produced = produced_latents(checkpoint, channels=config.in_channels)
    size = habits.size or config.sample_size * produced.size_factor
    defaults = pipeline_defaults(checkpoint, scheduler=samplers.default, height=size, width=size)
    is_binned = config.sample_size in habits.bins
    cell = 1 if is_binned else produced.size_factor * config.patch_size
    arguments = settings_arguments(
        defaults, schedulers=samplers.names, multiple_of=max(limits.PIXEL_MULTIPLE, cell)
    )
    shapes = {
        name: (1, 0) if width is None else (1, config[width])
        for name, width in habits.widths.items()
    }
    shapes["prompt_embeds"] = (1, 0, config[habits.widths["prompt_embeds"]])
    return LatentTransformer(
        transformer=transformer.to(device),
        habits=habits,
        samplers=samplers,
        defaults=defaults,
        **described(
            checkpoint,
            {"transformer": transformer, "scheduler": samplers.own},
            consumes=(Port(conditioning_contract(shapes, space=checkpoint.conditioning_space)),),
            produces=(produced,),
            arguments=(
                *arguments,
                *((ETA,) if habits.scales_latents else ()),
                *((USE_RESOLUTION_BINNING,) if is_binned else ()),
            ),
            device=device,
            dtype=dtype,
            preview=preview_of_latents(checkpoint, produced, device=device),
        ),
    )


def _load_samplers(checkpoint: Checkpoint, habits: Habits) -> Samplers:
    samplers = load_samplers(checkpoint, others=habits.samplers)
    if not samplers.own.config.get("use_dynamic_shifting"):
        return samplers
    if not habits.shifts_by_size:
        raise CheckpointError(
            f"{checkpoint.path / 'scheduler' / 'scheduler_config.json'}: use_dynamic_shifting is "
            f"on, and {checkpoint.pipeline_class} does not tell a scheduler the picture's size."
        )
    # Heun's scheduler knows only a shift that is the same for all sizes.
    others = tuple(name for name in habits.samplers if name != "flow-heun")
    return load_samplers(checkpoint, others=others)


def _check_inputs(transformer: Any, checkpoint: Checkpoint) -> None:
    """Refuses transformers that want more than their pipeline gives, or make other channels."""
    config = transformer.config
    channels = config.in_channels
    makes = config.out_channels or channels
    wants = {
        "out_channels": makes != channels
        and not (config.get("caption_channels") and makes // 2 == channels),
        "use_additional_conditions": getattr(transformer, "use_additional_conditions", False),
        "guidance_embeds": config.get("guidance_embeds", False),
        "caption_channels": "caption_channels" in config and config["caption_channels"] is None,
    }
    if refused := [name for name, is_other in wants.items() if is_other]:
        raise CheckpointError(
            f"{checkpoint.path / 'transformer' / 'config.json'}: this transformer wants other "
            f"inputs ({', '.join(refused)}) than {checkpoint.pipeline_class} gives."
        )
