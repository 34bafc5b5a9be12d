"""CLIP, prior and image UNet: what the trainers leave is Kandinsky 2.2's; runs resume exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
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
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from carrara_models.training.autoencoder import AutoencoderShape, build_autoencoder
from carrara_models.training.clip import ClipShape, train_clip
from carrara_models.training.curriculum import Curriculum
from carrara_models.training.generator import GeneratorShape
from carrara_models.training.image_unet import build_movq, train_image_unet
from carrara_models.training.loop import LoopSettings, Pace
from carrara_models.training.objectives import Objective
from carrara_models.training.prior import PriorShape, load_towers, train_prior

WIDTH = 32
CURRICULUM = Curriculum(max_objects=3, languages=("en", "zh"))
WEIGHTS = {
    "clip": "clip/model.safetensors",
    "prior": "prior/diffusion_pytorch_model.safetensors",
    "image-unet": "unet/diffusion_pytorch_model.safetensors",
}


def train(
    part: str, folder: Path, clip: Path, *, stop_at: int | None = None, resume: bool = False
) -> None:
    common: dict[str, Any] = {
        "settings": LoopSettings(steps=4, batch_size=4, learning_rate=1e-3, warmup_steps=1),
        "pace": Pace(workers=0, log_every=1, save_every=2, sample_every=4, stop_at=stop_at),
        "curriculum": CURRICULUM,
        "resume": resume,
    }
    if part == "clip":
        shape = ClipShape(
            width=WIDTH, text_layers=1, vision_layers=1, heads=2, patch=8, resolution=16
        )
        train_clip(folder, shape=shape, **common)
    elif part == "prior":
        shape = PriorShape(layers=1, heads=2, head_dim=16)
        train_prior(folder, clip_folder=clip, shape=shape, **common)
    else:
        train_image_unet(
            folder,
            clip_folder=clip,
            autoencoder_folder=clip,
            shape=GeneratorShape(widths=(8, 16), attention_heads=2),
            objective=Objective(),
            on_sample=lambda unet, step: {},
            **common,
        )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    train("clip", folder, folder)
    torch.manual_seed(0)
    build_autoencoder(AutoencoderShape(widths=(8, 8), resolution=16)).save_pretrained(
        folder / "vae"
    )
    return folder


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_run_in_two_parts_gives_the_same_weights_bit_for_bit(
    part: str, clip: Path, tmp_path: Path
) -> None:
    train(part, tmp_path / "whole", clip)
    train(part, tmp_path / "parts", clip, stop_at=2)
    assert json.loads((tmp_path / "parts/snapshot/state.json").read_text())["step"] == 2
    train(part, tmp_path / "parts", clip, resume=True)
    whole, parts = (load_file(tmp_path / name / WEIGHTS[part]) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_the_towers_are_those_of_the_whole(clip: Path) -> None:
    whole = CLIPModel.from_pretrained(clip / "clip").eval()
    towers = load_towers(clip)
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    texts = towers.encode_texts(["a red circle", "红色的圆"])
    ids = towers.tokenizer(
        ["a red circle", "红色的圆"], padding="max_length", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        output = whole(input_ids=ids, pixel_values=pictures)
    embeds = texts["pooled_prompt_embeds"]
    torch.testing.assert_close(embeds / embeds.norm(dim=1, keepdim=True), output.text_embeds)
    seen = towers.encode_pictures(pictures)
    torch.testing.assert_close(seen / seen.norm(dim=1, keepdim=True), output.image_embeds)


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


def test_diffusers_paints_with_what_was_trained(clip: Path, tmp_path: Path) -> None:
    train("prior", tmp_path / "prior", clip)
    train("image-unet", tmp_path / "decoder", clip)
    prior = KandinskyV22PriorPipeline(
        prior=PriorTransformer.from_pretrained(tmp_path / "prior" / "prior"),
        scheduler=UnCLIPScheduler.from_pretrained(tmp_path / "prior" / "scheduler"),
        tokenizer=CLIPTokenizer.from_pretrained(clip / "tokenizer"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(clip / "text_encoder"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(clip / "image_encoder"),
        image_processor=CLIPImageProcessorPil.from_pretrained(clip / "image_processor"),
    )
    decoder = KandinskyV22Pipeline(
        unet=UNet2DConditionModel.from_pretrained(tmp_path / "decoder" / "unet"),
        scheduler=DDIMScheduler.from_pretrained(tmp_path / "decoder" / "scheduler"),
        movq=VQModel.from_pretrained(tmp_path / "decoder" / "movq"),
    )
    for pipeline in (prior, decoder):
        pipeline.set_progress_bar_config(disable=True)
    made = prior("a red circle", num_inference_steps=2)
    assert made.image_embeds.shape == (1, WIDTH)
    picture = decoder(**made, height=16, width=16, num_inference_steps=2).images[0]
    assert picture.size == (16, 16)


def test_the_vae_of_the_fixture_has_a_factor_of_one(clip: Path) -> None:
    assert AutoencoderKL.from_pretrained(clip / "vae").config.scaling_factor == 1
