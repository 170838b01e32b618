"""LoRA weights: files of iclora and other tools (`file`), layers on a base (`layers`)."""

from iclora.adapter.file import Adapter, AdapterInfo, fold
from iclora.adapter.layers import attach, lora_parameters, remove

__all__ = ["Adapter", "AdapterInfo", "attach", "fold", "lora_parameters", "remove"]
