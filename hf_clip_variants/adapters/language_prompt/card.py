"""Code in the model card of an adapter."""

SNIPPET = """\
import torch
from hf_clip_variants import load_adapter
from PIL import Image
from transformers import AutoProcessor

model = load_adapter({repo_id})  # brings its base model
processor = AutoProcessor.from_pretrained({base_model})
image = Image.new("RGB", (640, 480), "orange")  # yours
inputs = processor(image, {names})  # the names that it was trained for, in their order
with torch.inference_mode():
    outputs = model(**inputs)
print(processor.post_process_grounded_object_detection(outputs, threshold=0.3, target_sizes=[(480, 640)]))"""


__all__ = ["SNIPPET"]
