from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from carrara_models.checkpoints import open_checkpoint, resolve
from carrara_models.embedded import embedded_names
from carrara_models.errors import CheckpointError
from carrara_models.families import load_part
from carrara_models.parts import Texts
from carrara_models.pruning import prune
from carrara_models.weights import stored_tensors

UNET = "unet/diffusion_pytorch_model.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def test_each_role_opens_with_the_components_that_it_needs(sd1: Path) -> None:
    for role in ("text-encoder", "generator", "decoder"):
        checkpoint = open_checkpoint(sd1, stage=role)
        assert checkpoint.family.name == "stable-diffusion"
        assert checkpoint.pipeline_class == "StableDiffusionPipeline"
        needed = checkpoint.family.parts[role].components
        assert all(checkpoint.has(component) for component in needed)
        assert not checkpoint.has("safety_checker")
        assert set(checkpoint.fingerprints) == {
            "tokenizer",
            "text_encoder",
            "unet",
            "scheduler",
            "vae",
        }


def test_unknown_name_lists_the_embedded_checkpoints() -> None:
    for name in ("no-such-checkpoint", "no-such-checkpoint" * 500):
        with pytest.raises(CheckpointError, match="no-such-checkpoint") as refusal:
            resolve(name)
        assert all(name in str(refusal.value) for name in embedded_names())


def test_a_pipeline_of_another_family_is_refused_by_name(sd1: Path) -> None:
    edit_json(sd1 / "model_index.json", _class_name="AudioLDMPipeline")
    with pytest.raises(CheckpointError, match=r"is a AudioLDMPipeline; Carrara serves: StableDiff"):
        open_checkpoint(sd1, stage="decoder")


def test_a_class_that_is_not_in_the_table_is_never_imported(sd1: Path) -> None:
    edit_json(sd1 / "model_index.json", unet=["my_code", "MyUNet"])
    with pytest.raises(CheckpointError, match=r"unet is a MyUNet; allowed: UNet2DConditionModel"):
        open_checkpoint(sd1, stage="generator")


def test_only_pickled_weights_are_refused_with_a_way_out(sd1: Path) -> None:
    weights = sd1 / UNET
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"pickle.*use_safetensors=False.*save_pretrained"):
        open_checkpoint(sd1, stage="generator")
    open_checkpoint(sd1, stage="decoder")  # which needs no UNet


def test_a_folder_of_another_stage_says_whose_it_is(sd1: Path, tmp_path: Path) -> None:
    pruned = prune(open_checkpoint(sd1, stage="decoder"), output=tmp_path / "pruned")
    with pytest.raises(CheckpointError, match=r"no unet/.*generator.*folder of the decoder"):
        open_checkpoint(pruned, stage="generator")


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "carrara.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_broken_file_is_named(sd1: Path, file: str) -> None:
    path = sd1 / file
    content = path.read_bytes() if path.exists() else b'{"format": 1, "defaults"'
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=Path(file).name):
        open_checkpoint(sd1, stage="generator")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99]}}     ',
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}      0000',
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F3","shape":[1],"data_offsets":[0,4]}}       0000',
    ],
    ids=["empty", "endless", "no-object", "beyond-the-end", "other-size", "unknown-dtype"],
)
def test_a_lying_header_is_refused(sd1: Path, header: bytes) -> None:
    (sd1 / UNET).write_bytes(header)
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors is broken"):
        open_checkpoint(sd1, stage="generator")


def test_weights_that_lack_a_tensor_are_refused_and_not_filled_in(
    sd1: Path, load: Callable[..., Any]
) -> None:
    tensors = load_file(sd1 / UNET)
    del tensors["conv_out.bias"]
    save_file(tensors, sd1 / UNET, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of the tensors.*conv_out\.bias"):
        load(sd1, "generator")


def test_weights_of_another_shape_are_refused(sd1: Path, load: Callable[..., Any]) -> None:
    edit_json(sd1 / "unet" / "config.json", cross_attention_dim=40)
    with pytest.raises(CheckpointError, match="unet cannot be loaded as UNet2DConditionModel"):
        load(sd1, "generator")


@pytest.mark.parametrize("changes", [{"in_channels": 9}, {"addition_embed_type": "text_time"}])
def test_a_unet_that_wants_other_inputs_is_refused(
    sd1: Path, load: Callable[..., Any], changes: dict[str, Any]
) -> None:
    config = json.loads((sd1 / "unet" / "config.json").read_text()) | changes
    config["projection_class_embeddings_input_dim"] = 8
    config["addition_time_embed_dim"] = 8
    UNet2DConditionModel.from_config(config).save_pretrained(sd1 / "unet")
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        load(sd1, "generator")


def test_variants_are_read_when_asked_for_and_named_when_not(sd1: Path) -> None:
    plain = open_checkpoint(sd1, stage="generator")
    for component, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = sd1 / component / f"{stem}.safetensors"
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_name(f"{stem}.fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()
    with pytest.raises(CheckpointError, match=r"it has .*\.fp16\.safetensors"):
        open_checkpoint(sd1, stage="generator")
    halved = open_checkpoint(sd1, stage="generator", variant="fp16")
    assert halved.fingerprints["unet"] != plain.fingerprints["unet"]
    for role in ("text-encoder", "generator"):
        checkpoint = open_checkpoint(sd1, stage=role, variant="fp16")
        part = load_part(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        assert part.components[0].parameters + part.components[1].parameters > 10_000


def test_sharded_weights_load_and_have_the_fingerprint_of_the_whole(
    sd1: Path, tmp_path: Path, load: Callable[..., Any]
) -> None:
    whole = {role: load(sd1, role) for role in ("text-encoder", "generator")}
    sharded = copytree(sd1, tmp_path / "sharded")
    for component, loader in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        rmtree(sharded / component)
        loader.from_pretrained(sd1 / component).save_pretrained(
            sharded / component, max_shard_size="50KB"
        )
        assert len(list((sharded / component).glob("*.safetensors"))) > 1
    for role, part in whole.items():
        assert load(sharded, role).fingerprint == part.fingerprint
    next((sharded / "unet").glob("*-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"00002.*is missing; .*index\.json names it"):
        open_checkpoint(sharded, stage="generator")


def test_an_index_that_points_outside_the_folder_is_refused(sd1: Path) -> None:
    outside = sd1 / "outside.safetensors"
    (sd1 / UNET).rename(outside)
    index = sd1 / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"outside\.safetensors"):
        open_checkpoint(sd1, stage="generator")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"format": 2}, "format 2; this version reads 1"),
        ({"format": 1, "defaults": {"steps": 3}}, "unknown default 'steps'"),
        ({"format": 1, "defaults": {"height": "64"}}, "height cannot be '64'"),
        ({"format": 1, "defaults": {"num_inference_steps": True}}, "cannot be True"),
        ({"format": 1, "fingerprints": []}, "fingerprints is not an object"),
    ],
)
def test_a_wrong_manifest_is_refused(sd1: Path, manifest: dict[str, Any], message: str) -> None:
    (sd1 / "carrara.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(sd1, stage="generator")


def test_defaults_of_the_manifest_go_before_the_pipelines(
    sd1: Path, load: Callable[..., Any]
) -> None:
    defaults = {"num_inference_steps": 7, "guidance_scale": 0, "scheduler": "euler", "height": 32}
    (sd1 / "carrara.json").write_text(json.dumps({"format": 1, "defaults": defaults}))
    generator = load(sd1, "generator")
    settings = {argument.name: argument for argument in generator.arguments}
    assert settings["num_inference_steps"].default == 7
    assert settings["guidance_scale"].default == 0.0
    assert settings["scheduler"].choices[0] == "euler"
    assert (settings["height"].default, settings["width"].default) == (32, 64)


class Hub:
    """Stands for the hub at the library's boundary: serves a folder by the patterns it is asked."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache

    def snapshot_download(
        self, repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str] | None
    ) -> str:
        if repo_id != "owner/tiny":
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"no {repo_id} here")
        files = [str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            (self.cache / name).write_bytes((self.folder / name).read_bytes())
        return str(self.cache)


def test_a_hub_id_brings_only_the_stages_weights(
    sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]
) -> None:
    (sd1 / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not wanted")
    (sd1 / "v1-5-pruned.safetensors").write_bytes(b"not wanted")
    hub = Hub(sd1, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    generator = load("owner/tiny", "generator")
    weights = [str(f.relative_to(hub.cache)) for f in hub.cache.rglob("*.safetensors")]
    assert weights == [UNET]
    # The VAE's config came along, so the size factor is known; its weights did not.
    assert generator.produces[0].size_factor == 8
    assert generator.produces[0].space == ""

    text_encoder = load("owner/tiny", "text-encoder")
    assert text_encoder.encode([Texts("a red circle")])[0].tensors["prompt_embeds"].any()


def test_a_hub_id_that_cannot_be_had_is_an_error_with_the_embedded_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = Hub(tmp_path, tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    with pytest.raises(CheckpointError, match=r"owner/absent.*embedded.*no owner/absent here"):
        resolve("owner/absent")


def test_a_file_that_may_not_be_read_is_not_called_broken(
    sd1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors writes files that only their owner may read."""
    refused = sd1 / "vae" / "diffusion_pytorch_model.safetensors"
    opened = Path.open

    def deny(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == refused:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(CheckpointError, match=r"safetensors cannot be read: Permission denied"):
        stored_tensors(refused)
