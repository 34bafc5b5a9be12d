import os

import pytest
import torch

from carrara_models.training.data.embedding_cache import BUCKETS, EmbeddingCache


class Encoder:
    """Encodes a caption by its length; counts its calls."""

    def __init__(self):
        self.encoded = []

    def __call__(self, caption):
        self.encoded.append(caption)
        states = torch.full((1, 4, 2), len(caption) / 3, dtype=torch.bfloat16)
        return {"prompt_embeds": states.transpose(1, 2), "pooled": states[:, 0]}


def files_in(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("caption", ["a red circle", "", "ein grüner Kreis\0" * 100])
def test_a_caption_is_encoded_once_and_comes_back_bit_for_bit(tmp_path, caption):
    encode = Encoder()
    fresh = EmbeddingCache(tmp_path, fingerprint="a").embed(caption, encode)
    kept = EmbeddingCache(tmp_path, fingerprint="a").embed(caption, encode)
    assert encode.encoded == [caption]
    assert fresh.keys() == kept.keys() == {"prompt_embeds", "pooled"}
    for name, tensor in fresh.items():
        assert tensor.dtype == kept[name].dtype == torch.bfloat16
        assert torch.equal(tensor, kept[name])


def test_another_encoder_has_embeddings_of_its_own(tmp_path):
    encode = Encoder()
    for fingerprint in ("a", "b"):
        EmbeddingCache(tmp_path, fingerprint=fingerprint).embed("x", encode)
    assert encode.encoded == ["x", "x"]


def test_a_damaged_file_is_encoded_anew(tmp_path):
    encode, cache = Encoder(), EmbeddingCache(tmp_path, fingerprint="a")
    cache.embed("x", encode)
    (file,) = files_in(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(cache.embed("x", encode)["pooled"], encode("x")["pooled"])
    cache.embed("x", encode)
    assert encode.encoded == ["x", "x", "x"]  # the second of them by the line above


def test_the_bound_is_kept_and_what_is_used_stays(tmp_path):
    encode = Encoder()
    EmbeddingCache(tmp_path, fingerprint="a").embed("probe", encode)
    (probe,) = files_in(tmp_path)
    size = probe.stat().st_size
    probe.unlink()
    folder = tmp_path / "bounded"
    max_bytes = 3 * size * BUCKETS  # three files in each bucket
    cache = EmbeddingCache(folder, fingerprint="a", max_bytes=max_bytes)
    captions = [f"{n:05d}" for n in range(2000)]
    for caption in captions:
        cache.embed(caption, encode)
    files = files_in(folder)
    assert len(files) < len(captions)
    assert sum(file.stat().st_size for file in files) <= max_bytes
    assert max(len(files_in(bucket)) for bucket in folder.iterdir()) == 3

    bucket = next(bucket for bucket in folder.iterdir() if len(files_in(bucket)) == 3)
    oldest, *others = files_in(bucket)
    for file in others:
        os.utime(file, (2, 2))
    os.utime(oldest, (1, 1))
    cache._make_room(bucket, 2 * size)
    assert files_in(bucket) == others


def test_what_is_larger_than_its_share_is_not_kept(tmp_path):
    encode, cache = Encoder(), EmbeddingCache(tmp_path, fingerprint="a", max_bytes=BUCKETS)
    assert cache.embed("x", encode)["pooled"].shape == (1, 2)
    assert files_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path):
    (tmp_path / "file").touch()
    encode, cache = Encoder(), EmbeddingCache(tmp_path / "file", fingerprint="a")
    cache.embed("x", encode)
    cache.embed("x", encode)
    assert encode.encoded == ["x", "x"]
