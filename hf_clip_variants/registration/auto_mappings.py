"""Registration in transformers' Auto classes that imports neither the configuration nor the model before somebody asks for it."""

import warnings
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any


class LazyContent(MutableMapping):
    """
    What third parties registered in one of transformers' Auto mappings, with entries that are imported when they are looked up.

    It takes the place of a mapping's `_extra_content` dict. A lazy entry is found by the *name* of its key: a model type for the
    configurations, the full name of the configuration class for everything else. So `type(config) in mapping` imports nothing, and an
    entry of ours in `AutoModel` costs nothing to somebody who loads BERT. Going through all entries imports all of them; one whose
    optional dependency is missing is left out with a warning.
    """

    def __init__(self, content: dict | None = None):
        self._content = dict(content or {})
        self._lazy: dict[str, Callable[[], tuple[Any, Any]]] = {}

    def add_lazily(self, key_name: str, load: Callable[[], tuple[Any, Any]]) -> None:
        """`load()` returns the real key and value. Entries that exist already stay."""
        if key_name not in (_name_of(key) for key in self._content):
            self._lazy[key_name] = load

    def _resolve(self, key_name: str) -> None:
        load = self._lazy.get(key_name)
        if load is None:
            return
        key, value = load()
        # First in, then out: a second thread finds it in one of the two. It keeps the entry if the first was faster.
        self._content.setdefault(key, value)
        self._lazy.pop(key_name, None)

    def __getitem__(self, key):
        self._resolve(_name_of(key))
        return self._content[key]

    def __setitem__(self, key, value):
        self._content[key] = value
        self._lazy.pop(_name_of(key), None)

    def __delitem__(self, key):
        self._resolve(_name_of(key))
        del self._content[key]

    def __contains__(self, key):
        return key in self._content or _name_of(key) in self._lazy

    def __iter__(self) -> Iterator:
        for name in list(self._lazy):
            try:
                self._resolve(name)
            except ImportError as error:
                warnings.warn(f"{name} is left out of this list: {error}", RuntimeWarning, stacklevel=3)
        return iter(list(self._content))

    def __len__(self):
        return len(self._content) + len(self._lazy)

    def __repr__(self):
        return f"{type(self).__name__}({self._content!r}, lazy={sorted(self._lazy)})"

    def __reduce__(self):
        return dict, (dict(self),)


def _name_of(key) -> str:
    return f"{key.__module__}.{key.__qualname__}" if isinstance(key, type) else str(key)


def register_lazily(mapping, key_name: str, load: Callable[[], tuple[Any, Any]]) -> None:
    """
    Add one entry to a transformers Auto mapping (`CONFIG_MAPPING`, `AutoModel._model_mapping`, `PROCESSOR_MAPPING`, …).

    `_extra_content` is private to transformers. If a release has it no longer, the entry is imported and registered the public way:
    slower, same result.
    """
    content = getattr(mapping, "_extra_content", None)
    if isinstance(content, dict):
        content = mapping._extra_content = LazyContent(content)
    if isinstance(content, LazyContent):
        content.add_lazily(key_name, load)
    else:
        mapping.register(*load(), exist_ok=True)
