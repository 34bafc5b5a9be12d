"""OpenVINO GenAI's own text-to-image pipeline behind FastAPI: one picture at a time.

Its batches are of one prompt's pictures, so that requests share none. It knows DDIM, not
DPM-Solver++; pictures begin with torch's random numbers, as diffusers' do. In float32, as its
default on processors that have bfloat16 would be that.
"""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.concurrency import run_in_threadpool
from painting import SCHEDULERS, Wanted, as_png, read_arguments
from PIL import Image
from safetensors.torch import load_file, save_file

arguments = read_arguments()


def convert(checkpoint: Path, folder: Path) -> Path:
    """Writes the checkpoint as OpenVINO reads it; returns its folder."""
    own = folder / "own"
    shutil.copytree(checkpoint, own)
    # transformers 5.5, the newest that optimum-intel takes, has other names for CLIP's weights, and
    # puts random ones in the place of those that it does not find.
    weights = own / "text_encoder" / "model.safetensors"
    tensors = {
        f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    converted = folder / "converted"
    subprocess.run(
        [
            *(Path(sys.executable).with_name("optimum-cli"), "export", "openvino"),
            *("--model", own, "--task", "text-to-image", "--weight-format", "fp32", converted),
        ],
        check=True,
    )
    config_file = converted / "scheduler" / "scheduler_config.json"
    class_name, changes = SCHEDULERS["ddim"]
    config = json.loads(config_file.read_text()) | changes | {"_class_name": class_name}
    finite = {k: v for k, v in config.items() if v not in (float("inf"), -float("inf"))}
    config_file.write_text(json.dumps(finite))
    index_file = converted / "model_index.json"
    index = json.loads(index_file.read_text()) | {"scheduler": ["diffusers", class_name]}
    index_file.write_text(json.dumps(index))
    return converted


class Painter:
    """A pipeline for each shape, as fixed shapes are quicker than open ones."""

    def __init__(self, checkpoint: Path) -> None:
        defaults = json.loads((checkpoint / "unet" / "config.json").read_text())
        vae = json.loads((checkpoint / "vae_decoder" / "config.json").read_text())
        self._side = defaults["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
        self._checkpoint = checkpoint

    def paint(self, wanted: Wanted) -> bytes:
        """One PNG file."""
        height, width = wanted.height or self._side, wanted.width or self._side
        pipeline = self._pipeline(height, width, wanted.guidance_scale > 1)
        result = pipeline.generate(
            wanted.prompt,
            height=height,
            width=width,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            generator=openvino_genai.TorchGenerator(wanted.seed),
        )
        return as_png(Image.fromarray(np.array(result.data)[0]))

    @functools.cache  # noqa: B019
    def _pipeline(self, height: int, width: int, guided: bool) -> Any:
        pipeline = openvino_genai.Text2ImagePipeline(str(self._checkpoint))
        pipeline.reshape(1, height, width, 4.0 if guided else 1.0)
        pipeline.compile(
            "CPU",
            INFERENCE_NUM_THREADS=arguments.num_threads,
            INFERENCE_PRECISION_HINT="f32",
        )
        return pipeline


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Converts and loads the weights before the first request is taken."""
    with tempfile.TemporaryDirectory(prefix="openvino-") as folder:
        app.state.painter = Painter(convert(arguments.checkpoint, Path(folder)))
        app.state.lock = asyncio.Lock()
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/generate")
async def generate(wanted: Wanted) -> Response:
    """Paints one picture."""
    if wanted.scheduler != "ddim":
        raise HTTPException(400, "this pipeline knows no scheduler but ddim")
    async with app.state.lock:
        png = await run_in_threadpool(app.state.painter.paint, wanted)
    return Response(png, media_type="image/png")


@app.get("/health")
async def health() -> str:
    """Answers once the weights are loaded."""
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")
