"""The command line `carrara evaluate`."""

import json
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from diffusers import StableDiffusionPipeline

from carrara_models.checkpoints import open_checkpoint, resolve
from carrara_models.denoising.schedulers import load_samplers
from carrara_models.drawn_world.captions import Language
from carrara_models.drawn_world.scenes import MAX_OBJECTS
from carrara_models.errors import BadFieldError, CheckpointError
from carrara_models.evaluation.attributes import (
    AttributeScore,
    CaptionKind,
    evaluate_attributes,
)
from carrara_models.evaluation.painting import PaintSettings

# What `StableDiffusionPipeline` takes where neither the caller nor the checkpoint says.
PIPELINE_STEPS = 50
PIPELINE_GUIDANCE = 7.5


def evaluate(
    checkpoint: Annotated[
        str, typer.Option(help="A checkpoint's folder, or the name of one that ships with carrara.")
    ] = "drawn-latent",
    attributes: Annotated[
        bool, typer.Option("--attributes", help="Measure which attributes of captions show.")
    ] = False,
    captions: Annotated[int, typer.Option(min=2, help="How many held-out captions.")] = 300,
    language: Annotated[Language, typer.Option(help="Language of the captions.")] = "en",
    max_objects: Annotated[
        int, typer.Option(min=1, max=MAX_OBJECTS, help="The most objects that a caption names.")
    ] = 2,
    paraphrases: Annotated[
        bool, typer.Option("--paraphrases", help="Word captions as no model is trained on.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", "--steps", min=1)
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, max=30)] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A sampler's name; the checkpoint's own when not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    num_threads: Annotated[int, typer.Option(min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a checkpoint on held-out captions of the drawn world."""
    if not attributes:
        raise typer.BadParameter("choose what to measure", param_hint="--attributes")
    torch.set_num_threads(num_threads)
    try:
        opened = open_checkpoint(resolve(checkpoint), stage="generator")
        samplers = load_samplers(opened)
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="--checkpoint") from error
    defaults = opened.defaults
    steps = num_inference_steps or defaults.num_inference_steps or PIPELINE_STEPS
    try:
        sampler = samplers.new(scheduler, num_inference_steps=steps, device=torch.device("cpu"))
    except BadFieldError as error:
        flag = f"--{error.field.replace('_', '-')}"
        raise typer.BadParameter(str(error), param_hint=flag) from error
    guidance = defaults.guidance_scale if guidance_scale is None else guidance_scale
    painting = PaintSettings(
        num_inference_steps=steps,
        guidance_scale=PIPELINE_GUIDANCE if guidance is None else guidance,
        seed=seed,
        batch_size=batch_size,
    )
    pipeline = StableDiffusionPipeline.from_pretrained(
        opened.path, scheduler=sampler, dtype=torch.float32
    )
    kind = CaptionKind(language=language, max_objects=max_objects, paraphrases=paraphrases)
    scores = evaluate_attributes(
        pipeline, captions=captions, seed=seed, painting=painting, kind=kind
    )
    if as_json:
        document = {
            "checkpoint": checkpoint,
            "split": "heldout",
            "captions": captions,
            "caption_kind": asdict(kind),
            "settings": {"scheduler": scheduler or samplers.default, **asdict(painting)},
            "scores": {name: asdict(score) for name, score in scores.items()},
        }
        typer.echo(json.dumps(document))
    else:
        typer.echo(_table(scores))


def _table(scores: dict[str, AttributeScore]) -> str:
    lines = [f"{'':<14}{'score':>8}{'floor':>8}{'ceiling':>9}"]
    lines += [
        f"{name:<14}{score.score:>8.1%}{score.floor:>8.1%}{score.ceiling:>9.1%}"
        for name, score in scores.items()
    ]
    return "\n".join(lines)
