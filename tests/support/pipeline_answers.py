"""What a pipeline says of `cloud.npy`, `a.png` and `a.gif` of a folder. Imports nothing of the package, as programs
use it."""

from pathlib import Path

import numpy as np


# What is asked -> the pipeline's task, where several models have one.
TASKS = {f"{model}-labels": "zero-shot-video-classification" for model in ("clip4clip", "actionclip", "videoclip")}
OF_TRANSFORMERS = ("depth-estimation", "image-text-to-text", "video-classification")  # pipelines that are not ours


def answer(task: str, pipe, folder: Path):
    """`task`: of a pipeline, or of `TASKS`."""
    photo = str(folder / "a.png")
    if task == "zero-shot-point-cloud-classification":
        found = pipe(np.load(folder / "cloud.npy"), candidate_labels="chair, lamp")
        return {one["label"]: one["score"] for one in found}
    if task in TASKS:
        found = pipe(str(folder / "a.gif"), candidate_labels="cat, dog")
        return {one["label"]: one["score"] for one in found}
    if task == "video-classification":
        return {one["label"]: one["score"] for one in pipe([str(folder / "a.gif")])[0]}
    if task == "video-anomaly-detection":
        return pipe(str(folder / "a.gif"))["scores"]
    if task == "depth-estimation":
        return pipe(photo)["predicted_depth"].flatten().tolist()
    if task == "image-question-answering":
        return {one["answer"]: one["score"] for one in pipe(photo, "how many ?")}
    if task == "image-text-to-text":
        return pipe(photo, text="the red", max_new_tokens=5)[0]["generated_text"]
    found = pipe("a fire in town", photo)
    return {name: found[name] for name in ("label", "scores", "weights", "similarity", "layers")}
