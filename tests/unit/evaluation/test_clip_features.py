import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from carrara_models.errors import BadFieldError, CheckpointError, ContractError, NumericalError
from carrara_models.evaluation.clip_features import load_clip
from carrara_models.evaluation.features import FeatureSpace
from carrara_models.evaluation.preprocessing import Preprocessing

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8)
CAPTIONS = ["a red circle", "a small blue square", "circle"]


@pytest.fixture(scope="module")
def network(clip_folder):
    return load_clip(clip_folder, name="drawn_clip")


@pytest.fixture
def copy(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "copy")


def rewrite(file, **changes):
    content = {
        name: value
        for name, value in (json.loads(file.read_text()) | changes).items()
        if value is not None
    }
    file.write_text(json.dumps(content))


def test_features_are_the_projected_embeddings_of_transformers(network, clip_folder):
    features = network.extract(PICTURES)
    assert features.values.shape == (5, network.space.width) == (5, 8)
    assert features.values.dtype == np.float32
    model = CLIPModel.from_pretrained(clip_folder)
    pixels = network.space.preprocessing.apply(PICTURES)
    tokens = network._reader.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model(pixel_values=pixels, **tokens)
    scaled = [
        features.values / np.linalg.norm(features.values, axis=1, keepdims=True)
        for features in (features, network.read(CAPTIONS))
    ]
    assert np.allclose(scaled[0], output.image_embeds.numpy(), atol=1e-5)
    assert np.allclose(scaled[1], output.text_embeds.numpy(), atol=1e-5)


def test_features_do_not_depend_on_the_batch_or_the_order(network):
    whole = network.extract(PICTURES).values
    assert np.allclose(network.extract(PICTURES, batch_size=2).values, whole, atol=1e-6)
    assert np.allclose(network.extract(PICTURES[::-1]).values, whole[::-1], atol=1e-6)
    read = network.read(CAPTIONS).values
    assert np.allclose(network.read(CAPTIONS, batch_size=1).values, read, atol=1e-6)


def test_a_space_tells_name_weights_and_preparation_and_survives_json(network):
    space = network.space
    assert (space.name, len(space.fingerprint)) == ("drawn_clip", 64)
    assert space.preprocessing == Preprocessing(
        resize="shortest_edge",
        size=32,
        crop=32,
        interpolation="bicubic",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )
    assert FeatureSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


def test_other_weights_have_another_fingerprint(network, copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["visual_projection.weight"] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_clip(copy, name="drawn_clip").space.fingerprint != network.space.fingerprint


def test_a_vision_tower_alone_gives_equal_features_but_reads_no_captions(network, copy):
    whole = CLIPModel.from_pretrained(copy)
    tower = CLIPVisionModelWithProjection(whole.config.vision_config)
    tower.load_state_dict(whole.state_dict(), strict=False)
    (copy / "model.safetensors").unlink()
    tower.save_pretrained(copy)
    alone = load_clip(copy, name="tower")
    assert np.allclose(alone.extract(PICTURES).values, network.extract(PICTURES).values, atol=1e-6)
    with pytest.raises(ContractError, match="tower has no text tower"):
        alone.read(CAPTIONS)


def test_captions_longer_than_the_tower_reads_are_cut_and_counted(network):
    long = "red " * 30
    assert network.count_cut([*CAPTIONS, long]) == 1
    assert np.allclose(*network.read([long, long + "circle"]).values)


@pytest.fixture
def towers(clip_folder, tmp_path):
    """The same CLIP in folders of its own for each part, as a prior has it."""
    whole = CLIPModel.from_pretrained(clip_folder)
    for name, kind, config in (
        ("image_encoder", CLIPVisionModelWithProjection, whole.config.vision_config),
        ("text_encoder", CLIPTextModelWithProjection, whole.config.text_config),
    ):
        tower = kind(config)
        tower.load_state_dict(whole.state_dict(), strict=False)
        tower.save_pretrained(tmp_path / "towers" / name)
    AutoTokenizer.from_pretrained(clip_folder).save_pretrained(tmp_path / "towers" / "tokenizer")
    (tmp_path / "towers" / "image_processor").mkdir()
    shutil.copy(clip_folder / "preprocessor_config.json", tmp_path / "towers" / "image_processor")
    return tmp_path / "towers"


def test_two_towers_apart_give_the_features_of_the_whole(network, towers):
    apart = load_clip(towers, name="drawn_clip")
    assert apart.space.preprocessing == network.space.preprocessing
    assert np.allclose(apart.extract(PICTURES).values, network.extract(PICTURES).values, atol=1e-6)
    assert np.allclose(apart.read(CAPTIONS).values, network.read(CAPTIONS).values, atol=1e-6)
    assert apart.count_cut(["red " * 30]) == 1


def test_other_weights_of_either_tower_have_another_fingerprint(towers):
    before = load_clip(towers).space.fingerprint
    for tower, tensor in (("image", "visual"), ("text", "text")):
        file = towers / f"{tower}_encoder" / "model.safetensors"
        tensors = load_file(file)
        tensors[f"{tensor}_projection.weight"] += 1
        save_file(tensors, file, metadata={"format": "pt"})
        after = load_clip(towers).space.fingerprint
        assert after != before
        before = after


def test_an_image_tower_without_a_text_tower_reads_no_captions(towers):
    shutil.rmtree(towers / "text_encoder")
    alone = load_clip(towers)
    assert not alone.reads_captions
    with pytest.raises(ContractError, match="has no text tower"):
        alone.read(CAPTIONS)


def test_towers_of_two_clips_are_refused(towers):
    rewrite(towers / "text_encoder" / "config.json", projection_dim=12)
    file = towers / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["text_projection.weight"] = torch.zeros(12, 16)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="pictures have 8 features and captions 12"):
        load_clip(towers)


def test_published_sizes_name_themselves_and_others_go_by_their_weights(clip_folder, copy):
    space = load_clip(clip_folder).space
    assert space.name == f"clip_{space.fingerprint[:8]}"
    config = json.loads((copy / "config.json").read_text())
    vision = config["vision_config"] | {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_hidden_layers": 1,
    }
    (copy / "model.safetensors").unlink()
    CLIPModel(
        CLIPModel.config_class(
            text_config=config["text_config"], vision_config=vision, projection_dim=8
        )
    ).save_pretrained(copy)
    assert load_clip(copy).space.name == "clip_vit_b_8_32"


def test_a_processors_own_file_is_read_where_there_is_no_preprocessors(network, copy):
    file = copy / "preprocessor_config.json"
    (copy / "processor_config.json").write_text(
        json.dumps({"image_processor": json.loads(file.read_text())})
    )
    file.unlink()
    assert load_clip(copy, name="drawn_clip").space == network.space


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop is false"),
        ({"resample": 1}, "KeyError"),
        ({"image_mean": None}, "image_mean"),
        ({"rescale_factor": 1}, "rescale_factor is 1"),
        ({"crop_size": {"height": 40, "width": 40}}, "no square within 32"),
        ({"crop_size": 16}, "cropped to 16 pixels, but the vision tower takes 32"),
    ],
)
def test_preparations_that_are_not_known_here_are_refused(copy, changes, message):
    rewrite(copy / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_clip(copy, name="clip")


def test_pickles_other_models_and_missing_tensors_are_refused(copy):
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    del tensors["visual_projection.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 .* visual_projection\.weight"):
        load_clip(copy, name="clip")
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a pickle, which Carrara never"):
        load_clip(copy, name="clip")
    rewrite(copy / "config.json", model_type="siglip")
    with pytest.raises(CheckpointError, match="is a 'siglip'"):
        load_clip(copy, name="clip")


def test_pictures_of_other_kinds_and_numbers_that_are_none_are_refused(network, copy):
    for wrong in (PICTURES / 255, PICTURES[0], PICTURES.transpose(0, 3, 1, 2)):
        with pytest.raises(BadFieldError, match=r"uint8 \[N, H, W, 3\]"):
            network.extract(wrong)
    tensors = load_file(copy / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    tensors["text_projection.weight"][0, 0] = float("inf")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    broken = load_clip(copy, name="clip")
    with pytest.raises(NumericalError, match="the features of clip"):
        broken.extract(PICTURES)
    with pytest.raises(NumericalError, match="the text features of clip"):
        broken.read(CAPTIONS)
