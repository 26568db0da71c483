"""Shared by `tests/parity/test_maple.py` and `test_maple_words.py`: MaPLe equals the official code."""

import torch
from adapter_models import Compared
from parity_fixtures import load_fixture
from prompted_parity import (
    assert_complete_but_blocks,
    classifier_of,
    compare_classifier,
    compare_plain_clip,
    fixture_clip,
    put,
    trained,
    word_ids,
)

from hf_clip_variants.adapters.maple.convert import convert_maple


def _compare_own_tensors(model, base, base_kind, compare: Compared) -> None:
    depth = model.peft_config["default"].prompt_depth
    vision = (base if base_kind == "plain" else base.clip).vision_model.embeddings
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


def check_plain_clip_model(name: str) -> None:
    fixture = load_fixture(name)
    compare, base = Compared(fixture), fixture_clip(fixture)
    model = put(base, *convert_maple(fixture.state_dict, plain_clip=True, context_init_ids=word_ids(fixture) or None))
    assert model.peft_config["default"].prompt_depth == fixture.hparam("PROMPT_DEPTH")
    prompts = base.text_model.embeddings.token_embedding(fixture.inputs["tokenized_prompts"])
    compare("prompts", prompts, tolerance=1e-6)
    compare_plain_clip(fixture, model, compare)
    _compare_own_tensors(model, base, "plain", compare)
    compare.assert_complete()


def check_classifier(name: str) -> None:
    fixture = load_fixture(name)
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
    _compare_own_tensors(model, base, "classifier", compare)
    assert_complete_but_blocks(compare)
