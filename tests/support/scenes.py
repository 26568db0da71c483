"""Images with several labels: scenes of one to three embedded emoji on one canvas."""

import csv
import random
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, List
from datasets import Image as ImageFeature
from PIL import Image

from hf_clip_variants import load_images


SCENE_CLASSES = ["cat", "octopus", "hot dog", "cherries", "taco", "whale"]
_SIDE, _CELL = 128, 64  # of a scene, of an emoji in it: four places


def make_scenes(count: int, seed: int, styles: str = "notov1", names=SCENE_CLASSES, most: int = 3):
    """(images, (count, C) 0/1 labels): 1 to `most` different emoji at random places on white."""
    emoji, generator = load_images(f"emoji:{styles}"), random.Random(seed)
    rows = [np.flatnonzero(emoji.labels == emoji.class_names.index(name)).tolist() for name in names]
    places = [(x, y) for x in range(0, _SIDE, _CELL) for y in range(0, _SIDE, _CELL)]
    images, labels = [], np.zeros((count, len(names)), dtype=np.float32)
    for scene in range(count):
        shown = generator.sample(range(len(names)), generator.randint(1, most))
        canvas = Image.new("RGB", (_SIDE, _SIDE), "white")
        for index, place in zip(shown, generator.sample(places, len(shown)), strict=True):
            picture = emoji.image(generator.choice(rows[index])).convert("RGBA")
            canvas.paste(picture, place, picture)
            labels[scene, index] = 1
        images.append(canvas)
    return images, labels


def scene_dataset(count: int, seed: int, **options) -> Dataset:
    """The same as a data set with a column of lists of class labels."""
    images, labels = make_scenes(count, seed, **options)
    names = list(options.get("names", SCENE_CLASSES))
    features = Features({"image": ImageFeature(), "labels": List(ClassLabel(names=sorted(names)))})
    lists = [[names[c] for c in np.flatnonzero(row)] for row in labels]
    return Dataset.from_dict({"image": images, "labels": lists}, features=features)


def save_scenes(folder: Path) -> Path:
    """`data/train.parquet` (80 scenes), `data/test.parquet` (40), and 5 scenes as files listed in `cells.csv`."""
    (folder / "data").mkdir()
    scene_dataset(80, seed=1).to_parquet(folder / "data" / "train.parquet")
    scene_dataset(40, seed=2).to_parquet(folder / "data" / "test.parquet")
    (folder / "files").mkdir()
    images, labels = make_scenes(5, seed=3)
    with open(folder / "cells.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels"])
        for number, (image, row) in enumerate(zip(images, labels, strict=True)):
            image.save(folder / "files" / f"{number}.png")
            writer.writerow([f"files/{number}.png", "|".join(SCENE_CLASSES[c] for c in np.flatnonzero(row))])
    return folder
