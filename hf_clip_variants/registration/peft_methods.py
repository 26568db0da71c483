"""The one place that makes PEFT know our tuners. PEFT is imported when it is needed only."""

from typing import TYPE_CHECKING

from ..registry import methods


if TYPE_CHECKING:
    from peft import PeftType


def add_peft_type(name: str) -> "PeftType":
    """The member `name` of PEFT's type enum, made if it is not there yet.

    `register_peft_method` refuses names outside `PeftType`, and `PeftType` is a closed enum (huggingface/peft#2273). A plain string instead
    of a member gets through PEFT but not through transformers' `load_adapter` and `delete_adapter`, which read `peft_type.value`.
    """
    from peft import PeftType

    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    # Python 3.11 would find the attribute in _member_map_; 3.12 and later do not look there.
    type.__setattr__(PeftType, name, member)
    return member


def register_all() -> None:
    """Registers every tuner of the table with PEFT. May be called any number of times."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import register_peft_method

    for method in methods("adapter"):
        config_class, tuner_class = method.load("config"), method.load("tuner")
        peft_type = add_peft_type(config_class.peft_type_name)
        if peft_type in PEFT_TYPE_TO_TUNER_MAPPING:
            # imported anew: PEFT must see the classes of today
            PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_class
            PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner_class
        else:
            register_peft_method(
                name=peft_type.value.lower(), config_cls=config_class, model_cls=tuner_class, prefix=tuner_class.prefix
            )


__all__ = ["add_peft_type", "register_all"]
