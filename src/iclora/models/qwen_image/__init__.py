"""The Qwen-Image family."""
