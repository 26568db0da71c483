"""Attacks on the forward of every model of the table: arguments in other shapes, types and ranges, left out, given
where there is none, and weights that are not finite.

What is right: finite answers, and those of the model's own inputs where the argument holds the same numbers in another
type; or ValueError names an argument, or the weight.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from attack_cases import WRONG, Case
from attack_prompts import ODD, _ways, _weight
from model_contract import CASES


KIND = "forwards"
_RELATIVE = 0.1  # of results from arguments that were rounded to 16 bits


def _tensors(outputs: object, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    found = {name: outputs[name] for name in names if outputs.get(name) is not None}
    return {name: one for name, one in found.items() if isinstance(one, torch.Tensor)}


def _same_numbers(value: object, given: object) -> bool:
    """Whether a tensor is another one in another type, up to rounding to 16 bits."""
    if not isinstance(value, torch.Tensor) or not isinstance(given, torch.Tensor) or value.shape != given.shape:
        return False
    if value.is_complex():
        return False
    if not given.is_floating_point():
        return bool((value.double() == given.double()).all())
    return torch.allclose(value.double(), given.double(), rtol=1e-3, atol=1e-3)


def forward(rng: random.Random):
    case = rng.choice(list(CASES.values()))
    model, given = case.make(), dict(case.inputs(2))
    if rng.random() < 0.4:  # without labels, as a user calls it
        for name in [*case.only_in_training, *(name for name in given if "labels" in name)]:
            given.pop(name, None)
    own = dict(given)
    tensors = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
    named = ("overflow", "not finite", "return_loss", *given)
    if rng.random() < 0.15:
        model, weight, name, value = _weight(model, rng)
        named = (weight, "numbers", *named)
    else:
        name = rng.choice(tensors)
        value = given[name] = rng.choice((*ODD, None, *_ways(given[name], rng)))
        if value is None:  # what is missing may be said in other words, with another argument that may take its place
            named = ("got", "expected", *named)

    def run():
        with torch.inference_mode():
            outputs = model(**given)
            found = _tensors(outputs, ("loss", *(case.by_row or (case.output,))))
            if wrong := [key for key, one in found.items() if not one.isfinite().all()]:
                return f"{WRONG}{wrong} not finite"
            if name in own and _same_numbers(value, own[name]):
                expected = _tensors(model(**own), case.by_row or (case.output,))
                for key, one in expected.items():
                    scale = one.float().abs().max().item() + 1e-3
                    if key not in found or not torch.allclose(
                        found[key].float(), one.float(), atol=_RELATIVE * scale, rtol=0
                    ):
                        return f"{WRONG}{key} is another one for the same numbers in another type"
        return True

    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else f"{value}"
    return f"{case.id}, {name} = {' '.join(shown.split())[:70]}", run, named


def cases(seed: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"{seed} forwards")
    while True:
        name, run, named = forward(rng)
        yield Case(KIND, name, run, named)
