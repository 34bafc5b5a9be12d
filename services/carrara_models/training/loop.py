"""The training loop: steps, schedule, EMA, reports, snapshots and exact resumption, by accelerate.

It knows nothing of the network beyond its parameters. All that is random follows from the position
of an example in the run (see `randomness`), so that a resumed run needs no random state, and that
micro-batches and processes only divide the work: the examples of a step stay the same.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from carrara_models.training.errors import RecipeError
from carrara_models.training.reports import Reports

Batch = dict[str, Tensor]
# How many pictures of each `data.records.Reason` were passed over on the way to a batch.
SKIPPED = "skipped"
SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class LoopSettings:
    """How a network is trained; a run is resumed with the same settings; its steps may change."""

    steps: int
    batch_size: int
    """Of all processes and micro-batches together."""
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
    gradient_accumulation_steps: int = 1
    """Into how many micro-batches a process divides its share of a batch."""


@dataclass(frozen=True)
class Pace:
    """When a run reports and what it runs on; changes no weight."""

    device: str = "cpu"
    """"cpu", or "auto" for what accelerate finds."""
    workers: int = 1
    """Processes that prepare batches, for each that trains; 0 prepares them between the steps."""
    log_every: int = 50
    save_every: int = 250
    sample_every: int = 500
    stop_at: int | None = None
    """A step to stop at before the last one, for a run that goes on later."""


@dataclass(frozen=True)
class Samples:
    """What a network can do so far.

    Attributes:
        scalars: To report.
        pictures: uint8 [N, H, W, 3], by name, to look at.
    """

    scalars: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


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


class MicroBatches(Dataset[Batch]):
    """A process's share of every step, as a dataset: workers prepare the coming ones."""

    def __init__(
        self,
        batch_at: Callable[[Sequence[int]], Batch],
        settings: LoopSettings,
        *,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._batch_at = batch_at
        self._batch_size = settings.batch_size
        self._parts = settings.gradient_accumulation_steps
        self._process = process
        self._size = settings.batch_size // (self._parts * processes)
        self._length = settings.steps * self._parts

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self._parts)
        first = step * self._batch_size + (self._process * self._parts + part) * self._size
        return self._batch_at(range(first, first + self._size))


class _Loss(nn.Module):
    """The loss as a module, so that what wraps it sees the whole step, whatever that calls."""

    def __init__(
        self,
        network: nn.Module,
        loss_of: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]],
        *,
        bfloat16: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self._loss_of, self._bfloat16 = loss_of, bfloat16

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(self.network.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bfloat16):
            return self._loss_of(batch)


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
    batch_at: Callable[[Sequence[int]], Batch],
    loss_of: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]],
    on_sample: Callable[[int], Samples],
    resume: bool,
) -> bool:
    """Trains the parameters of `network` that want a gradient; leaves their average in it.

    Writes `scalars.jsonl`, `tensorboard/`, `sample-*.png` and `snapshot/` into `folder`. Started by
    `accelerate launch`, each process trains on its share of every batch, and one of them writes.

    Args:
        network: Trained in place. On return it holds the averaged parameters.
        folder: Where the run lives; created.
        settings: The recipe.
        pace: Reports, device and workers.
        batch_at: The examples at positions of the run, a pure function of them. Step n takes those
            from n times the batch size on.
        loss_of: The mean loss over the examples of a batch, a scalar, and further scalars to
            report; runs the network.
        on_sample: Called with the step, in one process, while `network` holds the averaged
            parameters.
        resume: Goes on from the snapshot in `folder`, made with the same settings but for `steps`.

    Returns:
        Whether this is the process that writes.

    Raises:
        FileExistsError: A snapshot is there and `resume` is false.
        FileNotFoundError: No snapshot is there and `resume` is true.
        RecipeError: The snapshot was made with other settings, or a batch cannot be divided evenly.
        FloatingPointError: The loss is not finite.
    """
    snapshot = folder / SNAPSHOT
    if not resume and snapshot.exists():
        raise FileExistsError(f"{snapshot} exists: resume it, or choose another folder")
    if resume and not snapshot.exists():
        raise FileNotFoundError(f"there is no {snapshot} to resume")
    # Precision is ours: the recipe decides, and accelerate takes one for the whole process.
    accelerator = Accelerator(mixed_precision="no", cpu=pace.device == "cpu")
    _check_division(settings, processes=accelerator.num_processes)
    accelerator.wait_for_everyone()
    writes = accelerator.is_main_process
    folder.mkdir(parents=True, exist_ok=True)
    network.to(accelerator.device)
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
    step_loss = accelerator.prepare(_Loss(network, loss_of, bfloat16=settings.bfloat16))
    batches = _micro_batches(batch_at, settings, pace, accelerator, start=start, stop=stop)
    parts = settings.gradient_accumulation_steps
    skipped: Tensor | None = None
    with Reports(folder, start=start, stop=stop, writes=writes) as reports:
        for step in range(start, stop):
            factor = learning_rate_factor(step, settings)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            optimizer.zero_grad(set_to_none=True)
            scalars: dict[str, Tensor] = {}
            for part in range(parts):
                batch = next(batches)
                passed_over = batch.pop(SKIPPED, None)
                if passed_over is not None:
                    skipped = passed_over if skipped is None else skipped + passed_over
                # Gradients travel between processes once a step, with the last part.
                last = part == parts - 1
                with nullcontext() if last else accelerator.no_sync(step_loss):
                    loss, more = step_loss(batch)
                    accelerator.backward(loss / parts)
                for name, value in {"loss": loss, **more}.items():
                    scalars[name] = scalars.get(name, 0) + value.detach() / parts
            accelerator.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
            ema.update(network, step=step)

            done = step + 1
            if done % pace.log_every == 0 or done == stop:
                reported = {
                    name: accelerator.reduce(value.float(), reduction="mean").item()
                    for name, value in scalars.items()
                }
                if not math.isfinite(reported["loss"]):
                    raise FloatingPointError(f"the loss is {reported['loss']} in step {step}")
                reported["learning_rate"] = settings.learning_rate * factor
                if skipped is not None:
                    reported["pictures_skipped"] = float(
                        accelerator.reduce(skipped, reduction="sum").sum()
                    )
                reports.scalars(done, reported)
            if writes and (done % pace.save_every == 0 or done == stop):
                _save_snapshot(snapshot, network, ema, optimizer, settings, done)
            if writes and (done % pace.sample_every == 0 or done == stop):
                trained_now = {name: p.detach().clone() for name, p in network.named_parameters()}
                ema.copy_to(network)
                network.eval()
                with torch.no_grad():
                    reports.samples(done, on_sample(done))
                    for name, parameter in network.named_parameters():
                        parameter.copy_(trained_now[name])
                network.train()
            reports.step(done)
    accelerator.wait_for_everyone()
    ema.copy_to(network)
    network.eval()
    return writes


def _check_division(settings: LoopSettings, *, processes: int) -> None:
    shares = settings.gradient_accumulation_steps * processes
    if settings.batch_size % shares:
        raise RecipeError(
            f"batch_size is {settings.batch_size}, which does not divide evenly among {processes} "
            f"processes with gradient_accumulation_steps {settings.gradient_accumulation_steps}: "
            f"a multiple of {shares} does"
        )


def _micro_batches(
    batch_at: Callable[[Sequence[int]], Batch],
    settings: LoopSettings,
    pace: Pace,
    accelerator: Accelerator,
    *,
    start: int,
    stop: int,
) -> Iterator[Batch]:
    parts = settings.gradient_accumulation_steps
    loader = DataLoader(
        MicroBatches(
            batch_at,
            settings,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        ),
        batch_size=None,
        sampler=range(start * parts, stop * parts),
        num_workers=pace.workers,
        prefetch_factor=8 if pace.workers else None,
        worker_init_fn=_use_one_thread,
    )
    for batch in loader:
        yield {name: tensor.to(accelerator.device) for name, tensor in batch.items()}


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
        raise RecipeError(f"{snapshot} was made with {made_with}, not with {wanted}")
    weights = load_file(snapshot / "weights.safetensors")
    averages = load_file(snapshot / "ema.safetensors")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])
            ema.shadow[name].copy_(averages[name])
    optimizer.load_state_dict(torch.load(snapshot / "optimizer.pt", weights_only=True))
    return int(state["step"])
