"""Cascades of several stages and checkpoints: what fits, what is refused, and by whom."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from carrara import AsyncCascade, Cascade, ContractError, InvalidArgumentError
from carrara.cli import run
from carrara.manifest import read_manifest
from carrara.v1 import decoder_pb2, generator_pb2, stage_pb2, text_encoder_pb2
from carrara_models.checkpoints import open_checkpoint, stages_of_all
from carrara_services import embedded
from families import CASES
from integration.in_process import Refusal, events, generate, refusal, served
from tiny_checkpoints import build_sd1, build_sd2


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def folder(case: str, index: int = 0) -> Path:
    return CASES[case].folders[index]


async def connect_refused(**addresses: list[str]) -> ContractError:
    with pytest.raises(ContractError) as caught:
        await AsyncCascade.connect(**addresses)
    return caught.value


async def test_an_imagen_base_before_a_vae_is_refused_by_client_and_stage(tmp_path: Path) -> None:
    sd1 = build_sd1(tmp_path / "sd1")
    async with (
        served("text-encoder", folder("if-base")) as t5,
        served("generator", folder("if-base")) as base,
        served("decoder", sd1) as vae,
    ):
        told = await connect_refused(
            text_encoders=[t5.server.address],
            generators=[base.server.address],
            decoders=[vae.server.address],
        )
        for words in (base.server.address, vae.server.address, "pixels", "latents"):
            assert words in str(told)

        made = await encode(t5, "a red circle")
        consumer = (await vae.describe()).consumes[0].contract
        job = stage_pb2.Job(
            conditioning=made.conditioning,
            random_state=stage_pb2.RandomState(seed=1),
            consumer=consumer,
        )
        at_base = await refused(base.stub.Generate(generator_pb2.GenerateRequest(job=job)))
        assert (at_base.code, at_base.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTRACT")
        assert "pixels" in at_base.message
        assert "latents" in at_base.message

        job.ClearField("consumer")
        job.arguments.num_inference_steps = 2
        picture = (await generate(base, job)).sample
        assert picture.contract.kind == stage_pb2.KIND_IMAGE
        pixels = stage_pb2.Job(sample=picture)
        at_vae = await refused(vae.stub.Decode(decoder_pb2.DecodeRequest(job=pixels)))
        assert (at_vae.code, at_vae.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONTRACT")


async def test_a_prior_without_its_decoder_is_refused_by_client_and_stage() -> None:
    karlo = folder("unclip")
    async with (
        served("text-encoder", karlo) as clip,
        served("generator", karlo, stage="prior") as prior,
        served("generator", karlo) as unet,
        served("decoder", karlo, stage="super-res") as super_res,
    ):
        lonely = await connect_refused(
            text_encoders=[clip.server.address],
            generators=[prior.server.address],
            decoders=[super_res.server.address],
        )
        assert "image embeds" in str(lonely)
        headless = await connect_refused(
            text_encoders=[clip.server.address],
            generators=[unet.server.address],
            decoders=[super_res.server.address],
        )
        assert "consumes image embeds, but no stage before it produces any" in str(headless)

        made = await encode(clip, "a red circle")
        job = stage_pb2.Job(
            conditioning=made.conditioning, random_state=stage_pb2.RandomState(seed=1)
        )
        at_unet = await refused(unet.stub.Generate(generator_pb2.GenerateRequest(job=job)))
        assert (at_unet.code, at_unet.field) == (grpc.StatusCode.INVALID_ARGUMENT, "job.sample")

        job.consumer.CopyFrom((await super_res.describe()).consumes[0].contract)
        at_prior = await refused(prior.stub.Generate(generator_pb2.GenerateRequest(job=job)))
        assert (at_prior.code, at_prior.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "CONTRACT",
        )
        assert "image embeds" in at_prior.message


async def test_embeddings_of_another_width_are_refused_by_client_and_stage(tmp_path: Path) -> None:
    sd1, sd2 = build_sd1(tmp_path / "sd1"), build_sd2(tmp_path / "sd2")
    async with (
        served("text-encoder", sd2) as encoder,
        served("generator", sd1) as generator,
        served("decoder", sd1) as decoder,
    ):
        told = await connect_refused(
            text_encoders=[encoder.server.address],
            generators=[generator.server.address],
            decoders=[decoder.server.address],
        )
        assert "[1, 77, 48]" in str(told)
        made = await encode(encoder, "a red circle")
        job = stage_pb2.Job(
            conditioning=made.conditioning, random_state=stage_pb2.RandomState(seed=1)
        )
        told_by_stage = await refused(
            generator.stub.Generate(generator_pb2.GenerateRequest(job=job))
        )
        assert told_by_stage.reason == "CONTRACT"


async def test_an_operator_lets_another_vae_through_on_both_sides(tmp_path: Path) -> None:
    one, other = build_sd1(tmp_path / "one"), build_sd1(tmp_path / "other")
    change_vae(other)
    own, foreign = (open_checkpoint(each, stage="decoder").space("vae") for each in (one, other))
    assert own != foreign
    async with (
        served("text-encoder", one) as encoder,
        served("generator", one) as strict,
        served("generator", one, also_accepts=(foreign,)) as generator,
        served("decoder", other, also_accepts=(own,)) as decoder,
        served("decoder", other) as strict_decoder,
    ):
        addresses = {
            "text_encoders": [encoder.server.address],
            "generators": [generator.server.address],
            "decoders": [decoder.server.address],
        }
        async with await AsyncCascade.connect(**addresses) as cascade:
            await cascade.generate("a red circle", num_inference_steps=1)
        told = await connect_refused(**{**addresses, "decoders": [strict_decoder.server.address]})
        assert foreign[:12] in str(told)
        made = await encode(encoder, "a red circle")
        consumer = (await decoder.describe()).consumes[0].contract
        job = stage_pb2.Job(
            conditioning=made.conditioning,
            random_state=stage_pb2.RandomState(seed=1),
            consumer=consumer,
        )
        told_by_stage = await refused(strict.stub.Generate(generator_pb2.GenerateRequest(job=job)))
        assert told_by_stage.reason == "CONTRACT"


def change_vae(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 0.01}, file)


@pytest.fixture
def kandinsky(tmp_path: Path) -> Path:
    """A manifest of two checkpoints, written by the command and run in this process."""
    file = tmp_path / "cascade.toml"
    names = [str(each) for each in CASES["kandinsky"].folders]
    assert run(["manifest", *names, "--output", str(file)]) == 0
    return file


def test_a_manifest_runs_its_checkpoints_in_this_process(kandinsky: Path) -> None:
    case = CASES["kandinsky"]
    manifest = read_manifest(kandinsky)
    assert [stage.stage for stage in manifest.stages] == [
        "text-encoder",
        "prior",
        "generator",
        "decoder",
    ]
    settings = case.settings["negative"]
    with Cascade.load(kandinsky) as cascade:
        result = cascade.generate(**settings)
    np.testing.assert_array_equal(
        np.asarray(result.images[0].image), case.oracle(case.folders, settings)
    )
    # Two repositories do not know one another; the manifest says that they belong together.
    assert result.warnings == ()


def test_a_manifest_of_other_weights_is_refused_and_nothing_is_left_running(
    kandinsky: Path,
) -> None:
    own = next(stage.fingerprint for stage in read_manifest(kandinsky).stages)
    assert own is not None
    kandinsky.write_text(kandinsky.read_text().replace(own, "9" * 64))
    with pytest.raises(ContractError, match=r"9{64}"):
        Cascade.load(kandinsky)


def test_a_stage_that_a_manifest_gives_another_role_is_refused(kandinsky: Path) -> None:
    text = kandinsky.read_text()
    assert 'role = "generator"\nstage = "prior"' in text
    kandinsky.write_text(
        text.replace('role = "generator"\nstage = "prior"', 'role = "decoder"\nstage = "prior"')
    )
    with pytest.raises((InvalidArgumentError, ContractError), match=r"decoder|prior"):
        Cascade.load(kandinsky)


async def test_a_manifest_may_mix_what_runs_elsewhere_with_what_runs_here(
    kandinsky: Path,
) -> None:
    case = CASES["kandinsky"]
    movq = case.folders[1]
    async with served("decoder", movq) as decoder:
        name_last_address(kandinsky, decoder.server.address)
        async with await AsyncCascade.load(kandinsky) as cascade:
            settings = case.settings["absent-negative"]
            result = await cascade.generate(**settings)
        assert result.usage[-1].address == decoder.server.address
    np.testing.assert_array_equal(
        np.asarray(result.images[0].image), case.oracle(case.folders, settings)
    )


def test_a_text_encoder_that_checkpoints_share_runs_once() -> None:
    base, super_res = CASES["if"].folders
    assert [stage for _, stage in stages_of_all([base, super_res])] == [
        "text-encoder",
        "generator",
        "super-res",
    ]
    stages = embedded.start(checkpoints=[str(base), str(super_res)], num_threads=1)
    try:
        counts = (len(stages.text_encoders), len(stages.generators), len(stages.decoders))
    finally:
        stages.close()
    assert counts == (1, 1, 1)


async def encode(stage: Any, prompt: str) -> stage_pb2.Result:
    request = text_encoder_pb2.EncodeRequest(prompt=prompt, guidance=True)
    return (await stage.stub.Encode(request)).result


async def refused(call: Any) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(events(call), 30)
    return refusal(caught.value)


def name_last_address(manifest: Path, address: str) -> None:
    before, after = manifest.read_text().rsplit("# address", 1)
    manifest.write_text(f'{before}address = "{address}"\n#{after}')


@pytest.mark.slow
def test_up_runs_a_manifest_and_the_command_line_paints_with_its_stages(
    kandinsky: Path, tmp_path: Path
) -> None:
    """Two generators and two checkpoints; the command finds them in its environment."""
    case = CASES["kandinsky"]
    settings = dict(case.settings["negative"])
    output = tmp_path / "out.png"
    paint = ["generate", str(settings.pop("prompt")), "--output", str(output)]
    for name, value in settings.items():
        if name in ("seed", "negative_prompt", "height", "width", "guidance_scale"):
            paint += [f"--{name.replace('_', '-')}", str(value)]
        else:
            paint += ["--set", f"{name}={value}"]
    carrara = [sys.executable, "-c", "from carrara.cli import main; main()"]
    command = [*carrara, "up", "--cascade", str(kandinsky), "--num-threads", "1"]
    ended = subprocess.run(
        [*command, "--", *carrara, *paint], capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    for stage in ("text-encoder", "prior", "generator", "decoder"):
        assert stage in ended.stderr, "a bar for each stage"
    with Image.open(output) as picture:
        assert picture.text["scheduler"]  # type: ignore[attr-defined]
        assert "prior_guidance_scale" in picture.text  # type: ignore[attr-defined]
        np.testing.assert_array_equal(
            np.asarray(picture), case.oracle(case.folders, case.settings["negative"])
        )
