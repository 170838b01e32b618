"""What a worker keeps."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from iclora.adapter import Adapter
from iclora.jobs.making import make
from iclora.making.request import Request
from iclora.serve.warm import Lru, Warm
from iclora.settings import GenerateSettings, Machine, settings_of
from tests.conftest import CAPTION
from tests.serve.test_sharing import Notes


def test_what_was_used_longest_ago_goes_first_and_nothing_beyond_the_limit_is_kept():
    kept = Lru(10, len)
    kept.put("a", "xxxx")
    kept.put("b", "yyyy")
    assert kept.get("a") == "xxxx"
    kept.put("c", "zzzz")
    assert (kept.get("b"), len(kept), kept.bytes) == (None, 2, 8)
    kept.put("d", "w" * 11)
    assert (kept.get("d"), kept.bytes) == (None, 8)
    kept.put("a", "x")
    assert kept.bytes == 5
    kept.clear()
    assert (len(kept), kept.bytes) == (0, 0)


def test_a_base_is_opened_once_until_another_is_asked_for(tmp_path):
    warm, cpu = Warm(), Machine(device="cpu")
    first = warm.base("tiny", cpu)
    first.denoiser  # noqa: B018
    assert warm.base("tiny", cpu) is first
    assert warm.base("tiny", Machine(device="cpu", dtype="fp32")) is first
    other = warm.base("tiny-klein", cpu)
    assert other is not first
    # What it held is freed.
    assert "denoiser" not in vars(first)
    assert warm.base("tiny-klein", Machine(device="cpu", dtype="bf16")) is not other


def test_an_adapter_is_read_again_if_its_file_has_changed(lora):
    warm = Warm()
    first = warm.adapter(str(lora))
    assert warm.adapter(str(lora.parent)) is first
    data = lora.read_bytes()
    lora.write_bytes(data[:-1] + b"\x01")
    os.utime(lora, ns=(1, 1))
    again = warm.adapter(str(lora))
    assert again.sha256 != first.sha256


def test_texts_that_were_encoded_are_not_encoded_again_by_the_next_session(tmp_path, lora):
    warm = Warm(texts=10**8)
    encoded = []

    def made(name):
        told = {"base": "tiny", "prompt": [CAPTION], "steps": 1, "size": "96x192", "device": "cpu"}
        console = Notes()
        settings = settings_of(
            GenerateSettings, told | {"adapter": [str(lora)], "out": str(tmp_path / name)}
        )
        (folder,) = make(settings, console, warm, own=True)
        encoded.append([e for e in console.events if e.what == "encoding texts"])
        return (folder / "composite.png").read_bytes()

    assert made("a") == made("b")
    assert encoded[0]
    assert not encoded[1]
    model = warm.base("tiny", Machine(device="cpu"))
    # Of another base the same text is another one.
    klein = Warm().base("tiny-klein", Machine(device="cpu"))
    keys = [(m.fingerprint("text"), "cpu", str(m.dtype), CAPTION) for m in (model, klein)]
    assert warm.texts.get(keys[0]) is not None
    assert warm.texts.get(keys[1]) is None


def test_memory_stays_flat_over_sets_with_changing_adapters_and_texts(tmp_path, lora):
    other = lora.with_name("other.safetensors")
    other.write_bytes(lora.read_bytes())
    warm = Warm(texts=2 * 10**5)
    held = []
    for number in range(6):
        told = {"base": "tiny", "steps": 1, "size": "32x96", "device": "cpu", "seed": number}
        told |= {"prompt": [CAPTION.replace("Ana", f"Ana{number}")]}
        told |= {"adapter": [str((lora, other)[number % 2])], "out": str(tmp_path / "out")}
        make(settings_of(GenerateSettings, told), Notes(), warm)
        held.append(sum(t.nbytes for t in _tensors()))
    assert held[-1] <= held[2] * 1.02
    assert warm.texts.bytes <= 2 * 10**5


def _tensors():
    import gc

    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]


@pytest.mark.machine
@pytest.mark.filterwarnings("default")
def test_what_is_compiled_before_the_first_job_serves_every_adapter_and_strength(
    lora, tmp_path, counted
):
    warm, machine, began = Warm(), Machine(device="cpu", compile=True), counted()
    model = warm.base("tiny", machine)
    other = tmp_path / "other.safetensors"
    first = warm.adapter(str(lora))
    Adapter({n: 2 * t for n, t in first.weights.items()}, first.info).save(other, torch.float32)
    left_out = list(warm.paint_once(model, [str(lora), str(other), str(tmp_path / "none")]))
    assert [note.partition(": ")[0] for note in left_out] == ["not painted once"]
    # Two halves of two sorts of block, and one more for words out of a block.
    assert counted() - began == 5

    def made(adapter, **more):
        told = {"base": "tiny", "prompt": [CAPTION], "steps": 2, "adapter": [adapter], **more}
        out = tmp_path / f"made-{len(list(tmp_path.glob('made-*')))}"
        told = settings_of(GenerateSettings, {**told, "device": "cpu", "out": str(out)})
        make(told, Notes(), warm)
        with Image.open(out / "0001" / "composite.png") as image:
            return Request.read(out / "0001" / "request.json"), np.asarray(image).astype(int)

    asked, fast = made(str(lora), compile=True)
    _, stronger = made(f"{other}=0.7", compile=True)
    assert counted() - began == 5
    plain, slow = made(str(lora))
    assert (asked.compile, plain.compile) == (True, False)
    assert counted() - began == 5
    assert np.abs(fast - slow).max() <= 1
    assert np.abs(stronger - slow).max() > 8
