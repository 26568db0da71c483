"""Adds members to PEFT's enumeration of adapter types. PEFT is imported on the first call."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from peft import PeftType


def add_peft_type(name: str) -> "PeftType":
    """The member `name` of PEFT's enumeration `PeftType`, created if it does not exist yet.

    `register_peft_method` refuses names outside `PeftType`, and an enumeration cannot be extended
    (huggingface/peft#2273). PEFT would accept a plain string instead of a member, but `load_adapter` and
    `delete_adapter` of transformers read `peft_type.value`.
    """
    from peft import PeftType

    if name in PeftType.__members__:
        return PeftType[name]
    # What `enum.EnumType` does for each member when it creates the class.
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType._member_names_)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    # Makes `PeftType.<name>` work: Python 3.11 finds it in `_member_map_`, but 3.12 and later do not look there.
    # `type.__setattr__`, because the enumeration's own refuses to set members.
    type.__setattr__(PeftType, name, member)
    return member
