"""Registers our tuners with PEFT. PEFT is imported on the first call."""

from ..registry import methods


def register_all() -> None:
    """Register every tuner of the table with PEFT. It may be called several times."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import register_peft_method

    for method in methods("adapter"):
        config_class, tuner_class = method.load("config"), method.load("tuner")
        peft_type = config_class.peft_type_member()
        if peft_type in PEFT_TYPE_TO_TUNER_MAPPING:
            # Our modules were imported again (in a test, or by `reload`): PEFT must use the new classes.
            PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_class
            PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner_class
        else:
            register_peft_method(
                name=peft_type.value.lower(), config_cls=config_class, model_cls=tuner_class, prefix=tuner_class.prefix
            )
