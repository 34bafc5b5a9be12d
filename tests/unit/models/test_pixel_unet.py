from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from carrara_models.contracts import Contract, Kind
from carrara_models.denoising.run import run_alone
from carrara_models.denoising.schedulers import takes_variance
from carrara_models.errors import BadFieldError, CheckpointError, ContractError
from carrara_models.parts import DenoisingRequest, Texts
from carrara_models.text_encoders import options
from families.deepfloyd_if import BASE


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return copytree(BASE.folders[0], tmp_path / "if")


@pytest.fixture
def text_encoder(load: Callable[..., Any]) -> Any:
    return load(BASE.folders[0], "text-encoder")


@pytest.fixture
def generator(load: Callable[..., Any]) -> Any:
    return load(BASE.folders[0], "generator")


def request(**settings: Any) -> DenoisingRequest:
    drawn = torch.Generator().manual_seed(0)
    names = ("prompt_embeds", "negative_prompt_embeds")
    conditioning = {name: torch.randn(1, 77, 24, generator=drawn) for name in names}
    return DenoisingRequest(conditioning, 1, **{"num_inference_steps": 2} | settings)


def edit_config(folder: Path, **changes: Any) -> None:
    (path,) = folder.glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("missing", ["bs4", "ftfy"])
def test_cleaning_captions_is_refused_where_a_library_is_missing(
    text_encoder: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in ("bs4", "ftfy"):
        there = name != missing
        monkeypatch.setattr(options, f"is_{name}_available", lambda there=there: there)
    with pytest.raises(BadFieldError, match="clean_caption") as refusal:
        text_encoder.encode([Texts("a red circle", clean_caption=True)])
    assert {"bs4": "beautifulsoup4", "ftfy": "ftfy"}[missing] in refusal.value.allowed


def test_captions_are_cleaned_unless_they_should_only_be_lower_cased(text_encoder: Any) -> None:
    (cleaning,) = [a for a in text_encoder.arguments if a.name == "clean_caption"]
    assert cleaning.default == 1
    for cleans, expected in ((None, True), (True, True), (False, False)):
        plain, shouted, dotted = (
            text_encoder.encode([Texts(prompt, clean_caption=cleans)])[0].tensors["prompt_embeds"]
            for prompt in ("a red circle", " A RED Circle ", "a red circle 10.10.10.10")
        )
        assert torch.equal(plain, shouted)
        assert torch.equal(plain, dotted) is expected


def test_words_beyond_77_tokens_are_reported(text_encoder: Any) -> None:
    encoded = text_encoder.encode(
        [Texts(None, negative=True, negative_prompt="red " * 76 + "Blue square")]
    )[0]
    assert encoded.truncated == {"negative_prompt": "blue square"}
    assert encoded.tensors["negative_prompt_embeds"].shape == (1, 77, 24)


def test_the_base_hands_on_pixels_beyond_their_range(generator: Any) -> None:
    sample = run_alone(generator, request(scheduler="heun"))
    assert (sample.height, sample.width) == (16, 16)
    assert sample.tensors["pixels"].shape == (1, 3, 16, 16)
    assert sample.tensors["pixels"].abs().max() > 1


def test_a_consumer_of_latents_is_refused(generator: Any) -> None:
    with pytest.raises(ContractError, match="latents"):
        generator.start(request(consumer=Contract(Kind.LATENTS)))


@pytest.mark.parametrize("size", [{"height": 12}, {"width": 0}])
def test_a_size_between_the_multiples_is_refused(generator: Any, size: dict[str, int]) -> None:
    with pytest.raises(BadFieldError, match="a multiple of 8"):
        generator.start(request(**size))


@pytest.mark.parametrize(
    ("scheduler", "takes"), [("ddpm", True), ("dpm++2m", True), ("ddim", False), ("euler", False)]
)
def test_variance_goes_to_schedulers_that_know_one(
    generator: Any, scheduler: str, takes: bool
) -> None:
    assert takes_variance(generator.start(request(scheduler=scheduler)).scheduler) is takes


def test_a_scheduler_of_fixed_variance_gets_none(base: Path, load: Callable[..., Any]) -> None:
    edit_config(base / "scheduler", variance_type="fixed_large")
    generator = load(base, "generator")
    assert not takes_variance(generator.start(request()).scheduler)
    run_alone(generator, request())


def test_a_unet_that_wants_class_labels_is_refused(base: Path, load: Callable[..., Any]) -> None:
    edit_config(base / "unet", class_embed_type="identity")
    with pytest.raises(CheckpointError, match="class_embed_type"):
        load(base, "generator")
