"""Thresholds of the background that are learned: before training, the official labels."""

import pytest
import torch
from groupvit_runs import converted
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants import GroupViTForSemanticSegmentation
from hf_clip_variants.modeling.groupvit.background_threshold import BackgroundThreshold


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("groupvit_segmentation")


def learned_at_start(fixture, kind: str, threshold: float):
    model, texts = converted(fixture, GroupViTForSemanticSegmentation), fixture.inputs["text_embedding"]
    if kind == "open_vocabulary":
        model.config.background, model.config.background_start = "learned", threshold
        model.background_threshold = BackgroundThreshold(embedding_dim=texts.shape[1], threshold=threshold)
    else:
        module = BackgroundThreshold(num_labels=len(texts), threshold=threshold)
        model.config.background = module.thresholds().tolist()
    return model


@pytest.mark.parametrize("kind", ["per_label", "open_vocabulary"])
def test_before_training_labels_are_the_official_ones(fixture, kind):
    texts = fixture.inputs["text_embedding"]
    for index in sorted(name.removeprefix("pixel_values_") for name in fixture.inputs if name[-1].isdigit()):
        for number, threshold in enumerate(fixture.meta[f"thresholds_{index}"]):
            model = learned_at_start(fixture, kind, threshold)
            with torch.no_grad():
                outputs = model(fixture.inputs[f"pixel_values_{index}"], class_embeddings=texts)
            name = f"{index}_t{number}"
            assert torch.equal(outputs.logits.argmax(1), fixture.outputs[f"labels_bg_{name}"].long()), name
            assert_close(outputs.logits, fixture.outputs[f"pred_bg_{name}"], name)
