"""Which parameters of a contrastive model decay."""

from torch import nn


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for an optimiser: matrices, convolutions, embeddings, positions and class tokens decay; biases,
    scales and shifts of normalisation, `logit_scale` and other vectors do not. Frozen parameters are in neither.

    The rule of SLIP's and open_clip's training. `Trainer`'s own would let `logit_scale` decay: pass it an optimiser
    over these groups.

    Args:
        model: any; names and shapes of its parameters decide.
        weight_decay: of the first group.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.training.parameter_groups import weight_decay_groups

    >>> groups = weight_decay_groups(torch.nn.Linear(3, 2), 0.1)
    >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups]
    [(0.1, [(2, 3)]), (0.0, [(2,)])]
    >>> optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.98))
    ```
    """
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay: got {weight_decay}, expected a number >= 0")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decays = [parameter.dim() >= 2 and not name.endswith("bias") for name, parameter in trained]
    groups = [
        {"params": [p for (_, p), one in zip(trained, decays, strict=True) if one == kind], "weight_decay": value}
        for kind, value in ((True, float(weight_decay)), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


__all__ = ["weight_decay_groups"]
