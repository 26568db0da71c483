"""Which parameters of a contrastive model decay, and which learn slowly."""

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


def two_rate_groups(
    model: nn.Module, lr: float, slow_factor: float = 1e-3, weight_decay: float = 0.2, slow_part: str = "clip."
) -> list[dict]:
    """Groups for an optimiser: trained parts learn slowly, new parts fast; each with and without decay, as
    `weight_decay_groups` says.

    The rule of CLIP's successors for video retrieval: 1e-4 for the head, 1e-7 for CLIP. Schedules of `Trainer` scale
    all groups alike: pass it `optimizers=(optimizer, None)`.

    Args:
        model: any; names of its parameters decide.
        lr: of the new parts.
        slow_factor: what it is multiplied by for the slow part.
        weight_decay: of matrices.
        slow_part: beginning of the names of parameters that learn slowly.

    Raises:
        ValueError: no trained parameter has such a name, or a number that is no rate.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.training.parameter_groups import two_rate_groups

    >>> model = torch.nn.ModuleDict({"clip": torch.nn.Linear(3, 2), "head": torch.nn.Linear(2, 2, bias=False)})
    >>> [(group["lr"], len(group["params"]), group["weight_decay"]) for group in two_rate_groups(model, 1.0, 0.5)]
    [(1.0, 1, 0.2), (0.5, 1, 0.2), (0.5, 1, 0.0)]
    ```
    """
    for name, value in (("lr", lr), ("slow_factor", slow_factor)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: got {value}, expected a number >= 0")
    slow = {id(p) for name, p in model.named_parameters() if name.startswith(slow_part) and p.requires_grad}
    if not slow:
        raise ValueError(f"slow_part: no trained parameter's name begins with {slow_part!r}")
    groups = []
    for rate, is_slow in ((lr, False), (lr * slow_factor, True)):
        for group in weight_decay_groups(model, weight_decay):
            chosen = [p for p in group["params"] if (id(p) in slow) == is_slow]
            groups += [{"params": chosen, "lr": rate, "weight_decay": group["weight_decay"]}] if chosen else []
    return groups


__all__ = ["two_rate_groups", "weight_decay_groups"]
