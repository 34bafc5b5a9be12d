"""A tiny text encoder, autoencoder and generator, trained for a few steps."""

import numpy as np
import pytest
import torch

from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.evaluation.painting import PaintSettings
from carrara_models.training.autoencoder import (
    AutoencoderShape,
    build_autoencoder,
    normalise_latents,
)
from carrara_models.training.generator import (
    GeneratorObjective,
    GeneratorShape,
    train_generator,
)
from carrara_models.training.loop import LoopSettings, Pace
from carrara_models.training.text_encoder import TextEncoderShape, build_text_encoder
from carrara_models.training.tokenizer import build_caption_tokenizer


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A folder with a tokenizer, an untrained text encoder and an untrained autoencoder."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tokenizer = build_caption_tokenizer(["en"])
    tokenizer.save_pretrained(folder / "tokenizer")
    shape = TextEncoderShape(width=32, layers=1, heads=2)
    build_text_encoder(tokenizer, shape).save_pretrained(folder / "text_encoder")
    vae = build_autoencoder(AutoencoderShape(widths=(8, 8), resolution=16)).eval()
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(8)]
    normalise_latents(vae, draw_scenes(scenes, height=16, width=16))
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def train_tiny_generator(parts):
    """Trains a tiny generator in a folder for 4 steps, or up to `stop_at`."""

    def train(folder, *, stop_at=None, resume=False, learning_rate=1e-3, **begun_with):
        train_generator(
            folder,
            text_encoder_folder=parts,
            autoencoder_folder=parts,
            settings=LoopSettings(
                steps=4, batch_size=2, learning_rate=learning_rate, warmup_steps=1
            ),
            pace=Pace(workers=0, log_every=1, save_every=2, sample_every=100, stop_at=stop_at),
            shape=GeneratorShape(widths=(8, 16), attention_heads=2),
            objective=GeneratorObjective(),
            painting=PaintSettings(num_inference_steps=1),
            resume=resume,
            **begun_with,
        )

    return train


@pytest.fixture(scope="session")
def generator(train_tiny_generator, tmp_path_factory):
    """The folder of a run of the tiny generator."""
    folder = tmp_path_factory.mktemp("generator")
    train_tiny_generator(folder)
    return folder
