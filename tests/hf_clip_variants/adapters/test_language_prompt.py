"""Prompt tuning of a detector: what trains, saving and loading, other prompts, other models."""

import json

import pytest
import torch
from glip_runs import NAMES, glip_labels, glip_model, glip_processor
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import tiny_clip, tiny_pixels
from transformers import AutoModelForZeroShotObjectDetection

from hf_clip_variants.adapters import LanguagePromptConfig, load_adapter
from hf_clip_variants.hub.model_cards import model_card


VECTORS = "base_model.model.text_encoder.clipv_language_prompt_vectors"
PIXELS = tiny_pixels(2, size=64)


def prompt(names=NAMES) -> dict:
    return dict(glip_processor()(text=list(names)))


def tuned(base=None, seed: int | None = 0, **fields) -> PeftModel:
    """On a GLIP with fusion, with random vectors; None: with new ones, which change nothing."""
    base = glip_model() if base is None else base
    model = get_peft_model(base, LanguagePromptConfig(prompt_ids=prompt()["input_ids"][0].tolist(), **fields))
    if seed is not None:
        torch.manual_seed(seed)
        with torch.no_grad():
            model.get_parameter(f"{VECTORS}.default").normal_()
    return model.eval()


@torch.no_grad()
def logits(model, **changes) -> torch.Tensor:
    return model(PIXELS, **prompt() | changes).logits


def detections(model) -> list[dict]:
    with torch.no_grad():
        outputs = model(PIXELS, **prompt())
    return glip_processor().post_process_grounded_object_detection(outputs, text_labels=NAMES)


@pytest.mark.parametrize("use_fusion", [True, False])
def test_only_the_vectors_train_and_new_ones_change_nothing(use_fusion):
    base = glip_model(use_fusion=use_fusion, fusion_dropout=0.3, drop_block_prob=0.3)
    plain, before = logits(base), {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = tuned(base, seed=None)
    assert torch.equal(logits(model), plain)
    model.train()
    assert not base.training and not any(module.training for module in base.pyramid.modules())  # no dropout
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [f"{VECTORS}.default"]
    vectors = model.get_parameter(f"{VECTORS}.default")
    optimizer = torch.optim.AdamW([vectors], lr=0.05)
    labels, losses = [{"class_labels": torch.tensor([1, 3]), "boxes": glip_labels(1)[0]["boxes"]}] * 2, []
    for _ in range(6):
        loss = model(PIXELS, labels=labels, **prompt()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    length = prompt()["input_ids"].shape[1]
    assert (vectors.grad[:length] != 0).any(dim=1).sum() >= length - 3  # marks around and between names count less
    assert (vectors.grad[length:] == 0).all() and losses[-1] < losses[0]
    assert all(p.grad is None for name, p in model.named_parameters() if "clipv_" not in name)
    base = model.unload()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(logits(base), plain)


def test_vectors_are_added_to_the_words_by_their_places():
    model, given = tuned(), prompt()
    with torch.no_grad():
        words = glip_model().encode_prompts(given["input_ids"], given["attention_mask"])
        expected = words + model.get_parameter(f"{VECTORS}.default")[: words.shape[1]]
        found = model.get_base_model().encode_prompts(given["input_ids"], given["attention_mask"])
        torch.testing.assert_close(found, expected)
        # The same as words that are given.
        own = {"attention_mask": given["attention_mask"], "phrase_map": given["phrase_map"]}
        torch.testing.assert_close(glip_model()(PIXELS, text_embeds=expected, **own).logits, logits(model))


def test_a_saved_adapter_gives_equal_detections_wherever_it_is_loaded(tmp_path):
    glip_model().save_pretrained(tmp_path / "base")
    base = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "base").eval()
    model = tuned(base, class_names=NAMES)
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in saved.items()} == {VECTORS: [24, 20]}
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["peft_type"] == "CLIPV_LANGUAGE_PROMPT" and written["class_names"] == NAMES
    expected = detections(model)
    assert (
        sum(len(one["scores"]) for one in expected)
        and expected[0]["scores"][0] != detections(glip_model())[0]["scores"][0]
    )
    for again in (
        PeftModel.from_pretrained(glip_model(), tmp_path / "adapter").eval(),
        load_adapter(tmp_path / "adapter", glip_model()),
        load_adapter(tmp_path / "adapter"),
        AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "adapter").eval(),
    ):
        for one, wanted in zip(detections(again), expected, strict=True):
            assert one["text_labels"] == wanted["text_labels"]
            assert torch.equal(one["scores"], wanted["scores"]) and torch.equal(one["boxes"], wanted["boxes"])
    with pytest.raises(ValueError, match="backbone_fingerprint: the adapter was made for"):
        PeftModel.from_pretrained(glip_model(1), tmp_path / "adapter")
    PeftModel.from_pretrained(glip_model(1), tmp_path / "adapter", allow_other_backbone=True)
    card = str(model_card(tmp_path / "adapter", repo_id="me/prompt"))
    assert "Language prompt for 5 classes" in card and "post_process_grounded_object_detection" in card


def test_adapters_are_switched_and_disabled():
    model, plain = tuned(), logits(glip_model())
    model.add_adapter("second", LanguagePromptConfig(num_tokens=20))
    first = logits(model)
    model.set_adapter("second")
    assert torch.equal(logits(model), plain)  # a new one
    assert set(get_peft_model_state_dict(model, adapter_name="second")) == {VECTORS}
    model.set_adapter("default")
    assert torch.equal(logits(model), first) and not torch.equal(first, plain)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    with pytest.raises(ValueError, match="adapter_names: the images of a batch share one adapter"):
        model(PIXELS, **prompt(), adapter_names=["default", "second"])
    with pytest.raises(ValueError, match="merge: CLIPV_LANGUAGE_PROMPT cannot be merged"):
        model.merge_and_unload()


def test_another_prompt_than_the_learned_one_is_an_error():
    model = tuned(class_names=NAMES)
    longer = glip_processor()(text=NAMES, padding="max_length", max_length=24)
    torch.testing.assert_close(
        logits(model), model(PIXELS, **longer).logits[..., : prompt()["input_ids"].shape[1]], rtol=1e-4, atol=1e-5
    )
    for names in (NAMES[::-1], NAMES[:3], [*NAMES, "man"]):
        with pytest.raises(ValueError, match=r"input_ids: another prompt than .* \(classes cat, dog"):
            logits(model, **prompt(names))
    with model.disable_adapter():
        logits(model, **prompt(NAMES[::-1]))
    # Vectors for any prompt, but not for longer ones.
    short = get_peft_model(glip_model(), LanguagePromptConfig(num_tokens=5))
    logits(short, **prompt(["cat"]))
    with pytest.raises(ValueError, match=r"input_ids: 13 tokens, the adapter has vectors for 5 \(num_tokens\)"):
        logits(short)


def test_wrong_models_and_values_are_named():
    with pytest.raises(ValueError, match="model: CLIPV_LANGUAGE_PROMPT works on detectors that read a prompt"):
        get_peft_model(tiny_clip(), LanguagePromptConfig())
    with pytest.raises(ValueError, match="prompt_ids: 30 tokens, the model reads at most 24"):
        get_peft_model(glip_model(), LanguagePromptConfig(prompt_ids=[2] * 30))
    for fields, message in (
        ({"prompt_ids": []}, "prompt_ids: an empty list"),
        ({"prompt_ids": [1, 2], "num_tokens": 1}, r"prompt_ids: 2 tokens, expected at most 1 \(num_tokens\)"),
        ({"prompt_ids": [-1]}, "prompt_ids: -1, expected"),
        ({"num_tokens": 0}, "num_tokens: 0, expected a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            LanguagePromptConfig(**fields)
