import pytest
import torch
import torch.nn.functional as F
from tiny import CLASS_NAMES, EMOJI_CLIP, tiny_pixels

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.modeling.clip_classifier.classification_loss import classification_loss


CLASSES = len(CLASS_NAMES)
LOGITS = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0))
INDICES = torch.tensor([0, 4, 2, 2])
SOFT = torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 1], [0.2, 0.2, 0.2, 0.2, 0.2]])
MANY = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])


@pytest.fixture(scope="module")
def classifier():
    return CLIPClassifier.from_pretrained(EMOJI_CLIP, class_names=CLASS_NAMES, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.nn.functional.interpolate(tiny_pixels(), size=64)


@torch.no_grad()
def test_the_loss_does_not_depend_on_what_was_called_before(classifier, pixels):
    expected = {"indices": F.cross_entropy, "soft": F.cross_entropy}
    labels = {"indices": INDICES, "soft": SOFT}
    for order in (["indices", "soft", "indices"], ["soft", "indices", "soft"]):
        for kind in order:
            output = classifier(pixels, labels=labels[kind])
            torch.testing.assert_close(output.loss, expected[kind](output.logits, labels[kind]))
            assert classifier.config.problem_type is None, "nothing is remembered"


def test_smoothed_labels_equal_torchs_label_smoothing():
    smoothed = 0.9 * F.one_hot(INDICES, CLASSES) + 0.1 / CLASSES
    torch.testing.assert_close(
        classification_loss(LOGITS, smoothed), F.cross_entropy(LOGITS, INDICES, label_smoothing=0.1)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_class_indices_may_be_any_integers(dtype):
    assert classification_loss(LOGITS, INDICES.to(dtype)) == F.cross_entropy(LOGITS, INDICES)


def test_soft_labels_may_be_rounded_to_half_precision():
    loss = classification_loss(LOGITS.bfloat16(), SOFT.bfloat16())
    assert (loss - F.cross_entropy(LOGITS, SOFT)).abs() < 0.02


def test_one_class_has_a_cross_entropy_of_zero_and_is_no_regression(pixels):
    classifier = CLIPClassifier.from_pretrained(EMOJI_CLIP, class_names=["cat"], dtype=torch.float32)
    output = classifier(pixels, labels=torch.zeros(4, dtype=torch.long))
    output.loss.backward()
    assert output.loss == 0 and classifier.config.problem_type is None
    assert all(p.grad is None or not p.grad.any() for p in classifier.parameters())


def test_ignored_labels_do_not_count():
    ignored = torch.tensor([0, -100, 2, -100])
    assert classification_loss(LOGITS, ignored) == F.cross_entropy(LOGITS[[0, 2]], ignored[[0, 2]])
    logits = LOGITS.clone().requires_grad_()
    loss = classification_loss(logits, torch.full((4,), -100))
    loss.backward()
    assert loss == 0 and not logits.grad.any(), "not NaN, where torch divides by zero"


def test_problem_types_that_are_asked_for_are_transformers():
    many = "multi_label_classification"
    assert classification_loss(LOGITS, MANY, many) == F.binary_cross_entropy_with_logits(LOGITS, MANY)
    assert classification_loss(LOGITS, MANY.long(), many) == F.binary_cross_entropy_with_logits(LOGITS, MANY)
    assert classification_loss(LOGITS, INDICES, "single_label_classification") == F.cross_entropy(LOGITS, INDICES)
    scores = torch.tensor([0.5, 2.0, -1.0, 0.0])
    assert classification_loss(LOGITS[:, :1], scores, "regression") == F.mse_loss(LOGITS[:, 0], scores)
    assert classification_loss(LOGITS, MANY * 3, "regression") == F.mse_loss(LOGITS, MANY * 3)


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (torch.tensor([0, 7, 1, 1]), None, r"labels\[1\] is 7, expected 0\.\.4 \(5 classes\)"),
        (torch.tensor([0, 1, 1, -1]), None, r"labels\[3\] is -1, expected 0\.\.4 \(5 classes\)"),
        (torch.tensor([0, 1]), None, r"shape \[4\], got integers of shape \[2\]"),
        (INDICES[:, None], None, r"shape \[4\], got integers of shape \[4, 1\]"),
        (MANY.long(), None, r"of shape \[4, 5\]; for several labels an image set problem_type to 'multi_label"),
        (MANY, None, "row 0 sums to 2, soft labels sum to 1; for several labels an image set problem_type"),
        (SOFT * torch.nan, None, r"labels\[0, 0\] is nan, expected 0 to 1"),
        (SOFT - 1, None, r"labels\[0, 0\] is -0.3, expected 0 to 1"),
        (SOFT[:, :3], None, r"expected shape \[4, 5\], a share for each class .* got shape \[4, 3\]"),
        (torch.tensor([0.0, 1, 2, 3]), None, r"\(or class indices as integers\), got shape \[4\]"),
        (INDICES == 0, None, "got torch.bool"),
        ([0, 1, 2, 3], None, "got list"),
        (INDICES, "multi_label_classification", r"expected shape \[4, 5\], 0 or 1 .* got shape \[4\]"),
        (MANY * 2, "multi_label_classification", r"labels\[0, 0\] is 2, expected 0 to 1"),
        (
            torch.zeros(4),
            "regression",
            r"expected shape \[4, 5\], a number for each class .*regression.*, got shape \[4\]",
        ),
    ],
)
def test_wrong_labels_are_named_with_what_is_wanted(labels, problem_type, message):
    with pytest.raises(ValueError, match=f"^labels: .*{message}"):
        classification_loss(LOGITS, labels, problem_type)


def test_an_unknown_problem_type_is_named():
    with pytest.raises(ValueError, match="problem_type: 'ranking' is unknown"):
        classification_loss(LOGITS, INDICES, "ranking")


def test_meta_tensors_and_compiled_code_are_not_read():
    assert classification_loss(LOGITS.to("meta"), INDICES.to("meta")).is_meta
    compiled = torch.compile(classification_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(LOGITS, INDICES), F.cross_entropy(LOGITS, INDICES))
    torch.testing.assert_close(compiled(LOGITS, SOFT), F.cross_entropy(LOGITS, SOFT))
