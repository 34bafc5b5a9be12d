"""What `generate` takes beside the prompt, and which stage each setting is for.

The names are diffusers'. A setting goes to the stage that paints. Those of its siblings carry their
name as a prefix: `prior_` of a prior, `super_res_` of super-resolution, `upscaler_` of an upscaler;
where only one stage takes a setting, it needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from google.protobuf.descriptor import FieldDescriptor

from carrara.v1.stage_pb2 import Arguments, DescribeResponse
from carrara.v1.text_encoder_pb2 import EncodeRequest

ROLES = ("text-encoder", "generator", "decoder")

Value = int | float | bool | str | Sequence[int]


class GenerateArguments(TypedDict, total=False):
    """Settings of `generate` and `stream`; what is not given, or None, takes the stages' default.

    Attributes:
        negative_prompt: What to steer away from; needs guidance. In some families an absent one and
            an empty one differ.
        prompt_2: For the second text encoder (SDXL, SD3, Flux); by default the prompt.
        prompt_3: For the third one (SD3).
        negative_prompt_2: Likewise of the negative half.
        negative_prompt_3: Likewise.
        max_sequence_length: Tokens that a T5 or a language model sees.
        clip_skip: How many of CLIP's last layers are left out.
        clean_caption: Whether the caption is cleaned as DeepFloyd IF was trained.
        complex_human_instruction: What Sana's language model is told first; "" for nothing.
        num_images: One by default, or as many as there are seeds.
        seed: 0 to 2^64 - 1; image i has `seed + i` modulo 2^64. Or a list with one for each image.
            None draws one; the result tells which.
        timeout_seconds: For everything together.
        priority: "low", "normal" or "high": what waits in a stage's line is served by it first,
            then by what time is left.
        preview_interval_steps: `stream` yields a `Preview` after every so many steps of each stage
            that can show its jobs; 0 for none. Of those that nobody has taken yet the latest is
            kept.
        num_inference_steps: 1 to the stage's limit.
        guidance_scale: 0 to 1 is off. Flux: an input of the network.
        true_cfg_scale: Flux: guidance between prompt and negative prompt.
        scheduler: A name that the stage knows.
        height: Pixels, a multiple of the model's size factor.
        width: Likewise.
        eta: Share of fresh noise in each DDIM step, 0 to 1.
        guidance_rescale: 0 to 1; against overexposure at high guidance.
        noise_level: Timestep to which a low-resolution picture is noised before it is enlarged.
        original_size: (height, width) that SDXL is told the training picture had; and so the five
            that follow.
        use_resolution_binning: Paint at a size that the model knows and resize (PixArt, Sana).
    """

    negative_prompt: str | None
    prompt_2: str | None
    prompt_3: str | None
    negative_prompt_2: str | None
    negative_prompt_3: str | None
    max_sequence_length: int | None
    clip_skip: int | None
    clean_caption: bool | None
    complex_human_instruction: str | None

    num_images: int | None
    seed: int | Sequence[int] | None
    timeout_seconds: float | None
    priority: str | None
    preview_interval_steps: int | None

    num_inference_steps: int | None
    guidance_scale: float | None
    true_cfg_scale: float | None
    scheduler: str | None
    height: int | None
    width: int | None
    eta: float | None
    guidance_rescale: float | None
    noise_level: int | None
    original_size: Sequence[int] | None
    target_size: Sequence[int] | None
    crops_coords_top_left: Sequence[int] | None
    negative_original_size: Sequence[int] | None
    negative_target_size: Sequence[int] | None
    negative_crops_coords_top_left: Sequence[int] | None
    use_resolution_binning: bool | None

    prior_num_inference_steps: int | None
    prior_guidance_scale: float | None
    prior_scheduler: str | None

    super_res_num_inference_steps: int | None
    super_res_guidance_scale: float | None
    super_res_scheduler: str | None
    super_res_height: int | None
    super_res_width: int | None
    super_res_eta: float | None
    super_res_noise_level: int | None

    upscaler_num_inference_steps: int | None
    upscaler_guidance_scale: float | None
    upscaler_scheduler: str | None
    upscaler_eta: float | None
    upscaler_noise_level: int | None


NAMES = tuple(GenerateArguments.__annotations__)
"""Of all settings."""

OF_THE_REQUEST = ("num_images", "seed", "timeout_seconds", "priority", "preview_interval_steps")
"""Settings that no stage has among its own."""

TEXTS = tuple(
    name
    for name in EncodeRequest.DESCRIPTOR.fields_by_name
    if (name in NAMES and name not in OF_THE_REQUEST) or name == "prompt"
)
"""Settings of text encoders, by the names of `carrara.v1.EncodeRequest`."""


class Described(Protocol):
    """A stage that has told what it is."""

    @property
    def role(self) -> str:
        """text-encoder, generator or decoder."""

    @property
    def description(self) -> DescribeResponse:
        """What it told."""


def prefix_of(stage: Described) -> str:
    """What the settings of a stage begin with; "" for one that is called as its role is."""
    name = stage.description.stage
    return "" if not name or name in ROLES else name.replace("-", "_") + "_"


def full_names(stage: Described) -> list[str]:
    """The settings that a stage takes, as `generate` spells them."""
    prefix = prefix_of(stage)
    return [prefix + argument.name for argument in stage.description.arguments]


def values_for(
    stage: Described, given: Mapping[str, Value], *, stages: Iterable[Described]
) -> dict[str, Value]:
    """Picks what is meant for one stage, by the names of its own description.

    Args:
        given: By the names of `generate`.
        stages: All of the cascade that could take a setting.
    """
    prefix = prefix_of(stage)
    known = {argument.name for argument in stage.description.arguments}
    values: dict[str, Value] = {}
    for name, value in given.items():
        if name in known and (not prefix or stage in takers(name, stages)):
            values[name] = value
    for name, value in given.items():  # later, so that the explicit one counts
        if prefix and name.startswith(prefix) and name.removeprefix(prefix) in known:
            values[name.removeprefix(prefix)] = value
    return values


def takers(name: str, stages: Iterable[Described]) -> list[Described]:
    """The stages that a setting goes to.

    Returns:
        Those whose prefix it has; without a prefix those that have none; else, where there is just
        one sort of stage that takes it under its bare name, that one. Several sorts: all of them,
        which is more than a request may mean.
    """
    stages = list(stages)
    owners = [stage for stage in stages if name in full_names(stage)]
    if owners:
        return owners
    return [
        stage
        for stage in stages
        if any(argument.name == name for argument in stage.description.arguments)
    ]


def kind_of(name: str) -> Any:
    """The protocol's `FieldDescriptor` of a setting, named with or without its prefix, or None."""
    if name in OF_THE_REQUEST:
        return None
    for message in (Arguments.DESCRIPTOR, EncodeRequest.DESCRIPTOR):
        fields = message.fields_by_name
        for prefix in ("", "prior_", "super_res_", "upscaler_"):
            if name.startswith(prefix) and name.removeprefix(prefix) in fields:
                return fields[name.removeprefix(prefix)]
    return None


def parse(name: str, text: str) -> Any:
    """Reads a setting from the command line: a size as 1024x768, a switch as true or false.

    Raises:
        ValueError: It is not of the setting's type.
    """
    field = kind_of(name)
    if field is None:
        raise ValueError(f"there is no setting {name!r}; known: {', '.join(sorted(NAMES))}")
    if field.is_repeated:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            return int(text)
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return float(text)
        case FieldDescriptor.CPPTYPE_BOOL:
            if text.lower() not in ("true", "false"):
                raise ValueError(f"{text!r} is neither true nor false")
            return text.lower() == "true"
        case _:
            return text
