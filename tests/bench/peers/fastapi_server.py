"""diffusers behind FastAPI: one picture at a time, whoever comes first.

A lock of asyncio's is fair, and a thread paints, so that the server goes on to listen meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from painting import Painter, Wanted, computing_from, read_arguments

arguments = read_arguments()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the weights before the first request is taken."""
    computing = computing_from(arguments)
    app.state.lock = asyncio.Lock()
    with ThreadPoolExecutor(1) as thread:
        app.state.thread = thread
        app.state.painter = await in_thread(Painter, arguments.checkpoint, computing)
        yield


async def in_thread(call: Callable[..., Any], *values: Any) -> Any:
    """Always the same thread, as CUDA graphs want it."""
    return await asyncio.get_running_loop().run_in_executor(app.state.thread, call, *values)


app = FastAPI(lifespan=lifespan)


@app.post("/generate")
async def generate(wanted: Wanted) -> Response:
    """Paints one picture."""
    async with app.state.lock:
        (png,) = await in_thread(app.state.painter.paint_png, [wanted])
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
