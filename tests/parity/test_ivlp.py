"""IVLP equals muzairkhattak/multimodal-prompt-learning: blocks, features, logits, loss and gradients."""

import pytest
import torch
from adapter_models import Compared, fixture_clip
from parity_fixtures import load_fixture
from prompt_parity import (
    assert_complete_but_blocks,
    classifier_of,
    compare_classifier,
    compare_plain_clip,
    put,
    trained,
    word_ids,
)

from hf_clip_variants.adapters.ivlp.convert import convert_ivlp


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def ivlp():
    return load_fixture("ivlp")


def official_file(fixture) -> dict[str, torch.Tensor]:
    """A file as the official trainer saves it: image_encoder.*, text_encoder.*, prompt_learner.*."""
    names = {"clip.visual.": "image_encoder.", "clip.transformer.": "text_encoder.transformer."}
    saved = {}
    for name, tensor in fixture.state_dict.items():
        for ours, theirs in names.items():
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        saved[name] = tensor
    return saved


def compare_gradients(fixture, model, compare):
    vision = trained(model, "clipv_ivlp_vision_prompts").grad
    compare("grad.prompt_learner.ctx", trained(model, "clipv_ivlp_context").grad)
    compare("grad.image_encoder.VPT", vision[0])
    for i in range(1, fixture.hparam("PROMPT_DEPTH_VISION")):
        compare(f"grad.image_encoder.transformer.resblocks.{i}.VPT_shallow", vision[i])
    for i in range(1, fixture.hparam("PROMPT_DEPTH_TEXT")):
        text = trained(model, "clipv_ivlp_text_prompts").grad
        compare(f"grad.text_encoder.transformer.resblocks.{i}.VPT_shallow", text[i - 1])


def test_plain_clip_model_equals_official_code(ivlp):
    compare, base = Compared(ivlp), fixture_clip(ivlp)
    model = put(base, *convert_ivlp(official_file(ivlp), plain_clip=True, context_init_ids=word_ids(ivlp) or None))
    compare("prompts", base.text_model.embeddings.token_embedding(ivlp.inputs["tokenized_prompts"]), tolerance=1e-6)
    compare_plain_clip(ivlp, model, compare)
    compare_gradients(ivlp, model, compare)
    compare.assert_complete()


def test_classifier_equals_official_code(ivlp):
    compare, words = Compared(ivlp), word_ids(ivlp)
    base = classifier_of(ivlp, len(words) or ivlp.hparam("N_CTX_TEXT"))
    model = put(base, *convert_ivlp(ivlp.state_dict, context_init_ids=words or None))
    compare_classifier(ivlp, model, compare)
    compare_gradients(ivlp, model, compare)
    assert_complete_but_blocks(compare, "prompts")
