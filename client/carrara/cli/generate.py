"""`carrara generate`: paints, shows how far it is, writes the pictures and reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console

from carrara.arguments import parse
from carrara.cascade import Cascade
from carrara.cli.addresses import CascadeFile, Decoders, Generators, TextEncoders, refuse_two_ways
from carrara.cli.half_blocks import shows_pictures
from carrara.cli.progress import show_progress
from carrara.results import GenerationResult


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What to paint; leave out for a model without text.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG; of several, out-0.png, out-1.png, ...")
    ] = Path("out.png"),
    negative_prompt: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="How many.")] = 1,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", "--steps", help="Denoising steps.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How hard to follow the prompt; 0 to 1 is off.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the first picture; drawn if not given.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="The sampler, such as ddim.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting that the cascade takes, such as noise_level=100, "
            "prior_guidance_scale=4 or original_size=1024x768. Repeat for several.",
        ),
    ] = None,
    timeout_seconds: Annotated[float, typer.Option(help="For everything together.")] = 600,
    priority: Annotated[
        str, typer.Option(help="low, normal or high: who is served first where many wait.")
    ] = "normal",
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Show the pictures under way, in a terminal with colours."),
    ] = False,
    preview_interval_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Show them after every so many steps; --preview alone is 1."),
    ] = None,
    cascade: CascadeFile = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or folder to run in this process, in place of addresses. Repeat for a "
            "cascade of several."
        ),
    ] = None,
    text_encoder: TextEncoders = None,
    generator: Generators = None,
    decoder: Decoders = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
) -> None:
    """Paint pictures of a prompt.

    Without addresses, checkpoint and manifest, the checkpoint that ships with Carrara runs in this
    process.
    """
    refuse_two_ways(context, checkpoint=checkpoint, cascade=cascade)
    settings = _settings(more or [])
    paths = _paths(output, num_images)
    _check_writable(paths)
    console = Console(stderr=True)
    interval = preview_interval_steps or int(preview)
    if interval and not shows_pictures(console):
        interval = 0
        typer.echo("carrara: no previews: stderr is no terminal with 256 colours", err=True)

    if cascade is not None:
        opened = Cascade.load(cascade)
    elif not checkpoint and (text_encoder or generator or decoder):
        opened = Cascade.connect(
            text_encoders=text_encoder or [], generators=generator or [], decoders=decoder or []
        )
    else:
        opened = Cascade.embedded(*(checkpoint or []))
    with opened as connected:
        events = connected.stream(
            prompt,
            **{
                "negative_prompt": negative_prompt,
                "num_images": num_images,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "scheduler": scheduler,
                "seed": seed,
                "height": height,
                "width": width,
                "timeout_seconds": timeout_seconds,
                "priority": priority,
                "preview_interval_steps": interval,
                **settings,
            },
        )
        names = [description.stage or role for role, _, description in connected.descriptions]
        result = show_progress(events, names=names, num_images=num_images, console=console)
    for path, image in zip(paths, result.images, strict=True):
        image.save(path)
    if as_json:
        typer.echo(json.dumps(report(result, paths=paths), ensure_ascii=False))
        return
    for warning in result.warnings:
        typer.echo(f"carrara: warning: {warning.message}", err=True)
    for path, image in zip(paths, result.images, strict=True):
        typer.echo(f"{path} (seed {image.seed})")


def report(result: GenerationResult, *, paths: Iterable[Path]) -> dict[str, Any]:
    """Makes the object that `--json` prints."""
    return {
        "prompt": result.prompt,
        "images": [
            {
                "path": str(path),
                "seed": image.seed,
                "width": image.image.width,
                "height": image.image.height,
            }
            for path, image in zip(paths, result.images, strict=True)
        ],
        "num_inference_steps": result.num_inference_steps,
        "guidance_scale": result.guidance_scale,
        "scheduler": result.scheduler,
        "numerics": result.numerics,
        "stages": [
            {
                "role": stage.role,
                "stage": stage.stage,
                "address": stage.address,
                "fingerprint": stage.fingerprint,
                "attempts": stage.attempts,
                "call_ms": round(stage.call_ms, 3),
                "queue_ms": round(stage.queue_ms, 3),
                "running_ms": round(stage.running_ms, 3),
                "compute_ms": round(stage.compute_ms, 3),
            }
            for stage in result.usage
        ],
        "total_ms": round(result.total_ms, 3),
        "warnings": [{"code": w.code, "message": w.message} for w in result.warnings],
    }


def _settings(options: Iterable[str]) -> dict[str, Any]:
    """Reads NAME=VALUE options."""
    settings = {}
    for option in options:
        name, equals, text = option.partition("=")
        try:
            if not equals:
                raise ValueError("it is not NAME=VALUE")
            settings[name] = parse(name, text)
        except ValueError as error:
            raise typer.BadParameter(f"--set {option}: {error}") from error
    return settings


def _paths(output: Path, num_images: int) -> list[Path]:
    if num_images == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(num_images)]


def _check_writable(paths: Iterable[Path]) -> None:
    """Opens each file, which no other test stands for; one that was not there goes again."""
    known = Image.registered_extensions()
    for path in paths:
        if known.get(path.suffix.lower()) not in Image.SAVE:
            raise typer.BadParameter(f"{path}: no picture format has the suffix {path.suffix!r}")
        existed = path.exists()
        try:
            with path.open("ab"):
                pass
            if not existed:
                path.unlink()
        except OSError as error:
            raise typer.BadParameter(f"{path} cannot be written: {error.strerror}") from error
