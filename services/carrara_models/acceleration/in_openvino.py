"""Networks on OpenVINO's kernels for CPUs.

A network is traced by torch and converted, for the size of picture that it meets and any number of
rows. For one number of rows it is faster, by a tenth to a third at 4 million parameters and not at
860 million; but each number has a copy of the weights. So small networks are made ready for some
numbers of rows too.

Its package is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from carrara_models.acceleration.calls import cast, mapped, named_tensors, open_axes, rows_of
from carrara_models.acceleration.warm_up import Forward, WarmedForward
from carrara_models.errors import CheckpointError

logger = logging.getLogger(__name__)

# Blocks of UNets on which OpenVINO 2026.4 is not to be trusted: DeepFloyd IF's have crashed the
# process, in bfloat16 after other networks in it, and unCLIP's have lost all their rows.
_REFUSED_BLOCKS = "SimpleCrossAttn"
_ANY = -1  # size, as OpenVINO says it
# What is small, in parameters.
_FEW = 16_000_000
# Of small networks: each takes a second to make ready. Even ones, as a job with guidance has two.
ROW_BUCKETS = (1, *range(2, 16, 2), *range(16, 33, 4))
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def is_installed() -> bool:
    """Whether the extra is there."""
    return find_spec("openvino") is not None


def precisions() -> tuple[torch.dtype, ...]:
    """Those that this CPU can compute in; in others OpenVINO would compute in float32 unasked."""
    has_bfloat16 = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


def row_buckets(network: torch.nn.Module) -> tuple[int, ...]:
    """Numbers of rows that a network is made ready for, beside any."""
    parameters = sum(each.numel() for each in network.parameters())
    return ROW_BUCKETS if parameters <= _FEW else ()


def accelerate(network: torch.nn.Module, *, precision: torch.dtype, cache: Path | None) -> None:
    """Has a network, whose weights are of `precision`, take and give float32.

    For the shapes of its warm-up it runs on OpenVINO, for others on torch.

    Args:
        cache: The folder where OpenVINO keeps what it has compiled; None keeps nothing.

    Raises:
        CheckpointError: OpenVINO is not to be trusted with the network.
    """
    blocks = getattr(network, "config", {}).get("down_block_types", ())
    if any(block.startswith(_REFUSED_BLOCKS) for block in blocks):
        raise CheckpointError(
            f"--engine openvino: not for UNets with {_REFUSED_BLOCKS} blocks, with which OpenVINO "
            "is not to be trusted; take another engine."
        )
    forward = network.forward

    def eager(*arguments: Any, **named: Any) -> Any:
        return cast(forward(*cast(arguments, precision), **cast(named, precision)), torch.float32)

    def ready(arguments: tuple[Any, ...], named: dict[str, Any]) -> Forward:
        call = (arguments, named)
        model = _converted(_Traceable(network, eager, call))
        forwards, all_kept = {}, True
        for rows in (_ANY, *row_buckets(network)):
            shapes = _shapes(call, rows)
            forwards[rows], kept = _compiled(model, shapes, precision=precision, cache=cache)
            all_kept = all_kept and kept
        logger.info(
            "OpenVINO %s", "has it from an earlier start" if all_kept else "has compiled it"
        )

        def forward(*arguments: Any, **named: Any) -> tuple[torch.Tensor, ...]:
            rows = rows_of((arguments, named))
            return forwards.get(rows, forwards[_ANY])(*arguments, **named)  # type: ignore[no-any-return]

        return forward

    network.forward = WarmedForward(eager, ready=ready, any_rows=True)  # type: ignore[method-assign]


class _Traceable(torch.nn.Module):
    """Calls of one kind, as a module that takes tensors and nothing else, and gives a tuple."""

    def __init__(self, network: torch.nn.Module, forward: Forward, call: Any) -> None:
        super().__init__()
        self.network = network  # here, so that tracing knows its weights
        self._forward, self._call = forward, call

    def example(self) -> tuple[torch.Tensor, ...]:
        """At least two rows, as tracing takes a size of 1 for one that is to be spread."""
        return tuple(
            tensor.repeat_interleave(2, dim=0)
            if tensor.shape[0] == 1 and 0 in open_axes(name, any_rows=True)
            else tensor
            for name, tensor in named_tensors(self._call)
        )

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = iter(tensors)
        arguments, named = mapped(self._call, lambda _: next(left))
        return tuple(self._forward(*arguments, **named))


def _converted(call: _Traceable) -> Any:
    """OpenVINO's model of a call.

    Not by `openvino.convert_model`, which tells its makers of each use over the network.

    Raises:
        CheckpointError: OpenVINO cannot convert it.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    front_end = FrontEndManager().load_by_framework("pytorch")
    try:
        with warnings.catch_warnings(), torch.no_grad(), _norms_for_openvino(call.network):
            # Of sizes that become constants; those that must not are held open by `kind_of`.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            # torch has one for tracing itself, by which OpenVINO converts unless told otherwise.
            warnings.simplefilter("ignore", DeprecationWarning)
            traced = TorchScriptPythonDecoder(
                call,
                example_input=call.example(),
                # What it shares of bfloat16 weights it does not keep alive.
                shared_memory=False,
                trace_kwargs={"check_trace": False},
            )
        return front_end.convert(front_end.load(traced))
    except Exception as error:  # whatever three large libraries may raise
        name, reason = type(call.network).__name__, " ".join(str(error.__cause__ or error).split())
        raise CheckpointError(
            f"--engine openvino: OpenVINO cannot convert {name}, which other engines run: {reason}"
        ) from error


@contextlib.contextmanager
def _norms_for_openvino(network: torch.nn.Module) -> Iterator[None]:
    """Has group norms compute, while entered, what they do by operations that OpenVINO is quick at.

    OpenVINO 2026.4 scales the channels of small pictures number by number, which was a third of a
    small UNet's time. A convolution of each channel by itself it vectorizes, and does the
    activation behind it in one.
    """

    def forward(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4:
            return torch.nn.GroupNorm.forward(norm, x)
        groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
        normalized = functional.layer_norm(groups, groups.shape[-1:], eps=norm.eps)
        scale = norm.weight.view(-1, 1, 1, 1)
        return functional.conv2d(normalized.view_as(x), scale, norm.bias, groups=norm.num_channels)

    norms = [each for each in network.modules() if type(each) is torch.nn.GroupNorm and each.affine]
    for norm in norms:
        norm.forward = functools.partial(forward, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _shapes(call: Any, rows: int) -> list[list[int]]:
    """Of all tensors of calls like this one with so many rows."""
    shapes = []
    for name, tensor in named_tensors(call):
        tokens, free = open_axes(name, any_rows=False), open_axes(name, any_rows=True)
        shapes.append(
            [
                _ANY if axis in tokens else rows if axis in free else size
                for axis, size in enumerate(tensor.shape)
            ]
        )
    return shapes


def _compiled(
    model: Any, shapes: list[list[int]], *, precision: torch.dtype, cache: Path | None
) -> tuple[Forward, bool]:
    """What runs calls of these shapes, and whether an earlier start has left it."""
    from openvino import PartialShape

    model.reshape(
        {port: PartialShape(shape) for port, shape in zip(model.inputs, shapes, strict=True)}
    )
    options = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        # Where OpenVINO 2026.4 generates kernels of attention, the process has crashed; networks
        # were no slower without such kernels.
        "SNIPPETS_MODE": "DISABLE",
        "ENABLE_CPU_PINNING": False,  # stages beside it would pin their threads to the same cores
    }
    if cache is not None:
        options["CACHE_DIR"] = str(cache)
    compiled = _core().compile_model(model, "CPU", options)
    request = compiled.create_infer_request()

    def forward(*arguments: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        given = [tensor.contiguous().numpy() for _, tensor in named_tensors((arguments, named))]
        made = request.infer(given, share_inputs=True)
        return tuple(torch.from_numpy(value) for value in made.to_tuple())

    return forward, bool(compiled.get_property("LOADED_FROM_CACHE"))


@functools.cache
def _core() -> Any:
    from openvino import Core

    return Core()
