"""Builds an index on each of the processes that torchrun started: python index_on_ranks.py SOURCE MODEL OUT [fail]

With `fail`, the last process cannot encode: all must end, with an error.
"""

import os
import sys

from hf_clip_variants.search import building
from hf_clip_variants.search.encoder import Encoder


source, model, out, *fail = sys.argv[1:]
building.PART_SIZE = 2
if fail and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):

    def broken(*_, **options):
        raise ValueError("this process cannot encode")

    Encoder.encode_pixels = broken
try:
    building.build_index(source, model, out, device="cpu")
except ValueError as error:
    assert fail and "this process cannot encode" in str(error), error
else:
    assert not fail
