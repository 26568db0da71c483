"""FND-CLIP's own layers: which layer of BERT is read, three branches, and what each is worth for one post."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm
from .configuration_fnd_clip import MODALITIES, FNDCLIPConfig


# B posts, L states of BERT, H width of BERT, D joint width, R logits of the ResNet, E width of features


def layer_attention(states: torch.Tensor, weights: torch.Tensor, over_batch: bool = False) -> torch.Tensor:
    """(B, L, H) states of [CLS] and (L,) weights -> (B, L), which add up to 1: a softmax over the layers of weight
    times sum of the state's numbers.

    `over_batch`: the sum also runs over all posts, as in the published code, where a post's answer so depends on its
    neighbours. That is not in the paper.
    """
    sums = states.float().sum(-1)
    if over_batch:
        sums = sums.sum(0, keepdim=True).expand_as(sums)
    return (weights.float() * sums).softmax(-1)


def cosine(texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """(B, D), (B, D) -> (B,); 0 where one of them is zero."""
    return (unit_norm(texts) * unit_norm(images)).sum(-1)


class FNDCLIPBranch(nn.Module):
    """(B, C) -> (B, E), not negative."""

    def __init__(self, width: int, config: FNDCLIPConfig):
        super().__init__()
        self.input_layer = nn.Linear(width, config.shared_dim)
        self.input_norm = nn.BatchNorm1d(config.shared_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.output_layer = nn.Linear(config.shared_dim, config.feature_dim)
        self.output_norm = nn.BatchNorm1d(config.feature_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(F.relu(self.input_norm(self.input_layer(features))))
        return F.relu(self.output_norm(self.output_layer(hidden)))


class FNDCLIPFeatureMap(nn.Module):
    """(B, D) -> (B, D): x + x W, the same as x until W is trained. Not in the paper."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + features @ self.weight


class FNDCLIPModalityAttention(nn.Module):
    """(B, 3, E) features of text, image and both -> (B, 3) weights in 0..1, from their means and largest numbers."""

    def __init__(self):
        super().__init__()
        count = len(MODALITIES)
        self.input_layer = nn.Linear(count, count)
        self.output_layer = nn.Linear(count, count)

    def scores(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.output_layer(F.gelu(self.input_layer(pooled)))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.scores(rows.mean(-1)) + self.scores(rows.max(-1).values)).sigmoid()


class FNDCLIPCorrection(nn.Linear):
    """A layer that says nothing as it starts."""


class FNDCLIPClassifier(nn.Module):
    def __init__(self, config: FNDCLIPConfig):
        super().__init__()
        self.input_layer = nn.Linear(config.feature_dim, config.hidden_dim)
        self.input_norm = nn.BatchNorm1d(config.hidden_dim)
        self.hidden_layer = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.hidden_norm = nn.BatchNorm1d(config.hidden_dim)
        last = FNDCLIPCorrection if config.similarity_residual else nn.Linear
        self.output_layer = last(config.hidden_dim, config.num_labels)

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.input_norm(self.input_layer(fused)))
        return self.output_layer(F.relu(self.hidden_norm(self.hidden_layer(hidden))))


class FNDCLIPSimilarityAnswer(nn.Module):
    """(B,) similarities -> (B, K) logits, of one number alone: bias + weight * (similarity - mean). Does not train;
    `start_from_similarity` sets it. Not in the paper."""

    def __init__(self, labels: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(labels))
        self.register_buffer("bias", torch.zeros(labels))
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, similarity: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
        """`there` (B,): 0 for posts without a similarity, whose answer is that of the mean."""
        away = similarity - self.mean
        away = away if there is None else away * there
        return self.bias + away[:, None] * self.weight


class FNDCLIPFusion(nn.Module):
    """Everything behind the encoders: features of posts -> logits, and why (section 3 of the paper).

    The paper standardises the similarity and puts it through a sigmoid; the published code, and this, learn a factor
    and a summand, neither of which is limited.

    With `similarity_residual`, the three branches see the dual encoder's features as they come, whatever was fitted
    for the similarity, and what the classifier says of them is added to the answer of the similarity alone.
    """

    def __init__(self, config: FNDCLIPConfig):
        super().__init__()
        self.config = config
        joint = config.projection_dim
        self.layer_weights = nn.Parameter(torch.rand(config.num_text_states))
        self.similarity_factor = nn.Parameter(torch.rand(1))
        self.similarity_summand = nn.Parameter(torch.rand(1))
        self.text_branch = FNDCLIPBranch(config.hidden_size + joint, config)
        self.image_branch = FNDCLIPBranch(config.backbone_config.num_labels + joint, config)
        self.cross_branch = FNDCLIPBranch(2 * joint, config)
        self.modality_attention = FNDCLIPModalityAttention()
        self.text_map = FNDCLIPFeatureMap(joint) if config.adapt_features else nn.Identity()
        self.image_map = FNDCLIPFeatureMap(joint) if config.adapt_features else nn.Identity()
        self.classifier = FNDCLIPClassifier(config)
        self.similarity_answer = FNDCLIPSimilarityAnswer(config.num_labels) if config.similarity_residual else None

    def forward(
        self,
        text_states: torch.Tensor,
        clip_text_features: torch.Tensor,
        clip_image_features: torch.Tensor,
        image_logits: torch.Tensor,
        image_mask: torch.Tensor | None = None,
        similarity: torch.Tensor | None = None,
    ) -> Mapping[str, torch.Tensor]:
        """Features, see `FNDCLIPForSequenceClassification.get_features`, and maybe (B,) similarities instead of
        theirs -> `logits` (B, K), `similarity` (B,),
        `modality_weights` (B, 3), `layer_attention` (B, L), `text_embeds`, `image_embeds`, `cross_embeds`,
        `fused_embeds` (B, E) and `text_features` (B, H + D)."""
        dtype = self.classifier.output_layer.weight.dtype
        layers = layer_attention(text_states, self.layer_weights, self.config.batch_layer_attention)
        read = (layers[..., None] * text_states.float()).sum(1).to(dtype)
        texts, images, logits = (one.to(dtype) for one in (clip_text_features, clip_image_features, image_logits))
        mapped = self.text_map(texts), self.image_map(images)
        if self.similarity_answer is None:
            texts, images = mapped
        text_features = torch.cat([read, texts], -1)
        text = self.text_branch(text_features)
        image = self.image_branch(torch.cat([logits, images], -1))
        similarity = cosine(*mapped) if similarity is None else similarity.to(dtype)
        cross = self.cross_branch(torch.cat([texts, images], -1))
        cross = cross * (self.similarity_factor * similarity + self.similarity_summand)[:, None]
        there = None if image_mask is None else image_mask.to(dtype)
        if there is not None:  # without an image, the text alone is left
            image, cross, similarity = image * there[:, None], cross * there[:, None], similarity * there
        rows = torch.stack([text, image, cross], 1)
        weights = self.modality_attention(rows)
        if there is not None:
            weights = torch.cat([weights[:, :1], weights[:, 1:] * there[:, None]], 1)
        fused = (weights[..., None] * rows).sum(1)
        answer = self.classifier(fused)
        if self.similarity_answer is not None:
            answer = answer + self.similarity_answer(similarity, there)
        return {
            "logits": answer,
            "similarity": similarity,
            "modality_weights": weights,
            "layer_attention": layers.to(dtype),
            "text_embeds": text,
            "image_embeds": image,
            "cross_embeds": cross,
            "fused_embeds": fused,
            "text_features": text_features,
        }


# ---- what the similarity starts from


def fit_feature_maps(
    maps: Sequence[FNDCLIPFeatureMap],
    texts: torch.Tensor,
    images: torch.Tensor,
    epochs: int = 16,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    penalty: float = 0.1,
    scale: float = 20.0,
    seed: int = 0,
) -> float:
    """Trains the maps of texts and of images so that (N, D) texts and their images, row by row, are nearer to each
    other than to those of other rows: CLIP's contrastive loss over batches, plus `penalty` times the sum of the
    squares of both matrices. Returns the last batch's loss."""
    optimizer = torch.optim.Adam([one.weight for one in maps], lr=learning_rate)
    texts, images = (unit_norm(one.detach().to(maps[0].weight)) for one in (texts, images))
    generator, loss = torch.Generator().manual_seed(seed), torch.zeros(())
    size = min(batch_size, len(texts))
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(texts), generator=generator)
            for rows in order[: len(order) // size * size].view(-1, size).to(texts.device):
                near = scale * unit_norm(maps[0](texts[rows])) @ unit_norm(maps[1](images[rows])).T
                own = torch.arange(size, device=near.device)
                loss = (F.cross_entropy(near, own) + F.cross_entropy(near.T, own)) / 2
                loss = loss + penalty * sum(one.weight.square().sum() for one in maps)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def folds_of(groups: torch.Tensor, folds: int, seed: int) -> torch.Tensor:
    """(N,) groups -> (N,) folds, 0..folds - 1: a group is in one, and they have equally many groups, up to one."""
    numbers, place = groups.unique(return_inverse=True)
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).to(place.device)
    return order[place] % folds


def cross_fitted_similarity(
    texts: torch.Tensor, images: torch.Tensor, true: torch.Tensor, fold: torch.Tensor, **fit
) -> torch.Tensor:
    """(N, D) texts and images, which of them are true (N,) and their folds (N,) -> (N,) cosines, each of maps that
    were fitted on the true posts of the other folds; `fit`: arguments of `fit_feature_maps`."""
    found = texts.new_empty(len(texts), dtype=torch.float32)
    for number in fold.unique().tolist():
        maps = [FNDCLIPFeatureMap(texts.shape[-1]).to(texts.device) for _ in range(2)]
        rows, asked = true & (fold != number), fold == number
        fit_feature_maps(maps, texts[rows], images[rows], **fit)
        with torch.no_grad():
            found[asked] = cosine(maps[0](texts[asked].float()), maps[1](images[asked].float()))
    return found


def start_from_similarity(fusion: FNDCLIPFusion, similarity: torch.Tensor, labels: torch.Tensor) -> float:
    """Sets `similarity_answer` to the logistic regression of (N,) labels on (N,) similarities, and the factor and
    summand to their standardisation. Returns the regression's cross-entropy."""
    answer = fusion.similarity_answer
    similarity, labels = similarity.detach().double(), labels.to(similarity.device).long()
    mean, deviation = similarity.mean(), similarity.std()
    standard, classes = (similarity - mean) / deviation, len(answer.weight)
    line = torch.zeros(2, classes, dtype=torch.float64, device=similarity.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        # A little of the weights' squares: classes that one number tells apart would want infinite ones.
        found = F.cross_entropy(line[0] + standard[:, None] * line[1], labels) + 1e-4 * line[1].square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    with torch.no_grad():
        answer.bias.copy_(line[0] - line[0].mean())
        answer.weight.copy_((line[1] - line[1].mean()) / deviation)
        answer.mean.fill_(float(mean))
        fusion.similarity_factor.fill_(float(1 / deviation))
        fusion.similarity_summand.fill_(float(-mean / deviation))
        return float(F.cross_entropy(line[0] + standard[:, None] * line[1], labels))


@torch.no_grad()
def standardise_similarity(fusion: FNDCLIPFusion, texts: torch.Tensor, images: torch.Tensor) -> tuple[float, float]:
    """Sets `similarity_factor` and `similarity_summand` to 1 / deviation and -mean / deviation of the similarities of
    (N, D) texts and images, row by row: the start that the paper's standardisation would have. Returns both."""
    pairs = ((fusion.text_map, texts), (fusion.image_map, images))
    found = cosine(*(one(given.to(fusion.similarity_factor)) for one, given in pairs)).float()
    deviation = float(found.std())
    if not deviation > 1e-6:
        raise ValueError(
            f"clip_text_features, clip_image_features: {len(found)} posts of one similarity, want several"
        )
    fusion.similarity_factor.fill_(1 / deviation)
    fusion.similarity_summand.fill_(-float(found.mean()) / deviation)
    return fusion.similarity_factor.item(), fusion.similarity_summand.item()


__all__ = [
    "FNDCLIPCorrection",
    "FNDCLIPFeatureMap",
    "FNDCLIPFusion",
    "FNDCLIPSimilarityAnswer",
    "cosine",
    "cross_fitted_similarity",
]
__all__ += ["fit_feature_maps", "folds_of", "layer_attention", "standardise_similarity", "start_from_similarity"]
