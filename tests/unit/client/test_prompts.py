from __future__ import annotations

import math

import pytest
import toy_stages
from hypothesis import given
from hypothesis import strategies as st

from carrara.chain import Chain, link
from carrara.connections import Stage
from carrara.exceptions import InvalidArgumentError
from carrara.prompts import MAX_SEED, Prompt, check, read, seeds_for


def stage(toy: toy_stages.ToyStage) -> Stage:
    made = Stage(f"{toy.role}:1", role=toy.role)
    made.description = toy.description
    return made


@pytest.fixture
async def chain() -> Chain:
    toys = [toy_stages.text_encoder(), toy_stages.generator(), toy_stages.decoder()]
    encoder, *painters = map(stage, toys)
    return link([encoder], painters)


@given(st.integers(0, MAX_SEED), st.integers(1, 64))
def test_seeds_count_on_modulo_two_to_the_64(seed: int, num_images: int) -> None:
    seeds = seeds_for(seed, num_images=num_images)
    assert seeds == tuple((seed + i) % 2**64 for i in range(num_images))


def test_a_list_gives_each_image_its_seed() -> None:
    assert seeds_for([5, 5, MAX_SEED], num_images=None) == (5, 5, MAX_SEED)
    assert seeds_for([9], num_images=1) == (9,)


def test_without_a_seed_one_is_drawn() -> None:
    drawn = {seeds_for(None, num_images=1) for _ in range(8)}
    assert len(drawn) == 8
    first, second = seeds_for(None, num_images=2)
    assert second == (first + 1) % 2**64


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, [], [1, 2], [2**64, 1, 1], "7"])
def test_a_seed_outside_its_range_is_refused(seed: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"seed: .* is not allowed; allowed: "):
        seeds_for(seed, num_images=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_images", [0, -1, 1025, 1.0, True])
def test_a_number_of_images_outside_its_range_is_refused(num_images: int) -> None:
    with pytest.raises(InvalidArgumentError, match=r"num_images: .* allowed: 1 to 1024"):
        seeds_for(1, num_images=num_images)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_inference_steps": 1, "guidance_scale": 0},
        {"num_inference_steps": 1000, "guidance_scale": 30.0},
        {"height": 8, "width": 64, "scheduler": "euler"},
        {"negative_prompt": ""},
        {"prompt": ""},
        {"prompt": "x" * toy_stages.MAX_PROMPT_BYTES},
    ],
)
async def test_what_the_stages_take_passes(chain: Chain, settings: dict[str, object]) -> None:
    check(prompt(**settings), chain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps: 0 .* 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps: 1001 .* 1 to 1000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps: 2.5"),
        ({"num_inference_steps": True}, "num_inference_steps: True"),
        ({"guidance_scale": -0.1}, "guidance_scale: -0.1 .* 0 to 30"),
        ({"guidance_scale": 30.5}, "guidance_scale: 30.5 .* 0 to 30"),
        ({"guidance_scale": math.nan}, "guidance_scale: nan .* 0 to 30"),
        ({"guidance_scale": math.inf}, "guidance_scale: inf"),
        ({"guidance_scale": "5"}, "guidance_scale: '5'"),
        ({"height": 12}, "height: 12 .* a multiple of 8"),
        ({"width": 0}, "width: 0 .* 8 to 2048"),
        ({"width": 4096}, "width: 4096 .* 8 to 2048"),
        ({"height": 512}, "height: 512 .* up to 4096 pixels; this makes 8192"),
        ({"width": 512}, "width: 512 .* up to 4096 pixels; this makes 8192"),
        ({"scheduler": "magic"}, "scheduler: 'magic' .* ddim, euler"),
        ({"scheduler": 7}, "scheduler: 7 .* ddim, euler"),
        ({"prompt": None}, "prompt: None"),
        ({"prompt": "é" * 51}, "prompt: '102 bytes' .* at most 100 bytes"),
        ({"negative_prompt": "x" * 101}, "negative_prompt: '101 bytes'"),
        ({"prompt": "\ud800"}, "prompt: .* UTF-8"),
        ({"prompt": 7}, "prompt: 7"),
    ],
)
async def test_what_no_stage_takes_is_refused_with_field_value_and_range(
    chain: Chain, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        check(prompt(**settings), chain)
    (violation,) = caught.value.field_violations
    assert violation.field in settings
    assert caught.value.reason == "BAD_FIELD"


async def test_the_decoder_s_size_factor_holds_for_a_generator_that_does_not_know_it() -> None:
    generator, decoder = toy_stages.generator(), toy_stages.decoder()
    decoder.description.consumes[0].contract.size_factor = 32
    coarse = link([stage(toy_stages.text_encoder())], [stage(generator), stage(decoder)])
    check(prompt(height=64, width=32), coarse)
    with pytest.raises(InvalidArgumentError, match="a multiple of 32"):
        check(prompt(height=40), coarse)


async def test_a_setting_that_no_stage_has_is_refused(chain: Chain) -> None:
    generator = chain.steps[0].stage
    del generator.description.arguments[:]
    with pytest.raises(InvalidArgumentError, match=r"scheduler: 'ddim' .* settings that a stage"):
        check(prompt(scheduler="ddim"), chain)


async def test_a_cascade_without_text_takes_none() -> None:
    generator = toy_stages.generator()
    del generator.description.consumes[:]
    chain = link([], [stage(generator), stage(toy_stages.decoder())])
    check(prompt(prompt=None), chain)
    with pytest.raises(InvalidArgumentError, match=r"prompt: .* takes no text"):
        check(prompt(), chain)


def prompt(**settings: object) -> Prompt:
    text = settings.pop("prompt", "a circle")
    return read(text, {"seed": 1, **settings})  # type: ignore[arg-type, typeddict-item]
