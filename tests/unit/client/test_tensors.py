from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from carrara.tensors import ITEM_SIZES, MAX_DIMENSIONS, TensorError, from_numpy, to_numpy
from carrara.v1.tensor_pb2 import (
    DATA_TYPE_BFLOAT16,
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT32,
    DATA_TYPE_INT32,
    DATA_TYPE_UINT8,
    DATA_TYPE_UNSPECIFIED,
    DataType,
    Tensor,
)

DTYPES = ["<f4", "<f2", "<f8", "<i8", "<i4", "u1", "?", ">f4", ">f2", ">f8", ">i8", ">i4"]


@given(
    hnp.arrays(
        st.sampled_from(DTYPES),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    )
)
def test_every_array_comes_back_with_its_bits_and_shape(array: np.ndarray) -> None:
    tensor = Tensor.FromString(from_numpy(array).SerializeToString())
    back = to_numpy(tensor)
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("<")
    assert back.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert len(tensor.data) == array.size * ITEM_SIZES[tensor.data_type]


@given(hnp.arrays("<u2", hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_bfloat16_travels_as_its_bits(bits: np.ndarray) -> None:
    tensor = from_numpy(bits, data_type=DATA_TYPE_BFLOAT16)
    assert tensor.data_type == DATA_TYPE_BFLOAT16
    assert np.array_equal(to_numpy(tensor), bits)


@given(hnp.arrays("<f4", hnp.array_shapes(min_dims=2, max_dims=4)))
def test_memory_layout_does_not_show(array: np.ndarray) -> None:
    assert from_numpy(array.T) == from_numpy(np.ascontiguousarray(array.T))


@given(
    st.integers(0, 12),
    st.lists(st.integers(0, 2**32 - 1), max_size=10),
    st.binary(max_size=64),
)
def test_a_tensor_is_refused_or_means_exactly_its_bytes(
    data_type: int, shape: list[int], data: bytes
) -> None:
    tensor = Tensor(data_type=data_type, shape=shape, data=data)  # type: ignore[arg-type]
    try:
        array = to_numpy(tensor)
    except TensorError:
        return
    assert array.shape == tuple(shape)
    assert array.tobytes() == data


def test_every_data_type_of_the_contract_has_an_item_size() -> None:
    assert set(ITEM_SIZES) == set(DataType.values()) - {DATA_TYPE_UNSPECIFIED}


def test_a_scalar_and_an_empty_tensor_have_their_own_shapes() -> None:
    scalar, empty = from_numpy(np.float32(2.5)), from_numpy(np.zeros((1, 0, 3), np.uint8))
    assert (list(scalar.shape), len(scalar.data)) == ([], 4)
    assert (list(empty.shape), len(empty.data)) == ([1, 0, 3], 0)
    assert to_numpy(scalar) == 2.5
    assert to_numpy(empty).shape == (1, 0, 3)


def test_what_was_read_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        to_numpy(from_numpy(np.zeros(3)))[0] = 1


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(data=b""), "data_type 0"),
        (Tensor(data_type=99, data=b""), "data_type 99"),  # type: ignore[arg-type]
        (Tensor(data_type=DATA_TYPE_FLOAT32, shape=[2, 3], data=b"1234"), "takes 24 bytes.*has 4"),
        (Tensor(data_type=DATA_TYPE_FLOAT32, data=b""), "takes 4 bytes"),
        (Tensor(data_type=DATA_TYPE_UINT8, shape=[0], data=b"1"), "takes 0 bytes"),
        (Tensor(data_type=DATA_TYPE_UINT8, shape=[2**32 - 1] * 2), "larger than any memory"),
        (Tensor(data_type=DATA_TYPE_INT32, shape=[0, 2**32 - 1, 2**32 - 1]), "larger than any"),
        (Tensor(data_type=DATA_TYPE_UINT8, shape=[1] * 9, data=b"1"), "at most 8"),
        (Tensor(data_type=DATA_TYPE_BOOL, shape=[3], data=b"\0\1\2"), "stored as 2"),
    ],
)
def test_a_lying_tensor_is_refused(tensor: Tensor, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        to_numpy(tensor)


@pytest.mark.parametrize(
    ("array", "data_type", "message"),
    [
        (np.array(["text"]), None, "cannot be sent"),
        (np.zeros(1, np.complex64), None, "complex64 cannot be sent"),
        (np.zeros(1, np.uint16), None, "uint16 cannot be sent"),
        (np.zeros(1, np.float32), DATA_TYPE_BFLOAT16, "float32 cannot be sent as data_type 3"),
        (np.zeros(1, np.float32), 99, "as data_type 99"),
        (np.zeros([1] * (MAX_DIMENSIONS + 1)), None, "9 dimensions"),
    ],
)
def test_an_array_that_no_data_type_stands_for_is_refused(
    array: np.ndarray, data_type: DataType | None, message: str
) -> None:
    with pytest.raises(TensorError, match=message):
        from_numpy(array, data_type=data_type)
