"""Which panel the tokens of a canvas belong to."""

from __future__ import annotations

import numpy as np
import pytest

from iclora.errors import LayoutError
from iclora.sets.layout import Layout, token_mask
from iclora.sets.tokens import cells_of, token_owners


def test_every_token_of_a_panel_is_its_own():
    layout = Layout.of_rows([2, 1], 128, 96)
    owners = token_owners(layout)
    for panel, box in enumerate(layout.boxes):
        assert np.array_equal(owners == panel, token_mask(layout, [panel]))
        assert (owners[cells_of(box, 16)] == panel).all()


def test_a_token_in_a_gap_is_the_nearest_panels():
    layout = Layout.free([(0, 0, 64, 32), (0, 64, 64, 64)], 64, 128)
    rows = token_owners(layout)[:, 0]
    # Rows 2 and 3 lie between: one from each panel.
    assert rows.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_edges_off_the_grid_are_refused():
    with pytest.raises(LayoutError):
        token_owners(Layout.rows(3, 64, 100))
