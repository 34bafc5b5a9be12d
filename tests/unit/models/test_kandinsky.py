from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from carrara_models.checkpoints import open_checkpoint
from carrara_models.denoising.run import run_alone
from carrara_models.errors import BadFieldError, CheckpointError, ContractError, NumericalError
from carrara_models.limits import MAX_PIXELS
from carrara_models.parts import DenoisingRequest, Sample, Texts
from carrara_models.pruning import prune
from families.kandinsky import CASE, WIDTH

PRIOR, DECODER = CASE.folders
STATE = torch.Generator().manual_seed(4).get_state()
EMBEDS = Sample(
    {name: torch.ones(1, WIDTH) for name in ("image_embeds", "negative_image_embeds")},
    height=0,
    width=0,
    random_state=STATE,
)
POSITIVE = replace(EMBEDS, tensors={"image_embeds": torch.ones(1, WIDTH)})


@pytest.fixture
def text_encoder(load: Callable[..., Any]) -> Any:
    return load(PRIOR, "text-encoder")


@pytest.fixture
def prior(load: Callable[..., Any]) -> Any:
    return load(PRIOR, "prior")


@pytest.fixture
def generator(load: Callable[..., Any]) -> Any:
    return load(DECODER, "generator")


@pytest.fixture
def decoder(load: Callable[..., Any]) -> Any:
    return load(DECODER, "decoder")


@pytest.fixture
def encode(text_encoder: Any) -> Callable[..., dict[str, torch.Tensor]]:
    def encode(**texts: Any) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for piece in text_encoder.split(Texts("a red circle", **texts)):
            tensors |= text_encoder.encode([piece])[0].tensors
        return tensors

    return encode


def painting(**settings: Any) -> DenoisingRequest:
    small = {"num_inference_steps": 2, "height": 32, "width": 32}
    return DenoisingRequest({}, 1, **{"sample": EMBEDS} | small | settings)


def test_the_image_encoder_is_described_and_not_kept(load: Callable[..., Any]) -> None:
    def loaded() -> int:
        gc.collect()
        return sum(type(each) is CLIPVisionModelWithProjection for each in gc.get_objects())

    before = loaded()
    encoder = load(PRIOR, "text-encoder")
    described = {component.name: component.parameters for component in encoder.components}
    assert described["image_encoder"] > 0
    assert loaded() == before


def test_halves_are_encoded_apart_only_without_a_negative_prompt(text_encoder: Any) -> None:
    absent = Texts("a red circle", negative=True)
    assert len(text_encoder.split(absent)) == 2
    given = replace(absent, negative_prompt="")
    assert text_encoder.split(given) == (given,)


@pytest.mark.parametrize("guided", [True, False])
def test_a_negative_prompt_makes_two_rows_and_no_zero_embedding(
    encode: Callable[..., Any], guided: bool
) -> None:
    without = encode(negative=guided)
    assert without["zero_image_embeds"].shape == (1, WIDTH)
    assert {len(tensor) for tensor in without.values()} == {1}
    given = encode(negative=guided, negative_prompt="")
    assert {len(tensor) for tensor in given.values()} == {2}
    assert given.keys() == without.keys() - {"zero_image_embeds"}
    assert any(name.startswith("negative_") for name in given) == guided


def test_the_second_row_is_the_negative_prompts(encode: Callable[..., Any]) -> None:
    given = encode(negative=True, negative_prompt="blue")
    positive, negative = given["pooled_prompt_embeds"]
    assert not torch.allclose(positive, negative)
    for row in given["negative_pooled_prompt_embeds"]:
        torch.testing.assert_close(row, negative)


def test_words_that_were_cut_are_told_of_both_prompts(text_encoder: Any) -> None:
    texts = Texts("circle " * 80, negative_prompt="square " * 90, negative=True)
    truncated = text_encoder.encode([texts])[0].truncated
    assert set(truncated) == {"prompt", "negative_prompt"}
    assert set(truncated["negative_prompt"].split()) == {"square"}


@pytest.mark.parametrize(
    ("negative_prompt", "scale", "rows"), [(None, 4, 2), (None, 1, 1), ("", 4, 4), ("", 1, 2)]
)
def test_rows_of_the_prior_are_known_before_the_job_starts(
    prior: Any, encode: Callable[..., Any], negative_prompt: str | None, scale: float, rows: int
) -> None:
    conditioning = encode(negative=True, negative_prompt=negative_prompt)
    request = DenoisingRequest(conditioning, 1, guidance_scale=scale)
    assert prior.rows(request) == prior.start(request).rows == rows


def test_the_negative_embedding_is_that_of_zeros_or_a_painted_one(
    prior: Any, encode: Callable[..., Any]
) -> None:
    made = {}
    for negative_prompt in (None, "", "blue"):
        conditioning = encode(negative=True, negative_prompt=negative_prompt)
        sample = run_alone(prior, DenoisingRequest(conditioning, 1, num_inference_steps=2))
        assert {tuple(tensor.shape) for tensor in sample.tensors.values()} == {(1, WIDTH)}
        made[negative_prompt] = sample.tensors["negative_image_embeds"]
        if negative_prompt is None:
            assert torch.equal(made[None], conditioning["zero_image_embeds"])
    assert not torch.equal(made[""], made["blue"])


def test_conditioning_of_other_rows_is_refused(prior: Any, encode: Callable[..., Any]) -> None:
    one, two = encode(negative=True), encode(negative=True, negative_prompt="blue")
    zero = {"zero_image_embeds": one["zero_image_embeds"]}
    without = {name: tensor for name, tensor in one.items() if name not in zero}
    twins = {name: two[name] for name in two if "mask" in name}
    narrow = {"zero_image_embeds": torch.zeros(1, 8)}
    for conditioning, message in (
        (two | zero, "prompt_embeds have 2 rows; 1 are taken beside zero_image_embeds"),
        (without, "prompt_embeds have 1 rows; 2 are taken without zero_image_embeds"),
        (one | twins, "prompt_attention_mask have 2 rows; 1 are taken"),
        (one | narrow, r"zero_image_embeds are \[1, 8\]; the denoiser takes \[1, 40\]"),
    ):
        with pytest.raises(ContractError, match=message):
            prior.start(DenoisingRequest(conditioning, 1))


@pytest.mark.parametrize(
    ("asked", "painted"), [((64, 48), (64, 48)), ((50, 33), (64, 48)), ((1, 17), (16, 32))]
)
def test_sizes_are_rounded_up_and_the_sample_says_so(
    generator: Any, decoder: Any, asked: tuple[int, int], painted: tuple[int, int]
) -> None:
    sample = run_alone(generator, painting(height=asked[0], width=asked[1]))
    assert (sample.height, sample.width) == painted
    assert decoder.decode([sample])[0].shape == (1, 3, *painted)


def test_too_many_pixels_are_counted_after_rounding(generator: Any) -> None:
    generator.start(painting(height=2048, width=2048))
    with pytest.raises(BadFieldError, match=f"{MAX_PIXELS} pixels in all.*2064 x 2048") as refusal:
        generator.start(painting(height=2049, width=2047))
    assert refusal.value.field == "height"
    with pytest.raises(BadFieldError, match="rounded up it is 16 x 4194304") as refusal:
        generator.start(painting(height=1, width=MAX_PIXELS))
    assert refusal.value.field == "width"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("height", 0, "from 1 to"),
        ("width", -1, "from 1 to"),
        ("guidance_scale", float("nan"), "0 to 30"),
        ("num_inference_steps", 0, "1 to 1000"),
        ("scheduler", "euler", "one of ddpm, ddim"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_the_range(
    generator: Any, field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(BadFieldError) as refusal:
        generator.start(painting(**{field: value}))
    assert refusal.value.field == field
    assert allowed in refusal.value.allowed


def test_guidance_is_on_with_a_negative_embedding_and_a_scale_above_one(generator: Any) -> None:
    for request, rows in (
        (painting(), 2),
        (painting(guidance_scale=1.0), 1),
        (painting(sample=POSITIVE), 1),
        (painting(sample=POSITIVE, guidance_scale=1.0), 1),
    ):
        assert generator.rows(request) == generator.start(request).rows == rows
    with pytest.raises(ContractError, match=r"guidance_scale is 3, .* no negative_image_embeds"):
        generator.start(painting(sample=POSITIVE, guidance_scale=3.0))


def test_a_generator_without_the_movq_learns_the_size_from_its_consumer(
    generator: Any, decoder: Any, tmp_path: Path, load: Callable[..., Any]
) -> None:
    (port,) = decoder.consumes
    assert generator.produces == (port.contract,)
    assert (port.contract.size_factor, port.contract.scaling_factor) == (4, 1.0)
    pruned = prune(open_checkpoint(DECODER, stage="generator"), output=tmp_path / "pruned")
    alone = load(pruned, "generator")
    assert alone.produces[0].size_factor == 0
    with pytest.raises(ContractError, match="not guessed"):
        alone.start(painting())
    job = alone.start(painting(consumer=port.contract, height=20, width=33))
    assert (job.height, job.width, *job.latents.shape[2:]) == (32, 48, 8, 12)


def test_defaults_are_those_of_the_pipelines_calls(prior: Any, generator: Any) -> None:
    defaults = [{a.name: a.default for a in part.arguments} for part in (prior, generator)]
    assert defaults == [
        {"num_inference_steps": 25, "guidance_scale": 4.0},
        {
            "num_inference_steps": 100,
            "guidance_scale": 4.0,
            "scheduler": None,
            "height": 512,
            "width": 512,
        },
    ]


@pytest.mark.parametrize(
    ("latents", "size", "message"),
    [
        (torch.zeros(1, 4, 8, 8), (64, 64), "stand for 32 x 32"),
        (torch.zeros(1, 3, 8, 8), (32, 32), r"takes \[1, 4, h, w\]"),
        (torch.zeros(1, 4, 0, 8), (0, 32), r"takes \[1, 4, h, w\]"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), (32, 32), "real numbers"),
        (torch.zeros(1, 4, 1024, 1024), (4096, 4096), f"at most {MAX_PIXELS}"),
    ],
)
def test_latents_that_do_not_fit_are_refused_by_the_movq(
    decoder: Any, latents: torch.Tensor, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        decoder.decode([Sample({"latents": latents}, height=size[0], width=size[1])])


def test_not_a_number_is_no_picture(decoder: Any) -> None:
    latents = torch.full((1, 4, 8, 8), torch.nan)
    (problem,) = decoder.decode([Sample({"latents": latents}, height=32, width=32)])
    assert isinstance(problem, NumericalError)


@pytest.mark.parametrize(
    ("stage", "component", "changes", "message"),
    [
        ("decoder", "movq", {"lookup_from_codebook": True}, "lookup_from_codebook"),
        ("generator", "unet", {"addition_embed_type": None}, "addition_embed_type"),
    ],
)
def test_configs_that_the_pipeline_could_not_run_are_refused_at_load(
    tmp_path: Path,
    load: Callable[..., Any],
    stage: str,
    component: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    folder = copytree(DECODER, tmp_path / "decoder")
    path = folder / component / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        load(folder, stage)
