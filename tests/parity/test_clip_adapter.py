"""CLIP-Adapter equals gaopengcuhk/CLIP-Adapter (image), and the paper's formula (text, both)."""

import pytest
import torch.nn.functional as F
from adapter_models import Compared, fixture_classifier, fixture_clip
from parity_fixtures import load_fixture

from hf_clip_variants.adapters import put_adapter
from hf_clip_variants.adapters.clip_adapter.config import TARGETS
from hf_clip_variants.adapters.clip_adapter.convert import convert_clip_adapter
from hf_clip_variants.adapters.clip_adapter.layer import blend, bottleneck


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("clip_adapter")


def _official_file(fixture, name):
    return {k.removeprefix(f"{name}."): v for k, v in fixture.state_dict.items() if k.startswith(f"{name}.")}


@pytest.mark.parametrize("plain_clip", [False, True], ids=["classifier", "plain_clip"])
def test_equals_official_code_and_formula(fixture, plain_clip):
    compare = Compared(fixture)
    image, text = (_official_file(fixture, name) for name in ("adapter", "text_adapter"))
    pixel_values, labels, input_ids = (fixture.inputs[k] for k in ("pixel_values", "labels", "input_ids"))

    def run(image=None, text=None, **ratios):
        base = fixture_clip(fixture) if plain_clip else fixture_classifier(fixture, input_ids)
        config, tensors = convert_clip_adapter(image, text, plain_clip=plain_clip, **ratios)
        width = fixture.hparam("embed_dim")
        assert config.hidden_width(width) == width // fixture.hparam("reduction")
        model = put_adapter(base, config, tensors)
        output = model(pixel_values=pixel_values, **({"input_ids": input_ids} if plain_clip else {}))
        return base, output.logits_per_image

    ratio = fixture.hparam("ratio_official")
    base, logits = run(image, ratio=ratio)
    clip = base if plain_clip else base.clip
    wrapper = base.get_submodule(TARGETS["image"][1 if plain_clip else 0])
    compare("logits", logits)
    loss = F.cross_entropy(logits, labels)
    compare("loss", loss)
    loss.backward()
    compare("grad.adapter.fc.0.weight", wrapper.clipv_clip_adapter_down["default"].weight.grad)
    compare("grad.adapter.fc.2.weight", wrapper.clipv_clip_adapter_up["default"].weight.grad)

    projection = wrapper.base_layer if plain_clip else clip.visual_projection
    features = projection(clip.vision_model(pixel_values).pooler_output)
    compare("image_features", features)
    compare("text_features", clip.get_text_features(input_ids).pooler_output)
    adapted = bottleneck(features, image["fc.0.weight"], image["fc.2.weight"])
    compare("adapter_output", adapted)
    compare("blended_features", blend(features, adapted, ratio))
    if not plain_clip:
        compare("blended_features", wrapper(features))

    alpha, beta = fixture.hparam("formula.alpha"), fixture.hparam("formula.beta")
    compare("formula.text_only.logits", run(text=text, ratio=beta)[1])
    compare("formula.both.logits", run(image, text, ratio=alpha, text_ratio=beta)[1])
    compare("formula.zero_ratio.logits", run(image, text, ratio=0.0)[1])
    compare.assert_complete()


def test_missing_or_mismatched_weights_are_refused(fixture):
    image = _official_file(fixture, "adapter")
    with pytest.raises(ValueError, match=r"not \(D // r, D\)"):
        convert_clip_adapter({"fc.0.weight": image["fc.0.weight"], "fc.2.weight": image["fc.0.weight"]})
    with pytest.raises(ValueError, match="at least one"):
        convert_clip_adapter()
