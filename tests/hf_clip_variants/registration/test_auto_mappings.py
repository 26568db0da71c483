"""Lazy entries in transformers' Auto mappings, with toy configurations and transformers' own mapping class."""

import copy
import pickle
import threading
from collections import OrderedDict

import pytest
from transformers import BertConfig, PreTrainedConfig
from transformers.models.auto.auto_factory import _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, _LazyConfigMapping

from hf_clip_variants.registration.auto_mappings import LazyContent, register_lazily


class ToyConfig(PreTrainedConfig):
    model_type = "toy"


class OtherConfig(PreTrainedConfig):
    model_type = "other"


class ToyModel:
    pass


class OtherModel:
    pass


NAME = f"{ToyConfig.__module__}.ToyConfig"


def toy_mapping(loads, value=ToyModel):
    """An Auto mapping with one built-in model and our lazy toy; `loads` counts how often the toy is loaded."""
    mapping = _LazyAutoMapping(dict(CONFIG_MAPPING_NAMES), OrderedDict(bert="BertConfig"))

    def load():
        loads.append(True)
        return ToyConfig, value

    register_lazily(mapping, NAME, load)
    return mapping


def test_membership_and_lookups_of_other_keys_import_nothing():
    loads = []
    mapping = toy_mapping(loads)
    assert ToyConfig in mapping and OtherConfig not in mapping and "ToyConfig" not in mapping
    assert mapping[BertConfig] is BertConfig and BertConfig in mapping
    assert mapping.get(OtherConfig, "nothing") == "nothing"
    assert len(mapping) == 2 and not loads
    assert "lazy=[" in repr(mapping._extra_content) and not loads


@pytest.mark.parametrize(
    "read",
    [
        lambda mapping: mapping[ToyConfig],
        lambda mapping: mapping.get(ToyConfig, None),
        lambda mapping: mapping.values()[-1],
        lambda mapping: dict(mapping.items())[ToyConfig],
        lambda mapping: {key: mapping[key] for key in mapping}[ToyConfig],
        lambda mapping: next(iter(mapping._extra_content.values())),
        lambda mapping: dict(mapping._extra_content)[ToyConfig],
        lambda mapping: pickle.loads(pickle.dumps(mapping))[ToyConfig],
        lambda mapping: pickle.loads(pickle.dumps(mapping._extra_content))[ToyConfig],
        lambda mapping: copy.deepcopy(mapping)[ToyConfig],
    ],
    ids=[
        "getitem",
        "get",
        "values",
        "items",
        "iteration",
        "extra values",
        "dict",
        "pickle",
        "pickled extra",
        "deepcopy",
    ],
)
def test_every_lookup_imports_once_and_returns_the_class(read):
    loads = []
    mapping = toy_mapping(loads)
    assert read(mapping) is ToyModel
    assert read(mapping) is ToyModel
    assert len(loads) == 1


def test_keys_and_iteration_return_classes():
    mapping = toy_mapping([])
    assert mapping.keys() == [BertConfig, ToyConfig] and list(mapping) == [BertConfig, ToyConfig] and bool(mapping)


def test_a_mutable_value_is_the_same_object_each_time():
    # `AutoImageProcessor.register` adds a back-end to the dictionary in the mapping.
    mapping = toy_mapping([], value={"torchvision": ToyModel})
    mapping[ToyConfig]["pil"] = OtherModel
    assert mapping[ToyConfig] == {"torchvision": ToyModel, "pil": OtherModel}


def test_entries_of_the_user_replace_ours_before_and_after():
    loads = []
    mapping = toy_mapping(loads)
    mapping.register(ToyConfig, OtherModel, exist_ok=True)
    assert mapping[ToyConfig] is OtherModel and not loads
    register_lazily(mapping, NAME, lambda: (ToyConfig, ToyModel))  # registering again, as a second import would
    assert mapping[ToyConfig] is OtherModel and len(mapping._extra_content) == 1
    mapping.register(OtherConfig, OtherModel)
    del mapping._extra_content[ToyConfig]
    assert ToyConfig not in mapping and mapping[OtherConfig] is OtherModel
    with pytest.raises(KeyError):
        mapping[ToyConfig]


def test_entries_of_third_parties_are_kept():
    mapping = _LazyAutoMapping(dict(CONFIG_MAPPING_NAMES), OrderedDict())
    mapping.register(OtherConfig, OtherModel)
    register_lazily(mapping, NAME, lambda: (ToyConfig, ToyModel))
    assert mapping[OtherConfig] is OtherModel and mapping[ToyConfig] is ToyModel


def test_a_class_of_the_same_name_from_elsewhere_is_another_class():
    mapping = toy_mapping([])
    remote = type("ToyConfig", (PreTrainedConfig,), {"__module__": "transformers_modules.somebody.configuration_toy"})
    assert remote not in mapping


def test_configurations_are_found_by_model_type():
    mapping, loads = _LazyConfigMapping({"bert": "BertConfig"}), []
    register_lazily(mapping, "toy", lambda: (loads.append(True), ("toy", ToyConfig))[1])
    assert "toy" in mapping and mapping["bert"] is BertConfig and not loads
    assert mapping["toy"] is ToyConfig and mapping.keys() == ["bert", "toy"] and mapping.values()[-1] is ToyConfig


def test_missing_dependency_affects_only_its_own_entry():
    mapping = toy_mapping([])

    def load():
        raise ImportError('pip install "hf-clip-variants[text]"')

    register_lazily(mapping, f"{OtherConfig.__module__}.OtherConfig", load)
    assert mapping[ToyConfig] is ToyModel
    with pytest.warns(RuntimeWarning, match=r"OtherConfig is left out of this list: pip install"):
        assert mapping.values()[-1] is ToyModel
    with pytest.raises(ImportError, match=r"hf-clip-variants\[text\]"):
        mapping[OtherConfig]


def test_without_the_private_attribute_the_public_method_is_used():
    class FutureMapping(dict):
        def register(self, key, value, exist_ok=False):
            assert exist_ok
            self[key] = value

    mapping = FutureMapping()
    register_lazily(mapping, NAME, lambda: (ToyConfig, ToyModel))
    assert mapping[ToyConfig] is ToyModel


def test_all_threads_get_the_same_value():
    barrier, seen = threading.Barrier(8), []
    content = LazyContent()

    def load():
        barrier.wait(10)  # all eight threads wait here before the first one continues
        return ToyConfig, object()

    content.add_lazily(NAME, load)
    threads = [threading.Thread(target=lambda: seen.append(content[ToyConfig])) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert len(seen) == 8 and len(set(map(id, seen))) == 1
