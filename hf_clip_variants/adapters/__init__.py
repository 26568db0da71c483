"""
Adapters on a frozen CLIP, as PEFT tuners: few trained tensors, small files, everything that PEFT does with LoRA except merging.

Importing this package imports PEFT and makes it know them.
"""

# First: the post-import hook of `import peft` comes back here, and must not find a tuner that is half imported.
import peft  # noqa: F401

from .clip_adapter.config import CLIPAdapterConfig
from .coop.config import CoOpConfig
from .loading import load_adapter, put_adapter
from .registration import register_all
from .tip_adapter.config import TipAdapterConfig


register_all()

__all__ = ["CLIPAdapterConfig", "CoOpConfig", "TipAdapterConfig", "load_adapter", "put_adapter"]
