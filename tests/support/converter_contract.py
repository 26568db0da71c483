"""What every converter of official checkpoints must do. Subclasses give the converters as functions."""

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from official_files import from_a_training

from hf_clip_variants.conversion.checkpoint_reader import read_state_dict


Weights = Mapping[str, torch.Tensor]


def all_refused(convert: Callable[[Weights], object], cases: Iterable[tuple[Weights, str]]) -> None:
    """Asserts that `convert` raises a ValueError with a matching message for each case, and lists all other cases."""
    wrong = []
    for weights, message in cases:
        try:
            convert(weights)
        except ValueError as error:
            if not re.search(message, str(error)):
                wrong.append(f"{message!r}: got {error}")
        else:
            wrong.append(f"{message!r}: no error")
    assert not wrong, "\n".join(wrong)


def in_half(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def without(weights: Weights, *prefixes: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}


def one_of_a_kind(names: Iterable[str], most: int = 30) -> list[str]:
    """The first of several names that differ in numbers only: one layer instead of all. At most so many, as each costs
    a conversion."""
    found = list({re.sub(r"\d+", "#", name): name for name in reversed(list(names))}.values())
    return found if len(found) <= most else random.Random(len(found)).sample(found, most)


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    broken = tensor.clone()
    broken.view(-1)[0] = torch.nan
    return broken


class ConverterContract:
    """
    The converter of a model, both ways. A subclass sets:

    Attributes:
        from_official: (weights, **options) -> model.
        convert, to_official: (weights, configuration) -> weights under our names, or the official ones.
        infer: (weights, **options) -> arguments of `config_class`.
        title: name of the weights in errors.
        make: -> a tiny model in which no size is the default.
        inputs: -> inputs of that model for `logits_per_image`.
        options: arguments that cannot be inferred from the tiny model's weights.
        manifests: official names, shapes and hyper-parameters of the published models.
        parts: name of a parameter count in a manifest -> the submodule that has this count.
        strays: further tensors in an official file of the tiny model, which are dropped.
        optional: suffixes of official names that may be missing.
        indirect: official names whose absence gives another error.
        prefix: start of official names that errors leave out.
        hole: name parts of two layers; the second is beyond the last layer.
        wrong_shapes: (official name, shape, message).
        wrong_heads: (options, message).
        other_models: (official name of another architecture, message).
        nothing_found: error for weights that are of no CLIP.
        output: of the model, that is compared.
        one_name: of the model's weights, for an error about it.
    """

    from_official: Callable
    convert: Callable
    to_official: Callable
    infer: Callable
    title: str
    make: Callable
    inputs: Callable
    config_class: type
    options: dict[str, int]
    manifests: list[Path] = []
    strays: dict[str, torch.Tensor] = {}
    optional: tuple[str, ...] = ()
    indirect: tuple[str, ...] = ()
    prefix: str = ""
    parts: dict[str, str] = {}
    hole: tuple[str, str]
    wrong_shapes: tuple[tuple[str, tuple[int, ...], str], ...]
    wrong_heads: tuple[tuple[dict, str], ...]
    other_models: tuple[tuple[str, str], ...]
    nothing_found: str
    output: str = "logits_per_image"
    one_name: str = "logit_scale"

    @pytest.fixture
    def tiny(self):
        return self.make()

    @pytest.fixture
    def official(self, tiny):
        return self.to_official(tiny.state_dict(), tiny.config) | self.strays

    def load(self, weights: Weights):
        return self.from_official(weights, **self.options)

    def check_published(self, config, manifest: dict, name: str) -> None:
        """Compares the sizes of one published model with its manifest."""
        raise NotImplementedError

    # ---- conversion

    def test_published_sizes_are_inferred_from_shapes(self):
        """Hyper-parameters, parameter counts, and official -> ours -> official, on the meta device."""
        for path in self.manifests:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            named = {name.removeprefix("module."): shape for name, (shape, _) in manifest["state_dict"].items()}
            entries = manifest["state_dict"] | manifest.get("stray_keys", {})
            weights = {
                name.removeprefix("module."): torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
                for name, (shape, dtype) in entries.items()
            }
            config = self.config_class(**self.infer(weights))
            self.check_published(config, manifest, path.stem)
            converted = self.convert(weights, config)
            assert {t.dtype for n, t in converted.items() if "num_batches" not in n} == {torch.float32}, path.stem
            model_class = type(self.make())  # outside: what is made is kept for later tests
            with torch.device("meta"):
                model = model_class(config)
            model.load_state_dict(converted, assign=True)
            for count, part in ({"n_params": ""} | self.parts).items():
                found = sum(parameter.numel() for parameter in model.get_submodule(part).parameters())
                assert found == manifest[count], f"{path.stem}: {count}"
            back = {name: list(tensor.shape) for name, tensor in self.to_official(converted, config).items()}
            assert back | {n: list(t.shape) for n, t in self.strays.items()} == named, path.stem

    def test_round_trip_is_exact(self, tiny, official):
        converted = self.convert(official, tiny.config)
        assert converted.keys() == tiny.state_dict().keys()
        for name, tensor in tiny.state_dict().items():
            assert converted[name].dtype == tensor.dtype and torch.equal(converted[name], tensor), name
        again = self.to_official(converted, tiny.config) | self.strays
        assert again.keys() == official.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in official.items())

    def test_converted_model_can_be_used_and_saved_and_owns_its_weights(self, tiny, official, tmp_path):
        model = self.load(official)
        assert type(model) is type(tiny) and not model.training
        model.save_pretrained(tmp_path)
        before = {name: tensor.clone() for name, tensor in official.items()}
        inputs = self.inputs()
        with torch.no_grad():
            expected = tiny(**inputs)[self.output]
            for found in (model, type(model).from_pretrained(tmp_path)):
                for name, tensor in tiny.state_dict().items():
                    assert torch.equal(found.state_dict()[name], tensor), name
                torch.testing.assert_close(found(**inputs)[self.output], expected, rtol=1e-5, atol=1e-5)
            for tensor in model.state_dict().values():
                tensor.zero_()
        assert all(torch.equal(official[name], tensor) for name, tensor in before.items())

    def test_half_precision_training_file_becomes_float32(self, tiny, official, tmp_path):
        weights = read_state_dict(from_a_training(in_half(official), tmp_path / "epoch_3.pt"))
        assert weights.keys() == official.keys()
        found = self.load(weights).state_dict()
        for name, tensor in tiny.state_dict().items():
            rounded = tensor.half().float() if tensor.is_floating_point() else tensor
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], rounded), name

    # ---- errors

    def test_every_missing_name_is_reported(self, official):
        needed = [name for name in official if name not in self.strays and not name.endswith(self.optional or "$")]
        said = {name: f"missing: .*{re.escape(name.removeprefix(self.prefix))}" for name in needed}
        said |= dict.fromkeys(self.indirect, self.title)
        kinds = one_of_a_kind(needed)
        all_refused(self.load, [({n: t for n, t in official.items() if n != name}, said[name]) for name in kinds])
        some = {name: tensor for name, tensor in official.items() if name not in needed[-6:]}
        with pytest.raises(ValueError, match=rf"^{self.title} state dict: 6 missing: (\S+, ){{4}}\S+, …$"):
            self.convert(some, self.make().config)

    def test_unexpected_name_is_reported(self, official):
        with pytest.raises(ValueError, match=f"^{self.title} state dict: 1 unexpected: surprise.weight$"):
            self.load(official | {"surprise.weight": torch.ones(3)})

    def test_missing_layer_is_reported(self, official):
        layer, beyond = self.hole
        with pytest.raises(ValueError, match=f"missing: {re.escape(layer)}"):
            self.load({name.replace(layer, beyond): tensor for name, tensor in official.items()})

    def test_wrong_shapes_are_reported(self, official):
        cases = [(official | {name: torch.zeros(shape)}, message) for name, shape, message in self.wrong_shapes]
        names = [name for name in official if not name.endswith("num_batches_tracked") and name not in self.strays]
        cases += [(official | {n: official[n][None, None]}, "shape|expected|channels") for n in one_of_a_kind(names)]
        all_refused(self.load, cases)

    def test_non_finite_values_are_reported(self, official):
        used = [name for name in official if name not in self.strays]
        floats = one_of_a_kind(n for n in used if official[n].is_floating_point() and official[n].numel())
        # Some formats are read without their prefix.
        prefix = f"(?:{re.escape(self.prefix)})?"
        said = {name: f"1 not finite: {prefix}{re.escape(name.removeprefix(self.prefix))}$" for name in floats}
        all_refused(self.load, [(official | {name: with_nan(official[name])}, said[name]) for name in floats])
        name = floats[0]
        all_refused(self.load, [(official | {name: official[name] * torch.inf}, said[name])])

    def test_head_counts_that_do_not_divide_are_reported(self, official):
        for options, message in self.wrong_heads:
            with pytest.raises(ValueError, match=message) as refused:
                self.from_official(official, **options)
            if re.match("(vision|text|fusion)_heads", said := str(refused.value)):
                # The file may be what is wrong, so the tensor is named, too.
                tensor = said.partition("is that of ")[2].removesuffix(")")
                assert tensor and any(name.endswith(tensor) for name in official), said

    def test_other_models_are_reported(self, official):
        all_refused(self.load, [(official | {name: torch.zeros(1)}, said) for name, said in self.other_models])
        with pytest.raises(ValueError, match=self.nothing_found):
            self.infer({"fc.0.weight": torch.zeros(2, 2)})

    def test_inverse_conversion_is_strict(self, tiny):
        weights = tiny.state_dict()
        with pytest.raises(ValueError, match=f"{self.title} state dict: 1 unexpected: surprise.weight"):
            self.to_official(weights | {"surprise.weight": torch.zeros(1)}, tiny.config)
        with pytest.raises(ValueError, match=f"{self.title} state dict: 1 missing: {re.escape(self.one_name)}"):
            self.to_official({n: t for n, t in weights.items() if n != self.one_name}, tiny.config)


class AdapterConverterContract:
    """
    The converter of an adapter: one way, to the arguments of `put_adapter`. A subclass sets:

    Attributes:
        convert: weights -> (configuration, tensors under our names).
        official: -> the content of an official file.
        own: pattern of the official names that become the adapter's tensors; the others are CLIP's, or follow from
            class names.
        optional: pattern of names that may be missing, such as the last of several layers.
        unknown: name of a tensor that no such file has.
    """

    convert: Callable
    official: Callable
    own: str
    optional: str = "$."
    unknown: str | None = "prompt_learner.surprise"

    @pytest.fixture
    def weights(self):
        weights = dict(self.official())
        assert self.names(weights), "the pattern `own` matches no name"
        return weights

    def names(self, weights: Weights) -> list[str]:
        return [name for name in weights if re.search(self.own, name)]

    def test_half_precision_becomes_float32(self, weights):
        config, tensors = self.convert(weights)
        half_config, halves = self.convert(in_half(weights))
        assert half_config == config and halves.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == halves[name].dtype == torch.float32, name
            assert torch.equal(halves[name], tensor.half().float()), name

    def test_official_tensors_become_the_adapter(self, weights):
        _, tensors = self.convert(weights)
        assert sum(tensor.numel() for tensor in tensors.values()) == sum(
            weights[n].numel() for n in self.names(weights)
        )

    def test_every_missing_name_is_reported(self, weights):
        needed = [name for name in self.names(weights) if not re.search(self.optional, name)]
        all_refused(
            self.convert,
            [({n: t for n, t in weights.items() if n != name}, "missing|expected|unknown") for name in needed],
        )

    def test_unknown_name_is_reported(self, weights):
        if self.unknown:
            all_refused(self.convert, [(weights | {self.unknown: torch.zeros(1)}, "unknown|expected|use ")])

    def test_wrong_shapes_are_reported(self, weights):
        all_refused(
            self.convert,
            [(weights | {n: weights[n][None, None, None]}, "shape|expected|not") for n in self.names(weights)],
        )

    def test_non_finite_values_are_reported(self, weights):
        all_refused(self.convert, [(weights | {n: with_nan(weights[n])}, "not finite") for n in self.names(weights)])
