"""The web server around the app."""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from iclora.serve.server import Server

__all__ = ["run"]

_PATIENCE = 10
"""Seconds that requests which were begun may take once the server goes down."""


class _Web(uvicorn.Server):
    """Ends streams when it is told to end; they would hold it up else."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._server.go_down()
        super().handle_exit(sig, frame)


def run(app: FastAPI, server: Server, listening: socket.socket) -> None:
    """Serve until a signal says to end; what runs then is queued again."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_PATIENCE,
        timeout_keep_alive=30,
        limit_concurrency=512,
        lifespan="on",
    )
    _Web(config, server).run(sockets=[listening])
