"""A run's result on the Hugging Face hub: adapter, model card, the previews it shows.

Nothing else leaves the machine: no checkpoints, no cache, no log, no picture that was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub import errors as hub
from safetensors.torch import load, save

from iclora.adapter import Adapter, AdapterInfo
from iclora.errors import RunError
from iclora.files import inside
from iclora.files.documents import read_bytes, read_toml, read_words
from iclora.files.locks import LOCK, is_held
from iclora.models.licences import hub_id
from iclora.train.model_card import ADAPTER, CARD
from iclora.train.resuming import find_run

__all__ = ["collect", "send"]


def collect(folder: Path, repository: str) -> dict[str, bytes]:
    """What a run's repository holds, by name: card, adapter, previews.

    Args:
        folder: of a run that has ended.
        repository: its id, which the card's examples name.
    Raises: RunError if the run has no adapter or no card, is going on or was to, if the card names
        no base of the hub, or a picture that is not among the run's previews.
    """
    _check_at_rest(folder)
    find_run(folder, "run")
    if not (folder / ADAPTER).is_file():
        if (folder / "base").is_dir():
            raise RunError(
                f"the run in {folder} trained every weight, and made a base instead of an adapter",
                "Send the folder base with the hub's own command: hf upload.",
                "run",
            )
        raise RunError(f"the run in {folder} has not ended", "Resume it first.", "run")
    if not (folder / CARD).is_file():
        raise RunError(
            f"{folder} has no model card ({CARD})",
            "Resume the run: one that has ended takes no further step, and writes its card.",
            "run",
        )
    card = read_words(folder / CARD, RunError, "model card")
    base, shown = _read(card, folder)
    files = {CARD: card.replace("USER/NAME", repository).encode(), ADAPTER: _adapter(folder, base)}
    for name in shown:
        files[name] = _picture(folder, name)
    _check_at_rest(folder)  # What was read meanwhile might be of two runs.
    return files


def _check_at_rest(folder: Path) -> None:
    """Raises: RunError if a process trains the run just now."""
    if is_held(folder / LOCK):
        raise RunError(
            f"another process is training the run in {folder} just now",
            "Wait until it has ended, or stop it.",
            "run",
        )


def send(files: Mapping[str, bytes], repository: str, *, key: str, public: bool = False) -> str:
    """Send files to a repository of the hub in one commit; it is made if it is not there.

    Args:
        key: the hub's, with the right to write.
        public: everybody sees a new repository; and one that everybody sees may be written to.
    Returns: the address of the repository.
    Raises: RunError, also for a repository that everybody sees without `public`; the key never
        stands in it.
    """
    api = HfApi(token=key)
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.model_info(repository).private:
            raise RunError(
                f"everybody sees {repository}",
                "Set `public` if that is meant, or choose another `repository`.",
                "public",
            )
        adds = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repository, adds, commit_message="Add the adapter")
    except RunError:
        raise
    except Exception as error:  # The client raises its own, httpx's, hf_xet's and plain ones.
        raise _refused(error, repository, key) from None
    return str(url)


def _refused(error: Exception, repository: str, key: str) -> RunError:
    """An error that names what the hub said, never the key."""
    # Uploads in threads hide the reason.
    while isinstance(error.__cause__, Exception) and not isinstance(error, hub.HfHubHTTPError):
        error = error.__cause__
    status = error.response.status_code if isinstance(error, hub.HfHubHTTPError) else None
    said = str(getattr(error, "server_message", None) or error or type(error).__name__)
    said = " ".join(said.replace(key, "***").split())[:300]
    if isinstance(error, hub.OfflineModeIsEnabled):
        return RunError(
            "the hub's client is told to stay offline", "Unset HF_HUB_OFFLINE and try again."
        )
    if status in (401, 403, 404):
        return RunError(
            f"the hub refused to let this key write to {repository}: {said}",
            "Use a key that may write there, in HF_TOKEN; the name before the slash is yours or "
            "your organisation's.",
            "repository",
        )
    return RunError(
        f"{repository} could not be written ({type(error).__name__}): {said}",
        "Nothing was changed there unless it was made new; run the same command again.",
    )


def _read(card: str, folder: Path) -> tuple[str, list[str]]:
    """The base that a card names, and the pictures it shows. Raises: RunError."""
    try:
        found = ModelCard(card)
        widgets = [str(each["output"]["url"]) for each in found.data.get("widget") or ()]
    except Exception as error:  # YAML's errors, and those of a card that has another shape.
        raise RunError(
            f"the head of {folder / CARD} is not what the hub reads: {error}",
            "Look at the lines between the two ---.",
        ) from error
    base = found.data.get("base_model")
    if not isinstance(base, str) or hub_id(base) is None:
        raise RunError(
            f"{folder / CARD} names no base of the hub, and without it nobody can load the adapter",
            "If the base is there, write `base_model: OWNER/NAME` and `base_model_relation: "
            "adapter` below the first ---.",
        )
    linked = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", found.text)
    own = [url for url in (*widgets, *linked) if not re.match(r"https?://", url)]
    return base, list(dict.fromkeys(own))


def _picture(folder: Path, name: str) -> bytes:
    """A preview that the card shows. Raises: RunError for any other file."""
    path = inside(folder, name, RunError)
    if not re.fullmatch(r"previews/[\w.-]+\.png", name) or path.parent.name != "previews":
        raise RunError(
            f'{folder / CARD} shows "{name}", which is none of the run\'s previews',
            "Show pictures of the folder previews/ alone, or upload others yourself.",
        )
    return read_bytes(path, RunError, "preview", 2**28)


def _adapter(folder: Path, base: str) -> bytes:
    """The adapter's bytes, with the base as the hub calls it, not by a folder of this machine.

    Raises: RunError for the adapter of a run that was to take further steps.
    """
    path = folder / ADAPTER
    data = path.read_bytes()
    info = Adapter.load(path).info
    if info is None:
        raise RunError(f"{path} was not written by iclora", "Restore the run's own adapter.", "run")
    told_to = read_toml(folder / "config.toml", RunError, "run's settings").get("train", {})
    steps = told_to.get("steps", 0) if isinstance(told_to, dict) else 0
    if isinstance(steps, int) and steps > info.steps:
        raise RunError(
            f"the run in {folder} was extended to {steps} steps and has not ended; its adapter and "
            f"card are those of step {info.steps}",
            "Resume it first.",
            "run",
        )
    if info.base == base:
        return data
    told: AdapterInfo = info.model_copy(update={"base": base})
    return save(load(data), {"iclora": told.model_dump_json()})
