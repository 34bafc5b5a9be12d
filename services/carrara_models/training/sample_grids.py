"""Writes many pictures as one PNG."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image


def save_grid(pictures: NDArray[Any], path: Path, *, columns: int = 8) -> None:
    """Writes pictures, uint8 [N, H, W, 3], row by row; N is a multiple of `columns`."""
    count, height, width, channels = pictures.shape
    rows = count // columns
    grid = pictures.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    Image.fromarray(grid.reshape(rows * height, columns * width, channels)).save(path)
