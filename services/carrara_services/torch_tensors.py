"""Between `Tensor` messages and torch tensors."""

from __future__ import annotations

import numpy as np
import torch

from carrara import tensors
from carrara.v1 import tensor_pb2
from carrara_models.errors import BadFieldError


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


def _summary(message: tensor_pb2.Tensor) -> str:
    return (
        f"data type {message.data_type}, shape {list(message.shape)[:8]}, {len(message.data)} bytes"
    )
