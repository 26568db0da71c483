"""What GLIPv2 adds to GLIP: embeddings of regions and words before fusion, predicted words, masks by words."""

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from .configuration_glipv2 import GLIPv2Config


class GLIPv2Contrast(nn.Module):
    """Regions and words before fusion -> embeddings of length 1, which are compared over all images."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.image_projection = nn.Linear(config.hidden_size, config.contrastive_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.contrastive_dim)
        self.log_scale = nn.Parameter(torch.zeros(1))  # its exponential is what similarities are divided by

    def forward(self, regions: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C) and (M, D) -> (N, H) and (M, H), float32."""
        return (
            nn.functional.normalize(self.image_projection(regions).float(), dim=-1),
            nn.functional.normalize(self.text_projection(words).float(), dim=-1),
        )


class GLIPv2WordPredictions(nn.Module):
    """BERT's head for masked words, with weights of its own: they are not those of the input embeddings."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config.text_config)
        self.decoder = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Fused words (…, D) -> logits (…, V)."""
        return self.decoder(self.transform(words))


class GLIPv2MaskHead(nn.Module):
    """
    Masks of labels inside of boxes: each pixel is compared with the label's words, as regions are in GLIP.

    The comparison is linear in the words, so the mean over a label's tokens is taken before it. There is no learned
    constant as in GLIP's comparison, as officially.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        width, text = config.hidden_size, config.text_config.hidden_size
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.mask_num_convs))
        self.upsampling = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.text_projection = nn.Linear(text, width)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.text_bias = nn.Parameter(torch.zeros(text))

    def read(self, words: torch.Tensor, members: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fused words (T, D) and tokens of labels (K, T), not 0 where one is a label's -> what pixels are compared
        with: (K, C) and (K,). A label without tokens has zeros."""
        unit = nn.functional.normalize(words, dim=-1)
        shares = (members != 0).to(words.dtype)
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp_min(1)
        vectors = self.text_projection(unit / 2) / self.log_scale.exp()
        return shares @ vectors, shares @ (unit @ self.text_bias)

    def compare(self, regions: torch.Tensor, vectors: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
        """Features (R, C, h, w) behind the convolutions, vectors (R, K, C) and biases (R, K) -> (R, K, 2h, 2w)."""
        pixels = self.upsampling(regions).relu()
        logits = torch.einsum("rkc,rchw->rkhw", vectors, pixels) + biases[..., None, None]
        return logits.clamp(-50000, 50000)

    def forward(self, regions: torch.Tensor, vectors: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
        """Features (R, C, h, w) of regions, and the vector (R, C) and bias (R,) of each region's label -> logits (R,
        2h, 2w)."""
        for convolution in self.convolutions:
            regions = convolution(regions).relu()
        return self.compare(regions, vectors[:, None], biases[:, None])[:, 0]


__all__ = ["GLIPv2Contrast", "GLIPv2MaskHead", "GLIPv2WordPredictions"]
