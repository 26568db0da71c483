"""What limits a segmenter that first groups pixels and then names the groups: its groups, or their names?

An analysis with the true label maps, never a prediction. Per image, everything follows from one table of pixels by
group and class. Shapes: G groups, C classes (the background is one of them), N labels (C without the background), D
width of embeddings.

- zero_shot (A): each group has the name that the model gives it.
- oracle (B): each group has the class with which its IoU is highest: the best that these groups allow, nearly.
- majority (B'): each group has the class of most of its pixels: the best pixel accuracy that these groups allow. Its
  mean IoU can be above B.
- present_classes (C): the model's names, chosen among the classes that are in the image; its background stays.
- true_background (D): the model's names on the true foreground, the true background elsewhere.
- true_masks: each true mask has the name that the model gives to the mean of its groups' embeddings; mask_accuracy
  (E) is the share of right ones.

So 1 - B is lost by grouping, B - A by naming: C - A of it by names of absent classes, D - A by the background.
Thresholds do not enter B.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn import functional as F

from ..modeling.dense.group_counts import group_class_counts


FIGURES = ("zero_shot", "oracle", "majority", "present_classes", "true_background", "true_masks")


def label_groups(
    counts: torch.Tensor, rule: Literal["iou", "majority"] = "iou", background: int | None = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each group, (G,) int64, and its IoU with that class, (G,) float64.

    Args:
        counts: (G, C) pixels of each class in each group.
        rule: the class of highest IoU, or of most pixels; of equal ones the first.
        background: class of groups without a labelled pixel (None: class 0); their IoU is 0.

    Example:
        >>> label_groups(torch.tensor([[6, 4], [0, 1]]))  # 4 pixels of 5 are another group's, 6 of 6 are its own
        (tensor([0, 1]), tensor([0.6000, 0.2000], dtype=torch.float64))
    """
    inter = counts.double()
    union = inter.sum(1, keepdim=True) + inter.sum(0, keepdim=True) - inter
    iou = torch.where(union > 0, inter / union.clamp_min(1), 0.0)
    chosen = (iou if rule == "iou" else inter).argmax(1)  # of equal ones the first: torch says so since 1.7
    chosen = torch.where(inter.sum(1) > 0, chosen, background or 0)
    return chosen, iou.gather(1, chosen[:, None]).squeeze(1)


def without_boundaries(labels: torch.Tensor, width: int = 5, ignore_index: int = 255) -> torch.Tensor:
    """The label map (H, W) with `ignore_index` on all pixels that have another class at most `width` pixels away, in
    rows and columns.

    >>> without_boundaries(torch.tensor([[0, 0, 0, 1, 1, 1]]), width=1).tolist()
    [[0, 0, 255, 255, 1, 1]]
    """
    ignored = labels == ignore_index
    window = {"kernel_size": 2 * width + 1, "stride": 1, "padding": width}
    values = labels[None].double()
    highest = F.max_pool2d(values.masked_fill(ignored, -torch.inf), **window)
    lowest = -F.max_pool2d((-values).masked_fill(ignored, -torch.inf), **window)
    return torch.where(highest[0] == lowest[0], labels, ignore_index)


class GroupOracle:
    """Adds up the analysis over images; see the top of the file.

    Args:
        num_classes: C.
        background: its class; None if label maps have none.
        ignore_index: pixels that count nowhere.
        boundary: also ignore pixels that have another class at most so many pixels away; 0 for none.

    Example: two groups, the first right, the second taken for the absent class 2.
        >>> oracle = GroupOracle(num_classes=3)
        >>> groups = torch.tensor([[0, 0, 1, 1]])
        >>> oracle.add(groups, torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0.1, 0.2], [0.3, 0.6]]),
        ...            torch.tensor([True, False]))
        >>> figures = oracle.figures()
        >>> figures["miou"]["zero_shot"], figures["miou"]["oracle"], figures["miou"]["present_classes"]
        (0.3333333333333333, 1.0, 1.0)
    """

    def __init__(self, num_classes: int, background: int | None = 0, ignore_index: int = 255, boundary: int = 0):
        if num_classes < 1 + (background is not None) or (
            background is not None and not 0 <= background < num_classes
        ):
            raise ValueError(f"num_classes, background: got {num_classes} and {background}")
        self.num_classes, self.background = num_classes, background
        self.ignore_index, self.boundary = ignore_index, boundary
        self.confusion = torch.zeros(len(FIGURES), num_classes, num_classes, dtype=torch.int64)  # truth x prediction
        # images, groups with pixels, masks, masks with the right name
        self.tally = torch.zeros(4, dtype=torch.int64)

    @property
    def class_of_label(self) -> torch.Tensor:
        """(N,) the class of each of the model's labels."""
        return torch.tensor([c for c in range(self.num_classes) if c != self.background])

    def add(
        self,
        groups: torch.Tensor,
        labels: torch.Tensor,
        scores: torch.Tensor,
        is_background: torch.Tensor | None = None,
        group_embeddings: torch.Tensor | None = None,
        class_embeddings: torch.Tensor | None = None,
        full_scores: torch.Tensor | None = None,
    ) -> None:
        """One image.

        Args:
            groups, labels: (H, W) int, at the size of the label map.
            scores: (G, N) by which the model names a group.
            is_background: (G,) bool, which groups the model calls background.
            group_embeddings, class_embeddings: (G, D) and (N, D), for the figures of true masks; both or neither.
            full_scores: (G, N) that rank labels where `scores` are 0 for all that are in the image; default `scores`.

        Raises:
            ValueError: shapes that do not fit; groups called background where there is none.
        """
        if scores.shape[-1] != len(self.class_of_label):
            raise ValueError(
                f"scores: {scores.shape[-1]} labels; want {len(self.class_of_label)}, the classes but the background"
            )
        if self.background is None and is_background is not None and bool(is_background.any()):
            raise ValueError("is_background: some groups are, but label maps have no class for it (background=None)")
        groups, labels, scores = groups.cpu(), labels.cpu(), scores.detach().double().cpu()
        none = torch.zeros(len(scores), dtype=torch.bool)
        is_background = none if is_background is None else is_background.cpu()
        full = scores if full_scores is None else full_scores.detach().double().cpu()
        if self.boundary:
            labels = without_boundaries(labels, self.boundary, self.ignore_index)
        counts = group_class_counts(groups, labels, len(scores), self.num_classes, self.ignore_index)
        present = counts.sum(0) > 0
        named = self.class_of_label[scores.argmax(1)]
        self._assign("zero_shot", counts, self._with_background(named, is_background))
        self._assign("oracle", counts, label_groups(counts, "iou", self.background)[0])
        self._assign("majority", counts, label_groups(counts, "majority", self.background)[0])
        self._assign("present_classes", counts, self._among(present, scores, full, is_background))
        if self.background is None:
            self._assign("true_background", counts, named)
        else:
            elsewhere = counts.clone()
            elsewhere[:, self.background] = 0
            self._assign("true_background", elsewhere, named)
            self.confusion[FIGURES.index("true_background"), self.background, self.background] += counts[
                :, self.background
            ].sum()
        if (group_embeddings is None) != (class_embeddings is None):
            raise ValueError("group_embeddings, class_embeddings: got one of them; want both or neither")
        if group_embeddings is not None:
            self._name_masks(
                counts, group_embeddings.detach().double().cpu(), class_embeddings.detach().double().cpu()
            )
        self.tally[0] += 1
        self.tally[1] += len(groups.unique())

    def _with_background(self, named: torch.Tensor, is_background: torch.Tensor) -> torch.Tensor:
        return named if self.background is None else torch.where(is_background, self.background, named)

    def _among(self, present, scores, full, is_background) -> torch.Tensor:
        """Names among the labels of the image; background stays, and is all there is where no label is present."""
        here = present[self.class_of_label]
        if not here.any():
            return torch.full((len(scores),), self.background or 0)
        scores, full = scores.masked_fill(~here, -torch.inf), full.masked_fill(~here, -torch.inf)
        silent = (scores <= 0).all(1, keepdim=True)
        named = self.class_of_label[torch.where(silent, full, scores).argmax(1)]
        return self._with_background(named, is_background)

    def _assign(self, figure: str, counts: torch.Tensor, classes: torch.Tensor) -> None:
        self.confusion[FIGURES.index(figure)].index_add_(1, classes, counts.T.contiguous())

    def _name_masks(self, counts, group_embeddings, class_embeddings) -> None:
        table = self.confusion[FIGURES.index("true_masks")]
        if self.background is not None:
            table[self.background, self.background] += counts[:, self.background].sum()
        for label, c in enumerate(self.class_of_label.tolist()):
            size = counts[:, c].sum()
            if size:
                share = counts[:, c].double() / size
                said = int((class_embeddings @ (share @ group_embeddings)).argmax())
                table[c, self.class_of_label[said]] += size
                self.tally[2] += 1
                self.tally[3] += said == label

    # ---- over processes

    def state(self) -> torch.Tensor:
        """All sums in one int64 vector: add up those of several processes, and give the sum to `load_state`."""
        return torch.cat([self.confusion.flatten(), self.tally])

    def load_state(self, state: torch.Tensor) -> None:
        if state.shape != self.state().shape:
            raise ValueError(f"state: shape {tuple(state.shape)}; want {tuple(self.state().shape)}")
        self.confusion = state[: -len(self.tally)].reshape(self.confusion.shape).cpu().clone()
        self.tally = state[-len(self.tally) :].cpu().clone()

    # ---- the result

    def figures(self) -> dict[str, Any]:
        """`miou`, `pixel_accuracy` and `per_class_iou` (C numbers, None for a class neither there nor predicted) of
        each of `FIGURES`; `mask_accuracy`, `groups_used` (mean over images), `images`; and the errors, differences of
        mean IoU: `grouping_error`, `classification_error`, `absent_class_confusion`, `background_error`.

        None: not measured (no embeddings, no background).

        Raises:
            ValueError: no image.
        """
        images, groups, masks, right = self.tally.tolist()
        if not images:
            raise ValueError("figures: no image was added")
        measured = [name for name in FIGURES if name != "true_masks" or masks]
        miou, accuracy, per_class = (dict.fromkeys(FIGURES) for _ in range(3))
        for name in measured:
            ious = class_ious(self.confusion[FIGURES.index(name)])
            there = [value for value in ious if value is not None]
            pixels = self.confusion[FIGURES.index(name)]
            miou[name] = sum(there) / len(there) if there else None
            accuracy[name] = int(pixels.diag().sum()) / int(pixels.sum()) if pixels.sum() else None
            per_class[name] = ious
        known = all(miou[name] is not None for name in measured)
        lost = {
            "grouping_error": 1 - miou["oracle"] if known else None,
            "classification_error": miou["oracle"] - miou["zero_shot"] if known else None,
            "absent_class_confusion": miou["present_classes"] - miou["zero_shot"] if known else None,
            "background_error": miou["true_background"] - miou["zero_shot"]
            if known and self.background is not None
            else None,
        }
        return {
            "miou": miou,
            "pixel_accuracy": accuracy,
            "per_class_iou": per_class,
            "mask_accuracy": right / masks if masks else None,
            "groups_used": groups / images,
            "images": images,
            **lost,
        }


def class_ious(confusion: torch.Tensor) -> list[float | None]:
    """IoU of each class from a (C, C) table of pixels, truth x prediction; None for a class in neither."""
    inter = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - inter
    return [i / u if u else None for i, u in zip(inter.tolist(), union.tolist(), strict=True)]


__all__ = ["FIGURES", "GroupOracle", "class_ious", "label_groups", "without_boundaries"]
