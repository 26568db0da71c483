"""Pipelines of what transformers has none for: a text becomes a drawing, a photograph becomes a sketch."""

from typing import Any

import torch
from transformers import Pipeline

from .stroke_samples import best_of


TEXT_TASK, IMAGE_TASK = "text-to-drawing", "image-to-drawing"


class _DrawingPipeline(Pipeline):
    """Draws with every seed, and returns the best drawing of each input."""

    _load_processor = None
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = None
    takes_texts = True

    def __init__(self, **kwargs):
        if kwargs.get("tokenizer") is None:
            kwargs["tokenizer"] = getattr(kwargs.get("processor"), "tokenizer", None)
        super().__init__(**kwargs)
        if not hasattr(self.model, "make_loop"):
            raise ValueError(f"model: {type(self.model).__name__} does not draw; want a model of this package for it")

    def _sanitize_parameters(self, **kwargs):
        return {}, kwargs, {}

    def preprocess(self, inputs):
        return {"inputs": inputs}

    def _forward(self, model_inputs, **options):
        given = model_inputs["inputs"]
        tokenizer = options.pop("tokenizers", None) or self.tokenizer
        given = (given, tokenizer) if self.takes_texts else (given,)
        # `Pipeline` calls this without gradients, which drawing needs.
        with torch.enable_grad():
            return {"results": self.model.generate(*given, **options)}

    def postprocess(self, model_outputs) -> dict[str, Any]:
        found = best_of(model_outputs["results"])
        drawing = found.drawing
        side = max(drawing.height, drawing.width)
        return {
            "image": drawing.to_image(512 / side),
            "svg": drawing.to_svg(),
            "drawing": drawing,
            "seed": found.seed,
            "loss": found.loss,
            "similarity": found.similarity,
        }


class TextToDrawingPipeline(_DrawingPipeline):
    """
    Draws texts. Options of a call are those of the model's `generate`: `seeds`, `num_strokes`, `num_steps`,
    `negative_prompts`; and `tokenizers`, one for each, of a model with several guides. Of several seeds, the best
    drawing is returned.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    draw = pipeline("text-to-drawing", model="folder-or-hub-id")
    found = draw("a red apple", seeds=[0, 1], num_strokes=64)
    found["image"].show()
    # found["svg"] is the text of an SVG file
    ```
    """


class ImageToDrawingPipeline(_DrawingPipeline):
    """
    Sketches photographs: paths, URLs or PIL images. Options of a call are those of the model's `generate`: `seeds`,
    `num_strokes`, `num_steps`, `masks`. Of several seeds, the best sketch is returned.

    Example, after `import hf_clip_variants`, which makes the pipeline known:

    ```python
    from transformers import pipeline

    sketch = pipeline("image-to-drawing", model="folder-or-hub-id")
    sketch("cat.jpg", num_strokes=16)["image"].show()
    ```
    """

    takes_texts = False
    _load_tokenizer = False


__all__ = ["IMAGE_TASK", "TEXT_TASK", "ImageToDrawingPipeline", "TextToDrawingPipeline"]
