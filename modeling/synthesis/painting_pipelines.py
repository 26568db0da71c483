"""A pipeline that transformers lacks: a text becomes a picture."""

from typing import Any

from .drawing_pipelines import TextToDrawingPipeline
from .stroke_samples import best_of


TASK = "text-to-image"


class TextToImagePipeline(TextToDrawingPipeline):
    """
    Paints texts. Options of a call are those of the model's `generate`: `seeds`, `size`, `num_steps`, `start`, `mask`,
    `image_prompts`. Of several seeds, the best picture is returned.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    paint = pipeline("text-to-image", model="folder-or-hub-id")
    paint("a red apple", seeds=[0, 1])["image"].show()
    ```
    """

    def postprocess(self, model_outputs) -> dict[str, Any]:
        found = best_of(model_outputs["results"])
        side = max(found.pixels.shape[1:])
        return {
            "image": found.to_image(max(1.0, 512 / side)),
            "pixels": found.pixels,
            "latents": found.latents,
            "seed": found.seed,
            "loss": found.loss,
            "similarity": found.similarity,
        }


__all__ = ["TASK", "TextToImagePipeline"]
