"""The bodies of `tests/parity/test_vpt_*.py`: VPT equals the official code, on CLIP and on ViT."""

import torch
import torch.nn.functional as F
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
)

from hf_clip_variants.adapters.vpt.convert import convert_vpt, convert_vpt_vit, vit_from_official


def _compare_gradients(fixture, model, compare: Compared) -> None:
    gradient = trained(model, "clipv_vpt_prompts").grad
    assert len(gradient) == fixture.hparam("PROMPT_DEPTH_VISION")
    compare("grad.image_encoder.VPT", gradient[0])
    for i in range(1, len(gradient)):
        compare(f"grad.image_encoder.transformer.resblocks.{i}.VPT_shallow", gradient[i])


def check_plain_clip_model(name: str) -> None:
    fixture = load_fixture(name)
    compare = Compared(fixture)
    model = put(fixture_clip(fixture), *convert_vpt(fixture.state_dict, plain_clip=True))
    compare_plain_clip(fixture, model, compare)
    _compare_gradients(fixture, model, compare)
    compare.assert_complete()


def check_classifier(name: str) -> None:
    fixture = load_fixture(name)
    compare = Compared(fixture)
    model = put(classifier_of(fixture, 0), *convert_vpt(fixture.state_dict))
    compare_classifier(fixture, model, compare)
    _compare_gradients(fixture, model, compare)
    assert_complete_but_blocks(compare)


def check_vit(name: str) -> None:
    fixture = load_fixture(name)
    compare = Compared(fixture)
    base = vit_from_official(fixture.state_dict, num_attention_heads=fixture.hparam("heads"))
    model = put(base, *convert_vpt_vit(fixture.state_dict))
    config = model.peft_config["default"]
    assert config.num_prompt_tokens == fixture.hparam("nt")
    assert config.prompt_depth == (fixture.hparam("layers") if fixture.hparam("deep") else 1)
    seen = {}
    first, last = base.vit.layers[0].base_layer, base.vit.layers[-1].base_layer
    first.register_forward_pre_hook(lambda module, args: seen.__setitem__("first", args[0].detach()))
    last.register_forward_hook(lambda module, args, output: seen.__setitem__("last", output.detach()))
    output = model(pixel_values=fixture.inputs["pixel_values"])
    loss = F.cross_entropy(output.logits, fixture.inputs["labels"])
    loss.backward()
    compare("embeddings_with_prompt", seen["first"])
    compare("encoded", base.vit.layernorm(seen["last"]))
    compare("features", base.vit(fixture.inputs["pixel_values"]).last_hidden_state[:, 0])
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


def initial_bound(name: str) -> tuple[float, torch.Tensor]:
    """The official initial range, and new prompts of ours on the same ViT."""
    from peft import get_peft_model

    from hf_clip_variants.adapters import VPTConfig

    fixture = load_fixture(name)
    base = vit_from_official(fixture.state_dict, num_attention_heads=fixture.hparam("heads"))
    width = fixture.hparam("proj")
    config = VPTConfig.original(num_prompt_tokens=200, prompt_depth=1, projection_dim=width if width > 0 else None)
    torch.manual_seed(0)
    return fixture.hparam("init_uniform_bound"), trained(get_peft_model(base, config), "clipv_vpt_prompts").detach()
