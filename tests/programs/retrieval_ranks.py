"""Ranks in tiles over two processes: python retrieval_ranks.py FOLDER; run by torchrun, on gloo.

Reads FOLDER/scores.safetensors, writes FOLDER/rank<r>.json.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import distributed as dist

from hf_clip_variants.metrics.retrieval import ranks_in_tiles


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
given, scored = load_file(folder / "scores.safetensors"), []


def score(queries, entries):
    scored.append(len(queries))
    return given["similarity"][queries][:, entries]


found = ranks_in_tiles(score, given["entries"], rows=7, columns=5)
answer = {"ranks": [ranks.tolist() for ranks in found], "tiles": len(scored)}
(folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(answer))
dist.destroy_process_group()
