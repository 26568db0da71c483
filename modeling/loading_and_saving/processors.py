"""Processors of which every part must be there."""

import os

from transformers.processing_utils import ProcessorMixin


class CheckedParts(ProcessorMixin):
    """A `ProcessorMixin` whose `from_pretrained` says which part of a processor a folder lacks."""

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """As in transformers, whose text for a folder is about the Hub.

        Raises:
            OSError: a part is not in the folder; the text names the parts, and those without settings.
        """
        source = pretrained_model_name_or_path
        try:
            return super()._get_arguments_from_pretrained(source, processor_dict, **kwargs)
        except OSError as error:
            if not os.path.isdir(source):
                raise
            parts, values = cls.get_attributes(), processor_dict or {}
            empty = [name for name in parts if name in values and not values[name]]
            named = f"; without settings in processor_config.json: {', '.join(empty)}" if empty else ""
            raise OSError(
                f"{source}: its processor cannot be loaded, {' or '.join(parts)} is missing{named}"
            ) from error


__all__ = ["CheckedParts"]
