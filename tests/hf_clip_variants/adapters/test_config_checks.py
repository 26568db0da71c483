"""Every field of every adapter configuration, with values of other types and sizes."""

import json
import math
import typing
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import pytest
import torch
from adapter_contract import Case
from adapter_models import tiny_classifier
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from tiny import CLASS_NAMES

from hf_clip_variants.adapters import (
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    MaPLeConfig,
    TipAdapterConfig,
    load_adapter,
)
from hf_clip_variants.adapters.config_checks import check_fields
from hf_clip_variants.adapters.tuner import TunerConfig
from hf_clip_variants.registration.peft_methods import register_all


def configurations() -> list[type[TunerConfig]]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    register_all()
    return [c for c in PEFT_TYPE_TO_CONFIG_MAPPING.values() if issubclass(c, TunerConfig)]


FIELDS = [
    (c, one.name) for c in configurations() for one in fields(c) if one.name not in ("peft_type", "peft_version")
]


def _hint(config_class, name):
    return typing.get_type_hints(config_class)[name]


class Odd:
    def __repr__(self):
        return "something odd"


@pytest.mark.parametrize(("config_class", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_refuses_what_is_of_no_type_by_its_name(config_class, name):
    for value in (Odd(), {"a": Odd()}, [Odd()], [math.nan], 1 + 2j, b"x"):
        if name == "auto_mapping" and isinstance(value, dict):
            continue  # PEFT says no more than that it is one
        with pytest.raises(ValueError, match=f"^{name}: "):
            config_class(**{name: value})


NUMBERS = [(c, one.name) for c, name in FIELDS for one in fields(c) if one.name == name and "range" in one.metadata]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(NUMBERS), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1.0, -5, 10**31, True, "1"]))
def test_numbers_outside_their_range_are_named(place, value):
    config_class, name = place
    low, high = next(one.metadata["range"] for one in fields(config_class) if one.name == name)
    assume(type(value) not in (int, float) or not low <= value <= high)  # weights may be below 0
    with pytest.raises(ValueError, match=f"^{name}: "):
        config_class(**{name: value})


FLOATS = [(c, name) for c, name in FIELDS if float in typing.get_args(_hint(c, name)) or _hint(c, name) is float]
HUGE = [10**30, -(10**30), 10**309, 10**400, 2**63, np.uint64(2**64 - 1), np.float64(1e39), torch.tensor(2**40)]
SCALARS = [1, 0, np.int64(1), np.float64(0.5), np.float16(0.5), np.array(1), np.bool_(True), True, torch.tensor(True)]


@pytest.mark.parametrize(("config_class", "name"), FLOATS, ids=lambda value: getattr(value, "__name__", value))
def test_every_float_is_stored_as_one_that_fits_a_tensor_or_refused_by_its_name(config_class, name):
    taken = 0
    for value in (*HUGE, *SCALARS):
        try:
            found = getattr(config_class(**{name: value}), name)
        except ValueError as error:
            assert str(error).startswith(f"{name}: "), error
            continue
        assert type(found) is float and torch.tensor([found]).isfinite().all(), value
        assert not isinstance(value, bool | np.bool_)
        taken += 1
    assert taken, "one of the plain numbers is in the range"


@pytest.mark.parametrize(("config_class", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_huge_numbers_and_texts_are_named_wherever_they_are(config_class, name):
    for value in (
        10**400,
        [10**400],
        [10**5000],
        [-(10**12)],
        {"a": 10**400},
        {"a": [10**400]},
        "x" * 10**6,
        ["x" * 10**6],
    ):
        if name == "auto_mapping" and isinstance(value, dict):
            continue
        with pytest.raises(ValueError, match=f"^{name}: ") as caught:
            config_class(**{name: value})
        assert len(str(caught.value)) < 400


def test_every_number_of_a_method_has_a_range():
    shared = {one.name for one in fields(TunerConfig)}
    without = []
    for config_class in configurations():
        for one in fields(config_class):
            hint = typing.get_type_hints(config_class)[one.name]
            kinds = set(typing.get_args(hint) or [hint])
            if one.name not in shared and "range" not in one.metadata and kinds & {int, float} and str not in kinds:
                without.append(f"{config_class.__name__}.{one.name}")
    assert {name.partition(".")[2] for name in without} == {"text_chunk_size"}, "as many tokens as memory holds"


def test_numbers_of_numpy_and_torch_and_tuples_are_taken():
    config = CoOpConfig(num_context_tokens=np.int64(3), class_names=("a", "b"), temperature=np.float32(0.5))
    assert (config.num_context_tokens, config.class_names, config.temperature) == (3, ["a", "b"], 0.5)
    assert type(config.num_context_tokens) is int and type(config.temperature) is float
    assert TipAdapterConfig(alpha=torch.tensor(2.0), beta=1).alpha == 2.0


def test_types_follow_from_the_annotations():
    @dataclass
    class Settings:
        number: int = field(default=1, metadata={"range": (1, 9)})
        share: float | None = None
        words: list[str] | dict[str, list[str]] | None = None
        side: Literal["left", "right"] = "left"

    check_fields(Settings(3, 1, {"a": ["b"]}, "right"))
    for name, value, said in (
        ("number", 1.0, "1.0 is a float, expected a whole number"),
        ("number", 0, "0, expected a whole number of at least 1"),
        ("number", 10, "10, expected a whole number of at most 9"),
        ("share", "half", "'half' is a str, expected a number or none"),
        ("words", {"a": "b"}, "expected a list, each a text or names, each with a list"),
        ("words", "a", "'a' is one string, expected a list"),
        ("side", 3, "3 is a int, expected one of 'left', 'right'"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .*{said}"):
            check_fields(Settings(**{name: value}))


@pytest.mark.parametrize(
    "template", ["a photo of a {{}}", "{.x}{}", "{:3000000000}", "{0}", "{name!r}", "a {", "} {}", "no place", 5]
)
def test_templates_of_an_adapter_are_checked_when_it_is_loaded(tmp_path, template):
    Case("tip_adapter", TipAdapterConfig, {}).model().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    for templates in ([template], {name: [template] for name in CLASS_NAMES}):
        if template == "no place" and isinstance(templates, dict):
            continue  # a sentence needs none
        path.write_text(json.dumps(values | {"templates": templates}))
        with pytest.raises(ValueError, match="templates"):
            load_adapter(tmp_path, tiny_classifier())


PROMPT_LEARNERS = {
    "coop": lambda **given: CoOpConfig(**given),
    "cocoop": lambda **given: CoCoOpConfig(**given),
    "maple": lambda **given: MaPLeConfig(prompt_depth=2, **given),
    "maple, inserted": lambda **given: MaPLeConfig(prompt_depth=2, text_prompt_style="vpt_deep", **given),
    "ivlp": lambda **given: IVLPConfig(**given),
}


@pytest.mark.parametrize("make", PROMPT_LEARNERS.values(), ids=PROMPT_LEARNERS)
@pytest.mark.parametrize("words", [{}, {"context_init": None}, {"context_init": "a photo of a"}], ids=str)
def test_token_ids_that_no_context_starts_from_are_named(tmp_path, make, words):
    size = tiny_classifier().config.text_config.vocab_size
    Case("any", lambda: make(context_init="a photo of a"), {}).model().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    good = json.loads(path.read_text())
    wrong = [[], [-1, 5, 5, 5], [size, 5, 5, 5], [5, 5, 5, 10**6], [10**30] * 4, [5.0] * 4, [True] * 4, [5] * 999]
    for ids in wrong:
        with pytest.raises(ValueError, match="context_init_ids"):
            get_peft_model(tiny_classifier(), make(context_init_ids=ids, **words))
        path.write_text(json.dumps(good | {"context_init_ids": ids}))
        with pytest.raises(ValueError, match="context_init_ids"):
            load_adapter(tmp_path, tiny_classifier())
    get_peft_model(tiny_classifier(), make(context_init_ids=[size - 1, 0, 5, 5], **words))
