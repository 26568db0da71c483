"""Small data sets in the folder layout of CoOp's DATASETS.md."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


ZHOU = {  # folder -> split file, folder of the images
    "caltech-101": ("split_zhou_Caltech101.json", "101_ObjectCategories"),
    "oxford_pets": ("split_zhou_OxfordPets.json", "images"),
    "stanford_cars": ("split_zhou_StanfordCars.json", ""),
    "oxford_flowers": ("split_zhou_OxfordFlowers.json", "jpg"),
    "food-101": ("split_zhou_Food101.json", "images"),
    "sun397": ("split_zhou_SUN397.json", "SUN397"),
    "dtd": ("split_zhou_DescribableTextures.json", "images"),
    "eurosat": ("split_zhou_EuroSAT.json", "2750"),
    "ucf101": ("split_zhou_UCF101.json", "UCF-101-midframes"),
}
CLASSES = ["abyssinian", "american_bulldog", "beagle"]
WORDNET = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile", "n09999999": "sunglasses"}


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_zhou(data: Path, folder: str, classes=tuple(CLASSES), counts=None) -> Path:
    """$DATA/<folder> with `counts` images per class and split: <class>/<split>_<i>.jpg.

    Rows alternate between the classes, last class first.
    """
    file, images = ZHOU[folder]
    lists, seed = {}, 0
    for split, count in (counts or {"train": 3, "val": 1, "test": 2}).items():
        lists[split] = []
        for i in range(count):
            for label in reversed(range(len(classes))):
                path = f"{classes[label]}/{split}_{i}.jpg"
                save_image(data / folder / images / path, seed := seed + 1)
                lists[split].append([path, label, classes[label]])
    (data / folder / file).write_text(json.dumps(lists))
    return data / folder


def save_aircraft(data: Path) -> Path:
    """fgvc_aircraft, which has its own lists; variant names have spaces and slashes."""
    folder, variants = data / "fgvc_aircraft", ["707-320", "A300B4", "F/A-18 Super"]
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    number = 1000
    for split, count in {"train": 2, "val": 1, "test": 1}.items():
        lines = []
        for variant in reversed(variants):
            for _ in range(count):
                save_image(folder / "images" / f"{(number := number + 1):07}.jpg", number)
                lines.append(f"{number:07} {variant}")
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def save_imagenet(data: Path, shifted: bool = True) -> Path:
    """imagenet of 4 classes, two of one name, and its four shifted sets.

    ImageNet-A has the second missile and the sunglasses, ImageNet-R three classes.
    """
    names = "".join(f"{identity} {name}\n" for identity, name in WORDNET.items())
    everything, a, r = list(WORDNET), ["n04008634", "n09999999"], ["n01440764", "n03773504", "n09999999"]
    numbers = [str(n) for n in range(4)]
    sets = {
        "imagenet": {"images/train": (everything, 3), "images/val": (everything, 2)},
        "imagenetv2": {"imagenetv2-matched-frequency-format-val": (numbers, 1)},
        "imagenet-sketch": {"images": (everything, 1)},
        "imagenet-adversarial": {"imagenet-a": (a, 1)},
        "imagenet-rendition": {"imagenet-r": (r, 1)},
    }
    seed = 0
    for name, parts in sets.items() if shifted else list(sets.items())[:1]:
        for part, (classes, count) in parts.items():
            for identity in classes:
                for i in range(count):
                    save_image(data / name / part / identity / f"{identity}_{i}.JPEG", seed := seed + 1)
            (data / name / part / "README.txt").write_text("not a class")
        (data / name / "classnames.txt").write_text(names)
    return data / "imagenet"
