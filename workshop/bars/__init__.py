"""How well bars are found: sheets of pictures joined at random, with and without bars, measured.

    python -m workshop.bars --sheets 600 [--photos SETS.zip] [--kept FOLDER]
    python -m workshop.bars --kinds [--sheets 25] [--photos SETS.zip]
    python -m workshop.bars --comics --sheets 60 [--photos SETS.zip]
    python -m workshop.bars --toyland 36

A sheet's true boxes are known, so that it shows what is trained of its gutters, borders, frames,
round corners and captions, whether `check` says so, and what is lost of the pictures.
"""

from workshop.bars.sheets import make_sheet

__all__ = ["make_sheet"]
