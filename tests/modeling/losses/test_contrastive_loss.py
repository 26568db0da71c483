"""The chunked losses are the plain ones, gradients included, and nothing of size B x B is kept.

On several ranks: test_contrastive_ranks.py.
"""

import math
import warnings

import pytest
import torch
from contrastive_runs import loss_and_gradients, pairs
from torch.utils._python_dispatch import TorchDispatchMode

from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.losses.contrastive_loss import contrastive_accuracy, contrastive_loss
from hf_clip_variants.modeling.losses.contrastive_loss_reference import contrastive_loss_reference


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "chunk_size, dtype, tolerance",
    [(1, torch.float64, 1e-10), (7, torch.float64, 1e-10), (512, torch.float64, 1e-10), (16, torch.float32, 1e-5)],
)
def test_equals_the_plain_softmax_for_every_batch_size(chunk_size, normalize, dtype, tolerance):
    for batch in range(2, 71):
        inputs = pairs(batch, seed=batch, dtype=dtype, size=1.0 if normalize else 0.3)
        ours = loss_and_gradients(contrastive_loss, inputs, chunk_size=chunk_size, normalize=normalize)
        plain = loss_and_gradients(contrastive_loss_reference, [x.double() for x in inputs], normalize=normalize)
        for name, a, b in zip(("loss", "image", "text", "logit_scale"), ours, plain, strict=True):
            assert a.shape == b.shape and a.dtype == dtype
            # a well-matched batch has a small loss, the difference of large logits
            assert (a - b).norm() <= tolerance * max(b.norm(), 1), (batch, name)


def sigmoid_loss(image, text, logit_scale, logit_bias, **kwargs):
    return contrastive_loss(image, text, logit_scale, logit_bias=logit_bias, form="sigmoid", **kwargs)


def sigmoid_inputs(batch, **kwargs):
    """SigLIP's parameters are of shape (1,)."""
    image, text, scale = pairs(batch, **kwargs)
    return image, text, scale.detach().reshape(1), scale.new_tensor([-3.0])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "chunk_size, dtype, tolerance",
    [(1, torch.float64, 1e-12), (7, torch.float64, 1e-12), (512, torch.float64, 1e-12), (16, torch.float32, 1e-5)],
)
def test_the_sigmoid_form_equals_the_plain_loss_for_every_batch_size(chunk_size, normalize, dtype, tolerance):
    for batch in range(1, 71):
        inputs = sigmoid_inputs(batch, seed=batch, dtype=dtype, size=1.0 if normalize else 0.3)
        ours = loss_and_gradients(sigmoid_loss, inputs, chunk_size=chunk_size, normalize=normalize)
        plain = loss_and_gradients(contrastive_loss_reference, [x.double() for x in inputs], normalize=normalize)
        for name, a, b in zip(("loss", "image", "text", "logit_scale", "logit_bias"), ours, plain, strict=True):
            assert a.dtype == dtype and a.numel() == b.numel()
            assert (a - b.reshape(a.shape)).norm() <= tolerance * b.norm(), (batch, name)


def test_the_sigmoid_form_is_transformers_siglip_loss():
    from transformers import SiglipConfig, SiglipModel

    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = SiglipConfig(text_config={**layers, "vocab_size": 20}, vision_config={**layers, "image_size": 32})
    model = SiglipModel(config)
    model.logit_scale.data.fill_(1.5)
    outputs = model(torch.randint(20, (6, 5)), torch.randn(6, 3, 32, 32), return_loss=True)
    embeds = outputs.image_embeds, outputs.text_embeds
    for normalize in (False, True):
        ours = sigmoid_loss(*embeds, model.logit_scale, model.logit_bias, normalize=normalize)
        assert ours.item() == pytest.approx(outputs.loss.item(), rel=1e-5)


@pytest.mark.parametrize("bias", [-60.0, 0.0, 60.0])
def test_the_sigmoid_form_keeps_its_digits_at_either_end(bias):
    image, text, scale = pairs(12)
    inputs = [image, text, torch.tensor(math.log(20.0)), torch.tensor(bias)]
    ours = loss_and_gradients(sigmoid_loss, inputs, chunk_size=5)
    exact = loss_and_gradients(contrastive_loss_reference, [x.double() for x in inputs])
    for a, b in zip(ours, exact, strict=True):
        assert a.isfinite().all() and (a.double() - b).norm() <= 1e-5 * b.norm()


def test_the_sigmoid_form_without_gradients_has_the_same_value():
    inputs = sigmoid_inputs(9)
    loss = loss_and_gradients(sigmoid_loss, inputs)[0]
    with torch.no_grad():
        assert sigmoid_loss(*inputs, chunk_size=2).item() == pytest.approx(loss.item(), rel=1e-6)
    image, text, scale, bias = inputs
    one_side = sigmoid_loss(image.detach(), text, 2.5, -3.0)
    one_side.backward()
    assert text.grad.any() and one_side.item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize):
    inputs = pairs(7, width=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: contrastive_loss(*x, chunk_size=3, normalize=normalize), inputs)
    inputs.append(torch.tensor(-1.0, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda *x: sigmoid_loss(*x, chunk_size=3, normalize=normalize), inputs)


def test_a_number_for_the_scale_has_the_precision_of_the_embeddings():
    image, text, _ = pairs(5, dtype=torch.float64)
    tensor = torch.tensor(math.log(10.0), dtype=torch.float64)
    assert torch.equal(contrastive_loss(image, text, math.log(10.0)), contrastive_loss(image, text, tensor))


@pytest.mark.parametrize("logit_scale", [math.log(100), -3.0, 8.0])
def test_stays_exact_where_a_fixed_shift_over_or_underflows(logit_scale):
    image, text, _ = pairs(20)
    # All pairs' cosines are low: e^(S - scale) underflows at scale 100, e^S overflows for unpaired ones.
    text.data.neg_()
    inputs = [image, text, torch.tensor(logit_scale)]
    ours = loss_and_gradients(contrastive_loss, inputs, chunk_size=6)
    exact = loss_and_gradients(contrastive_loss_reference, [x.double() for x in inputs])
    for a, b in zip(ours, exact, strict=True):
        assert (a.double() - b).norm() <= 2e-5 * b.norm()


@pytest.mark.parametrize("which", [0, 1])
def test_a_zero_row_is_finite_and_gets_no_gradient(which):
    inputs = pairs(5)
    inputs[which].data[2] = 0
    loss, *grads = loss_and_gradients(contrastive_loss, inputs)
    assert loss.isfinite() and all(g.isfinite().all() for g in grads)
    assert not grads[which][2].any() and grads[which][[0, 1, 3, 4]].abs().sum(1).min() > 0
    assert loss.item() == pytest.approx(contrastive_loss_reference(*inputs).item(), rel=1e-5)


def test_one_pair_has_loss_zero_and_a_warning():
    with pytest.warns(UserWarning, match="one pair is always 0"):
        loss, *grads = loss_and_gradients(contrastive_loss, pairs(1))
    assert loss == 0 and not any(g.any() for g in grads)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contrastive_loss(*pairs(2))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1000.0])
def test_a_broken_logit_scale_is_named(value):
    image, text, _ = pairs(3)
    with pytest.raises(FloatingPointError, match=r"logit_scale: exp\(logit_scale\) is (nan|inf); it must be finite"):
        contrastive_loss(image, text, torch.tensor(value))


def test_a_broken_logit_bias_is_named():
    image, text, scale = pairs(3)
    with pytest.raises(FloatingPointError, match="logit_bias: it is nan; it must be finite"):
        sigmoid_loss(image, text, scale, math.nan)


@pytest.mark.parametrize(
    "image, text, kwargs, message",
    [
        ((3, 4), (2, 4), {}, r"same shape \(pairs, width\), got \(3, 4\) and \(2, 4\)"),
        ((3,), (3,), {}, r"got \(3,\) and \(3,\)"),
        ((0, 4), (0, 4), {}, "the batch is empty"),
        ((3, 4), (3, 4), {"chunk_size": 0}, "chunk_size: expected a number of rows >= 1, got 0"),
        ((3, 4), (3, 4), {"form": "hinge"}, "form: expected 'softmax' or 'sigmoid', got 'hinge'"),
        ((3, 4), (3, 4), {"gather": "all"}, "gather: expected 'exact', 'none', 'slip' or 'open_clip', got 'all'"),
        ((3, 4), (3, 4), {"gather": "slip", "form": "sigmoid"}, "gather: 'slip' is for the softmax form"),
        ((3, 4), (3, 4), {"form": "sigmoid"}, "logit_bias: the sigmoid form needs one"),
        ((3, 4), (3, 4), {"logit_bias": 0.0}, "logit_bias: .*the softmax form has none; got 0.0 for softmax"),
        (
            (3, 4),
            (3, 4),
            {"form": "sigmoid", "logit_bias": torch.zeros(2)},
            r"logit_bias: expected one number, got shape \(2,\)",
        ),
    ],
)
def test_bad_arguments_are_named(image, text, kwargs, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.zeros(image), torch.zeros(text), 1.0, **kwargs)


def test_half_precision_and_autocast_compute_in_float32():
    image, text, scale = (x.detach() for x in pairs(40, dtype=torch.bfloat16))
    exact = contrastive_loss_reference(image.float(), text.float(), scale.float())
    image.requires_grad_()
    loss = contrastive_loss(image, text, scale)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = contrastive_loss(image, text, scale)
        mixed.backward()
    assert torch.equal(mixed, loss) and image.grad.dtype == torch.bfloat16
    assert torch.equal(image.grad, torch.autograd.grad(loss, image)[0])


def test_a_frozen_side_is_not_differentiated():
    image, text, scale = pairs(9)
    expected = loss_and_gradients(contrastive_loss_reference, (image, text, scale))
    contrastive_loss(image.detach(), text, 2.5).backward()
    assert (text.grad - expected[2]).norm() <= 1e-5 * expected[2].norm()
    contrastive_loss(image, text.detach(), scale.detach()).backward()
    assert (image.grad - expected[1]).norm() <= 1e-5 * expected[1].norm() and scale.grad is None


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(x)]
        self.numel = max([self.numel, *(x.numel() for x in tensors)])
        return result


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
def test_nothing_of_the_size_of_the_logits_exists(loss):
    inputs = pairs(300, width=4) if loss is contrastive_loss else sigmoid_inputs(300, width=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss(*inputs, chunk_size=10)
    assert max(kept) == 300 * 4
    with LargestTensor() as largest:
        loss(*inputs, chunk_size=10).backward()
    assert largest.numel == 10 * 300


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
def test_compiles(loss):
    inputs = pairs(9) if loss is contrastive_loss else sigmoid_inputs(9)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        loss_and_gradients(compiled, inputs, chunk_size=4), loss_and_gradients(loss, inputs, chunk_size=4), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_modes_for_many_ranks_are_the_loss_itself_on_one():
    inputs = pairs(6)
    expected = loss_and_gradients(contrastive_loss_reference, inputs)
    for gather in ("exact", "none", "slip", "open_clip"):
        for a, b in zip(loss_and_gradients(contrastive_loss, inputs, gather=gather), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_accuracy_counts_the_images_whose_text_is_nearest():
    image, text = (
        torch.eye(4),
        torch.eye(4)[[0, 1, 3, 2]] * torch.tensor([[9.0], [1], [1], [1]]),
    )  # lengths do not count
    assert contrastive_accuracy(image, text, chunk_size=3) == 0.5
    with pytest.raises(ValueError, match="gather: expected 'exact' or 'none', got 'slip'"):
        contrastive_accuracy(image, text, gather="slip")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_unit_norm_is_torchs_to_the_last_bit_gradients_included(dtype):
    """But for rows of zeros, whose gradient is 0 here and huge there."""
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.randn(50, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = torch.nn.functional.normalize(theirs.to(wide), dim=-1).to(dtype)
    assert torch.equal(unit_norm(ours), expected)
    (unit_norm(ours) * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)

    zeros = torch.zeros(2, 24, dtype=dtype, requires_grad=True)
    unit_norm(zeros).sum().backward()
    assert not unit_norm(zeros).any() and not zeros.grad.any()
