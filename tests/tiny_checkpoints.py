"""Builds tiny Stable Diffusion checkpoints with random weights, in diffusers layout, for all tests.

They differ where the families do: SD 1.x predicts epsilon, samples with PNDM and pads with the end
token; SD 2.x predicts v, samples with DDIM, pads with "!", projects attention linearly and has
a head count per block. Their size factors differ too (8 and 4), so that nothing passes by
assuming 8.
"""

from __future__ import annotations

import atexit
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    "large",
    "small",
    "red",
    "blue",
    "circle",
    "square",
    "above",
    "white",
    "background",
    "on",
    "the",
)

# As in the configs that Stability AI and Runway published.
NOISE_SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def build_sd1(folder: Path) -> Path:
    """Writes a tiny SD 1.x checkpoint (64 x 64 pixels, size factor 8); returns its folder."""
    return copytree(_session_copy("sd1"), folder, dirs_exist_ok=True)


def build_sd2(folder: Path) -> Path:
    """Writes a tiny SD 2.x checkpoint (32 x 32 pixels, size factor 4); returns its folder."""
    return copytree(_session_copy("sd2"), folder, dirs_exist_ok=True)


@functools.cache
def _keep_until_exit() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="carrara-tiny-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return folder


@functools.cache
def _session_copy(family: str) -> Path:
    folder = Path(_keep_until_exit().name) / family
    write: Callable[[Path], None] = {"sd1": _write_sd1, "sd2": _write_sd2}[family]
    with torch.random.fork_rng():
        torch.manual_seed(20)
        write(folder)
    return folder


def _write_sd1(folder: Path) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token=END)
    write_text_encoder(folder / "text_encoder", vocabulary, width=32)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    write_vae(folder / "vae", block_out_channels=(8, 8, 16, 16))
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0"} | NOISE_SCHEDULE,
    )
    _write_index(folder, scheduler="PNDMScheduler")


def _write_sd2(folder: Path) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer", pad_token="!")
    write_text_encoder(folder / "text_encoder", vocabulary, width=48)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=48,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    write_vae(folder / "vae", block_out_channels=(8, 16, 16))
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0"}
        | NOISE_SCHEDULE
        | {"prediction_type": "v_prediction"},
    )
    _write_index(folder, scheduler="DDIMScheduler")


def write_tokenizer(folder: Path, *, pad_token: str) -> dict[str, int]:
    """Byte-level BPE with merges for a few words; every string has a tokenization."""
    alphabet = _byte_alphabet()
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(c + "</w>" for c in alphabet)])}
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            left, right, *rest = pieces
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                vocabulary.setdefault(left + right, len(vocabulary))
            pieces = [left + right, *rest]
    for token in (START, END):
        vocabulary[token] = len(vocabulary)

    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8"
    )
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
        | special,
    )
    return vocabulary


def _byte_alphabet() -> list[str]:
    """The characters that stand for the 256 bytes in CLIP's vocabulary, printable ones first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]


def clip_text_config(vocabulary: dict[str, int], *, width: int, **changes: Any) -> CLIPTextConfig:
    options: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": vocabulary[START],
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary["!"],
    }
    return CLIPTextConfig(**options | changes)


def write_text_encoder(folder: Path, vocabulary: dict[str, int], *, width: int) -> None:
    CLIPTextModel(clip_text_config(vocabulary, width=width)).save_pretrained(folder)


def write_vae(folder: Path, *, block_out_channels: tuple[int, ...], **changes: Any) -> None:
    depth = len(block_out_channels)
    options: dict[str, Any] = {
        "block_out_channels": block_out_channels,
        "down_block_types": ("DownEncoderBlock2D",) * depth,
        "up_block_types": ("UpDecoderBlock2D",) * depth,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.18215,
    }
    AutoencoderKL(**options | changes).save_pretrained(folder)


def _write_index(folder: Path, *, scheduler: str) -> None:
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
