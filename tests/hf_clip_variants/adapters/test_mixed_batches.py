"""`adapter_names`: what is special about it. That a mixed batch equals each adapter by itself is in the contract."""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from tiny import tiny_clip, tiny_pixels
from transformers import ViTConfig, ViTForImageClassification

from hf_clip_variants.adapters import CLIPAdapterConfig, CoOpConfig, VPTConfig


pytestmark = pytest.mark.filterwarnings("ignore:Adapter name .* should not be contained in the prefix")
LABELS = torch.tensor([0, 1, 2, 3])


def two_adapters(make, base=None):
    torch.manual_seed(0)
    model = get_peft_model(tiny_classifier() if base is None else base, make(), "a")
    model.add_adapter("b", make())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "clipv_" in name:
                parameter.add_(torch.randn(parameter.shape))
    return model.eval()


def coop():
    return CoOpConfig(num_context_tokens=3)


def each(model, run) -> dict[str, torch.Tensor]:
    """What `run(model)` gives with each adapter alone, and with none."""
    found = {}
    for name in ("a", "b"):
        model.set_adapter(name)
        found[name] = run(model)
    with model.disable_adapter():
        found["__base__"] = run(model)
    return found


@torch.no_grad()
def test_the_image_encoder_runs_once_unless_an_adapter_is_in_it():
    for make, batches in ((coop, [4]), (CLIPAdapterConfig, [4]), (VPTConfig, [1, 3])):
        model = two_adapters(make)
        with patch.object(model.clip.vision_model, "forward", wraps=model.clip.vision_model.forward) as encoder:
            model(tiny_pixels(), adapter_names=["a", "b", "b", "b"])
        assert [len(call.kwargs["pixel_values"]) for call in encoder.call_args_list] == batches, make


@torch.no_grad()
def test_any_order_of_names_of_any_number_of_adapters():
    model, draw = two_adapters(coop), random.Random(0)
    features = torch.randn(32, model.config.projection_dim)
    alone = each(model, lambda m: m(image_features=features).logits)
    for _ in range(10):
        size = draw.randint(1, 32)
        names = draw.choices(["a", "b", "__base__"], k=size)
        expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
        logits = model(image_features=features[:size], adapter_names=tuple(names)).logits
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_threads_may_mix_and_not_mix_at_the_same_time():
    model = two_adapters(lambda: VPTConfig(num_prompt_tokens=3))
    alone = each(model, lambda m: m(pixel_values=tiny_pixels()).logits)
    model.set_adapter("b")

    def run(seed: int) -> float:
        with torch.no_grad():
            names = random.Random(seed).choices(["a", "b", "__base__"], k=4)
            option = {} if seed % 3 == 0 else {"adapter_names": names}
            expected = [alone[name if option else "b"][row] for row, name in enumerate(names)]
            return float((model(pixel_values=tiny_pixels(), **option).logits - torch.stack(expected)).abs().max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(run, range(24))) < 1e-4
    assert "forward" not in vars(model.get_base_model())


@torch.no_grad()
def test_loss_hidden_states_and_tuples_are_those_of_the_batch():
    model = two_adapters(coop)
    names, batch = ["a", "__base__", "b", "a"], {"pixel_values": tiny_pixels(), "labels": LABELS}
    output = model(**batch, adapter_names=names, output_hidden_states=True)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, LABELS))
    plain = model(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == len(plain.hidden_states)
    for mixed, alone in zip(output.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(mixed, alone, rtol=1e-5, atol=1e-5)
    loss, logits, *_ = model(**batch, adapter_names=names, return_dict=False)
    torch.testing.assert_close((loss, logits), (output.loss, output.logits))


@torch.no_grad()
def test_prompts_of_an_image_model_are_mixed():
    sizes = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=24, patch_size=8, num_labels=5)).eval()
    model = two_adapters(lambda: VPTConfig(num_prompt_tokens=3), vit)
    alone = each(model, lambda m: m(pixel_values=tiny_pixels()).logits)
    output = model(pixel_values=tiny_pixels(), labels=LABELS, adapter_names=["b", "a", "__base__", "b"])
    expected = torch.stack([alone[name][row] for row, name in enumerate(["b", "a", "__base__", "b"])])
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, F.cross_entropy(expected, LABELS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["a", "b", "a"], "adapter_names: 3 names for 4 images; want one for each image"),
        (["a"] * 5, "adapter_names: 5 names for 4 images"),
        (["a", "b", "c", "zebra"], "adapter_names: got ['c', 'zebra']; the model has ['a', 'b'], and '__base__'"),
        ("abab", "adapter_names: got 'abab'; want a list with the name of an adapter for each image"),
        ([], "adapter_names: got []; want a list"),
        ([0, 1, 0, 1], "adapter_names: got [0, 1, 0, 1]; want a list"),
        (["a", None, "b", "b"], "want a list with the name of an adapter for each image"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, error):
    model = two_adapters(coop)
    with pytest.raises(ValueError, match=re.escape(error)):
        model(pixel_values=tiny_pixels(), adapter_names=names)
    assert "forward" not in vars(model.get_base_model())


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_mixed_is_refused_by_name():
    pixels, names = tiny_pixels(), ["a", "b", "b", "a"]
    model = two_adapters(coop)
    with pytest.raises(ValueError, match="adapter_names: the model is in training mode"):
        model.train()(pixel_values=pixels, adapter_names=names)
    with pytest.raises(ValueError, match="adapter_names: pass it to the PeftModel"):
        model.get_base_model()(pixel_values=pixels, adapter_names=names)
    inject_adapter_in_model(LoraConfig(target_modules=["fc1"]), model.get_base_model(), "lora")
    with pytest.raises(ValueError, match="adapters cannot be mixed with LORA on the model; use set_adapter"):
        model.eval()(pixel_values=pixels, adapter_names=names)

    several = tiny_classifier()
    several.config.problem_type = "multi_label_classification"
    several.label_calibration = several.new_label_calibration()
    with pytest.raises(ValueError, match="adapters cannot be mixed with modules_to_save, which .* have"):
        two_adapters(coop, several)(pixel_values=pixels, adapter_names=names)

    plain = two_adapters(lambda: CLIPAdapterConfig(modality="image"), tiny_clip())
    texts = torch.tensor([[1, 5, 2]])
    with pytest.raises(ValueError, match="return_loss: the loss of images with texts needs one adapter for all"):
        plain(pixel_values=pixels, input_ids=texts, return_loss=True, adapter_names=names)
    with pytest.raises(ValueError, match="adapter_names: 4 names for no images"):
        plain(input_ids=texts, adapter_names=names)
