"""GLIP as a function of pixels alone, with fixed names and size: what graph formats can hold."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..detection.box_coding import decode_boxes
from .boxes_glip import label_scores


class GLIPGraph(nn.Module):
    """Images (B, 3, H, W) -> `scores` (B, P A, K) and `boxes` (B, P A, 4) as x1, y1, x2, y2 in pixels, of K names.

    BERT's answers are constants, so the text encoder is left out; fusion stays. P prompts follow each other, and each
    has scores of its own names, else zeros. A score is the square root of the label's score times centerness, and 0
    where the label's score is not above `score_threshold`: as the post-processing has it before it sorts. Boxes are
    not clipped.

    Args:
        model: a `GLIPForZeroShotObjectDetection`; it is copied, in float32.
        processor: its processor.
        labels: the names.
        size: (height, width) of the images.
        score_threshold: see `select_detections`.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        labels: Sequence[str],
        size: tuple[int, int],
        score_threshold: float = 0.05,
    ):
        super().__init__()
        prompt = processor(text=list(labels), return_tensors="pt")
        ids, mask, rows = (prompt[name] for name in ("input_ids", "attention_mask", "phrase_map"))
        if ids.dim() == 3:
            ids, mask, rows = ids[0], mask[0], rows[0]
        model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        with torch.no_grad():
            words = model.encode_prompts(ids, mask, rows)
            shapes = [tuple(one.shape[-2:]) for one in model.feature_maps(torch.zeros(1, 3, *size))[0]]
        del model.text_encoder
        model.backbone.set_attn_implementation("eager")  # the fused one of windows cannot be exported
        self.model, self.score_threshold = model, score_threshold
        self.level_sizes = [height * width for height, width in shapes]
        self.register_buffer("words", words)
        self.register_buffer("mask", mask)
        self.register_buffer("anchors", torch.cat(model.anchors_of(shapes)))
        counts = (rows != 0).any(dim=2).sum(dim=1).tolist()
        self.register_buffer("maps", torch.zeros(len(words), len(labels), words.shape[1]))
        first = 0
        for prompt_number, count in enumerate(counts):
            self.maps[prompt_number, first : first + count] = rows[prompt_number, :count]
            first += count

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        model, batch = self.model, pixel_values.shape[0]
        features = model.feature_maps(pixel_values, False)[0]
        all_scores, all_boxes = [], []
        for words, mask, own_map in zip(self.words, self.mask, self.maps, strict=True):
            words, mask = words.expand(batch, -1, -1), mask.expand(batch, -1)
            maps, fused = model.run_head(features, words, mask)
            logits, codes, centerness = model.predictions(maps, fused if model.config.use_fusion else words)
            scores = label_scores(logits.sigmoid(), own_map)
            joint = scores * centerness.sigmoid()[..., None]
            all_scores.append(torch.where(scores > self.score_threshold, joint, 0.0).sqrt())
            all_boxes.append(decode_boxes(codes, self.anchors))
        return torch.cat(all_scores, dim=1), torch.cat(all_boxes, dim=1)


__all__ = ["GLIPGraph"]
