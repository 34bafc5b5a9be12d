"""What one transposed convolution is worth in place of upsampling and a convolution.

    PYTHONPATH=tests python tests/bench/upsampling.py

Of single layers, in the sizes of Stable Diffusion's decoder at 256 px and of its UNet, and of that
decoder as a whole, with random weights, one thread, channels last. Both are called in turn, and the
least of some times is told.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from diffusers.models.upsampling import Upsample2D
from random_checkpoint import stable_diffusion_vae

from carrara_models.acceleration import upsampling
from carrara_services.torch_runtime import DTYPES

# Rows, channels and cells a side of what is doubled.
LAYERS = ((1, 512, 32), (1, 512, 64), (1, 256, 128), (2, 1280, 8), (2, 640, 16))


@torch.inference_mode()
def main() -> None:
    """Reads the command line and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{chosen.dtype}\n| | two, ms | one, ms | times as fast |\n|---|---:|---:|---:|")
    for rows, channels, side in LAYERS:
        layer = torch.nn.Sequential(Upsample2D(channels, use_conv=True))
        name = f"{rows} x {channels} channels, {side} x {side} cells"
        tell(name, layer, torch.randn(rows, channels, side, side), chosen)
    decoder = stable_diffusion_vae(sample_size=512).eval().decoder
    tell("Stable Diffusion's decoder, 256 px", decoder, torch.randn(1, 4, 32, 32), chosen)


def tell(
    name: str, network: torch.nn.Module, given: torch.Tensor, chosen: argparse.Namespace
) -> None:
    """Prints how long a network takes as it is, and merged."""
    dtype = DTYPES[chosen.dtype]
    merged = copy.deepcopy(network)
    upsampling.merge(merged)
    cells = given.to(dtype).contiguous(memory_format=torch.channels_last)
    both = [each.to(dtype, memory_format=torch.channels_last) for each in (network, merged)]
    rounds = [timed(both, cells) for _ in range(chosen.rounds)]
    two, one = (1e3 * min(times) for times in zip(*rounds, strict=True))
    print(f"| {name} | {two:.1f} | {one:.1f} | {two / one:.2f} |", flush=True)


def timed(networks: list[Callable[[torch.Tensor], object]], cells: torch.Tensor) -> list[float]:
    """Seconds of one call of each."""
    times = []
    for network in networks:
        began = time.perf_counter()
        network(cells)
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
