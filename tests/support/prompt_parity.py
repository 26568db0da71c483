"""Compares prompts in several layers with the official code, for the parity tests of CoCoOp, MaPLe, IVLP and VPT."""

import torch
import torch.nn.functional as F
from adapter_models import Compared, fixture_classifier


def word_ids(fixture) -> list[int]:
    """Token ids of the words from which the training started; [] for a random context."""
    if "ctx_token_ids" not in fixture.inputs:
        return []
    row = fixture.inputs["ctx_token_ids"][0].tolist()
    return row[1 : row.index(fixture.text_eos_token_id())]


def tails(fixture, num_prefix_tokens: int) -> torch.Tensor:
    return fixture.inputs["tokenized_prompts"][:, 1 + num_prefix_tokens :]


def classifier_of(fixture, num_prefix_tokens: int):
    ids = fixture.inputs["tokenized_prompts"]
    name_lengths = fixture.inputs.get("name_lens", torch.zeros(len(ids), dtype=torch.int64))
    return fixture_classifier(fixture, ids, tails(fixture, num_prefix_tokens), name_lengths)


def bare(layer):
    return getattr(layer, "base_layer", layer)


def compare_plain_clip(fixture, model, compare: Compared) -> None:
    """Compares blocks, features, logits and loss of a `PeftModel` on the fixture's `CLIPModel`, and runs backward."""
    clip = model.base_model.model
    blocks, handles = {}, []
    for part, name in ((clip.text_model, "text"), (clip.vision_model, "vision")):
        for i, layer in enumerate(part.encoder.layers):
            key = f"{name}_block{i}"
            if key in compare.expected:
                hook = lambda module, args, output, key=key: blocks.__setitem__(key, output.detach())  # noqa: E731
                handles.append(bare(layer).register_forward_hook(hook))
    ids, pixels = fixture.inputs["tokenized_prompts"], fixture.inputs["pixel_values"]
    output = model(input_ids=ids, pixel_values=pixels)
    loss = F.cross_entropy(output.logits_per_image, fixture.inputs["labels"])
    for handle in handles:
        handle.remove()
    for key, value in blocks.items():
        compare(key, value)
    compare("logits", output.logits_per_image)
    compare("loss", loss)
    compare("text_features", clip.get_text_features(ids).pooler_output)
    compare("image_features", clip.get_image_features(pixels).pooler_output)
    loss.backward()


def compare_classifier(fixture, model, compare: Compared) -> None:
    """Compares features, logits and loss of a `PeftModel` on a `CLIPClassifier`, and runs backward."""
    classifier, pixels = model.base_model.model, fixture.inputs["pixel_values"]
    output = model(pixel_values=pixels, labels=fixture.inputs["labels"])
    compare("logits", output.logits)
    compare("loss", output.loss)
    compare("text_features", classifier.get_class_features())
    compare("image_features", classifier.get_image_features(pixels).pooler_output)
    output.loss.backward()


def trained(model, name: str) -> torch.nn.Parameter:
    """The one parameter of the adapter with this name."""
    (parameter,) = [p for n, p in model.named_parameters() if f".{name}.default" in n]
    return parameter


def assert_complete_but_blocks(compare: Compared, *others: str) -> None:
    """All outputs but the blocks are compared: packed prompts have no blocks of the official shape."""
    compare.assert_complete(but=(*others, *(key for key in compare.expected if "_block" in key)))


def put(base, config, tensors):
    from hf_clip_variants.adapters import put_adapter

    config.inference_mode = False
    return put_adapter(base, config, tensors)
