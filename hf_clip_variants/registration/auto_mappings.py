"""Lazy entries in transformers' Auto mappings: a class is imported when it is looked up."""

import warnings
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any


class LazyContent(MutableMapping):
    """
    The entries that third parties registered in one of transformers' Auto mappings, some of them lazy.

    It replaces a mapping's dictionary `_extra_content`. A lazy entry is found by the *name* of its key: a model type
    in the mapping of configurations, the full name of the configuration class in all others. So
    `type(config) in mapping` imports nothing, and loading BERT with `AutoModel` does not import our models. Iteration
    imports all entries. An entry whose optional dependency is missing is left out, with a warning.
    """

    def __init__(self, content: dict | None = None):
        self._content = dict(content or {})
        self._lazy: dict[str, Callable[[], tuple[Any, Any]]] = {}

    def add_lazily(self, key_name: str, load: Callable[[], tuple[Any, Any]]) -> None:
        """Add an entry; `load()` imports and returns its key and value. An existing entry is kept."""
        if key_name not in (_name_of(key) for key in self._content):
            self._lazy[key_name] = load

    def _resolve(self, key_name: str) -> None:
        load = self._lazy.get(key_name)
        if load is None:
            return
        key, value = load()
        # Added to the one dictionary before it is removed from the other, so that a second thread finds it in one of
        # them. `setdefault` keeps the first thread's value if both load the entry.
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
    Add a lazy entry to one of transformers' Auto mappings (`CONFIG_MAPPING`, `AutoModel._model_mapping`, ...).

    `_extra_content` is private to transformers. If a release does not have it, the entry is imported now and
    registered with the public method `register`: slower, but with the same result.
    """
    content = getattr(mapping, "_extra_content", None)
    if isinstance(content, dict):
        content = mapping._extra_content = LazyContent(content)
    if isinstance(content, LazyContent):
        content.add_lazily(key_name, load)
    else:
        mapping.register(*load(), exist_ok=True)
