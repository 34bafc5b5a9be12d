import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from carrara_models.drawn_world.scenes import Object, Scene, sample_scene
from carrara_models.training.errors import RecipeError
from carrara_models.training.text_encoder import (
    ATTRIBUTE_VALUES,
    attribute_targets,
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


def ids_and_averages(folder):
    return (
        CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab(),
        load_file(folder / "snapshot" / "ema.safetensors"),
    )


def test_a_warm_start_keeps_the_vectors_of_words_and_the_weights_of_layers(runs, tmp_path):
    runs.train(
        "text-encoder",
        tmp_path,
        f"init={runs.of('text-encoder')}",
        "shape.layers=2",
        'data.languages=["en","zh"]',
        "loop.learning_rate=0.0",
    )
    old_ids, old = ids_and_averages(runs.of("text-encoder"))
    ids, new = ids_and_averages(tmp_path)
    vectors = "text_encoder.embeddings.token_embedding.weight"
    for word in ("red</w>", "circle</w>", "<|endoftext|>"):
        assert torch.equal(new[vectors][ids[word]], old[vectors][old_ids[word]])
    assert ids["<|endoftext|>"] > old_ids["<|endoftext|>"]
    for name, weight in old.items():
        if name != vectors:
            assert torch.equal(new[name][: len(weight)], weight), name
    assert any(name not in old for name in new)


def test_captions_are_read_in_each_language_and_in_other_words(runs):
    lines = (runs.of("text-encoder") / "scalars.jsonl").read_text().splitlines()
    assert {"read_all_en", "read_all_en_paraphrases"} <= json.loads(lines[-1]).keys()


def test_nothing_but_scenes_teaches_a_text_encoder(runs, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.location"):
        runs.train("text-encoder", tmp_path, f"data.location=folder:{tmp_path}")


@pytest.mark.slow
def test_a_short_training_lowers_the_loss(runs, tmp_path):
    runs.train(
        "text-encoder",
        tmp_path,
        "loop.steps=60",
        "loop.batch_size=16",
        "loop.learning_rate=2e-3",
        "shape.width=64",
    )
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
