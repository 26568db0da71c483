"""Adapters: PEFT tuners over CLIP. Importing this package imports PEFT and makes it know them."""

# First: the post-import hook of `import peft` comes back here, and must not find a tuner that is half imported.
import peft  # noqa: F401

from .registration import register_all


register_all()
