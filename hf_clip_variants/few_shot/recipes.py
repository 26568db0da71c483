"""`Recipe`: how an adapter is trained. `recipe(method, shots)`: the published one, from the method's folder.

`recipe("coop", shots=16)` is what the paper's code runs; change values with `dataclasses.replace`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args


if TYPE_CHECKING:
    import torch

Protocol = Literal["few_shot", "base_to_new", "cross_dataset"]


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained.

    Attributes:
        method (`str`): a name in `FEW_SHOT_METHODS`.
        optimizer (`str`): "sgd" or "adamw".
        learning_rate, weight_decay, momentum, adam_epsilon (`float`): the optimiser's.
        epochs (`int`): 0 for what is not trained.
        batch_size (`int`); drop_last (`bool`): leave out a smaller last batch, unless it is the only one.
        schedule (`str`): "coop" (`coop_lr_schedule`, by epoch), "cosine" (to 0 over all steps, by step) or "constant".
        warmup_epochs (`int`), warmup_learning_rate (`float`): constant, before the schedule ("coop" only).
        augmentation (`str`): of the training images; see `data.augmentation`.
        views (`int`): views of each image in training. The official code draws a new one in every epoch, which is
            views = epochs. Fewer views are faster on a CPU, but lose accuracy: 10 instead of 50 cost CLIP-Adapter 1.8
            ± 1.7 points on 19 small tasks of emoji (styles fluent3d and notov1, embedded model, published recipe).
        few_shot_protocol (`str`), seeds (`tuple[int, ...]`): how the images are drawn; results are means over the
            seeds.
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

    # Fields that are read in training only, or in a search of hyper-parameters only. Reports leave them out where
    # there was no training or no search.
    training_fields: ClassVar[frozenset[str]] = frozenset()
    search_fields: ClassVar[frozenset[str]] = frozenset()

    @property
    def first_views(self) -> int:
        """How many views of each image, from the first on, the fit uses besides those that training draws."""
        return 0

    @property
    def encoder_passes_per_image(self) -> int:
        """Passes through the frozen image encoder if it ran whenever an image is used, as in the official
        trainings."""
        return self.epochs

    def with_one_view(self) -> Recipe:
        """The same without repeated views, which are equal where there is no augmentation."""
        return replace(self, views=1)

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


def coop_lr_schedule(
    epoch: int, base_lr: float, max_epochs: int, warmup_epochs: int = 1, warmup_lr: float = 1e-5
) -> float:
    """CoOp's learning rate of an epoch (from 0), as Dassl computes it.

    `warmup_lr` during the warm-up, then base_lr / 2 (1 + cos(pi (epoch - warmup_epochs) / max_epochs)). The cosine
    starts after the warm-up but is as long as the whole training, so the rate does not reach 0.

    >>> [round(coop_lr_schedule(epoch, 3.5e-3, 5), 6) for epoch in range(5)]
    [1e-05, 0.0035, 0.003166, 0.002291, 0.001209]
    """
    if max_epochs < 1 or not 0 <= epoch:
        raise ValueError(f"epoch, max_epochs: got {epoch}, {max_epochs}; want epoch >= 0 and max_epochs >= 1")
    if epoch < warmup_epochs:
        return warmup_lr
    return 0.5 * base_lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max_epochs))


# The eleven benchmark sets that papers report on.
DATASETS = (
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "imagenet",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
)
# Other spellings, without everything that is no letter or digit.
_ALIASES = {
    "imagenet1k": "imagenet",
    "caltech": "caltech101",
    "describabletextures": "dtd",
    "textures": "dtd",
    "fgvc": "fgvc_aircraft",
    "aircraft": "fgvc_aircraft",
    "food": "food101",
    "flowers": "oxford_flowers",
    "flowers102": "oxford_flowers",
    "oxfordflowers102": "oxford_flowers",
    "pets": "oxford_pets",
    "oxfordiiitpet": "oxford_pets",
    "cars": "stanford_cars",
    "sun": "sun397",
    "ucf": "ucf101",
} | {re.sub("[^a-z0-9]", "", name): name for name in DATASETS}


# What the trainers of CoOp's repository have in common, and those of the repositories based on it.
COOP_TRAINER: dict[str, Any] = {
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "momentum": 0.9,
    "schedule": "coop",
    "warmup_epochs": 1,
    "augmentation": "coop",
    "few_shot_protocol": "coop",
    "seeds": (1, 2, 3),
}

# For models as small as the embedded emoji-clip-tiny (6 M parameters, 64 px). The published values were tuned on
# ResNet-50 and larger and do not fit such a model. Each method's descriptor replaces fields of its published recipe.
# The values were found on emoji of objects and of travel and places, none of which is in the embedded set; the README
# of each method says what was tried. Augmented views did not help there, hence one plain view.
SMALL_MODEL_VIEWS: dict[str, Any] = {"augmentation": "none", "views": 1}
SMALL_MODEL_TRAINER: dict[str, Any] = SMALL_MODEL_VIEWS | {
    "optimizer": "adamw",
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "drop_last": False,
}


def benchmark_name(dataset: str, argument: str = "dataset") -> str:
    """The name in `DATASETS` for a usual spelling. ValueError, which names `argument`, for any other data set.

    >>> benchmark_name("Oxford-IIIT Pet")
    'oxford_pets'
    """
    known = _ALIASES.get(re.sub("[^a-z0-9]", "", dataset.lower()))
    if known is None:
        raise ValueError(
            f"{argument}: got {dataset!r}; want one of {', '.join(DATASETS)}, or nothing for data of your own"
        )
    return known


def recipe(
    method: str,
    shots: int = 16,
    dataset: str | None = None,
    profile: Literal["published", "tiny"] = "published",
    protocol: Protocol = "few_shot",
) -> Recipe:
    """The recipe of `method` for `shots` images per class.

    Args:
        method (`str`): a name in `FEW_SHOT_METHODS`.
        shots (`int`): images per class. CoOp trains 50 epochs at 1 shot, 100 up to 4, 200 from 5; the other methods
            do the same at any number.
        dataset (`str`, *optional*): one of the eleven benchmark sets (`DATASETS`, usual spellings accepted); `None`
            for any other data.
        profile (`str`): "published", or "tiny": changed for models as small as the embedded one.
        protocol (`str`): what the adapter is for: "few_shot" (the classes that it learns), "base_to_new" (also classes
            that it has not seen) or "cross_dataset" (other data sets, domains included). Some papers train differently
            for each.

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
    from .method import few_shot_method

    descriptor = few_shot_method(method)
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise ValueError(f"shots: got {shots!r}; want a whole number of at least 1")
    if profile not in ("published", "tiny"):
        raise ValueError(f"profile: got {profile!r}; want 'published' or 'tiny'")
    if dataset is not None:
        dataset = benchmark_name(dataset)
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol: got {protocol!r}; want one of {', '.join(get_args(Protocol))}")
    return descriptor.recipe(shots, dataset, profile, protocol)
