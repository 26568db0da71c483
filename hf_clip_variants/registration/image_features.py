"""transformers' pipeline for image features, for models of two encoders.

It calls a model's `forward`, which gives logits there, or asks for texts.
"""

from transformers import ImageFeatureExtractionPipeline


class ImageFeaturePipeline(ImageFeatureExtractionPipeline):
    """As transformers' own, but for models of this package with `get_image_features`, which it calls: token features
    (1, N, width), or with `pool=True` the feature in the joint space (1, D), not normalised."""

    def _forward(self, model_inputs):
        ours = type(self.model).__module__.partition(".")[0] == __name__.partition(".")[0]
        if ours and hasattr(self.model, "get_image_features"):
            return self.model.get_image_features(**model_inputs)
        return super()._forward(model_inputs)


__all__ = ["ImageFeaturePipeline"]
