"""What `forward` takes and gives: wrong arguments are named, causes of NaN too, and no device waits for a check."""

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from model_contract import CASES
from tiny import tiny_pixels

from hf_clip_variants.modeling.clip_classifier import classification_loss as losses
from hf_clip_variants.modeling.clip_classifier.classification_loss import classification_loss
from hf_clip_variants.modeling.dual_encoders.forward_checks import why_not_finite
from hf_clip_variants.modeling.dual_encoders.tracing import can_be_read


# Not for training alone.
_OF_ALL = ("pixel_values", "pixel_values_videos", "input_ids", "attention_mask", "input_features")
_OF_ALL += ("points", "video_features", "latents", "clip_input_ids", "clip_attention_mask")
_TEXTS = {
    "input_ids": torch.tensor([[4036, 5, 4037], [4036, 6, 4037], [4036, 7, 4037]])
}  # for models that have texts of their own


def _arguments(name: str) -> set[str]:
    case = CASES[name]
    return set(inspect.signature(case.row.load(case.part).forward).parameters)


DUAL_ENCODERS = [name for name, case in CASES.items() if case.part == "model" and name != "clip_classifier"]
# A model whose texts are its own prompts reads none.
READERS = [name for name in DUAL_ENCODERS if "input_ids" in _arguments(name)]


@pytest.mark.parametrize("name", ["clip_classifier", *DUAL_ENCODERS])
@pytest.mark.parametrize(
    ("argument", "change", "said"),
    [
        ("pixel_values", lambda x: x[:0], "expected at least one image"),
        ("pixel_values", lambda x: x[0], r"expected \[batch, 3, H, W\], got"),
        ("pixel_values", lambda x: x[:, :2], r"expected \[batch, 3, H, W\], got"),
        ("pixel_values", lambda x: x.tolist(), "got list"),
        ("pixel_values", lambda x: x.int(), "torch.int32 looks unnormalised"),
        ("input_ids", lambda x: x[:0], "expected at least one text"),
        ("input_ids", lambda x: x[:, :0], "expected at least one text"),
        ("input_ids", lambda x: x.float(), "expected whole numbers, got torch.float32"),
        ("input_ids", lambda x: x.tolist(), "got list"),
        ("input_ids", lambda x: x + 10**6, r"is outside 0\.\."),
        ("input_ids", lambda x: x - 10**6, r"is outside 0\.\."),
    ],
)
def test_wrong_inputs_of_every_model_are_named(name, argument, change, said):
    case = CASES[name]
    inputs = {k: v for k, v in case.inputs(2).items() if k != "labels"}
    inputs = {**_TEXTS, **inputs}
    if argument not in inputs or (argument == "input_ids" and name not in ("clip_classifier", *READERS)):
        pytest.skip("not an input")
    model = case.make()
    with pytest.raises(ValueError, match=f"{argument}.*: .*{said}"):
        model(**inputs | {argument: change(inputs[argument])})


@pytest.mark.parametrize("name", ["clip_classifier", *READERS])
def test_texts_of_more_tokens_than_there_are_positions_are_named(name):
    case = CASES[name]
    inputs = {k: v for k, v in (_TEXTS | case.inputs(2)).items() if k not in ("labels", "attention_mask")}
    inputs["input_ids"] = torch.cat([inputs["input_ids"]] * 200, dim=-1)
    with pytest.raises(ValueError, match=r"input_ids: \d+ tokens, "):
        case.make()(**inputs)


@pytest.mark.parametrize("name", DUAL_ENCODERS)
def test_a_weight_without_number_is_named_by_every_model(name):
    case = CASES[name]
    model = copy.deepcopy(case.make()).eval()
    inputs = {**_TEXTS, **case.inputs(2)}
    names = [n for n in model.state_dict() if n.endswith("weight")]
    last = [n for n in names if "text_projection" in n] or [n for n in names if n.endswith("output.LayerNorm.weight")]
    if name not in READERS:  # what an image is read by
        last = [n for n in names if ".vision_model." in n and n.endswith(("fc2.weight", "conv3.weight"))]
    weight = last[0]
    model.get_parameter(weight).data[0] = math.nan
    with pytest.raises(ValueError, match=f"because the weight {weight} has some"):
        model(**{k: v for k, v in inputs.items() if k in _OF_ALL})
    model.train()(**inputs)  # a training looks at its loss


@pytest.mark.parametrize("value", [1e38, -1e30, 1e12])
@pytest.mark.parametrize("name", list(CASES))
def test_a_huge_pixel_gives_finite_numbers_or_is_named(name, value):
    case = CASES[name]
    inputs = case.inputs(2)
    if "pixel_values" not in inputs:
        pytest.skip("not an input")
    inputs["pixel_values"] = inputs["pixel_values"].clone()
    inputs["pixel_values"].view(-1)[5] = value
    model = copy.deepcopy(case.make()).eval()
    try:
        with torch.no_grad():
            found = model(**inputs)
    except ValueError as error:
        assert "pixel_values" in str(error)
        return
    for key in ("loss", case.output):
        assert found.get(key) is None or found[key].isfinite().all(), key


def test_the_cause_is_the_first_that_explains_it(tmp_path):
    model = copy.deepcopy(tiny_classifier()).eval()
    pixels = tiny_pixels(2)
    pixels[1, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match=r"because pixel_values\[1\] has some; look at image_mean"):
        model(pixel_values=pixels)
    with pytest.raises(ValueError, match=r"because image_features\[0\] has some"):
        model(image_features=torch.full((1, 24), math.nan))
    model.clip.logit_scale.data.fill_(1000)
    with pytest.raises(ValueError, match=r"exp\(clip.logit_scale\) overflows: it is 1000"):
        model(pixel_values=tiny_pixels(1))
    model.clip.logit_scale.data.fill_(1)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    loaded.clip.vision_model.embeddings.class_embedding.data[3] = math.nan
    with pytest.raises(ValueError, match=rf"class_embedding has some \({tmp_path / 'model.safetensors'}\)"):
        loaded(pixel_values=tiny_pixels(1))
    half = copy.deepcopy(model).half()
    half.clip.visual_projection.weight.data.fill_(6e4)
    assert "float16 ends at 65504" in why_not_finite(half)


def test_numbers_are_read_on_a_cpu_and_while_no_graph_is_made():
    class Wrapped(torch.Tensor):
        pass

    assert can_be_read(torch.ones(2))
    assert not can_be_read(torch.ones(2, device="meta"))
    assert not can_be_read(torch.ones(2).as_subclass(Wrapped))
    seen = []
    torch.compile(lambda x: seen.append(can_be_read(x)) or x + 1, backend="eager")(torch.ones(2))
    assert seen == [False]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=1, max_size=4),
    st.sampled_from([torch.int64, torch.int32, torch.int16, torch.int8]),
    st.booleans(),
)
def test_labels_on_a_device_give_the_loss_that_looking_at_them_gives(labels, dtype, read):
    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(len(labels)), requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "can_be_read", lambda tensor: read)
        loss = classification_loss(logits, torch.tensor(labels).to(dtype))
        (gradient,) = torch.autograd.grad(loss, logits)
    if set(labels) == {-100}:
        assert loss == 0 and not gradient.any()
    else:
        assert torch.equal(loss, F.cross_entropy(logits, torch.tensor(labels)))
    assert gradient.isfinite().all()


def test_labels_that_are_none_are_named():
    logits = torch.randn(2, 3)
    for labels, said in (
        ([0, 1], "got list"),
        (torch.tensor([True, False]), "got torch.bool"),
        (torch.tensor([0.0, 1.0]), r"expected shape \[2, 3\], a share for each class"),
        (torch.tensor([0, 3], dtype=torch.uint8), r"labels\[1\] is 3, expected 0..2"),
        (torch.tensor([0]), r"expected class indices of shape \[2\]"),
    ):
        with pytest.raises(ValueError, match=f"^labels: .*{said}"):
            classification_loss(logits, labels)
    with pytest.raises(ValueError, match="^labels: for no images"):
        classification_loss(logits[:0], torch.zeros(0, dtype=torch.long))
    expected = classification_loss(logits, torch.tensor([0, 2]))
    for kind in (torch.int32, torch.uint8, torch.int16):
        assert classification_loss(logits, torch.tensor([0, 2], dtype=kind)) == expected
