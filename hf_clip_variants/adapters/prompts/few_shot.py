"""Settings that the recipes for prompts in both encoders share."""

from typing import Any

from ...few_shot.recipes import COOP_TRAINER, SMALL_MODEL_TRAINER


# The trainers of MaPLe's repository differ in learning rate and epochs only.
TWO_ENCODER_TRAINER: dict[str, Any] = COOP_TRAINER | {"batch_size": 4, "drop_last": True}
SMALL_MODEL_PROMPTS: dict[str, Any] = SMALL_MODEL_TRAINER | {"epochs": 10, "batch_size": 32}
