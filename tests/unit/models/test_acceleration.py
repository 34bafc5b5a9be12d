"""Networks in another precision, compiled or not: what they take, give and compile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import openvino_telemetry
import pytest
import torch
from torch._dynamo.utils import counters

from carrara_models.acceleration import in_openvino, in_torch
from carrara_models.acceleration.in_torch import accelerate
from carrara_models.acceleration.warm_up import WarmedForward, warming_up
from carrara_models.denoising.batch import call_network
from carrara_models.denoising.job import DenoisingJob
from carrara_models.errors import CheckpointError
from carrara_models.parts import Numerics


@pytest.fixture(autouse=True)
def _few_row_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_openvino, "ROW_BUCKETS", (2, 3))


class Network(torch.nn.Module):
    """Remembers what it is given; its forward is like that of diffusers' models."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 4)
        torch.nn.init.normal_(self.norm.weight)
        torch.nn.init.normal_(self.norm.bias)
        self.seen: list[tuple[Any, ...]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, *, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor]:
        if not torch.compiler.is_compiling():
            self.seen.append((x.dtype, t.dtype, encoder_hidden_states.dtype, x.shape[0]))
        made = self.norm(self.conv(x))
        made = self.norm(made.flatten(2)).view_as(made)  # attention has its norm of such
        return (made + encoder_hidden_states.mean() + t.mean().to(x.dtype),)


def call(network: Network, *, rows: int = 2, tokens: int = 5, side: int = 8) -> torch.Tensor:
    embeds = torch.ones(rows, tokens, 8)
    pixels = torch.ones(rows, 4, side, side)
    (made,) = network(pixels, torch.ones(rows), encoder_hidden_states=embeds)
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
    assert isinstance(network.forward, WarmedForward)
    with torch.inference_mode(), warming_up([network]):
        call(network, rows=2, tokens=5)
    for (rows, tokens), picture in expected.items():
        network.seen.clear()
        with torch.inference_mode():
            made = call(network, rows=rows, tokens=tokens)
        torch.testing.assert_close(made, picture)
        # What is compiled takes no notes.
        assert bool(network.seen) == (rows == 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_for_a_gpu_a_network_is_compiled_once_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as far as that goes: what is recorded there is what is compiled here."""
    monkeypatch.setattr(in_torch, "Replayed", lambda forward: forward)
    network = Network()
    expected = {rows: call(network, rows=rows, tokens=9) for rows in (2, 4, 6)}
    network.forward = in_torch._compiled(network.forward, on_gpu=True)
    before = counters["stats"]["unique_graphs"]
    with torch.inference_mode():
        with warming_up([network]):
            call(network, rows=2, tokens=5)
        for rows, picture in expected.items():
            network.seen.clear()
            torch.testing.assert_close(call(network, rows=rows, tokens=9), picture)
            assert not network.seen
    assert counters["stats"]["unique_graphs"] == before + 1


def on_openvino(network: Network, *, cache: Path | None = None) -> Network:
    precision = network.conv.weight.dtype
    in_openvino.accelerate(network, precision=precision, cache=cache)
    with torch.inference_mode(), warming_up([network]):
        call(network)
    network.seen.clear()
    return network


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_openvino_takes_any_rows_and_tokens_and_torch_other_sizes(
    dtype: str, tolerance: float
) -> None:
    plain = Network()
    shapes = [(rows, tokens, side) for rows in (1, 2, 5) for tokens in (5, 9) for side in (8, 12)]
    expected = {
        (rows, tokens, side): call(plain, rows=rows, tokens=tokens, side=side)
        for rows, tokens, side in shapes
    }
    network = on_openvino(plain.to(getattr(torch, dtype)))
    for (rows, tokens, side), picture in expected.items():
        network.seen.clear()
        with torch.inference_mode():
            made = call(network, rows=rows, tokens=tokens, side=side)
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, picture, rtol=tolerance, atol=tolerance)
        assert bool(network.seen) == (side == 12), "what torch ran, the network has seen"


def test_what_openvino_gave_stays_when_it_is_called_again() -> None:
    network = on_openvino(Network())
    first = call(network)
    kept = first.clone()
    call(network, tokens=9)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_openvino_compiles_once_and_again_for_other_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    network = on_openvino(Network(), cache=tmp_path)
    compiled = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert compiled
    equal = Network()
    equal.load_state_dict(network.state_dict())
    made = call(on_openvino(equal, cache=tmp_path))
    torch.testing.assert_close(made, call(network), rtol=0, atol=0)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == compiled
    on_openvino(Network(), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) > len(compiled)
    told = [record.message for record in caplog.records if record.message.startswith("OpenVINO")]
    assert ["earlier start" in message for message in told] == [False, True, False]


def test_a_broken_file_of_an_earlier_start_is_made_anew(tmp_path: Path) -> None:
    network = on_openvino(Network(), cache=tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"broken" * 100)
    equal = Network()
    equal.load_state_dict(network.state_dict())
    made = call(on_openvino(equal, cache=tmp_path))
    torch.testing.assert_close(made, call(network))


def test_what_openvino_cannot_convert_is_named() -> None:
    class Strange(Network):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            raise ValueError("no such thing")

    with pytest.raises(CheckpointError, match=r"OpenVINO cannot convert Strange.*no such thing"):
        on_openvino(Strange())


def test_nobody_is_told_over_the_network_that_openvino_converts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        openvino_telemetry.Telemetry, "send_event", lambda *what, **more: told.append(what)
    )
    on_openvino(Network())
    assert not told


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
