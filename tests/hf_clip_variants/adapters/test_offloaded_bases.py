"""Classifiers whose weights are on disk or in main memory until a module is called: device_map, accelerate."""

import tempfile

import accelerate
import pytest
import torch
from adapted_classifiers import CONFIGS, adapted, base_classifier
from peft import LoraConfig, get_peft_model
from tiny import tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.adapters import load_adapter
from hf_clip_variants.modeling.dual_encoders.offloading import device_of, weight_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    base_classifier().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def offloaded(saved, how: str) -> CLIPClassifier:
    folder = tempfile.mkdtemp(dir=saved)
    if how == "on disk":
        return CLIPClassifier.from_pretrained(saved, device_map={"": "disk"}, offload_folder=folder).eval()
    if how == "partly on disk":
        limit = {"cpu": 300_000}
        model = CLIPClassifier.from_pretrained(saved, device_map="auto", max_memory=limit, offload_folder=folder)
        return model.eval()
    model = CLIPClassifier.from_pretrained(saved).eval()
    if how == "disk_offload":
        return accelerate.disk_offload(model, folder, execution_device="cpu")
    return accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=how.endswith("with buffers"))


HOW = ["on disk", "partly on disk", "disk_offload", "cpu_offload", "cpu_offload with buffers"]


@pytest.mark.parametrize("how", HOW)
def test_an_offloaded_classifier_has_the_same_logits_and_keeps_class_features(saved, how, monkeypatch):
    expected = CLIPClassifier.from_pretrained(saved).eval()(pixel_values=tiny_pixels(3)).logits
    model, encoded = offloaded(saved, how), []
    assert next(model.clip.text_model.parameters()).is_meta or how == "partly on disk"
    encode = type(model)._encode
    monkeypatch.setattr(type(model), "_encode", lambda self, prompts: encoded.append(1) or encode(self, prompts))
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(model(pixel_values=tiny_pixels(3)).logits, expected, rtol=0, atol=2e-5)
    assert len(encoded) <= 1, "read from disk once"


@pytest.mark.parametrize(("kind", "how"), [(kind, HOW[i % len(HOW)]) for i, kind in enumerate(list(CONFIGS)[:-1])])
def test_an_adapter_on_an_offloaded_base_has_the_same_logits_and_trains(saved, kind, how, tmp_path):
    model = adapted(kind, CLIPClassifier.from_pretrained(saved))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(pixel_values=tiny_pixels(3)).logits
        loaded = load_adapter(tmp_path, offloaded(saved, how))
        torch.testing.assert_close(loaded(pixel_values=tiny_pixels(3)).logits, expected, rtol=0, atol=1e-4)
    new = adapted(kind, offloaded(saved, how)).train()
    new(pixel_values=tiny_pixels(3), labels=torch.tensor([0, 1, 2])).loss.backward()
    trained = {name: p for name, p in new.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None and not p.is_meta for p in trained.values())


def test_an_offloaded_classifier_is_saved_whole(saved, tmp_path):
    offloaded(saved, "on disk").save_pretrained(tmp_path)
    again, first = CLIPClassifier.from_pretrained(tmp_path), CLIPClassifier.from_pretrained(saved)
    for name, tensor in first.state_dict().items():
        if not name.startswith("class_features"):
            assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_new_context_starts_from_words_of_an_offloaded_embedding(saved):
    from hf_clip_variants.adapters import CoOpConfig

    def words(base):
        return get_peft_model(base, CoOpConfig(context_init_ids=[5, 9])).state_dict()

    name = "base_model.model.prompt_embedder.clipv_coop_context.default"
    first = words(CLIPClassifier.from_pretrained(saved))[name]
    assert torch.equal(words(offloaded(saved, "cpu_offload"))[name], first)


@pytest.mark.parametrize("make", [tiny_clip, base_classifier], ids=["transformers' CLIPModel", "ours"])
def test_lora_on_an_offloaded_base_is_lost_by_peft_whatever_the_model(make):
    """PEFT moves LoRA's new weights to where the base's are, the meta device: what they were is lost, and answers are
    noise or NaN. If this fails, PEFT has been repaired. Until then, LoRA first and offloading after it."""
    lora = LoraConfig(target_modules=["q_proj", "v_proj"])
    model = get_peft_model(accelerate.cpu_offload(make(), execution_device="cpu"), lora)
    assert all(p.is_meta for name, p in model.named_parameters() if "lora_" in name)
    model = get_peft_model(make(), lora)
    assert not any(p.is_meta for p in model.parameters())


def test_weights_on_meta_that_nobody_holds_stay_there():
    with torch.device("meta"):
        linear = torch.nn.Linear(2, 2)
    assert device_of(linear).type == "meta" and weight_of(linear, "weight").is_meta
