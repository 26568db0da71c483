"""The inter-view adapter: what trains, saving and loading, other bases, the recipe, `Trainer`, processes."""

import json

import pytest
import torch
from converter_contract import AdapterConverterContract
from parity_fixtures import load_fixture
from paths import PROGRAMS
from peft import PeftModel, get_peft_model
from pointclip_runs import clouds, point_processor, pointclip_batch, pointclip_model, set_model, with_classes
from processes import run_on_ranks
from safetensors.torch import load_file
from tiny import CLASS_NAMES, tiny_clip, tiny_tokenizer
from transformers import AutoModel, Trainer, TrainingArguments

from hf_clip_variants import PointCLIPModel, convert_checkpoint
from hf_clip_variants.adapters import InterViewAdapterConfig, load_adapter
from hf_clip_variants.adapters.inter_view_adapter.convert import convert_inter_view_adapter
from hf_clip_variants.adapters.inter_view_adapter.few_shot import optimizers, published_recipe
from hf_clip_variants.data.point_clouds import PointCloudCollator
from hf_clip_variants.hub.model_cards import model_card


PREFIX = "view_fusion.clipv_inter_view_adapter_"


def tuned(base=None, seed: int = 0, **fields) -> PeftModel:
    base = set_model() if base is None else base
    torch.manual_seed(seed)
    return get_peft_model(base, InterViewAdapterConfig(**fields)).eval()


@torch.no_grad()
def logits(model, **given) -> torch.Tensor:
    return model(**{"points": clouds(), **given}).logits


class TestConverter(AdapterConverterContract):
    own = "fusion_ratio|(weight|bias|running_mean|running_var)$"
    unknown = "view_f.9.weight"

    @staticmethod
    def convert(weights):
        config, tensors = convert_inter_view_adapter(weights)
        counters = {name for name in tensors if name.endswith("num_batches_tracked")}
        assert {tensors[name].dtype for name in counters} == {torch.int64}
        return config, {name: tensor for name, tensor in tensors.items() if name not in counters}

    def official(self):
        return load_fixture("pointclip").state_dict


def test_only_the_adapter_trains_and_ratio_0_is_the_views_under_one_norm():
    base = set_model()
    plain, before = logits(base), {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = tuned(base, ratio=0.0)
    with torch.no_grad():
        features = base(clouds()).view_features
        found = model(clouds()).point_embeds
    expected = torch.nn.functional.normalize(features.flatten(1), dim=1).view_as(features)
    torch.testing.assert_close(found, expected)
    model.peft_config["default"].ratio = 0.6
    model.train()
    model(**pointclip_batch()).loss.backward()
    trained = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    parts = ("view_norm", "global_linear", "global_norm", "view_down", "view_up")
    wanted = {f"{PREFIX}{part}.default.{kind}" for part in parts for kind in ("weight", "bias")}
    assert trained == wanted | {f"{PREFIX}fusion_ratio.default"}
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    model.eval()
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    base = model.unload()
    assert torch.equal(logits(base), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_a_saved_adapter_gives_equal_logits_wherever_it_is_loaded(tmp_path):
    set_model().save_pretrained(tmp_path / "base")
    model = tuned(AutoModel.from_pretrained(tmp_path / "base").eval())
    model.train()
    model(**pointclip_batch())  # statistics that are not the initial ones
    model.eval()
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    config = model.peft_config["default"]
    assert {n.removeprefix("base_model.model."): tuple(t.shape) for n, t in saved.items()} == config.adapter_tensors()
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["class_names"] == CLASS_NAMES and written["pictures"].startswith("realistic, realistic_10")
    for again in (
        PeftModel.from_pretrained(set_model(), tmp_path / "adapter").eval(),
        load_adapter(tmp_path / "adapter"),
        AutoModel.from_pretrained(tmp_path / "adapter").eval(),
    ):
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="backbone_fingerprint: the adapter was made for"):
        PeftModel.from_pretrained(set_model(1), tmp_path / "adapter")
    with pytest.raises(ValueError, match="pictures: the adapter was made for realistic.* draws sparse, sparse_10"):
        PeftModel.from_pretrained(set_model(projection="sparse", views="sparse_10"), tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter expects .* 10, backbone has 6"):
        PeftModel.from_pretrained(set_model(projection="sparse"), tmp_path / "adapter")
    with pytest.raises(ValueError, match="works on models that see an object from several views"):
        get_peft_model(tiny_clip(), InterViewAdapterConfig())
    card = str(model_card(tmp_path / "adapter", repo_id="me/views"))
    assert "load_adapter" in card and "point" in card


def test_adapters_are_switched_and_cannot_be_merged():
    model = tuned()
    first = logits(model)
    torch.manual_seed(7)
    model.add_adapter("second", InterViewAdapterConfig(ratio=0.9))
    model.set_adapter("second")
    assert not torch.allclose(logits(model.eval()), first)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model), first)
    with pytest.raises(ValueError, match="cannot be merged, it is not linear"):
        model.merge_and_unload()
    torch.testing.assert_close(logits(model), first)


def test_one_cloud_cannot_be_trained_and_statistics_of_what_does_not_train_stay():
    model = tuned()
    with pytest.raises(ValueError, match="points: one object in a batch of the training"):
        model.train()(**pointclip_batch(1))
    frozen = tuned().requires_grad_(False).train()
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    torch.testing.assert_close(logits(frozen), logits(frozen.eval()))
    assert all(torch.equal(buffer, before[name]) for name, buffer in frozen.named_buffers())


@pytest.mark.parametrize("values, message", [({"ratio": 1.5}, "ratio: 1.5"), ({"dropout": 1.0}, "dropout: 1.0")])
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        InterViewAdapterConfig(**values)


def test_an_official_file_converts_by_command(tmp_path):
    state = load_fixture("pointclip").state_dict
    views, width = len(state["fusion_ratio"]), len(state["view_f.0.bias"])
    options = {"projection": "sparse", "projection_dim": width}
    options["view_angles"] = [[0.0, 0.0, i / views] for i in range(views)]
    pointclip_model(**options).save_pretrained(tmp_path / "base")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model-best.pth.tar")
    done = convert_checkpoint(tmp_path / "model-best.pth.tar", tmp_path / "out", base=tmp_path / "base", compare=True)
    assert done.method == "inter_view_adapter" and done.difference < 1e-4
    loaded = load_adapter(tmp_path / "out")
    loaded.get_base_model().set_classes(CLASS_NAMES, tiny_tokenizer())
    assert logits(loaded).shape == (4, 5) and loaded.peft_config["default"].ratio == 0.6
    tiny_clip().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="base: .*CLIPModel, and does not say the views"):
        convert_checkpoint(tmp_path / "model-best.pth.tar", tmp_path / "no", base=tmp_path / "clip")
    pointclip_model().save_pretrained(tmp_path / "realistic")
    with pytest.raises(ValueError, match="the official adapter knows sparse pictures"):
        convert_checkpoint(tmp_path / "model-best.pth.tar", tmp_path / "no", base=tmp_path / "realistic")
    assert not (tmp_path / "no").exists()


# ---- training


def shapes(count: int, seed: int) -> list[dict]:
    """Spheres, cubes, cylinders and rings of 256 points."""
    random, rows = torch.Generator().manual_seed(seed), []
    for number in range(count):
        points, angle = torch.randn(256, 3, generator=random), 6.2832 * torch.rand(256, generator=random)
        label = number % 4
        if label == 0:
            points = points / points.norm(dim=1, keepdim=True)
        elif label == 1:
            points = points / points.abs().amax(1, keepdim=True)
        else:
            ring = torch.stack([angle.cos(), torch.zeros(256), angle.sin()], 1)
            up = 3 * torch.rand(256, generator=random) - 1.5
            points = ring + up[:, None] * torch.tensor([0.0, 1.0, 0.0]) if label == 2 else ring + 0.1 * points
        rows.append({"points": points.numpy(), "label": label})
    return rows


def test_the_recipe_with_trainer_learns_shapes_that_zero_shot_does_not_know(tmp_path):
    base = pointclip_model(logit_scale_value=50.0)
    base.set_classes(["sphere", "cube", "cylinder", "ring"], tiny_tokenizer(), "point cloud of a big {}.")
    torch.manual_seed(3)
    with_classes(base)  # random texts are almost equal
    processor, data = point_processor(num_points=None), shapes(32, 0)
    plain = PointCloudCollator(processor)

    def accuracy(model, rows) -> float:
        batch = plain(rows)
        return float((logits(model.eval(), **batch).argmax(1) == batch["labels"]).float().mean())

    zero_shot, model = accuracy(base, shapes(40, 1)), tuned(base)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=100,
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        save_steps=90,
    )
    recipe = published_recipe(epochs=50)
    collate = PointCloudCollator(processor, augment=True)
    trainer = Trainer(model, arguments, collate, data, optimizers=optimizers(model, 2, recipe))
    trainer.train()
    learned = accuracy(model, shapes(40, 1))
    assert learned > 0.8 and learned > zero_shot + 0.3, (learned, zero_shot)
    assert (tmp_path / "checkpoint-90" / "adapter_model.safetensors").is_file()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-90"))


def test_the_schedule_is_the_official_one():
    model = tuned()
    optimizer, schedule = optimizers(model, 3)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], published_recipe().batch_size) == (0.9, 5e-4, 32)
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == [1e-5] * 3 and rates[3:6] == [0.01] * 3
    assert rates[6] == pytest.approx(0.005 * (1 + torch.cos(torch.tensor(torch.pi / 250)).item()))
    with pytest.raises(ValueError, match="0 trained tensors"):
        optimizers(model.requires_grad_(False), 3)


def test_bfloat16_and_accumulation_train():
    model = tuned(set_model().to(torch.bfloat16)).train()
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    loss = model(**pointclip_batch()).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert PointCLIPModel.accepts_loss_kwargs is False


def test_two_processes_train_as_one(tmp_path):
    for size in (2, 1):
        run_on_ranks(PROGRAMS / "inter_view_ranks.py", tmp_path, world_size=size, folder=tmp_path)
    alone = load_file(tmp_path / "1of1.safetensors")
    for rank in range(2):
        found = load_file(tmp_path / f"{rank + 1}of2.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
