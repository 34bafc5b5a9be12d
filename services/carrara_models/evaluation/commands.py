"""The command line `carrara evaluate`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import StableDiffusionPipeline

from carrara_models.embedded import embedded_folder
from carrara_models.evaluation.attributes import AttributeScore, evaluate_attributes
from carrara_models.evaluation.painting import PaintSettings


def evaluate(
    checkpoint: Annotated[
        str, typer.Option(help="A checkpoint's folder, or the name of one that ships with carrara.")
    ] = "drawn-latent",
    attributes: Annotated[
        bool, typer.Option("--attributes", help="Measure which attributes of captions show.")
    ] = False,
    captions: Annotated[int, typer.Option(min=2, help="How many held-out captions.")] = 300,
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
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else embedded_folder(checkpoint)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    defaults = json.loads((folder / "carrara.json").read_text())["defaults"]
    painting = PaintSettings(
        num_inference_steps=num_inference_steps or defaults["num_inference_steps"],
        guidance_scale=defaults["guidance_scale"] if guidance_scale is None else guidance_scale,
        seed=seed,
        batch_size=batch_size,
    )
    scores = evaluate_attributes(pipeline, captions=captions, seed=seed, painting=painting)
    if as_json:
        document = {
            "checkpoint": checkpoint,
            "split": "heldout",
            "captions": captions,
            "settings": {"scheduler": scheduler, **asdict(painting)},
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
