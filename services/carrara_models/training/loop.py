"""The training loop: steps, schedule, EMA, scalars, snapshots and exact resumption.

It knows nothing of the network beyond its parameters. All that is random in step n is drawn from
generators seeded with (seed, n), inside `batch_at`, so that a resumed run needs no random state:
it takes the same steps as one that was never interrupted.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class LoopSettings:
    """How a network is trained; a run is resumed with the same settings; its steps may change."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_fraction: float = 0.4
    """The share of the steps, at the end, in which the rate falls to zero along a cosine."""
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    bfloat16: bool = True
    """Autocast to bfloat16; the weights and the optimizer stay in float32."""


@dataclass(frozen=True)
class Pace:
    """When a run reports and what it runs on; changes no weight."""

    device: str = "cpu"
    workers: int = 1
    """Processes that prepare batches; 0 prepares them between the steps."""
    log_every: int = 20
    save_every: int = 200
    sample_every: int = 500
    stop_at: int | None = None
    """A step to stop at before the last one, for a run that goes on later."""


class Ema:
    """An exponential moving average of a network's parameters, warmed up."""

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, *, step: int) -> None:
        """Takes in the parameters after `step`; early on, the average forgets faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), parameters, 1 - decay)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Overwrites the parameters of `network` with the averages."""
        for name, parameter in network.named_parameters():
            parameter.copy_(self.shadow[name])


class StepBatches(Dataset[Batch]):
    """The batch of each step, as a dataset: workers prepare the coming ones."""

    def __init__(self, batch_at: Callable[[int], Batch], *, steps: int) -> None:
        self.batch_at = batch_at
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return self.batch_at(step)


def learning_rate_factor(step: int, settings: LoopSettings) -> float:
    """The factor of the learning rate in `step`: linear warm-up, plateau, half a cosine to zero."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    decay_steps = settings.steps * settings.decay_fraction
    left = settings.steps - step
    if left >= decay_steps:
        return warmup
    return warmup * 0.5 * (1 - math.cos(math.pi * left / decay_steps))


def run_loop(
    network: nn.Module,
    *,
    folder: Path,
    settings: LoopSettings,
    pace: Pace,
    batch_at: Callable[[int], Batch],
    loss_of: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]],
    on_sample: Callable[[int], Mapping[str, float]],
    resume: bool,
) -> None:
    """Trains the parameters of `network` that want a gradient; leaves their average in it.

    Writes `scalars.jsonl` and `snapshot/` into `folder`.

    Args:
        network: Trained in place. On return it holds the averaged parameters.
        folder: Where the run lives; created.
        settings: The recipe.
        pace: Reports, device and workers.
        batch_at: The batch of a step, a pure function of it.
        loss_of: The loss, a scalar, and further scalars to report; runs the network.
        on_sample: Called with the step while `network` holds the averaged parameters: draws
            sample pictures, returns scalars to report.
        resume: Goes on from the snapshot in `folder`, made with the same settings but for `steps`.

    Raises:
        FileExistsError: A snapshot is there and `resume` is false.
        FileNotFoundError: No snapshot is there and `resume` is true.
        ValueError: The snapshot was made with other settings.
        FloatingPointError: The loss is not finite.
    """
    snapshot = folder / "snapshot"
    if not resume and snapshot.exists():
        raise FileExistsError(f"{snapshot} exists: resume it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    network.to(pace.device)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    ema = Ema(network, decay=settings.ema_decay)
    start = 0
    if resume:
        start = _load_snapshot(snapshot, network, ema, optimizer, settings)
    stop = settings.steps if pace.stop_at is None else min(pace.stop_at, settings.steps)
    batches = DataLoader(
        StepBatches(batch_at, steps=settings.steps),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=pace.workers,
        prefetch_factor=8 if pace.workers else None,
        worker_init_fn=_use_one_thread,
    )
    began = time.monotonic()
    with (folder / "scalars.jsonl").open("a", buffering=1) as scalars_file:

        def report(step: int, scalars: Mapping[str, float]) -> None:
            seconds = time.monotonic() - began
            scalars_file.write(
                json.dumps({"step": step, "seconds": round(seconds, 1), **scalars}) + "\n"
            )
            remaining = seconds / (step - start) * (stop - step)
            values = "  ".join(f"{name} {value:.4f}" for name, value in scalars.items())
            print(f"step {step}/{stop}  {values}  {remaining / 60:.1f} min left", flush=True)

        for step, host_batch in enumerate(batches, start=start):
            batch = {name: tensor.to(pace.device) for name, tensor in host_batch.items()}
            factor = learning_rate_factor(step, settings)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            device_type = torch.device(pace.device).type
            with torch.autocast(device_type, torch.bfloat16, enabled=settings.bfloat16):
                loss, scalars = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
            ema.update(network, step=step)

            done = step + 1
            if done % pace.log_every == 0 or done == stop:
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(f"the loss is {loss.item()} in step {step}")
                report(done, {"loss": loss.item()} | {k: v.item() for k, v in scalars.items()})
            if done % pace.save_every == 0 or done == stop:
                _save_snapshot(snapshot, network, ema, optimizer, settings, done)
            if done % pace.sample_every == 0 or done == stop:
                trained_now = {name: p.detach().clone() for name, p in network.named_parameters()}
                ema.copy_to(network)
                network.eval()
                with torch.no_grad():
                    sample_scalars = on_sample(done)
                    if sample_scalars:
                        report(done, sample_scalars)
                    for name, parameter in network.named_parameters():
                        parameter.copy_(trained_now[name])
                network.train()
    ema.copy_to(network)
    network.eval()


def _use_one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _save_snapshot(
    snapshot: Path,
    network: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    settings: LoopSettings,
    step: int,
) -> None:
    """Writes beside the old snapshot, then takes its place: a kill leaves a whole one behind."""
    new, old = snapshot.with_name("snapshot.new"), snapshot.with_name("snapshot.old")
    new.mkdir(exist_ok=True)
    parameters = {name: p.detach().contiguous() for name, p in network.named_parameters()}
    save_file(parameters, new / "weights.safetensors")
    save_file(ema.shadow, new / "ema.safetensors")
    torch.save(optimizer.state_dict(), new / "optimizer.pt")
    state = {"step": step, "settings": asdict(settings)}
    (new / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    if snapshot.exists():
        snapshot.rename(old)
    new.rename(snapshot)
    if old.exists():
        for file in old.iterdir():
            file.unlink()
        old.rmdir()


def _load_snapshot(
    snapshot: Path,
    network: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    settings: LoopSettings,
) -> int:
    state = json.loads((snapshot / "state.json").read_text())
    made_with = state["settings"]
    # The number of steps only says when the rate decays: that may be put off or brought forward.
    wanted = json.loads(json.dumps(asdict(settings))) | {"steps": made_with["steps"]}
    if made_with != wanted:
        raise ValueError(f"{snapshot} was made with {made_with}, not with {wanted}")
    weights = load_file(snapshot / "weights.safetensors")
    averages = load_file(snapshot / "ema.safetensors")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])
            ema.shadow[name].copy_(averages[name])
    optimizer.load_state_dict(torch.load(snapshot / "optimizer.pt", weights_only=True))
    return int(state["step"])
