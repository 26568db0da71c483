"""What `tests/parity/test_clip_openai_ckpt_{vit,rn}.py` share: a checkpoint as OpenAI ships it (mixed float16 and float32, stray keys)."""

import torch
from parity_fixtures import Fixture, assert_close
from safetensors.torch import load_file
from torch.nn import functional as F


def common_hyper_parameters(model) -> dict:
    """Those of text tower and joint space, under OpenAI's names."""
    text = model.config.text_config
    return {
        "embed_dim": model.config.projection_dim,
        "image_resolution": model.config.vision_config.image_size,
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "transformer_width": text.hidden_size,
        "transformer_heads": text.num_attention_heads,
        "transformer_layers": text.num_hidden_layers,
    }


def check_features_logits_and_loss(fixture: Fixture, model) -> None:
    stored = load_file(fixture.folder / "state_dict.safetensors")
    assert torch.float16 in {tensor.dtype for tensor in stored.values()}, "the fixture is meant to be mixed precision"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    images, texts = fixture.inputs["image"], fixture.inputs["text"]
    with torch.no_grad():
        outputs = model(pixel_values=images, input_ids=texts)
        n = min(len(images), len(texts))
        square, labels = outputs.logits_per_image[:n, :n], torch.arange(n)
        actual = {
            "image_features": model.get_image_features(pixel_values=images).pooler_output,
            "text_features": model.get_text_features(input_ids=texts).pooler_output,
            "logits_per_image": outputs.logits_per_image,
            "logits_per_text": outputs.logits_per_text,
            "loss_first_n_square": (F.cross_entropy(square, labels) + F.cross_entropy(square.t(), labels)) / 2,
        }
    for name, expected in fixture.outputs.items():
        assert_close(actual[name], expected, name)
