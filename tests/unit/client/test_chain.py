from __future__ import annotations

from dataclasses import replace

import pytest
import toy_stages

from carrara.chain import held_to, link
from carrara.connections import Stage
from carrara.exceptions import ContractError
from carrara.manifest import Manifest, ManifestStage
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


def prior() -> toy_stages.ToyStage:
    """Text to an image embedding."""
    toy = toy_stages.generator()
    toy.description.stage = "prior"
    toy.description.produces[0].CopyFrom(image_embeds("a" * 64))
    return toy


def unclip() -> toy_stages.ToyStage:
    """Text and an image embedding to latents."""
    toy = toy_stages.generator()
    toy.description.consumes.add(contract=image_embeds("a" * 64), required=True)
    return toy


def super_res() -> toy_stages.ToyStage:
    """Pixels to more pixels."""
    toy = toy_stages.decoder()
    toy.description.consumes[0].contract.CopyFrom(PIXELS)
    toy.description.produces.append(PIXELS)
    return toy


def image_embeds(space: str) -> stage_pb2.Contract:
    return stage_pb2.Contract(kind=stage_pb2.KIND_IMAGE_EMBEDS, space=space)


PIXELS = stage_pb2.Contract(kind=stage_pb2.KIND_PIXELS, space="rgb")


async def test_contracts_put_the_stages_of_a_role_in_order() -> None:
    encoder, decoder = stage(toy_stages.text_encoder()), stage(toy_stages.decoder())
    first, second = stage(prior(), port=1), stage(unclip(), port=2)
    for given in ([first, second, decoder], [second, first, decoder]):
        chain = link([encoder], given)
        assert chain.stages == (encoder, first, second, decoder)
        assert chain.steps[0].consumer == second.description.consumes[1].contract


async def test_a_decoder_before_another_hands_on_pixels() -> None:
    vae = toy_stages.decoder()
    vae.description.produces.append(PIXELS)
    generator, larger = stage(toy_stages.generator()), stage(super_res(), port=2)
    chain = link([stage(toy_stages.text_encoder())], [generator, larger, stage(vae)])
    assert [step.stage.role for step in chain.steps] == ["generator", "decoder", "decoder"]
    assert chain.steps[1].consumer == PIXELS
    assert chain.steps[2].stage is larger


async def test_where_several_orders_fit_the_given_one_counts() -> None:
    base = toy_stages.generator()
    base.description.produces[0].CopyFrom(PIXELS)
    encoder = stage(toy_stages.text_encoder())
    painters = [stage(base), stage(super_res(), port=1), stage(super_res(), port=2)]
    assert link([encoder], painters).stages == (encoder, *painters)


async def test_where_several_orders_fit_and_not_the_given_one_the_caller_is_asked() -> None:
    base = toy_stages.generator()
    base.description.produces[0].CopyFrom(PIXELS)
    last = toy_stages.decoder()
    last.description.consumes[0].contract.CopyFrom(PIXELS)
    encoder = stage(toy_stages.text_encoder())
    ends, one, two = stage(last, port=3), stage(super_res(), port=1), stage(super_res(), port=2)
    with pytest.raises(ContractError, match="fit in several orders") as refusal:
        link([encoder], [stage(base), ends, one, two])
    assert "decoder:1, decoder decoder:2, decoder decoder:3" in str(refusal.value)
    assert "decoder:2, decoder decoder:1, decoder decoder:3" in str(refusal.value)


@pytest.mark.parametrize(
    ("toys", "message"),
    [
        (
            [prior(), toy_stages.decoder()],
            "generator generator:1 produces image embeds, but decoder decoder:1 consumes latents",
        ),
        (
            [unclip(), toy_stages.decoder()],
            "generator generator:1 consumes image embeds, but no stage before it produces any",
        ),
        (
            [toy_stages.generator(), super_res()],
            "generator generator:1 produces latents, but decoder decoder:1 consumes pixels",
        ),
    ],
)
async def test_generators_without_their_sibling_are_refused_naming_both_sides(
    toys: list[toy_stages.ToyStage], message: str
) -> None:
    with pytest.raises(ContractError) as refusal:
        link([stage(toy_stages.text_encoder())], [stage(toy) for toy in toys])
    assert message in str(refusal.value)


async def test_weights_that_a_manifest_does_not_name_are_refused() -> None:
    stages = [toy_stages.text_encoder(), toy_stages.generator(), toy_stages.decoder()]
    encoder, *painters = map(stage, stages)
    chain = link([encoder], painters)
    named = [
        ManifestStage(
            role=each.role, stage=each.role, address="a:1", fingerprint=each.description.fingerprint
        )
        for each in chain.stages
    ]
    assert held_to(chain, Manifest(tuple(named))).belongs_together
    loose = [replace(named[0], fingerprint=None), *named[1:]]
    assert not held_to(chain, Manifest(tuple(loose))).belongs_together
    other = [*named[:2], replace(named[2], fingerprint="9" * 64)]
    with pytest.raises(ContractError) as refusal:
        held_to(chain, Manifest(tuple(other)))
    assert refusal.value.reason == "FINGERPRINT"
    for words in ("decoder", "9" * 64, "3" * 64):
        assert words in str(refusal.value)
