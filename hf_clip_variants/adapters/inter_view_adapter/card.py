"""Code in the model card of an adapter."""

SNIPPET = """\
import numpy as np
import torch
from hf_clip_variants import load_adapter
from transformers import AutoProcessor

model = load_adapter({repo_id})  # brings its base model and the classes of it
processor = AutoProcessor.from_pretrained({base_model})
points = np.random.default_rng(0).normal(size=(2048, 3))  # yours, +y up, or the path of a mesh
inputs = processor(points=points, return_tensors="pt")
if model.get_base_model().class_features is None:
    model.get_base_model().set_classes({names}, processor, "point cloud of a big {{}}.")
with torch.inference_mode():
    print(model(**inputs).logits.softmax(-1))"""


__all__ = ["SNIPPET"]
