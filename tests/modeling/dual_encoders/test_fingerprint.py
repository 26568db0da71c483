"""Any other weight gives another fingerprint; the same weights in another dtype are recognised."""

import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EMOJI_CLIP, tiny_clip
from tiny_families import tiny_dual_encoder
from torch import nn
from transformers import AutoModel

from hf_clip_variants.modeling.dual_encoders.fingerprint import compare_backbone, features_key, fingerprint


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MODEL = tiny_clip()
PRINT, KEY, WEIGHTS = fingerprint(MODEL), features_key(MODEL), dict(MODEL.named_parameters())
# Of the embedded model, as the first versions of this package wrote it.
FIRST_FORM = (
    "v1:371b13397730382c:AIBCPABAPTwAQLw8AECEPAAg2jwAQEq9AMD8uwCAjbwA4Io7AKDKPABgbj0AYI08AIAiPQCgAbwAALO8AAAyvQDAszwA4Ii8"
    "AKBFOgBAMzkAALq9AGDxOgCAqzwAICG9"
)


def same(model, recorded) -> bool:
    """Whether it is the same backbone for certain."""
    found = compare_backbone(model, recorded)
    return found.same and found.unchecked is None


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(WEIGHTS)), data=st.data())
def test_any_other_value_in_any_place_gives_another_fingerprint_at_once(name, data):
    """Also one that PyTorch does not count as a change."""
    weight = WEIGHTS[name]
    flat = weight.data.reshape(-1)
    place, other = (data.draw(st.integers(0, flat.numel() - 1)) for _ in range(2))
    changes = {
        "next number": lambda: flat[place].copy_(torch.nextafter(flat[place], torch.tensor(9.0))),
        "other sign": lambda: flat[place].neg_() if flat[place] else flat[place].add_(1),
        "two other signs": lambda: flat[[place, other]].neg_(),
        "all other signs": lambda: flat.neg_() if flat.any() else flat.add_(1),
        "another order": lambda: flat.copy_(flat.flip(0)),
        "two exchanged": lambda: flat[[place, other]].flip(0),
        "not a number": lambda: flat[place].fill_(float("nan")),
    }
    kind = data.draw(st.sampled_from(sorted(changes)))
    before = flat.clone()
    changed = changes[kind]()
    if kind.startswith("two"):
        flat[[place, other]] = changed
    is_other = not torch.equal(before.view(torch.int32), flat.view(torch.int32))
    try:
        assert (fingerprint(MODEL) != PRINT) == (features_key(MODEL) != KEY) == is_other, kind
        assert same(MODEL, PRINT) != is_other
    finally:
        flat.copy_(before)
    assert fingerprint(MODEL) == PRINT and features_key(MODEL) == KEY


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(0, 9000),
    dtype=st.sampled_from([*DTYPES, torch.int8, torch.bool, torch.int64]),
    shift=st.booleans(),
)
def test_sums_are_those_of_plain_arithmetic_for_any_length_and_place_in_memory(size, dtype, shift):
    module = sys.modules[fingerprint.__module__]
    values = torch.randn(size + shift).mul(100).to(dtype)[int(shift) :]
    content = values.clone().view(torch.uint8).numpy().tobytes()
    lanes = np.frombuffer(content + bytes(-len(content) % 4), dtype="<i4").tolist()
    factors = module._factors(torch.device("cpu")).tolist()
    rows = [lanes[i : i + 4096] for i in range(0, len(lanes), 4096)] + ([] if len(lanes) % 4096 else [[]])
    sums = [sum(a * b for a, b in zip(row, factors, strict=False)) % 2**64 for row in rows]
    assert module._row_sums(values) == b"".join(value.to_bytes(8, "little") for value in sums)


@pytest.mark.parametrize("made", DTYPES)
@pytest.mark.parametrize("loaded", DTYPES)
def test_the_same_weights_in_another_dtype_are_recognised_and_others_are_not(made, loaded):
    recorded = fingerprint(tiny_clip().to(made))
    found = compare_backbone(tiny_clip().to(loaded), recorded)
    assert found.same
    lower = {made, loaded} & {torch.bfloat16, torch.float16}
    assert (found.unchecked is None) == (len(lower) < 2), "rounded in two ways: nothing has what both came from"
    assert not compare_backbone(tiny_clip(seed=1).to(loaded), recorded).same
    other = tiny_clip()
    other.vision_model.encoder.layers[1].mlp.fc1.weight.data[3, 5] += 0.5
    assert not same(other.to(loaded), recorded)


def test_weights_that_two_dtypes_hold_alike_are_recognised_in_both():
    model = tiny_clip().bfloat16().half()
    assert same(copy.deepcopy(model).bfloat16(), fingerprint(model))


def test_statistics_of_batch_norm_are_weights_and_their_counter_is_none():
    model = tiny_dual_encoder("clipv-clip_resnet")
    recorded = fingerprint(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[-1].num_batches_tracked += 1
    assert same(model, recorded)
    norms[-1].running_var[0] *= 1.001
    assert not compare_backbone(model, recorded).same


def test_what_is_not_in_memory_is_said_and_what_accelerate_keeps_elsewhere_is_read(tmp_path):
    meta = tiny_clip().to("meta")
    found = compare_backbone(meta, PRINT)
    assert found.same and "are not in memory" in found.unchecked
    assert "when the adapter was made" in compare_backbone(tiny_clip(), fingerprint(meta)).unchecked
    assert features_key(meta) != features_key(meta), "nothing may be kept for it"
    from accelerate import cpu_offload, disk_offload

    assert same(cpu_offload(tiny_clip(), "cpu"), PRINT)
    assert same(disk_offload(tiny_clip(), tmp_path, "cpu"), PRINT)
    assert not same(cpu_offload(tiny_clip(seed=1), "cpu"), PRINT)


def test_a_fingerprint_of_the_first_form_is_compared_as_far_as_it_goes():
    model = AutoModel.from_pretrained(EMOJI_CLIP)
    found = compare_backbone(model, FIRST_FORM)
    assert found.same and "only 24 of the values" in found.unchecked
    assert compare_backbone(model.bfloat16(), FIRST_FORM).same
    assert not compare_backbone(tiny_clip(), FIRST_FORM).same
    model.text_model.embeddings.position_embedding.weight.data.neg_()
    model.visual_projection.weight.data.neg_()
    assert not compare_backbone(model, FIRST_FORM).same


@pytest.mark.parametrize("text", ["", "v1", "v3:abc", "v2:a:b", PRINT + ":", FIRST_FORM[:-2] + "!", None, 7, ["v1"]])
def test_what_is_no_fingerprint_is_refused(text):
    model = AutoModel.from_pretrained(EMOJI_CLIP)
    with pytest.raises(ValueError, match="backbone_fingerprint: got "):
        compare_backbone(model, text)


class Halves(torch.Tensor):
    """A tensor that consists of two others, as quantised ones do, and that no operation can read."""

    @staticmethod
    def __new__(cls, high, low):
        return torch.Tensor._make_wrapper_subclass(cls, high.shape, dtype=torch.float32)

    def __init__(self, high, low):
        self.high, self.low = high, low

    def __tensor_flatten__(self):
        return ["high", "low"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0]
        raise AssertionError(function)


def quantised(seed=0) -> nn.Module:
    model = tiny_clip(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.data
            high = weight.mul(8).round()
            module.weight = nn.Parameter(Halves(high.to(torch.int8), weight - high / 8), requires_grad=False)
    return model


def test_quantised_weights_are_read_by_their_parts():
    recorded = fingerprint(quantised())
    assert same(quantised(), recorded) and not compare_backbone(quantised(seed=1), recorded).same
    other = quantised()
    other.vision_model.encoder.layers[0].mlp.fc1.weight.low[0, 0] += 1e-3
    assert not compare_backbone(other, recorded).same
    found = compare_backbone(quantised(), PRINT)
    assert found.same and "Halves" in found.unchecked, "against weights of full precision"
    assert features_key(quantised()) == features_key(quantised()) != features_key(other)


def test_the_key_of_features_knows_configuration_dtype_and_adapters():
    from peft import LoraConfig, get_peft_model

    models = [tiny_clip(), tiny_clip().bfloat16(), tiny_clip(), tiny_clip()]
    models[2].config.vision_config.layer_norm_eps = 1e-3
    models[3].config.text_config.hidden_act = "gelu"
    for alpha in (8, 16):
        torch.manual_seed(0)
        lora = get_peft_model(tiny_clip(), LoraConfig(target_modules=["q_proj"], lora_alpha=alpha, r=2))
        models.append(lora.base_model.model)
    keys = [features_key(model) for model in models]
    assert len(set(keys)) == len(keys)
    same = [compare_backbone(model, PRINT).same for model in models]
    assert same == [True, True, False, False, True, True], "an adapter is no part of the backbone, its settings are"
    models[0].config._name_or_path = "elsewhere"
    assert features_key(models[0]) == keys[0]


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao_weights_have_fingerprints(kind):
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_clip()
    quantization.quantize_(model, getattr(quantization, kind)())
    recorded = fingerprint(model)
    assert same(model, recorded) and compare_backbone(model, PRINT).unchecked
    assert features_key(model) == features_key(model)
