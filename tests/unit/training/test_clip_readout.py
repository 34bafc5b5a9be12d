"""What a CLIP has to tell of a scene: by its embedding, and by each patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from carrara_models.drawn_world.scenes import Object, Scene
from carrara_models.training.clip_readout import (
    PATCH_VALUES,
    UNKNOWN,
    contrast_of,
    patch_targets,
    scene_targets,
    telling_loss,
)
from carrara_models.training.text_encoder import ATTRIBUTE_VALUES

SCENE = Scene(
    "pink",
    (
        Object("ring", "red", "large", x=0.25, y=0.25, radius=0.22),
        Object("heart", "blue", "small", x=0.75, y=0.75, radius=0.16),
    ),
    relation="above",
)
NOT_TURNED, TURNED = torch.tensor([False]), torch.tensor([True])


def test_a_patch_tells_the_object_over_its_middle() -> None:
    targets = patch_targets([SCENE], NOT_TURNED, patches=4).unflatten(1, (4, 4))[0]
    names = list(PATCH_VALUES)
    assert targets[..., names.index("object")].tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 2, 2],
        [0, 0, 2, 2],
    ]
    told = dict(zip(names, targets[3, 2].tolist(), strict=True))
    assert PATCH_VALUES["shape"][told["shape"]] == "heart"
    assert PATCH_VALUES["colour"][told["colour"]] == "blue"
    assert PATCH_VALUES["size"][told["size"]] == "small"
    assert targets[0, 3].tolist() == [0, UNKNOWN, UNKNOWN, UNKNOWN]


def test_of_turned_colours_no_colour_is_told() -> None:
    plain, turned = (scene_targets([SCENE], which)[0] for which in (NOT_TURNED, TURNED))
    for index, name in enumerate(ATTRIBUTE_VALUES):
        unknown = name == "background" or name.endswith("colour")
        assert (turned[index] == UNKNOWN) == unknown, name
        assert unknown or turned[index] == plain[index]
    assert (plain != UNKNOWN).all()
    patches = patch_targets([SCENE], TURNED, patches=4)
    assert (patches[..., list(PATCH_VALUES).index("colour")] == UNKNOWN).all()


def test_the_loss_counts_what_is_known_alone() -> None:
    torch.manual_seed(0)
    scores = (torch.randn(5, 3), torch.randn(5, 2))
    targets = torch.tensor([[0, 1], [2, UNKNOWN], [1, 0], [UNKNOWN, UNKNOWN], [0, 0]])
    expected = []
    for index, of_one in enumerate(scores):
        known = targets[:, index] != UNKNOWN
        expected.append(F.cross_entropy(of_one[known], targets[known, index], label_smoothing=0.1))
    torch.testing.assert_close(telling_loss(scores, targets), torch.stack(expected).mean())
    nothing = torch.full((5, 2), UNKNOWN)
    assert telling_loss(scores, nothing) == 0


def test_contrast_is_least_where_pairs_are_alike() -> None:
    embeds = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    scale = torch.tensor(20.0)
    right = contrast_of(embeds, embeds, scale=scale)
    assert right < contrast_of(embeds, embeds.roll(1, dims=0), scale=scale)
    logits = scale * embeds @ embeds.T
    torch.testing.assert_close(right, F.cross_entropy(logits, torch.arange(4)))
    assert contrast_of(embeds[:0], embeds[:0], scale=scale) == 0
