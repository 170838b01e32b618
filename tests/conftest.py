"""What several test files need: the tiny base, small datasets, the official sample set."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

# Imports make a million objects that stay, and each search for garbage would look at all of them.
gc.disable()
# Before any import of the hub's client: tests never reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Two processes of two threads on two cores wait for each other: threads spin, NumPy's too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that load parts of a few kilobytes wait for each other as well.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = Path(__file__).parents[1]
FLUX_DEV = ROOT / "src" / "iclora" / "models" / "flux" / "outlines" / "FLUX.1-dev"
OFFICIAL = Path(__file__).parents[2] / "shared" / "data" / "movie-shots.zip"
CAPTION = (
    "[MOVIE-SHOTS] A day at sea, [SCENE-1] <Ana> sails out, [SCENE-2] then <Ana> fishes, "
    "[SCENE-3] and <Ana> sails home."
)


# What a cut of the power would lose no test can see, and a disk takes milliseconds for each file.
os.fsync = lambda _: None


_FIRST = (
    # Toyland's judge draws 2,592 pictures to compare with.
    "/toyland/",
    "evaluate/test_knowledge.py",
    "metrics/test_judge.py",
    "cli/test_evaluating.py",
    "cli/test_making.py",
    # Processes are forked from one that imports everything first: one such for all of them.
    "serve/test_local.py",
    "serve/test_sharing.py",
    "serve/test_training.py",
    "train/test_workers.py",
    "cli/test_training.py",
    "vlm/test_local.py",
    "test_official_set.py",
    "flux/test_forward.py",
)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: those of an archive may hold the time, and then the processes
    that share the tests would collect different ones.
    """
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, or one process waits for the other at the end.

    Tests that share something costly stand together, so that one process alone makes it.
    """
    items.sort(key=lambda item: not any(part in item.path.as_posix() for part in _FIRST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let every test draw the same numbers, whichever tests its process ran before.

    Not from a seed that tests use themselves: what they draw twice would then be the same twice.
    """
    random.seed(241023775)
    np.random.seed(241023775)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(241023775)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    # Tests make little garbage, and pytest keeps all of its own.
    gc.set_threshold(10_000)


@pytest.fixture(scope="module", autouse=True)
def _spared():
    """What a file's tests imported and made for the session."""
    yield
    _spare_what_is_there()


def _spare_what_is_there() -> None:
    """Leave it out of every search for garbage; runs and sessions ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tiny base out of the user's cache; xdist's workers share one."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["ICLORA_CACHE"] = str(folder / "cache")


@pytest.fixture
def plots():
    """Plots are drawn in this test."""


@pytest.fixture(autouse=True)
def _no_plots(request, monkeypatch):
    """A plot takes as long as all steps of a short run."""
    room = sys.modules.get("iclora.train.folder")
    if room is not None and "plots" not in request.fixturenames:
        for name in ("plot_loss", "plot_validation"):
            monkeypatch.setattr(room, name, lambda *_: None)


def resting(name: str):
    """A base, float32 on the CPU, whose parts stay in memory when they are released.

    Dozens of runs on one base would load its text encoders dozens of times.
    """
    import torch

    from iclora.models import load_model

    torch.set_num_threads(1)
    model = load_model(name, device="cpu")
    model.rests = True
    return model


@pytest.fixture(scope="session")
def tiny():
    """The tiny random FLUX.1, float32 on the CPU."""
    return resting("tiny")


@pytest.fixture(scope="session")
def brief():
    """The tiny base with texts of at most 128 tokens in place of 512, nearly all of them padding:
    what a step of a test would spend its time on."""
    model = resting("tiny")
    model.max_text_tokens = 128
    return model


@pytest.fixture
def long_texts(tiny, monkeypatch):
    """Texts of as many tokens as FLUX.1 takes, also where `tiny` is `brief`."""
    monkeypatch.setattr(tiny, "max_text_tokens", 512)


@pytest.fixture(scope="session")
def brief_folder(tmp_path_factory) -> Path:
    """As `brief` for other processes; the examples of recipes fit as well."""
    from iclora.models.tiny import tiny_folder

    folder = tmp_path_factory.mktemp("brief") / "tiny"
    shutil.copytree(tiny_folder(), folder)
    path = folder / "tokenizer_2" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 192}))
    return folder


@pytest.fixture(scope="session")
def klein():
    """The tiny random FLUX.2 klein, float32 on the CPU. A test leaves no adapter in it."""
    return resting("tiny-klein")


@pytest.fixture(scope="session")
def zimage():
    """The tiny random Z-Image, float32 on the CPU. A test leaves no adapter in it."""
    return resting("tiny-zimage")


@pytest.fixture(scope="session")
def krea():
    """The tiny random Krea 2, float32 on the CPU. A test leaves no adapter in it."""
    return resting("tiny-krea")


@pytest.fixture(scope="session")
def qwen():
    """The tiny random Qwen-Image, float32 on the CPU. A test leaves no adapter in it."""
    return resting("tiny-qwen")


@pytest.fixture(scope="session")
def toyland():
    """The small base that ships, float32 on the CPU. A test leaves no adapter in it."""
    return resting("toyland")


@pytest.fixture(scope="session")
def processor(tmp_path_factory):
    """What prepares words and pictures for a captioner like toyland's; it knows few words whole."""
    import transformers

    from workshop.toyland.pretrain.lessons import make_processor
    from workshop.toyland.pretrain.stage import Settings

    folder = tmp_path_factory.mktemp("processor")
    make_processor(Settings(captioner_texts=5)).save_pretrained(folder)
    return transformers.AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """The settings alone of a FLUX.1 of 3 double and 4 single blocks, 128 wide."""
    folder = tmp_path_factory.mktemp("small") / "base"
    shutil.copytree(FLUX_DEV, folder)
    changes = {
        "transformer/config.json": {
            "num_layers": 3,
            "num_single_layers": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "axes_dims_rope": [16, 24, 24],
            "joint_attention_dim": 64,
            "pooled_projection_dim": 32,
        },
        "tokenizer_2/tokenizer_config.json": {"model_max_length": 128},
        "text_encoder/config.json": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
        },
        "text_encoder_2/config.json": {
            "d_model": 64,
            "d_kv": 32,
            "d_ff": 128,
            "num_heads": 2,
            "num_layers": 1,
        },
        "vae/config.json": {
            "block_out_channels": [2, 2, 4, 4],
            "norm_num_groups": 2,
            "layers_per_block": 1,
        },
    }
    for name, change in changes.items():
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


@pytest.fixture
def clean(tiny):
    """The tiny base without any adapter, before and after the test."""
    from iclora.adapter import remove

    remove(tiny)
    yield tiny
    remove(tiny)


@pytest.fixture
def counted(monkeypatch):
    """Tracing as for a compilation, without C++; how many graphs there are so far."""
    import torch

    from iclora.models.passes import compiled

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled.cache_clear()
    torch._dynamo.reset()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled.cache_clear()
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def official() -> Path:
    if not OFFICIAL.exists():
        pytest.skip("the official sample set is not on this machine")
    return OFFICIAL


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture of random colours: neighbours differ little, two seeds a lot."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def _datasets(tmp_path_factory) -> Callable[[int, tuple[int, int]], Path]:
    """Datasets by their size, each drawn once."""
    return cache(lambda sets, size: write_dataset(tmp_path_factory.mktemp("sets"), sets, size))


@pytest.fixture
def make_dataset(tmp_path: Path, _datasets) -> Callable[..., Path]:
    """Write a storyboard dataset: a folder per set, three panels each."""

    def make(sets: int = 3, size: tuple[int, int] = (64, 32), name: str = "data") -> Path:
        return shutil.copytree(_datasets(sets, size), tmp_path / name, copy_function=shutil.copy)

    return make


def write_dataset(root: Path, sets: int = 3, size: tuple[int, int] = (64, 32)) -> Path:
    """Write a storyboard dataset: a folder per set, three panels each."""
    for i in range(sets):
        folder = root / f"{i + 1:04d}"
        folder.mkdir(parents=True)
        for panel in range(3):
            picture(*size, seed=10 * i + panel).save(folder / f"{panel + 1}.png")
        (folder / "caption.txt").write_text(CAPTION.replace("Ana", f"Ana{i}"))
    (root / "iclora.toml").write_text('recipe = "film-storyboard"\n')
    return root


@pytest.fixture
def lora(clean, tmp_path) -> Path:
    """An adapter file for the tiny base that changes what it makes; its canvas is 96x192."""
    import torch

    from iclora.adapter import Adapter, AdapterInfo, attach, remove
    from iclora.sets.recipe import load_recipe

    parameters = attach(clean, rank=2, alpha=2, targets="all", seed=0)
    rng = torch.Generator().manual_seed(0)
    weights = {k: torch.randn(v.shape, generator=rng) * 0.2 for k, v in parameters.items()}
    remove(clean)
    recipe = load_recipe("film-storyboard")
    info = AdapterInfo(
        base="tiny",
        family="flux",
        rank=2,
        alpha=2,
        targets="all",
        steps=1,
        recipe=recipe,
        layout=recipe.canvas.resized(96, 192, 16).to_json(),
    )
    path = tmp_path / "run" / "adapter.safetensors"
    Adapter(weights, info).save(path, torch.float32)
    return path


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory):
    """A random DINOv2 in transformers' layout."""
    import torch
    import transformers

    where = tmp_path_factory.mktemp("dino")
    torch.manual_seed(1)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(where)
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}
    ).save_pretrained(where)
    return where


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A random CLIP in transformers' layout that reads 40 tokens, a letter each."""
    import torch
    import transformers

    where = tmp_path_factory.mktemp("clip")
    signs = [chr(n) for n in range(33, 127)]
    pieces = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=40)
    end = vocab["<|endoftext|>"]
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    torch.manual_seed(2)
    config = transformers.CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(vocab),
            "max_position_embeddings": 40,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(where)
    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(where)
    return where


FAST = {
    "base": "tiny",
    "steps": 6,
    "batch": 2,
    "rank": 4,
    "alpha": 6,
    "targets": "attention",
    "resolutions": (64, 96),
    "save_every": 2,
    "preview_every": 0,
    "gradient_checkpointing": False,
    "save_dtype": "fp32",
    "trackers": (),
}


@pytest.fixture
def config(make_dataset, tmp_path):
    """Settings of a short run on a small dataset."""
    from iclora.settings import TrainSettings, read_settings

    data = make_dataset()

    def make(out="run", **more):
        where = {"data": str(data), "out": str(tmp_path / out)}
        return read_settings(TrainSettings, None, {**FAST, **where, **more})

    return make


def after_step(step, act):
    """Progress that does something right after an optimizer step."""
    from iclora.progress import Progress

    def show(event):
        if event.what == "training" and event.done == step:
            act()

    return Progress(show)


def stop_after(step):
    """What Ctrl-C does, right after a step."""
    return after_step(step, lambda: os.kill(os.getpid(), signal.SIGINT))


def encoded(model, settings, folder, warn=lambda _: None):
    """The sets of a run as its objective takes them."""
    from iclora.progress import Progress
    from iclora.sets.check import accept, check_dataset
    from iclora.sets.dataset import open_dataset
    from iclora.train.cache import Encoded, encode
    from iclora.train.workers import Workers

    dataset = open_dataset(settings.data)
    reports = check_dataset(dataset, resolutions=settings.resolutions, grid=model.grid)
    sets, empty = encode(
        model,
        accept(dataset, reports),
        folder,
        workers=Workers(model.device),
        progress=Progress(),
        warn=warn,
        read=lambda caption: dataset.recipe.texts(caption, settings.text),
        encoding=settings.encode,
    )
    usual = tuple(number - 1 for number in dataset.recipe.usually_known)
    return Encoded(tuple(sets), empty, usual)
