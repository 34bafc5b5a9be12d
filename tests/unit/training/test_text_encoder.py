import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer
from typer.testing import CliRunner

from carrara_models.drawn_world.scenes import Object, Scene, sample_scene
from carrara_models.training.commands import app
from carrara_models.training.curriculum import Curriculum
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
        "third relation": "none",
        "third shape": "none",
        "third colour": "none",
        "third size": "none",
    }


def test_every_sampled_scene_has_targets():
    rng = np.random.default_rng(0)
    for _ in range(500):
        targets = attribute_targets(sample_scene(rng, max_objects=3))
        for index, options in zip(targets, ATTRIBUTE_VALUES.values(), strict=True):
            assert 0 <= index < len(options)


def train(folder, *, curriculum, init=None, layers=1):
    train_text_encoder(
        folder,
        settings=LoopSettings(steps=1, batch_size=2, learning_rate=0.0, bfloat16=False),
        pace=Pace(workers=0, log_every=1, save_every=1, sample_every=9),
        shape=TextEncoderShape(width=16, layers=layers, heads=2),
        curriculum=curriculum,
        init=init,
    )
    return (
        CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab(),
        load_file(folder / "snapshot" / "ema.safetensors"),
    )


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    folder = tmp_path_factory.mktemp("english")
    return folder, *train(folder, curriculum=Curriculum())


def test_a_warm_start_keeps_the_vectors_of_words_and_the_weights_of_layers(english, tmp_path):
    folder, old_ids, old = english
    ids, new = train(tmp_path, curriculum=Curriculum(3, ("en", "zh")), init=folder, layers=2)
    vectors = "text_encoder.embeddings.token_embedding.weight"
    for word in ("red</w>", "circle</w>", "<|endoftext|>"):
        assert torch.equal(new[vectors][ids[word]], old[vectors][old_ids[word]])
    assert ids["<|endoftext|>"] > old_ids["<|endoftext|>"]
    for name, weight in old.items():
        if name != vectors:
            assert torch.equal(new[name][: len(weight)], weight), name
    assert any(name not in old for name in new)


def test_a_resumed_run_is_not_begun_anew(english):
    folder, *_ = english
    result = CliRunner().invoke(
        app, ["text-encoder", "-o", str(folder), "--resume", "--init", str(folder)]
    )
    assert result.exit_code == 2
    assert "its own weights" in result.output


def test_an_unknown_language_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["text-encoder", "-o", str(tmp_path), "--language", "la"])
    assert result.exit_code == 2
    assert "'la'" in result.output


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
