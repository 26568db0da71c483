"""Finds objects with the graph beside this file: python detect.py photo.jpg more.jpg

Prints name, score and box (x1, y1, x2, y2 in pixels) of each object. Needs NumPy, Pillow and onnxruntime; neither
PyTorch nor transformers.
"""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


HERE = Path(__file__).resolve().parent
THRESHOLD = 0.3  # of what is printed


@cache
def read(name):
    """The JSON file of this name, beside this one."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


@cache
def load_graph():
    """A function from pixel values (B, 3, H, W) float32 to scores (B, N, K) and boxes (B, N, 4)."""
    import onnxruntime

    config = read("config.json")
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(config["outputs"], {config["input"]: pixels})


def upright(image):
    """A PIL image as it is meant: turned by its EXIF tag, RGB, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode != "RGB":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def prepare(image):
    """An upright image -> (3, H, W) float32, and (height, width) of what it fills of that; the rest is zeros."""
    settings, (height, width) = read("preprocessor_config.json"), read("config.json")["image_size"]
    factor = min(height / image.height, width / image.width)
    content = int(image.height * factor), int(image.width * factor)
    image = image.resize(content[::-1], settings.get("resample", 2))
    pixels = np.asarray(image, dtype=np.float32) * settings.get("rescale_factor", 1 / 255)
    pixels = (pixels - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    padded = np.zeros((3, height, width), np.float32)
    padded[:, : content[0], : content[1]] = pixels.transpose(2, 0, 1)
    return padded, content


def kept_of(boxes, order, limit):
    """Which of the boxes (M, 4) stay, best first: none overlaps an earlier one by more than `limit`."""
    kept, rest = [], list(order)
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    while rest:
        best, others = rest[0], np.array(rest[1:], dtype=int)
        kept.append(best)
        low, high = np.maximum(boxes[others, :2], boxes[best, :2]), np.minimum(boxes[others, 2:], boxes[best, 2:])
        shared = np.clip(high - low + 1, 0, None).prod(axis=1)
        rest = others[shared <= limit * (areas[others] + areas[best] - shared)].tolist()
    return kept


def select(scores, boxes, content):
    """Scores (N, K) and boxes (N, 4) of one image -> scores, labels and boxes of its objects, best first."""
    config, (height, width) = read("config.json"), content
    boxes = np.clip(boxes, 0, np.array([width - 1, height - 1] * 2, np.float32))
    level = np.repeat(np.arange(len(config["level_sizes"])), config["level_sizes"])
    level = np.tile(level, len(scores) // len(level))  # once a prompt
    found = []
    for number in range(len(config["level_sizes"])):
        rows, labels = np.nonzero((scores > 0) & (level == number)[:, None])
        best = np.argsort(-scores[rows, labels], kind="stable")[: config["pre_nms"]]
        found += zip(rows[best], labels[best], strict=True)
    rows, labels = (np.array(one, dtype=int) for one in (zip(*found, strict=True) if found else ((), ())))
    values, kept = scores[rows, labels], []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        kept += kept_of(boxes[rows], own[np.argsort(-values[own], kind="stable")], config["nms_threshold"])
    kept = sorted(kept, key=lambda one: -values[one])
    if len(kept) > config["max_detections"]:
        kept = [one for one in kept if values[one] >= values[kept[config["max_detections"] - 1]]]
    return values[kept], labels[kept], boxes[rows[kept]]


def detect(path, threshold=THRESHOLD):
    """Scores, names and boxes of the objects in an image file, in its own pixels."""
    with Image.open(path) as opened:
        image = upright(opened)
    pixels, content = prepare(image)
    scores, boxes = (one[0] for one in load_graph()(pixels[None]))
    scores, labels, boxes = select(scores, boxes, content)
    fine = scores > threshold
    scale = np.array([image.width / content[1], image.height / content[0]] * 2)
    names = read("config.json")["id2label"]
    return scores[fine], [names[str(label)] for label in labels[fine]], boxes[fine] * scale


def main(paths):
    for path in paths:
        found = [
            f"{name} {score:.2f} [{', '.join(f'{edge:.0f}' for edge in box)}]"
            for score, name, box in zip(*detect(path), strict=True)
        ]
        sys.stdout.write(f"{path}: {', '.join(found) or 'nothing'}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
