"""numpy arrays to `carrara.v1.Tensor` and back, with every lie about shape or bytes refused.

It knows nothing of what the numbers mean; the client forwards tensors between stages unopened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carrara.v1.tensor_pb2 import (
    DATA_TYPE_BFLOAT16,
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT16,
    DATA_TYPE_FLOAT32,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_INT32,
    DATA_TYPE_INT64,
    DATA_TYPE_UINT8,
    DataType,
    Tensor,
)

MAX_DIMENSIONS = 8
MAX_BYTES = 2**62  # of a shape, empty dimensions left out: strides must fit a signed 64-bit integer

# numpy has no bfloat16: its bits travel as uint16.
_NUMPY_TYPES: Mapping[DataType, np.dtype[Any]] = MappingProxyType(
    {
        DATA_TYPE_FLOAT32: np.dtype("<f4"),
        DATA_TYPE_FLOAT16: np.dtype("<f2"),
        DATA_TYPE_BFLOAT16: np.dtype("<u2"),
        DATA_TYPE_FLOAT64: np.dtype("<f8"),
        DATA_TYPE_INT64: np.dtype("<i8"),
        DATA_TYPE_INT32: np.dtype("<i4"),
        DATA_TYPE_UINT8: np.dtype("u1"),
        DATA_TYPE_BOOL: np.dtype("?"),
    }
)
_DATA_TYPES = {
    numpy_type: data_type
    for data_type, numpy_type in _NUMPY_TYPES.items()
    if data_type != DATA_TYPE_BFLOAT16
}

ITEM_SIZES: Mapping[DataType, int] = MappingProxyType(
    {value: numpy_type.itemsize for value, numpy_type in _NUMPY_TYPES.items()}
)
"""Bytes of one number, by `carrara.v1.DataType`."""


class TensorError(ValueError):
    """A tensor whose type, shape and bytes do not agree."""


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Reads a tensor without copying it.

    Args:
        tensor: As received; nothing in it is trusted.

    Returns:
        A read-only array of the tensor's shape over the message's own bytes; bfloat16 as uint16.

    Raises:
        TensorError: The type is unknown, shape and byte count disagree, or a BOOL is not 0 or 1.
            Checked before anything is allocated.
    """
    shape = tuple(tensor.shape)
    if tensor.data_type not in ITEM_SIZES:
        raise TensorError(f"data_type {tensor.data_type} is not one that this version knows")
    if len(shape) > MAX_DIMENSIONS:
        raise TensorError(f"{len(shape)} dimensions; allowed: at most {MAX_DIMENSIONS}")
    item_size = ITEM_SIZES[tensor.data_type]
    if math.prod(max(size, 1) for size in shape) * item_size > MAX_BYTES:
        raise TensorError(f"shape {list(shape)} is larger than any memory")
    expected = math.prod(shape) * item_size
    if expected != len(tensor.data):
        raise TensorError(
            f"shape {list(shape)} of {DataType.Name(tensor.data_type)} takes {expected} bytes, "
            f"but data has {len(tensor.data)}"
        )
    if tensor.data_type == DATA_TYPE_BOOL:
        raw = np.frombuffer(tensor.data, dtype=np.uint8)
        if raw.size and raw.max() > 1:
            raise TensorError(f"a BOOL is stored as {raw.max()}; allowed: 0 or 1")
    return np.frombuffer(tensor.data, dtype=_NUMPY_TYPES[tensor.data_type]).reshape(shape)


def from_numpy(array: ArrayLike, *, data_type: DataType | None = None) -> Tensor:
    """Writes an array as a message.

    Args:
        array: Of any shape with at most 8 dimensions, any memory layout and byte order.
        data_type: Needed for bfloat16 alone, whose bits come as uint16; by default the array's own.

    Raises:
        TensorError: No data type stands for the array's dtype, or `data_type` does not.
    """
    array = np.asarray(array)
    if array.ndim > MAX_DIMENSIONS:
        raise TensorError(f"{array.ndim} dimensions; allowed: at most {MAX_DIMENSIONS}")
    little_endian = array.dtype.newbyteorder("<")
    own = _DATA_TYPES.get(little_endian)
    chosen = own if data_type is None else data_type
    if chosen is None or _NUMPY_TYPES.get(chosen) != little_endian:
        wanted = "" if data_type is None else f" as data_type {data_type}"
        raise TensorError(f"an array of {array.dtype} cannot be sent{wanted}")
    return Tensor(
        data_type=chosen, shape=array.shape, data=array.astype(little_endian, copy=False).tobytes()
    )
