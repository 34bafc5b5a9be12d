"""How much of a device's matrix arithmetic a denoiser's network uses, by the number of rows.

    PYTHONPATH=tests python tests/bench/random_checkpoint.py sd15 /tmp/sd15 --dtype bfloat16
    python tests/bench/matrix_share.py /tmp/sd15 --engine torch --engine compile
    python tests/bench/matrix_share.py /tmp/sd15 --device cpu --num-threads 1 --side 2048 \\
        --rows 2 --engine openvino

The peak is not the data sheet's but measured here: a product of two square matrices of random
numbers in the same precision, 8192 a side unless told otherwise. Operations are counted by torch (a
multiplication and an addition are two), of products, convolutions and attention alone. The network
is called as the loop calls it, for pictures of the default size, with all that belongs to a call:
its inputs are gathered and cast, and its output is split.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from carrara_models.acceleration.fast import made_fast
from carrara_models.acceleration.networks import networks_of
from carrara_models.acceleration.warm_up import warming_up
from carrara_models.checkpoints import open_checkpoint
from carrara_models.families import load_part
from carrara_services.denoising.engine import warm_up_request
from carrara_services.torch_runtime import DTYPES

SIDE = 8192
ROUNDS = 5


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--stage", default="generator")
    parser.add_argument("--engine", action="append", choices=("torch", "compile", "openvino"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rows", type=int, action="append", help="default: 2, 8, 16 and 32")
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--side", type=int, default=SIDE, help="of the matrices")
    parser.add_argument("--num-threads", type=int, help="of torch and OpenVINO")
    chosen = parser.parse_args()
    if chosen.num_threads is not None:
        torch.set_num_threads(chosen.num_threads)
    device, dtype = torch.device(chosen.device), DTYPES[chosen.dtype]
    rows = chosen.rows or [2, 8, 16, 32]
    peak = matrix_peak(chosen.side, device=device, dtype=dtype)
    print(
        f"{chosen.checkpoint}, {chosen.dtype}; matrices of {chosen.side}: {peak / 1e12:.3g} TFLOP/s"
    )
    print("| engine | rows | ms | ms per row | GFLOP per row | TFLOP/s | of the peak |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with torch.inference_mode():
        for name in chosen.engine or ["torch"]:
            measure(chosen, name, rows=rows, peak=peak, device=device, dtype=dtype)


def measure(
    chosen: argparse.Namespace,
    name: Any,
    *,
    rows: list[int],
    peak: float,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Prints the lines of one engine."""
    checkpoint = open_checkpoint(chosen.checkpoint, stage=chosen.stage)
    part: Any = load_part(checkpoint, device=device, dtype=dtype)
    part = made_fast(part, engine=name, tile_size=1024)
    request = warm_up_request(part, tokens=chosen.tokens)
    job = part.start(replace(request, height=None, width=None))
    with FlopCounterMode(display=False) as counter:
        part.predict([job])
    per_row = counter.get_total_flops() / job.rows
    with warming_up(networks_of(part).values()):
        part.predict([job])
    for count in rows:
        jobs = [job] * (count // job.rows)
        seconds = median_seconds(lambda jobs=jobs: part.predict(jobs), device=device)
        rate = per_row * count / seconds
        print(
            f"| {name} | {count} | {seconds * 1e3:.1f} | {seconds * 1e3 / count:.2f} | "
            f"{per_row / 1e9:.3g} | {rate / 1e12:.3g} | {rate / peak:.0%} |",
            flush=True,
        )


def matrix_peak(side: int, *, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of random matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device=device)


def median_seconds(call: Callable[[], object], *, device: torch.device) -> float:
    """Of some calls, each waited for, after three that are not counted."""

    def timed() -> float:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    for _ in range(3):
        timed()
    return statistics.median(timed() for _ in range(ROUNDS))


if __name__ == "__main__":
    main()
