"""What models share that make pictures from texts: how pictures are compared with texts, and `generate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.forward_checks import check_output
from .guided_model import GuidedPreTrainedModel
from .synthesis_loop import SynthesisLoop


# B pictures, T texts, L tokens, D joint width


@dataclass
class TextGuidedOutput(ModelOutput):
    """
    Args:
        loss: (), with `return_loss`: the mean of `pair_losses`.
        logits_per_image: (B, T), scaled cosines of pictures and texts.
        logits_per_text: (T, B), its transpose.
        images: (B, 3, H, W), the pictures in 0..1.
        image_embeds, text_embeds: (B, D), (T, D), of unit norm.
        text_model_output, vision_model_output: of the two encoders.
    """

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    images: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class TextGuidedModel(GuidedPreTrainedModel):
    """A model whose `make_loop` takes prompts and a tokenizer."""

    output_class = TextGuidedOutput

    # Each model's own: (B, D), (B, D) of unit norm -> (B,), how far each picture is from its text.
    pair_losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def compare(
        self,
        images: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        return_loss: bool | None,
        normalize: bool = True,
        made_of: str = "latents",
        **kwargs,
    ) -> TextGuidedOutput:
        """Pictures (B, 3, H, W) in 0..1 and texts (T, L), as the first guide sees them.

        Args:
            normalize: pictures as its own are.
            made_of: the argument that errors about NaN name.

        Raises:
            ValueError: for the loss, other numbers of texts and pictures; NaN or infinity in the answer.
        """
        kwargs["return_dict"] = True
        pixels = self.as_guide_sees(images, normalize)
        vision = self.family.image_features(self.clip, pixel_values=pixels, **kwargs)
        text = self._encode_texts(input_ids, attention_mask, **kwargs)
        image_embeds, text_embeds = unit_norm(vision.pooler_output), unit_norm(text.pooler_output)
        logits = image_embeds @ text_embeds.T * self.family.logit_scale(self.clip)
        check_output(self, logits, "logits_per_image", **{made_of: images})
        loss = None
        if return_loss:
            if len(image_embeds) != len(text_embeds):
                raise ValueError(
                    f"input_ids: {len(text_embeds)} texts, expected one for each of {len(image_embeds)} pictures"
                )
            loss = self.pair_losses(image_embeds, text_embeds).float().mean()
        return self.output_class(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.T,
            images=images,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        tokenizer=None,
        *,
        callback: Callable[[SynthesisLoop], object] | None = None,
        **options,
    ) -> list:
        """
        Makes a picture of each prompt with each seed.

        Args:
            prompts: a text, or several, of which each becomes a picture. In one text, `|` stands between prompts of
                the same picture, `:` before a weight and a stop (`parse_prompts`), and `^` between chapters of a
                story, which are made one over the other in equal parts of the steps.
            tokenizer: the guide's, or its processor; of several guides, a list of one for each.
            callback: called with the loop after each step; `False` ends it there.
            options: see `make_loop`.

        Returns:
            For each prompt, each seed, in this order: what `results` gives.
        """
        with self.frozen():
            loop = self.make_loop(prompts, tokenizer, **options)
            loop.run(callback)
            return self.results(loop)


__all__ = ["TextGuidedModel", "TextGuidedOutput"]
