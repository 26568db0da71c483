"""Members of PEFT's enumeration of adapter types. A leaf: imports PEFT when it is called only."""

from typing import TYPE_CHECKING


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
