"""What the denoising loop costs: its time per row and tick with a network that does nothing.

    python tests/bench/loop_cost.py
    python tests/bench/loop_cost.py --jobs 1 --scheduler heun

All else is as in service: the generator of `drawn-latent` with its schedulers, guidance and check
for NaN, the loop's thread, and callers that listen. Beside it stands what the same steps cost by
diffusers' `scheduler.step` and nothing else, one job after the other. One thread; the medians of
several rounds.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from carrara_models.checkpoints import open_checkpoint
from carrara_models.denoising.job import DenoisingJob
from carrara_models.families import load_part
from carrara_models.generators.latent_unet import LatentUNet
from carrara_models.parts import DenoisingRequest
from carrara_services.admission.happenings import Failed, Finished
from carrara_services.denoising.loop import DenoisingLoop
from carrara_services.work import Work

SCHEDULERS = ("ddim", "euler", "dpm++2m", "pndm", "lms", "heun", "euler-ancestral", "unipc")


class NoNetwork:
    """Stands for the UNet and gives its input back."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, latents: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (latents,)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scheduler", action="append", choices=SCHEDULERS)
    parser.add_argument("--no-guidance", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    part = open_generator()
    print(f"{chosen.jobs} jobs of {chosen.steps} steps, ms per row and tick; medians")
    print("| scheduler | rows per job | loop | scheduler.step alone | ratio |")
    print("|---|---:|---:|---:|---:|")
    for name in chosen.scheduler or SCHEDULERS:
        request = request_for(part, name, steps=chosen.steps, guided=not chosen.no_guidance)
        loop_ms, alone_ms = [], []
        for _ in range(chosen.rounds):  # side by side, as machines are noisy
            loop_ms.append(measure_loop(part, request, jobs=chosen.jobs))
            alone_ms.append(measure_steps(part, request, jobs=chosen.jobs))
        loop, alone = statistics.median(loop_ms), statistics.median(alone_ms)
        rows = part.rows(request)
        print(f"| {name} | {rows} | {loop:.3f} | {alone:.3f} | {loop / alone:.2f} |", flush=True)


def open_generator() -> LatentUNet:
    """The embedded generator, without its network."""
    checkpoint = open_checkpoint("drawn-latent", stage="generator")
    part = load_part(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    return replace(part, unet=NoNetwork(part.unet.config))


def request_for(part: LatentUNet, scheduler: str, *, steps: int, guided: bool) -> DenoisingRequest:
    """A job of the checkpoint's own size."""
    embeds = torch.zeros(1, 48, part.unet.config.cross_attention_dim)
    conditioning = {"prompt_embeds": embeds}
    if guided:
        conditioning["negative_prompt_embeds"] = embeds
    return DenoisingRequest(
        conditioning=conditioning,
        random_state=0,
        scheduler=scheduler,
        num_inference_steps=steps,
    )


def measure_loop(part: LatentUNet, request: DenoisingRequest, *, jobs: int) -> float:
    """Milliseconds per row and tick of jobs that all run together."""
    rows = jobs * part.rows(request)
    loop = DenoisingLoop(part, max_queue_jobs=jobs, max_batch_rows=rows)
    ticks: list[tuple[float, int]] = []
    loop.watch = lambda *, seconds, jobs, rows: ticks.append((time.perf_counter(), rows))
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for seed in range(jobs):
        loop.line.submit(
            Work(replace(request, random_state=seed)),
            listener=lambda event: (
                ends.put(event) if isinstance(event, Finished | Failed) else None
            ),
        )
    for _ in range(jobs):
        end = ends.get(timeout=60)
        assert isinstance(end, Finished), end
    loop.close()
    full = [moment for moment, count in ticks if count == rows]
    return (full[-1] - full[0]) * 1e3 / (len(full) - 1) / rows


def measure_steps(part: LatentUNet, request: DenoisingRequest, *, jobs: int) -> float:
    """Milliseconds per row and step of `scheduler.step`, one job after the other."""
    running: list[DenoisingJob] = [
        part.start(replace(request, random_state=s)) for s in range(jobs)
    ]
    rows = jobs * part.rows(request)
    seconds, ticks = 0.0, 0
    with torch.inference_mode():
        outputs = [torch.randn_like(job.latents) for job in running]
        while running[0].step < running[0].num_steps:
            for job in running:
                job.scheduler.scale_model_input(job.latents, job.timestep)
            began = time.perf_counter()
            for job, output in zip(running, outputs, strict=True):
                job.latents = job.scheduler.step(
                    output, job.timestep, job.latents, return_dict=False
                )[0]
            seconds += time.perf_counter() - began
            ticks += 1
            for job in running:
                job.step += 1
    return seconds * 1e3 / ticks / rows


if __name__ == "__main__":
    main()
