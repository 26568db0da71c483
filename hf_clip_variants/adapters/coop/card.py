"""The model card's code for CoOp on a plain `CLIPModel`, whose prompts need placeholders."""

SNIPPET_ON_CLIP = """\
import torch
from hf_clip_variants import load_adapter
from hf_clip_variants.adapters.coop.layer import coop_prompt_ids
from PIL import Image
from transformers import AutoProcessor

model = load_adapter({repo_id})  # brings its base model
processor = AutoProcessor.from_pretrained({base_model})
image = Image.new("RGB", (224, 224), "orange")  # yours
names = {names}
prompts = coop_prompt_ids(processor.tokenizer, names, {num_context_tokens}, {class_token_position})
with torch.inference_mode():
    logits = model(input_ids=prompts, **processor(images=image, return_tensors="pt")).logits_per_image
print(names[logits.argmax(-1)])"""
