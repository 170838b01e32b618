"""Who writes the joint captions: multimodal language models behind one contract."""

from iclora.captioners.base import Answer, Ask, Captioner
from iclora.captioners.load import load_captioner

__all__ = ["Answer", "Ask", "Captioner", "load_captioner"]
