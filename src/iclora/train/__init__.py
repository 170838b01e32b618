"""Tuning a LoRA: the run, its loop, its folder, its plan."""
