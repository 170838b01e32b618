"""LoRA weights: attached, applied, saved and loaded."""
