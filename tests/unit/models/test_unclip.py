from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from carrara_models.checkpoints import open_checkpoint
from carrara_models.contracts import IMAGE, PIXELS, Contract, Kind, TensorSpec
from carrara_models.denoising.run import advance_alone, run_alone
from carrara_models.errors import BadFieldError, CheckpointError, ContractError
from carrara_models.parts import DenoisingRequest, Sample, Texts
from carrara_models.pruning import prune
from families.unclip import CASE, WIDTH

STATE = torch.Generator().manual_seed(4).get_state()
SMALL = Sample({"pixels": torch.zeros(1, 3, 8, 8)}, height=8, width=8, random_state=STATE)
IMAGE_EMBEDS = Sample({"image_embeds": torch.ones(1, WIDTH)}, height=0, width=0, random_state=STATE)


@pytest.fixture
def unclip(tmp_path: Path) -> Path:
    return copytree(CASE.folders[0], tmp_path / "unclip")


@pytest.fixture
def text_encoder(load: Callable[..., Any]) -> Any:
    return load(CASE.folders[0], "text-encoder")


@pytest.fixture
def prior(load: Callable[..., Any]) -> Any:
    return load(CASE.folders[0], "prior")


@pytest.fixture
def generator(load: Callable[..., Any]) -> Any:
    return load(CASE.folders[0], "generator")


@pytest.fixture
def super_res(load: Callable[..., Any]) -> Any:
    return load(CASE.folders[0], "super-res")


@pytest.fixture
def conditioning(text_encoder: Any) -> dict[str, torch.Tensor]:
    pieces = text_encoder.split(Texts("a red circle", negative=True))
    return {n: t for piece in pieces for n, t in text_encoder.encode([piece])[0].tensors.items()}


def positive(conditioning: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: tensor for n, tensor in conditioning.items() if not n.startswith("negative_")}


def edit_config(folder: Path, **changes: Any) -> None:
    (path,) = folder.glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_each_half_is_encoded_by_itself(text_encoder: Any) -> None:
    halves = text_encoder.split(Texts("a red circle", negative=True))
    encoded = [text_encoder.encode([half])[0].tensors for half in halves]
    names = {"prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"}
    assert [set(tensors) for tensors in encoded] == [names, {f"negative_{n}" for n in names}]
    assert encoded[0]["prompt_attention_mask"].dtype == torch.bool
    assert (
        encoded[0]["prompt_attention_mask"].sum()
        > encoded[1]["negative_prompt_attention_mask"].sum()
    )


def test_words_that_were_cut_are_told(text_encoder: Any) -> None:
    encoded = text_encoder.encode([Texts("circle " * 80 + "square")])[0]
    assert encoded.truncated["prompt"].endswith("circle square")
    assert text_encoder.encode([Texts("circle")])[0].truncated == {}


def test_a_negative_prompt_is_refused(text_encoder: Any) -> None:
    assert "negative_prompt" not in {argument.name for argument in text_encoder.arguments}
    with pytest.raises(BadFieldError, match="empty text") as refusal:
        text_encoder.encode([Texts(None, negative=True, negative_prompt="blue")])
    assert refusal.value.field == "negative_prompt"


def test_defaults_are_those_of_the_pipelines_call(
    prior: Any, generator: Any, super_res: Any
) -> None:
    defaults = [
        {argument.name: argument.default for argument in part.arguments}
        for part in (prior, generator, super_res)
    ]
    assert defaults == [
        {"num_inference_steps": 25, "guidance_scale": 4.0},
        {"num_inference_steps": 25, "guidance_scale": 8.0},
        {"num_inference_steps": 7},
    ]


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_guidance_is_on_whenever_the_negative_half_is_there(
    prior: Any, generator: Any, conditioning: dict[str, torch.Tensor], scale: float
) -> None:
    request = DenoisingRequest(conditioning, 1, sample=IMAGE_EMBEDS, guidance_scale=scale)
    unguided = replace(request, conditioning=positive(conditioning), guidance_scale=None)
    for part in (prior, generator):
        job = part.start(request)
        assert job.guidance_scale == scale
        assert part.rows(request) == job.rows == 2
        assert part.rows(unguided) == part.start(unguided).rows == 1


def test_guidance_without_a_negative_half_is_refused_where_asked_for(
    prior: Any, conditioning: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ContractError, match="guidance_scale is 3"):
        prior.start(DenoisingRequest(positive(conditioning), 1, guidance_scale=3.0))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("num_inference_steps", 1, "2 to 1000"),
        ("num_inference_steps", 1001, "1 to 1000"),
        ("guidance_scale", 31.0, "0 to 30"),
        ("scheduler", "ddim", "one of UnCLIPScheduler"),
        ("height", 64, "nothing"),
        ("width", 64, "nothing"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_each_part(
    prior: Any,
    generator: Any,
    super_res: Any,
    conditioning: dict[str, torch.Tensor],
    field: str,
    value: Any,
    allowed: str,
) -> None:
    for part in (prior, generator, super_res):
        sample = SMALL if part is super_res else IMAGE_EMBEDS
        with pytest.raises(BadFieldError) as refusal:
            part.start(DenoisingRequest(conditioning, 1, sample=sample, **{field: value}))
        assert refusal.value.field == field
        assert allowed in refusal.value.allowed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_embeds": torch.zeros(1, 76, WIDTH)}, r"\[1, 76, 32\].*\[1, 77, 32\]"),
        ({"prompt_embeds": torch.zeros(2, 77, WIDTH)}, r"takes \[1, 77, 32\]"),
        ({"pooled_prompt_embeds": torch.zeros(1, 9)}, r"takes \[1, 32\]"),
        ({"prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool)}, "prompt_attention_mask"),
        ({"negative_prompt_embeds": torch.zeros(1, 76, WIDTH)}, "negative_prompt_embeds"),
    ],
)
def test_conditioning_that_does_not_fit_is_refused_by_the_prior(
    prior: Any, conditioning: dict[str, torch.Tensor], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        prior.start(DenoisingRequest(conditioning | changes, 1))


def test_a_mask_for_other_tokens_is_refused_by_the_generator(
    generator: Any, conditioning: dict[str, torch.Tensor]
) -> None:
    masks = {name: tensor[:, :70] for name, tensor in conditioning.items() if name.endswith("mask")}
    with pytest.raises(ContractError, match="for 70 tokens; prompt_embeds have 77"):
        generator.start(DenoisingRequest(conditioning | masks, 1, sample=IMAGE_EMBEDS))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (None, "no sample; this part takes image embeds"),
        (SMALL, "The sample has no image_embeds"),
        (replace(IMAGE_EMBEDS, tensors={"image_embeds": torch.zeros(1, 8)}), r"takes \[1, 32\]"),
    ],
)
def test_an_image_embedding_that_does_not_fit_is_refused(
    generator: Any,
    conditioning: dict[str, torch.Tensor],
    sample: Sample | None,
    message: str,
) -> None:
    with pytest.raises(ContractError, match=message):
        generator.start(DenoisingRequest(conditioning, 1, sample=sample))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (None, "no sample; this part takes pixels"),
        (IMAGE_EMBEDS, "The sample has no pixels"),
        (replace(SMALL, width=16), "says 8 x 16 pixels; its pixels are 8 x 8"),
        (replace(SMALL, tensors={"pixels": torch.zeros(1, 4, 8, 8)}), r"takes \[1, 3, any, any\]"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(
    super_res: Any, sample: Sample | None, message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        super_res.start(DenoisingRequest({}, 1, sample=sample))


def test_a_consumer_of_another_kind_is_refused(
    prior: Any, generator: Any, super_res: Any, conditioning: dict[str, torch.Tensor]
) -> None:
    latents = Contract(Kind.LATENTS, tensors=(TensorSpec("latents", (1, 4, 0, 0)),), size_factor=8)
    for part in (prior, generator, super_res):
        sample = SMALL if part is super_res else IMAGE_EMBEDS
        request = DenoisingRequest(conditioning, 1, sample=sample, consumer=latents)
        with pytest.raises(ContractError, match="its consumer takes latents"):
            part.start(request)
        part.start(replace(request, consumer=part.produces[0]))


def test_a_consumer_of_another_width_is_refused(
    prior: Any, conditioning: dict[str, torch.Tensor]
) -> None:
    (made,) = prior.produces
    wider = replace(made, tensors=(TensorSpec("image_embeds", (1, 8)),))
    with pytest.raises(ContractError, match=r"makes image_embeds \[1, 32\].*\[1, 8\]"):
        prior.start(DenoisingRequest(conditioning, 1, consumer=wider))
    wants_more = replace(made, tensors=(*made.tensors, TensorSpec("other", (1, 8))))
    with pytest.raises(ContractError, match="makes no other"):
        prior.start(DenoisingRequest(conditioning, 1, consumer=wants_more))


def test_the_small_picture_is_clamped_and_the_large_one_is_not(
    generator: Any, super_res: Any, conditioning: dict[str, torch.Tensor]
) -> None:
    job = generator.start(DenoisingRequest(conditioning, 1, sample=IMAGE_EMBEDS))
    job.latents, job.step = job.latents * 10, job.num_steps
    small = generator.finish(job)
    assert small.tensors["pixels"].abs().max() == 1
    assert (small.height, small.width) == (8, 8)
    job = super_res.start(DenoisingRequest({}, 1, sample=small))
    job.latents, job.step = job.latents * 10, job.num_steps
    large = super_res.finish(job)
    assert large.tensors["pixels"].abs().max() > 1
    assert (large.height, large.width) == (24, 24)
    assert generator.produces == super_res.produces == (PIXELS, IMAGE)


def test_the_last_step_has_a_group_and_a_network_of_its_own(
    super_res: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for name in ("first", "last"):
        network = getattr(super_res, name)

        def forward(*args: Any, name: str = name, own: Any = network.forward, **kwargs: Any) -> Any:
            called.append(name)
            return own(*args, **kwargs)

        monkeypatch.setattr(network, "forward", forward)
    request = DenoisingRequest({}, 1, sample=SMALL, num_inference_steps=3)
    early, late = super_res.start(request), super_res.start(request)
    assert early.group == late.group
    for _ in range(2):
        advance_alone(super_res, late, *super_res.predict([late]))
    assert early.group != late.group
    advance_alone(super_res, late, *super_res.predict([late]))
    assert called == ["first", "first", "last"]


def test_a_pruned_stage_still_knows_whose_image_embeddings_it_takes(
    unclip: Path, tmp_path: Path, load: Callable[..., Any]
) -> None:
    pruned = prune(open_checkpoint(unclip, stage="generator"), output=tmp_path / "pruned")
    generator, prior = load(pruned, "generator"), load(unclip, "prior")
    assert generator.consumes[1].contract == prior.produces[0]
    assert prior.produces[0].space != ""


@pytest.mark.parametrize(
    ("stage", "component", "changes", "message"),
    [
        ("prior", "prior", {"added_emb_type": None}, "added_emb_type"),
        ("prior", "prior", {"additional_embeddings": 5, "num_embeddings": 76}, "addi"),
        ("prior", "prior_scheduler", {"variance_type": "learned_range"}, "predicts no variance"),
        ("generator", "decoder_scheduler", {"variance_type": "fixed_small_log"}, "variance too"),
        ("generator", "decoder", {"sample_size": [8, 8]}, "squares"),
        ("generator", "decoder", {"class_embed_type": None}, "class_embed_type"),
        ("super-res", "super_res_last", {"sample_size": [24, 24]}, "squares"),
        ("super-res", "super_res_scheduler", {"variance_type": "learned_range"}, "no variance"),
    ],
)
def test_configs_that_the_pipeline_could_not_run_are_refused_at_load(
    unclip: Path,
    load: Callable[..., Any],
    stage: str,
    component: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    edit_config(unclip / component, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(unclip, stage)


def test_each_part_goes_on_where_the_generator_of_the_part_before_stopped(
    prior: Any, generator: Any, conditioning: dict[str, torch.Tensor]
) -> None:
    request = DenoisingRequest(conditioning, 1, num_inference_steps=2)
    made = run_alone(prior, request)
    assert (made.height, made.width) == (0, 0)
    go_on = replace(request, sample=made, random_state=made.random_state)
    afresh = replace(go_on, random_state=1)
    pictures = [run_alone(generator, r).tensors["pixels"] for r in (go_on, afresh)]
    assert not torch.equal(*pictures)
