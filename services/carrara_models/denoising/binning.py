"""Resolution bins: the sizes that PixArt and Sana were trained at, one per shape of picture."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN

from carrara_models import limits
from carrara_models.contracts import Argument
from carrara_models.errors import BadFieldError

Bins = Mapping[str, tuple[float, float]]

# By the transformer's sample size, in latent cells.
PIXART_BINS: Mapping[int, Bins] = {
    32: ASPECT_RATIO_256_BIN,
    64: ASPECT_RATIO_512_BIN,
    128: ASPECT_RATIO_1024_BIN,
    256: ASPECT_RATIO_2048_BIN,
}
SANA_BINS: Mapping[int, Bins] = {
    16: ASPECT_RATIO_512_BIN,
    32: ASPECT_RATIO_1024_BIN,
    64: ASPECT_RATIO_2048_BIN,
    128: ASPECT_RATIO_4096_BIN,
}

USE_RESOLUTION_BINNING = Argument(
    "use_resolution_binning", minimum=0, maximum=1, default=1, multiple_of=1
)


def nearest_bin(height: int, width: int, bins: Bins) -> tuple[int, int]:
    """Height and width of the bin whose shape is the nearest.

    Raises:
        BadFieldError: It has more pixels than are painted.
    """
    binned = PixArtImageProcessor.classify_height_width_bin(height, width, ratios=bins)
    if binned[0] * binned[1] > limits.MAX_PIXELS:
        raise BadFieldError(
            "use_resolution_binning",
            True,
            f"off: the nearest bin is {binned[0]} x {binned[1]}, above {limits.MAX_PIXELS} pixels",
        )
    return binned
