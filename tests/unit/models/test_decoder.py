from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor

from carrara_models.contracts import Kind
from carrara_models.errors import ContractError, NumericalError
from carrara_models.parts import Numerics, Sample
from carrara_models.pixels import to_uint8


@pytest.fixture
def decoder(sd2: Path, load: Callable[..., Any]) -> Any:
    return load(sd2, "decoder")


def sample(*shape: int, height: int, width: int) -> Sample:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Sample({"latents": latents}, height=height, width=width)


def test_the_contract_tells_what_the_vae_takes(decoder: Any) -> None:
    (port,) = decoder.consumes
    assert (port.contract.kind, port.contract.size_factor) == (Kind.LATENTS, 4)
    assert port.contract.scaling_factor == 0.18215
    assert port.contract.tensors[0].shape == (1, 4, 0, 0)
    assert port.contract.space == decoder.components[0].fingerprint
    assert decoder.produces[0].kind is Kind.IMAGE


def test_bytes_equal_those_of_diffusers(decoder: Any, sd2: Path) -> None:
    wide = sample(1, 4, 6, 9, height=24, width=36)
    vae = AutoencoderKL.from_pretrained(sd2 / "vae").eval()
    with torch.no_grad():
        pixels = vae.decode(3 * wide.tensors["latents"] / vae.config.scaling_factor).sample
    assert pixels.abs().max() > 1, "nothing would be clamped"
    (expected,) = VaeImageProcessor().postprocess(pixels)

    wide = Sample({"latents": 3 * wide.tensors["latents"]}, height=24, width=36)
    decoded = decoder.decode([wide])[0]
    assert decoded.dtype == torch.float32
    np.testing.assert_array_equal(to_uint8(decoded), np.asarray(expected))


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((1, 8, 8, 8), (32, 32), r"takes \[1, 4, h, w\]"),
        ((2, 4, 8, 8), (32, 32), r"takes \[1, 4, h, w\]"),
        ((1, 4, 8), (32, 32), r"takes \[1, 4, h, w\]"),
        ((1, 4, 0, 8), (0, 32), r"takes \[1, 4, h, w\]"),
        ((1, 4, 8, 8), (64, 64), "stand for 32 x 32"),
        ((1, 4, 512, 514), (2048, 2056), "at most 4194304"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(
    decoder: Any, shape: tuple[int, ...], size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        decoder.decode([sample(*shape, height=size[0], width=size[1])])


def test_a_sample_without_latents_is_refused(decoder: Any) -> None:
    with pytest.raises(ContractError, match="no latents"):
        decoder.decode([Sample({}, height=32, width=32)])


def test_not_a_number_is_an_error_and_not_a_black_picture(decoder: Any) -> None:
    latents = torch.full((1, 4, 8, 8), torch.nan)
    (problem,) = decoder.decode([Sample({"latents": latents}, height=32, width=32)])
    assert isinstance(problem, NumericalError)


@pytest.mark.parametrize("exact", [True, False])
def test_images_are_decoded_together_and_one_of_no_numbers_is_its_own(
    decoder: Any, exact: bool
) -> None:
    decoder = replace(decoder, numerics=Numerics(exact=exact))
    samples = [sample(1, 4, 6, 9, height=24, width=36) for _ in range(3)]
    samples[1] = Sample({"latents": samples[1].tensors["latents"] * torch.nan}, height=24, width=36)
    samples[2] = replace(samples[2], tensors={"latents": -samples[2].tensors["latents"]})
    first, broken, last = decoder.decode(samples)
    assert isinstance(broken, NumericalError)
    for made, given in ((first, samples[0]), (last, samples[2])):
        (alone,) = decoder.decode([given])
        assert made.shape == alone.shape == (1, 3, 24, 36)
        if exact:
            assert torch.equal(made, alone)
        torch.testing.assert_close(made, alone, rtol=1e-3, atol=1e-4)


def test_halves_are_decoded_in_the_parts_own_dtype(sd2: Path, load: Callable[..., Any]) -> None:
    decoder = load(sd2, "decoder", torch.bfloat16)
    given = sample(1, 4, 8, 8, height=32, width=32)
    (pixels,) = decoder.decode([given])
    assert pixels.dtype == torch.bfloat16
    vae = AutoencoderKL.from_pretrained(sd2 / "vae", dtype=torch.bfloat16).eval()
    with torch.no_grad():
        latents = given.tensors["latents"].bfloat16()
        expected = vae.decode(latents / vae.config.scaling_factor).sample
    (picture,) = VaeImageProcessor().postprocess(expected)
    np.testing.assert_array_equal(to_uint8(pixels), np.asarray(picture))
