"""The layer that adapts the features of an object's views by what they say together."""

import torch
import torch.nn.functional as F
from torch import nn

from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.losses.rank_batch_norm import RankBatchNorm1d
from hf_clip_variants.modeling.losses.rank_exchange import world_size

from ..tuner import TunerLayer
from .config import InterViewAdapterConfig


_PREFIX = "clipv_inter_view_adapter_"
_NAMES = ("fusion_ratio", "view_norm", "global_linear", "global_norm", "view_down", "view_up")


class InterViewAdapterLayer(TunerLayer):
    """Wraps a module of (B, V, C) -> (B, V, C) features of views. With an adapter the output has norm 1 over all views
    together, without one it is the module's."""

    adapter_layer_names = tuple(_PREFIX + name for name in _NAMES)
    merge_refusal = "it is not linear (ReLU)"

    def __init__(self, base_layer: nn.Module, anchor: nn.Module):
        super().__init__(base_layer, anchor)
        setattr(self, _PREFIX + _NAMES[0], nn.ParameterDict())
        for name in _NAMES[1:]:  # one dictionary a module: in a Sequential, PEFT would keep the adapter's name in keys
            setattr(self, _PREFIX + name, nn.ModuleDict())

    def _part(self, part: str, adapter_name: str):
        return getattr(self, _PREFIX + part)[adapter_name]

    def update_layer(self, adapter_name: str, config: InterViewAdapterConfig) -> None:
        """Creates the adapter in float32, with PyTorch's initial values."""
        views, width = config.backbone_widths["views"], config.backbone_widths["joint width"]
        options = {"device": self.adapter_device, "dtype": torch.float32}
        self.configs[adapter_name] = config
        made = {
            "fusion_ratio": nn.Parameter(torch.full((views,), config.fusion_init, **options)),
            "view_norm": RankBatchNorm1d(width, **options),
            "global_linear": nn.Linear(views * width, width, **options),
            "global_norm": RankBatchNorm1d(width, **options),
            "view_down": nn.Linear(width, width, **options),
            "view_up": nn.Linear(width, views * width, **options),
        }
        for part, module in made.items():
            getattr(self, _PREFIX + part)[adapter_name] = module

    def forward(self, view_features: torch.Tensor) -> torch.Tensor:
        """(B, V, C), not normalised.

        Raises:
            ValueError: in training, a batch of one object: its variance is not defined.
        """
        name = self.active_name()
        if name is None:
            return self.base_layer(view_features)
        ratio, weights = self.configs[name].ratio, self._part("fusion_ratio", name)
        original = view_features.to(weights.dtype).flatten(1)
        adapted = self.adapted(view_features.to(weights.dtype), name).to(original.dtype)  # autocast: half precision
        # `lerp` gives exactly the original features at ratio 0. One norm over all views, unlike zero-shot.
        fused = unit_norm(torch.lerp(original, adapted, ratio))
        return fused.view_as(view_features).to(view_features.dtype)

    def global_feature(self, view_features: torch.Tensor, name: str) -> torch.Tensor:
        """(B, V, C) -> (B, C), equation 5: what all views say together."""
        trains = self.training and self._part("fusion_ratio", name).requires_grad
        if trains and len(view_features) < 2 and world_size() == 1:
            raise ValueError("points: one object in a batch of the training, expected at least two (batch norm)")
        norms = [self._part(part, name) for part in ("view_norm", "global_norm")]
        for norm in norms:
            norm.training = trains  # the statistics of an adapter that does not train stay as they are
        views = view_features * self._part("fusion_ratio", name)[:, None].to(view_features.dtype)
        views = norms[0](views.flatten(0, 1)).view_as(view_features)
        rate = self.configs[name].dropout
        hidden = self._part("global_linear", name)(F.dropout(views, rate, trains).flatten(1))
        return F.dropout(F.relu(norms[1](hidden)), rate, trains)

    def adapted(self, view_features: torch.Tensor, name: str) -> torch.Tensor:
        """(B, V, C) -> (B, V * C), equation 6: the global feature, for each view again."""
        hidden = F.relu(self._part("view_down", name)(self.global_feature(view_features, name)))
        return F.relu(self._part("view_up", name)(hidden))


__all__ = ["InterViewAdapterLayer"]
