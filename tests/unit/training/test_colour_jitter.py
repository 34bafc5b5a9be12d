from __future__ import annotations

import torch

from carrara_models.training.colour_jitter import jitter
from carrara_models.training.text_conditioning import colourless_where


def test_turned_colours_keep_their_distances_and_follow_from_the_position() -> None:
    pixels = torch.rand(6, 3, 4, 4) - 0.5
    positions = [7, 3, 12, 5, 40, 41]
    turned, which = jitter(pixels, positions, share=0.5, seed=0)
    assert 0 < which.sum() < 6
    for before, after, is_turned in zip(pixels, turned, which, strict=True):
        if not is_turned:
            assert torch.equal(before, after)
            continue
        one, other = (torch.cdist(p.flatten(1).T, p.flatten(1).T) for p in (before, after))
        assert not torch.equal(before, after)
        torch.testing.assert_close(other, 0.9 * one)
    again, _ = jitter(pixels[2:], positions[2:], share=0.5, seed=0)
    assert torch.equal(again, turned[2:])


def test_the_captions_of_turned_pictures_name_no_colours() -> None:
    turned = torch.tensor([False, True])
    captions = ["a red star on white", "a red star on white background"]
    assert colourless_where(turned, captions) == ["a red star on white", "a star on background"]
