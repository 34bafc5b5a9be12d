"""The network Inception v3, its blocks as a table of layers with torchvision's names.

torch-fidelity has the same network, but it reads a pickle and brings torchvision along.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A convolution by name; at stride 1 it keeps the size, at stride 2 it does not pad."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


@dataclass(frozen=True)
class Branch:
    """A pool, or none, then layers in turn; the last may be a fork whose outputs are joined."""

    layers: tuple[Layer, ...] = ()
    pool: str = ""  # "", "mean", "max" (both keep the size) or "halve"
    fork: tuple[Layer, ...] = ()


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        Branch((Layer("branch1x1", 64),)),
        Branch((Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5)))),
        Branch(
            (
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, (3, 3)),
                Layer("branch3x3dbl_3", 96, (3, 3)),
            )
        ),
        Branch((Layer("branch_pool", pooled),), pool="mean"),
    )


def _block_b() -> tuple[Branch, ...]:
    return (
        Branch((Layer("branch3x3", 384, (3, 3), 2),)),
        Branch(
            (
                Layer("branch3x3dbl_1", 64),
                Layer("branch3x3dbl_2", 96, (3, 3)),
                Layer("branch3x3dbl_3", 96, (3, 3), 2),
            )
        ),
        Branch(pool="halve"),
    )


def _block_c(inner: int) -> tuple[Branch, ...]:
    return (
        Branch((Layer("branch1x1", 192),)),
        Branch(
            (
                Layer("branch7x7_1", inner),
                Layer("branch7x7_2", inner, (1, 7)),
                Layer("branch7x7_3", 192, (7, 1)),
            )
        ),
        Branch(
            (
                Layer("branch7x7dbl_1", inner),
                Layer("branch7x7dbl_2", inner, (7, 1)),
                Layer("branch7x7dbl_3", inner, (1, 7)),
                Layer("branch7x7dbl_4", inner, (7, 1)),
                Layer("branch7x7dbl_5", 192, (1, 7)),
            )
        ),
        Branch((Layer("branch_pool", 192),), pool="mean"),
    )


def _block_d() -> tuple[Branch, ...]:
    return (
        Branch((Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2))),
        Branch(
            (
                Layer("branch7x7x3_1", 192),
                Layer("branch7x7x3_2", 192, (1, 7)),
                Layer("branch7x7x3_3", 192, (7, 1)),
                Layer("branch7x7x3_4", 192, (3, 3), 2),
            )
        ),
        Branch(pool="halve"),
    )


def _block_e(pool: str) -> tuple[Branch, ...]:
    return (
        Branch((Layer("branch1x1", 320),)),
        Branch(
            (Layer("branch3x3_1", 384),),
            fork=(Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1))),
        ),
        Branch(
            (Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, (3, 3))),
            fork=(Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))),
        ),
        Branch((Layer("branch_pool", 192),), pool=pool),
    )


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, width_in: int, layer: Layer, *, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            width_in, layer.width, layer.kernel, layer.stride, padding, bias=False
        )
        self.bn = nn.BatchNorm2d(layer.width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, layer.width, h', w']."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Branches side by side, joined along the channels."""

    def __init__(self, width_in: int, branches: tuple[Branch, ...], *, padded_mean: bool) -> None:
        super().__init__()
        self.branches, self.padded_mean = branches, padded_mean
        self.width = 0
        for branch in branches:
            width = width_in
            for layer in (*branch.layers, *branch.fork):
                rows, columns = layer.kernel
                padding = (rows // 2, columns // 2) if layer.stride == 1 else (0, 0)
                self.add_module(layer.name, Convolution(width, layer, padding=padding))
                width = width if layer in branch.fork else layer.width
            self.width += sum(layer.width for layer in branch.fork) if branch.fork else width

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, width, h', w']."""
        outputs = []
        for branch in self.branches:
            y = self._pool(x, branch.pool)
            for layer in branch.layers:
                y = self.get_submodule(layer.name)(y)
            forked = [self.get_submodule(layer.name)(y) for layer in branch.fork]
            outputs += forked or [y]
        return torch.cat(outputs, dim=1)

    def _pool(self, x: Tensor, kind: str) -> Tensor:
        match kind:
            case "mean":
                return F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.padded_mean)
            case "max":
                return F.max_pool2d(x, 3, 1, 1)
            case "halve":
                return F.max_pool2d(x, 3, 2)
        return x


class InceptionV3(nn.Module):
    """The network up to its last pool (Szegedy et al. 2015).

    Args:
        padded_mean: Whether average pools count the zeros of the padding.
        last_pool: "max" or "mean", of the last block.
    """

    def __init__(self, *, padded_mean: bool, last_pool: str) -> None:
        super().__init__()
        stem = {
            "Conv2d_1a_3x3": (3, Layer("", 32, (3, 3), 2), 0),
            "Conv2d_2a_3x3": (32, Layer("", 32, (3, 3)), 0),
            "Conv2d_2b_3x3": (32, Layer("", 64, (3, 3)), 1),
            "Conv2d_3b_1x1": (64, Layer("", 80), 0),
            "Conv2d_4a_3x3": (80, Layer("", 192, (3, 3)), 0),
        }
        for name, (width_in, layer, pad) in stem.items():
            self.add_module(name, Convolution(width_in, layer, padding=(pad, pad)))
        blocks = {
            "Mixed_5b": _block_a(32),
            "Mixed_5c": _block_a(64),
            "Mixed_5d": _block_a(64),
            "Mixed_6a": _block_b(),
            "Mixed_6b": _block_c(128),
            "Mixed_6c": _block_c(160),
            "Mixed_6d": _block_c(160),
            "Mixed_6e": _block_c(192),
            "Mixed_7a": _block_d(),
            "Mixed_7b": _block_e("mean"),
            "Mixed_7c": _block_e(last_pool),
        }
        width = 192
        for name, branches in blocks.items():
            block = Block(width, branches, padded_mean=padded_mean)
            self.add_module(name, block)
            width = block.width

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, 299, 299] to features [B, 2048]."""
        x = pixels
        for name, module in self.named_children():
            x = module(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x.mean(dim=(2, 3))
