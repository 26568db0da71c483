"""Answers of pipelines whose models come from a Hub with code, in a process that cannot import hf_clip_variants.

See tests/modeling/test_exported_pipelines.py. python pipelines_without_package.py TASK...: of each task the model
`alice/TASK`, on `cloud.npy`, `a.png` and `a.gif` of the working directory. Prints the answers as JSON in its last
line.
"""

import json
import sys
from pathlib import Path

import block_package  # noqa: F401  before transformers
from pipeline_answers import OF_TRANSFORMERS, TASKS, answer
from transformers import pipeline


found = {}
for task in sys.argv[1:]:
    pipe = pipeline(TASKS.get(task, task), model=f"alice/{task}", trust_remote_code=True, device="cpu")
    ours = (pipe.model,) if task in OF_TRANSFORMERS else (pipe, pipe.model)
    assert all("transformers_modules" in type(part).__module__ for part in ours), task
    found[task] = answer(task, pipe, Path.cwd())
assert not any(name.split(".")[0] == "hf_clip_variants" for name in sys.modules)
print(json.dumps(found))
