from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_stages
from PIL import Image

from carrara import AsyncCascade, GenerationResult


@pytest.fixture
async def result() -> GenerationResult:
    async with (
        toy_stages.serving_all() as toys,
        await AsyncCascade.connect(**toys.addresses) as cascade,
    ):
        return await cascade.generate(
            "ein Kreis, ⭕ größer", negative_prompt="", seed=2**64 - 1, num_images=2, height=24
        )


async def test_a_png_tells_how_it_was_made(result: GenerationResult, tmp_path: Path) -> None:
    path = tmp_path / "circle.png"
    result.images[1].save(path)
    with Image.open(path) as picture:
        written = dict(picture.text)  # type: ignore[attr-defined]
        assert picture.tobytes() == result.images[1].image.tobytes()
    stages = json.loads(written.pop("stages"))
    assert written.pop("Software").startswith("Carrara ")
    assert written == {
        "prompt": "ein Kreis, ⭕ größer",
        "negative_prompt": "",
        "seed": "0",
        "num_inference_steps": "3",
        "guidance_scale": "5.0",
        "scheduler": "ddim",
        "height": "24",
        "width": "16",
        "numerics": "exact",
    }
    assert [stage["role"] for stage in stages] == ["text-encoder", "generator", "decoder"]
    assert [stage["fingerprint"][0] for stage in stages] == ["1", "2", "3"]
    assert stages[1]["precision"] == "float32"
    assert stages[1]["versions"] == {"carrara": "0"}


async def test_other_formats_are_written_without_settings(
    result: GenerationResult, tmp_path: Path
) -> None:
    path = tmp_path / "circle.bmp"
    result.images[0].save(path)
    with Image.open(path) as picture:
        assert picture.format == "BMP"
        assert picture.tobytes() == result.images[0].image.tobytes()


async def test_a_suffix_without_a_format_is_refused(
    result: GenerationResult, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="unknown file extension"):
        result.images[0].save(tmp_path / "circle.unknown")
