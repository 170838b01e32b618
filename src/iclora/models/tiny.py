"""The base called "tiny": a random FLUX.1 of under a million parameters.

Its folder has FLUX.1-dev's layout, its classes and its token grid, so the loading code, the
trainer and the samplers run on it as they run on the real thing. Its pictures are noise.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from iclora.files import cache_home, digest, make_cache
from iclora.sets.recipe import load_recipe, recipe_names

__all__ = ["made_folder", "recipe_words", "tiny_folder", "tiny_vae", "unequal_norms", "write_tiny"]


def tiny_folder() -> Path:
    """The folder of the tiny FLUX.1; made on first use, in about a second."""
    return made_folder("tiny", write_tiny, Path(__file__))


def made_folder(name: str, write: Callable[[Path], None], source: Path) -> Path:
    """The folder of a base that is made here, in the cache of this user.

    Args:
        name: the base's.
        write: writes it into an empty folder, with the same bytes each time.
        source: the file that says how; another text of it makes another folder.
    """
    # What several bases are made of counts for each.
    sources = sorted({source, *Path(__file__).parent.glob("tiny*.py")})
    versions = (diffusers.__version__, transformers.__version__)
    key = digest(*(path.read_bytes() for path in sources), *versions)
    folder = cache_home() / f"{name}-{key[:12]}"
    if not folder.is_dir():
        work = Path(tempfile.mkdtemp(dir=make_cache(), prefix=f".{name}-"))
        try:
            write(work)
            work.rename(folder)
        except OSError:
            # Another process was faster; its folder has the same bytes.
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def write_tiny(folder: Path, *, guidance_embeds: bool = True, seed: int = 0) -> None:
    """Write a tiny random FLUX.1 in diffusers' layout; the same bytes for the same seed.

    Args:
        guidance_embeds: True as in -dev, False as in -schnell.
    """
    pieces, vocabulary = _t5_pieces(), _clip_vocabulary()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # In this order: each draws its weights from the one generator.
        transformer, vae = _transformer(guidance_embeds), tiny_vae()
        t5, clip = _t5(len(pieces)), _clip(vocabulary)
    pipeline = diffusers.FluxPipeline(
        scheduler=_scheduler(dynamic=guidance_embeds),
        vae=vae,
        transformer=transformer,
        text_encoder=clip,
        text_encoder_2=t5,
        tokenizer=transformers.CLIPTokenizer(vocabulary, merges=[], model_max_length=77),
        tokenizer_2=transformers.T5TokenizerFast(pieces, model_max_length=512),
    )
    for encoder in (clip, t5):
        # Else transformers writes no weights in any process of a group but the first.
        encoder.should_save_on_this_rank = lambda *_: True
    pipeline.save_pretrained(folder, safe_serialization=True)


def _transformer(guidance_embeds: bool) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(8, 12, 12),
    )


def tiny_vae() -> Any:
    """FLUX.1's VAE, in small."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 32),
        norm_num_groups=8,
        latent_channels=16,
        layers_per_block=1,
        sample_size=1024,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
    )


def _t5(pieces: int) -> Any:
    config = transformers.T5Config(
        vocab_size=pieces + 100,
        d_model=64,
        d_kv=32,
        d_ff=128,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        use_cache=False,
    )
    return transformers.T5EncoderModel(config)


def _clip(vocabulary: dict[str, int]) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=32,
        max_position_embeddings=77,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
    )
    return transformers.CLIPTextModel(config)


def _scheduler(dynamic: bool) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0 if dynamic else 1.0,
        use_dynamic_shifting=dynamic,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def unequal_norms(net: torch.nn.Module) -> None:
    """Draw the weights of norms: fresh ones are 1, so a pass that forgot them would do as well."""
    for name, parameter in net.named_parameters():
        if "norm" in name and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1, 0.2)


def recipe_words() -> str:
    """What the shipped recipes say, of which small vocabularies are made."""
    texts = [load_recipe(name) for name in recipe_names()]
    return " ".join(f"{recipe.instruction} {recipe.example}" for recipe in texts)


def _t5_pieces() -> list[tuple[str, float]]:
    """A unigram vocabulary: frequent pieces of the recipes' own words, and all printable ASCII."""
    words = re.findall(r"\S+", recipe_words())
    counts: Counter[str] = Counter()
    for word in words:
        marked = f"▁{word}"
        for start in range(len(marked)):
            counts.update(marked[start:end] for end in range(start + 2, len(marked) + 1))
    frequent = {piece: n for piece, n in counts.items() if n >= 4}
    total = sum(frequent.values())
    scored = [(p, math.log(n / total)) for p, n in sorted(frequent.items())]
    floor = math.log(1 / total) - 2
    singles = [("▁", floor), *((chr(code), floor) for code in range(33, 127))]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *singles, *scored]


def _clip_vocabulary() -> dict[str, int]:
    """Single bytes, alone and at a word's end, as in CLIP's own vocabulary before its merges."""
    # CLIP's byte alphabet: printable bytes stand for themselves, the others are moved up.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = (chr(256 + i) for i in range(256 - len(printable)))
    alphabet = [*(chr(b) for b in printable), *moved]
    tokens = [*alphabet, *(f"{c}</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}
