"""The command line `carrara evaluate`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from carrara.cli.addresses import (
    CascadeFile,
    Decoders,
    Generators,
    TextEncoders,
    refuse_two_ways,
    typed,
)
from carrara.exceptions import ContractError as CascadeContractError
from carrara_models.drawn_world.captions import Language
from carrara_models.drawn_world.scenes import MAX_OBJECTS
from carrara_models.errors import BadFieldError, CheckpointError, ContractError
from carrara_models.evaluation.attributes import CaptionKind
from carrara_models.evaluation.autoencoders import find_rebuild
from carrara_models.evaluation.caption_sets import (
    CaptionSet,
    drawn_captions,
    read_picture_folder,
    read_prompts,
)
from carrara_models.evaluation.estimates import RESAMPLES
from carrara_models.evaluation.networks import CHOICES, DRAWN_CLIP, open_network
from carrara_models.evaluation.reference import read_reference, write_reference
from carrara_models.evaluation.runs import measure_sweep, try_out
from carrara_models.evaluation.sweeps import SweepPoint, to_json, to_markdown
from carrara_models.evaluation.yardstick import Wanted, Yardstick, reference_of
from carrara_models.training.data.records import DataError
from carrara_services.evaluate.painter import open_painter
from carrara_services.evaluate.report import check_plot, plot, read_reports, report
from carrara_services.evaluate.sweep_options import read_sweep
from carrara_services.serving.settings import read_settings
from carrara_services.usage_errors import usage_errors

DRAWN_WORLD_OPTIONS = ("language", "max_objects", "paraphrases")
DRAWN_CAPTIONS = 300
MOST_WARNINGS = 10
_SEVERAL = "Several, separated by commas, make a sweep."


def evaluate(
    context: typer.Context,
    attributes: Annotated[
        bool, typer.Option("--attributes", help="Which attributes of the captions show.")
    ] = False,
    fid: Annotated[bool, typer.Option("--fid", help="Distance from true pictures.")] = False,
    kid: Annotated[bool, typer.Option("--kid", help="The same, for few pictures.")] = False,
    clip_score: Annotated[
        bool, typer.Option("--clip-score", help="How near pictures are to their captions.")
    ] = False,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or folder to run in this process, in place of addresses; drawn-latent "
            "where neither is given. Repeat for a cascade of several."
        ),
    ] = None,
    cascade: CascadeFile = None,
    text_encoder: TextEncoders = None,
    generator: Generators = None,
    decoder: Decoders = None,
    captions: Annotated[
        int | None,
        typer.Option(min=2, help="How many. 300 of the drawn world; of --prompts, all."),
    ] = None,
    language: Annotated[Language, typer.Option(help="Of the drawn world's captions.")] = "en",
    max_objects: Annotated[
        int, typer.Option(min=1, max=MAX_OBJECTS, help="The most that such a caption names.")
    ] = 2,
    paraphrases: Annotated[
        bool, typer.Option("--paraphrases", help="Word them as no model is trained on.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Other captions: a text file, one a line, or a folder of pictures with captions, "
            "which are then the reference.",
            metavar="FILE_OR_FOLDER",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of captions, resamples and picture 0; picture i has seed+i.")
    ] = 0,
    num_inference_steps: Annotated[
        str | None, typer.Option("--num-inference-steps", "--steps", help=_SEVERAL)
    ] = None,
    guidance_scale: Annotated[str | None, typer.Option(help=_SEVERAL)] = None,
    scheduler: Annotated[str | None, typer.Option(help=_SEVERAL)] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting that the cascade takes. Repeat for several; numbers and "
            "schedulers take several values too.",
        ),
    ] = None,
    feature_network: Annotated[
        str, typer.Option(help=f"What FID, KID and CLIP score compare by: {CHOICES}.")
    ] = DRAWN_CLIP,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Stored statistics to compare with, in place of pictures drawn or read here.",
            metavar="FOLDER",
        ),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(
            help="Store the statistics that are compared with. Without a measure, that is all.",
            metavar="FOLDER",
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=2, help="Of the bootstrap.")] = RESAMPLES,
    in_flight: Annotated[int, typer.Option(min=1, help="Pictures asked for at once.")] = 16,
    timeout_seconds: Annotated[float, typer.Option(help="For each picture.")] = 600,
    num_threads: Annotated[
        int, typer.Option(min=1, help="That torch computes with in this process.")
    ] = 1,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Show reports of --json side by side; paint nothing.", metavar="FILE"),
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw the sweep.", metavar="FILE.png")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure what a checkpoint or a running cascade paints.

    Captions are of held-out scenes of the drawn world unless --prompts says otherwise.
    """
    wanted = Wanted(attributes=attributes, fid=fid, kid=kid, clip_score=clip_score)
    with _refusals():
        if compare:
            if wanted != Wanted():
                raise BadFieldError("compare", str(compare[0]), "without a measure")
            points = read_reports(compare)
            if plot_file is not None:
                check_plot(plot_file, points=len(points))
            _show(points, to_json(points) if as_json else None, plot_file)
            return
        if wanted == Wanted() and save_reference is None:
            options = "--attributes, --fid, --kid, --clip-score"
            raise typer.BadParameter(f"choose what to measure: {options}")
        refuse_two_ways(context, checkpoint=checkpoint, cascade=cascade)
        sweep = read_sweep(
            {
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "scheduler": scheduler,
            },
            more or [],
        )
        if plot_file is not None:
            check_plot(plot_file, points=len(sweep))
        if save_reference is not None and (reference is not None or save_reference.exists()):
            allowed = "a new folder, and without --reference"
            raise BadFieldError("save_reference", str(save_reference), allowed)

        begin = time.monotonic()
        torch.set_num_threads(num_threads)
        addresses = {
            "text_encoders": text_encoder or [],
            "generators": generator or [],
            "decoders": decoder or [],
        }
        names = list(checkpoint or [])
        if not names and cascade is None and not any(addresses.values()):
            names = [read_settings({}).checkpoint]
        kind = CaptionKind(language=language, max_objects=max_objects, paraphrases=paraphrases)
        chosen = _captions(context, prompts, captions, seed=seed, kind=kind)
        needs_network = wanted.features or save_reference is not None
        network = open_network(feature_network) if needs_network else None
        rebuild = find_rebuild(names) if chosen.draw_true is not None else None
        yardstick = Yardstick(
            chosen,
            wanted,
            network=network,
            reference=None if reference is None else read_reference(reference),
            rebuild=rebuild,
            seed=seed,
            resamples=resamples,
        )
        points = []
        with open_painter(
            checkpoints=names,
            manifest=cascade,
            addresses=addresses,
            seed=seed,
            in_flight=in_flight,
            timeout_seconds=timeout_seconds,
        ) as painter:
            if (attributes or clip_score) and not painter.reads_captions:
                allowed = "--fid and --kid alone, as this cascade reads no captions"
                raise BadFieldError("attributes" if attributes else "clip_score", True, allowed)
            height, width = try_out(painter.paint, chosen.captions[0], sweep)
            yardstick.prepare(height, width)
            if save_reference is not None and network is not None:
                made = yardstick.reference
                write_reference(
                    made or reference_of(chosen, network, height=height, width=width),
                    save_reference,
                )
            stages = painter.stages
            name = " + ".join(names or dict.fromkeys(stage["checkpoint"] for stage in stages))
            for point in measure_sweep(
                painter.paint,
                chosen.captions,
                sweep if wanted != Wanted() else [],
                yardstick=yardstick,
                checkpoint=name,
            ):
                points.append(point)
                _tell(point, sweep[len(points) - 1], f"{len(points)} of {len(sweep)}")
        for warning in [*chosen.warnings, *painter.warnings][:MOST_WARNINGS]:
            typer.echo(f"carrara: warning: {warning}", err=True)
        if wanted == Wanted():
            typer.echo(save_reference)
            return
        document = report(
            points,
            checkpoint=name,
            seed=seed,
            **chosen.told,
            ceiling_of="true pictures through the autoencoder" if rebuild else "true pictures",
            stages=stages,
            numerics="fast" if painter.inexact else "exact",
            in_flight=in_flight,
            resamples=resamples,
            total_seconds=round(time.monotonic() - begin, 1),
        )
        _show(points, document if as_json else None, plot_file)


def _captions(
    context: typer.Context,
    prompts: Path | None,
    count: int | None,
    *,
    seed: int,
    kind: CaptionKind,
) -> CaptionSet:
    if prompts is None:
        return drawn_captions(count or DRAWN_CAPTIONS, seed=seed, kind=kind)
    for name in DRAWN_WORLD_OPTIONS:
        if typed(context, name):
            flag = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"{flag} is of the drawn world; it excludes --prompts")
    if prompts.is_dir():
        return read_picture_folder(prompts, count=count, seed=seed)
    return read_prompts(prompts, count=count)


def _tell(point: SweepPoint, settings: Mapping[str, Any], place: str) -> None:
    """Tells what a point measured as soon as it is done, since a sweep may take hours."""
    named = ", ".join(f"{name} {value}" for name, value in settings.items())
    values = ", ".join(f"{m.key} {m.estimate.value:.4g}" for m in point.measures)
    typer.echo(f"{place}, {named or 'default settings'}: {values}", err=True)


def _show(
    points: Sequence[SweepPoint], document: Mapping[str, Any] | None, plot_file: Path | None
) -> None:
    typer.echo(to_markdown(points) if document is None else json.dumps(document))
    if plot_file is not None:
        plot(points, plot_file)


@contextmanager
def _refusals() -> Iterator[None]:
    """What parts refuse becomes what the command line knows: exit status 2, or 3 of a contract."""
    try:
        with usage_errors(CheckpointError, DataError):
            yield
    except ContractError as error:
        raise CascadeContractError(str(error)) from error
