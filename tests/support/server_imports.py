"""What the server of `processes.py` imports before it forks."""

import gc

import contrastive_runs  # noqa: F401
import peft  # noqa: F401
import pretraining_runs  # noqa: F401
import slip_runs  # noqa: F401
import torch._dynamo  # noqa: F401
import torch.distributed.fsdp  # noqa: F401


gc.collect()
gc.freeze()  # Trainer collects garbage after each training, see tests/conftest.py
