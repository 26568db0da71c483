"""Adapters of PEFT, such as LoRA, that come after ours: none of the modules that they ask for is left out silently."""

from collections.abc import Mapping

from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn


class AdapterConfigs(dict):
    """`peft_config` of a model with our layers: adapter name -> configuration.

    PEFT adds a configuration here before it changes the model. An adapter of PEFT, such as LoRA, is refused if it asks
    for modules inside of our layers: PEFT leaves these out without a word.

    Args:
        model: the model.
        configs: its adapters so far.

    Raises:
        ValueError: when such an adapter is added.
    """

    def __init__(self, model: nn.Module, configs: Mapping[str, PeftConfig]):
        super().__init__(configs)
        self.model = model

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        self._check(config)
        super().__setitem__(name, config)

    def update(self, configs: Mapping[str, PeftConfig]) -> None:
        for name, config in configs.items():
            self[name] = config

    def _check(self, config: PeftConfig) -> None:
        from .tuner import TunerConfig, TunerLayer

        wanted = getattr(config, "target_modules", None)
        if isinstance(config, TunerConfig) or not wanted or not hasattr(self, "model"):  # none yet while unpickling
            return
        ours = {name: module for name, module in self.model.named_modules() if isinstance(module, TunerLayer)}
        hidden = {}
        for name, module in self.model.named_modules():
            outer = next((layer for layer in ours if name.startswith(f"{layer}.base_layer.")), None)
            if outer is None:
                continue
            place = name.replace(".base_layer", "")
            if isinstance(module, nn.Linear) if wanted == "all-linear" else check_target_module_exists(config, place):
                hidden[place] = ours[outer]
        if hidden:
            place, layer = next(iter(hidden.items()))
            kinds = {c.peft_type.value for c in layer.configs.values()} or {type(layer).__name__}
            kind, theirs = ", ".join(sorted(kinds)), getattr(config.peft_type, "value", config.peft_type)
            raise ValueError(
                f"target_modules: PEFT would leave {theirs} out of {len(hidden)} modules, such as {place}, because "
                f"{kind} wraps the layers that they are in; add {theirs} first, and {kind} after it"
            )


__all__ = ["AdapterConfigs"]
