"""Vision-language models behind one contract: they write captions and prompts, and judge sets."""

from iclora.vlm.base import Answer, Ask, Captioner
from iclora.vlm.registry import load_captioner

__all__ = ["Answer", "Ask", "Captioner", "load_captioner"]
