"""Images with texts, for contrastive training."""

from .sources import open_pairs as open_pairs
