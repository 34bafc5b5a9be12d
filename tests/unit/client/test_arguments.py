from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from carrara.arguments import NAMES, OF_THE_REQUEST, TEXTS, kind_of, parse, takers, values_for
from carrara.v1.stage_pb2 import Argument, DescribeResponse


@dataclass(eq=False)
class Told:
    role: str
    description: DescribeResponse = field(default_factory=DescribeResponse)


def stage(role: str, name: str, *arguments: str) -> Told:
    known = [Argument(name=argument) for argument in arguments]
    return Told(role, DescribeResponse(stage=name, arguments=known))


PRIOR = stage("generator", "prior", "num_inference_steps", "guidance_scale")
UNET = stage("generator", "generator", "num_inference_steps", "guidance_scale", "height")
SUPER_RES = stage("decoder", "super-res", "num_inference_steps", "noise_level", "height")
UPSCALER = stage("decoder", "upscaler", "num_inference_steps", "noise_level")
VAE = stage("decoder", "decoder")


def test_a_bare_name_is_for_the_stage_that_paints() -> None:
    stages = [PRIOR, UNET, SUPER_RES, VAE]
    given = {"num_inference_steps": 7, "height": 64}
    assert values_for(UNET, given, stages=stages) == given
    for other in (PRIOR, SUPER_RES, VAE):
        assert values_for(other, given, stages=stages) == {}


def test_a_prefix_names_the_sibling() -> None:
    stages = [PRIOR, UNET, SUPER_RES]
    given = {"prior_guidance_scale": 4.0, "super_res_height": 256, "guidance_scale": 9.0}
    assert values_for(PRIOR, given, stages=stages) == {"guidance_scale": 4.0}
    assert values_for(SUPER_RES, given, stages=stages) == {"height": 256}
    assert values_for(UNET, given, stages=stages) == {"guidance_scale": 9.0}


def test_a_bare_name_that_one_stage_alone_takes_needs_no_prefix() -> None:
    stages = [UNET, SUPER_RES, VAE]
    assert takers("noise_level", stages) == [SUPER_RES]
    assert values_for(SUPER_RES, {"noise_level": 5}, stages=stages) == {"noise_level": 5}
    both = {"noise_level": 5, "super_res_noise_level": 6}
    assert values_for(SUPER_RES, both, stages=stages) == {"noise_level": 6}


def test_a_bare_name_that_several_siblings_take_has_several_takers() -> None:
    assert takers("noise_level", [UNET, SUPER_RES, UPSCALER]) == [SUPER_RES, UPSCALER]
    assert takers("upscaler_noise_level", [UNET, SUPER_RES, UPSCALER]) == [UPSCALER]
    assert takers("eta", [UNET, SUPER_RES, UPSCALER]) == []


def test_a_stage_that_says_no_name_has_no_prefix() -> None:
    old = stage("generator", "", "num_inference_steps")
    assert values_for(old, {"num_inference_steps": 2}, stages=[old]) == {"num_inference_steps": 2}


def test_every_setting_that_a_stage_sees_is_a_field_of_the_protocol() -> None:
    for name in NAMES:
        assert (kind_of(name) is None) == (name in OF_THE_REQUEST), name
    assert {"prompt", "negative_prompt_3", "complex_human_instruction"} <= set(TEXTS)
    assert "stage_fingerprint" not in TEXTS
    assert "guidance" not in TEXTS


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("noise_level", "100", 100),
        ("prior_guidance_scale", "4", 4.0),
        ("original_size", "1024x768", (1024, 768)),
        ("crops_coords_top_left", "0,16", (0, 16)),
        ("clean_caption", "False", False),
        ("use_resolution_binning", "true", True),
        ("prompt_2", "a=b", "a=b"),
        ("super_res_scheduler", "ddim", "ddim"),
    ],
)
def test_the_command_lines_words_become_values(name: str, text: str, value: Any) -> None:
    parsed = parse(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("noise_level", "much"), ("eta", "x"), ("clean_caption", "1"), ("magic", "1"), ("seed", "1")],
)
def test_words_of_another_type_are_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(name, text)
