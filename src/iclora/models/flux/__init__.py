"""The FLUX.1 family."""
