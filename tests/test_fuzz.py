"""Other people's input at random: every door reads it or raises an error of ours, and soon.

`python -m pytest -m fuzz` runs for long: $ICLORA_FUZZ_CASES at each door, 20,000 if nothing is
said. What fails is named by its seed, which goes into KEPT once it is mended.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import re
import resource
import shutil
import time
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from iclora.adapter.file import Adapter
from iclora.adapter.formats import fit
from iclora.errors import IcloraError, SettingsError
from iclora.evaluate.metrics.judge import read_score
from iclora.files import digest
from iclora.files.documents import parse_json, parse_toml
from iclora.making.made import GeneratedSet
from iclora.making.request import Request
from iclora.making.words import Story, read_prompts
from iclora.models import load_model
from iclora.models.flux.names import flux_names
from iclora.models.names import Names
from iclora.sets.caption import JointCaption, estimate_tokens, has_markers
from iclora.sets.check import check_dataset
from iclora.sets.dataset import LAYOUT_KEY, open_dataset
from iclora.sets.images import encode_png, png_text, read_image
from iclora.sets.layout import Layout
from iclora.sets.recipe import load_recipe, read_recipe
from iclora.settings import PlanSettings, TrainSettings, read_settings
from iclora.train.aitoolkit import import_run
from iclora.vlm.asking import ask_for_prompt, read_answer
from iclora.vlm.complaints import complaint, is_about_form
from iclora.vlm.openai import answer_in
from iclora.vlm.wire import Reply, Unreadable, _parsed, _pause, shown
from tests.conftest import CAPTION, FLUX_DEV, picture

STORY, FOUR = load_recipe("film-storyboard"), load_recipe("portrait-photography")
PER_SEED = 10
SLOWEST = 5.0
"""CPU seconds of one case; most take a thousandth."""
KEPT: dict[str, tuple[int, ...]] = {"recipes": (1041,)}
"""Seeds by door that once raised something else, or took too long."""

_NUMBERS = """0 -1 1 2 3 255 65535 4294967296 -9223372036854775809 1e300 1e999 -1e-320 nan inf
NaN Infinity 0x10 1_000 007 +5 ٣ ² 99999999999999999999999 true null 3.0 -0.0"""
_WORDS = r"""[SCENE-1] [SCENE-2] [SCENE-3] [MOVIE-SHOTS] [TOP-LEFT] [scene-1] [] [[ ]] Scene 1: 2.
(3) - ** ``` <think> </think> <|im_end|> {"overview": "panels": } { [ ] , : " ' \ \u0000 \ud800 é
一 😀 <b> &lt;b&gt; &#x110000; --ar <lora:x:1> # // ; = [train] a word or two ../ C:\ / ~ ~nobody
%s {0}"""
NUMBERS = (*_NUMBERS.split(), "9" * 500)
SIGNS = ("\n", "\r\n", "\t", "\0", "\x1b[31m", "\u202e", "\ufeff", '"""', "'''", "\ud800", "\u2028")
PIECES = (*_WORDS.split(), *SIGNS, " ", CAPTION, "[" * 300, "{" * 300, "a" * 300, "\n" * 50)
ROLES = tuple(
    f"{kind}{part}"
    for kind, parts in {
        "lora_": "A.weight B.weight A.x.weight down.weight up.weight B.bias",
        "hada_": "w1_a w1_b w2_a w2_b",
        "lokr_": "w1 w1_a w1_b w2 w2_a w2_b",
        "": "alpha lora.up.weight dora_scale weight x",
    }.items()
    for part in parts.split()
)
ODD_NAMES = (
    "../x.png", "/x.png", "C:\\x.png", "a\\b.png", ".x.png", "metadata.jsonl", "metadata.csv",
    "1.png", "0/1.txt", "0/1.json", "0/request.json", "0/iclora.toml", "é.png", "e\u0301.png",
    "x.heic", "0.txt", "0.png", "a\x01.png", "CON.png", "0.zip", "0/caption.json", "0.caption",
)  # fmt: skip


# -- spoiling -----------------------------------------------------------------------------------


def spoilt(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some of them changed, moved, doubled, left out or put in."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at, size = rng.randint(0, len(found)), rng.choice((1, 1, 2, 4, 8, rng.randint(0, 200)))
        way = rng.randrange(8)
        if way == 0 and found:
            found[at - 1] ^= 1 << rng.randrange(8)
        elif way == 1:
            found[at : at + size] = rng.randbytes(size)
        elif way == 2:
            del found[at : at + size]
        elif way == 3:
            found[at:at] = found[at : at + size]
        elif way == 4:
            found[at : at + size] = b"\0" * size
        elif way == 5:
            found[at:at] = rng.choice(PIECES).encode("utf-8", "surrogatepass")
        elif way == 6:
            value = rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**63, rng.getrandbits(32)))
            width = rng.choice((2, 4, 8))
            found[at : at + width] = (value % 256**width).to_bytes(
                width, rng.choice(("big", "little"))
            )
        else:
            del found[rng.randint(at // 2, len(found)) :]
    return bytes(found)


def spoilt_text(rng: random.Random, text: str) -> str:
    """A text with other numbers, words and lines, or other bytes."""
    way = rng.randrange(4)
    if way == 0:
        return spoilt(rng, text.encode("utf-8", "replace")).decode(
            "utf-8", rng.choice(("replace", "ignore"))
        )
    if way == 1:
        found = list(re.finditer(r"-?\d+(?:\.\d+)?", text))
    elif way == 2:
        found = list(re.finditer(r"\"[^\"\n]*\"|\w+|\[[^\[\]]*\]", text))
    else:
        found = list(re.finditer(r"[^\n]*\n", text))
    for match in reversed(rng.sample(found, min(len(found), rng.choice((1, 1, 2, 5))))):
        put = rng.choice((*NUMBERS, *PIECES, "", "[]", "{}", '""', match[0] * 2, match[0].upper()))
        text = text[: match.start()] + put + text[match.end() :]
    return text


def spoilt_value(rng: random.Random, value: object) -> object:
    """A JSON value with some part of it replaced, left out or added."""
    odd = (None, True, 0, -1, 2**70, 1e300, "", "x", "\0", "../x", [], {}, [[]], {"a": 1}, "1", 2.5)
    if isinstance(value, dict) and value and rng.random() < 0.85:
        found, key = dict(value), rng.choice(sorted(value))
        way = rng.randrange(6)
        if way == 0:
            del found[key]
        elif way == 1:
            found[rng.choice(PIECES)] = rng.choice(odd)
        else:
            found[key] = spoilt_value(rng, found[key])
        return found
    if isinstance(value, list) and value and rng.random() < 0.8:
        rows, at = list(value), rng.randrange(len(value))
        way = rng.randrange(4)
        if way == 0:
            del rows[at]
        elif way == 1:
            rows.insert(at, rng.choice(rows))
        else:
            rows[at] = spoilt_value(rng, rows[at])
        return rows
    return rng.choice((*odd, rng.choice(PIECES), rng.randint(-100, 10_000)))


def spoilt_document(rng: random.Random, value: object, write=json.dumps) -> str:
    """JSON or TOML of a value that is hardly spoilt, or its text is."""
    if rng.random() < 0.3:
        return spoilt_text(rng, write(value))
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        value = spoilt_value(rng, value)
    return write(value)


def toml(value: object) -> str:
    """TOML of a value, which has no null."""

    def bare(inner):
        if isinstance(inner, dict):
            return {key: bare(held) for key, held in inner.items() if held is not None}
        return [bare(x) for x in inner if x is not None] if isinstance(inner, list) else inner

    return tomli_w.dumps(bare(value) if isinstance(value, dict) else {"x": str(value)})


def mixed(rng: random.Random) -> str:
    return "".join(rng.choice((*PIECES, " ", " ")) for _ in range(rng.randint(0, 25)))


@functools.cache
def pictures() -> dict[str, bytes]:
    """Small pictures of each kind that is read, by an ending of it."""
    found = {}
    small = picture(24, 16, 3)
    ways = {
        "a.png": (small, "PNG", {}),
        "b.png": (small.convert("RGBA"), "PNG", {}),
        "c.png": (small.quantize(4), "PNG", {}),
        "d.png": (Image.new("I;16", (9, 7), 40_000), "PNG", {}),
        "a.jpg": (
            small,
            "JPEG",
            {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0"},
        ),
        "b.jpg": (small.convert("CMYK"), "JPEG", {"progressive": True}),
        "c.jpg": (small.convert("L"), "JPEG", {"icc_profile": b"x" * 200}),
        "a.webp": (small, "WEBP", {"lossless": True}),
        "b.webp": (small, "WEBP", {"quality": 60}),
        "a.tif": (small, "TIFF", {"compression": "tiff_lzw"}),
        "b.tif": (small, "TIFF", {"save_all": True, "append_images": [small]}),
        "a.bmp": (small, "BMP", {}),
    }
    for name, (image, form, more) in ways.items():
        buffer = io.BytesIO()
        image.save(buffer, form, **more)
        found[name] = buffer.getvalue()
    return found


# -- doors --------------------------------------------------------------------------------------


def captions(rng: random.Random, _: Path) -> None:
    text = spoilt_text(rng, CAPTION) if rng.random() < 0.5 else mixed(rng)
    for recipe in (STORY, FOUR):
        has_markers(text, recipe.markers)
        with suppress(IcloraError):
            recipe.prompt(text)
        with suppress(IcloraError):
            assert recipe.parse(text).render() == text
        with suppress(IcloraError):
            parts = [mixed(rng) for _ in recipe.markers]
            JointCaption.join(text, parts, recipe.markers, recipe.prefix)


def answers(rng: random.Random, _: Path) -> None:
    good = {"overview": "A day", "panels": ["she sails", "she fishes", "she sleeps"]}
    text = json.dumps(spoilt_value(rng, good)) if rng.random() < 0.3 else mixed(rng)
    text = spoilt_text(rng, text) if rng.random() < 0.5 else text
    read_score(text)
    caption = read_answer(text, STORY, estimate_tokens, 512).render()
    assert STORY.parse(caption).render() == caption
    caption.encode()  # It is written into a file.
    assert not re.search(r"\*\*|<\||</s>|&lt;|[\x00-\x1f\x7f]|```", caption)


def bodies(rng: random.Random, _: Path) -> None:
    message = {"content": mixed(rng), "refusal": None, "reasoning_content": mixed(rng)}
    good = {
        "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        "error": {"message": "busy", "code": 429, "type": "x"},
    }
    value = good
    for _ in range(rng.randint(1, 4)):
        value = spoilt_value(rng, value)
    text = json.dumps(value)
    text = spoilt_text(rng, text) if rng.random() < 0.3 else text
    try:
        data = _parsed(text)
    except Unreadable:
        return
    reply = Reply(rng.choice((200, 302, 400, 404, 429, 500)), data, text[:2000])
    answer = answer_in(data, ask_for_prompt(STORY, "a day", 512))
    assert answer is None or isinstance(answer.text, str)
    assert answer is None or isinstance(answer.read + answer.written, int)
    assert complaint(reply, "http://host", "m", 3).problem.isprintable()
    is_about_form(reply)
    _pause(rng.choice((*NUMBERS, mixed(rng))))
    shown(f"http://{mixed(rng)}")


def some_files(rng: random.Random) -> dict[str, bytes]:
    """Files of a small dataset, some of them spoilt, under names of all sorts."""
    found = {"iclora.toml": b'recipe = "film-storyboard"\n'}
    for number in range(rng.randint(1, 2)):
        for panel in (1, 2, 3):
            name, data = rng.choice(sorted(pictures().items()))
            found[f"{number}/{panel}{name[1:]}"] = data
        found[f"{number}/caption.txt"] = CAPTION.encode()
    for name in rng.sample(ODD_NAMES, rng.randint(0, 4)):
        found[name] = rng.choice(
            (
                *pictures().values(),
                mixed(rng).encode("utf-8", "replace"),
                b'{"caption": "[SCENE-1]"}',
            )
        )
    for name in list(found):
        if rng.random() < 0.2:
            found[name] = spoilt(rng, found[name])
    return found


def read_all(path: Path, rng: random.Random) -> None:
    dataset = open_dataset(path, rng.choice((None, None, "film-storyboard", "visual-identity")))
    for report in check_dataset(dataset):
        if report.set:
            report.set.load()
    _ = [str(problem) for problem in dataset.problems]


def zips(rng: random.Random, place: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in some_files(rng).items():
            how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            for _ in range(rng.choice((1,) * 20 + (2,))):
                archive.writestr(name, data, how)
    data = buffer.getvalue()
    (place / "a.zip").write_bytes(spoilt(rng, data) if rng.random() < 0.7 else data)
    read_all(place / "a.zip", rng)


def folders(rng: random.Random, place: Path) -> None:
    root = place / "folder"
    shutil.rmtree(root, ignore_errors=True)
    for name, data in some_files(rng).items():
        path = root / name.removeprefix("/").replace("../", "up-")
        with suppress(OSError):  # a file where a folder should be
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            if rng.random() < 0.05:
                path.with_name(path.name + ".png").symlink_to(rng.choice((path, root, "/", "x")))
    read_all(root, rng)


def images(rng: random.Random, _: Path) -> None:
    name, data = rng.choice(sorted(pictures().items()))
    data = spoilt(rng, data)
    png_text(data, LAYOUT_KEY)
    image = read_image(data, name, rng.choice(("white", "auto")))
    assert image.mode == "RGB"


def layouts(rng: random.Random, place: Path) -> None:
    good = STORY.canvas.resized(48, 96, 16).to_json()
    text = spoilt_document(rng, good)
    if rng.random() < 0.05:
        # In the picture that it is written into.
        (place / "forged").mkdir(exist_ok=True)
        with suppress(ValueError):  # no text of a PNG
            data = encode_png(picture(48, 96), {LAYOUT_KEY: text.replace("\0", "")})
            (place / "forged" / "0001.png").write_bytes(data)
            (place / "forged" / "0001.txt").write_text(CAPTION)
            list(check_dataset(open_dataset(place / "forged", "film-storyboard")))
    layout = Layout.from_json(parse_json(text, "layout", SettingsError))
    layout.fit(layout.sizes, 4096, 16)


def recipes(rng: random.Random, _: Path) -> None:
    good = rng.choice((STORY, FOUR)).model_dump(mode="json", exclude_defaults=True)
    read_recipe(spoilt_document(rng, good, toml), "x").canvas.sizes  # noqa: B018 (a property)


def runs(rng: random.Random, place: Path) -> None:
    whole = TrainSettings.model_construct().model_dump(mode="json", exclude_none=True)
    rows = {k: v for k, v in whole.items() if rng.random() < 0.3}
    good = {"train": {"data": "d", "out": "o", "base": "tiny", **rows}}
    text = spoilt_document(rng, good, toml)
    (place / "run.toml").write_bytes(text.encode("utf-8", "replace"))
    read_settings(rng.choice((TrainSettings, PlanSettings)), place / "run.toml", {})


def documents(rng: random.Random, _: Path) -> None:
    text = mixed(rng) if rng.random() < 0.5 else spoilt_text(rng, '{"a": [1, 2.5, {"b": "c"}]}')
    data = spoilt(rng, text.encode("utf-8", "replace"))
    with suppress(IcloraError):
        parse_json(data, "x", SettingsError)
    parse_toml(data, "x", SettingsError)


PREFIXES = ("transformer.", "lora_unet_", "", "base_model.model.", "text_encoder.", "lycoris_")
TYPES = (torch.float32, torch.float16, torch.float8_e4m3fn, torch.int64)
MODULES = ("a.b", "img_in", "double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q")


@functools.cache
def small_names() -> Names:
    """The names of a FLUX.1 of one block of each kind, without a base."""
    both = ("to_q", "to_k", "to_v")
    double = [f"transformer_blocks.0.attn.{name}" for name in (*both, "add_q_proj", "to_out.0")]
    single = [f"single_transformer_blocks.0.attn.{name}" for name in both]
    return flux_names(dict.fromkeys([*double, *single, "x_embedder"], (8, 8)))


def adapters(rng: random.Random, place: Path) -> None:
    raw = {}
    for _ in range(rng.randint(1, 5)):
        key = f"{rng.choice(PREFIXES)}{rng.choice(MODULES)}.{rng.choice(ROLES)}"
        shape = [rng.choice((0, 1, 2, 4, 8)) for _ in range(rng.choice((2, 2, 2, 0, 1, 4)))]
        raw[key] = torch.ones(shape).to(rng.choice(TYPES))
    if rng.random() < 0.5:
        raw = {f"{PREFIXES[0]}{MODULES[3]}.{role}": torch.ones(8, 8) for role in ROLES[:2]}
    about = json.dumps(spoilt_value(rng, {"lora_alpha": 4, "r": 8, "alpha_pattern": {"a": 1}}))
    info = json.dumps(spoilt_value(rng, {"rank": 8, "recipe": {}, "layout": {}, "base": "tiny"}))
    header = rng.choice(({}, {"lora_adapter_metadata": about}, {"iclora": info}))
    data = save(raw, header)
    path = place / rng.choice(("a.safetensors", "adapter_model.safetensors"))
    path.write_bytes(spoilt(rng, data) if rng.random() < 0.5 else data)
    (place / "adapter_config.json").write_text(about)
    fit(Adapter.load(path).weights, small_names(), "tiny")


def requests(rng: random.Random, place: Path) -> None:
    layout = STORY.canvas.resized(48, 96, 16)
    good = Request(
        base="tiny", base_fingerprint="x", device="cpu", dtype="fp32", recipe="film-storyboard",
        prompt=CAPTION, layout=layout, seeds=(1, 2, 3), steps=2, guidance=3.5,
    ).model_dump(mode="json")  # fmt: skip
    given = read_image(pictures()["a.png"], "x")
    good["given"] = {"1": {"file": "panel-1.png", "sha256": digest(given.tobytes())}}
    text = spoilt_document(rng, good)
    (place / "request.json").write_bytes(text.encode("utf-8", "replace"))
    for name in ("panel-1", "panel-2", "panel-3", "composite"):
        (place / f"{name}.png").write_bytes(pictures()["a.png"])
    latents = json.dumps(spoilt_value(rng, {"vae": "x", "pixels": {"panel-1": "x"}}))
    data = save({"panel-1": torch.ones(1, 2, 3)}, {"iclora": latents})
    (place / "latents.safetensors").write_bytes(spoilt(rng, data) if rng.random() < 0.5 else data)
    with suppress(IcloraError):
        Request.load(place / "request.json")
    GeneratedSet.load(place)


def prompts(rng: random.Random, place: Path) -> None:
    lines = "\n".join(rng.choice((CAPTION, "1. a", "2) b", mixed(rng))) for _ in range(5))
    (place / "a.txt").write_bytes(spoilt_text(rng, lines).encode("utf-8", "replace"))
    with suppress(IcloraError):
        read_prompts(place / "a.txt")
    Story.read(place / "a.txt")


BASE_FILES = (
    "model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json",
    "text_encoder_2/config.json", "tokenizer_2/tokenizer_config.json", "scheduler/config.json",
)  # fmt: skip


def bases(rng: random.Random, place: Path) -> None:
    root = place / "base"
    if not root.is_dir():
        shutil.copytree(FLUX_DEV, root)
    name = rng.choice([name for name in BASE_FILES if (root / name).is_file()])
    good = (root / name).read_bytes()
    sizes = {"num_layers": 1, "num_single_layers": 1}
    found = json.loads(good) | (sizes if name.startswith("transformer") else {})
    try:
        (root / name).write_text(spoilt_document(rng, found), "utf-8", "replace")
        model = load_model(str(root), "cpu", weights=False)
        if name.startswith("transformer"):
            _ = model.names
    finally:
        (root / name).write_bytes(good)


def configurations(rng: random.Random, place: Path) -> None:
    process = {
        "type": "sd_trainer", "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "datasets": [{"folder_path": "d", "caption_ext": "txt", "resolution": [512, 768]}],
        "train": {"batch_size": 1, "steps": 2000, "lr": 1e-4, "dtype": "bf16", "ema_config": {}},
        "model": {"name_or_path": "x/FLUX.1-dev", "is_flux": True, "quantize": True},
    }  # fmt: skip
    good = {"job": "extension", "config": {"name": "a", "process": [process]}}
    (place / "run.yml").write_text(spoilt_document(rng, good), "utf-8", "replace")
    import_run(place / "run.yml", recipe="film-storyboard")


DOORS = (
    captions, answers, bodies, zips, folders, images, layouts, recipes, runs, documents, adapters,
    requests, prompts, bases, configurations,
)  # fmt: skip


# -- runs ---------------------------------------------------------------------------------------


def passes(door, seed: int, place: Path, cases: int = PER_SEED) -> None:
    """Run a door over cases of one seed. Raises: whatever it raises that is no error of ours."""
    rng = random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it reads all the same.
        for _ in range(cases):
            began = time.process_time()
            with suppress(IcloraError):
                door(rng, place)
            assert time.process_time() - began < SLOWEST


def run(door, cases: int, place: Path, **how) -> None:
    @settings(
        max_examples=max(1, cases // PER_SEED),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **how,
    )
    @given(st.integers(0, 2**32 - 1))
    def search(seed):
        passes(door, seed, place)

    search()


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_no_input_raises_anything_but_an_error_of_ours(door, tmp_path):
    for seed in KEPT.get(door.__name__, ()):
        passes(door, seed, tmp_path)
    slow = door in (zips, folders, requests)
    cases = 30 if door is bases else 60 if slow else 150
    run(door, cases, tmp_path, derandomize=True, database=None)


@pytest.mark.fuzz
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_no_input_of_a_long_run_raises_anything_but_an_error_of_ours(door, tmp_path):
    cases = int(os.environ.get("ICLORA_FUZZ_CASES", "20000"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    run(door, cases, tmp_path, derandomize=False, print_blob=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(f"{door.__name__}: {cases} cases, {time.process_time() - began:.0f} CPU s, +{grown} MB")
    assert grown < 2000
