"""Toyland's world painted in FLUX.2 klein's layout: `python -m workshop.toyland.klein --out DIR`.

The world, its captions, the autoencoder's weights and a step's draw are those of the FLUX.1 that
ships (`workshop.toyland.pretrain`). What is klein's own is trained here, each stage seeded, each
going on where it was stopped:

    words     a byte-level BPE and Qwen3's chat template
    reader    a Qwen3 learns to read the captions; its states 9, 18 and 27 are the text; then frozen
    painter   a FLUX.2 begins as FLUX.1's toyland, translated layer by layer, and learns to paint
              from it and from the world, at last from the world alone

DIR becomes a folder in the layout of FLUX.2-klein-base-4B. DIR/work holds checkpoints and logs.
So it is a second architecture, not a base that learned everything by itself.
"""
