"""Paints the grids of README and cards: the first eight held-out captions of seed 0, and which.

Run it with `python tests/e2e/sample_grid.py drawn-latent docs/images/drawn-latent.png`.
"""

from __future__ import annotations

import sys
import textwrap

from PIL import Image, ImageDraw, ImageFont

from carrara import Cascade
from carrara_models.evaluation.attributes import held_out_captions

COLUMNS, ROWS, SIDE, GAP, TEXT_HEIGHT = 4, 2, 192, 12, 50


def main(checkpoint: str, path: str) -> None:
    _, captions = held_out_captions(COLUMNS * ROWS, seed=0)
    with Cascade.embedded(checkpoint) as cascade:
        pictures = [
            cascade.generate(caption, seed=seed).images[0].image
            for seed, caption in enumerate(captions)
        ]
    size = (COLUMNS * (SIDE + GAP) + GAP, ROWS * (SIDE + TEXT_HEIGHT + GAP) + GAP)
    grid = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=12)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = GAP + index % COLUMNS * (SIDE + GAP)
        y = GAP + index // COLUMNS * (SIDE + TEXT_HEIGHT + GAP)
        grid.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        draw.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline="#cccccc")
        draw.multiline_text((x, y + SIDE + 4), textwrap.fill(caption, 32), "black", font)
    grid.save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
