"""Trains the classifier and each adapter with Trainer for a few steps and saves the trained tensors.

Run by torchrun, or as one process:

python train_adapters.py OUT BATCH_SIZE_OF_EACH_PROCESS
"""

import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from peft import get_peft_model
from safetensors.torch import save_file
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer  # noqa: E402
from transformers import Trainer, TrainingArguments

from hf_clip_variants import (
    CLIPAdapterConfig,
    CLIPClassifier,
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    LinearHeadConfig,
    MaPLeConfig,
    TipAdapterConfig,
    VPTConfig,
)


def main(out: Path, batch_size: int):
    state = PartialState(cpu=True)
    assert state.num_processes == int(os.environ.get("WORLD_SIZE", 1)), "each process runs as a single process"
    clip_folder = out / "clip"
    if state.is_main_process:
        tiny_clip().save_pretrained(clip_folder)
        tiny_tokenizer().save_pretrained(clip_folder)
    state.wait_for_everyone()
    pixels, labels = tiny_pixels(16, seed=3), torch.arange(16) % len(CLASS_NAMES)
    data = [{"pixel_values": p, "labels": label} for p, label in zip(pixels, labels, strict=True)]
    configs = {
        "whole": None,
        "coop": CoOpConfig(num_context_tokens=3),
        "clip_adapter": CLIPAdapterConfig(modality="both"),
        "tip_adapter_f": TipAdapterConfig(trainable_keys=True),
        "linear_head": LinearHeadConfig(trainable=True),
        "cocoop": CoCoOpConfig(meta_reduction=4),
        "maple": MaPLeConfig(prompt_depth=2),
        "vpt": VPTConfig(num_prompt_tokens=2),
        "ivlp": IVLPConfig(),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        model = CLIPClassifier.from_pretrained(clip_folder, class_names=CLASS_NAMES)
        if config is not None:
            model = get_peft_model(model, config)
        if name == "tip_adapter_f":
            with torch.no_grad():
                features = model.get_image_features(pixels).pooler_output
            model.build_cache(features, labels)
        arguments = TrainingArguments(
            output_dir=str(out / name),
            max_steps=3,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-2,
            optim="sgd",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            label_names=["labels"],
            lr_scheduler_type="constant",
            max_grad_norm=0,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train()
        if state.is_main_process:
            trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
            save_file(trained, out / f"{name}.safetensors")
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
