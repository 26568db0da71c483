"""The exact contrastive loss over all ranks for models that compute their own: `CLIPModel`, `SiglipModel`, ..."""

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback

from ..modeling.losses.contrastive_loss import contrastive_loss
from .callbacks import limit_logit_scale


class ExactContrastiveLoss(TrainerCallback):
    r"""Makes `Trainer` train a dual encoder with the loss over the pairs of all processes.

    `CLIPModel` contrasts the pairs of one process, so that more GPUs mean more steps of the same loss, not a larger
    batch; with this callback a step on W processes is the step of one process with W times the batch. `Trainer`'s
    gradient accumulation does not enlarge the batch either; for that, see `modeling/losses/gradient_cache.py`. A
    forward pass in training mode gets the loss, with or without `return_loss`; evaluation stays the model's own. Our
    own models need no callback.

    With the softmax form, `logit_scale` is put back into [0, ln 100] after each step of the optimiser, as in CLIP's
    paper; SigLIP's has no limit.

    Args:
        form: "softmax" (CLIP) or "sigmoid" (SigLIP); by default sigmoid where the model has a `logit_bias`.
        **loss_options: of [`~modeling.contrastive_loss.contrastive_loss`], such as `chunk_size`.

    Example:

    ```python
    >>> from transformers import Trainer
    >>> from hf_clip_variants.training.exact_contrastive_loss import ExactContrastiveLoss

    >>> callbacks = [ExactContrastiveLoss()]  # Trainer(model, arguments, collator, data, callbacks=callbacks)
    ```
    """

    def __init__(self, form: str | None = None, **loss_options):
        self.form = form
        self.loss_options = loss_options
        self._handle = None

    def attach(self, model: nn.Module):
        """For loops without `Trainer`: `model`, bare, has the loss until the returned handle's `remove()`.

        Such loops call `callbacks.limit_logit_scale(model)` after each step themselves.
        """
        return model.register_forward_hook(self._replace_loss)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.on_train_end(args, state, control)  # of a training that raised
        self._handle = self.attach(model)

    def on_train_end(self, args, state, control, **kwargs):
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = extract_model_from_parallel(model)
        if self._form_of(model) == "softmax":
            limit_logit_scale(model)

    def _form_of(self, model: nn.Module) -> str:
        return self.form or ("sigmoid" if getattr(model, "logit_bias", None) is not None else "softmax")

    def _replace_loss(self, model, inputs, outputs):
        if not model.training:
            return None
        embeds = [getattr(outputs, name, None) for name in ("image_embeds", "text_embeds")]
        if any(x is None for x in embeds):
            raise ValueError(
                "model: ExactContrastiveLoss needs outputs with image_embeds and text_embeds (return_dict=True), "
                f"{type(model).__name__} returned {type(outputs).__name__}"
            )
        form = self._form_of(model)
        bias = model.logit_bias if form == "sigmoid" else None
        loss = contrastive_loss(
            *embeds, model.logit_scale, logit_bias=bias, form=form, normalize=False, **self.loss_options
        )
        return type(outputs)(**{**outputs, "loss": loss})


__all__ = ["ExactContrastiveLoss"]
