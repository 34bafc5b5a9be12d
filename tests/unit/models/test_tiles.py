"""Large pictures in tiles: no larger ones are decoded at a time, and the picture stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL

from carrara_models.acceleration.tiles import use_tiles
from carrara_models.checkpoints import open_checkpoint
from carrara_models.families import load_part
from families import CASES


def autoencoder(name: str, stage: str = "decoder") -> Any:
    torch.manual_seed(0)
    checkpoint = open_checkpoint(CASES[name].folders[0], stage=stage)
    return load_part(checkpoint, device=torch.device("cpu"), dtype=torch.float32).vae


def largest_side(autoencoder: Any, latents: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Of what its decoder is given at a time, in cells; and the picture."""
    sides: list[int] = []

    def note(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        sides.append(max(arguments[0].shape[2:]))

    handle = autoencoder.decoder.register_forward_pre_hook(note)
    with torch.no_grad():
        pixels = autoencoder.decode(latents, return_dict=False)[0]
    handle.remove()
    return max(sides), pixels


@pytest.mark.parametrize("name", ["sd", "sana"])
def test_a_large_picture_is_decoded_in_tiles_and_has_its_size(name: str) -> None:
    vae = autoencoder(name)
    assert isinstance(vae, AutoencoderDC if name == "sana" else AutoencoderKL)
    channels = vae.config.latent_channels
    latents = torch.randn(2, channels, 40, 24)
    whole_side, whole = largest_side(vae, latents)
    assert whole_side == 40
    cell = whole.shape[2] // 40
    use_tiles(vae, side=16 * cell)
    side, tiled = largest_side(vae, latents)
    assert (side, tiled.shape) == (16, whole.shape)
    # The first tile's inner part has seen all that it depends on, but for the norms' statistics.
    corner = slice(0, 8 * cell)
    apart = (tiled - whole)[..., corner, corner].abs().mean()
    assert apart < 0.5 * whole.std()


def test_a_picture_of_a_tile_or_less_is_decoded_whole() -> None:
    vae = autoencoder("sd")
    latents = torch.randn(1, vae.config.latent_channels, 16, 12)
    _, whole = largest_side(vae, latents)
    use_tiles(vae, side=whole.shape[2])
    side, tiled = largest_side(vae, latents)
    assert side == 16
    assert torch.equal(tiled, whole)
