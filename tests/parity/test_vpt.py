"""VPT equals the official code: muzairkhattak/multimodal-prompt-learning on CLIP, KMnP/vpt on ViT."""

import pytest
import torch
import torch.nn.functional as F
from adapter_models import Compared, fixture_clip
from parity_fixtures import fixtures_like, load_fixture
from peft import get_peft_model
from prompt_parity import (
    assert_complete_but_blocks,
    classifier_of,
    compare_classifier,
    compare_plain_clip,
    put,
    trained,
)

from hf_clip_variants.adapters import VPTConfig
from hf_clip_variants.adapters.vpt.convert import convert_vpt, convert_vpt_vit, vit_from_official


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=fixtures_like("vpt_shallow*", "vpt_deep*"))
def on_clip(request):
    return load_fixture(request.param)


@pytest.fixture(scope="module", params=fixtures_like("vpt_vit_*"))
def on_vit(request):
    return load_fixture(request.param)


def compare_gradients(fixture, model, compare: Compared) -> None:
    gradient = trained(model, "clipv_vpt_prompts").grad
    assert len(gradient) == fixture.hparam("PROMPT_DEPTH_VISION")
    compare("grad.image_encoder.VPT", gradient[0])
    for i in range(1, len(gradient)):
        compare(f"grad.image_encoder.transformer.resblocks.{i}.VPT_shallow", gradient[i])


def test_plain_clip_model_equals_official_code(on_clip):
    compare = Compared(on_clip)
    model = put(fixture_clip(on_clip), *convert_vpt(on_clip.state_dict, plain_clip=True))
    compare_plain_clip(on_clip, model, compare)
    compare_gradients(on_clip, model, compare)
    compare.assert_complete()


def test_classifier_equals_official_code(on_clip):
    compare = Compared(on_clip)
    model = put(classifier_of(on_clip, 0), *convert_vpt(on_clip.state_dict))
    compare_classifier(on_clip, model, compare)
    compare_gradients(on_clip, model, compare)
    assert_complete_but_blocks(compare)


def test_vit_equals_official_code(on_vit):
    compare = Compared(on_vit)
    base = vit_from_official(on_vit.state_dict, num_attention_heads=on_vit.hparam("heads"))
    model = put(base, *convert_vpt_vit(on_vit.state_dict))
    config = model.peft_config["default"]
    assert config.num_prompt_tokens == on_vit.hparam("nt")
    assert config.prompt_depth == (on_vit.hparam("layers") if on_vit.hparam("deep") else 1)
    seen = {}
    first, last = base.vit.layers[0].base_layer, base.vit.layers[-1].base_layer
    first.register_forward_pre_hook(lambda module, args: seen.__setitem__("first", args[0].detach()))
    last.register_forward_hook(lambda module, args, output: seen.__setitem__("last", output.detach()))
    output = model(pixel_values=on_vit.inputs["pixel_values"])
    loss = F.cross_entropy(output.logits, on_vit.inputs["labels"])
    loss.backward()
    compare("embeddings_with_prompt", seen["first"])
    compare("encoded", base.vit.layernorm(seen["last"]))
    compare("features", base.vit(on_vit.inputs["pixel_values"]).last_hidden_state[:, 0])
    compare("logits", output.logits)
    compare("loss", loss)
    gradient = trained(model, "clipv_vpt_prompts").grad
    ours = {
        "enc.transformer.prompt_embeddings": gradient[:1],
        "enc.transformer.deep_prompt_embeddings": gradient[1:],
    }
    for part in ("weight", "bias"):
        ours[f"head.last_layer.{part}"] = getattr(base.classifier.modules_to_save["default"], part).grad
        if config.projection_dim is not None:
            projection = base.vit.embeddings.clipv_vpt_projection["default"]
            ours[f"enc.transformer.prompt_proj.{part}"] = getattr(projection, part).grad
    for key in compare.expected:
        if key.startswith("grad."):
            compare(key, ours[key.removeprefix("grad.")])
    compare.assert_complete()


def test_initial_range_equals_official(on_vit):
    base = vit_from_official(on_vit.state_dict, num_attention_heads=on_vit.hparam("heads"))
    width, bound = on_vit.hparam("proj"), on_vit.hparam("init_uniform_bound")
    config = VPTConfig.original(num_prompt_tokens=200, prompt_depth=1, projection_dim=width if width > 0 else None)
    torch.manual_seed(0)
    prompts = trained(get_peft_model(base, config), "clipv_vpt_prompts").detach()
    assert prompts.abs().max() <= bound and prompts.abs().max() > 0.99 * bound
