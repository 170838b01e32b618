"""What becomes of every field of ai-toolkit's configuration, a table for each of its tables.

Names and defaults as in its `toolkit/config_modules.py` (commit 27a03a9). A field that is in no
table here is refused by name, with the nearest that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FIELDS", "Becomes", "Fate", "Inside", "Needless", "Only"]


@dataclass(frozen=True)
class Becomes:
    """It decides a setting of ours."""

    setting: str
    note: str = ""
    """What is not quite the same."""


@dataclass(frozen=True)
class Needless:
    """It has no counterpart, and nothing is lost."""

    why: str


@dataclass(frozen=True)
class Only:
    """It may have these values, or without any be off; all else iclora does not do."""

    values: tuple[Any, ...]
    instead: str
    """What to do instead."""
    note: str = "the same here"
    """What is said of a value that it may have."""
    near: Mapping[str, str] = field(default_factory=dict)
    """Further values that it may have, and what is then not the same."""

    def allows(self, value: Any) -> bool:
        """True if the run is then what it would be in ai-toolkit."""
        off = value is None or value is False or value in (0, "", [], {})
        return value is None or (value in self.values if self.values else off)


@dataclass(frozen=True)
class Inside:
    """A table, or a list of tables, with fields of its own."""

    table: str
    many: bool = False


Fate = Becomes | Needless | Only | Inside

_REMOVE = "Remove it if the run can do without."


def _off(names: str, instead: str = _REMOVE) -> dict[str, Fate]:
    return {name: Only((), instead, "off here too") for name in names.split()}


def _needless(names: str, why: str) -> dict[str, Fate]:
    return {name: Needless(why) for name in names.split()}


def _one(names: str, instead: str = _REMOVE) -> dict[str, Fate]:
    return {name: Only((1,), instead) for name in names.split()}


_FILE: dict[str, Fate] = {
    "job": Only(("extension", "train"), "Only a job that trains can be a run."),
    "config": Inside("config"),
    "meta": Needless("the adapter's header holds what iclora knows of the run"),
}
_CONFIG: dict[str, Fate] = {
    "name": Becomes("out"),
    "process": Inside("process", many=True),
    **_needless("device log_dir training_folder", "the process decides"),
}
_PROCESS: dict[str, Fate] = {
    "type": Only(
        ("sd_trainer", "ui_trainer", "diffusion_trainer"),
        "Only a process that trains a LoRA can be a run.",
    ),
    "training_folder": Becomes("out"),
    "training_seed": Becomes("seed"),
    "device": Becomes("device", "the first GPU is the one that auto takes"),
    "trigger_word": Needless("it stands in the captions and prompts"),
    "network": Inside("network"),
    "save": Inside("save"),
    "datasets": Inside("datasets", many=True),
    "train": Inside("train"),
    "model": Inside("model"),
    "sample": Inside("sample"),
    "logging": Inside("logging"),
    **_needless("performance_log_every log_dir sqlite_db_path", "the run folder has its own log"),
    **_needless("first_sample", "every preview shows the base alone beside the adapter"),
    **_needless("lorm_extract_mode lorm_extract_mode_param", "do_lorm is off"),
    **_off("do_lorm guidance embedding decorator adapter slider torch_profiler"),
}
_NETWORK: dict[str, Fate] = {
    "type": Only(("lora", "LoRA"), 'iclora tunes LoRAs: write "lora" and give its rank as linear.'),
    "linear": Becomes("rank"),
    "rank": Becomes("rank"),
    "linear_alpha": Becomes("alpha", "ai-toolkit takes the rank for FLUX.1, whatever stands here"),
    "alpha": Becomes("alpha", "ai-toolkit takes the rank for FLUX.1, whatever stands here"),
    "transformer_only": Only((True,), "iclora adapts the blocks alone; set it to true."),
    "network_kwargs": Inside("network_kwargs"),
    **_needless("conv conv_alpha", "FLUX.1 has no convolutions in its blocks"),
    **_needless("lokr_full_rank lokr_factor old_lokr_format", "it is a LoRA"),
    **_needless("split_multistage_loras", "FLUX.1 has one stage"),
    **_needless("layer_offloading", "`vram` chooses what fits the card"),
    **_off("dropout lorm all_layers"),
    **_off("pretrained_lora_path", "A run begins with a new LoRA; remove it."),
}
_NETWORK_KWARGS: dict[str, Fate] = _off(
    "only_if_contains ignore_if_contains",
    "Remove it, and choose layers by `targets` in the run file.",
)
_SAVE: dict[str, Fate] = {
    "dtype": Becomes("save_dtype"),
    "save_every": Becomes("save_every"),
    "max_step_saves_to_keep": Becomes("keep"),
    "save_format": Needless("both of its formats name FLUX.1's modules alike, as iclora does"),
    **_needless("push_to_hub hf_repo_id hf_private", "a run sends nothing; `iclora push` does"),
}
_CROPS = "Sets are scaled whole, never cropped or turned; remove it."
_PICTURES = "Conditions are given panels of a set here (`conditional`); remove it."
_DATASETS: dict[str, Fate] = {
    "folder_path": Becomes("data"),
    "dataset_path": Becomes("data"),
    "resolution": Becomes("resolutions", "the side of a square of the same area, in both"),
    "caption_dropout_rate": Becomes("caption_dropout"),
    "caption_ext": Only(("txt", ".txt", "caption", ".caption"), "Captions are .txt or .caption."),
    "caption_type": Only(("txt", ".txt", "caption", ".caption"), "Captions are .txt or .caption."),
    "type": Only(("image",), "iclora trains on pictures; remove it."),
    "trigger_word": Needless("it stands in the captions and prompts"),
    "default_caption": Needless("every set has its own caption, or `check` names it"),
    "num_repeats": Needless("of one dataset every set is taken equally often"),
    "buckets": Only((True,), "Sets of every shape have canvases of their own; set it to true."),
    "batch_size": Only((), "One batch is for all; set train.batch_size."),
    **_needless("bucket_tolerance", "canvases lie on the base's grid, and nothing is cropped"),
    **_needless(
        "cache_latents cache_latents_to_disk cache_tensors_to_disk cache_text_embeddings "
        "load_image_when_caching_latents cache_latents_num_workers num_workers prefetch_factor "
        "fast_image_size debug cache_clip_vision_to_disk",
        "latents and prompt embeddings are always computed once and kept",
    ),
    **_needless("keep_tokens", "no words are dropped or shuffled"),
    **_needless("mask_min_value invert_mask", "there is no mask"),
    **_needless(
        "control_transparent_color full_size_control_images num_controls_from_same_folder "
        "guidance_type replay_transforms extra_values clip_image_shuffle_augmentations "
        "shuffle_augmentations",
        "there are no pictures beside the sets",
    ),
    **_needless(
        "shrink_video_to_frames fps auto_frame_count trim_auto_frame_count_tail do_i2v do_audio "
        "audio_preserve_pitch audio_normalize",
        "it is about video",
    ),
    **_needless("diff_output_preservation_class random_triggers_max", "what it belongs to is off"),
    **_one("num_frames", "iclora trains on pictures; remove it."),
    **_one("scale", _CROPS),
    **_one("network_weight loss_multiplier"),
    **_off("shuffle_tokens token_dropout_rate", "It would tear panels' markers apart; remove it."),
    **_off("flip_x flip_y random_crop random_scale square_crop augments augmentations", _CROPS),
    **_off(
        "control_path control_path_1 control_path_2 control_path_3 control_from_same_folder "
        "inpaint_path controls clip_image_path clip_image_from_same_folder "
        "clip_image_augmentations unconditional_path",
        _PICTURES,
    ),
    **_off("mask_path alpha_mask poi", "Sets are learned whole; remove it."),
    **_off("is_reg prior_reg", "Sets are trained on or held out (`held_out`); remove it."),
    **_off(
        "random_triggers use_short_captions replacements standardize_images "
        "diff_output_preservation"
    ),
}
_LEVELS = "Noise levels are sigmoid or shifted here; remove it, or set timestep_type to sigmoid."
_PLAIN_LOSS = "The loss is the mean squared error of the velocity; remove it."
_TRAIN: dict[str, Fate] = {
    "steps": Becomes("steps"),
    "batch_size": Becomes("batch"),
    "gradient_accumulation": Becomes("batch"),
    "gradient_accumulation_steps": Becomes(
        "batch", "ai-toolkit counts every pass as a step, so steps are divided by it"
    ),
    "lr": Becomes("lr"),
    "max_grad_norm": Becomes("grad_clip"),
    "optimizer": Only(
        ("adamw",),
        "iclora has AdamW: set it to adamw, and `lr` for it.",
        "AdamW here too",
        dict.fromkeys(
            ("adamw8bit", "adamw8"),
            "AdamW here, its state in 32 bits instead of 8: more exact, and 6 more bytes for every "
            "weight of the LoRA",
        ),
    ),
    "optimizer_params": Inside("optimizer_params"),
    "ema_config": Inside("ema_config"),
    "dtype": Becomes("dtype"),
    "gradient_checkpointing": Becomes("gradient_checkpointing"),
    "cfg_scale": Becomes("guidance"),
    "timestep_type": Becomes("shift"),
    "disable_sampling": Becomes("preview_every"),
    "noise_scheduler": Only(("flowmatch",), "FLUX.1 is trained by flow matching: flowmatch."),
    "lr_scheduler": Only(("constant",), "The rate is constant here; remove it."),
    "train_unet": Only((True,), "Its LoRA is all that iclora trains; set it to true."),
    "loss_type": Only(("mse",), _PLAIN_LOSS),
    "content_or_style": Only(("balanced",), _LEVELS),
    "loss_target": Only(("noise",), _PLAIN_LOSS),
    "max_denoising_steps": Only((999, 1000), _LEVELS),
    "num_train_timesteps": Only((1000,), _LEVELS),
    **_one(
        "max_cfg_scale cfg_rescale noise_multiplier target_noise_multiplier img_multiplier "
        "noisy_latent_multiplier latent_multiplier pred_scaler optimal_noise_pairing_samples"
    ),
    **_off("train_text_encoder", "The text encoders stay as they are; set it to false."),
    **_off("bypass_guidance_embedding", "FLUX.1-dev reads its guidance; set it to false."),
    **_off("unload_text_encoder", "It trains without captions; use cache_text_embeddings."),
    **_off("min_denoising_steps linear_timesteps linear_timesteps2", _LEVELS),
    **_off(
        "min_snr_gamma snr_gamma learnable_snr_gos target_norm_std do_fft_loss t0_loss_target "
        "t0_velocity_equiv_weight do_fft_velocity_equiv_weight correct_pred_norm max_loss "
        "max_loss_debug do_guidance_loss do_guidance_loss_cfg_zero do_prior_divergence "
        "do_differential_guidance latent_feature_extractor_path diffusion_feature_extractor_path "
        "adaptive_scaling_factor match_noise_norm",
        _PLAIN_LOSS,
    ),
    **_off("validation_config", "Sets are held out by `held_out` or `validation`; remove it."),
    **_off(
        "lr_scheduler_params train_turbo noise_offset weight_jitter merge_network_on_save "
        "start_step free_u adapter_assist_name_or_path random_noise_multiplier "
        "do_signal_correction_noise do_batch_noise_correction do_signal_amplification "
        "random_noise_shift negative_prompt prompt_dropout_prob short_and_long_captions "
        "short_and_long_captions_encoder_split match_adapter_assist match_adapter_chance "
        "inverted_mask_prior diff_output_preservation blank_prompt_preservation "
        "standardize_images standardize_latents dynamic_noise_offset do_cfg do_random_cfg "
        "prompt_saturation_chance do_paramiter_swapping force_consistent_noise "
        "blended_blur_noise do_blank_stabilization unconditional_prompt"
    ),
    **_needless("xformers sdp attention_backend", "attention is PyTorch's own"),
    **_needless("cache_text_embeddings single_item_batching", "always so here"),
    **_needless(
        "skip_first_sample force_first_sample show_turbo_outputs",
        "every preview shows the base alone beside the adapter",
    ),
    **_needless(
        "text_encoder_lr unet_lr refiner_lr embedding_lr adapter_lr train_refiner",
        "only the LoRA is trained, at `lr`",
    ),
    **_needless(
        "batch_noise_correction_scale signal_amplification_strength merge_network_on_save_strength "
        "signal_correction_noise_scale max_negative_prompts reg_weight adapter_assist_type "
        "inverted_mask_prior_multiplier diff_output_preservation_multiplier "
        "diff_output_preservation_class blank_prompt_preservation_multiplier "
        "correct_pred_norm_multiplier target_norm_std_value next_sample_timesteps "
        "paramiter_swapping_factor latent_feature_loss_weight diffusion_feature_extractor_weight "
        "guidance_loss_target guidance_loss_schedule differential_guidance_scale "
        "switch_boundary_every audio_loss_multiplier",
        "what it belongs to is off",
    ),
}
_OPTIMIZER: dict[str, Fate] = {
    "weight_decay": Becomes("weight_decay"),
    "betas": Only(([0.9, 0.999],), "AdamW's betas are 0.9 and 0.999 here; remove it."),
    "eps": Needless("AdamW's eps is 1e-8 here, 1e-6 there"),
}
_EMA: dict[str, Fate] = {
    "use_ema": Becomes("ema"),
    "ema_decay": Becomes("ema"),
    **_off("use_feedback"),
    **_one("param_multiplier"),
}
_BASE = "Those of FLUX.1-dev, -schnell and -Krea-dev are read so far; write a run file."
_MODEL: dict[str, Fate] = {
    "name_or_path": Becomes("base"),
    "is_flux": Only((True,), _BASE),
    "arch": Only(("flux",), _BASE),
    "quantize": Becomes("precision", "8 bits a weight in both, rounded in another way"),
    "qtype": Becomes("precision", "8 bits a weight in both, rounded in another way"),
    "compile": Becomes("compile"),
    "block_compile": Becomes("compile"),
    "vae_path": Only((), "The VAE is the base's own; remove it."),
    **_off(
        "is_v2 is_xl is_pixart is_pixart_sigma is_auraflow is_v3 is_lumina2 is_ssd is_vega", _BASE
    ),
    **_off("is_v_pred experimental_xl refiner_name_or_path unet_path unet_sample_size", _BASE),
    **_off(
        "assistant_lora_path lora_path inference_lora_path unconditional_lora_path "
        "accuracy_recovery_adapter",
        "A base is trained as it is: merge what belongs to it first, or use FLUX.1-dev.",
    ),
    **_off("split_model_over_gpus", "Remove it; `shard` spreads a base over several GPUs."),
    **_off("ignore_if_contains only_if_contains", "Remove it; `targets` chooses layers."),
    **_off("te_name_or_path model_paths", "The text encoders are the base's own; remove it."),
    **_off("use_flux_cfg attn_masking in_context latent_space_version model_kwargs"),
    **_needless("low_vram layer_offloading auto_memory", "`vram` chooses what fits the card"),
    **_needless(
        "layer_offloading_transformer_percent layer_offloading_text_encoder_percent "
        "split_model_other_module_param_count_scale quantize_kwargs",
        "`vram` chooses what fits the card",
    ),
    **_needless(
        "quantize_te qtype_te text_encoder_bits te_device te_dtype vae_device vae_dtype",
        "text encoders and VAE run once and are freed before training",
    ),
    **_needless("dtype", "ai-toolkit takes the one under train"),
    **_needless(
        "compile_mode compile_fullgraph compile_dynamic cache_size_limit",
        "blocks are compiled for each canvas",
    ),
    **_needless("refiner_start_at use_text_encoder_1 use_text_encoder_2", "it is about SDXL"),
    **_needless("extras_name_or_path", "all parts are the base's own"),
}
_SAMPLING = "previews are sampled as the recipe says"
_SAMPLE: dict[str, Fate] = {
    "sample_every": Becomes("preview_every"),
    "width": Becomes("preview_resolution", "the shape is the recipe's"),
    "height": Becomes("preview_resolution", "the shape is the recipe's"),
    "prompts": Becomes("preview_prompts"),
    "samples": Inside("samples", many=True),
    **_needless(
        "sampler guidance_scale sample_steps guidance_rescale do_cfg_norm refiner_start_at",
        _SAMPLING,
    ),
    **_needless("neg", "FLUX.1-dev is guided in one pass, without a negative prompt"),
    **_needless("seed walk_seed", "the run's `seed` decides the previews' noise"),
    **_needless("sample_start_step", "the first preview comes after `preview_every` steps"),
    **_needless("format", "previews are PNG"),
    **_needless("network_multiplier", "previews show the adapter at strength 1"),
    **_needless("adapter_conditioning_scale extra_values num_frames fps", "FLUX.1 paints pictures"),
}
_SAMPLES: dict[str, Fate] = {
    "prompt": Becomes("preview_prompts"),
    **_needless("width height", "all previews have one size"),
    **_needless("guidance_scale sample_steps do_cfg_norm", _SAMPLING),
    **{name: _SAMPLE[name] for name in ("neg", "seed", "network_multiplier", "num_frames", "fps")},
    **_off("ctrl_img ctrl_img_1 ctrl_img_2 ctrl_img_3", "Previews are made from words; remove it."),
    **_needless("ctrl_idx", "there are no pictures beside the prompt"),
}
_LOGGING: dict[str, Fate] = {
    "use_wandb": Becomes("trackers"),
    **_needless("log_every verbose use_ui_logger", "every step is in the run's log"),
    **_needless("project_name run_name", "the run folder's name is shown"),
}

FIELDS: Mapping[str, Mapping[str, Fate]] = {
    "": _FILE,
    "config": _CONFIG,
    "process": _PROCESS,
    "network": _NETWORK,
    "network_kwargs": _NETWORK_KWARGS,
    "save": _SAVE,
    "datasets": _DATASETS,
    "train": _TRAIN,
    "optimizer_params": _OPTIMIZER,
    "ema_config": _EMA,
    "model": _MODEL,
    "sample": _SAMPLE,
    "samples": _SAMPLES,
    "logging": _LOGGING,
}
"""By the name of ai-toolkit's table; "" is the file's own."""
