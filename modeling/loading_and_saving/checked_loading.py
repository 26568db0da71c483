"""Loading that fails instead of going on with random, damaged or infinite weights."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.integrations import peft as peft_integration
from transformers.utils import check_peft_version


def damaged_file(source) -> Path | str:
    """The first file of a folder that is no safetensors file; what was asked for where it is not a folder."""
    for path in sorted(Path(source).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError:
            return path
    return source


class CheckedLoading:
    """Mixin before `PreTrainedModel`: `from_pretrained` loads every weight or says what is wrong."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        output_loading_info: bool = False,
        check_finite: bool = False,
        **kwargs,
    ):
        """As in transformers, but a checkpoint that lacks weights is an error (transformers would leave random
        layers).

        With `output_loading_info=True` it is not: then the caller has the list. `check_finite` reads all weights and
        makes NaN or infinity an error that names the tensor.

        Raises:
            ValueError: weights are missing, or not finite.
            OSError: a file is damaged; the text names it.
        """
        source = pretrained_model_name_or_path
        try:
            model, info = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"{damaged_file(source)}: not a valid safetensors file ({error}). Re-download the checkpoint"
            ) from error
        missing = sorted(model._accept_missing(set(info["missing_keys"]))) if source is not None else []
        if missing and not output_loading_info:
            raise ValueError(
                f"{source}: not a whole {cls.__name__} checkpoint, {len(missing)} weights are missing: {missing[:5]}"
            )
        if check_finite:
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise ValueError(f"{source}: {name} has NaN or infinite values")
        return (model, info) if output_loading_info else model

    def add_adapter(self, *args, **kwargs):
        """As in transformers, which from 5.24 on asks for a newer PEFT here than PEFT's own functions do."""
        try:
            check_peft_version(peft_integration.MIN_PEFT_VERSION)
        except ValueError as error:
            raise ImportError(
                f"add_adapter: {error}. Use peft.get_peft_model(model, config), and peft.PeftModel.from_pretrained(model, folder) to load"
            ) from error
        return super().add_adapter(*args, **kwargs)

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """Of the weights that a checkpoint lacks, those without which the model is not whole; a class with parts that may be
        new overrides this, and finishes their initialisation.
        """
        return missing


__all__ = ["CheckedLoading", "damaged_file"]
