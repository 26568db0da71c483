"""CoOp equals KaiyangZhou/CoOp on CLIPClassifier and CLIPModel: prompts, features, logits, loss and gradients."""

import pytest
import torch
import torch.nn.functional as F
from adapter_models import Compared, fixture_classifier, fixture_clip
from parity_fixtures import load_fixture
from peft import get_peft_model

from hf_clip_variants.adapters import CoOpConfig, put_adapter
from hf_clip_variants.adapters.coop.convert import convert_coop
from hf_clip_variants.adapters.coop.layer import PromptEmbedderWithContext, TextEmbeddingsWithContext, splice


pytestmark = pytest.mark.parity
POSITIONS = ("end", "middle", "front")
KINDS = ("unified", "csc")


@pytest.fixture(scope="module")
def coop():
    return load_fixture("coop")


def _tails(prompts: torch.Tensor, num_context_tokens: int) -> torch.Tensor:
    return prompts[:, 1 + num_context_tokens :]


def _official_file(fixture, kind):
    learner = {
        k.removeprefix("prompt_learner."): v for k, v in fixture.state_dict.items() if k.startswith("prompt_learner.")
    }
    return {
        "ctx": learner[f"{kind}.ctx"],
        "token_prefix": learner["token_prefix"],
        "token_suffix": learner["token_suffix"],
    }


def _adapter(fixture, base, kind, position, plain_clip):
    config, tensors = convert_coop(
        _official_file(fixture, kind),
        class_token_position=position,
        class_names=fixture.meta["class_names"],
        plain_clip=plain_clip,
    )
    config.inference_mode = False
    return put_adapter(base, config, tensors)


def test_classifier_equals_official_code(coop):
    compare = Compared(coop)
    ids, labels = coop.inputs["tokenized_prompts"], coop.inputs["labels"]
    tails = _tails(ids, coop.hparam("n_ctx"))
    for position in POSITIONS:
        for kind in KINDS:
            base = fixture_classifier(coop, ids, tails, coop.inputs["name_lens"])
            model = _adapter(coop, base, kind, position, plain_clip=False)
            embedder = base.prompt_embedder
            assert isinstance(embedder, PromptEmbedderWithContext)
            embedded = embedder(base.class_prompts, base.clip.text_model.embeddings.token_embedding)
            compare(f"{position}.{kind}.prompts", embedded.inputs_embeds, tolerance=1e-6)
            compare(f"{position}.{kind}.text_features", base.get_class_features())
            output = model(pixel_values=coop.inputs["pixel_values"], labels=labels)
            compare(f"{position}.{kind}.logits", output.logits)
            compare(f"{position}.{kind}.loss", output.loss)
            output.loss.backward()
            compare(f"{position}.{kind}.grad_ctx", embedder.clipv_coop_context["default"].grad)
    compare("image_features", base.get_image_features(coop.inputs["pixel_values"]).pooler_output)

    ids, words = coop.inputs["words_init.tokenized_prompts"], coop.inputs["words_init.ctx_token_ids"][0].tolist()
    words = words[1 : words.index(coop.text_eos_token_id())]
    base = fixture_classifier(coop, ids, _tails(ids, len(words)), coop.inputs["name_lens"])
    zero_shot = base(pixel_values=coop.inputs["pixel_values"]).logits
    model = get_peft_model(base, CoOpConfig(context_init="a photo of a", context_init_ids=words))
    compare("words_init.ctx", base.prompt_embedder.clipv_coop_context["default"], tolerance=0)
    embedded = base.prompt_embedder(base.class_prompts, base.clip.text_model.embeddings.token_embedding)
    compare("words_init.prompts", embedded.inputs_embeds, tolerance=1e-6)
    logits = model(pixel_values=coop.inputs["pixel_values"]).logits
    compare("words_init.logits", logits)
    torch.testing.assert_close(logits, zero_shot, rtol=0, atol=1e-4)
    compare.assert_complete()


def test_plain_clip_model_equals_official_code(coop):
    compare = Compared(coop)
    ids, num_context_tokens = coop.inputs["tokenized_prompts"], coop.hparam("n_ctx")
    start = ids[:, :1]
    for position in POSITIONS:
        prompts = splice(
            start,
            start.expand(-1, num_context_tokens),
            _tails(ids, num_context_tokens),
            coop.inputs["name_lens"],
            position,
        )
        for kind in KINDS:
            base = fixture_clip(coop)
            model = _adapter(coop, base, kind, position, plain_clip=True)
            assert isinstance(base.text_model.embeddings, TextEmbeddingsWithContext)
            embeds = base.text_model.embeddings(prompts)
            positions = base.text_model.embeddings.position_embedding.weight[: prompts.shape[1]]
            compare(f"{position}.{kind}.prompts", embeds - positions, tolerance=1e-6)
            compare(f"{position}.{kind}.text_features", base.get_text_features(prompts).pooler_output)
            output = model(input_ids=prompts, pixel_values=coop.inputs["pixel_values"])
            loss = F.cross_entropy(output.logits_per_image, coop.inputs["labels"])
            compare(f"{position}.{kind}.logits", output.logits_per_image)
            compare(f"{position}.{kind}.loss", loss)
            loss.backward()
            compare(f"{position}.{kind}.grad_ctx", base.text_model.embeddings.clipv_coop_context["default"].grad)
    compare("image_features", base.get_image_features(coop.inputs["pixel_values"]).pooler_output)

    ids, words = coop.inputs["words_init.tokenized_prompts"], coop.inputs["words_init.ctx_token_ids"][0].tolist()
    words = words[1 : words.index(coop.text_eos_token_id())]
    prompts = torch.cat([ids[:, :1].expand(-1, 1 + len(words)), _tails(ids, len(words))], dim=1)
    base = fixture_clip(coop)
    model = get_peft_model(base, CoOpConfig(context_init_ids=words))
    embeddings = base.text_model.embeddings
    compare("words_init.ctx", embeddings.clipv_coop_context["default"], tolerance=0)
    compare(
        "words_init.prompts",
        embeddings(prompts) - embeddings.position_embedding.weight[: prompts.shape[1]],
        tolerance=1e-6,
    )
    compare("words_init.logits", model(input_ids=prompts, pixel_values=coop.inputs["pixel_values"]).logits_per_image)
    compare.assert_complete()


def test_class_specific_context_needs_class_names(coop):
    with pytest.raises(ValueError, match="class_names"):
        convert_coop(_official_file(coop, "csc"))
