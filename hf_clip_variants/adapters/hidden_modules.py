"""Adapters of PEFT, such as LoRA, that come after ours: none of the modules that they ask for is left out silently.

PEFT adds nothing inside of a layer that an adapter wraps, and says nothing. Two checks say it:

- `AdapterConfigs`, in the place of `peft_config` where our adapter is the first one;
- `refuse_left_out`, called by our layers, where another adapter came first, whose `peft_config` is a plain dictionary
  that others hold, too.
"""

from collections.abc import Mapping

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn


class AdapterConfigs(dict):
    """`peft_config` of a model with our layers: adapter name -> configuration.

    PEFT adds a configuration here before it changes the model. An adapter of PEFT is refused if it asks for modules
    inside of our layers.

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
        if hasattr(self, "model"):  # none yet while unpickling
            _check(self.model, name, config)
        super().__setitem__(name, config)

    def update(self, configs: Mapping[str, PeftConfig]) -> None:
        for name, config in configs.items():
            self[name] = config


def refuse_left_out(model: nn.Module, checked: dict[str, PeftConfig]) -> None:
    """Checks the adapters of `model` that are not in `checked`, and adds them to it.

    Raises:
        ValueError: one would be left out of modules that it asks for. Its configuration is taken away.
    """
    configs = getattr(model, "peft_config", {})
    if isinstance(configs, AdapterConfigs):
        return
    for name in [name for name, config in configs.items() if checked.get(name) is not config]:
        try:
            _check(model, name, configs[name])
        except ValueError:
            del configs[name]
            raise
        checked[name] = configs[name]


def _check(model: nn.Module, adapter_name: str, config: PeftConfig) -> None:
    """Raises ValueError if PEFT would leave an adapter out of modules inside of our layers."""
    from .tuner import TunerConfig, TunerLayer

    wanted = getattr(config, "target_modules", None)
    if isinstance(config, TunerConfig) or not wanted:
        return
    ours = {name: module for name, module in model.named_modules() if isinstance(module, TunerLayer)}
    hidden, foreign = {}, None
    for name, module in model.named_modules():
        outer = next((layer for layer in ours if name.startswith(f"{layer}.base_layer.")), None)
        if outer is None or (foreign and name.startswith(foreign)):
            continue
        target = module
        if isinstance(module, BaseTunerLayer) and not isinstance(module, TunerLayer):
            target, foreign = module.get_base_layer(), f"{name}."  # LoRA that came before; its parts are no targets
            if adapter_name in module._all_available_adapter_names():
                continue
        place = name.replace(".base_layer", "")
        if wanted == "all-linear":
            matches = isinstance(target, nn.Linear)
        else:
            matches = check_target_module_exists(config, place) or check_target_module_exists(config, name)
        if matches:
            hidden[place] = ours[outer]
    if hidden:
        place, layer = next(iter(hidden.items()))
        kinds = {c.peft_type.value for c in layer.configs.values()} or {type(layer).__name__}
        kind, theirs = ", ".join(sorted(kinds)), getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(
            f"target_modules: PEFT would leave {theirs} out of {len(hidden)} modules, such as {place}, because "
            f"{kind} wraps the layers that they are in; add {theirs} first, and {kind} after it"
        )


__all__ = ["AdapterConfigs", "refuse_left_out"]
