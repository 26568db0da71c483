"""Runs a function right after a module is imported: now if it is imported already, otherwise later."""

import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType


def after_import(name: str, callback: Callable[[ModuleType], None]) -> None:
    """
    Call `callback(module)` as soon as the module `name` is imported, without importing it.

    If the module is already imported, the callback runs now and its errors are raised. Otherwise it runs at the end of
    the import that executes the module, and again after `importlib.reload`. An error is then only a `RuntimeWarning`:
    `import peft` must succeed even if our registration fails. There is one callback per module; a second one replaces
    the first. Callbacks should be idempotent.

    Example:

    ```python
    >>> from hf_clip_variants.registration.post_import import after_import

    >>> after_import("json", lambda module: print("have", module.__name__))
    have json
    ```
    """
    _FINDER.callbacks[name] = callback
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    module = sys.modules.get(name)
    if module is None:
        return
    if getattr(getattr(module, "__spec__", None), "_initializing", False):
        module = importlib.import_module(name)  # another thread imports it: wait for its lock
    callback(module)


class _PostImportFinder:
    """Lets the other finders find a module, then wraps the loader that they return."""

    def __init__(self):
        self.callbacks: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(self, fullname, path=None, target=None):
        callback = self.callbacks.get(fullname)
        if callback is None:
            return None
        spec = self._found_by_others(fullname, path, target)
        # A namespace package has no loader. A loader without `exec_module` is older than Python 3.4. Both are
        # unchanged.
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _PostImportLoader(spec.loader, callback)
        return spec

    def _found_by_others(self, fullname, path, target):
        for finder in list(sys.meta_path):
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec(fullname, path, target) if find_spec is not None else None
            if spec is not None:
                return spec
        return None


class _PostImportLoader:
    """Wraps a module's loader until the module is executed; all other attributes are those of that loader."""

    def __init__(self, loader, callback):
        self._loader = loader
        self._callback = callback

    def __getattr__(self, name):
        if name in ("_loader", "_callback"):  # not yet set, as in copy.copy
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        # Remove ourselves first: code in the module, and `inspect` later, sees the original loader.
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if sys.modules.get(module.__name__) is not module:
            return  # a private copy (module_from_spec + exec_module): nothing to register
        try:
            self._callback(module)
        except Exception as error:
            warnings.warn(
                f"hf_clip_variants could not register its methods with {module.__name__} "
                f"({type(error).__name__}: {error}); {module.__name__} itself works. Check the versions in "
                "`pip install -U hf-clip-variants`.",
                RuntimeWarning,
                stacklevel=2,
            )


_FINDER = _PostImportFinder()
