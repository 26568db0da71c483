"""Mean IoU and the oracle's figures of a saved segmenter, on the ranks that torchrun started.

python segmentation_ranks.py MODEL DATA OUT.json; the first rank writes.
"""

import json
import sys
from pathlib import Path

import torch

from hf_clip_variants.data.images.label_maps import load_label_maps
from hf_clip_variants.evaluation.ranks import joined_ranks
from hf_clip_variants.evaluation.segmentation_quality import load_segmentation_model, measure_segmentation


def main(model: str, source: str, out: str) -> None:
    data = load_label_maps(source)
    segmenter = load_segmentation_model(model, data.class_names, background=0.1)
    with joined_ranks(torch.device("cpu")) as first:
        result = measure_segmentation(segmenter, data, oracle=True)
    if first:
        Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
