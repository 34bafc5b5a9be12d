"""The ranges of what a caller may ask of a part; refusals and `Describe` quote these numbers."""

from __future__ import annotations

MIN_INFERENCE_STEPS = 1
MAX_INFERENCE_STEPS = 1000
MIN_GUIDANCE_SCALE = 0.0
MAX_GUIDANCE_SCALE = 30.0
MAX_PIXELS = 2048 * 2048
PIXEL_MULTIPLE = 8  # sizes are multiples of this at least, as in every diffusers pipeline
MAX_PREVIEW_SIDE = 128  # pixels: 48 KiB as bytes of three colours
MAX_PREVIEW_INTERVAL_STEPS = MAX_INFERENCE_STEPS
MAX_CONDITIONING_SIZE = 16384  # pixels; of the sizes that SDXL is told
