"""Tests that every adapter must pass on every base that it supports. The cases are in `test_contract.py`."""

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer
from transformers_adapters import needs_adapter_methods

from hf_clip_variants.adapters import load_adapter
from hf_clip_variants.adapters.coop.layer import coop_prompt_ids
from hf_clip_variants.registration.peft_methods import register_all


JOINT_WIDTH = 24  # the width in tests/support/tiny.py
LABELS = torch.tensor([0, 1, 2, 3])
_ENCODER_OF_WIDTH = {"coop": "text", "cocoop": "text", "maple": "text", "ivlp": "text", "vpt": "image"}


@dataclass
class Case:
    """One adapter on one base.

    Args:
        method: name of the row in the table of methods.
        config: returns a new configuration.
        shapes: names and shapes in the adapter's file, without `base_model.model.`
        trained: names of the tensors that are trained.
        plain_clip: whether the base is a `CLIPModel` instead of a `CLIPClassifier`.
        merges: whether a classifier with its class features does the same.
    """

    method: str
    config: Callable
    shapes: dict[str, list[int]]
    trained: tuple[str, ...] = ()
    plain_clip: bool = False
    merges: bool = False

    def base(self, seed: int = 0, **overrides):
        return tiny_clip(seed, **overrides) if self.plain_clip else tiny_classifier(seed, **overrides)

    def model(self, base=None, adapter_name: str = "default", seed: int = 0) -> PeftModel:
        base = base if base is not None else self.base()
        torch.manual_seed(seed)
        model = get_peft_model(base, self.config(), adapter_name)
        self.fill(model, adapter_name, seed)
        return model

    def fill(self, model, adapter_name: str, seed: int = 0) -> None:
        """Fills Tip-Adapter's cache, which it needs before its first forward pass, and the linear head, which changes
        nothing before."""
        generator = torch.Generator().manual_seed(seed)
        if self.method == "tip_adapter":
            from hf_clip_variants.adapters.tip_adapter.model import build_cache

            features = torch.randn(2, 10, JOINT_WIDTH, generator=generator)
            build_cache(model, features, torch.arange(10) % 5, adapter_name)
        if self.method == "linear_head":
            from hf_clip_variants.adapters.linear_head.layer import LinearHeadLayer

            (layer,) = (module for module in model.modules() if isinstance(module, LinearHeadLayer))
            weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, JOINT_WIDTH), (5,)))
            layer.set_head(adapter_name, weight, bias)
            if layer.configs[adapter_name].gamma:
                keys = F.normalize(torch.randn(10, JOINT_WIDTH, generator=generator), dim=1)
                layer.set_cache(adapter_name, keys, torch.arange(10) % 5)

    def batch(self, pixel_values=None) -> dict:
        batch = {"pixel_values": tiny_pixels() if pixel_values is None else pixel_values}
        if self.plain_clip:
            config, tokens = self.config(), 0
            for name in ("num_context_tokens", "num_prompt_tokens", "num_text_tokens"):  # VPT's are not text tokens
                tokens = getattr(config, name, tokens) if self.method != "vpt" else 0
            batch["input_ids"] = coop_prompt_ids(tiny_tokenizer(), CLASS_NAMES, tokens or 1, max_length=32)
            if not tokens:
                batch["input_ids"] = batch["input_ids"][:, 1:]
        return batch

    def logits(self, model, **changes) -> torch.Tensor:
        return model(**(self.batch() | changes)).logits_per_image

    def loss(self, model, **changes) -> torch.Tensor:
        return F.cross_entropy(self.logits(model, **changes).float(), LABELS)


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


class AdapterContract:
    """Needs the fixtures `case`, `trained_case` (cases with trained tensors), `merging_case` (those that merge),
    `trainer_case`, `classifier_case` and `base_case`."""

    @pytest.fixture(scope="class")
    @classmethod
    def saved_base(cls, tmp_path_factory):
        """Case -> the folder of its base and tokenizer: an adapter on what is loaded from there names that folder."""
        folders = {}

        def folder_of(case: Case):
            if case.plain_clip not in folders:
                folders[case.plain_clip] = folder = tmp_path_factory.mktemp("base")
                case.base().save_pretrained(folder)
                if not case.plain_clip:
                    tiny_tokenizer().save_pretrained(folder)
            return folders[case.plain_clip]

        return folder_of

    def test_trains_only_its_own_tensors(self, case: Case):
        model = case.model()
        prefix = PEFT_TYPE_TO_PREFIX_MAPPING[model.peft_config["default"].peft_type]
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {_file_name(name) for name in trainable} == set(case.trained)
        assert all(prefix in name for name in trainable)
        if case.trained:
            case.loss(model).backward()
        for name, parameter in model.named_parameters():
            if name in trainable:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
            else:
                assert parameter.grad is None, name

    def test_file_holds_exactly_its_tensors(self, case: Case, tmp_path):
        case.model().save_pretrained(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        assert {n.removeprefix("base_model.model."): list(t.shape) for n, t in tensors.items()} == case.shapes
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        assert saved["peft_type"] == f"CLIPV_{case.method.upper()}"
        assert "allow_other_backbone" not in saved
        if not case.plain_clip:
            assert (saved["class_names"], saved["templates"]) == (CLASS_NAMES, ["a photo of a {}."])

    @pytest.mark.parametrize(("adapter_name", "low_cpu_mem_usage"), [("default", False), ("other", True)])
    def test_reloads_bit_for_bit_under_any_name(self, case: Case, tmp_path, adapter_name, low_cpu_mem_usage):
        model = case.model(seed=1)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(case.base(), tmp_path, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
        expected = get_peft_model_state_dict(model)
        found = get_peft_model_state_dict(again, adapter_name=adapter_name)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        torch.testing.assert_close(case.logits(again), case.logits(model), rtol=0, atol=1e-5)
        assert not any(p.requires_grad for p in again.parameters())

    def test_disabled_and_unloaded_model_is_the_base(self, case: Case):
        base = case.base()
        with torch.no_grad():
            logits = case.logits(base)  # before the adapter is added, to cache class features
        before, kinds = state_of(base), [type(m) for m in base.modules()]
        model = case.model(base)
        assert not torch.equal(case.logits(model), logits)
        with model.disable_adapter():
            assert torch.equal(case.logits(model), logits)
        assert not torch.equal(case.logits(model), logits)
        unloaded = model.unload()
        assert unloaded is base and [type(m) for m in base.modules()] == kinds
        assert_same_state(base, before)
        assert torch.equal(case.logits(base), logits)

    def test_several_adapters_can_be_switched_and_deleted(self, case: Case, tmp_path):
        model = case.model(seed=1)
        first = case.logits(model)
        torch.manual_seed(2)
        model.add_adapter("second", case.config())
        case.fill(model, "second", seed=2)
        assert torch.equal(case.logits(model), first)
        model.set_adapter("second")
        second = case.logits(model)
        assert not torch.equal(second, first)
        trainable = {_file_name(n, "second") for n, p in model.named_parameters() if p.requires_grad}
        assert trainable == set(case.trained)

        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(case.base(), tmp_path)
        again.load_adapter(tmp_path / "second", "second")
        assert torch.equal(case.logits(again), first)
        again.set_adapter("second")
        assert torch.equal(case.logits(again), second)
        again.delete_adapter("default")
        assert torch.equal(case.logits(again), second)
        with pytest.warns(UserWarning, match="Setting active adapter to default"):
            model.delete_adapter("second")
        assert torch.equal(case.logits(model), first)

    def test_a_mixed_batch_equals_each_adapter_by_itself(self, trainer_case: Case):
        """PEFT's `adapter_names`: here also for tuners that are not LoRA. The active adapter and its cache stay."""
        model = trainer_case.model(seed=1)
        torch.manual_seed(2)
        model.add_adapter("second", trainer_case.config())
        trainer_case.fill(model, "second", seed=2)
        model.eval().set_adapter("second")
        kept, expected = {}, {}
        for name in ("default", "second"):
            model.set_adapter(name)
            kept[name] = trainer_case.logits(model)
        with model.disable_adapter():
            kept["__base__"] = trainer_case.logits(model)
        names = ["second", "__base__", "default", "second"]
        for mixed in (names, names[::-1], ["default"] * 4, ["__base__"] * 4):
            output = model(**trainer_case.batch(), adapter_names=mixed)
            expected = torch.stack([kept[name][row] for row, name in enumerate(mixed)])
            torch.testing.assert_close(output.logits_per_image, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(output.logits_per_text, expected.t(), rtol=1e-5, atol=1e-5)
            assert output.image_embeds.shape == (4, JOINT_WIDTH) and output.text_embeds is None
            assert torch.equal(trainer_case.logits(model), kept["second"])
        assert "forward" not in vars(model.get_base_model())

    def test_pefts_bookkeeping(self, trainer_case: Case, tmp_path):
        """What PEFT's own tester asks of each method and no other test here does."""
        model = trainer_case.model(seed=1)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        model.add_adapter("second", trainer_case.config())
        status = model.get_model_status()
        assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
        assert status.available_adapters == ["default", "second"]
        assert status.requires_grad == {"default": bool(trainer_case.trained), "second": False}
        for wanted, expected in ((False, []), (True, trained)):
            model.set_requires_grad("default", wanted)
            assert [name for name, p in model.named_parameters() if p.requires_grad] == expected
        for act in (lambda: model.add_adapter("second", trainer_case.config()), lambda: model.delete_adapter("third")):
            with pytest.raises(ValueError, match="already exists|does not exist"):
                act()
        config = trainer_case.config()
        config.inference_mode = True
        assert not any(p.requires_grad for p in get_peft_model(trainer_case.base(), config).parameters())

        # Caches have the size of what is loaded.
        if trainer_case.method not in ("tip_adapter", "linear_head"):
            empty = get_peft_model(trainer_case.base(), trainer_case.config(), low_cpu_mem_usage=True)
            assert {p.device.type for name, p in empty.named_parameters() if "clipv_" in name} == {"meta"}
            set_peft_model_state_dict(empty, get_peft_model_state_dict(model), low_cpu_mem_usage=True)
            torch.testing.assert_close(trainer_case.logits(empty), trainer_case.logits(model), rtol=0, atol=1e-5)
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"but CLIPV_{trainer_case.method.upper()} was passed"):
            hotswap_adapter(model, str(tmp_path), "default")

    def test_two_active_adapters_are_refused(self, case: Case):
        model = case.model()
        model.add_adapter("second", case.config())
        case.fill(model, "second")
        model.base_model.set_adapter(["default", "second"])
        with pytest.raises(ValueError, match=r"\['default', 'second'\] are active at once"):
            case.logits(model)
        model.set_adapter("default")
        case.logits(model)

    def test_merging_into_the_weights_is_refused_and_changes_nothing(self, case: Case):
        model = case.model()
        logits = case.logits(model)
        in_place = [model.merge_adapter, model.unmerge_adapter]
        for merge in in_place if case.merges else [*in_place, model.merge_and_unload]:
            with pytest.raises(ValueError, match=f"merge: CLIPV_{case.method.upper()} cannot be merged") as caught:
                merge()
            assert ("merge_and_unload()" in str(caught.value)) == case.merges
        assert torch.equal(case.logits(model), logits)

    def test_merged_class_features_make_a_plain_classifier_with_equal_logits(self, merging_case: Case, tmp_path):
        base = merging_case.base()
        kinds, weights = [type(m) for m in base.modules()], {n: p.clone() for n, p in base.named_parameters()}
        model = merging_case.model(base, seed=1)
        model.add_adapter("second", merging_case.config())
        logits = merging_case.logits(model)
        merged = model.merge_and_unload(safe_merge=True)
        assert merged is base and [type(m) for m in merged.modules()] == kinds
        assert all(torch.equal(p, weights[n]) for n, p in merged.named_parameters())
        assert torch.equal(merging_case.logits(merged), logits)

        merged.save_pretrained(tmp_path)
        again = type(merged).from_pretrained(tmp_path)
        assert torch.equal(merging_case.logits(again), logits)
        assert torch.equal(merging_case.logits(copy.deepcopy(again)), logits)
        again.forget_class_features()
        merging_case.logits(again.train()).sum().backward()
        rounded = merging_case.logits(again.eval().bfloat16().float())
        assert (rounded - logits).abs().max() / logits.abs().max() < 0.05, "the dtype does not bring the prompts back"
        with pytest.raises(ValueError, match="class_names: an adapter was merged .* its classes .* are fixed"):
            again.set_classes(["cat", "dog"])
        again.set_classes(again.class_names, again.config.templates)  # the same ones

    def test_the_named_adapter_is_merged(self, merging_case: Case):
        model = merging_case.model(seed=1)
        torch.manual_seed(2)
        model.add_adapter("second", merging_case.config())
        model.set_adapter("second")
        logits = merging_case.logits(model)
        model.set_adapter("default")
        with pytest.raises(ValueError, match=r"adapter_names: \['default', 'second'\], expected one"):
            model.merge_and_unload(adapter_names=["default", "second"])
        assert not torch.equal(merging_case.logits(model), logits)
        assert torch.equal(merging_case.logits(model.merge_and_unload(adapter_names=["second"])), logits)

    def test_features_that_are_not_finite_are_not_merged(self, merging_case: Case):
        model = merging_case.model()
        parameter = next(p for p in model.parameters() if p.requires_grad)
        with torch.no_grad():
            parameter.fill_(torch.nan)
        with pytest.raises(ValueError, match="the class features of 'default' are not finite"):
            model.merge_and_unload(safe_merge=True)
        assert any("clipv_" in name for name, _ in model.named_parameters())

    @needs_adapter_methods
    def test_adapter_methods_of_transformers(self, case: Case, saved_base, tmp_path):
        folder, load = saved_base(case), type(case.base()).from_pretrained
        base = load(folder)
        plain = case.logits(base)
        base.add_adapter(case.config(), "mine")
        case.fill(base, "mine", seed=3)
        adapted = case.logits(base)
        assert not torch.equal(adapted, plain)
        base.disable_adapters()
        assert torch.equal(case.logits(base), plain)
        base.enable_adapters()
        base.save_pretrained(tmp_path / "adapter")
        assert not (tmp_path / "adapter" / "model.safetensors").exists()
        base.delete_adapter("mine")
        assert torch.equal(case.logits(base), plain)

        again = PeftModel.from_pretrained(load(folder), tmp_path / "adapter")
        torch.testing.assert_close(case.logits(again), adapted, rtol=0, atol=1e-5)

    def test_transformers_loads_the_adapter_onto_a_base_and_with_its_base(self, case: Case, saved_base, tmp_path):
        load = type(case.base()).from_pretrained
        model = case.model(load(saved_base(case)), seed=3)
        model.save_pretrained(tmp_path / "adapter")
        loaded, logits = load(saved_base(case)), case.logits(model)
        loaded.load_adapter(tmp_path / "adapter", "other")
        for again in (loaded, load(tmp_path / "adapter")):
            torch.testing.assert_close(case.logits(again), logits, rtol=0, atol=1e-5)

    def test_trainer_resumes_to_the_same_weights(self, trainer_case: Case, tmp_path):
        model = trainer_case.model(seed=1)
        before = copy.deepcopy(get_peft_model_state_dict(model))
        _trainer(trainer_case, model, tmp_path / "run", max_steps=3, save_steps=2).train()
        trained = get_peft_model_state_dict(model)
        for name in trainer_case.trained:
            assert not torch.equal(trained[f"base_model.model.{name}"], before[f"base_model.model.{name}"]), name
        files = {p.name for p in (tmp_path / "run" / "checkpoint-2").iterdir()}
        assert "adapter_model.safetensors" in files and "model.safetensors" not in files

        resumed = trainer_case.model(seed=2)
        trainer = _trainer(trainer_case, resumed, tmp_path / "run", max_steps=3, save_steps=2)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        for name, tensor in get_peft_model_state_dict(resumed).items():
            assert torch.equal(tensor, trained[name]), name

    def test_accumulation_equals_a_larger_batch(self, base_case: Case, tmp_path):
        results = []
        for batch_size, accumulation in ((4, 1), (2, 2)):
            model = base_case.model(seed=1)
            _trainer(
                base_case,
                model,
                tmp_path / str(accumulation),
                max_steps=1,
                save_strategy="no",
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulation,
            ).train()
            results.append(get_peft_model_state_dict(model))
        for name in base_case.trained:
            pair = [result[f"base_model.model.{name}"] for result in results]
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)

    def test_bfloat16_base_keeps_float32_adapter(self, case: Case, tmp_path):
        expected = case.logits(case.model(seed=1))
        model = case.model(case.base().to(torch.bfloat16), seed=1)
        floats = [p for n, p in model.named_parameters() if "clipv_" in n]
        assert all(p.dtype == torch.float32 for p in floats)
        logits = case.logits(model, pixel_values=tiny_pixels().to(torch.bfloat16))
        scale = expected.abs().max()
        assert (logits.float() - expected).abs().max() / scale < 0.1
        if case.trained:
            case.loss(model, pixel_values=tiny_pixels().to(torch.bfloat16)).backward()
            assert all(torch.isfinite(p.grad).all() for p in floats if p.requires_grad)
        model.save_pretrained(tmp_path)
        PeftModel.from_pretrained(case.base(), tmp_path)  # another dtype does not change the backbone's fingerprint

    def test_adapters_have_the_bases_dtype_only_where_asked(self, trainer_case: Case, tmp_path):
        """PEFT's `autocast_adapter_dtype`, in each call that has it; what is trained then stays in that dtype."""
        pixels = tiny_pixels().bfloat16()
        expected = trainer_case.logits(trainer_case.model(seed=1))
        trainer_case.model(seed=1).save_pretrained(tmp_path)
        for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
            option = {"autocast_adapter_dtype": autocast}
            new = get_peft_model(trainer_case.base().bfloat16(), trainer_case.config(), **option)
            new.add_adapter("second", trainer_case.config(), **option)
            loaded = PeftModel.from_pretrained(trainer_case.base().bfloat16(), tmp_path, is_trainable=True, **option)
            for name, low_memory in (("second", False), ("third", True)):
                loaded.load_adapter(tmp_path, name, low_cpu_mem_usage=low_memory, **option)
            for model in (new, loaded):
                floats = [t for n, t in model.state_dict().items() if "clipv_" in n and t.is_floating_point()]
                assert {t.dtype for t in floats} == {dtype}
            logits = trainer_case.logits(loaded, pixel_values=pixels)
            assert (logits.float() - expected).abs().max() / expected.abs().max() < 0.1
            trainer_case.fill(new, "default")
            assert {t.dtype for n, t in new.state_dict().items() if "clipv_" in n} <= {dtype, torch.int64}
            if trainer_case.trained:
                trained = [p for p in loaded.parameters() if p.requires_grad]
                before = [p.detach().clone() for p in trained]
                trainer_case.loss(loaded, pixel_values=pixels).backward()
                torch.optim.SGD(trained, lr=1.0).step()
                assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {dtype}
                assert not all(map(torch.equal, trained, before))

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.1)])
    def test_trains_under_autocast(self, trained_case: Case, dtype, tolerance):
        """As with `Trainer(bf16=True)`: about the same gradients, in float32."""
        results = []
        for enabled in (False, True):
            model = trained_case.model()
            with torch.autocast("cpu", dtype, enabled=enabled):
                loss = trained_case.loss(model)
            loss.backward()
            results.append((loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        (loss, gradients), (mixed_loss, mixed) = results
        assert (mixed_loss - loss).abs() / loss < tolerance / 4
        assert len(mixed) == len(gradients) == len(trained_case.trained)
        for name, gradient in gradients.items():
            assert mixed[name].dtype == torch.float32
            assert (mixed[name] - gradient).norm() / gradient.norm() < tolerance, name

    def test_trainers_predictions_are_the_logits(self, classifier_case: Case, tmp_path):
        """So the usual `compute_metrics` works; embeddings of the classes would be collected with each batch."""
        model = classifier_case.model(seed=1)
        trainer = _trainer(classifier_case, model, tmp_path, per_device_eval_batch_size=3)
        predicted = trainer.predict(trainer.train_dataset)
        with torch.no_grad():
            logits = classifier_case.logits(model.eval()).repeat(2, 1)
        torch.testing.assert_close(torch.from_numpy(predicted.predictions), logits, rtol=1e-4, atol=1e-4)
        assert predicted.label_ids.tolist() == LABELS.tolist() * 2

    def test_gradient_checkpointing_changes_nothing(self, trained_case: Case):
        gradients = []
        for checkpointing in (False, True):
            base = trained_case.base().train()
            if checkpointing:
                base.activation_checkpointing_enable()
            model = trained_case.model(base, seed=1)
            trained_case.loss(model).backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        assert len(gradients[0]) == len(gradients[1]) == len(trained_case.trained)
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-7)

    def test_can_be_copied_and_pickled(self, case: Case):
        model = case.model()
        config = model.peft_config["default"]
        assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
        twin = copy.deepcopy(model)
        assert torch.equal(case.logits(twin), case.logits(model))
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if "clipv_" in name:
                    parameter.add_(1)
        assert not torch.equal(case.logits(twin), case.logits(model))
        register_all()
        assert torch.equal(case.logits(pickle.loads(pickle.dumps(model))), case.logits(model))

    def test_other_backbone_is_refused_and_can_be_allowed(self, case: Case, tmp_path):
        case.model().save_pretrained(tmp_path)
        base = case.base(seed=1)
        before, kinds = state_of(base), [type(m) for m in base.modules()]
        refusal = r"backbone_fingerprint: the adapter was made for .*'v2:.*this backbone has 'v2:"
        with pytest.raises(ValueError, match=refusal):
            PeftModel.from_pretrained(base, tmp_path)
        with pytest.raises(ValueError, match=refusal):
            base.load_adapter(tmp_path)
        with pytest.raises(ValueError, match=refusal):
            load_adapter(tmp_path, base)
        assert_same_state(base, before)
        assert [type(m) for m in base.modules()] == kinds and all(p.requires_grad for p in base.parameters())
        assert case.logits(load_adapter(tmp_path, base, allow_other_backbone=True)).isfinite().all()
        model = PeftModel.from_pretrained(case.base(seed=1), tmp_path, allow_other_backbone=True)
        assert case.logits(model).isfinite().all()

    def test_error_for_other_width_has_both_widths(self, case: Case, tmp_path):
        case.model().save_pretrained(tmp_path)
        width, wanted = {
            "text": ({"text_config": {"hidden_size": 48}}, r"width 32, backbone has 48 \(text width\)"),
            "image": ({"vision_config": {"hidden_size": 48}}, r"width 40, backbone has 48 \(image width\)"),
            "depth": ({"vision_config": {"num_hidden_layers": 2}}, r"depth 3, backbone has 2 \(image layers\)"),
        }[_ENCODER_OF_WIDTH.get(case.method, "depth")]
        base = case.base(**width)
        with pytest.raises(ValueError, match=f"adapter expects {wanted}"):
            load_adapter(tmp_path, base)
        assert not any("clipv_" in name for name in base.state_dict())

    def test_damaged_files_do_not_change_the_base(self, case: Case, tmp_path):
        case.model().save_pretrained(tmp_path)
        base = case.base()
        before, kinds = state_of(base), [type(m) for m in base.modules()]
        weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
        good, good_config = weights.read_bytes(), config.read_bytes()
        for bad in (b"", good[: len(good) // 2], good[:-1], good + b"\0", b"garbage" * 9):
            weights.write_bytes(bad)
            with pytest.raises(OSError, match=f"{weights}: not a valid safetensors file"):
                load_adapter(tmp_path, base)
        weights.unlink()
        with pytest.raises(OSError, match=f"{weights}: not found"):
            load_adapter(tmp_path, base)
        weights.write_bytes(good)

        config.write_bytes(good_config[:-9])
        with pytest.raises(OSError, match=f"{config}: not a valid adapter configuration"):
            load_adapter(tmp_path, base)
        for change, error in (
            ({"peft_type": "CLIPV_TOMORROW"}, "peft_type: .*'CLIPV_TOMORROW'.*loads CLIPV_"),
            ({"format_version": 99}, "format_version: the adapter has 99.*reads up to 1"),
        ):
            config.write_text(json.dumps(json.loads(good_config) | change))
            with pytest.raises(ValueError, match=error):
                load_adapter(tmp_path, base)
        config.write_bytes(good_config)
        assert_same_state(base, before)
        assert [type(m) for m in base.modules()] == kinds
        assert all(p.requires_grad for p in base.parameters())
        load_adapter(tmp_path, base)

    def test_missing_and_unexpected_tensors_are_errors(self, case: Case):
        model = case.model()
        state = get_peft_model_state_dict(model)
        before = state_of(model)
        first = next(iter(state))
        short = first.removeprefix("base_model.model.")
        with pytest.raises(ValueError, match=f"1 missing tensors: {short}"):
            set_peft_model_state_dict(model, {n: t for n, t in state.items() if n != first})
        with pytest.raises(ValueError, match="1 unexpected tensors: surprise"):
            set_peft_model_state_dict(model, state | {"base_model.model.surprise": torch.zeros(1)})
        with pytest.raises(ValueError, match=f"{short} has shape"):
            set_peft_model_state_dict(model, state | {first: torch.zeros(7, 7)})
        assert_same_state(model, before)
        changed = {n: t + 1 for n, t in state.items()}
        for prefix in ("base_model.model.", ""):
            set_peft_model_state_dict(
                model, {prefix + n.removeprefix("base_model.model."): t for n, t in changed.items()}
            )
            assert all(torch.equal(t, changed[n]) for n, t in get_peft_model_state_dict(model).items())
            set_peft_model_state_dict(model, state)

    def test_unsupported_models_are_refused(self, case: Case):
        from transformers import CLIPTextModelWithProjection

        text = CLIPTextModelWithProjection(tiny_clip().config.text_config)
        with pytest.raises(
            ValueError,
            match="works on CLIPClassifier and on CLIPModel and its like.*, got CLIPTextModelWithProjection",
        ):
            get_peft_model(text, case.config())
        assert not any("clipv_" in name for name in text.state_dict())
        with pytest.raises(ValueError, match="task_type"):
            type(case.config())(task_type="FEATURE_EXTRACTION")


def _file_name(parameter_name: str, adapter_name: str = "default") -> str:
    name = parameter_name.removeprefix("base_model.model.")
    return name.replace(f".{adapter_name}.", ".").removesuffix(f".{adapter_name}")


def _trainer(case: Case, model, output_dir, **arguments):
    from transformers import Trainer, TrainingArguments

    pixels = tiny_pixels()
    examples = [{"pixel_values": pixels[i % 4], "labels": int(LABELS[i % 4])} for i in range(8)]

    def collate(rows):
        batch = case.batch(torch.stack([row["pixel_values"] for row in rows]))
        return batch | {"labels": torch.tensor([row["labels"] for row in rows])}

    def classification_loss(outputs, labels, num_items_in_batch=None):
        total = F.cross_entropy(outputs.logits_per_image, labels, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    arguments = {"per_device_train_batch_size": 2} | arguments
    return Trainer(
        model=model,
        args=TrainingArguments(
            str(output_dir),
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            logging_strategy="no",
            seed=0,
            **arguments,
        ),
        train_dataset=examples,
        data_collator=collate,
        compute_loss_func=classification_loss if case.plain_clip else None,
    )
