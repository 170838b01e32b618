"""Errors that mean too little memory."""

from __future__ import annotations

import pytest

from iclora.jobs.memory import less_memory, out_of_memory
from iclora.settings import GenerateSettings, RunSettings


def test_out_of_memory_is_known_by_its_type_and_other_errors_are_not_taken_for_it():
    class OutOfMemoryError(RuntimeError):
        pass

    assert out_of_memory(OutOfMemoryError())
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def test_torchs_own_allocator_says_what_is_recognised():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_only_settings_that_a_verb_has_are_advised():
    assert "`vram`" in less_memory(RunSettings)
    assert "`vram`" not in less_memory(GenerateSettings)
    assert "`size`" in less_memory(GenerateSettings)
