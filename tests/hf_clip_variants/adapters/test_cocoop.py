"""CoCoOp: what the contract of all adapters does not test."""

import pytest
import torch
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model
from tiny import CLASS_NAMES, tiny_pixels, tiny_tokenizer

from hf_clip_variants.adapters import CoCoOpConfig, CoOpConfig


LABELS = torch.tensor([0, 1, 2, 3])


def cocoop(seed: int = 0, class_names=CLASS_NAMES, **config) -> PeftModel:
    base = tiny_classifier(class_names=class_names)
    torch.manual_seed(seed)
    return get_peft_model(base, CoCoOpConfig(meta_reduction=4, **config))


def layer_of(model: PeftModel):
    return model.get_base_model().prompt_embedder


def gradients(model: PeftModel, **batch) -> list[torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


def test_without_meta_net_it_equals_coop_and_with_words_zero_shot_clip():
    def without_meta_net(model):
        with torch.no_grad():
            for parameter in layer_of(model).clipv_cocoop_linear2.parameters():
                parameter.zero_()
        return model(pixel_values=tiny_pixels()).logits

    zero_shot = tiny_classifier()(pixel_values=tiny_pixels()).logits
    torch.testing.assert_close(without_meta_net(cocoop()), zero_shot, rtol=0, atol=1e-5)

    model, coop = cocoop(context_init=None), get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=4))
    with torch.no_grad():
        layer_of(coop).clipv_coop_context["default"].copy_(layer_of(model).clipv_cocoop_context["default"])
    torch.testing.assert_close(without_meta_net(model), coop(pixel_values=tiny_pixels()).logits, rtol=0, atol=1e-5)


def test_each_image_has_its_own_class_embeddings():
    model = cocoop()
    output = model(pixel_values=tiny_pixels())
    assert output.text_embeds.shape == (4, 5, 24) and output.logits.shape == (4, 5)
    spread = output.text_embeds.std(dim=0).max()
    assert spread > 1e-3  # otherwise the meta-net has no effect
    torch.testing.assert_close(output.text_embeds.norm(dim=-1), torch.ones(4, 5))
    # The shift depends on the unit-norm embedding, so the norm of the features does not matter.
    features = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(image_features=features * 7).logits, model(image_features=features).logits)


def test_batch_gradient_is_the_mean_of_the_images_gradients():
    """The official code has one image per step. A larger batch only averages these gradients."""
    model, pixels = cocoop(), tiny_pixels()
    together = gradients(model, pixel_values=pixels, labels=LABELS)
    alone = [gradients(model, pixel_values=pixels[i : i + 1], labels=LABELS[i : i + 1]) for i in range(4)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-4, atol=1e-6)


def kept_bytes(run) -> int:
    """Bytes of all storages that autograd keeps for the backward pass, weights included."""
    kept, alive = {}, []

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # keeps the storage alive, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_text_chunk_size_changes_memory_but_no_numbers():
    names = [f"{adjective} {noun}" for adjective in ("red", "big", "old", "wet") for noun in ("cat", "dog", "car")]
    features, labels = torch.randn(16, 24, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 12
    losses, grads, kept = [], [], []
    for text_chunk_size in (None, 40):
        model = cocoop(class_names=names, text_chunk_size=text_chunk_size)
        batch = {"image_features": features, "labels": labels}
        kept.append(kept_bytes(lambda model=model, batch=batch: model(**batch)))
        losses.append(model(**batch).loss)
        grads.append(gradients(model, **batch))
    torch.testing.assert_close(losses[1], losses[0])
    for chunked, whole in zip(*grads[::-1], strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-7)
    assert kept[1] < kept[0] / 4, kept


def test_class_features_without_images_are_an_error():
    model = cocoop()
    classifier = model.get_base_model()
    with pytest.raises(ValueError, match="class features: the adapter makes prompts from each image; call the model"):
        classifier.get_class_features()
    # Prompts that are passed as ids have no learned context, so they give CLIP's features.
    ids = tiny_tokenizer()(["a photo of a cat."], return_tensors="pt").input_ids
    assert torch.equal(classifier.get_class_features(ids), tiny_classifier().get_class_features(ids))
    with model.disable_adapter():
        assert torch.equal(classifier.get_class_features(), tiny_classifier().get_class_features())


def test_one_adapter_serves_any_class_names(tmp_path):
    model = cocoop(seed=1)
    model.save_pretrained(tmp_path)
    names = ["owl", *CLASS_NAMES[:2]]
    other = PeftModel.from_pretrained(tiny_classifier(class_names=names), tmp_path)
    expected = model(pixel_values=tiny_pixels()).logits
    torch.testing.assert_close(other(pixel_values=tiny_pixels()).logits[:, 1:], expected[:, :2], rtol=0, atol=1e-4)


def test_number_of_parameters():
    model = cocoop(num_context_tokens=3, context_init=None)
    text, joint, hidden = 32, 24, 24 // 4
    assert model.get_nb_trainable_parameters()[0] == 3 * text + joint * hidden + hidden + hidden * text + text

    config = CoCoOpConfig(context_init_ids=[1, 2, 3, 4])
    config.backbone_widths = {"text width": 512, "joint width": 512}  # ViT-B/16
    assert sum(torch.Size(shape).numel() for shape in config.adapter_tensors().values()) == 35_360


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_context_tokens": 0}, "num_context_tokens: 0, expected a whole number of at least 1"),
        ({"text_chunk_size": 0}, "text_chunk_size: 0, expected a whole number"),
        ({"meta_reduction": 0}, "meta_reduction: 0"),
        ({"context_init": "_"}, "context_init: blank"),
        ({"context_init_ids": [1, 2], "num_context_tokens": 3}, "num_context_tokens: 3, but context_init .* 2 tokens"),
    ],
)
def test_invalid_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoCoOpConfig(**arguments)


def test_too_long_prompts_are_refused():
    model = cocoop(num_context_tokens=30, context_init=None)
    with pytest.raises(ValueError, match="30 context tokens and the longest class name make a prompt of .* takes 32"):
        model(pixel_values=tiny_pixels())
