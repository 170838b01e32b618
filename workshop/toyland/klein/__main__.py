"""`python -m workshop.toyland.klein`: all stages, one after the other."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
from torch import Tensor

import workshop.toyland.klein as package
from iclora.toyland.shipped import base_folder
from workshop.toyland.klein.examples import begin_translated
from workshop.toyland.klein.export import write_klein
from workshop.toyland.klein.painter import Course, Shown, averaged, train_painter
from workshop.toyland.klein.reader import read_ids, train_reader
from workshop.toyland.klein.words import load_words
from workshop.toyland.pretrain.canvases import encode_canvases
from workshop.toyland.pretrain.stage import Log, Settings

STAGES = ("canvases", "reader", "export")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(package.__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Course.steps, help="of the painter")
    parser.add_argument("--shown", type=int, default=Course.shown_steps, help="FLUX.1 helps till")
    parser.add_argument("--reader-steps", type=int, default=1200)
    parser.add_argument("--canvases", type=int, default=12_000, help="different ones it is shown")
    parser.add_argument("--examples", type=int, default=32, help="batches the painter is fitted on")
    parser.add_argument(
        "--stage", choices=STAGES, help="this stage alone; export writes the last checkpoint's base"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = args.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    log = Log(work / "log.jsonl")
    tokenizer = load_words(work, args.seed)
    if args.stage != "canvases":
        reader = train_reader(
            work, log, tokenizer, seed=args.seed, steps=args.reader_steps, batch=32, rate=2e-3
        )
    if args.stage == "reader":
        return
    flux = diffusers.FluxPipeline.from_pretrained(base_folder(), dtype=torch.float32)
    if args.stage == "export":
        write_klein(args.out, averaged(work), flux.vae, reader, tokenizer)
        return
    drawn = replace(Settings(seed=args.seed + 11), flow_canvases=args.canvases)
    data = encode_canvases(drawn, work, flux.vae, log)
    if args.stage == "canvases":
        return

    @torch.no_grad()
    def read(texts: list[str]) -> Tensor:
        ids, mask, _ = read_ids(tokenizer, texts)
        states: Tensor = reader(ids, mask)
        return states.float()

    shown = Shown(flux)
    begin_translated(
        work, log, shown, reader, tokenizer, data, seed=args.seed, batches=args.examples
    )
    course = Course(seed=args.seed, steps=args.steps, shown_steps=args.shown)
    net = train_painter(course, work, log, read, shown, data)
    write_klein(args.out, net, flux.vae, reader, tokenizer)


if __name__ == "__main__":
    main()
