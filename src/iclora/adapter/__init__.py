"""LoRA weights: files of any tool (`file`), several at once (`stack`), layers (`layers`)."""

from iclora.adapter.file import Adapter, AdapterInfo, fold
from iclora.adapter.layers import attach, lora_parameters, remove
from iclora.adapter.stack import Load, load_stack, stack

__all__ = [
    "Adapter",
    "AdapterInfo",
    "Load",
    "attach",
    "fold",
    "load_stack",
    "lora_parameters",
    "remove",
    "stack",
]
