"""Vision-language models behind one contract: they write captions and prompts, and judge sets."""

from iclora.vlm.base import Answer, Ask, VisionModel
from iclora.vlm.registry import load_vision_model

__all__ = ["Answer", "Ask", "VisionModel", "load_vision_model"]
