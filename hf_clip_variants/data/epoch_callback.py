"""`EpochCallback`: tells a `FeatureDataset` which epoch it is where `Trainer` does not."""

from transformers import TrainerCallback

from .images.feature_cache import FeatureDataset


class EpochCallback(TrainerCallback):
    """Sets the epoch of a [`FeatureDataset`] at each epoch's beginning.

    Needed with several processes only: accelerate tells the epoch to a data set that one process reads, but with sharded batches
    to their sampler alone.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.data import EpochCallback, FeatureDataset, Features

    >>> data = FeatureDataset(Features(torch.randn(8, 100, 4), torch.zeros(100, dtype=torch.long)))
    >>> callback = EpochCallback(data)  # Trainer(model, arguments, FeatureCollator(), data, callbacks=[callback])
    ```
    """

    def __init__(self, dataset: FeatureDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.set_epoch(int(state.epoch + 1e-6))  # a resumed run stands within an epoch
