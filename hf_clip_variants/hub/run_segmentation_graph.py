"""Segments images with the graph beside this file: python segment.py photo.jpg more.jpg

Prints the share of each label and writes photo.labels.png, whose pixels are numbers of labels (config.json). Needs
NumPy, Pillow, and onnxruntime or openvino; neither PyTorch nor transformers.
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


@cache
def load_graph():
    """A function from pixel values (B, 3, H, W) float32 to logits (B, N, H, W)."""
    config = read("config.json")
    if (HERE / "model.onnx").is_file():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
        return lambda pixels: session.run([config["output"]], {config["input"]: pixels})[0]
    import openvino

    # Without the hint, OpenVINO computes in bfloat16 where the processor can: faster, less exact.
    graph = openvino.compile_model(str(HERE / "openvino_model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: graph(pixels)[config["output"]]


def upright(image):
    """A PIL image as it is meant: turned by its EXIF tag, RGB, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode != "RGB":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def resized_size(width, height):
    """Width and height that an image gets, by the settings of the processor."""
    settings = read("preprocessor_config.json")
    size, multiple = settings["size"], settings.get("size_multiple") or 1
    short, long = size.get("shortest_edge"), size.get("longest_edge")
    least, most = min(width, height), max(width, height)
    if not settings.get("do_resize", True):
        pass
    elif short and long:
        wanted = min(short, long * least / most)
        wanted = (round(wanted), int(wanted * most / least))
        width, height = wanted if width < height else wanted[::-1]
    elif short or long:
        width, height = (round(edge * (short / least if short else long / most)) for edge in (width, height))
    elif "max_height" in size:
        factor = min(size["max_height"] / height, size["max_width"] / width)
        width, height = int(width * factor), int(height * factor)
    else:
        width, height = size["width"], size["height"]
    return tuple(max(round(edge / multiple) * multiple, multiple) for edge in (width, height))


def prepare(image):
    """An upright image -> (3, H, W) float32: resized and normalised."""
    settings = read("preprocessor_config.json")
    image = image.resize(resized_size(*image.size), settings.get("resample", 2))
    pixels = np.asarray(image, dtype=np.float32)
    if settings.get("do_rescale", True):
        pixels = pixels * settings.get("rescale_factor", 1 / 255)
    if settings.get("do_normalize", True):
        pixels = (pixels - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    return pixels.transpose(2, 0, 1).astype(np.float32)


def label_map_of(logits, size):
    """Logits (N, h, w) -> labels (H, W) at `size` (width, height), one label's logits at a time."""
    best, labels = None, None
    for number, one in enumerate(logits):
        one = np.asarray(Image.fromarray(one.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        if best is None:
            best, labels = one, np.zeros(one.shape, np.uint16)
        better = one > best
        best, labels = np.where(better, one, best), np.where(better, np.uint16(number), labels)
    return labels


def segment(path):
    """The label map (H, W) of an image file."""
    with Image.open(path) as opened:
        image = upright(opened)
    return label_map_of(load_graph()(prepare(image)[None])[0], image.size)


def main(paths):
    names = read("config.json")["id2label"]
    for path in paths:
        labels = segment(path)
        numbers, counts = np.unique(labels, return_counts=True)
        order = np.argsort(-counts)
        shares = ", ".join(f"{names[str(numbers[i])]} {100 * counts[i] / labels.size:.1f} %" for i in order)
        out = Path(Path(path).stem + ".labels.png")
        Image.fromarray(labels.astype(np.uint8) if labels.max() < 256 else labels).save(out)
        sys.stdout.write(f"{path}: {shares} -> {out}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
