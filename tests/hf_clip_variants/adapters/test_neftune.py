"""`TrainingArguments(neftune_noise_alpha=...)`: noise on token embeddings in training, nothing of it afterwards."""

import pytest
import torch
from adapter_models import tiny_classifier
from peft import get_peft_model
from tiny import tiny_pixels
from transformers import Trainer, TrainingArguments
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.adapters import CLIPAdapterConfig, CoCoOpConfig, CoOpConfig, IVLPConfig, MaPLeConfig, VPTConfig


CONFIGS = {
    "coop": lambda: CoOpConfig(num_context_tokens=3),
    "coop_middle": lambda: CoOpConfig(num_context_tokens=3, class_token_position="middle", class_specific=True),
    "cocoop": lambda: CoCoOpConfig(meta_reduction=4, context_init=None),
    "maple": lambda: MaPLeConfig(prompt_depth=2, context_init=None),
    "maple_vpt_deep": lambda: MaPLeConfig(prompt_depth=2, context_init=None, text_prompt_style="vpt_deep"),
    "ivlp": lambda: IVLPConfig(context_init=None),
    "vpt": lambda: VPTConfig(),
    "clip_adapter": lambda: CLIPAdapterConfig(modality="both"),
}
LEARNS_PROMPTS = [name for name in CONFIGS if name not in ("vpt", "clip_adapter")]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=tiny_pixels()).logits


@pytest.mark.parametrize("kind", [None, *CONFIGS])
def test_trainer_adds_noise_in_training_and_leaves_the_numbers_of_evaluation(kind, tmp_path):
    model = tiny_classifier() if kind is None else get_peft_model(tiny_classifier(), CONFIGS[kind]())
    before, losses = logits(model), []
    for alpha in (None, 5.0):
        arguments = TrainingArguments(
            str(tmp_path / str(alpha)),
            neftune_noise_alpha=alpha,
            learning_rate=0.0,
            max_steps=1,
            logging_steps=1,
            save_steps=1,  # class features are saved while the noise is on
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        examples = [{"pixel_values": pixels, "labels": index} for index, pixels in enumerate(tiny_pixels())]
        trainer = Trainer(model, arguments, train_dataset=examples)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        assert torch.equal(logits(model), before)
    if kind is None:
        assert torch.equal(logits(CLIPClassifier.from_pretrained(tmp_path / "5.0" / "checkpoint-1")), before)
    # Class features that are not trained are kept, so that noise has no part in them.
    assert (abs(losses[1] - losses[0]) > 1e-3) == (kind in (None, *LEARNS_PROMPTS))


def test_noise_has_the_size_that_the_encoder_itself_would_give_it():
    """alpha / sqrt(tokens * width): larger where prompts are packed as one token a row."""
    model = tiny_classifier().train()
    embedding, seen = model.get_input_embeddings(), []
    handle = activate_neftune(model, 5.0)
    watch = embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    model(pixel_values=tiny_pixels())
    watch.remove()
    deactivate_neftune(model, handle)
    (noisy,) = seen
    assert noisy.dim() == 3 and len(noisy) == len(model.class_names) and noisy.shape[1] > 5


def test_features_of_class_names_given_in_a_call_have_no_noise():
    model = tiny_classifier().requires_grad_(False)
    names = model.class_names[:2]
    with torch.no_grad():
        expected = tiny_classifier()(pixel_values=tiny_pixels(), class_names=names).logits
        handle = activate_neftune(model.train(), 5.0)
        model(pixel_values=tiny_pixels(), class_names=names)  # kept from here on
        deactivate_neftune(model, handle)
        assert model.training and model.get_input_embeddings().training
        assert torch.equal(model.eval()(pixel_values=tiny_pixels(), class_names=names).logits, expected)
