"""Lays many pictures out as one."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLUMNS = 8


def make_grid(pictures: NDArray[Any]) -> NDArray[np.uint8]:
    """Pictures, uint8 [N, H, W, 3], row by row; what is left of the last row is black."""
    count, height, width, channels = pictures.shape
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, height, width, channels), np.uint8)
    grid[:count] = pictures
    grid = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def save_grid(pictures: NDArray[Any], path: Path) -> None:
    """Writes `make_grid` of them as PNG."""
    Image.fromarray(make_grid(pictures)).save(path)
