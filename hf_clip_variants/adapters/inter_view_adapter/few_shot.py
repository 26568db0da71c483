"""The published recipe of the inter-view adapter: optimiser, schedule and augmentation, for `Trainer` or a loop.

`adapt` works on images; clouds of points are trained with `Trainer`, see the README of the method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...few_shot.recipes import COOP_TRAINER, Recipe


if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LambdaLR

EPOCHS = 250


def published_recipe(epochs: int = EPOCHS) -> Recipe:
    """The official settings: SGD with learning rate 0.01, momentum 0.9 and weight decay 5e-4, a first epoch at 1e-5,
    then a cosine over 250 epochs; batches of 32. Clouds are augmented by `augment_points`.

    Officially the best epoch by accuracy on the test set is kept. Here, the last one is.
    """
    given = COOP_TRAINER | {"augmentation": "none"}  # of images; clouds have their own
    return Recipe(method="inter_view_adapter", learning_rate=0.01, epochs=epochs, batch_size=32, views=1, **given)


def optimizers(
    model: torch.nn.Module, steps_per_epoch: int, recipe: Recipe | None = None
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Optimiser and schedule of the recipe over what trains in `model`, for `Trainer(optimizers=...)`.

    The schedule goes by epochs: the rate is the same for all steps of one.

    Raises:
        ValueError: nothing trains, or no step in an epoch.
    """
    from torch.optim.lr_scheduler import LambdaLR

    recipe = published_recipe() if recipe is None else recipe
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained or steps_per_epoch < 1:
        raise ValueError(
            f"model, steps_per_epoch: {len(trained)} trained tensors, {steps_per_epoch} steps, expected at least one"
        )
    optimizer = recipe.make_optimizer(trained)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 1.0
    return optimizer, LambdaLR(optimizer, lambda step: recipe.learning_rate_at(step // steps_per_epoch))


__all__ = ["EPOCHS", "optimizers", "published_recipe"]
