"""Our exports, read by the tools that they are for: ComfyUI, sd-scripts, OneTrainer.

    python benchmarks/peer_readers.py comfyui FOLDER
    python benchmarks/peer_readers.py sd-scripts FOLDER
    python benchmarks/peer_readers.py onetrainer FOLDER         (onetrainer-fused: fused names)

FOLDER is the tool's source, which is not part of this repository; whatever it imports must be
installed (in all: einops, gguf, opencv-python-headless, parse, torchsde, torchvision).

The truth is a FLUX.1 of 2 double and 3 single blocks, 128 wide, of random weights, and a random
LoRA on it: every W becomes W + B A, in float64, in diffusers' transformer. The tool gets base and
exported file, reads and applies the file by its own code, in float32, and computes a velocity by
its own transformer, or OneTrainer by diffusers'. Printed for each file: the largest difference of a
weight and of the velocity from the truth, and the largest difference that the adapter makes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file
from torch import Tensor

from iclora.adapter.export import export, write_export
from iclora.models.flux.names import flux_names
from iclora.models.names import linears_of

SIZES = {
    "num_layers": 2,
    "num_single_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "axes_dims_rope": (16, 24, 24),
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "in_channels": 64,
}
WIDTH = 128
Weights = dict[str, Tensor]
Reader = Callable[[Path], tuple[Weights, Tensor | None, str]]
"""From a file to the tool's weights in its own names, its velocity, and what it said."""


class Truth:
    """The base, what it is given, and adapters that fit it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = diffusers.FluxTransformer2DModel(guidance_embeds=True, **SIZES)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.normal_(std=0.08)
        self.net.requires_grad_(False)
        self.base = {key: value.clone() for key, value in self.net.state_dict().items()}
        self.names = flux_names(linears_of(self.net))
        rng = torch.Generator().manual_seed(1)
        self.img = torch.randn(1, 16, 64, generator=rng)
        self.txt = torch.randn(1, 8, 64, generator=rng)
        self.pooled = torch.randn(1, 32, generator=rng)
        self.img_ids = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
        self.txt_ids = torch.zeros(8, 3)
        self.sigma, self.guidance = torch.tensor([0.7]), torch.tensor([3.5])

    def adapter(self, kind: str) -> Weights:
        """Random A and B: on every linear layer of blocks, on attention alone, or of mixed rank."""
        rng = torch.Generator().manual_seed(2)
        made = {}
        for number, (name, (out, inside)) in enumerate(sorted(self.names.linears.items())):
            if "blocks." not in name or (kind == "attention" and ".attn." not in name):
                continue
            rank = 2 + number % 5 if kind == "mixed ranks" else 4
            made[f"{name}.lora_A.weight"] = torch.randn(rank, inside, generator=rng) * 0.1
            made[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=rng) * 0.1
        return made

    def updated(self, adapter: Mapping[str, Tensor]) -> Weights:
        """Every weight with its update, float64."""
        weights = {key: value.double() for key, value in self.base.items()}
        for key, down in adapter.items():
            if key.endswith(".lora_A.weight"):
                module = key.removesuffix(".lora_A.weight")
                up = adapter[f"{module}.lora_B.weight"]
                weights[f"{module}.weight"] += up.double() @ down.double()
        return weights

    def velocity(self, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """diffusers' answer with these weights, in their precision."""
        if weights is not None:
            self.net.to(next(iter(weights.values())).dtype).load_state_dict(weights)
        kind = self.net.dtype
        with torch.no_grad():
            (found,) = self.net(
                hidden_states=self.img.to(kind),
                encoder_hidden_states=self.txt.to(kind),
                pooled_projections=self.pooled.to(kind),
                timestep=self.sigma.to(kind),
                guidance=self.guidance.to(kind),
                img_ids=self.img_ids,
                txt_ids=self.txt_ids,
                return_dict=False,
            )
        return found

    def fused(self, split: Mapping[str, Tensor]) -> Weights:
        """Weights of the modules in fused names, by the table of docs/formats.md."""
        return {
            f"{name}.weight": torch.cat([split[f"{part}.weight"] for part in place.parts])
            for name, place in self.names.fused.items()
            if not place.swapped
        }


def comfyui(truth: Truth, source: Path) -> Reader:
    """ComfyUI's key map, loader, patcher and transformer."""
    sys.path.insert(0, str(source))
    sys.argv = ["comfyui", "--cpu", "--force-fp32"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    import comfy.lora_convert
    import comfy.model_detection
    import comfy.model_patcher
    import comfy.supported_models

    sizes = {
        "image_model": "flux",
        "guidance_embed": True,
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 32,
        "context_in_dim": 64,
        "hidden_size": WIDTH,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 3,
        "axes_dim": [16, 24, 24],
        "theta": 10000,
        "qkv_bias": True,
        "dtype": torch.float32,
    }
    settings = comfy.supported_models.Flux(sizes)
    settings.unet_config = sizes

    def read(path: Path) -> tuple[Weights, Tensor, str]:
        model = settings.get_model({})
        # It exchanges the halves of the last layer's modulation in place.
        own = {key: value.clone() for key, value in truth.base.items()}
        weights = comfy.model_detection.convert_diffusers_mmdit(own)
        model.diffusion_model.load_state_dict(weights)
        patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        with Heard() as heard:
            file = comfy.lora_convert.convert_lora(load_file(path))
            keys = comfy.lora.model_lora_keys_unet(model, {})
            patches = comfy.lora.load_lora(file, keys)
            used = patcher.add_patches(patches, 1.0)
        assert len(used) == len(patches)
        patcher.patch_model()
        net = model.diffusion_model
        with torch.no_grad():
            velocity = net.forward_orig(
                truth.img,
                truth.img_ids[None],
                truth.txt,
                truth.txt_ids[None],
                truth.sigma,
                truth.pooled,
                truth.guidance,
            )
        return net.state_dict(), velocity, f"{len(used)} patches, {len(heard.lines)} warnings"

    return read


def sd_scripts(truth: Truth, source: Path) -> Reader:
    """sd-scripts' network made from the file, merged into its transformer."""
    sys.path[:0] = [str(source), str(source / "networks")]
    from library import flux_models, flux_utils
    from networks import lora_flux

    sizes = flux_models.FluxParams(
        in_channels=64,
        vec_in_dim=32,
        context_in_dim=64,
        hidden_size=WIDTH,
        mlp_ratio=4.0,
        num_heads=2,
        depth=2,
        depth_single_blocks=3,
        axes_dim=[16, 24, 24],
        theta=10000,
        qkv_bias=True,
        guidance_embed=True,
    )

    def read(path: Path) -> tuple[Weights, Tensor, str]:
        net = flux_models.Flux(sizes)
        net.load_state_dict(flux_utils.convert_diffusers_sd_to_bfl(dict(truth.base), 2, 3))
        make = partial(lora_flux.create_network_from_weights, 1.0, str(path), None, [], net)
        network, file = make(for_inference=True)
        network.merge_to([], net, file, torch.float32, "cpu")
        with torch.no_grad():
            velocity = net(
                img=truth.img,
                img_ids=truth.img_ids[None],
                txt=truth.txt,
                txt_ids=truth.txt_ids[None],
                timesteps=truth.sigma,
                y=truth.pooled,
                guidance=truth.guidance,
            )
        return net.state_dict(), velocity, f"{len(network.unet_loras)} modules"

    return read


def onetrainer(truth: Truth, source: Path, fuse: bool = False) -> Reader:
    """OneTrainer's loader and modules, hooked to diffusers' transformer."""
    sys.path.insert(0, str(source))
    from modules.model.FluxModel import FluxModel
    from modules.modelLoader.flux.FluxLoRALoader import FluxLoRALoader
    from modules.module.LoRAModule import LoRAModuleWrapper
    from modules.util.config.TrainConfig import TrainConfig
    from modules.util.enum.ModelType import ModelType
    from modules.util.ModelNames import ModelNames

    def read(path: Path) -> tuple[Weights, Tensor, str]:
        truth.net.float().load_state_dict(truth.base)
        model = FluxModel(ModelType.FLUX_DEV_1)
        model.transformer = truth.net
        FluxLoRALoader().load(model, ModelNames(lora=str(path)))
        assert model.lora_state_dict is not None
        # Its user names the layers; a file that lacks one of them is refused.
        attention = all(".attn." in key for key in model.lora_state_dict)
        config = TrainConfig.default_values()
        config.lora_rank = 4
        wrapper = LoRAModuleWrapper(
            truth.net,
            "transformer",
            config,
            ["attn" if attention else "transformer_blocks"],
            fusion_spec=model.fusion_groups(),
            fuse=fuse,
        )
        wrapper.load_state_dict(model.lora_state_dict)
        wrapper.hook_to_module()
        try:
            velocity = truth.velocity()
        finally:
            wrapper.remove_hook_from_module()
        return {}, velocity, f"{len(wrapper.lora_modules)} modules"

    return read


class Heard(logging.Handler):
    """Warnings of a tool while it reads."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Heard:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


TOOLS = {
    "comfyui": (comfyui, ("diffusers", "kohya")),
    "sd-scripts": (sd_scripts, ("kohya",)),
    "onetrainer": (onetrainer, ("diffusers",)),
    "onetrainer-fused": (partial(onetrainer, fuse=True), ("kohya",)),
}


def compare(truth: Truth, read: Reader, format: str, kind: str) -> str:
    """One exported file, read: a line of the table."""
    adapter = truth.adapter(kind)
    wanted = truth.updated(adapter)
    right = truth.velocity(wanted)
    alone = truth.velocity({key: value.double() for key, value in truth.base.items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "adapter.safetensors")
        write_export(path, export(adapter, format, truth.names, dtype=torch.float32))
        try:
            weights, velocity, said = read(path)
        except Exception as error:
            return f"refused: {type(error).__name__}: {str(error)[:300]}"
    apart = [
        float((weights[key].double() - value).abs().max())
        for key, value in truth.fused(wanted).items()
        if key in weights
    ]
    away = float((velocity.double() - right).abs().max())
    off = f"{max(apart):9.1e}" if apart else "        -"
    return f"{off} {away:9.1e} {float((right - alone).abs().max()):9.2f}   {said}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("source", type=Path)
    told = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    truth = Truth()
    make, formats = TOOLS[told.tool]
    read = make(truth, told.source.resolve())
    print(f"{'file':24} {'weights':>9} {'velocity':>9} {'effect':>9}   said")
    for format in formats:
        for kind in ("all layers", "attention", "mixed ranks"):
            print(f"{format + ', ' + kind:24} {compare(truth, read, format, kind)}", flush=True)


if __name__ == "__main__":
    main()
