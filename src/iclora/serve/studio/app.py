"""The server with its page."""

from __future__ import annotations

from fastapi import FastAPI

from iclora.serve.app import make_app
from iclora.serve.server import Server
from iclora.serve.studio import about, drafts, examples, page, preview, session, start, tale

__all__ = ["link", "make_studio"]


def make_studio(server: Server) -> FastAPI:
    """The app of a server, with the page at its root."""
    app = make_app(server)
    server.access.open |= page.PATHS
    for module in (page, session, start, drafts, preview, tale, about, examples):
        app.include_router(module.router)
    return app


def link(server: Server, address: str) -> str:
    """The address of the page with its token.

    The token stands behind "#": a browser never sends that part, so no log and no proxy has it.
    """
    return f"{address}/#token={server.access.token}"
