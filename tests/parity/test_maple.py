"""MaPLe equals muzairkhattak/multimodal-prompt-learning, with a random context and with one that starts as words."""

import pytest
import torch
from adapter_models import Compared, fixture_clip
from parity_fixtures import fixtures_like, load_fixture
from prompt_parity import (
    assert_complete_but_blocks,
    classifier_of,
    compare_classifier,
    compare_plain_clip,
    put,
    trained,
    word_ids,
)

from hf_clip_variants.adapters.maple.convert import convert_maple


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=fixtures_like("maple", "maple_*"))
def fixture(request):
    return load_fixture(request.param)


def compare_own_tensors(model, base, prompts_home, compare: Compared) -> None:
    depth = model.peft_config["default"].prompt_depth
    vision = (base if prompts_home == "plain" else base.clip).vision_model.embeddings
    compare("vision_shallow_prompt", vision.layer_prompts("default", 0, 1)[0])
    weight, bias = (trained(model, f"clipv_maple_projection_{part}").grad for part in ("weight", "bias"))
    compare("grad.ctx", trained(model, "clipv_maple_context").grad)
    compare("grad.proj.weight", weight[0])
    compare("grad.proj.bias", bias[0])
    for i in range(depth - 1):
        compare(f"vision_deep_prompt.{i}", vision.layer_prompts("default", i + 1, 1)[0])
        compare(f"grad.compound_prompts_text.{i}", trained(model, "clipv_maple_text_prompts").grad[i])
        compare(f"grad.compound_prompt_projections.{i}.weight", weight[i + 1])
        compare(f"grad.compound_prompt_projections.{i}.bias", bias[i + 1])


def test_plain_clip_model_equals_official_code(fixture):
    compare, base = Compared(fixture), fixture_clip(fixture)
    model = put(base, *convert_maple(fixture.state_dict, plain_clip=True, context_init_ids=word_ids(fixture) or None))
    assert model.peft_config["default"].prompt_depth == fixture.hparam("PROMPT_DEPTH")
    prompts = base.text_model.embeddings.token_embedding(fixture.inputs["tokenized_prompts"])
    compare("prompts", prompts, tolerance=1e-6)
    compare_plain_clip(fixture, model, compare)
    compare_own_tensors(model, base, "plain", compare)
    compare.assert_complete()


def test_classifier_equals_official_code(fixture):
    compare, words = Compared(fixture), word_ids(fixture)
    base = classifier_of(fixture, len(words) or fixture.hparam("N_CTX"))
    model = put(base, *convert_maple(fixture.state_dict, context_init_ids=words or None))
    embedded = base.prompt_embedder(base.class_prompts, base.clip.text_model.embeddings.token_embedding)
    prompts = base.clip.text_model.embeddings.token_embedding(embedded.input_ids)
    prompts = torch.cat(
        [embedded.prefix_embeds.expand(len(prompts), -1, -1), prompts[:, len(embedded.prefix_embeds) :]], 1
    )
    compare("prompts", prompts, tolerance=1e-6)
    compare_classifier(fixture, model, compare)
    compare_own_tensors(model, base, "classifier", compare)
    assert_complete_but_blocks(compare)
