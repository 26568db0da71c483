"""
Adapters on a frozen dual encoder, as PEFT tuners: few trained tensors and small files.

They support everything that PEFT does with LoRA, except merging. Importing this package imports PEFT and registers the
tuners with it. It exports the configuration classes of all adapters in the table of methods.
"""

# Must come first: our hook that runs after `import peft` imports this package, and must not meet half-imported tuners.
import peft  # noqa: F401

from ..registration.peft_methods import register_all
from ..registry import methods
from .loading import load_adapter as load_adapter
from .loading import put_adapter as put_adapter


register_all()

_CONFIGS = {row.config.partition(":")[2]: row for row in methods("adapter")}
__all__ = sorted([*_CONFIGS, "load_adapter", "put_adapter"])


def __getattr__(name: str):
    if name in _CONFIGS:
        return _CONFIGS[name].load("config")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
