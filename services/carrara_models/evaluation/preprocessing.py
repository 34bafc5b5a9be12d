"""How pictures are prepared for a feature network, as data that is stored with every number.

Two libraries that resize otherwise give other features, and so another FID, from equal pictures and
weights (Parmar et al. 2022). It knows no network.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear", "tf1_bilinear"]
PILLOW_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre, scale to [0, 1], subtract `mean`, divide by `std`.

    Attributes:
        resize: "shortest_edge" keeps the aspect ratio; "square" does not.
        size: What the shortest edge, or each edge, becomes; pixels.
        crop: Edge of the square in the centre that is left; pixels, at most `size`. Of an odd
            margin the smaller part is above and to the left, as in transformers; torchvision rounds
            otherwise.
        interpolation: "bicubic" and "bilinear" as Pillow does them, on uint8 and with antialiasing;
            "tf1_bilinear" as TensorFlow 1 did, on float32 and without, with pixel i of the output
            taken from i * (in / out) instead of from the pixel's centre.
        mean: Per channel, red first.
        std: Per channel, red first.
    """

    resize: Literal["shortest_edge", "square"]
    size: int
    crop: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Pictures uint8 [N, H, W, 3] as float32 [N, 3, crop, crop]."""
        _, height, width, _ = pictures.shape
        if self.resize == "square":
            new_height = new_width = self.size
        else:
            shortest = min(height, width)
            new_height = int(self.size * height / shortest)
            new_width = int(self.size * width / shortest)
        if self.interpolation == "tf1_bilinear":
            resized = _resize_like_tensorflow_1(pictures, height=new_height, width=new_width)
        else:
            resample = PILLOW_FILTERS[self.interpolation]
            resized = np.stack(
                [
                    np.asarray(Image.fromarray(picture).resize((new_width, new_height), resample))
                    for picture in pictures
                ]
            ).astype(np.float32)
        top, left = (new_height - self.crop) // 2, (new_width - self.crop) // 2
        cropped = resized[:, top : top + self.crop, left : left + self.crop]
        mean, std = (np.asarray(values, dtype=np.float32) for values in (self.mean, self.std))
        return torch.from_numpy((cropped / np.float32(255) - mean) / std).permute(0, 3, 1, 2)


def _resize_like_tensorflow_1(
    pictures: NDArray[np.uint8], *, height: int, width: int
) -> NDArray[Any]:
    rows, next_rows, down = _taps(pictures.shape[1], height)
    columns, next_columns, right = _taps(pictures.shape[2], width)
    pixels = pictures.astype(np.float32)
    right, down = right[:, None], down[:, None, None]
    wide = pixels[:, :, columns] * (1 - right) + pixels[:, :, next_columns] * right
    return wide[:, rows] * (1 - down) + wide[:, next_rows] * down


def _taps(size: int, new_size: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """Per new pixel: the two old ones that it lies between, and its distance from the first."""
    places = np.arange(new_size, dtype=np.float32) * np.float32(size / new_size)
    first = places.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), places - np.floor(places)
