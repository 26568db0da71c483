"""Pre-training knows a method only from the descriptor in its row."""

import ast
import dataclasses
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from paths import ROOT, SCRIPTS
from transformers import AutoModel, CLIPConfig, CLIPModel

from hf_clip_variants import registry
from hf_clip_variants.data.images.emoji import FOLDER
from hf_clip_variants.modeling.dual_encoders.pretraining import Pretraining
from hf_clip_variants.training.architectures import fitting_architectures, new_model
from hf_clip_variants.training.pretraining_methods import pretraining_methods, pretraining_of


MODELING = ROOT / "modeling"


def test_methods_are_those_of_the_table():
    assert list(pretraining_methods()) == ["clip", "slip", "audioclip", "groupvit"]
    assert pretraining_of("clip", "resnet").has_batch_norm and not pretraining_of("clip", "vit").has_batch_norm
    assert pretraining_of("clip") is pretraining_of("clip", "vit")


@pytest.mark.parametrize("row", [row for row in registry.methods() if row.pretraining], ids=lambda row: row.name)
def test_descriptors_are_complete(row):
    each = row.load("pretraining")
    assert isinstance(each, Pretraining) and set(each.image_encoders) <= {"vit", "resnet"} and each.image_encoders
    assert set(each.modalities) <= {"image", "text", "audio"} and each.views in ("one", "two")
    assert each.learning_rate > 0 and each.small_learning_rate > 0 and each.weight_decay >= 0


def test_loading_descriptors_imports_neither_torch_nor_transformers():
    program = (
        "from hf_clip_variants.training.pretraining_methods import pretraining_methods; pretraining_methods();"
        "import sys; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.split() == []


def test_descriptors_do_not_travel_with_models():
    """Only descriptors import descriptors or the module that defines them."""
    importing = []
    for file in MODELING.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2].startswith("pretraining"):
                importing.append(file.name)
    assert importing and all(name.startswith("pretraining_") for name in importing)


def test_pretraining_names_no_method():
    """A comparison with a method's name would have to be changed for a new method."""
    names = {*pretraining_methods(), *(row.name for row in registry.methods())}
    offenders = []
    for file in [*(ROOT / "hf_clip_variants" / "training").glob("*.py"), SCRIPTS / "pretrain.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            values = [part for each in compared for part in ast.walk(each) if isinstance(part, ast.Constant)]
            offenders += [f"{file.name}:{part.lineno}" for part in values if part.value in names]
            if isinstance(node, ast.ImportFrom):  # classes of one method
                module = (node.module or "").rpartition(".")[2]
                offenders += [f"{file.name}:{node.lineno}" for name in names if module.endswith(f"_{name}")]
    assert not offenders


def test_pretraining_works_without_any_one_method(tmp_path):
    """In copies of the tree; in forks of one process, which has imported the libraries."""
    for gone in ("slip", "audioclip"):
        shutil.copytree(ROOT / "hf_clip_variants", tmp_path / gone / "hf_clip_variants")
        modeling = shutil.copytree(MODELING, tmp_path / gone / "hf_clip_variants" / "modeling")
        shutil.rmtree(modeling / gone)
    program = """
import os, sys, datasets, peft
from transformers import CLIPModel, CLIPProcessor, Trainer
gone = "slip" if os.fork() else "audioclip"
sys.path.insert(0, os.path.abspath(gone))
# An editable install's finder would find what is gone.
sys.meta_path = [each for each in sys.meta_path if "Editable" not in getattr(each, "__name__", "")]
import torch
from hf_clip_variants import registry
assert registry.__file__.startswith(sys.path[0])
registry._METHODS = tuple(row for row in registry._METHODS if row.name != gone)
from hf_clip_variants.training import pretrain_trainer, pretraining_data
from hf_clip_variants.training.architectures import fitting_architectures, new_model
from hf_clip_variants.training.pretraining_methods import pretraining_methods
with open(gone + ".txt", "w") as found, torch.device("meta"):
    for name in pretraining_methods():
        fitting = fitting_architectures(name)
        architecture = "RN-mini" if "RN-mini" in fitting else fitting[0]
        print(name, type(new_model(name, architecture)[0]).__name__, file=found)
if gone == "slip":
    sys.exit(os.wait()[1])
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    models = {"clip": "CLIPResNetModel", "slip": "SLIPForPreTraining", "audioclip": "AudioCLIPModel"}
    models["groupvit"] = "GroupViTModel"
    for gone in ("slip", "audioclip"):
        expected = [f"{name} {model}" for name, model in models.items() if name != gone]
        assert (tmp_path / f"{gone}.txt").read_text().splitlines() == expected


class ToyModel(CLIPModel):
    """CLIP with an additional loss, which shows that this model was trained."""

    __module__ = "hf_clip_variants.toy"  # the module of a method's model, whose loss is used unchanged

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return {"loss": outputs.loss, "toy_loss": outputs.loss.detach() * 2} if outputs.loss is not None else outputs


TOY = Pretraining(
    name="toy",
    image_encoders=("vit",),
    new_model=lambda fields, image_encoder, scale: ToyModel(CLIPConfig(**fields)),
    load_for_use=lambda folder: CLIPModel.from_pretrained(folder),
    learning_rate=1e-4,
    small_learning_rate=2e-4,
    weight_decay=0.05,
    max_grad_norm=0.5,
)


@pytest.fixture
def toy(monkeypatch):
    """A method with one descriptor and one row."""
    paper, code = registry.Paper("Toy", "2601.00001", 2026), registry.OfficialCode("somebody/toy", None)
    row = registry.Method(
        *("toy", "model", "Toy", paper, code, "zero-shot-image-classification", "A toy."),
        config="toy:ToyConfig",
        pretraining="toy:TOY",
    )
    module = types.ModuleType("hf_clip_variants.toy")
    module.TOY = TOY
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "_METHODS", (*registry._METHODS, row))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import pretrain

    threads = torch.get_num_threads()
    yield pretrain
    torch.set_num_threads(threads)
    sys.modules.pop("pretrain", None)


def test_new_method_needs_one_descriptor_and_one_row(toy, tmp_path, capsys):
    data = ["--data", str(FOLDER / "notov1.parquet"), "--text-columns", "name", "--augment", "icons"]
    options = ["--method", "toy", "--arch", "ViT-mini", "--image-size", "32", "--steps", "2", "--batch-size", "8"]
    evaluation = ["--eval", "emoji:fluent3d", "--workers", "0", "--log-every", "1", "--out", str(tmp_path / "run")]
    assert toy.main([*data, *options, *evaluation]) == 0, capsys.readouterr().err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [entry["toy_loss"] for entry in run["log"] if "toy_loss" in entry] == pytest.approx(
        [2 * entry["loss"] for entry in run["log"] if "toy_loss" in entry], rel=1e-3
    )
    used = {name: run["settings"][name] for name in ("lr", "weight_decay", "clip_norm")}
    assert used == {"lr": 2e-4, "weight_decay": 0.05, "clip_norm": 0.5}
    assert "eval_fluent3d_top1" in run["metrics"]
    assert type(AutoModel.from_pretrained(tmp_path / "run" / "model")) is CLIPModel
    assert (tmp_path / "run" / "pretraining" / "model.safetensors").is_file()

    with pytest.raises(ValueError, match="architecture: got 'RN-mini' for toy; want one of ViT-mini, "):
        new_model("toy", "RN-mini")
    assert fitting_architectures("toy")[0] == "ViT-mini"


def test_descriptor_decides_views_and_audio():
    from hf_clip_variants.data.augmentation.two_views import TwoViews
    from hf_clip_variants.data.pairs.batches import CropView
    from hf_clip_variants.training import pretraining_data as data

    with torch.device("meta"):
        _, processor = new_model("clip", "ViT-mini")
    images = processor.image_processor
    two = dataclasses.replace(TOY, views="two", extra_views=lambda config: ("second",))
    assert isinstance(data.published_transform(TOY, images), CropView)
    assert isinstance(data.published_transform(two, images).__self__, TwoViews)
    views = data.batched_views(two, None, images, "crops", seed=0).augmentations
    assert set(views) == {"pixel_values", "second"} and views["pixel_values"].flip == 0 < views["second"].flip
    assert set(data.batched_views(TOY, None, images, "icons", seed=0).augmentations) == {"pixel_values"}
    assert data.audio_reader(TOY, processor, 1.0, augmented=True) is None
    with_audio_input = dataclasses.replace(TOY, modalities=("image", "text", "audio"))
    with torch.device("meta"):
        _, with_audio = new_model("audioclip", "RN-mini")
    assert data.audio_reader(with_audio_input, with_audio, 1.0, augmented=True).length == 44_100
    with pytest.raises(ValueError, match="audio_column: cannot tell"):
        data.open_sources(with_audio_input, [str(Path(FOLDER) / "notov1.parquet")], text_columns=["name"])
