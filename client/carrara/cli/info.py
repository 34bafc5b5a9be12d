"""`carrara info`: what running stages say of themselves, or what a checkpoint's JSON files say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from carrara.chain import held_to, link
from carrara.cli.addresses import Decoders, Generators, TextEncoders
from carrara.cli.checkpoint_files import DEFAULT_CHECKPOINT, describe_checkpoint
from carrara.connections import Stage
from carrara.contracts import kind_name
from carrara.exceptions import ContractError, InvalidArgumentError
from carrara.manifest import Manifest, read_manifest
from carrara.outcomes import NUMERICS_NAMES
from carrara.prompts import allowed_range
from carrara.v1.stage_pb2 import Argument, Contract
from carrara.v1.tensor_pb2 import DataType

SAFETY_NOTE = "Safety checkers are not loaded: pictures are neither filtered nor marked."


def info(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder or embedded name; by default the shipped one.")
    ] = None,
    cascade: Annotated[
        Path | None,
        typer.Option(help="A manifest whose stages all have an address.", metavar="FILE"),
    ] = None,
    text_encoder: TextEncoders = None,
    generator: Generators = None,
    decoder: Decoders = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Describe running stages, given their addresses, or a checkpoint, given its name or folder.

    A checkpoint is read from its JSON files alone.
    """
    addresses = [
        *(("text-encoder", address) for address in text_encoder or []),
        *(("generator", address) for address in generator or []),
        *(("decoder", address) for address in decoder or []),
    ]
    manifest = None if cascade is None else read_manifest(cascade)
    if manifest is not None:
        for stage in manifest.stages:
            if stage.address is None:
                raise InvalidArgumentError(
                    f"{cascade}: the {stage.stage} has no address; `carrara info CHECKPOINT` "
                    "describes what does not run"
                )
        addresses = [(stage.role, stage.address or "") for stage in manifest.stages]
    refusal = None
    if checkpoint is not None or not addresses:
        described = describe_checkpoint(checkpoint or DEFAULT_CHECKPOINT)
        tables = _checkpoint_tables(described)
    else:
        described, refusal = asyncio.run(_describe(addresses, manifest))
        tables = [_stage_table(stage) for stage in described["stages"]]
    described["safety_checker"] = SAFETY_NOTE
    if as_json:
        typer.echo(json.dumps(described, ensure_ascii=False))
    else:
        console = Console()
        for table in tables:
            console.print(table)
        console.print(SAFETY_NOTE)
    if refusal is not None:
        raise refusal


async def _describe(
    addresses: Sequence[tuple[str, str]],
    manifest: Manifest | None,
) -> tuple[dict[str, Any], ContractError | None]:
    """Asks every stage, then tells whether they fit: a stage that does not is still described."""
    stages = [Stage(address, role=role) for role, address in addresses]
    try:
        await asyncio.gather(*(stage.describe() for stage in stages))
    finally:
        await asyncio.gather(*(stage.close() for stage in stages))
    encoders = [stage for stage in stages if stage.role == "text-encoder"]
    painters = [stage for stage in stages if stage.role != "text-encoder"]
    refusal = None
    if painters:
        try:
            chain = link(encoders, painters)
            if manifest is not None:
                held_to(chain, manifest)
        except ContractError as error:
            refusal = error
    return {"stages": [_stage(stage) for stage in stages], "fits": refusal is None}, refusal


def _stage(stage: Stage) -> dict[str, Any]:
    description = stage.description
    provenance = description.provenance
    return {
        "role": stage.role,
        "stage": description.stage or stage.role,
        "address": stage.address,
        "checkpoint": description.checkpoint,
        "family": description.family,
        "fingerprint": description.fingerprint,
        "components": [
            {"name": c.name, "class_name": c.class_name, "parameters": c.parameters}
            for c in description.components
        ],
        "consumes": [_contract(port.contract) for port in description.consumes],
        "produces": [_contract(contract) for contract in description.produces],
        "settings": {argument.name: _setting(argument) for argument in description.arguments},
        "numerics": NUMERICS_NAMES.get(provenance.numerics, "unknown"),
        "precision": DataType.Name(provenance.precision).removeprefix("DATA_TYPE_").lower(),
        "device": provenance.device,
        "num_threads": provenance.num_threads,
        "versions": dict(provenance.versions),
        "jobs_running": description.load.jobs_running,
        "jobs_queued": description.load.jobs_queued,
        "draining": description.load.draining,
        "previews": description.previews,
    }


def _contract(contract: Contract) -> dict[str, Any]:
    return {
        "kind": kind_name(contract.kind),
        "space": contract.space,
        "tensors": {spec.name: list(spec.shape) for spec in contract.tensors},
        "size_factor": contract.size_factor,
        "scaling_factor": contract.scaling_factor,
    }


def _setting(argument: Argument) -> dict[str, Any]:
    if argument.choices:
        return {"default": argument.choices[0], "allowed": ", ".join(argument.choices)}
    return {
        "default": argument.default_number if argument.HasField("default_number") else None,
        "allowed": allowed_range(argument, multiple_of=argument.multiple_of),
    }


def _stage_table(stage: dict[str, Any]) -> Table:
    table = Table(
        title=f"{stage['stage']} {stage['address']}", show_header=False, title_justify="left"
    )
    table.add_row("checkpoint", f"{stage['checkpoint']} ({stage['family']})")
    table.add_row("fingerprint", stage["fingerprint"])
    for component in stage["components"]:
        parameters = component["parameters"]
        size = f", {parameters:,} parameters" if parameters else ""
        table.add_row(component["name"], component["class_name"] + size)
    for direction in ("consumes", "produces"):
        for contract in stage[direction]:
            space = contract["space"][:12] or "unknown"
            table.add_row(direction, f"{contract['kind']} in the space {space}")
    for name, setting in stage["settings"].items():
        value = setting["default"]
        value = f"{value:g}" if isinstance(value, float) else value
        table.add_row(name, f"{value or 'no default'}; allowed: {setting['allowed']}")
    table.add_row("numerics", f"{stage['numerics']}, {stage['precision']}")
    table.add_row("device", f"{stage['device']}, {stage['num_threads']} threads")
    if stage["previews"]:
        table.add_row("previews", "shows its jobs under way")
    if stage["draining"]:
        table.add_row("draining", "takes no new work")
    table.add_row("jobs", f"{stage['jobs_running']} running, {stage['jobs_queued']} waiting")
    return table


def _checkpoint_tables(described: dict[str, Any]) -> list[Table]:
    if "checkpoints" in described:
        stages = Table(
            "stage",
            "role",
            "folder",
            "fingerprint",
            title=f"{described['checkpoint']}: a cascade in {described['path']}",
            title_justify="left",
        )
        for stage in described["stages"]:
            folder = Path(stage["path"]).name
            stages.add_row(stage["stage"], stage["role"], folder, (stage["fingerprint"] or "")[:12])
        return [
            stages,
            *(table for each in described["checkpoints"] for table in _checkpoint_tables(each)),
        ]
    table = Table(
        "component",
        "class",
        "weights",
        "fingerprint",
        title=f"{described['checkpoint']}: {described['class_name']} in {described['path']}",
        title_justify="left",
    )
    for component in described["components"]:
        megabytes = f"{component['bytes'] / 1e6:.1f} MB" if component["bytes"] else ""
        table.add_row(
            component["name"],
            component["class_name"],
            megabytes if component["loaded"] else "not loaded",
            (component["fingerprint"] or "")[:12],
        )
    tables = [table]
    if described["defaults"]:
        defaults = Table("setting", "default", title="carrara.json", title_justify="left")
        for name, value in described["defaults"].items():
            defaults.add_row(name, str(value))
        tables.append(defaults)
    return tables
