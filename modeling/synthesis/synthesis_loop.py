"""The loop that optimises pictures against frozen models: seeds, evaluations, the best state, stopping and resuming.

What a picture is made of (strokes, a latent grid) and what its loss is belongs to a task; a sample is one picture on
its way. Every sample has an optimiser and a generator of its own, from which all of its random numbers come. So a seed
makes the same picture whatever else is in the batch, bit for bit with `samples_at_once=1`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


LARGEST_STEPS = 1_000_000
LARGEST_SAMPLES = 10_000


@dataclass
class SynthesisSample:
    """
    One picture on its way.

    Args:
        seed: of its generator.
        generator: on the CPU; every random number of this sample comes from it.
        tensors: what is optimised, leaves that want gradients.
        optimizer: over `tensors`.
        fixed: tensors that belong to the state and are not optimised.
        goal: what the task compares the picture with; not saved.
        losses: of each step.
        evaluations: (step, loss without augmentation).
        best: copies of `tensors` at the lowest evaluation, if the loop keeps them; `best_value` is its loss.
        stopped: the evaluation did not change any more.
    """

    seed: int
    generator: torch.Generator
    tensors: dict[str, torch.Tensor]
    optimizer: torch.optim.Optimizer
    fixed: dict[str, torch.Tensor] = field(default_factory=dict)
    goal: Any = None
    losses: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] | None = None
    best_value: float = math.inf
    stopped: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, and the record of those that were made."""
        state = {
            "seed": self.seed,
            "generator": self.generator.get_state(),
            "tensors": {name: tensor.detach() for name, tensor in self.tensors.items()},
            "fixed": dict(self.fixed),
            "optimizer": self.optimizer.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "evaluations": torch.tensor(self.evaluations, dtype=torch.float64).view(-1, 2),
            "best_value": self.best_value if math.isfinite(self.best_value) else None,
            "stopped": self.stopped,
        }
        return state | ({} if self.best is None else {"best": self.best})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError if it is of another picture."""
        if state["seed"] != self.seed:
            raise ValueError(f"state: of seed {state['seed']}, expected that of seed {self.seed}")
        for name, group in (("tensors", self.tensors), ("fixed", self.fixed)):
            saved = state.get(name) or {}
            if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in group.items()}:
                raise ValueError(f"state: {name} have other names or shapes than this picture's")
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state["tensors"][name])
        self.fixed.update({k: v.to(self.fixed[k].device) for k, v in (state.get("fixed") or {}).items()})
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.losses = state["losses"].tolist()
        self.evaluations = [(int(step), value) for step, value in state["evaluations"].tolist()]
        best = state.get("best")
        self.best = None if best is None else {k: v.to(self.tensors[k].device) for k, v in best.items()}
        self.best_value = math.inf if state["best_value"] is None else state["best_value"]
        self.stopped = state["stopped"]


def check_count(name: str, value: object, low: int, high: int) -> None:
    """ValueError unless an argument is a whole number in low..high."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name}: {value!r}, expected a whole number in {low}..{high}")


class SynthesisTask(Protocol):
    """What a method says to the loop. `step` counts from 0; `num_steps` is the loop's."""

    def losses(self, samples: Sequence[SynthesisSample], step: int) -> torch.Tensor:
        """(n,) losses of a step, with gradient, with the samples' own random numbers."""

    def after_step(self, sample: SynthesisSample, step: int, num_steps: int) -> None:
        """Puts parameters back into their ranges, and sets learning rates for the next step. Without gradient."""

    def evaluate(self, samples: Sequence[SynthesisSample]) -> torch.Tensor:
        """(n,) losses without augmentation. Called without gradient; draws no random numbers."""

    def images(self, samples: Sequence[SynthesisSample]) -> torch.Tensor:
        """(n, 3, H, W) in 0..1. Called without gradient."""


class SynthesisLoop:
    """
    Optimises samples against a task.

    Args:
        task: see [`SynthesisTask`].
        samples: the pictures, in order.
        num_steps: steps of each.
        samples_at_once: pictures that go through the models together, of those whose tensors have equal shapes. 1:
            every picture is the same, bit for bit, whatever else is made with it, and memory does not grow with their
            number. More is faster on a GPU.
        evaluate_every: steps between evaluations; there is one at the end in any case.
        keep_best: the result is the state of the lowest evaluation, not the last one.
        min_delta: a picture stops when two evaluations in a row differ by no more; None: never.

    Raises:
        ValueError: no samples, absurd numbers.
    """

    def __init__(
        self,
        task: SynthesisTask,
        samples: Sequence[SynthesisSample],
        num_steps: int,
        samples_at_once: int = 1,
        evaluate_every: int = 10,
        keep_best: bool = False,
        min_delta: float | None = None,
    ):
        check_count("num_steps", num_steps, 0, LARGEST_STEPS)
        check_count("samples_at_once", samples_at_once, 1, LARGEST_SAMPLES)
        check_count("evaluate_every", evaluate_every, 1, LARGEST_STEPS)
        check_count("samples", len(samples), 1, LARGEST_SAMPLES)
        self.task, self.samples, self.num_steps = task, list(samples), num_steps
        self.samples_at_once, self.evaluate_every = samples_at_once, evaluate_every
        self.keep_best, self.min_delta = keep_best, min_delta
        self.step = 0

    @property
    def is_done(self) -> bool:
        return self.step >= self.num_steps or all(sample.stopped for sample in self.samples)

    def run(self, callback: Callable[["SynthesisLoop"], object] | None = None) -> list[SynthesisSample]:
        """Makes all steps that are left. `callback(loop)` comes after each; if it returns `False`, the loop stops
        there, and `run` can be called again."""
        if not self.samples[0].evaluations:
            self._evaluate()
        while not self.is_done:
            self.advance()
            if callback is not None and callback(self) is False:
                return self.samples
        return self.samples

    def advance(self) -> None:
        """One step of every sample that has not stopped.

        Raises:
            ValueError: a loss is NaN or infinite.
        """
        for group in self._groups([sample for sample in self.samples if not sample.stopped]):
            losses = self.task.losses(group, self.step)
            if not losses.isfinite().all():
                raise ValueError(f"loss: {losses.tolist()} in step {self.step}, expected finite numbers")
            for sample in group:
                sample.optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            with torch.no_grad():
                for sample, loss in zip(group, losses.tolist(), strict=True):
                    sample.optimizer.step()
                    self.task.after_step(sample, self.step, self.num_steps)
                    sample.losses.append(loss)
        self.step += 1
        if self.step % self.evaluate_every == 0 or self.step == self.num_steps:
            self._evaluate()

    @torch.no_grad()
    def _evaluate(self) -> None:
        for group in self._groups([sample for sample in self.samples if not sample.stopped]):
            for sample, value in zip(group, self.task.evaluate(group).tolist(), strict=True):
                before = sample.evaluations[-1][1] if sample.evaluations else math.inf
                sample.evaluations.append((self.step, value))
                if self.keep_best and value < sample.best_value:
                    sample.best_value = value
                    sample.best = {name: tensor.detach().clone() for name, tensor in sample.tensors.items()}
                if self.min_delta is not None and abs(before - value) <= self.min_delta:
                    sample.stopped = True

    def _groups(self, samples: Sequence[SynthesisSample]) -> Iterator[list[SynthesisSample]]:
        """Samples that go through the models together: only such as have tensors of equal shapes."""
        alike: dict[tuple, list[SynthesisSample]] = {}
        for sample in samples:
            shapes = tuple((name, tensor.shape) for name, tensor in sample.tensors.items())
            alike.setdefault(shapes, []).append(sample)
        for some in alike.values():
            for first in range(0, len(some), self.samples_at_once):
                yield some[first : first + self.samples_at_once]

    @torch.no_grad()
    def images(self, samples: Sequence[SynthesisSample] | None = None) -> torch.Tensor:
        """(n, 3, H, W) of all samples, or some, as they are now."""
        samples = self.samples if samples is None else samples
        found: dict[int, torch.Tensor] = {}
        for group in self._groups(samples):
            found |= zip(map(id, group), self.task.images(group), strict=True)
        return torch.stack([found[id(sample)] for sample in samples])

    def finish(self) -> list[SynthesisSample]:
        """The samples, each in its best state if `keep_best`, with that state's evaluation as the last one."""
        for sample in self.samples:
            if self.keep_best and sample.best is not None:
                with torch.no_grad():
                    for name, tensor in sample.tensors.items():
                        tensor.copy_(sample.best[name])
        return self.samples

    def value_of(self, sample: SynthesisSample) -> float:
        """The evaluation loss of the state that `finish` gives."""
        return sample.best_value if self.keep_best else sample.evaluations[-1][1]

    # ---- stopping and resuming

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "samples": [sample.state_dict() for sample in self.samples]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where another loop over the same samples was.

        Raises:
            ValueError: the state is of other samples.
        """
        if len(state["samples"]) != len(self.samples):
            raise ValueError(f"state: {len(state['samples'])} pictures, expected {len(self.samples)}")
        for sample, saved in zip(self.samples, state["samples"], strict=True):
            sample.load_state_dict(saved)
        self.step = state["step"]


def checked_seeds(seeds: int | Sequence[int], what: str = "seeds") -> list[int]:
    """One seed or several, different ones, in 0..2^63 - 1. ValueError, with `what` in front, for anything else."""
    several = isinstance(seeds, Sequence) and not isinstance(seeds, str | bytes)
    found = list(seeds) if several else [seeds]
    if not found or any(type(seed) is not int or not 0 <= seed < 2**63 for seed in found):
        raise ValueError(f"{what}: {str(seeds)[:60]}, expected whole numbers in 0..2^63 - 1")
    if len(set(found)) != len(found):
        raise ValueError(f"{what}: {str(seeds)[:60]}, expected different ones")
    return found


__all__ = ["LARGEST_STEPS", "SynthesisLoop", "SynthesisSample", "SynthesisTask", "check_count", "checked_seeds"]
