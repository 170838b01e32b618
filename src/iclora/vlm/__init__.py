"""Who writes the joint captions: multimodal language models behind one contract."""

from iclora.vlm.base import Answer, Ask, Captioner
from iclora.vlm.registry import load_captioner

__all__ = ["Answer", "Ask", "Captioner", "load_captioner"]
