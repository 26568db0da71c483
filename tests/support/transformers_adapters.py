"""transformers' own adapter methods (`model.add_adapter` and its kin) work only with the PEFT that transformers asks for."""

from importlib.metadata import version

import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION


needs_adapter_methods = pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {version('transformers')} wants peft >= {MIN_PEFT_VERSION} for add_adapter and load_adapter, "
    f"installed is {version('peft')}",
)
