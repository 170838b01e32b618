"""`python -m workshop.toyland.pretrain`: all stages, one after the other."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import workshop.toyland.pretrain as package
from workshop.toyland.pretrain.autoencoder import train_vae
from workshop.toyland.pretrain.canvases import encode_canvases
from workshop.toyland.pretrain.captioner import train_captioner
from workshop.toyland.pretrain.export import warm_start, write_base
from workshop.toyland.pretrain.painter import train_flow
from workshop.toyland.pretrain.readers import train_text
from workshop.toyland.pretrain.stage import Log, Settings
from workshop.toyland.pretrain.tokenizers import load_tokenizers

STAGES = ("autoencoder", "canvases", "text", "captioner")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(package.__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the base")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--stage", choices=STAGES, help="train this stage alone")
    parser.add_argument(
        "--steps",
        type=int,
        help="of the transformer, or of the captioner's answers with --stage captioner",
    )
    parser.add_argument(
        "--warm",
        type=Path,
        help="folder of a base, or with --stage captioner of a captioner, to go "
        "on from, in place of its kept work/",
    )
    parser.add_argument("--device", type=torch.device, default=Settings.device)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = Settings(seed=args.seed, device=args.device)
    if args.steps:
        steps = "captioner_steps" if args.stage == "captioner" else "flow_steps"
        settings = replace(settings, **{steps: args.steps})
    work = args.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    log = Log(work / "log.jsonl")
    if args.stage == "captioner":
        train_captioner(settings, work, log, args.out / "captioner", args.warm)
        return
    if args.warm:
        warm_start(args.warm, work)
    # The two first stages do not need each other: two machines, or cores, can share them.
    vae = None if args.stage == "text" else train_vae(settings, work, log)
    data = encode_canvases(settings, work, vae, log) if args.stage in (None, "canvases") else {}
    if args.stage in ("autoencoder", "canvases"):
        return
    tokenizers = load_tokenizers(settings, work)
    readers = train_text(settings, work, log, tokenizers)
    if vae is None:
        return
    train_flow(
        settings,
        work,
        log,
        readers,
        tokenizers,
        data,
        lambda model: write_base(args.out, model, vae, readers, tokenizers),
    )


if __name__ == "__main__":
    main()
