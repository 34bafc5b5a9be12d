from __future__ import annotations

import re

import numpy as np
import pytest

from carrara.contracts import kind_name, mismatch, tensors_mismatch, unverified
from carrara.tensors import from_numpy
from carrara.v1.stage_pb2 import (
    KIND_CONDITIONING,
    KIND_IMAGE_EMBEDS,
    KIND_LATENTS,
    Contract,
    Port,
)
from carrara.v1.tensor_pb2 import Tensor, TensorSpec

EMBEDS = TensorSpec(name="prompt_embeds", shape=[1, 77, 768], required=True)
NEGATIVE = TensorSpec(name="negative_prompt_embeds", shape=[1, 77, 768], required=False)
POOLED = TensorSpec(name="pooled_prompt_embeds", shape=[1, 768], required=True)


def latents(**fields: object) -> Contract:
    known = {"space": "a" * 64, "size_factor": 8, "scaling_factor": 0.18215}
    return Contract(kind=KIND_LATENTS, **(known | fields))  # type: ignore[arg-type]


def conditioning(*specs: TensorSpec) -> Contract:
    return Contract(kind=KIND_CONDITIONING, tensors=specs)


def check(produced: Contract, wanted: Contract, **port: object) -> str | None:
    return mismatch(
        produced,
        Port(contract=wanted, **port),  # type: ignore[arg-type]
        producer_name="generator g:1",
        consumer_name="decoder d:2",
    )


@pytest.mark.parametrize(
    ("produced", "wanted"),
    [
        (latents(), latents()),
        (latents(size_factor=0), latents()),
        (latents(scaling_factor=0), latents(shift_factor=0.1)),
        (latents(), latents(scaling_factor=0, shift_factor=0)),
        (latents(space=""), latents()),
        (latents(), latents(space="")),
        (conditioning(), conditioning(EMBEDS)),
        (conditioning(EMBEDS, NEGATIVE), conditioning(EMBEDS)),
        (conditioning(EMBEDS), conditioning(EMBEDS, NEGATIVE)),
        (
            conditioning(EMBEDS),
            conditioning(TensorSpec(name="prompt_embeds", shape=[1, 0, 768], required=True)),
        ),
    ],
)
def test_stages_that_agree_or_leave_something_open_fit(
    produced: Contract, wanted: Contract
) -> None:
    assert check(produced, wanted) is None


@pytest.mark.parametrize(
    ("produced", "wanted", "made", "taken"),
    [
        (latents(), conditioning(EMBEDS), "latents", "conditioning"),
        (latents(), latents(size_factor=4), "size factor 8", "size factor 4"),
        (latents(), latents(scaling_factor=0.13025), "0.18215", "0.13025"),
        (latents(), latents(shift_factor=0.1), "shift factor 0", "shift factor 0.1"),
        (latents(), latents(space="b" * 64), "aaaaaaaaaaaa", "bbbbbbbbbbbb"),
        (
            conditioning(EMBEDS),
            conditioning(EMBEDS, POOLED),
            "conditioning without pooled_prompt_embeds",
            "pooled_prompt_embeds [1, 768]",
        ),
        (
            conditioning(EMBEDS, POOLED),
            conditioning(EMBEDS),
            "pooled_prompt_embeds [1, 768]",
            "conditioning without it",
        ),
        (
            conditioning(EMBEDS),
            conditioning(TensorSpec(name="prompt_embeds", shape=[1, 0, 1024], required=True)),
            "[1, 77, 768]",
            "[1, any, 1024]",
        ),
        (
            conditioning(EMBEDS),
            conditioning(TensorSpec(name="prompt_embeds", shape=[1, 768], required=True)),
            "[1, 77, 768]",
            "[1, 768]",
        ),
    ],
)
def test_a_mismatch_names_both_sides_and_what_each_says(
    produced: Contract, wanted: Contract, made: str, taken: str
) -> None:
    message = check(produced, wanted)
    assert message is not None
    left, right = message.split(", but ")
    assert left.startswith("generator g:1 produces ")
    assert made in left
    assert right.startswith("decoder d:2 consumes ")
    assert taken in right


def test_the_operator_may_allow_another_space() -> None:
    other = latents(space="b" * 64)
    assert check(latents(), other) is not None
    assert check(latents(), other, also_accepts=["a" * 64]) is None


@pytest.mark.parametrize(
    ("made", "taken"), [("", "a" * 64), ("a" * 64, ""), ("", "")], ids=["made", "taken", "both"]
)
def test_a_space_unknown_on_one_side_is_reported_as_unverified(made: str, taken: str) -> None:
    message = unverified(latents(space=made), Port(contract=latents(space=taken)))
    assert message is not None
    assert "latents" in message
    assert "unknown" in message


def test_known_spaces_are_verified() -> None:
    assert unverified(latents(), Port(contract=latents())) is None


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"prompt_embeds": (1, 77, 768)}, None),
        ({"prompt_embeds": (1, 77, 768), "negative_prompt_embeds": (1, 77, 768)}, None),
        ({}, r"prompt_embeds \[1, 77, 768\] is missing"),
        ({"negative_prompt_embeds": (1, 77, 768)}, "prompt_embeds .* is missing"),
        ({"prompt_embeds": (1, 76, 768)}, r"shape \[1, 76, 768\]; taken: \[1, 77, 768\]"),
        ({"prompt_embeds": (77, 768)}, r"shape \[77, 768\]"),
        ({"prompt_embeds": (1, 77, 768), "text_ids": (1,)}, "text_ids is not among"),
    ],
)
def test_tensors_are_held_to_their_specs(
    shapes: dict[str, tuple[int, ...]], message: str | None
) -> None:
    tensors = {name: Tensor(shape=shape) for name, shape in shapes.items()}
    found = tensors_mismatch([EMBEDS, NEGATIVE], tensors)
    assert (found is None) == (message is None)
    assert re.search(message or "", found or "")


def test_any_size_does_not_mean_none() -> None:
    spec = TensorSpec(name="latents", shape=[1, 4, 0, 0], required=True)
    empty = from_numpy(np.zeros((1, 4, 0, 8), np.float32))
    assert tensors_mismatch([spec], {"latents": from_numpy(np.zeros((1, 4, 3, 8)))}) is None
    assert "[1, 4, 0, 8]" in (tensors_mismatch([spec], {"latents": empty}) or "")


def test_kinds_are_named_in_words() -> None:
    assert kind_name(KIND_IMAGE_EMBEDS) == "image embeds"
    assert kind_name(77) == "kind 77"
