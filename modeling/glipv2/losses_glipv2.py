"""GLIPv2's losses beside GLIP's: regions and words of all images, masked words, masks. Pure functions."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

from ..losses.rank_exchange import Ranks, sync_batch_sizes
from ..losses.word_labels import NO_WORD


_NOT_A_CLASS = {"region": -2, "word": -1}  # never equal: of captions, and of words that are no class name's
_FACTOR = 6364136223846793005  # odd, so that numbers of names spread over all 64 bits
_BITS = 2**62 - 1


# ---- regions and words of all images


@dataclass(frozen=True)
class ContrastTexts:
    """
    Which regions and words belong together.

    Args:
        region_labels: (N,) int64, the number of each region's class, the same in all images and processes.
        word_labels: (M,) int64, of each word.
        region_images, word_images: (N,) and (M,) int64, the image of this process that each is of.
        own_words: (N, M), not 0 where a word is the region's in the prompt of its own image.
    """

    region_labels: torch.Tensor
    word_labels: torch.Tensor
    region_images: torch.Tensor
    word_images: torch.Tensor
    own_words: torch.Tensor

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, M) bool each: where region and word are of one image, and where they belong together there."""
        same = self.region_images[:, None] == self.word_images
        return same, same & (self.own_words != 0)


def name_numbers(input_ids: torch.Tensor, phrase_map: torch.Tensor) -> torch.Tensor:
    """Token ids (B, T) and tokens of labels (B, K, T) -> (B, K) int64: equal where the tokens of two labels are.

    So two images have the same class if it has the same name, however their data sets number it. It is a hash of 62
    bits: that two names of a million get the same number has a chance of 1e-7.
    """
    members = phrase_map != 0
    place = members.cumsum(dim=-1) - 1
    factors = input_ids.new_full((phrase_map.shape[-1],), _FACTOR).cumprod(dim=0)  # overflows, as it should
    terms = (input_ids[:, None] + 1) * factors[place.clamp_min(0)]
    numbers = torch.where(members, terms, 0).sum(dim=-1)
    return (numbers ^ (numbers >> 29)) & _BITS


def word_labels(numbers: torch.Tensor, phrase_map: torch.Tensor, is_caption: torch.Tensor) -> torch.Tensor:
    """(B, K) numbers of labels, (B, K, T), and which prompts are sentences (B,) -> (B, T) the number of each token.

    -1 for tokens of no label, and for all of a sentence: its phrases have a context that other images have not. A
    token of several labels is the last one's.
    """
    order = torch.arange(1, phrase_map.shape[1] + 1, device=phrase_map.device)
    last = ((phrase_map != 0) * order[:, None]).amax(dim=1)
    found = numbers.gather(1, (last - 1).clamp_min(0))
    return torch.where((last > 0) & ~is_caption[:, None], found, _NOT_A_CLASS["word"])


def region_labels(numbers: torch.Tensor, is_caption: bool) -> torch.Tensor:
    """(N,) numbers of regions' labels -> the same; -2 in a sentence."""
    return torch.full_like(numbers, _NOT_A_CLASS["region"]) if is_caption else numbers


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N, M) and (N, M) of 0 and 1 -> the sum over rows of the cross-entropy with `targets`, divided by their sum.
    Rows without a 1 add nothing."""
    weights = targets.to(logits.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1)
    return -(weights * logits.log_softmax(dim=1)).sum()


def inter_image_sums(
    regions: torch.Tensor,
    words: torch.Tensor,
    log_scale: torch.Tensor,
    texts: ContrastTexts,
    gather: Literal["exact", "official", "none"] = "exact",
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The contrast of regions and words over all images (section 3.2 of the paper, equation 5): of each region with all
    words, and of each word with all regions.

    A region and a word of one image belong together as the image's annotation says, of two images if they have the
    same class. Padding is not given: that the official code has rows and columns for it changes nothing.

    Args:
        regions: (N, H) of length 1, of this process.
        words: (M, H) of length 1.
        log_scale: (1,); similarities are divided by its exponential.
        gather: with several processes, `"exact"`: the gradients of one process with all images, after the mean over
            processes, if the sums are divided by the processes' mean number of regions; `"official"`: others'
            embeddings are constants; `"none"`: this process alone. All but the last wait for all processes.

    Returns:
        the sums of the cross-entropies over this process' regions, and over its words, float32.
    """
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = regions.float(), words.float()
        scale = log_scale.float().exp()
        same, own = texts.targets()
        all_regions, all_words, of_regions, of_words = regions, words, texts.region_labels, texts.word_labels
        places = slice(0, len(regions)), slice(0, len(words))
        if gather != "none":
            ranks = [sync_batch_sizes(x, lambda: None, "inter_image_sums") for x in (regions, words)]
            all_regions, all_words = _Gather.apply(regions, words, *ranks, gather == "exact")
            of_regions, of_words = (
                rank.gather(labels[:, None])[:, 0] for rank, labels in zip(ranks, (of_regions, of_words), strict=True)
            )
            places = ranks[0].own, ranks[1].own
        with_words = texts.region_labels[:, None] == of_words
        with_words[:, places[1]] = torch.where(same, own, with_words[:, places[1]])
        with_regions = texts.word_labels[:, None] == of_regions
        with_regions[:, places[0]] = torch.where(same.T, own.T, with_regions[:, places[0]])
        return (
            soft_cross_entropy(regions @ all_words.T / scale, with_words),
            soft_cross_entropy(words @ all_regions.T / scale, with_regions),
        )


class _Gather(torch.autograd.Function):
    """Regions (N, H) and words (M, H) of all processes. Both in one, so that the order of what processes exchange in
    the backward pass is always the same."""

    @staticmethod
    def forward(ctx, regions, words, region_ranks: Ranks, word_ranks: Ranks, exact: bool):
        ctx.ranks, ctx.exact = (region_ranks, word_ranks), exact
        # Copies: what goes in must not come out.
        return tuple(rank.gather(x).clone() for rank, x in zip(ctx.ranks, (regions, words), strict=True))

    @staticmethod
    def backward(ctx, *grads):
        if ctx.exact:
            found = [rank.reduce_scatter(grad.contiguous()) for rank, grad in zip(ctx.ranks, grads, strict=True)]
        else:
            found = [grad[rank.own] for rank, grad in zip(ctx.ranks, grads, strict=True)]
        return *found, None, None, None


# ---- masked words


def mask_words(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    mask_token_id: int,
    vocab_size: int,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) -> the same with some hidden, and which were drawn, (B, T) bool.

    Each token is drawn with `probability`; of those drawn 80 % become the mask, 10 % any token, 10 % stay. The first
    and the last one, which are BERT's marks, and padding are never drawn.
    """
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (places * (attention_mask > 0)).amax(dim=1, keepdim=True)
    inner = (attention_mask > 0) & (places > 0) & (places < last)
    options = {"generator": generator, "device": input_ids.device}
    drawn = inner & (torch.rand(input_ids.shape, **options) < probability)
    kind = torch.rand(input_ids.shape, **options)
    other = torch.randint(0, vocab_size, input_ids.shape, **options)
    hidden = torch.where(kind < 0.8, mask_token_id, torch.where(kind < 0.9, other, input_ids))
    return torch.where(drawn, hidden, input_ids), drawn


def masked_word_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(…, V) and (…) -> the sum of the cross-entropies where a label is not -100, and how many those are."""
    counted = labels != NO_WORD
    loss = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=NO_WORD, reduction="sum")
    return loss, counted.sum()


# ---- masks


def mask_regions(
    predicted: torch.Tensor, owners: torch.Tensor, objects: torch.Tensor, least_overlap: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of an image that the mask head is trained in, (R, 4), and the object of each (R,): the objects' own, and
    of each the best predicted one if it overlaps it by `least_overlap`.

    Args:
        predicted: (A, 4); owners: (A,), the object of each, or below 0; objects: (N, 4).
    """
    numbers = torch.arange(len(objects), device=objects.device)
    (present,) = torch.where(owners >= 0)
    if not len(present):
        return objects, numbers
    boxes = predicted[present].detach()
    overlaps = box_iou(objects, boxes).masked_fill(owners[present] != numbers[:, None], -1)
    best, place = overlaps.max(dim=1)
    fine = best >= least_overlap
    return torch.cat([objects, boxes[place[fine]]]), torch.cat([numbers, numbers[fine]])


def crop_masks(masks: torch.Tensor, boxes: torch.Tensor, numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Masks (N, H, W) of objects, boxes (R, 4) in pixels and the object of each (R,) -> (R, size, size) of 0, 1."""
    places = torch.cat([numbers[:, None].to(boxes.dtype), boxes], dim=1)
    cropped = roi_align(masks[:, None].float(), places.float(), size, aligned=True)[:, 0]
    return (cropped >= 0.5).float()


def mask_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(R, S, S) and the same of 0 and 1 -> the sum over regions of the mean binary cross-entropy of their pixels."""
    return F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean(dim=(1, 2)).sum()


__all__ = ["ContrastTexts", "crop_masks", "inter_image_sums", "mask_loss"]
__all__ += ["mask_regions", "mask_words", "masked_word_loss", "name_numbers", "region_labels", "soft_cross_entropy"]
__all__ += ["word_labels"]
