"""What a CLIP of the drawn world has to tell besides which picture belongs to which caption.

Contrast alone needs only what tells the pictures of a batch apart; it left shapes out. The linear
layers that do the telling are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from carrara_models.drawn_world.scenes import COLOURS, SHAPES, SIZE_RADII, Scene
from carrara_models.training.text_encoder import ATTRIBUTE_VALUES, attribute_targets

LABEL_SMOOTHING = 0.1
UNKNOWN = -100  # a target that no loss counts, as torch's losses have it
# What a patch is told to show: which object of the scene covers its middle, and its traits. Where
# there is none, there are none to tell: four patches in five, which drowned the shapes.
PATCH_VALUES: dict[str, tuple[str, ...]] = {
    "object": ("none", "first", "second", "third"),
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZE_RADII),
}
# What cannot be told of a picture whose colours were turned.
COLOURED = [
    index
    for index, name in enumerate(ATTRIBUTE_VALUES)
    if name == "background" or name.endswith("colour")
]
PATCH_COLOURED = [list(PATCH_VALUES).index("colour")]


class TellingClip(nn.Module):
    """What is trained with read-outs: both towers, and linear layers for all attributes."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self._values = [len(values) for values in ATTRIBUTE_VALUES.values()]
        self._patch_values = [len(values) for values in PATCH_VALUES.values()]
        self.readout = nn.Linear(clip.config.projection_dim, sum(self._values))
        width = clip.config.vision_config.hidden_size
        self.patch_readout = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, sum(self._patch_values))
        )

    def scores(self, embeds: Tensor) -> tuple[Tensor, ...]:
        """Scores [B, values] of each attribute, from embeddings [B, E] of length 1."""
        # As long as a vector of independent normal numbers, which a linear layer is made for.
        return self.readout(embeds * embeds.shape[1] ** 0.5).split(self._values, dim=1)

    def patch_scores(self, states: Tensor) -> tuple[Tensor, ...]:
        """Scores [B, P, values] of each of `PATCH_VALUES`, from patches' states [B, P, D]."""
        return self.patch_readout(states).split(self._patch_values, dim=-1)


def scene_targets(scenes: Sequence[Scene], jittered: Tensor) -> Tensor:
    """The index of each attribute's value [B, A]; unknown where colours were turned, bool [B]."""
    targets = torch.tensor([attribute_targets(scene) for scene in scenes])
    return _forget(targets, COLOURED, jittered)


def patch_targets(scenes: Sequence[Scene], jittered: Tensor, *, patches: int) -> Tensor:
    """What the patches show, [B, P, 4] as in `PATCH_VALUES`, row by row.

    Args:
        patches: Along a side, so that P is its square.
    """
    nothing = torch.tensor([0, *[UNKNOWN] * (len(PATCH_VALUES) - 1)])
    targets = nothing.repeat(len(scenes), patches, patches, 1)
    middles = (torch.arange(patches) + 0.5) / patches
    for index, scene in enumerate(scenes):
        for number, thing in enumerate(scene.objects):
            rows = (middles - thing.y).abs() < thing.radius
            columns = (middles - thing.x).abs() < thing.radius
            targets[index, rows[:, None] & columns[None, :]] = torch.tensor(
                [
                    1 + number,
                    PATCH_VALUES["shape"].index(thing.shape),
                    PATCH_VALUES["colour"].index(thing.colour),
                    PATCH_VALUES["size"].index(thing.size),
                ]
            )
    return _forget(targets.flatten(1, 2), PATCH_COLOURED, jittered)


def contrast_of(captions: Tensor, pictures: Tensor, *, scale: Tensor) -> Tensor:
    """Radford et al. 2021, Fig. 3: the mean over captions and over pictures; 0 of none.

    Args:
        captions: Embeddings [B, E] of length 1.
        pictures: Likewise.
        scale: What similarities are multiplied with.
    """
    if not len(captions):
        return scale * 0
    logits = scale * captions @ pictures.T
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def telling_loss(scores: Sequence[Tensor], targets: Tensor) -> Tensor:
    """The mean cross entropy over the attributes, of what is known of them.

    Args:
        scores: [..., values] of each attribute.
        targets: [..., A].
    """
    losses = []
    for index, of_one in enumerate(scores):
        wanted = targets[..., index].flatten()
        total = F.cross_entropy(
            of_one.float().flatten(0, -2),
            wanted,
            label_smoothing=LABEL_SMOOTHING,
            reduction="sum",
            ignore_index=UNKNOWN,
        )
        losses.append(total / (wanted != UNKNOWN).sum().clamp(min=1))
    return torch.stack(losses).mean()


def _forget(targets: Tensor, names: Sequence[int], where: Tensor) -> Tensor:
    known = targets[..., names]
    gone = where.reshape(-1, *[1] * (known.dim() - 1))
    targets[..., names] = torch.where(gone, UNKNOWN, known)
    return targets
