"""Detection metrics over ranks, each with some of the images: `torchrun detection_ranks.py FOLDER`, on gloo.

Reads FOLDER/detections.json, writes FOLDER/rank<r>.json.
"""

import json
import sys
from pathlib import Path

from torch import distributed as dist

from hf_clip_variants.metrics.detection import DetectionMetrics


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
stored = json.loads((folder / "detections.json").read_text())
metrics = DetectionMetrics(num_labels=3, groups=stored["groups"])
for number, (predictions, targets) in enumerate(stored["images"]):
    # As a sampler does that fills up: image 0 is on both.
    if number == 0 or number % size == rank:
        metrics.add(number, predictions, targets)
(folder / f"rank{rank}.json").write_text(json.dumps(metrics.compute()))
dist.destroy_process_group()
