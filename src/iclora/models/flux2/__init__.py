"""The FLUX.2 family."""
