"""iclora: In-Context LoRA (arXiv 2410.23775) as a tool.

Import from the rooms: `iclora.sets.layout`, `iclora.sets.dataset`, `iclora.models`,
`iclora.train.run`, `iclora.making.session`. This file imports nothing, so that
`iclora --help` starts at once.
"""

__version__ = "0.2.0"
