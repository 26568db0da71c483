"""`train_adapter` does what the plain loop does, bit for bit, and asks only once for what does not change."""

import re

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from peft import get_peft_model
from tiny import CLASS_NAMES

from hf_clip_variants.adapters import CLIPAdapterConfig, CoCoOpConfig, CoOpConfig, LinearHeadConfig, TipAdapterConfig
from hf_clip_variants.data import Features
from hf_clip_variants.data.images.labelled_images import CachedImages, views_of_epoch
from hf_clip_variants.few_shot.training_loop import batches, train_adapter
from hf_clip_variants.modeling.clip_classifier.class_features import ClassFeatureCache


CONFIGS = {
    "CLIP-Adapter": CLIPAdapterConfig,
    "CLIP-Adapter on texts": lambda: CLIPAdapterConfig(modality="text"),
    "Tip-Adapter-F": lambda: TipAdapterConfig(trainable_keys=True),
    "linear head": lambda: LinearHeadConfig(trainable=True),
    "CoOp": lambda: CoOpConfig(num_context_tokens=2),
    "CoCoOp": lambda: CoCoOpConfig(context_init=None, num_context_tokens=2),
}
PLAN = {"epochs": 4, "batch_size": 4, "seed": 3}


def images(views: int = 1) -> CachedImages:
    features = torch.randn(views, 14, 24, generator=torch.Generator().manual_seed(1))
    return CachedImages(Features(features, torch.arange(14) % len(CLASS_NAMES)), seed=5)


def new_model(kind: str):
    classifier = tiny_classifier().requires_grad_(False)
    torch.manual_seed(0)
    model = get_peft_model(classifier, CONFIGS[kind]())
    if kind == "Tip-Adapter-F":
        model.base_model.build_cache(images().all_features(), images().labels)
    return model, [p for p in model.parameters() if p.requires_grad]


def rate(epoch: int, step: int, steps: int) -> float:
    return 0.1 / (1 + epoch * steps + step)


def plain_training(kind: str, source: CachedImages) -> tuple[list[float], list[torch.Tensor]]:
    model, parameters = new_model(kind)
    model.eval()
    optimizer, curve = torch.optim.SGD(parameters, lr=1.0, momentum=0.9), []
    for epoch in range(PLAN["epochs"]):
        total, plan = 0.0, list(batches(len(source), PLAN["batch_size"], PLAN["seed"], epoch, False))
        for step, rows in enumerate(plan):
            optimizer.param_groups[0]["lr"] = rate(epoch, step, len(plan))
            views = views_of_epoch(len(source), source.num_views, source.seed, epoch)
            logits = model(image_features=source.all_features()[views[rows], rows]).logits
            loss = F.cross_entropy(logits, source.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        curve.append(total / len(source))
    return curve, parameters


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("kind", CONFIGS)
def test_curve_and_weights_are_those_of_the_plain_loop(kind, views, monkeypatch):
    looks, read, original, to_list = [], [], ClassFeatureCache.state_number, torch.Tensor.tolist
    monkeypatch.setattr(ClassFeatureCache, "state_number", lambda *args: looks.append(1) or original(*args))
    model, parameters = new_model(kind)

    def fetched(*args, **kwargs):
        raise AssertionError("a step waits for the device")

    source = images(views)
    model(**source.batch(torch.arange(2), 0))  # class features are computed now
    looks.clear()
    with monkeypatch.context() as patch:
        for name in ("item", "__bool__", "__float__", "cpu"):
            patch.setattr(torch.Tensor, name, fetched)
        patch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor) or to_list(tensor))
        if kind in ("CoOp", "CoCoOp"):  # planning their prompts reads the ids
            patch.undo()
        curve = train_adapter(model, source, lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), rate, **PLAN)
    assert len(read) == (0 if kind in ("CoOp", "CoCoOp") else PLAN["epochs"]), "losses are read once an epoch"
    assert len(looks) <= 1, "what class features depend on is looked at once"
    expected, plain = plain_training(kind, source)
    assert curve == expected
    assert all(map(torch.equal, parameters, plain))


@pytest.mark.parametrize("epoch, step, value", [(0, 0, "nan"), (1, 2, "inf"), (3, 3, "nan")])
def test_a_loss_that_is_not_finite_names_epoch_step_and_learning_rate(epoch, step, value):
    model, _ = new_model("CLIP-Adapter")

    class Broken(CachedImages):
        def batch(self, rows, now):
            given = super().batch(rows, now)
            if now == epoch:
                given["image_features"][rows == self.broken] = float(value)
            return given

    source = images()
    source = Broken(Features(source.all_features(), source.labels), seed=5)
    source.broken = int(list(batches(14, 4, PLAN["seed"], epoch, False))[step][0])
    done = []
    named = re.escape(f"in epoch {epoch}, step {step}, with learning rate {rate(epoch, step, 4):g}")
    with pytest.raises(FloatingPointError, match=named):
        train_adapter(
            model,
            source,
            lambda p: torch.optim.SGD(p, lr=1.0),
            rate,
            on_epoch=lambda count, _: done.append(count),
            **PLAN,
        )
    assert done == list(range(1, epoch + 1))
    assert model.get_base_model()._kept.held is None
