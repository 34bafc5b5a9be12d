from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from carrara_models.errors import CheckpointError
from carrara_models.fingerprints import component_fingerprint, stage_fingerprint

UNET = "unet/diffusion_pytorch_model.safetensors"


def change(path: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(path) | {name: tensor}, path, metadata={"format": "pt"})


def test_folder_names_versions_and_order_of_keys_do_not_count(sd1: Path) -> None:
    before = component_fingerprint(sd1, "unet")
    config = json.loads((sd1 / "unet" / "config.json").read_text())
    config |= {"_name_or_path": "elsewhere", "_diffusers_version": "9.9", "_commit_hash": "abc"}
    (sd1 / "unet" / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    tensors = load_file(sd1 / UNET)
    save_file(dict(reversed(tensors.items())), sd1 / UNET, metadata={"other": "metadata"})
    assert component_fingerprint(sd1, "unet") == before


@pytest.mark.parametrize("what", ["value", "dtype", "shape", "name", "config"])
def test_each_of_name_dtype_shape_bytes_and_config_counts(sd1: Path, what: str) -> None:
    before = component_fingerprint(sd1, "unet")
    bias = load_file(sd1 / UNET)["conv_out.bias"]
    if what == "config":
        config = json.loads((sd1 / "unet" / "config.json").read_text()) | {"sample_size": 16}
        (sd1 / "unet" / "config.json").write_text(json.dumps(config))
    elif what == "name":
        change(sd1 / UNET, "another.bias", bias)
    else:
        changed = {"value": bias + 1, "dtype": bias.view(torch.int32), "shape": bias[None]}
        change(sd1 / UNET, "conv_out.bias", changed[what].contiguous())
    assert component_fingerprint(sd1, "unet") != before


def test_a_text_encoders_fingerprint_covers_its_tokenizer(sd1: Path) -> None:
    before = component_fingerprint(sd1, "text_encoder")
    merges = sd1 / "tokenizer" / "merges.txt"
    merges.write_text("\n".join(merges.read_text().splitlines()[:-1]) + "\n")
    assert component_fingerprint(sd1, "text_encoder") != before


def test_families_differ_in_every_component(sd1: Path, sd2: Path) -> None:
    for component in ("tokenizer", "text_encoder", "unet", "scheduler", "vae"):
        first, second = (component_fingerprint(folder, component) for folder in (sd1, sd2))
        assert first != second
        assert len(first) == 64
    assert stage_fingerprint({"unet": "a"}) != stage_fingerprint({"vae": "a"})


def test_unchanged_weights_are_not_read_again_and_changed_ones_are(
    sd1: Path, cache_folder: Path
) -> None:
    before = component_fingerprint(sd1, "unet")
    (entry,) = (cache_folder / "carrara" / "fingerprints").iterdir()
    entry.write_text("f" * 64)
    assert component_fingerprint(sd1, "unet") == "f" * 64, "the cache was not used"
    os.utime(sd1 / UNET, ns=(1, 1))
    assert component_fingerprint(sd1, "unet") == before


def test_a_cache_that_cannot_be_written_only_costs_time(
    sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = component_fingerprint(sd1, "vae")
    in_the_way = tmp_path / "a-file"
    in_the_way.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    assert component_fingerprint(sd1, "vae") == expected


def test_a_truncated_file_has_no_fingerprint(sd1: Path) -> None:
    content = (sd1 / UNET).read_bytes()
    (sd1 / UNET).write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="beyond the end of the file"):
        component_fingerprint(sd1, "unet")
