"""A UNet that begins with another one's weights: wider, of fewer levels, told something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from carrara_models.training.donors import take_over, tell_by_embedding
from carrara_models.training.errors import RecipeError
from carrara_models.training.unets import (
    UNetShape,
    build_unet,
    told_a_caption,
    told_an_image_embedding,
)

TOLD = 16


def unet_of(*widths: int, channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(sum(widths) + channels)
    shape = UNetShape(widths=widths, attending=2, attention_heads=2)
    unet = build_unet(
        shape,
        in_channels=channels,
        out_channels=channels,
        size=16,
        **told_a_caption(text_width=TOLD),
    )
    return unet.eval()


def spread(size: int, wanted: int) -> Tensor:
    """Where the small one's channels lie in the wide one's."""
    if size == wanted:
        return torch.arange(size)
    beside = 2 * wanted - size  # a skip of the narrow level, behind those of the wide one
    return torch.cat([torch.arange(0, size - beside, 2), torch.arange(size - beside, size)])


@torch.no_grad()
def painted(unet: UNet2DConditionModel) -> Tensor:
    torch.manual_seed(0)
    noisy = torch.randn(2, unet.config.in_channels, 16, 16)
    return unet(noisy, torch.tensor([5, 700]), torch.randn(2, 7, TOLD)).sample


def test_a_donor_of_the_same_size_is_taken_over_whole() -> None:
    unet, donor = unet_of(16, 32), unet_of(16, 32)
    for parameter in donor.parameters():
        parameter.data += 0.1
    assert take_over(unet, donor) == []
    assert torch.equal(painted(unet), painted(donor))


def test_an_outer_level_stays_fresh_and_the_inner_ones_are_the_donors() -> None:
    unet, donor = unet_of(16, 16, 32, channels=3), unet_of(16, 32)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    fresh = take_over(unet, donor)
    after, given = unet.state_dict(), donor.state_dict()
    assert {name.split(".")[0] for name in fresh} == {
        "conv_in",
        "conv_norm_out",
        "conv_out",
        "down_blocks",
        "up_blocks",
    }
    assert all(torch.equal(after[name], before[name]) for name in fresh)
    for theirs, own in (
        ("down_blocks.0", "down_blocks.1"),
        ("down_blocks.1", "down_blocks.2"),
        ("mid_block", "mid_block"),
        ("up_blocks.0", "up_blocks.0"),
        ("time_embedding", "time_embedding"),
    ):
        names = [name for name in given if name.startswith(theirs + ".")]
        assert names
        for name in names:
            assert torch.equal(after[name.replace(theirs, own, 1)], given[name]), name


def test_of_a_wider_donor_the_channels_that_count_stay_in_every_layer() -> None:
    unet, donor = unet_of(16, 32), unet_of(16, 64)
    wide = donor.state_dict()
    # Every second channel of the wide level is one of the small one's; between them lie zeros.
    for name, small in unet.state_dict().items():
        wide[name].zero_()
        places = [spread(*sizes) for sizes in zip(wide[name].shape, small.shape, strict=True)]
        wide[name][torch.meshgrid(*places, indexing="ij")] = small
    expected = {name: weight.clone() for name, weight in unet.state_dict().items()}
    for parameter in unet.parameters():
        parameter.data.zero_()
    take_over(unet, donor)
    for name, weight in unet.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_an_embedding_is_turned_into_the_states_that_the_donor_was_told() -> None:
    """Where states follow from embeddings up to a norm, they are told as the donor was."""
    torch.manual_seed(0)
    donor = unet_of(16, 32)
    told = told_an_image_embedding(embedding_width=6, token_width=TOLD)
    unet = build_unet(
        UNetShape(widths=(16, 32), attending=2, attention_heads=2),
        in_channels=4,
        out_channels=4,
        size=16,
        **told,
    ).eval()
    norm = torch.nn.LayerNorm(TOLD).requires_grad_(False)
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    embeds = torch.randn(300, 6)
    before = (embeds @ torch.randn(6, 40 * TOLD)).unflatten(1, (40, TOLD))
    states = norm(before)
    tell_by_embedding(unet, donor, embeds=embeds, states=states, last_norm=norm)
    with torch.no_grad():
        tokens = unet.encoder_hid_proj(embeds)
        pooled, wanted = unet.add_embedding(embeds), donor.add_embedding(states)
    assert tokens.shape == (300, 32, TOLD)
    unlike = (tokens - states[:, :32]).square().mean() / states.var()
    assert unlike < 0.2  # the norm divides by a length, which no linear layer knows
    assert (pooled - wanted).square().mean() < 0.5 * wanted.var()


@pytest.mark.parametrize(
    ("own", "given", "message"),
    [
        ((16, 32), (16, 16, 32), "the donor's UNet has 3 levels, this one 2"),
        ((16, 64), (16, 32), "the donor's UNet has 32 channels where this one has 64"),
    ],
)
def test_a_donor_that_does_not_fit_is_refused(own: Any, given: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        take_over(unet_of(*own), unet_of(*given))
