import json

import numpy as np
import pytest

from carrara_models.drawn_world.scenes import Object, Scene, sample_scene
from carrara_models.training.loop import LoopSettings, Pace
from carrara_models.training.text_encoder import (
    ATTRIBUTE_VALUES,
    TextEncoderShape,
    attribute_targets,
    train_text_encoder,
)


def test_targets_name_the_scene():
    scene = Scene(
        "navy",
        (
            Object("star", "red", "small", 0.5, 0.25, 0.16),
            Object("ring", "blue", "large", 0.5, 0.75, 0.22),
        ),
        relation="above",
    )
    values = {
        name: options[index]
        for (name, options), index in zip(
            ATTRIBUTE_VALUES.items(), attribute_targets(scene), strict=True
        )
    }
    assert values == {
        "background": "navy",
        "place": "none",
        "relation": "above",
        "first shape": "star",
        "first colour": "red",
        "first size": "small",
        "second shape": "ring",
        "second colour": "blue",
        "second size": "large",
    }


def test_every_sampled_scene_has_targets():
    rng = np.random.default_rng(0)
    for _ in range(500):
        targets = attribute_targets(sample_scene(rng))
        for index, options in zip(targets, ATTRIBUTE_VALUES.values(), strict=True):
            assert 0 <= index < len(options)


@pytest.mark.slow
def test_a_short_training_lowers_the_loss(tmp_path):
    train_text_encoder(
        tmp_path,
        settings=LoopSettings(steps=60, batch_size=16, learning_rate=2e-3, bfloat16=False),
        pace=Pace(workers=0, log_every=10, save_every=60, sample_every=60),
        shape=TextEncoderShape(width=64, layers=1),
    )
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert (tmp_path / "text_encoder" / "model.safetensors").exists()
    assert (tmp_path / "tokenizer" / "tokenizer_config.json").exists()
