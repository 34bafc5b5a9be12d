"""Every part that can be trained: runs resume exactly; diffusers loads what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DPMSolverMultistepScheduler,
    IFPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5Tokenizer,
)

from carrara_models.training.autoencoder import AutoencoderShape, build_autoencoder
from carrara_models.training.clip_towers import load_towers
from carrara_models.training.data.settings import DataSettings, open_drawn_world
from carrara_models.training.errors import RecipeError
from carrara_models.training.movq import build_movq
from carrara_models.training.super_resolution import enlarge, shrink

PARTS = (
    "text-encoder",
    "t5",
    "taught-t5",
    "autoencoder",
    "decoder",
    "clip",
    "telling-clip",
    "latents",
    "pixels",
    "flow-pixels",
    "images",
    "donated-pixels",
    "donated-images",
    "super-resolution",
    "prior",
    "unconditional",
)


def scalars_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", PARTS)
def test_a_run_in_two_parts_is_the_whole_one_bit_for_bit(
    name: str, runs: Any, assert_same_weights: Any, tmp_path: Path
) -> None:
    runs.train(name, tmp_path, stop_at=2)
    assert json.loads((tmp_path / "snapshot/state.json").read_text())["step"] == 2
    runs.train(name, tmp_path, resume=True)
    assert_same_weights(runs.of(name), tmp_path)


@pytest.mark.slow
def test_twice_50_steps_are_100_bit_for_bit(
    runs: Any, assert_same_weights: Any, tmp_path: Path
) -> None:
    changes = ("loop.steps=100", "samples.num_inference_steps=1")
    runs.train("latents", tmp_path / "whole", *changes, workers=1)
    runs.train("latents", tmp_path / "parts", *changes, stop_at=50)
    runs.train("latents", tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name", ["latents", "pixels", "super-resolution", "prior", "autoencoder"])
def test_micro_batches_see_the_same_examples(name: str, runs: Any, tmp_path: Path) -> None:
    whole, divided = (tmp_path / each for each in ("whole", "divided"))
    plain = ("loop.bfloat16=false", "loop.steps=3")
    runs.train(name, whole, *plain)
    runs.train(name, divided, *plain, "loop.gradient_accumulation_steps=2")
    for one, other in zip(scalars_of(whole), scalars_of(divided), strict=True):
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_a_run_leaves_its_recipe_scalars_grids_and_a_board(runs: Any) -> None:
    folder = runs.of("latents")
    assert {"run.toml", "scalars.jsonl", "sample-000004.png"} <= {p.name for p in folder.iterdir()}
    assert list((folder / "tensorboard").glob("events.*"))
    measured = scalars_of(folder)
    assert [line["step"] for line in measured if "loss" in line] == [1, 2, 3, 4]
    assert {"all_right", "colour", "shape"} <= measured[-1].keys()


def test_samples_in_two_languages_are_measured_apart(runs: Any, tmp_path: Path) -> None:
    runs.train("latents", tmp_path, 'data.languages=["en","zh"]', "data.max_objects=3")
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "sample-000004-en.png",
        "sample-000004-zh.png",
    }
    assert {"all_right_en", "all_right_zh"} <= scalars_of(tmp_path)[-1].keys()


@pytest.mark.parametrize("name", ["latents", "super-resolution"])
def test_a_warm_start_begins_with_the_averages_of_the_earlier_run(
    name: str, runs: Any, tmp_path: Path
) -> None:
    # A rate of zero: the weights stay what the run began with.
    runs.train(name, tmp_path, f"init={runs.of(name)}", "loop.learning_rate=0.0")
    file = "unet/diffusion_pytorch_model.safetensors"
    old, new = load_file(runs.of(name) / file), load_file(tmp_path / file)
    for name, tensor in old.items():
        assert torch.equal(tensor, new[name]), name


def test_a_donor_gives_its_inner_levels(runs: Any, tmp_path: Path) -> None:
    runs.train("donated-pixels", tmp_path, "loop.learning_rate=0.0")
    file = "unet/diffusion_pytorch_model.safetensors"
    given, made = load_file(runs.of("latents") / file), load_file(tmp_path / file)
    names = [name for name in given if name.startswith("mid_block.")]
    assert names
    for name in names:
        assert torch.equal(given[name], made[name]), name


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("donated-pixels", ["init=runs/any"], "begins with an init or a donor, not with both"),
        ("donated-pixels", ["shape.widths=[16]"], "the donor's UNet has 2 levels, this one 1"),
        ("donated-images", ["data.strokes=0.5"], "captions that tell all: set data.strokes=0"),
        ("donated-images", ["data.blobs=0.5"], "and data.blobs=0"),
    ],
)
def test_a_donor_that_cannot_be_taken_is_refused(
    name: str, changes: list[str], message: str, runs: Any, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        runs.train(name, tmp_path, *changes)


def test_captions_encoded_once_are_kept_and_change_nothing(
    runs: Any, assert_same_weights: Any, tmp_path: Path
) -> None:
    runs.train("latents", tmp_path / "run", f"embedding_cache={tmp_path / 'cache'}")
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert_same_weights(runs.of("latents") / "unet", tmp_path / "run" / "unet")


def test_a_frozen_encoder_keeps_the_meaning_of_the_latents(runs: Any) -> None:
    whole, decoder = (
        AutoencoderKL.from_pretrained(runs.of(name) / "vae") for name in ("autoencoder", "decoder")
    )
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = whole.encode(pictures).latent_dist
        again = decoder.encode(pictures).latent_dist
        assert torch.equal(latents.mean, again.mean)
        one, other = (vae.decode(latents.mean).sample for vae in (whole, decoder))
    assert not torch.equal(one, other)


def test_latents_of_the_data_have_unit_variance(runs: Any) -> None:
    vae = AutoencoderKL.from_pretrained(runs.of("autoencoder") / "vae")
    source = open_drawn_world(DataSettings(strokes=0.25), height=16, width=16, seed=0)
    with torch.no_grad():
        mean = vae.encode(source.examples(range(512)).pixels).latent_dist.mode()
    torch.testing.assert_close(mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)


def test_diffusers_paints_with_the_unconditional_model(runs: Any) -> None:
    pipeline = DDPMPipeline.from_pretrained(runs.of("unconditional"))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.parametrize("name", ["pixels", "flow-pixels"])
def test_diffusers_paints_with_the_base_as_it_is_left(name: str, runs: Any) -> None:
    base, texts = runs.of(name), runs.of("t5")
    pipeline = IFPipeline(
        tokenizer=T5Tokenizer.from_pretrained(texts / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(texts / "text_encoder"),
        unet=UNet2DConditionModel.from_pretrained(base / "unet"),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(base / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    # The variance of the samples would be untrained.
    assert pipeline.scheduler.config.get("variance_type") != "learned_range"
    picture = pipeline("a red circle", num_inference_steps=2, output_type="pt").images
    assert picture.shape == (1, 3, 16, 16)
    assert torch.isfinite(picture).all()


def test_diffusers_paints_with_prior_and_image_unet_as_they_are_left(runs: Any) -> None:
    clip, decoder = runs.of("clip"), runs.of("images")
    prior = KandinskyV22PriorPipeline(
        prior=PriorTransformer.from_pretrained(runs.of("prior") / "prior"),
        scheduler=UnCLIPScheduler.from_pretrained(runs.of("prior") / "scheduler"),
        tokenizer=CLIPTokenizer.from_pretrained(clip / "tokenizer"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(clip / "text_encoder"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(clip / "image_encoder"),
        image_processor=CLIPImageProcessorPil.from_pretrained(clip / "image_processor"),
    )
    painter = KandinskyV22Pipeline(
        unet=UNet2DConditionModel.from_pretrained(decoder / "unet"),
        scheduler=DDIMScheduler.from_pretrained(decoder / "scheduler"),
        movq=VQModel.from_pretrained(decoder / "movq"),
    )
    for pipeline in (prior, painter):
        pipeline.set_progress_bar_config(disable=True)
    made = prior("a red circle", num_inference_steps=2)
    assert made.image_embeds.shape == (1, 16)
    picture = painter(**made, height=16, width=16, num_inference_steps=2).images[0]
    assert picture.size == (16, 16)


def test_the_towers_are_those_of_the_whole_clip(runs: Any) -> None:
    whole = CLIPModel.from_pretrained(runs.of("clip") / "clip").eval()
    towers = load_towers(runs.of("clip"))
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    captions = ["a red circle", "红色的圆"]
    texts = towers.encode_texts(captions)
    ids = towers.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        output = whole(input_ids=ids, pixel_values=pictures)
    embeds = texts["pooled_prompt_embeds"]
    torch.testing.assert_close(embeds / embeds.norm(dim=1, keepdim=True), output.text_embeds)
    seen = towers.encode_pictures(pictures)
    torch.testing.assert_close(seen / seen.norm(dim=1, keepdim=True), output.image_embeds)


def test_a_clip_that_is_to_tell_the_scene_begins_with_a_trained_text_tower(
    runs: Any, tmp_path: Path
) -> None:
    runs.train("telling-clip", tmp_path, "loop.learning_rate=0.0")
    began, made = (
        CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict()
        for folder in (runs.of("text-encoder"), tmp_path)
    )
    assert began.keys() == made.keys()
    assert all(torch.equal(made[name], weight) for name, weight in began.items())
    measured = scalars_of(runs.of("telling-clip"))
    assert {"contrast", "readout", "patch_readout"} <= measured[0].keys()
    assert {"picture_tells_all", "caption_tells_all"} <= measured[-1].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape.text_layers=2", "num_hidden_layers is 1; this CLIP's is 2"),
        ("data.strokes=0.5", "readout is for scenes of the drawn world"),
        ("data.blobs=0.5", "readout is for scenes of the drawn world"),
    ],
)
def test_a_text_tower_of_another_size_or_nothing_to_tell_is_refused(
    change: str, message: str, runs: Any, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        runs.train("telling-clip", tmp_path, change)


def test_a_movq_is_the_vae_without_its_variance() -> None:
    torch.manual_seed(1)
    vae = build_autoencoder(AutoencoderShape(widths=(8, 16), resolution=16)).eval()
    for parameter in vae.parameters():  # a bias of zero would hide what is forgotten
        parameter.data += 0.05 * torch.randn_like(parameter)
    movq = build_movq(vae).eval()
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean = vae.encode(pictures).latent_dist.mode()
        torch.testing.assert_close(movq.encode(pictures).latents, mean, rtol=1e-4, atol=1e-5)
        decoded = movq.decode(mean, force_not_quantize=True).sample
        torch.testing.assert_close(decoded, vae.decode(mean).sample, rtol=1e-4, atol=1e-5)
    vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(ValueError, match="scaling_factor"):
        build_movq(vae)


def test_an_even_picture_stays_as_it_is_when_shrunk_and_enlarged() -> None:
    pictures = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(enlarge(shrink(pictures, 4), 16), pictures)
    wide = torch.zeros(1, 3, 4, 4)
    wide[..., :2] = 1
    assert shrink(wide, 2).flatten()[:2].tolist() == [1, 0]
