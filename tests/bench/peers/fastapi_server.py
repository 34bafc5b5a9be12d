"""diffusers behind FastAPI: one picture at a time, whoever comes first.

A lock of asyncio's is fair, and a thread paints, so that the server goes on to listen meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Response
from fastapi.concurrency import run_in_threadpool
from painting import Painter, Wanted, read_arguments

arguments = read_arguments()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the weights before the first request is taken."""
    app.state.painter = Painter(
        arguments.checkpoint, num_threads=arguments.num_threads, compiled=arguments.compile
    )
    app.state.lock = asyncio.Lock()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/generate")
async def generate(wanted: Wanted) -> Response:
    """Paints one picture."""
    async with app.state.lock:
        (png,) = await run_in_threadpool(app.state.painter.paint_png, [wanted])
    return Response(png, media_type="image/png")


@app.get("/health")
async def health() -> str:
    """Answers once the weights are loaded."""
    return "ok"


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_server:app",
        host="127.0.0.1",
        port=arguments.port,
        workers=arguments.workers,
        log_level="warning",
    )
