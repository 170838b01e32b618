"""The settings of the server."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iclora.settings.fields import FilePath, ModelName, Settings, setting
from iclora.settings.making import OnBase, OnCluster

__all__ = ["ServeSettings", "StudioSettings"]

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9:.\[\]_-]{1,253}$")]
_Url = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]_/~-]{1,500}$")]
_Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]{1,253}$")]


class _Access(Settings):
    host: _Name = "127.0.0.1"
    """address to listen on; one that other machines reach needs `keys` or `tls_proxy`"""
    port: Annotated[int, Field(ge=0, le=65_535)] = 7860
    """port to listen on; 0 takes a free one"""
    keys: FilePath | None = setting(None, metavar="FILE")
    """file with a line for each client: its name and the SHA-256 of its key, in hex"""
    host_name: tuple[_Name, ...] = setting((), metavar="NAME")
    """a name under which clients reach the server, beside localhost; repeat for more"""
    allow_origin: tuple[_Origin, ...] = setting((), metavar="ORIGIN")
    """a page of another origin that may call, such as https://studio.example; repeat for more"""
    tls_proxy: bool = False
    """a proxy stands in front that encrypts, so `host` may be reached by other machines"""
    public_url: _Url | None = setting(None, metavar="URL")
    """where clients reach the server, if a proxy stands in front, such as
    https://studio.example/iclora: the beginning of the addresses of pictures that it hands out"""


class ServeSettings(OnBase, OnCluster, _Access):
    """What `serve` is told."""

    folder: FilePath = setting(".", position=True)
    """folder whose datasets, runs, adapters and made sets are served"""
    adapter: tuple[FilePath, ...] = setting((), metavar="FILE")
    """a further adapter to offer, beside those in the folder; repeat for more"""
    captioner: tuple[ModelName, ...] = ("toyland",)
    """a captioner that jobs may name; repeat for more"""
    metric: tuple[ModelName, ...] = ("toyland",)
    """a metric that jobs may name; repeat for more"""
    gpus: Annotated[int, Field(ge=1, le=1024)] | Literal["all"] = setting(1, metavar="N")
    """workers, each with a GPU of its own, or all for as many as there are"""
    cpus: Annotated[int, Field(ge=1, le=1024)] = setting(1, metavar="N")
    """workers that compute on a CPU, if they do"""
    together: Annotated[int, Field(ge=1, le=64)] = setting(1, metavar="N")
    """jobs that may share a batch, if they differ in words, seeds and pictures alone; pixels then
    differ by rounding from those of a job by itself, and the request says so"""
    warm: tuple[FilePath, ...] = setting((), metavar="FILE")
    """adapter whose canvas every worker paints once before it is ready, so that with `compile` no
    job waits for the compiler; repeat for more; by default, with `compile`, all that are offered"""
    paused: bool = False
    """begin with a queue that is paused"""


class StudioSettings(ServeSettings):
    """What `studio` is told."""

    base: FilePath | None = None
    """base model; by default the one that the first adapter of the folder was trained on, else
    toyland"""
    browser: bool = True
    """open the page in this machine's browser"""
