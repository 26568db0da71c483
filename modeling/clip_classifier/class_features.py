"""Class features of a `CLIPClassifier`: when they are computed, kept and thrown away.

Class features (C, D) depend on the *text side* alone: text encoder, text projection, prompt embedder. One classifier
keeps them in two places:

    stored   `class_features`, a buffer that is saved with the weights; of the classes, without adapters' part
    recent   in memory, up to 16: of the classes under each adapter, and of sets of labels given to a call, as ids or
             as names

Both are valid for one *state* of the text side, `text_state`. What happens, and what it does to them:

    event                                       stored                       recent
    ------------------------------------------  ---------------------------  ------------------
    forward, nothing kept for the state         computed, marked valid (*)   computed, kept
    forward, kept for the state                 read                         read
    weights changed, adapters switched          computed anew (*)            other key: misses
    gradients arrive at the text side           invalid                      forgotten
    forward while gradients are there           computed, not marked         not used
    `set_classes`                               invalid                      forgotten
    adapters put on the text side by PEFT       invalid                      forgotten
    moved to another device                     valid, moved along           forgotten
    saved, loaded by `from_pretrained`          valid if it was              empty
    copied, pickled                             valid if it was              empty
    forward within `class_features_held`        not looked at                those held, no state read
    `fix_class_features` (a merged adapter)     these, for good              not used
    exported or traced (`is_traced`)            read, else in the graph      not used

(*) not while adapters are on the text side: then features belong to the adapter, and go to `recent` only.

Reading the state copies no number from the device, so a forward with kept features does not wait for it;
`state_number` reads it from lists, in a fraction of the time. Seen are:

- in-place operations on parameters (`load_state_dict`, `copy_`, most optimizers), by their version counters;
- other parameters or other memory (`assign=True`, `.data = ...`, `.to`), by the identity of the storage;
- steps of fused optimizers, which the counters miss, by the gradients that come before them;
- adapters that are switched, merged, added or removed by PEFT.

Not seen are writes that PyTorch hides from its own counters: in place through `.data` (`weight.data.mul_(2)`), through
NumPy or a pointer, or to tensors made under `torch.inference_mode`. Call `forget_class_features` after those.
"""

import hashlib
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.hooks import RemovableHandle

from ..dual_encoders.offloading import offloading_hooks
from ..dual_encoders.tracing import is_traced
from ..loading_and_saving.optional_modules import optional_module
from .adapter_places import adapters_on


_text_side = optional_module(".text_side", __package__)  # a faster look at the same


RECENT = 16  # label sets whose class features stay in memory


def text_state(modules: Sequence[nn.Module]) -> tuple:
    """A value that changes when class features would; see the top of this file for what it sees.

    () where nothing may be kept: no weights yet (meta device), or gradients that an optimizer may be about to apply.
    Of offloaded weights, which nobody changes in place, it holds the hooks that bring them.
    """
    parameters = [p for module in modules for p in module.parameters()]
    if any(p.grad is not None for p in parameters):
        return ()
    hooks = offloading_hooks(modules) if any(p.is_meta for p in parameters) else ()
    if hooks is None:
        return ()
    return tuple(_identity(p) for p in parameters if not p.is_meta), adapters_on(modules), *hooks


def _identity(tensor: torch.Tensor) -> tuple:
    # The weak reference keeps the address of the storage, not its memory, from being given to another one.
    return StorageWeakRef(tensor.untyped_storage()), tensor.storage_offset(), tensor.dtype, _version(tensor)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@contextmanager
def in_eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context no dropout and no noise (NEFTune) is in `modules`: what is kept and saved has none."""
    training = [m for module in modules for m in module.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class HeldFeatures:
    """What `class_features_held` holds."""

    features: torch.Tensor  # (C, D)
    embeds: torch.Tensor | None  # the same of unit norm, where no adapter comes between


class ClassFeatureCache:
    """What `CLIPClassifier` knows about its class features. Threads may share it."""

    def __init__(self):
        self.stored_state: tuple | None = None  # that the buffer `class_features` belongs to; None: to nothing known
        self.held: HeldFeatures | None = None
        self._stored_parameters: list[tuple[weakref.ref, int]] = []  # of that state, and their version counters
        self._recent: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._side: Any = None  # a TextSide
        self._numbers: OrderedDict[tuple, int] = OrderedDict()  # state -> its number
        self._next_number = itertools.count()
        self._last_state: tuple | None = None
        self._last_labels: tuple | None = None
        self._named: OrderedDict[tuple, Any] = OrderedDict()
        self._watches: list[RemovableHandle] = []
        self._lock = threading.RLock()  # what is computed under it may forget

    def set_stored(self, modules: Sequence[nn.Module]) -> None:
        """The buffer belongs to the text side `modules` as it is now."""
        self.stored_state = text_state(modules) or None
        parameters = [p for module in modules for p in module.parameters()]
        self._stored_parameters = [(weakref.ref(p), _version(p)) for p in parameters]
        self._watch(modules)

    def _lists_of(self, modules: Sequence[nn.Module]) -> Any:
        """A `TextSide` of `modules`, made anew only if one of their modules or parameters is another one now."""
        side = self._side
        if side is None or not side.is_of(modules):
            side = self._side = _text_side.TextSide(modules)
        return side

    def is_trained(self, modules: Sequence[nn.Module]) -> bool:
        """Whether one of the parameters of `modules` wants gradients."""
        if _text_side is None or torch.compiler.is_compiling() or is_traced():  # a graph must not hold such lists
            return any(p.requires_grad for module in modules for p in module.parameters())
        return self._lists_of(modules).is_trained()

    def state_number(self, modules: Sequence[nn.Module]) -> int | None:
        """A number of `text_state(modules)`: the same for equal states, another one for others; None where that is ().

        In the usual case, where nothing has changed since the last call, one look at the lists tells.
        """
        if _text_side is None:
            return self._number_of(text_state(modules))
        side = self._lists_of(modules)
        if side.has_gradients():
            return None
        if side.is_on_meta():
            return self._number_of(text_state(modules))
        glance, last = side.glance(), self._last_state
        if last is not None and last[0] is side and last[1] == glance:
            return last[2]
        state = text_state(modules)
        number = self._number_of(state)
        self._last_state = side, glance, number, state  # the state keeps addresses in `glance` from being reused
        return number

    def _number_of(self, state: tuple) -> int | None:
        if not state:
            return None
        with self._lock:
            number = self._numbers.setdefault(state, next(self._next_number))
            self._numbers.move_to_end(state)
            while len(self._numbers) > RECENT:
                self._numbers.popitem(last=False)
        return number

    def stored_is_untouched(self) -> bool:
        """Whether the parameters that the buffer was computed from are as they were. For graphs: while one is
        recorded, the modules hold stand-ins, of which `text_state` knows nothing."""
        kept = ((parameter(), version) for parameter, version in self._stored_parameters)
        return self.stored_state is not None and all(p is not None and _version(p) == version for p, version in kept)

    def forget(self) -> None:
        """Recent features, and that the stored ones are valid."""
        with self._lock:  # else another thread's features could go between being kept and being read
            self.stored_state = self.held = None
            self._recent.clear()
            while self._watches:
                self._watches.pop().remove()

    def recent(self, key: tuple, modules: Sequence[nn.Module], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The features kept under `key`, else those that `compute` gives, kept from now on."""
        with self._lock:
            features = self._recent.get(key)
            if features is None:
                # Not an inference tensor even under inference_mode: training reads the same cache later.
                with torch.inference_mode(False), torch.no_grad():
                    features = compute()
                self._watch(modules)
                self._recent[key] = features
                while len(self._recent) > RECENT:
                    self._recent.popitem(last=False)
            self._recent.move_to_end(key)
        return features

    def named(self, key: tuple, tokenize: Callable[[], Any]) -> Any:
        """The token ids of class names that came with a call: those kept under `key`, else what `tokenize` gives."""
        with self._lock:
            if key not in self._named:
                self._named[key] = tokenize()
                while len(self._named) > RECENT:
                    self._named.popitem(last=False)
            self._named.move_to_end(key)
            return self._named[key]

    def _watch(self, modules: Sequence[nn.Module]) -> None:
        """Forgets everything at the next gradient of a parameter of `modules`: an optimizer's step follows it."""
        while self._watches:
            self._watches.pop().remove()
        for parameter in (p for module in modules for p in module.parameters()):
            if parameter.requires_grad and parameter.is_leaf:
                self._watches.append(parameter.register_post_accumulate_grad_hook(lambda _: self.forget()))

    def key_of_labels(self, input_ids: torch.Tensor) -> tuple:
        """By the content of the ids. The same tensor as last time is known without reading it again."""
        known = self._last_labels
        identity = (_identity(input_ids), input_ids.shape, input_ids.stride())
        if known is None or known[0] != identity or input_ids.is_inference():
            ids = input_ids.detach().to("cpu", torch.int32)
            known = self._last_labels = (identity, hashlib.sha256(ids.numpy().tobytes()).digest())
        return tuple(input_ids.shape), known[1]


__all__ = ["RECENT", "ClassFeatureCache", "HeldFeatures", "in_eval_mode", "text_state"]
