"""Between messages and torch: tensors, and the states of random generators."""

from __future__ import annotations

import numpy as np
import torch

from carrara import tensors
from carrara.v1 import stage_pb2, tensor_pb2
from carrara_models.denoising.random import STATE_BYTES, torch_generator
from carrara_models.errors import BadFieldError
from carrara_services.refusals import RandomStateError


def to_torch(message: tensor_pb2.Tensor, *, field: str) -> torch.Tensor:
    """Reads a tensor of a request.

    Args:
        field: Where it stands in the request, for the error's message.

    Raises:
        BadFieldError: Shape, type and bytes do not agree, or a number is NaN or infinite.
    """
    try:
        array = tensors.to_numpy(message)
    except tensors.TensorError as error:
        raise BadFieldError(field, _summary(message), str(error)) from error
    tensor = torch.from_numpy(array.copy())  # the message's bytes may not be written to
    if message.data_type == tensor_pb2.DATA_TYPE_BFLOAT16:
        tensor = tensor.view(torch.bfloat16)
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise BadFieldError(field, "NaN or infinity", "finite numbers")
    return tensor


def from_torch(tensor: torch.Tensor) -> tensor_pb2.Tensor:
    """Makes the message of a tensor, in its own data type."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        array: np.ndarray = tensor.view(torch.uint16).numpy()
        return tensors.from_numpy(array, data_type=tensor_pb2.DATA_TYPE_BFLOAT16)
    return tensors.from_numpy(tensor.numpy())


def read_random_state(message: stage_pb2.RandomState, *, field: str) -> int | torch.Tensor | None:
    """Reads a seed, or the state of a torch generator, uint8 [5056]; None where there is neither.

    Args:
        field: Where it stands in the request, for the error's message.

    Raises:
        RandomStateError: No generator takes it.
    """
    match message.WhichOneof("state"):
        case "seed":
            return int(message.seed)
        case "torch_cpu":
            field, data = f"{field}.torch_cpu", message.torch_cpu
            if len(data) != STATE_BYTES:
                raise RandomStateError(field, f"{len(data)} bytes; allowed: {STATE_BYTES}")
            state = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            try:
                torch_generator(state)
            except BadFieldError as error:
                raise RandomStateError(field, f"{error.value} is not {error.allowed}") from error
            return state
        case _:
            return None


def _summary(message: tensor_pb2.Tensor) -> str:
    return (
        f"data type {message.data_type}, shape {list(message.shape)[:8]}, {len(message.data)} bytes"
    )
