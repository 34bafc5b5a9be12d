"""Begins a UNet with the weights of another one: wider, of fewer levels, or told something else.

Levels are matched from the lowest resolution up, so that an outer level more stays fresh. Of a
wider donor each layer keeps the channels whose weights are largest (magnitude pruning, Han et al.
2015): one choice for all weights that a channel passes through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from carrara_models.training.errors import RecipeError

BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(.+)")
RIDGE = 1e-4
ENDS = ("conv_in.", "conv_norm_out.", "conv_out.")


@torch.no_grad()
def take_over(unet: UNet2DConditionModel, donor: UNet2DConditionModel) -> list[str]:
    """Overwrites what `donor` has too, where it is as wide or wider.

    Args:
        unet: As `unets.build_unet` makes it; what the donor lacks keeps its values.
        donor: As `unets.build_unet` makes it too.

    Returns:
        The names of the weights that keep their values.

    Raises:
        RecipeError: The donor has more levels, or channels that do not divide as this UNet's.
    """
    own_levels, levels = (len(each.config.block_out_channels) for each in (unet, donor))
    if own_levels < levels:
        raise RecipeError(f"the donor's UNet has {levels} levels, this one {own_levels}")
    own = unet.state_dict()
    theirs = {
        _shift(name, own_levels - levels): weight
        for name, weight in donor.state_dict().items()
        if own_levels == levels or not name.startswith(ENDS)
    }
    channels = _Channels(levels=own_levels, outer=own_levels - levels, donor=theirs, own=own)
    parts = {
        "level": unet.config.norm_num_groups,
        "hidden": unet.config.norm_num_groups,
        "head": unet.config.attention_head_dim,  # counts them, with this class
    }
    fresh = []
    for name, weight in own.items():
        taken = channels.choose(name, parts) if name in theirs else None
        if taken is None:
            fresh.append(name)
        else:
            weight.copy_(taken)
    return fresh


@torch.no_grad()
def tell_by_embedding(
    unet: UNet2DConditionModel,
    donor: UNet2DConditionModel,
    *,
    embeds: Tensor,
    states: Tensor,
    last_norm: nn.LayerNorm,
) -> None:
    """Makes what `unet` makes of an image embedding what `donor` was told: a caption's states.

    By least squares, up to the norms. It comes the nearer, the more alike the captions are worded.

    Args:
        unet: Told an image embedding, as `unets.told_an_image_embedding` says.
        donor: Told a caption, as `unets.told_a_caption` says; it was trained behind the states.
        embeds: Image embeddings [N, E].
        states: Of the captions of the same pictures, [N, L, D].
        last_norm: What the states come out of.
    """
    tokens, pooled = unet.encoder_hid_proj, unet.add_embedding
    wanted = states[:, : tokens.num_image_text_embeds]
    _fit(tokens.image_embeds, tokens.norm, embeds, wanted, last_norm)
    _fit(
        pooled.image_proj,
        pooled.image_norm,
        embeds,
        donor.add_embedding(states)[:, None],
        donor.add_embedding.norm2,
    )


def _fit(
    linear: nn.Linear, norm: nn.LayerNorm, inputs: Tensor, wanted: Tensor, like: nn.LayerNorm
) -> None:
    """Fits norm(linear(inputs [N, E])) to `wanted` [N, L, D], which came out of the norm `like`."""
    norm.load_state_dict(like.state_dict())
    before = ((wanted - like.bias) / like.weight).flatten(1)
    # By the normal equations, in float64 and with a ridge: a solver that ranks singular values
    # gave other bits in each process.
    known = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
    gram = known.T @ known
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    fitted = torch.linalg.solve(gram + ridge, known.T @ before.double())  # [E + 1, L * D]
    linear.weight.copy_(fitted[:-1].T)
    linear.bias.copy_(fitted[-1])


class _Channels:
    """What lies in each dimension of each weight, and which of it stays."""

    def __init__(
        self, *, levels: int, outer: int, donor: Mapping[str, Tensor], own: Mapping[str, Tensor]
    ) -> None:
        self._levels, self._outer = levels, outer
        self._donor, self._own = donor, own
        self._sizes, self._own_sizes = self._sizes_in(donor), self._sizes_in(own)
        self._norms = self._norms_in(donor)

    def choose(self, name: str, parts: Mapping[str, int]) -> Tensor | None:
        """The part of the donor's weight that fits; None where there is none.

        Args:
            parts: Into how many parts channels of a kind divide, which all lose as many.
        """
        weight, shape = self._donor[name], self._own[name].shape
        if weight.dim() != len(shape):
            return None
        axes = self._axes(name)
        for dimension, wanted in enumerate(shape):
            if weight.shape[dimension] == wanted:
                continue
            if dimension >= len(axes) or not self._sizes.keys() >= set(axes[dimension]):
                return None
            offset, indices = 0, []
            for channel in axes[dimension]:
                kept = self._kept(channel, parts.get(channel.split()[0], 1))
                indices.append(kept + offset)
                offset += self._sizes[channel]
            weight = weight.index_select(dimension, torch.cat(indices))
        return weight if weight.shape == shape else None

    def _kept(self, channel: str, parts: int) -> Tensor:
        """Indices of the channels that stay, in their order."""
        size, wanted = self._sizes[channel], self._own_sizes[channel]
        if wanted > size or size % parts or wanted % parts:
            raise RecipeError(
                f"the donor's UNet has {size} channels where this one has {wanted} ({channel}): "
                f"it needs at least as many, and both in {parts} equal parts"
            )
        norms = self._norms[channel].reshape(parts, -1)
        largest = norms.topk(wanted // parts, dim=1).indices.sort(dim=1).values
        return (largest + torch.arange(parts)[:, None] * (size // parts)).flatten()

    def _sizes_in(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        return {
            channels[0]: weight.shape[dimension]
            for name, weight in weights.items()
            for dimension, channels in enumerate(self._axes(name))
            if len(channels) == 1 and dimension < weight.dim()
        }

    def _norms_in(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How large the weights of each channel are, every weight's mean taken as 1."""
        norms: dict[str, Tensor] = {}
        for name, weight in weights.items():
            squares = weight.float().square()
            squares = squares / squares.mean().clamp(min=1e-12)
            for dimension, channels in enumerate(self._axes(name)[: weight.dim()]):
                if not self._sizes.keys() >= set(channels):
                    continue
                others = [each for each in range(weight.dim()) if each != dimension]
                along = squares.mean(dim=others) if others else squares
                for channel, part in zip(
                    channels, along.split([self._sizes[each] for each in channels]), strict=True
                ):
                    norms[channel] = norms.get(channel, torch.zeros_like(part)) + part
        return norms

    def _axes(self, name: str) -> list[list[str]]:
        """What lies in the dimensions of a weight, behind each other; none where nothing is known.

        "level" is what goes through all blocks of a resolution, "hidden" is within one residual
        block, "stream" and "inner" within one transformer, and "head" within its attention.
        """
        match = BLOCK.match(name)
        if match is None:
            return []
        kind, number, rest = match[1], int(match[2] or 0), match[3]
        lowest = self._levels - 1
        level = {"down_blocks": number, "mid_block": lowest, "up_blocks": lowest - number}[kind]
        through = f"level {level}"
        module, index, inside = rest.split(".", 2)
        prefix = f"{kind}.{number}.{module}.{index}"
        if module in ("downsamplers", "upsamplers"):
            return [[through], [through]]
        if module == "attentions":
            return _transformer_axes(inside, through, prefix)
        enters = [through]
        if kind == "down_blocks":
            enters = [f"level {max(level - 1, 0)}"]
        elif kind == "up_blocks" and index == "0":
            enters = [f"level {min(level + 1, lowest)}", through]
        elif kind == "up_blocks":
            enters = [through, f"level {max(level - 1, 0)}"]
        return _resnet_axes(inside, through, enters, prefix)


def _resnet_axes(name: str, through: str, enters: list[str], prefix: str) -> list[list[str]]:
    hidden = [f"hidden of {prefix}"]
    layer = name.split(".")[0]
    return {
        "norm1": [enters],
        "conv1": [hidden, enters],
        "time_emb_proj": [hidden],
        "norm2": [hidden],
        "conv2": [[through], hidden],
        "conv_shortcut": [[through], enters],
    }[layer]


def _transformer_axes(name: str, through: str, prefix: str) -> list[list[str]]:
    stream, inner = [f"stream of {prefix}"], [f"inner of {prefix}"]
    ends = {"norm": [[through]], "proj_in": [stream, [through]], "proj_out": [[through], stream]}
    layer, *rest = name.split(".")
    if layer in ends:
        return ends[layer]
    layer, *rest = rest[1:]  # the first is the number of a transformer block, of which there is one
    if layer.startswith("norm"):
        return [stream]
    if layer == "ff":
        # GEGLU: as many gates as values, the ones behind the others.
        return [inner * 2, stream] if rest[:2] == ["net", "0"] else [stream, inner]
    keys, values = [f"head of {prefix} {layer}"], [f"head of {prefix} {layer} values"]
    return {
        "to_q": [keys, stream],
        "to_k": [keys, stream] if layer == "attn1" else [keys],
        "to_v": [values, stream] if layer == "attn1" else [values],
        "to_out": [stream, values],
    }[rest[0]]


def _shift(name: str, levels: int) -> str:
    """The name of a weight in a UNet with so many outer levels more."""
    match = BLOCK.match(name)
    if match is None or match[1] != "down_blocks":
        return name
    return f"down_blocks.{int(match[2]) + levels}.{match[3]}"
