from __future__ import annotations

import pytest
import toy_stages

from carrara.chain import link
from carrara.connections import Stage
from carrara.exceptions import ContractError
from carrara.v1 import stage_pb2


def stage(toy: toy_stages.ToyStage, *, role: str | None = None, port: int = 1) -> Stage:
    made = Stage(f"{toy.role}:{port}", role=role or toy.role)
    made.description = toy.description
    return made


async def test_each_stage_learns_who_feeds_it_and_who_consumes_its_sample() -> None:
    encoder, generator, decoder = (
        stage(toy)
        for toy in (toy_stages.text_encoder(), toy_stages.generator(), toy_stages.decoder())
    )
    chain = link([encoder], [generator, decoder])
    assert chain.stages == (encoder, generator, decoder)
    first, last = chain.steps
    assert (first.stage_index, first.encoder) == (1, 0)
    assert first.consumer == decoder.description.consumes[0].contract
    assert (last.stage_index, last.encoder, last.consumer) == (2, None, None)


async def test_of_several_text_encoders_each_stage_takes_the_one_that_fits() -> None:
    other = toy_stages.text_encoder(space="f" * 64)
    upscaler = toy_stages.decoder()
    port = upscaler.description.consumes.add(required=True)
    port.contract.CopyFrom(other.description.produces[0])
    encoders = [stage(other, port=2), stage(toy_stages.text_encoder())]
    chain = link(encoders, [stage(toy_stages.generator()), stage(upscaler)])
    assert [step.encoder for step in chain.steps] == [1, 0]


@pytest.mark.parametrize(
    ("toys", "message"),
    [
        (
            [toy_stages.text_encoder(space="f" * 64), toy_stages.generator(), toy_stages.decoder()],
            "text-encoder text-encoder:1 produces conditioning in the space ffffffffffff, "
            "but generator generator:1 consumes the space eeeeeeeeeeee",
        ),
        (
            [toy_stages.text_encoder(), toy_stages.generator(), toy_stages.decoder(vae="c" * 64)],
            "generator generator:1 produces latents in the space dddddddddddd, "
            "but decoder decoder:1 consumes the space cccccccccccc",
        ),
        (
            [toy_stages.generator(), toy_stages.decoder()],
            "generator generator:1 needs a text-encoder",
        ),
        (
            [toy_stages.text_encoder(), toy_stages.generator()],
            "generator generator:1 is the last stage and produces latents",
        ),
        (
            [toy_stages.decoder()],
            "decoder decoder:1 consumes latents, but no stage before it produces any",
        ),
        (
            [
                toy_stages.text_encoder(),
                toy_stages.generator(),
                toy_stages.decoder(),
                toy_stages.decoder(),
            ],
            "decoder decoder:1 produces image, but decoder decoder:1 consumes latents",
        ),
        (
            [
                toy_stages.text_encoder(),
                toy_stages.text_encoder(),
                toy_stages.generator(),
                toy_stages.decoder(),
            ],
            "no stage of this cascade consumes what text-encoder text-encoder:1 produces",
        ),
    ],
)
async def test_stages_that_do_not_fit_are_refused_naming_both_sides(
    toys: list[toy_stages.ToyStage], message: str
) -> None:
    stages = [stage(toy) for toy in toys]
    encoders = [made for made in stages if made.role == "text-encoder"]
    with pytest.raises(ContractError) as caught:
        link(encoders, stages[len(encoders) :])
    assert message in str(caught.value)
    assert caught.value.reason == "CONTRACT"


async def test_a_stage_of_another_role_is_refused() -> None:
    decoder = stage(toy_stages.decoder(), role="generator")
    with pytest.raises(ContractError, match=r"decoder:1 was given as generator.*is a decoder"):
        link([], [decoder])


async def test_a_space_that_the_operator_allows_fits() -> None:
    decoder = toy_stages.decoder(vae="c" * 64)
    decoder.description.consumes[0].also_accepts.append("d" * 64)
    link(
        [stage(toy_stages.text_encoder())],
        [stage(toy_stages.generator()), stage(decoder)],
    )


async def test_a_generator_that_makes_pictures_needs_no_decoder() -> None:
    toy = toy_stages.generator()
    toy.description.produces[0].CopyFrom(stage_pb2.Contract(kind=stage_pb2.KIND_IMAGE))
    chain = link([stage(toy_stages.text_encoder())], [stage(toy)])
    assert chain.steps[0].consumer is None
