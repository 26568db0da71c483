"""The chunked loss is the plain one, gradients included, and nothing of size B x B is kept."""

import math
import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hf_clip_variants.modeling.contrastive_loss import contrastive_loss


def plain_loss(image, text, logit_scale, normalize=True):
    if normalize:
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = logit_scale.exp() * image @ text.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def pairs(batch, width=12, seed=0, dtype=torch.float32, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, width, generator=generator) * size
    text = image + torch.randn(batch, width, generator=generator) * size
    return [x.to(dtype).requires_grad_() for x in (image, text, torch.tensor(2.5))]


def loss_and_gradients(function, inputs, **kwargs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    loss = function(*inputs, **kwargs)
    return loss.detach(), *torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "chunk_size, dtype, tolerance",
    [(1, torch.float64, 1e-10), (7, torch.float64, 1e-10), (512, torch.float64, 1e-10), (16, torch.float32, 1e-5)],
)
def test_equals_the_plain_loss_for_every_batch_size(chunk_size, normalize, dtype, tolerance):
    for batch in range(2, 71):
        inputs = pairs(batch, seed=batch, dtype=dtype, size=1.0 if normalize else 0.3)
        ours = loss_and_gradients(contrastive_loss, inputs, chunk_size=chunk_size, normalize=normalize)
        plain = loss_and_gradients(plain_loss, [x.double() for x in inputs], normalize=normalize)
        for name, a, b in zip(("loss", "image", "text", "logit_scale"), ours, plain, strict=True):
            assert a.shape == b.shape and a.dtype == dtype
            # a well-matched batch has a small loss, the difference of large logits
            assert (a - b).norm() <= tolerance * max(b.norm(), 1), (batch, name)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize):
    inputs = pairs(7, width=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: contrastive_loss(*x, chunk_size=3, normalize=normalize), inputs)


@pytest.mark.parametrize("logit_scale", [math.log(100), -3.0, 8.0])
def test_stays_exact_where_a_fixed_shift_over_or_underflows(logit_scale):
    image, text, _ = pairs(20)
    text.data.neg_()  # all pairs' cosines are low: e^(S - scale) underflows at scale 100, e^S overflows for unpaired ones
    inputs = [image, text, torch.tensor(logit_scale)]
    ours = loss_and_gradients(contrastive_loss, inputs, chunk_size=6)
    exact = loss_and_gradients(plain_loss, [x.double() for x in inputs])
    for a, b in zip(ours, exact, strict=True):
        assert (a.double() - b).norm() <= 2e-5 * b.norm()


@pytest.mark.parametrize("which", [0, 1])
def test_a_zero_row_is_finite_and_gets_no_gradient(which):
    inputs = pairs(5)
    inputs[which].data[2] = 0
    loss, *grads = loss_and_gradients(contrastive_loss, inputs)
    assert loss.isfinite() and all(g.isfinite().all() for g in grads)
    assert not grads[which][2].any() and grads[which][[0, 1, 3, 4]].abs().sum(1).min() > 0
    assert loss.item() == pytest.approx(plain_loss(*inputs).item(), rel=1e-5)


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


@pytest.mark.parametrize(
    "image, text, kwargs, message",
    [
        ((3, 4), (2, 4), {}, r"same shape \(pairs, width\), got \(3, 4\) and \(2, 4\)"),
        ((3,), (3,), {}, r"got \(3,\) and \(3,\)"),
        ((0, 4), (0, 4), {}, "the batch is empty"),
        ((3, 4), (3, 4), {"chunk_size": 0}, "chunk_size: expected a number of rows >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(image, text, kwargs, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.zeros(image), torch.zeros(text), 1.0, **kwargs)


def test_half_precision_and_autocast_compute_in_float32():
    image, text, scale = (x.detach() for x in pairs(40, dtype=torch.bfloat16))
    exact = plain_loss(image.float(), text.float(), scale.float())
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
    expected = loss_and_gradients(plain_loss, (image, text, scale))
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


def test_nothing_of_the_size_of_the_logits_exists():
    inputs = pairs(300, width=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        contrastive_loss(*inputs, chunk_size=10)
    assert max(kept) == 300 * 4
    with LargestTensor() as largest:
        contrastive_loss(*inputs, chunk_size=10).backward()
    assert largest.numel == 10 * 300
