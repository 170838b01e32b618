"""The embedded base: a drawn world with known truth, a FLUX.1 trained on it, and its judge."""
