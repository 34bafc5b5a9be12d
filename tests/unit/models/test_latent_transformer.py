from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel

from carrara_models.checkpoints import open_checkpoint
from carrara_models.contracts import Contract, Kind, TensorSpec
from carrara_models.denoising.binning import SANA_BINS, nearest_bin
from carrara_models.denoising.run import advance_alone, run_alone
from carrara_models.errors import BadFieldError, CheckpointError, ContractError, NumericalError
from carrara_models.parts import DenoisingRequest
from carrara_models.pruning import prune
from families import pixart_sigma, sana, sd3

VAE = Contract(kind=Kind.LATENTS, tensors=(TensorSpec("latents", (1, 4, 0, 0)),), size_factor=4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[Any], Path]:
    """Copies a case's checkpoint, to be changed."""
    return lambda case: Path(shutil.copytree(case.folders[0], tmp_path / case.name))


def sd3_request(*, negative: bool = True, **settings: Any) -> DenoisingRequest:
    drawn = torch.Generator().manual_seed(0)
    shapes = {"prompt_embeds": (1, 90, 96), "pooled_prompt_embeds": (1, 80)}
    conditioning = {
        prefix + name: torch.randn(shape, generator=drawn)
        for prefix in ("", "negative_")[: 2 if negative else 1]
        for name, shape in shapes.items()
    }
    return DenoisingRequest(conditioning, 1, **{"num_inference_steps": 2} | settings)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("height", 44, "a multiple of 8"),
        ("width", 136, "at most 128"),
        ("scheduler", "euler", "one of flow-euler, flow-heun"),
        ("guidance_scale", -1.0, "0 to 30"),
        ("use_resolution_binning", True, "no bins"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_the_range(
    load: Callable[..., Any], field: str, value: Any, allowed: str
) -> None:
    generator = load(sd3.CASE.folders[0], "generator")
    with pytest.raises(BadFieldError) as refusal:
        generator.start(sd3_request(**{field: value}))
    assert refusal.value.field == field
    assert allowed in refusal.value.allowed


def test_pooled_embeddings_that_are_missing_are_refused(load: Callable[..., Any]) -> None:
    generator = load(sd3.CASE.folders[0], "generator")
    with pytest.raises(ContractError, match="has no pooled_prompt_embeds"):
        generator.start(DenoisingRequest({"prompt_embeds": torch.zeros(1, 90, 96)}, 1))


def test_a_shift_by_size_leaves_no_choice_of_heun(load: Callable[..., Any]) -> None:
    by_size = load(sd3.WITHOUT_T5.folders[0], "generator")
    assert by_size.samplers.names == ("flow-euler",)
    with pytest.raises(BadFieldError, match="flow-heun"):
        by_size.start(sd3_request(scheduler="flow-heun"))
    small, large = (
        by_size.start(sd3_request(height=size, width=size)).scheduler.sigmas for size in (16, 64)
    )
    assert large[1] > small[1]


def test_heun_calls_the_network_twice_per_step_but_the_last(load: Callable[..., Any]) -> None:
    generator = load(sd3.CASE.folders[0], "generator")
    job = generator.start(sd3_request(scheduler="flow-heun", num_inference_steps=4))
    assert (job.num_steps, job.rows) == (7, 2)


def test_without_the_vae_the_consumer_says_the_size(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(sd3.CASE.folders[0], stage="generator")
    generator = load(prune(checkpoint, output=tmp_path / "pruned"), "generator")
    job = generator.start(sd3_request(consumer=VAE))
    assert (job.height, job.width, tuple(job.latents.shape)) == (64, 64, (1, 4, 16, 16))
    with pytest.raises(BadFieldError, match="a multiple of 16"):
        generator.start(sd3_request(consumer=replace(VAE, size_factor=8), height=40))
    with pytest.raises(ContractError, match="not guessed"):
        generator.start(sd3_request())


def test_not_a_number_stops_the_job_with_the_step(load: Callable[..., Any]) -> None:
    generator = load(sd3.CASE.folders[0], "generator")
    job = generator.start(sd3_request())
    advance_alone(generator, job, *generator.predict([job]))
    with pytest.raises(NumericalError, match="latents after step 2"):
        advance_alone(generator, job, torch.full((2, 4, 16, 16), torch.nan))


def test_a_transformer_that_makes_other_channels_is_refused(
    checkpoint: Callable[[Any], Path], load: Callable[..., Any]
) -> None:
    folder = checkpoint(sd3.CASE)
    config = SD3Transformer2DModel.load_config(folder / "transformer")
    config["out_channels"] = 8
    SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    with pytest.raises(CheckpointError, match="out_channels"):
        load(folder, "generator")


def masked_request(dim: int, **settings: Any) -> DenoisingRequest:
    drawn = torch.Generator().manual_seed(0)
    conditioning = {
        prefix + name: tensor
        for prefix in ("", "negative_")
        for name, tensor in (
            ("prompt_embeds", torch.randn(1, 10, dim, generator=drawn)),
            ("prompt_attention_mask", torch.ones(1, 10, dtype=torch.int64)),
        )
    }
    return DenoisingRequest(conditioning, 1, **{"num_inference_steps": 2} | settings)


def test_a_bin_is_painted_and_the_decoder_told_what_was_asked_for(
    load: Callable[..., Any],
) -> None:
    generator = load(pixart_sigma.CASE.folders[0], "generator")
    wanted = masked_request(pixart_sigma.T5_WIDTH, height=104, width=152)
    sample = run_alone(generator, wanted)
    assert (sample.height, sample.width, sample.resize_to) == (208, 304, (104, 152))
    assert tuple(sample.tensors["latents"].shape) == (1, 4, 26, 38)
    decoder = load(pixart_sigma.CASE.folders[0], "decoder")
    assert tuple(decoder.decode([sample])[0].shape) == (1, 3, 104, 152)


def test_without_bins_sizes_are_multiples_of_a_patch(load: Callable[..., Any]) -> None:
    generator = load(pixart_sigma.CASE.folders[0], "generator")
    plain = masked_request(pixart_sigma.T5_WIDTH, height=104, width=96)
    generator.start(plain)
    with pytest.raises(BadFieldError, match="a multiple of 16"):
        generator.start(replace(plain, use_resolution_binning=False))
    sizes = replace(plain, use_resolution_binning=False, height=112)
    job = generator.start(sizes)
    assert (job.height, job.width, job.resize_to) == (112, 96, None)


def test_a_sample_size_without_bins_is_painted_as_asked(
    checkpoint: Callable[[Any], Path], load: Callable[..., Any]
) -> None:
    folder = checkpoint(pixart_sigma.CASE)
    config = PixArtTransformer2DModel.load_config(folder / "transformer") | {"sample_size": 8}
    PixArtTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    generator = load(folder, "generator")
    assert "use_resolution_binning" not in {argument.name for argument in generator.arguments}
    wanted = masked_request(pixart_sigma.T5_WIDTH)
    job = generator.start(wanted)
    assert (job.height, job.width, job.resize_to) == (64, 64, None)
    with pytest.raises(BadFieldError, match="no bins"):
        generator.start(replace(wanted, use_resolution_binning=True))


def test_a_bin_above_the_limit_of_pixels_is_refused() -> None:
    with pytest.raises(BadFieldError, match="4096 x 4096") as refusal:
        nearest_bin(1024, 1024, SANA_BINS[128])
    assert refusal.value.field == "use_resolution_binning"


def test_a_transformer_by_its_earlier_name_is_loaded(
    checkpoint: Callable[[Any], Path], load: Callable[..., Any]
) -> None:
    """The published checkpoints say Transformer2DModel, and diffusers maps it to PixArt's."""
    folder = checkpoint(pixart_sigma.CASE)
    for file, change in (
        ("model_index.json", {"transformer": ["diffusers", "Transformer2DModel"]}),
        ("transformer/config.json", {"_class_name": "Transformer2DModel"}),
    ):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | change))
    wanted = masked_request(pixart_sigma.T5_WIDTH, height=64, width=64)
    early = run_alone(load(folder, "generator"), wanted)
    named = run_alone(load(pixart_sigma.CASE.folders[0], "generator"), wanted)
    assert torch.equal(early.tensors["latents"], named.tensors["latents"])
    settings = pixart_sigma.CASE.settings["as-asked"]
    pixart_sigma.paint([folder], settings)  # the oracle can load it too


@pytest.mark.parametrize(
    ("case", "component", "changes", "message"),
    [
        (pixart_sigma.CASE, "transformer", {"use_additional_conditions": True}, "additional"),
        (sana.CASE, "transformer", {"guidance_embeds": True}, "guidance_embeds"),
        (sana.FLOW, "scheduler", {"use_dynamic_shifting": True}, "does not tell a scheduler"),
    ],
)
def test_a_config_that_the_pipeline_cannot_run_is_refused(
    checkpoint: Callable[[Any], Path],
    load: Callable[..., Any],
    case: Any,
    component: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    folder = checkpoint(case)
    if component == "transformer":
        model = load(folder, "generator").transformer
        config = dict(model.config) | changes
        type(model).from_config(config).save_pretrained(folder / "transformer")
    else:
        file = folder / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        load(folder, "generator")


def test_sana_keeps_its_latents_in_float32(load: Callable[..., Any]) -> None:
    generator = load(sana.CASE.folders[0], "generator", torch.bfloat16)
    sample = run_alone(generator, masked_request(sana.GEMMA_WIDTH, height=128, width=128))
    assert sample.tensors["latents"].dtype == torch.float32


def test_sana_without_bins_wants_whole_cells(load: Callable[..., Any]) -> None:
    generator = load(sana.CASE.folders[0], "generator")
    wanted = masked_request(sana.GEMMA_WIDTH, height=128, width=104, use_resolution_binning=False)
    with pytest.raises(BadFieldError, match="a multiple of 32"):
        generator.start(wanted)
