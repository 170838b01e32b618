"""Rebuild the embedded base from nothing: `python -m workshop.toyland.pretrain --out DIR`.

Four stages, each seeded, each going on where it was stopped:

    tokenizers    words of the world and of the recipes; any other text falls back to letters
    autoencoder   pixels to 4 px latents, on canvases of every arrangement
    text          T5 and CLIP learn to read the captions: what is said of which panel; then frozen
    transformer   rectified flow on canvases, with captions that leave things out

DIR becomes a folder in the layout of FLUX.1-dev. DIR/work holds checkpoints and logs, and can be
deleted in the end; while it is there, the command goes on where it stopped, also with more
`--steps` than before.
"""
