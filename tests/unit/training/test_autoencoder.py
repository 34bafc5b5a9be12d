import numpy as np
import pytest
import torch

from carrara_models.drawn_world.drawing import draw_scenes
from carrara_models.drawn_world.scenes import sample_scene
from carrara_models.evaluation.autoencoders import round_trip
from carrara_models.training.autoencoder import (
    AutoencoderShape,
    build_autoencoder,
    normalise_latents,
)

TINY = AutoencoderShape(widths=(8, 8), resolution=32)


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return draw_scenes([sample_scene(rng) for _ in range(16)], height=32, width=32)


@torch.no_grad()
def test_normalising_changes_the_latents_and_not_the_pictures(pictures):
    torch.manual_seed(0)
    vae = build_autoencoder(TINY).eval()
    before = vae.encode(pictures).latent_dist
    rebuilt = round_trip(vae, pictures)
    normalise_latents(vae, pictures)
    after = vae.encode(pictures).latent_dist
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3)), torch.ones(4))
    torch.testing.assert_close(round_trip(vae, pictures), rebuilt, atol=1e-4, rtol=0)
    # The posterior is scaled with its mean.
    scale = before.mean.std(dim=(0, 2, 3))[None, :, None, None]
    torch.testing.assert_close(after.std, before.std / scale)
