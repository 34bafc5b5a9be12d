"""Upsampling merged with the convolution behind it makes what diffusers' layer makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.upsampling import Upsample2D
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from carrara_models.acceleration import upsampling
from carrara_models.acceleration.fast import made_fast


def merged(layer: Upsample2D) -> torch.nn.Module:
    network = torch.nn.Sequential(layer)
    upsampling.merge(network)
    return network[0]


@given(
    rows=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    bias=st.booleans(),
)
def test_it_makes_the_same_of_any_size(
    rows: int, height: int, width: int, channels: tuple[int, int], bias: bool
) -> None:
    layer = Upsample2D(channels[0], use_conv=True, out_channels=channels[1], bias=bias)
    cells = torch.randn(rows, channels[0], height, width)
    with torch.inference_mode():
        expected = layer(cells)
        made = merged(layer)(cells)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_is_as_near_to_float32_as_the_layer_itself() -> None:
    torch.manual_seed(0)
    layer = Upsample2D(64, use_conv=True)
    cells = torch.randn(2, 64, 16, 16)
    with torch.inference_mode():
        expected = layer(cells)
        layer.to(torch.bfloat16)
        own = (layer(cells.bfloat16()).float() - expected).square().mean()
        made = merged(layer)(cells.bfloat16())
    assert made.dtype == torch.bfloat16
    assert (made.float() - expected).square().mean() < 2 * own


def test_it_takes_less_than_half_of_the_products() -> None:
    layer = Upsample2D(8, use_conv=True)
    counts = []
    for each in (layer, merged(layer)):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            each(torch.randn(1, 8, 32, 32))
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(16 / 36)


def test_a_size_that_is_not_the_double_is_left_to_the_layer() -> None:
    layer = Upsample2D(4, use_conv=True)
    cells = torch.randn(1, 4, 4, 4)
    with torch.inference_mode():
        expected = layer(cells, (7, 7))
        assert torch.equal(merged(layer)(cells, (7, 7)), expected)


@pytest.mark.parametrize(
    "layer",
    [
        Upsample2D(4),
        Upsample2D(4, use_conv_transpose=True),
        Upsample2D(4, use_conv=True, interpolate=False),
        Upsample2D(4, use_conv=True, norm_type="rms_norm", eps=1e-5, elementwise_affine=True),
        Upsample2D(4, use_conv=True, kernel_size=5, padding=2),
    ],
)
def test_other_layers_are_left_as_they_are(layer: Upsample2D) -> None:
    assert merged(layer) is layer


def test_all_of_an_autoencoder_s_are_found() -> None:
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    )
    latents = torch.randn(1, 4, 4, 4)
    with torch.inference_mode():
        expected = autoencoder.decode(latents).sample
        upsampling.merge(autoencoder.decoder)
        assert [
            type(layer).__name__
            for block in autoencoder.decoder.up_blocks
            for layer in block.upsamplers or ()
        ] == ["_Merged"] * 2
        made = autoencoder.decode(latents).sample
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("role", "dtype", "is_quick"),
    [
        ("generator", torch.float32, True),
        ("generator", torch.bfloat16, True),
        ("generator", torch.float16, False),
        ("decoder", torch.bfloat16, True),
    ],
)
def test_fast_parts_are_merged_in_precisions_in_which_that_is_quick(
    sd2: Path, load: Callable[..., Any], role: str, dtype: torch.dtype, is_quick: bool
) -> None:
    part = made_fast(load(sd2, role, dtype), engine="torch", tile_size=1024)
    network = part.unet if role == "generator" else part.vae.decoder
    found = {type(each).__name__ for each in network.modules()}
    assert ("_Merged" in found) == is_quick
    assert "Upsample2D" in found
