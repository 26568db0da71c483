"""CoCoOp equals KaiyangZhou/CoOp: shifts, prompts, features, logits, loss and gradients."""

import pytest
import torch
from adapter_models import Compared
from parity_fixtures import load_fixture
from prompt_parity import classifier_of, put, trained

from hf_clip_variants.adapters.cocoop.convert import convert_cocoop


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def cocoop():
    return load_fixture("cocoop")


def official_file(fixture) -> dict[str, torch.Tensor]:
    return {k: v for k, v in fixture.state_dict.items() if k.startswith("prompt_learner.")}


@pytest.mark.parametrize("text_chunk_size", [None, 7], ids=["kept", "computed_twice"])
def test_classifier_equals_official_code(cocoop, text_chunk_size):
    compare = Compared(cocoop)
    base = classifier_of(cocoop, cocoop.hparam("n_ctx"))
    config, tensors = convert_cocoop(official_file(cocoop))
    config.text_chunk_size = text_chunk_size
    model = put(base, config, tensors)
    output = model(pixel_values=cocoop.inputs["pixel_values"], labels=cocoop.inputs["labels"])
    compare("logits", output.logits)
    compare("loss", output.loss)
    compare("image_features", base.get_image_features(cocoop.inputs["pixel_values"]).pooler_output)
    compare("meta_net_bias", base.prompt_embedder.shifts(output.image_embeds, "default"))
    token_embedding = base.clip.text_model.embeddings.token_embedding
    embedded = base.prompt_embedder(base.class_prompts, token_embedding, output.image_embeds)
    images, prefix = embedded.prefix_embeds.shape[:2]
    rest = token_embedding(embedded.input_ids[:, prefix:]).expand(images, -1, -1, -1)
    starts = embedded.prefix_embeds[:, None].expand(-1, rest.shape[1], -1, -1)
    compare("prompts", torch.cat([starts, rest], dim=2), tolerance=1e-6)
    compare("text_features", base._encode(embedded))
    output.loss.backward()
    compare("grad.ctx", trained(model, "clipv_cocoop_context").grad)
    for layer in ("linear1", "linear2"):
        linear = getattr(base.prompt_embedder, f"clipv_cocoop_{layer}")["default"]
        compare(f"grad.meta_net.{layer}.weight", linear.weight.grad)
        compare(f"grad.meta_net.{layer}.bias", linear.bias.grad)
    compare.assert_complete()
