"""What class features depend on is read from lists, and once a training: as exact as walking all modules, and fast."""

import random

import pytest
import torch
from adapter_models import tiny_classifier
from peft import LoraConfig, get_peft_model
from tiny import CLASS_NAMES
from torch import nn

from hf_clip_variants.adapters import CLIPAdapterConfig, CoCoOpConfig, CoOpConfig, LinearHeadConfig, TipAdapterConfig
from hf_clip_variants.modeling.clip_classifier.class_features import ClassFeatureCache, text_state


def features(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.spare = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), None
        self.lora = nn.Module()
        self.lora._disable_adapters, self.lora._active_adapter, self.lora.merged_adapters = False, "a", []


def changes(block: Block, draw: random.Random) -> None:
    """One thing that may happen to a text side; some of them change nothing."""
    weight = draw.choice([block.one.weight, block.one.bias, block.two[0].weight])
    layer = draw.choice([block.one, block.two[0]])

    def switch(name, value):
        setattr(block.lora, name, value)

    def assign(module=layer):
        module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)

    with torch.no_grad():
        draw.choice(
            [
                lambda: None,
                lambda: weight.mul_(2),
                lambda: setattr(weight, "data", weight.data.clone()),
                lambda: setattr(weight, "data", weight.data.view_as(weight)),
                lambda: setattr(weight, "grad", torch.zeros_like(weight)),
                lambda: setattr(weight, "grad", None),
                lambda: weight.requires_grad_(draw.random() < 0.5),
                lambda: block.one.load_state_dict(block.one.state_dict()),
                assign,
                lambda: setattr(block, "one", nn.Linear(2, 2)),
                lambda: setattr(layer, "weight", nn.Parameter(torch.zeros(2, 2))),
                lambda: block.two.append(nn.Linear(2, 1)),
                lambda: setattr(block, "spare", draw.choice([None, nn.Linear(1, 1)])),
                lambda: layer.register_parameter("more", draw.choice([None, nn.Parameter(torch.ones(1))])),
                lambda: block.to(draw.choice([torch.float32, torch.float64])),
                lambda: switch("_active_adapter", draw.choice("ab")),
                lambda: switch("_disable_adapters", draw.random() < 0.5),
                lambda: switch("merged_adapters", draw.choice([[], ["a"]])),
            ]
        )()


@pytest.mark.parametrize("seed", range(40))
def test_the_number_of_a_state_is_as_exact_as_the_state(seed):
    draw, cache = random.Random(seed), ClassFeatureCache()
    block, other = Block(), nn.Linear(2, 2)
    seen = []
    for _ in range(25):
        changes(block, draw)
        modules = (block, other) if draw.random() < 0.9 else (block,)
        state, number = text_state(modules), cache.state_number(modules)
        assert (number is None) == (state == ())
        if number is not None:
            # At most 16 are remembered; an older one that comes back is another number, never a wrong one.
            assert all((then == state) == (before == number) for then, before in seen[-12:])
            seen.append((state, number))


def test_memory_that_is_given_to_other_weights_is_not_taken_for_the_old_ones():
    """Freed memory is often given out again at once, at the same address."""
    linear, cache = nn.Linear(64, 64), ClassFeatureCache()
    numbers = []
    for _ in range(50):
        numbers.append(cache.state_number((linear,)))
        linear.weight.data = torch.empty(0)
        linear.weight.data = torch.randn(64, 64)
    assert len(set(numbers)) == 50


def test_a_forward_in_training_walks_no_text_encoder(monkeypatch):
    classifier = tiny_classifier()
    model = get_peft_model(classifier, CLIPAdapterConfig()).train()
    expected = model(image_features=features()).logits
    inside = set(classifier.clip.text_model.modules())
    original = nn.Module.named_modules

    def walked(module, *args, **kwargs):
        assert module not in inside, "the text encoder was walked"
        return original(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", walked)
    assert torch.equal(model(image_features=features()).logits, expected)


@pytest.fixture
def looks(monkeypatch):
    """Counts how often it is looked whether something has changed."""
    calls = []
    original = ClassFeatureCache.state_number

    def counting(cache, modules):
        calls.append(1)
        return original(cache, modules)

    monkeypatch.setattr(ClassFeatureCache, "state_number", counting)
    return calls


CONFIGS = {
    "none": None,
    "CLIP-Adapter": CLIPAdapterConfig,
    "CLIP-Adapter on texts": lambda: CLIPAdapterConfig(modality="text"),
    "linear head": lambda: LinearHeadConfig(trainable=True),
    "CoOp": CoOpConfig,
    "CoCoOp": CoCoOpConfig,
    "LoRA on texts": lambda: LoraConfig(target_modules=r".*text_model.*q_proj"),
    "LoRA on images": lambda: LoraConfig(target_modules=r".*vision_model.*q_proj"),
}
TRAIN_TEXTS = ("CoOp", "CoCoOp", "LoRA on texts")


@pytest.mark.parametrize("kind", CONFIGS)
def test_held_class_features_give_the_same_logits_and_gradients(kind, looks):
    torch.manual_seed(0)
    classifier = tiny_classifier().requires_grad_(False)
    model = classifier if CONFIGS[kind] is None else get_peft_model(classifier, CONFIGS[kind]())
    trained = [p for p in model.parameters() if p.requires_grad]

    def results():
        logits = model(image_features=features()).logits
        assert torch.equal(classifier.logits_of(features()), logits)
        labels = torch.arange(4) % len(CLASS_NAMES)
        if not logits.requires_grad:
            return [logits]
        loss = nn.functional.cross_entropy(logits, labels)
        return [
            logits,
            *(torch.zeros(()) if g is None else g for g in torch.autograd.grad(loss, trained, allow_unused=True)),
        ]

    expected = results()
    with classifier.class_features_held():
        assert (classifier._kept.held is None) == (kind in TRAIN_TEXTS)
        looks.clear()
        held = results()
        assert not looks
        with classifier.class_features_held():  # again inside
            assert all(map(torch.equal, results(), expected))
    assert classifier._kept.held is None
    assert all(map(torch.equal, held, expected)) and all(map(torch.equal, results(), expected))


def test_what_ends_the_hold():
    classifier = tiny_classifier(class_names=list(CLASS_NAMES))
    with classifier.class_features_held():
        classifier.set_classes(["one", "two"])
        assert classifier(image_features=features()).logits.shape == (4, 2)
    with classifier.class_features_held():
        classifier.double()
        assert classifier(image_features=features()).text_embeds.dtype == torch.float64
    classifier.float()
    with classifier.class_features_held():
        before = classifier(image_features=features()).logits
        get_peft_model(classifier, CoOpConfig())
        assert not torch.equal(classifier(image_features=features()).logits, before)
    with pytest.raises(KeyError), classifier.class_features_held():
        raise KeyError
    assert classifier._kept.held is None


def test_labels_given_as_ids_are_not_what_is_held():
    classifier = tiny_classifier()
    ids = torch.tensor([[4036, 5, 6, 4037], [4036, 7, 8, 4037]])
    expected = classifier(image_features=features(), input_ids=ids).logits
    with classifier.class_features_held():
        assert torch.equal(classifier(image_features=features(), input_ids=ids).logits, expected)


def test_other_weights_after_the_block_are_noticed():
    classifier = tiny_classifier().requires_grad_(False)
    model = get_peft_model(classifier, TipAdapterConfig())
    model.base_model.build_cache(features(5), torch.arange(5))
    with classifier.class_features_held():
        before = model(image_features=features()).logits
    classifier.clip.text_projection.weight.mul_(torch.randn_like(classifier.clip.text_projection.weight))
    assert not torch.allclose(model(image_features=features()).logits, before)
