import pytest
import torch
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.clip_classifier.adapter_places import LogitHead, ensemble_prompts
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm


pytestmark = pytest.mark.parity


def test_prompt_ensemble_and_logits_equal_the_official_notebook():
    fixture = load_fixture("clip_zeroshot")
    inputs, outputs = fixture.inputs, fixture.outputs

    classes = unit_norm(ensemble_prompts(inputs["text_features_per_class_template"]))
    logits = LogitHead()(unit_norm(inputs["image_features"]), classes, torch.tensor(100.0))

    assert_close(classes.t(), outputs["classifier"], "classifier")
    assert_close(logits, outputs["logits"], "logits")
    assert_close(logits.softmax(dim=-1), outputs["probs"], "probs")
    hits = logits.topk(fixture.meta["k"], dim=-1).indices == inputs["labels"][:, None]
    for name, count in (("top1", 1), ("topk", fixture.meta["k"])):
        accuracy = hits[:, :count].any(dim=-1).float().mean()
        assert_close(100 * accuracy, outputs[name], name)
