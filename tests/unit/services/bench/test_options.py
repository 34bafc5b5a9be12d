from __future__ import annotations

import pytest
import typer

from carrara_models.errors import BadFieldError
from carrara_services.bench.class_options import read_classes
from carrara_services.bench.stages import read_stage_settings
from carrara_services.bench.workloads import RequestClass


def test_a_class_is_a_name_and_its_settings() -> None:
    assert read_classes(
        [
            "quick share=0.5 num_inference_steps=4 guidance_scale=1 scheduler=euler",
            "large original_size=64x32",
            "plain",
        ]
    ) == [
        RequestClass(
            "quick", 0.5, {"num_inference_steps": 4, "guidance_scale": 1.0, "scheduler": "euler"}
        ),
        RequestClass("large", 1.0, {"original_size": (64, 32)}),
        RequestClass("plain"),
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("", "does not begin with a name"),
        ("num_inference_steps=4", "does not begin with a name"),
        ("quick 4", "'4' is not NAME=VALUE"),
        ("quick strength=3", "there is no setting 'strength'"),
        ("quick num_inference_steps=few", "few"),
        ("quick share=0", "share is 0; allowed: more than 0"),
        ("quick share=nan", "share is nan"),
        ("quick seed=3", "seed is no setting of a class"),
    ],
)
def test_what_is_no_class_is_refused(option: str, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        read_classes([option])


def test_stages_are_told_only_what_all_of_them_can_share() -> None:
    assert read_stage_settings(["max_queue_jobs=4", "dtype=bfloat16"]) == {
        "max_queue_jobs": "4",
        "dtype": "bfloat16",
    }
    for option in ("bind=127.0.0.1:50051", "checkpoint=x", "max_queue_jobs", "speed=9"):
        with pytest.raises(BadFieldError, match="NAME=VALUE of device, numerics, engine, dtype"):
            read_stage_settings([option])
