"""Rows of `benchmark_speed.py` for `hf-clip-variants predict`: a folder of JPEG files in, classes out.

Each case is a process of its own, and its whole CPU time counts: start, loading, decoding. `predict_one` is nearly all
start; what the other images of `predict_folder` cost is the difference of the two rows.
"""

import json
import math
import tempfile
from functools import cache, partial
from pathlib import Path

from speed_rows import OURS, Row, children_time, imagenet_class_names, make_clip, output_of
from speed_rows_adapt import Sizes, photographs


PIPELINE, SCRIPT = "transformers' zero-shot pipeline", "transformers script, labels encoded once"
LABELS = 10
_temporary = tempfile.TemporaryDirectory(prefix="speed-rows-")  # removed when the process ends

# label -> score for each image, in the order of their paths. The pipeline is used as in its documentation.
_PIPELINE = """
import json, sys
from pathlib import Path
from transformers import pipeline

model, folder, labels = sys.argv[1:]
classify = pipeline("zero-shot-image-classification", model=model, device="cpu")
paths = sorted(map(str, Path(folder).rglob("*.jpg")))
for found in classify(paths, candidate_labels=json.loads(labels)):
    print(json.dumps({one["label"]: one["score"] for one in found}))
"""
_SCRIPT = """
import json, sys
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

model, folder, labels = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
clip = CLIPModel.from_pretrained(model).eval()
tokenizer, processor = AutoTokenizer.from_pretrained(model), AutoImageProcessor.from_pretrained(model)
paths = sorted(map(str, Path(folder).rglob("*.jpg")))
with torch.inference_mode():
    prompts = tokenizer([f"This is a photo of {label}." for label in labels], padding=True, return_tensors="pt")
    text = torch.nn.functional.normalize(clip.get_text_features(**prompts).pooler_output, dim=-1)
    for start in range(0, len(paths), 8):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + 8]]
        pixels = processor(images, return_tensors="pt").pixel_values
        image = torch.nn.functional.normalize(clip.get_image_features(pixels).pooler_output, dim=-1)
        for scores in (clip.logit_scale.exp() * image @ text.T).softmax(1).tolist():
            print(json.dumps(dict(zip(labels, scores))))
"""


@cache
def saved_clip(small: bool) -> str:
    """A folder with a random ViT-B/32, or a tiny model, its tokenizer and its image processor."""
    from transformers import CLIPImageProcessor

    from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    folder, clip = str(Path(_temporary.name) / "clip"), make_clip(small, vision=True)
    size = clip.config.vision_config.image_size
    clip.save_pretrained(folder)
    official_tokenizer().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def read_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def ours(model: str, folder: str, labels: list[str]) -> list[dict[str, float]]:
    from hf_clip_variants.evaluation.calibration import PRIOR_TEMPERATURE

    command = ["predict", folder, "--model", model, "--classes", ",".join(labels)]
    command += ["--templates", "This is a photo of {}.", "--top", str(len(labels)), "--json"]
    found = read_lines(output_of(["-m", "hf_clip_variants.cli", *command]))
    # Their temperature: the model's own, without what ours divides by.
    return [{one["label"]: one["score"] ** PRIOR_TEMPERATURE for one in line["top"]} for line in found]


def theirs(program: str, model: str, folder: str, labels: list[str]) -> list[dict[str, float]]:
    return read_lines(output_of(["-c", program, model, folder, json.dumps(labels)]))


def largest_error(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Of differences of log-probabilities: scores are compared up to a common factor."""
    errors = []
    for a, b in zip(ours, theirs, strict=True):
        first = next(iter(b))
        errors += [abs(math.log(a[name] / a[first]) - math.log(b[name] / b[first])) for name in b]
    return max(errors)


def predict_folder(small: bool, images: int = 100) -> Row:
    images = 2 if small else images
    folder = str(photographs(Sizes(images, 1, 1)) / "train")
    model, labels = saved_clip(small), imagenet_class_names()[-LABELS:]
    cases = {OURS: ours, PIPELINE: partial(theirs, _PIPELINE), SCRIPT: partial(theirs, _SCRIPT)}
    return Row(
        f"whole processes, start to last line: {images} JPEG files of 500 x 375, {LABELS} labels, ViT-B/32, fp32",
        {name: partial(case, model, folder, labels) for name, case in cases.items()},
        {PIPELINE: 1.2, SCRIPT: 1.0},
        error=largest_error,
        tolerance=1e-3,  # ours prints six digits
        clock=children_time,
        warm_up=False,
    )


def predict_one(small: bool) -> Row:
    row = predict_folder(small, images=1)
    row.targets = {PIPELINE: 1 / 1.15, SCRIPT: 1 / 1.15}
    return row


PREDICT_ROWS = {"predict_one": predict_one, "predict_folder": predict_folder}
