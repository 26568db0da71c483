"""Configuration of GLIPv2: GLIP with three more losses and the heads that they train."""

import math

from huggingface_hub.dataclasses import strict

from ..glip.configuration_glip import GLIPConfig
from ..loading_and_saving.configuration_checks import LARGEST, checked


@checked
@strict
class GLIPv2Config(GLIPConfig):
    r"""
    Configuration of GLIPv2. All fields of [`GLIPConfig`], whose defaults are GLIPv2-T's sizes, too, and what follows.
    With the three switches off it is GLIP, with exactly its weights.

    Args:
        use_inter_image_loss (`bool`, defaults to `True`):
            Regions are compared with the words of all images of the batch, before fusion.
        contrastive_dim (`int`, defaults to 64): width of the space in which they are compared.
        max_positive_regions (`int`, defaults to 100): at most so many regions of an image are, drawn by chance.
        inter_image_gather (`str`, defaults to `"exact"`):
            With several processes: `"exact"` gives the gradients of one process with all images. `"official"` takes
            other processes' embeddings for constants, as the authors' code does.
        inter_image_weight (`float`, defaults to 1): of this loss. The authors' is not known.
        use_mlm (`bool`, defaults to `True`):
            Some words of the prompt are masked in training, and predicted from what fusion makes of them. Without
            fusion they are predicted from the text alone.
        mlm_probability (`float`, defaults to 0.15): share of the tokens that are.
        mlm_weight (`float`, defaults to 1): of this loss.
        mask_token_id (`int`, defaults to 103): the tokenizer's mask, BERT's by default.
        end_token_id (`int`, defaults to 102): the tokenizer's end mark, where a caption ends; BERT's by default.
        use_mask_head (`bool`, defaults to `True`): the model predicts masks, by comparing pixels with words.
        mask_num_convs (`int`, defaults to 4): convolutions of the mask head.
        mask_weight (`float`, defaults to 1): of its loss.

    Example:

    ```python
    >>> from hf_clip_variants import GLIPv2Config

    >>> config = GLIPv2Config(use_mask_head=False)
    >>> config.use_inter_image_loss, config.use_mlm, config.head_num_layers
    (True, True, 6)
    ```
    """

    model_type = "clipv-glipv2"
    keys_to_ignore_at_inference = [*GLIPConfig.keys_to_ignore_at_inference, "mlm_logits", "detections"]

    use_inter_image_loss: bool = True
    contrastive_dim: int = 64
    max_positive_regions: int = 100
    inter_image_gather: str = "exact"
    inter_image_weight: float | int = 1.0
    use_mlm: bool = True
    mlm_probability: float | int = 0.15
    mlm_weight: float | int = 1.0
    mask_token_id: int = 103
    end_token_id: int = 102
    use_mask_head: bool = True
    mask_num_convs: int = 4
    mask_weight: float | int = 1.0

    def validate_additions(self):
        if self.inter_image_gather not in ("exact", "official"):
            raise ValueError(f"inter_image_gather: {self.inter_image_gather!r}, expected 'exact' or 'official'")
        for name, least in (("contrastive_dim", 1), ("max_positive_regions", 1), ("mask_num_convs", 0)):
            if not least <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a whole number in {least}..{LARGEST}")
        if not 0 <= self.mlm_probability <= 1:
            raise ValueError(f"mlm_probability: {self.mlm_probability}, expected a number from 0 to 1")
        for name in ("inter_image_weight", "mlm_weight", "mask_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number >= 0")
        vocabulary = getattr(self.text_config, "vocab_size", None)
        for name in ("mask_token_id", "end_token_id") if self.use_mlm and vocabulary is not None else ():
            if not 0 <= getattr(self, name) < vocabulary:
                raise ValueError(
                    f"{name}: {getattr(self, name)} is outside of the vocabulary, expected 0..{vocabulary - 1} "
                    f"(text_config.vocab_size is {vocabulary})"
                )


__all__ = ["GLIPv2Config"]
