"""Networks in another precision, compiled or not: what they take, give and compile."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from carrara_models.acceleration.in_torch import CompiledForward, accelerate, compiling
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.job import DenoisingJob
from carrara_models.parts import Numerics


class Network(torch.nn.Module):
    """Remembers what it is given; its forward is like that of diffusers' models."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.seen: list[tuple[Any, ...]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, *, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor]:
        if not torch.compiler.is_compiling():
            self.seen.append((x.dtype, t.dtype, encoder_hidden_states.dtype, x.shape[0]))
        return (self.conv(x) + encoder_hidden_states.mean() + t.mean().to(x.dtype),)


def call(network: Network, *, rows: int = 2, tokens: int = 5) -> torch.Tensor:
    embeds = torch.ones(rows, tokens, 8)
    (made,) = network(torch.ones(rows, 4, 8, 8), torch.ones(rows), encoder_hidden_states=embeds)
    return made


def test_a_network_computes_in_its_precision_and_takes_and_gives_float32() -> None:
    plain = Network()
    expected = call(plain)
    accelerate(plain.to(torch.bfloat16), precision=torch.bfloat16, compiled=False)
    made = call(plain)
    assert plain.seen[-1] == (*[torch.bfloat16] * 3, 2)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, rtol=0.05, atol=0.05)


# Of what torch itself imports when it compiles.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_only_what_was_met_in_the_warm_up_is_compiled_and_tokens_are_left_open() -> None:
    network = Network()
    expected = {
        (rows, tokens): call(network, rows=rows, tokens=tokens)
        for rows in (1, 2)
        for tokens in (5, 9)
    }
    accelerate(network, precision=torch.float32, compiled=True)
    assert isinstance(network.forward, CompiledForward)
    with torch.inference_mode(), compiling([network]):
        call(network, rows=2, tokens=5)
    for (rows, tokens), picture in expected.items():
        network.seen.clear()
        with torch.inference_mode():
            made = call(network, rows=rows, tokens=tokens)
        torch.testing.assert_close(made, picture)
        # What is compiled takes no notes.
        assert bool(network.seen) == (rows == 1)


def test_rows_are_filled_up_to_a_bucket_and_cut_off_again() -> None:
    sizes: list[int] = []

    def network(x: torch.Tensor, t: torch.Tensor, *, embeds: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] == t.shape[0] == embeds.shape[0]
        sizes.append(x.shape[0])
        return x + embeds.sum()

    numerics = Numerics(exact=False, row_buckets=(1, 2, 4))
    for count, bucket in ((1, 1), (2, 2), (3, 4), (5, 5)):
        jobs = [job(seed) for seed in range(count)]
        outputs = call_network(jobs, network, numerics=numerics)
        assert sizes[-1] == bucket
        assert [len(output) for output in outputs] == [1] * count


def job(seed: int) -> DenoisingJob:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    return DenoisingJob(
        latents=torch.full((1, 4, 8, 8), float(seed)),
        inputs={"embeds": torch.zeros(1, 3)},
        guidance_scale=None,
        scheduler=scheduler,
        torch_generator=torch.Generator(),
        height=8,
        width=8,
    )
