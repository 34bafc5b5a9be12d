"""What fast decoding is worth: pictures a second in batches, and peak memory with tiles.

    PYTHONPATH=tests python tests/bench/decoding.py
    PYTHONPATH=tests python tests/bench/decoding.py --size 1024 --tile-size 512

The VAE is of Stable Diffusion's size with random weights, or `--checkpoint drawn-latent`'s. Each
case is a process of its own, since a process's peak memory does not fall.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch
from random_checkpoint import stable_diffusion_vae

from carrara_models.acceleration.tiles import use_tiles
from carrara_models.checkpoints import open_checkpoint
from carrara_models.families import load_part

ROUNDS = 3  # of small pictures; large ones take long enough to be timed by one


def main() -> None:
    """Reads the command line; runs each case, or the one that it is started for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="in place of random weights")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--tile-size", type=int, help="beside whole pictures")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.batch:
        decode(chosen)
        return
    tiles = [[], ["--tile-size", str(chosen.tile_size)]] if chosen.tile_size else [[]]
    shared = ["--size", str(chosen.size)]
    shared += ["--checkpoint", chosen.checkpoint] if chosen.checkpoint else []
    for options in tiles:
        for batch in (1,) if chosen.tile_size else (1, 2, 4, 8):
            case = [sys.executable, __file__, *shared, *options, "--batch", str(batch)]
            subprocess.run(case, check=True)


@torch.inference_mode()
def decode(case: argparse.Namespace) -> None:
    """Decodes some noise and prints seconds per picture, least of some, and peak memory."""
    torch.manual_seed(0)
    if case.checkpoint:
        checkpoint = open_checkpoint(case.checkpoint, stage="decoder")
        vae = load_part(checkpoint, device=torch.device("cpu"), dtype=torch.float32).vae
    else:
        vae = stable_diffusion_vae(sample_size=512).eval()
    vae.to(memory_format=torch.channels_last)
    if case.tile_size:
        use_tiles(vae, side=case.tile_size)
    cells = case.size // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(case.batch, vae.config.latent_channels, cells, cells)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(ROUNDS if case.size <= 256 else 1):
        began = time.perf_counter()
        vae.decode(latents)
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tiled = f"tiles of {case.tile_size}" if case.tile_size else "whole"
    print(
        f"{case.size} px, {tiled}, batch {case.batch}: {min(times) / case.batch * 1e3:.1f} ms per "
        f"picture, {(peak - before) / 1024:.0f} MiB beyond the weights",
        flush=True,
    )


if __name__ == "__main__":
    main()
