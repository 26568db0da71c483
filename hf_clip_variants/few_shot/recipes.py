"""The published training recipe of each adapter method, by shots and data set.

`recipe("coop", shots=16)` is what the paper's code runs; change what you like with `dataclasses.replace`. Sources: CoOp's repository
(KaiyangZhou/CoOp, configs and scripts; CoCoOp, too), Tip-Adapter's (gaopengcuhk/Tip-Adapter, configs), CLIP-Adapter's, which ships no configuration
and points to CoOp's ImageNet command, and MaPLe's (muzairkhattak/multimodal-prompt-learning, configs; VPT on CLIP and IVLP, too).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args


if TYPE_CHECKING:
    import torch

Protocol = Literal["few_shot", "base_to_new", "cross_dataset"]


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained.

    Attributes:
        method (`str`): one of `METHODS`.
        optimizer (`str`): "sgd" or "adamw".
        learning_rate, weight_decay, momentum, adam_epsilon (`float`): the optimiser's.
        epochs (`int`): 0 for what is not trained.
        batch_size (`int`); drop_last (`bool`): leave out a smaller last batch, unless it is the only one.
        schedule (`str`): "coop" (`coop_lr_schedule`, by epoch), "cosine" (to 0 over all steps, by step) or "constant".
        warmup_epochs (`int`), warmup_learning_rate (`float`): constant, before the schedule ("coop" only).
        augmentation (`str`): of the training pictures; see `data.augmentation`.
        views (`int`): views of each picture that training sees. The official code draws a new one every epoch: views = epochs.
        few_shot_protocol (`str`), seeds (`tuple[int, ...]`): how the pictures are drawn; results are means over the seeds.
    """

    method: str
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    epochs: int
    batch_size: int
    schedule: Literal["coop", "cosine", "constant"]
    augmentation: str
    views: int
    few_shot_protocol: Literal["coop", "tip"]
    seeds: tuple[int, ...]
    momentum: float = 0.0
    adam_epsilon: float = 1e-8
    warmup_epochs: int = 0
    warmup_learning_rate: float = 1e-5
    drop_last: bool = False

    def __post_init__(self):
        for name, allowed in (("optimizer", ("sgd", "adamw")), ("schedule", ("coop", "cosine", "constant"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; want one of {', '.join(allowed)}")
        for name, least in (("epochs", 0), ("batch_size", 1), ("views", 1), ("warmup_epochs", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: got {value!r}; want a whole number of at least {least}")
        for name in ("learning_rate", "weight_decay", "momentum", "adam_epsilon", "warmup_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; want a number of at least 0")

    def learning_rate_at(self, epoch: int, step: int = 0, steps_per_epoch: int = 1) -> float:
        """The learning rate of step `step` (from 0) of epoch `epoch` (from 0)."""
        if self.schedule == "coop":
            return coop_lr_schedule(
                epoch, self.learning_rate, self.epochs, self.warmup_epochs, self.warmup_learning_rate
            )
        if self.schedule == "cosine":
            progress = (epoch * steps_per_epoch + step) / max(1, self.epochs * steps_per_epoch)
            return 0.5 * self.learning_rate * (1 + math.cos(math.pi * progress))
        return self.learning_rate

    def make_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The recipe's optimiser over `parameters`, at the learning rate of the first step."""
        import torch

        rate = self.learning_rate_at(0)
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=self.momentum, weight_decay=self.weight_decay)
        return torch.optim.AdamW(parameters, lr=rate, eps=self.adam_epsilon, weight_decay=self.weight_decay)

    def to_dict(self) -> dict[str, Any]:
        """For reports and cards."""
        return asdict(self)


@dataclass(frozen=True)
class CoOpRecipe(Recipe):
    """CoOp's, with the settings of the context that go with it (fields of `CoOpConfig`)."""

    num_context_tokens: int | None = 16
    context_init: str | None = None
    class_specific: bool = False


@dataclass(frozen=True)
class CoCoOpRecipe(Recipe):
    """CoCoOp's, with the settings of the context that go with it (fields of `CoCoOpConfig`)."""

    num_context_tokens: int | None = None
    context_init: str | None = "a photo of a"


@dataclass(frozen=True)
class MaPLeRecipe(Recipe):
    """MaPLe's, with the settings that go with it (fields of `MaPLeConfig`)."""

    num_prompt_tokens: int = 2
    prompt_depth: int | str = 9
    context_init: str | None = "a photo of a"


@dataclass(frozen=True)
class VPTRecipe(Recipe):
    """VPT's on CLIP, with the settings that go with it (fields of `VPTConfig`)."""

    num_prompt_tokens: int = 8
    prompt_depth: int | str = "all"


@dataclass(frozen=True)
class IVLPRecipe(Recipe):
    """IVLP's, with the settings that go with it (fields of `IVLPConfig`)."""

    num_text_tokens: int = 2
    num_vision_tokens: int = 2
    text_depth: int | str = "all"
    vision_depth: int | str = "all"
    context_init: str | None = "a photo of a"


@dataclass(frozen=True)
class CLIPAdapterRecipe(Recipe):
    """CLIP-Adapter's. `ratio_candidates` are to be compared on a validation split: there is no published table of ratios."""

    ratio: float = 0.2
    ratio_candidates: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class TipAdapterRecipe(Recipe):
    """Tip-Adapter's (`epochs` 0) and Tip-Adapter-F's.

    Attributes:
        cache_views (`int`): augmented views whose mean is a key.
        init_alpha, init_beta (`float`): used in training; also the answer where nothing can be searched.
        alpha, beta (`float`, *optional*): the answer without a search. Default: search on validation pictures.
        search_scale (`tuple[float, float]`), search_step (`tuple[int, int]`): upper ends and numbers of grid points of (beta, alpha).
    """

    cache_views: int = 10
    init_alpha: float = 1.17
    init_beta: float = 1.0
    alpha: float | None = None
    beta: float | None = None
    search_scale: tuple[float, float] = (7.0, 3.0)
    search_step: tuple[int, int] = (200, 20)


def coop_lr_schedule(
    epoch: int, base_lr: float, max_epochs: int, warmup_epochs: int = 1, warmup_lr: float = 1e-5
) -> float:
    """CoOp's learning rate of an epoch (from 0), as Dassl computes it.

    `warmup_lr` during the warm-up, then base_lr / 2 (1 + cos(pi (epoch - warmup_epochs) / max_epochs)): the cosine starts after the warm-up but
    is as long as the whole training, so the rate does not reach 0.

    >>> [round(coop_lr_schedule(epoch, 3.5e-3, 5), 6) for epoch in range(5)]
    [1e-05, 0.0035, 0.003166, 0.002291, 0.001209]
    """
    if max_epochs < 1 or not 0 <= epoch:
        raise ValueError(f"epoch, max_epochs: got {epoch}, {max_epochs}; want epoch >= 0 and max_epochs >= 1")
    if epoch < warmup_epochs:
        return warmup_lr
    return 0.5 * base_lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max_epochs))


# data set: search_scale (beta, alpha), init_alpha, epochs of Tip-Adapter-F
_TIP_ADAPTER = {
    "imagenet": ((7.0, 3.0), 1.17, 20),
    "caltech101": ((12.0, 5.0), 3.0, 20),
    "dtd": ((13.0, 13.0), 2.0, 20),
    "eurosat": ((12.0, 10.0), 2.0, 100),
    "fgvc_aircraft": ((30.0, 30.0), 5.0, 20),
    "food101": ((10.0, 10.0), 1.17, 20),
    "oxford_flowers": ((50.0, 50.0), 10.0, 20),
    "oxford_pets": ((7.0, 3.0), 1.17, 20),
    "stanford_cars": ((20.0, 10.0), 3.0, 20),
    "sun397": ((12.0, 10.0), 1.17, 20),
    "ucf101": ((7.0, 3.0), 3.0, 20),
}
# Of no publication: data of one's own gets the widest of the ranges above, in steps as fine as theirs.
_TIP_ADAPTER_OTHER = ((50.0, 50.0), 1.17, 20)
_OTHER_SEARCH_STEP = (200, 200)

DATASETS = tuple(sorted(_TIP_ADAPTER))
_ALIASES = {
    "imagenet1k": "imagenet", "caltech": "caltech101", "describabletextures": "dtd", "textures": "dtd", "fgvc": "fgvc_aircraft",
    "aircraft": "fgvc_aircraft", "food": "food101", "flowers": "oxford_flowers", "flowers102": "oxford_flowers",
    "oxfordflowers102": "oxford_flowers", "pets": "oxford_pets", "oxfordiiitpet": "oxford_pets", "cars": "stanford_cars",
    "sun": "sun397", "ucf": "ucf101",
} | {re.sub("[^a-z0-9]", "", name): name for name in DATASETS}  # fmt: skip


def _coop(shots: int, dataset: str | None, protocol: Protocol) -> Recipe:
    epochs = 50 if dataset == "imagenet" or shots == 1 else 100 if shots <= 4 else 200
    # What CoCoOp's paper compares itself with on new classes: four tokens that start as words.
    context = {} if protocol == "few_shot" else {"num_context_tokens": None, "context_init": "a photo of a"}
    return CoOpRecipe(
        "coop", "sgd", 2e-3, 5e-4, epochs, 32, "coop", "coop", epochs, "coop", (1, 2, 3),
        momentum=0.9, warmup_epochs=1, drop_last=True, **context,
    )  # fmt: skip


def _cocoop(shots: int, dataset: str | None, protocol: Protocol) -> Recipe:
    return CoCoOpRecipe(
        "cocoop", "sgd", 2e-3, 5e-4, 10, 1, "coop", "coop", 10, "coop", (1, 2, 3), momentum=0.9, warmup_epochs=1
    )


def _prompts_in_both_towers(recipe_class, method: str, learning_rate: float, epochs: int = 5, **settings) -> Recipe:
    """The trainers of MaPLe's repository share everything but the learning rate."""
    return recipe_class(
        method, "sgd", learning_rate, 5e-4, epochs, 4, "coop", "coop", epochs, "coop", (1, 2, 3),
        momentum=0.9, warmup_epochs=1, drop_last=True, **settings,
    )  # fmt: skip


def _maple(shots: int, dataset: str | None, protocol: Protocol) -> Recipe:
    if protocol == "cross_dataset":
        return _prompts_in_both_towers(MaPLeRecipe, "maple", 2.6e-3, epochs=2, prompt_depth=3)
    return _prompts_in_both_towers(MaPLeRecipe, "maple", 3.5e-3)


def _vpt(shots: int, dataset: str | None, protocol: Protocol) -> Recipe:
    return _prompts_in_both_towers(VPTRecipe, "vpt", 2.5e-3)


def _ivlp(shots: int, dataset: str | None, protocol: Protocol) -> Recipe:
    return _prompts_in_both_towers(IVLPRecipe, "ivlp", 3.5e-3)


def _clip_adapter(shots: int, dataset: str | None, protocol: Protocol) -> Recipe:
    # The paper's text says lr 1e-5, the repository says "CoOp's ImageNet command": the latter can be run.
    return CLIPAdapterRecipe(
        "clip_adapter", "sgd", 2e-3, 5e-4, 50, 32, "coop", "coop", 50, "coop", (1, 2, 3),
        momentum=0.9, warmup_epochs=1, drop_last=True, ratio=0.6 if dataset == "dtd" else 0.2,
    )  # fmt: skip


def _tip_adapter_f(shots: int, dataset: str | None, protocol: Protocol) -> Recipe:
    scale, alpha, epochs = _TIP_ADAPTER.get(dataset, _TIP_ADAPTER_OTHER)
    return TipAdapterRecipe(
        "tip_adapter_f", "adamw", 1e-3, 1e-2, epochs, 256, "cosine", "tip", epochs, "tip", (1,),
        adam_epsilon=1e-4, init_alpha=alpha, search_scale=scale,
        search_step=(200, 20) if dataset else _OTHER_SEARCH_STEP,
    )  # fmt: skip


def _tip_adapter(shots: int, dataset: str | None, protocol: Protocol) -> Recipe:
    published = _tip_adapter_f(shots, dataset, protocol)
    return replace(published, method="tip_adapter", epochs=0, views=published.cache_views)


_PUBLISHED = {
    "coop": _coop,
    "cocoop": _cocoop,
    "maple": _maple,
    "vpt": _vpt,
    "ivlp": _ivlp,
    "clip_adapter": _clip_adapter,
    "tip_adapter": _tip_adapter,
    "tip_adapter_f": _tip_adapter_f,
}
METHODS = tuple(_PUBLISHED)

# For models as small as the embedded emoji-clip-tiny (6 M parameters, 64 px), where the published values, tuned on ResNet-50 and larger,
# do not carry over. Each entry replaces fields of the published recipe. Found on emoji of objects and of travel and places, none of which is
# in the embedded set; what was tried is in the README of each method. Augmented views gained nothing there, hence one plain view.
_TINY_VIEWS = {"augmentation": "none", "views": 1}
_TINY_PROMPTS = _TINY_VIEWS | {
    "optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.0, "momentum": 0.0, "schedule": "cosine", "warmup_epochs": 0, "epochs": 10,
    "batch_size": 32, "drop_last": False,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "coop": _TINY_VIEWS | {
        "optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.0, "momentum": 0.0, "schedule": "cosine", "warmup_epochs": 0,
        "epochs": 40, "batch_size": 512, "drop_last": False, "num_context_tokens": None, "context_init": "an emoji of", "class_specific": True,
    },
    "cocoop": _TINY_PROMPTS | {"learning_rate": 0.01, "epochs": 4, "context_init": "an emoji of"},
    "maple": _TINY_PROMPTS | {"context_init": "an emoji of", "prompt_depth": 3},
    "vpt": _TINY_PROMPTS | {"num_prompt_tokens": 4},
    "ivlp": _TINY_PROMPTS | {"context_init": "an emoji of"},
    "clip_adapter": _TINY_VIEWS | {
        "optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 1e-2, "momentum": 0.0, "schedule": "cosine", "warmup_epochs": 0,
        "epochs": 200, "batch_size": 512, "drop_last": False, "ratio": 0.6, "ratio_candidates": (),
    },
    "tip_adapter": _TINY_VIEWS | {"cache_views": 1, "alpha": 80.0, "beta": 5.5},
    "tip_adapter_f": _TINY_VIEWS | {"cache_views": 1, "init_alpha": 20.0, "init_beta": 5.5, "alpha": 80.0, "beta": 5.5, "epochs": 20},
}  # fmt: skip

# On top of that where classes come that were not trained on.
TINY_NEW_CLASSES: dict[str, dict[str, Any]] = {"coop": {"class_specific": False, "learning_rate": 0.03}}


def recipe(
    method: str,
    shots: int = 16,
    dataset: str | None = None,
    profile: Literal["published", "tiny"] = "published",
    protocol: Protocol = "few_shot",
) -> Recipe:
    """The recipe of `method` for `shots` pictures a class.

    Args:
        method (`str`): one of `METHODS`.
        shots (`int`): pictures a class. CoOp trains 50 epochs at 1 shot, 100 up to 4, 200 from 5; the others train alike at any.
        dataset (`str`, *optional*): one of the eleven benchmark sets (`DATASETS`, usual spellings accepted); `None` for any other data.
        profile (`str`): "published", or "tiny": changed for models as small as the embedded one.
        protocol (`str`): what the adapter is for: "few_shot" (the classes that it learns), "base_to_new" (also classes that it has not seen) or
            "cross_dataset" (other data sets, domains included). Some papers train differently for each.

    Raises:
        ValueError: an unknown method, data set, profile or protocol; shots < 1.

    Example:

    ```python
    >>> from dataclasses import replace
    >>> from hf_clip_variants.few_shot.recipes import recipe
    >>> published = recipe("coop", shots=16, dataset="imagenet")
    >>> published.learning_rate, published.epochs, replace(published, epochs=5).epochs
    (0.002, 50, 5)
    ```
    """
    if method not in _PUBLISHED:
        raise ValueError(f"method: got {method!r}; want one of {', '.join(METHODS)}")
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise ValueError(f"shots: got {shots!r}; want a whole number of at least 1")
    if profile not in ("published", "tiny"):
        raise ValueError(f"profile: got {profile!r}; want 'published' or 'tiny'")
    if dataset is not None:
        known = _ALIASES.get(re.sub("[^a-z0-9]", "", dataset.lower()))
        if known is None:
            raise ValueError(
                f"dataset: got {dataset!r}; want one of {', '.join(DATASETS)}, or None for data of your own"
            )
        dataset = known
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol: got {protocol!r}; want one of {', '.join(get_args(Protocol))}")
    published = _PUBLISHED[method](shots, dataset, protocol)
    if profile == "published":
        return published
    changes = TINY[method] | (TINY_NEW_CLASSES.get(method, {}) if protocol != "few_shot" else {})
    return replace(published, **changes)
