from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from carrara_models.checkpoints import open_checkpoint
from carrara_models.errors import CheckpointError
from carrara_models.families import Role
from carrara_models.pruning import prune

FOLDERS: dict[Role, set[str]] = {
    "text-encoder": {"tokenizer", "text_encoder"},
    "generator": {"unet", "scheduler"},
    "decoder": {"vae"},
}


@pytest.mark.parametrize("role", FOLDERS)
def test_a_pruned_folder_holds_one_stage_and_knows_its_siblings(
    sd1: Path, tmp_path: Path, role: Role, load: Callable[..., Any]
) -> None:
    (sd1 / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (sd1 / "carrara.json").write_text(
        json.dumps({"format": 1, "defaults": {"num_inference_steps": 9}})
    )
    whole = open_checkpoint(sd1, stage=role)
    pruned = open_checkpoint(prune(whole, output=tmp_path / "pruned"), stage=role)

    assert {f.name for f in pruned.path.iterdir() if f.is_dir()} == FOLDERS[role]
    assert not list(pruned.path.rglob("*.bin"))
    assert pruned.fingerprints == whole.fingerprints
    assert pruned.defaults.num_inference_steps == 9
    assert load(pruned.path, role).fingerprint == load(sd1, role).fingerprint


def test_pruning_again_changes_nothing(sd1: Path, tmp_path: Path) -> None:
    once = prune(open_checkpoint(sd1, stage="decoder"), output=tmp_path / "once")
    twice = prune(open_checkpoint(once, stage="decoder"), output=tmp_path / "twice")
    assert (once / "carrara.json").read_text() == (twice / "carrara.json").read_text()


def test_a_folder_in_use_is_not_written_to(sd1: Path) -> None:
    with pytest.raises(CheckpointError, match="not empty"):
        prune(open_checkpoint(sd1, stage="decoder"), output=sd1)


def test_a_pruned_folder_whose_weights_were_exchanged_is_refused(sd1: Path, tmp_path: Path) -> None:
    pruned = prune(open_checkpoint(sd1, stage="decoder"), output=tmp_path / "pruned")
    file = pruned / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_out.bias"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="was written for other weights"):
        open_checkpoint(pruned, stage="decoder")


def test_only_the_served_variant_is_copied(sd1: Path, tmp_path: Path) -> None:
    file = sd1 / "vae" / "diffusion_pytorch_model.safetensors"
    halves = {name: tensor.to(torch.float16) for name, tensor in load_file(file).items()}
    save_file(halves, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    checkpoint = open_checkpoint(sd1, stage="decoder", variant="fp16")
    pruned = prune(checkpoint, output=tmp_path / "pruned")
    weights = [f.name for f in pruned.rglob("*.safetensors")]
    assert weights == ["diffusion_pytorch_model.fp16.safetensors"]
