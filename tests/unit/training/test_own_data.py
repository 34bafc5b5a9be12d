"""Training on pictures of one's own: every kind of data set, and from a folder to a checkpoint."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from carrara_models.checkpoints import open_checkpoint
from carrara_models.training.data.records import DataError
from carrara_models.training.export_runs import export_runs

COUNT = 12
BROKEN = 5


def picture(number: int) -> bytes:
    """Noise, but for one that is cut short."""
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[:-200] if number == BROKEN else file.getvalue()


def caption(number: int) -> str:
    return f"a zebra by the sea number {number}"


def write_folder(path: Path) -> str:
    path.mkdir()
    for number in range(COUNT):
        (path / f"{number}.jpg").write_bytes(picture(number))
        (path / f"{number}.txt").write_text(caption(number))
    return f"folder:{path}"


def write_shards(path: Path) -> str:
    path.mkdir()
    with tarfile.open(path / "0.tar", "w") as tar:
        for number in range(COUNT):
            for ending, content in (("jpg", picture(number)), ("txt", caption(number).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return f"shards:{path}/{{0..0}}.tar"


def write_dataset(path: Path) -> str:
    datasets.disable_progress_bars()
    numbers = range(COUNT)
    columns = {"image": [picture(n) for n in numbers], "text": [caption(n) for n in numbers]}
    datasets.Dataset.from_dict(columns).save_to_disk(path)
    return f"dataset:{path}"


def scalars_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("write", [write_folder, write_shards, write_dataset])
def test_every_kind_of_data_trains_and_counts_what_is_broken(
    write: Any, runs: Any, assert_same_weights: Any, tmp_path: Path
) -> None:
    location = f"data.location={write(tmp_path / 'data')}"
    steps = ("loop.steps=6", "loop.batch_size=4")
    runs.train("latents", tmp_path / "whole", location, *steps)
    skipped = [
        line["pictures_skipped"] for line in scalars_of(tmp_path / "whole") if "loss" in line
    ]
    # Two passes over the data: it was met twice, or once more where it was to stand in.
    assert skipped[-1] >= 2
    runs.train("latents", tmp_path / "parts", location, *steps, stop_at=3)
    runs.train("latents", tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_folder_of_pictures_becomes_a_checkpoint(runs: Any, tmp_path: Path) -> None:
    location = f"data.location={write_folder(tmp_path / 'pictures')}"
    clip, vae, generator = (tmp_path / name for name in ("clip", "autoencoder", "generator"))
    common = (location, "loop.steps=2")
    runs.train("clip", clip, *common, "data.max_objects=2", 'data.languages=["en"]')
    tokenizer = CLIPTokenizer.from_pretrained(clip / "tokenizer")
    assert tokenizer.tokenize("a zebra by the sea") == [
        f"{word}</w>" for word in ("a", "zebra", "by", "the", "sea")
    ]
    runs.train("autoencoder", vae, *common)
    runs.train("latents", generator, *common, f"text_encoder={clip}", f"autoencoder={vae}")
    assert (generator / "sample-000002.png").exists()
    export_runs(tmp_path / "checkpoint", [generator], defaults=["height=16", "width=16"])
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    painted = pipeline("a zebra", height=16, width=16, num_inference_steps=1, output_type="np")
    assert np.isfinite(painted.images).all()
    assert open_checkpoint(tmp_path / "checkpoint", stage="text-encoder").fingerprint
    assert {path.name for path in (tmp_path / "checkpoint" / "recipes").iterdir()} == {
        "generator.toml",
        "text-encoder.toml",
        "autoencoder.toml",
    }


def test_a_folder_of_nothing_but_broken_pictures_ends_with_the_reason(
    runs: Any, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.jpg").write_bytes(picture(BROKEN))
    (tmp_path / "pictures" / "0.txt").write_text("a zebra")
    with pytest.raises(DataError, match="1000 damaged or cut short"):
        runs.train("autoencoder", tmp_path / "run", f"data.location=folder:{tmp_path}/pictures")
