"""A skip mark for tests of transformers' own `model.add_adapter` and `model.set_adapter`.

They need the PEFT version that transformers asks for; `load_adapter` works with any.
"""

from importlib.metadata import version

import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION


needs_adapter_methods = pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {version('transformers')} needs peft >= {MIN_PEFT_VERSION} for add_adapter, "
    f"installed is {version('peft')}",
)
