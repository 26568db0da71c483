"""
Adapters on a frozen CLIP, as PEFT tuners: few trained tensors, small files, everything that PEFT does with LoRA except merging.

Importing this package imports PEFT and makes it know them.
"""

# First: the post-import hook of `import peft` comes back here, and must not find a tuner that is half imported.
import peft  # noqa: F401

from ..registration.peft_methods import register_all
from .clip_adapter.config import CLIPAdapterConfig
from .cocoop.config import CoCoOpConfig
from .coop.config import CoOpConfig
from .ivlp.config import IVLPConfig
from .loading import load_adapter, put_adapter
from .maple.config import MaPLeConfig
from .tip_adapter.config import TipAdapterConfig
from .vpt.config import VPTConfig


register_all()

__all__ = [
    "CLIPAdapterConfig", "CoCoOpConfig", "CoOpConfig", "IVLPConfig", "MaPLeConfig", "TipAdapterConfig", "VPTConfig", "load_adapter",
    "put_adapter",
]  # fmt: skip
