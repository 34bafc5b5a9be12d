"""Writes a checkpoint of a published model's size with random weights, to see how fast it is.

    PYTHONPATH=tests python tests/bench/random_checkpoint.py sd15 /tmp/sd15 --pixels 256
    PYTHONPATH=tests python tests/bench/random_checkpoint.py sdxl /tmp/sdxl --dtype bfloat16 \\
        --device cuda

It paints noise, in the time that the published weights would take. Tokenizers are tiny, as no
vocabulary is at hand; texts are padded to the published length all the same.

| size | as | parameters of the UNet |
|---|---|---|
| sd15 | Stable Diffusion 1.5, 512 px | 860 million |
| sdxl | Stable Diffusion XL, 1024 px | 2.6 billion |
| if64 | DeepFloyd IF-I-L, 64 px, but for its T5, which has 2 of XXL's 24 layers | 0.9 billion |
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from carrara_services.torch_runtime import DTYPES
from families.deepfloyd_if import SCHEDULE as IF_SCHEDULE
from families.t5 import write_t5_tokenizer
from tiny_checkpoints import END, NOISE_SCHEDULE, clip_text_config, write_json, write_tokenizer

CLIP_L: Mapping[str, Any] = {
    "width": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
}
CLIP_BIG_G: Mapping[str, Any] = {
    "width": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "vocab_size": 49408,
    "hidden_act": "gelu",
}
SDXL_UNET: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 1280,
}
IF_UNET: Mapping[str, Any] = {
    "layers_per_block": 3,
    "block_out_channels": (320, 640, 960, 1280),
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "in_channels": 3,
    "out_channels": 6,
    "cross_attention_dim": 1280,
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "attention_head_dim": 64,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
}


class Writer:
    """Makes models on a device and saves them in a dtype, and remembers what there is.

    Attributes:
        components: As model_index.json names them: library and class, of each name.
    """

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        self._folder, self._device, self._dtype = folder, device, dtype
        self.components: dict[str, tuple[str | None, str | None]] = {}

    def model(self, name: str, make: Callable[[], Any]) -> None:
        """Saves what is made, as the component `name`."""
        with self._device:
            model = make()
        count = sum(each.numel() for each in model.parameters())
        print(f"{name}: {count / 1e6:.0f} million parameters", flush=True)
        model.to(self._dtype).save_pretrained(self._folder / name)
        self.components[name] = (type(model).__module__.partition(".")[0], type(model).__name__)

    def clip(
        self, name: str, tokenizer: str, size: Mapping[str, Any], *, pad: str, **changes: Any
    ) -> None:
        """CLIP's text tower, with a tokenizer."""
        vocabulary = write_tokenizer(self._folder / tokenizer, pad_token=pad)
        self.components[tokenizer] = ("transformers", "CLIPTokenizer")
        of_class = CLIPTextModelWithProjection if changes else CLIPTextModel
        self.model(name, lambda: of_class(clip_text_config(vocabulary, **size, **changes)))

    def t5_tokenizer(self) -> int:
        """T5's; gives how many tokens it knows."""
        self.components["tokenizer"] = ("transformers", "T5Tokenizer")
        return write_t5_tokenizer(self._folder / "tokenizer")

    def vae(self, *, pixels: int, scaling_factor: float) -> None:
        """Stable Diffusion's, XL's likewise."""
        self.model(
            "vae", lambda: stable_diffusion_vae(sample_size=pixels, scaling_factor=scaling_factor)
        )

    def index(self, class_name: str, *, scheduler: str, absent: Sequence[str]) -> None:
        """What the pipeline is made of, with its scheduler, and what of it there is not."""
        schedule = IF_SCHEDULE if scheduler == "DDPMScheduler" else NOISE_SCHEDULE
        self.components["scheduler"] = ("diffusers", scheduler)
        self.components |= dict.fromkeys(absent, (None, None))
        write_json(
            self._folder / "scheduler" / "scheduler_config.json",
            {"timestep_spacing": "leading"} | schedule | {"_class_name": scheduler},
        )
        write_json(
            self._folder / "model_index.json",
            {"_class_name": class_name, "_diffusers_version": "0.42.1"} | self.components,
        )


def stable_diffusion_vae(**changes: Any) -> AutoencoderKL:
    """Of its size, with random weights."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        **changes,
    )


def write_sd15(write: Writer, *, pixels: int) -> None:
    """Stable Diffusion 1.5's size."""
    write.clip("text_encoder", "tokenizer", CLIP_L, pad=END)
    write.model(
        "unet", lambda: UNet2DConditionModel(sample_size=pixels // 8, cross_attention_dim=768)
    )
    write.vae(pixels=pixels, scaling_factor=0.18215)
    write.index(
        "StableDiffusionPipeline",
        scheduler="DDIMScheduler",
        absent=("safety_checker", "feature_extractor"),
    )


def write_sdxl(write: Writer, *, pixels: int) -> None:
    """Stable Diffusion XL's size."""
    write.clip("text_encoder", "tokenizer", CLIP_L, pad=END)
    write.clip("text_encoder_2", "tokenizer_2", CLIP_BIG_G, pad="!", projection_dim=1280)
    write.model("unet", lambda: UNet2DConditionModel(sample_size=pixels // 8, **SDXL_UNET))
    write.vae(pixels=pixels, scaling_factor=0.13025)
    write.index(
        "StableDiffusionXLPipeline",
        scheduler="EulerDiscreteScheduler",
        absent=("feature_extractor", "image_encoder"),
    )


def write_if64(write: Writer, *, pixels: int) -> None:
    """The size of DeepFloyd IF's smaller first stage."""
    config = T5Config(
        vocab_size=write.t5_tokenizer(),
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=2,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    write.model("text_encoder", lambda: T5EncoderModel(config))
    write.model("unet", lambda: UNet2DConditionModel(sample_size=pixels, **IF_UNET))
    write.index(
        "IFPipeline",
        scheduler="DDPMScheduler",
        absent=("feature_extractor", "safety_checker", "watermarker"),
    )


SIZES: Mapping[str, tuple[Callable[..., None], int]] = {
    "sd15": (write_sd15, 512),
    "sdxl": (write_sdxl, 1024),
    "if64": (write_if64, 64),
}


def main() -> None:
    """Writes what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pixels", type=int, help="a side, by default; else the published size")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu", help="where the weights are drawn")
    chosen = parser.parse_args()
    write, pixels = SIZES[chosen.size]
    torch.manual_seed(0)
    write(
        Writer(chosen.folder, device=torch.device(chosen.device), dtype=DTYPES[chosen.dtype]),
        pixels=chosen.pixels or pixels,
    )


if __name__ == "__main__":
    main()
