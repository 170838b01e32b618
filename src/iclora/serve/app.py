"""The web process: one app over queue, folder and engine. It never imports torch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from iclora import __version__
from iclora.serve.gate import Gate
from iclora.serve.problems import say_problems
from iclora.serve.routes import (
    assets,
    curating,
    datasets,
    events,
    imagesets,
    jobs,
    openai,
    runs,
    sets,
    state,
    uploads,
)
from iclora.serve.server import Server

__all__ = ["make_app"]


def make_app(server: Server) -> FastAPI:
    """The app of a server; it starts and closes it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server: Server = app.state.server
        await run_in_threadpool(server.dispatcher.start)
        await run_in_threadpool(server.sets.look)
        try:
            yield
        finally:
            await run_in_threadpool(server.close)

    app = FastAPI(
        title="iclora",
        version=__version__,
        summary="Sets of panels by In-Context LoRA: jobs, made sets, datasets, runs, adapters.",
        lifespan=lifespan,
        docs_url=None,  # Its page loads scripts from elsewhere.
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = server
    say_problems(app)
    for module in (
        jobs,
        events,
        assets,
        sets,
        datasets,
        imagesets,
        curating,
        uploads,
        runs,
        openai,
        state,
    ):
        # Not `include_router`: it builds each route's models a second time, at the first request.
        app.router.routes.extend(module.router.routes)
    app.add_middleware(Gate)
    return app
