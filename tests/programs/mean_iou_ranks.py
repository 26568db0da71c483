"""Mean IoU over two ranks, each with some of the images: python mean_iou_ranks.py FOLDER; run by torchrun, on gloo.

Reads FOLDER/maps.safetensors, writes FOLDER/rank<r>.json.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import distributed as dist

from hf_clip_variants.metrics.segmentation import MeanIoU


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
maps = load_file(folder / "maps.safetensors")
metric = MeanIoU(6)
predictions, labels = maps["predictions"][rank::size], maps["labels"][rank::size]
metric.update(predictions, labels)
metric.all_reduce()
found = {"images": len(labels), "counts": metric.counts.tolist(), "mean_iou": metric.compute()["mean_iou"]}
(folder / f"rank{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
