"""Classifies images with the graph beside this file: python classify.py photo.jpg more.jpg

Needs NumPy, Pillow, and onnxruntime or openvino; neither PyTorch nor transformers.
"""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


HERE = Path(__file__).resolve().parent


@cache
def read(name):
    """The JSON file of this name, beside this one."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def load_graph():
    """A function from pixel values (B, 3, H, W) float32 to logits (B, C)."""
    config = read("config.json")
    if (HERE / "model.onnx").is_file():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
        return lambda pixels: session.run([config["output"]], {config["input"]: pixels})[0]
    import openvino

    # Without the hint, OpenVINO computes in bfloat16 where the processor can: faster, less exact.
    graph = openvino.compile_model(str(HERE / "openvino_model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: graph(pixels)[config["output"]]


def prepare(image):
    """A PIL image -> (3, H, W) float32: resized, the centre cropped, normalised."""
    settings, image = read("preprocessor_config.json"), ImageOps.exif_transpose(image)
    if image.mode != "RGB":  # on white, where it is transparent
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    size = settings["size"]
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        long = int(short * max(image.size) / min(image.size))
        wanted = (short, long) if image.width <= image.height else (long, short)
    else:
        wanted = (size["width"], size["height"])
    if settings.get("do_resize", True):
        image = image.resize(wanted, settings.get("resample", 3))
    if settings.get("do_center_crop"):
        width, height = settings["crop_size"]["width"], settings["crop_size"]["height"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32)
    if settings.get("do_rescale", True):
        pixels = pixels * settings.get("rescale_factor", 1 / 255)
    if settings.get("do_normalize", True):
        pixels = (pixels - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    return pixels.transpose(2, 0, 1).astype(np.float32)


def scores_of(logits):
    """(B, C) logits -> scores in 0..1: of each row they add up to 1, unless an image has several labels."""
    config = read("config.json")
    if config["thresholds"] is not None:
        return 1 / (1 + np.exp(-logits))
    logits = logits / config["temperature"]
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def main(paths):
    graph, labels, thresholds = load_graph(), read("config.json")["id2label"], read("config.json")["thresholds"]
    names = [labels[str(i)] for i in range(len(labels))]
    for path in paths:
        with Image.open(path) as image:
            scores = scores_of(graph(prepare(image)[None]))[0]
        if thresholds is None:
            found = [int(scores.argmax())]
        else:
            found = [i for i in range(len(names)) if scores[i] >= thresholds[i]]
        answers = ", ".join(f"{names[i]} {scores[i]:.4f}" for i in found)
        sys.stdout.write(f"{path}: {answers}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
