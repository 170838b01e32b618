"""The process that holds a cluster: `python -m iclora.serve.cluster.head ADDRESS [FOLDER]`.

With a folder it starts a cluster on this machine, whose sockets and logs lie there, and which ends
with it; without, it looks at the cluster of that address. It says one line of JSON, "address",
"gpus" and "cpus", or "problem" and "advice", and ends with its stdin.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from typing import Any, BinaryIO

import ray

from iclora.serve.children import own_pipes

__all__ = ["main"]

_OBJECTS = 80 * 2**20
"""Bytes of Ray's store of objects, near the least it takes: only lines pass."""
_KEY = (
    "Give this process the cluster's token, in RAY_AUTH_TOKEN, in the file of RAY_AUTH_TOKEN_PATH, "
    "or in ~/.ray/auth_token."
)
_OPEN = (
    "this Ray cluster takes calls without a token: whoever reaches its ports can run programs there"
)


def main() -> int:
    """Start or join, say so, and wait for the end of stdin. Returns: the exit status."""
    commands, answers = own_pipes()
    address, place = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    # Its end is heard of while Ray is still being started.
    threading.Thread(target=_end_with, args=(commands, place), daemon=True).start()
    try:
        said = _start(place) if place else _join(address)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        print(error, file=sys.stderr, flush=True)
        said = _refusal(error, None if place else address)
    answers.write(json.dumps(said).encode() + b"\n")
    answers.flush()
    if "problem" not in said:
        threading.Event().wait()  # The other thread ends this process.
    return 1


def _end_with(commands: BinaryIO, place: str | None) -> None:
    commands.read()
    ray.shutdown()
    if place:  # Whoever started this may have been killed.
        shutil.rmtree(place, ignore_errors=True)
    os._exit(0)


def _start(place: str) -> dict[str, Any]:
    context = ray.init(
        "local",
        include_dashboard=False,
        object_store_memory=_OBJECTS,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=place,
    )
    return _found(context.address_info["gcs_address"])


def _join(address: str) -> dict[str, Any]:
    context = ray.init(address, log_to_driver=False, configure_logging=False)
    found = context.address_info["gcs_address"]
    if _is_open(found):
        return {"problem": _OPEN, "advice": "Start its nodes with RAY_AUTH_MODE=token."}
    return _found(found)


def _found(address: str) -> dict[str, Any]:
    there = ray.cluster_resources()
    return {"address": address, "gpus": int(there.get("GPU", 0)), "cpus": int(there.get("CPU", 0))}


def _is_open(address: str) -> bool:
    """True if the cluster answers somebody who has no token."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("RAY_AUTH_")}
    asked = subprocess.run(  # noqa: S603 (our own words, and an address that answered)
        [sys.executable, "-P", "-c", _ASK, address],
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return asked.returncode == 0


_ASK = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)"


def _refusal(error: Exception, address: str | None) -> dict[str, str]:
    if isinstance(error, ray.exceptions.AuthenticationError):
        return {"problem": "there is no token for the Ray cluster", "advice": _KEY}
    first = str(error).partition("\n")[0][:300]
    where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
    return {
        "problem": f"{where} cannot be {'reached' if address else 'started'}: {first}",
        "advice": f"{_KEY} And check the address."
        if address
        else "A machine that is very busy may need another try.",
    }


if __name__ == "__main__":
    os._exit(main())
