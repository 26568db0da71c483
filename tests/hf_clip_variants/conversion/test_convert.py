"""Official CLIP files become folders that the Auto classes load; hostile, broken and
foreign files become nothing at all.
"""

import json
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from crafted_pickles import Payload, hostile_files
from official_files import from_a_training, jit_archive, letters_tokenizer, plain
from parity_fixtures import assert_close, load_fixture
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

from hf_clip_variants import convert_checkpoint
from hf_clip_variants.conversion.checkpoint_reader import UnsafeCheckpointError


NAMES = {"clip": "clip_openai_ckpt_vit", "clip_resnet": "clip_openai_ckpt_rn"}
CLASSES = {"clip": "CLIPModel", "clip_resnet": "CLIPResNetModel"}


@pytest.fixture(scope="module", params=NAMES)
def openai(request):
    """Method and fixture."""
    return request.param, load_fixture(NAMES[request.param])


@pytest.fixture(scope="module")
def vit():
    return load_fixture(NAMES["clip"])


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Tokenizer folders by vocabulary size."""

    def folder(fixture):
        size = fixture.meta["hparams_expected"]["vocab_size"]
        place = tmp_path_factory.getbasetemp() / f"letters-{size}"
        return place if place.exists() else letters_tokenizer(size, place)

    return folder


def expected_file(fixture, path, **more):
    """Inputs and official outputs in one file, without what is not an output of the model."""
    outputs = {
        name: t
        for name, t in fixture.outputs.items()
        if name in ("image_features", "text_features", "logits_per_image", "logits_per_text")
    }
    save_file({**fixture.inputs, **outputs, **more}, path)
    return path


def assert_equals_the_official_code(folder, fixture):
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        output = model(pixel_values=fixture.inputs["image"], input_ids=fixture.inputs["text"])
        features = model.get_image_features(pixel_values=fixture.inputs["image"]).pooler_output
    assert_close(output.logits_per_image, fixture.outputs["logits_per_image"], "logits_per_image")
    assert_close(features, fixture.outputs["image_features"], "image_features")


def assert_nothing_was_written(tmp_path, *files):
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)


# ------------------------------------------------------------------------------------------------ OpenAI, open_clip

LAYOUTS = {
    "archive": jit_archive,
    "plain": plain,
    "legacy": lambda weights, path: plain(weights, path, zipped=False),
    "training": from_a_training,
    "safetensors": lambda weights, path: save_file(weights, path) or path,
    "open_clip": lambda weights, path: plain(
        {("" if name.startswith(("visual.", "logit")) else "text.") + name: t.float() for name, t in weights.items()},
        path,
    ),
    "float16": lambda weights, path: plain(
        {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}, path
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_official_outputs(openai, letters, tmp_path, layout):
    method, fixture = openai
    file = LAYOUTS[layout](fixture.state_dict, tmp_path / "model.pt")
    result = convert_checkpoint(file, tmp_path / "out", tokenizer=letters(fixture))
    assert (result.method, result.kind, result.dtype) == (method, CLASSES[method], "float32")
    if layout != "float16":  # the fixture is of both precisions, this one is rounded
        assert_equals_the_official_code(tmp_path / "out", fixture)
    strays = {"input_resolution", "context_length", "vocab_size"}
    strays = {f"text.{name}" for name in strays} if layout == "open_clip" else strays
    around = {"epoch", "args", "optimizer", "argparse.Namespace"} if layout == "training" else set()
    assert sorted(result.dropped) == sorted(strays | around), "each once"


def test_every_size_is_inferred(openai, letters, tmp_path):
    method, fixture = openai
    file = plain(fixture.state_dict, tmp_path / "model.pt")
    result = convert_checkpoint(file, tmp_path / "out", tokenizer=letters(fixture))
    wanted, sizes = fixture.meta["hparams_expected"], result.sizes
    found = {
        "embed_dim": sizes["projection_dim"],
        "image_resolution": sizes["vision.image_size"],
        "vision_layers": sizes["vision.depths" if method == "clip_resnet" else "vision.num_hidden_layers"],
        "vision_patch_size": sizes.get("vision.patch_size"),
        "context_length": sizes["text.max_position_embeddings"],
        "vocab_size": sizes["text.vocab_size"],
        "transformer_width": sizes["text.hidden_size"],
        "transformer_heads": sizes["text.num_attention_heads"],
        "transformer_layers": sizes["text.num_hidden_layers"],
    }
    assert found == {name: wanted[name] for name in found}
    strays = ("input_resolution", "context_length", "vocab_size")
    weights = {
        n: t
        for n, t in fixture.state_dict.items()
        if n not in strays and "num_batches_tracked" not in n and "running_" not in n
    }
    assert result.parameters == sum(t.numel() for t in weights.values())
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in written.values() if t.is_floating_point()} == {torch.float32}


def test_auto_classes_load_the_folder_in_a_fresh_process(openai, letters, tmp_path):
    method, fixture = openai
    convert_checkpoint(plain(fixture.state_dict, tmp_path / "m.pt"), tmp_path / "out", tokenizer=letters(fixture))
    size, length = (fixture.meta["hparams_expected"][name] for name in ("image_resolution", "context_length"))
    program = f"""
import sys
{"import hf_clip_variants" if method == "clip_resnet" else ""}
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer
folder = {str(tmp_path / "out")!r}
model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
options = {{"padding": True, "truncation": True, "return_tensors": "pt"}}
inputs = processor(text=["a cat", "dog " * 30], images=Image.new("RGB", (90, 50)), **options)
assert inputs["pixel_values"].shape == (1, 3, {size}, {size}) and inputs["input_ids"].shape == (2, {length})
assert model(**inputs).logits_per_image.shape == (1, 2)
assert AutoTokenizer.from_pretrained(folder).model_max_length == {length}
assert AutoImageProcessor.from_pretrained(folder).crop_size["height"] == {size}
print(type(model).__name__, "hf_clip_variants" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.split() == [CLASSES[method], str(method == "clip_resnet")], done.stderr


def test_preprocessing_equals_openais(vit, letters, tmp_path):
    convert_checkpoint(plain(vit.state_dict, tmp_path / "m.pt"), tmp_path / "out", tokenizer=letters(vit))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"shortest_edge": vit.meta["hparams_expected"]["image_resolution"]}
    assert processor.do_center_crop and processor.resample == 3
    assert [round(v, 4) for v in processor.image_mean] == [0.4815, 0.4578, 0.4082]
    assert [round(v, 4) for v in processor.image_std] == [0.2686, 0.2613, 0.2758]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept(openai, letters, tmp_path, dtype):
    method, fixture = openai
    file = plain(fixture.state_dict, tmp_path / "m.pt")
    result = convert_checkpoint(file, tmp_path / "out", tokenizer=letters(fixture), dtype=dtype, compare=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(t.dtype) for t in written.values() if t.is_floating_point()} == {f"torch.{dtype}"}
    assert str(AutoModel.from_pretrained(tmp_path / "out").dtype) == f"torch.{dtype}"
    assert result.dtype == dtype and result.difference < 1e-2


def test_weights_too_large_for_float16_are_refused(vit, letters, tmp_path):
    weights = vit.state_dict | {"positional_embedding": vit.state_dict["positional_embedding"] + 1e5}
    file = plain(weights, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"dtype: 1 weights are too large for float16: .*position_embedding"):
        convert_checkpoint(file, tmp_path / "out", tokenizer=letters(vit), dtype="float16")
    assert_nothing_was_written(tmp_path, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to(torch.int8), "1 weights are int8, the first is ln_final.bias; want floating-point"),
        (lambda tensor: tensor.to(torch.complex64), "1 weights are complex64"),
        (lambda tensor: tensor > 0, "1 weights are bool"),
    ],
)
def test_weights_that_are_no_real_numbers_are_refused(change, message, vit, letters, tmp_path):
    weights = vit.state_dict | {"ln_final.bias": change(vit.state_dict["ln_final.bias"])}
    file = plain(weights, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=message) as caught:
        convert_checkpoint(file, tmp_path / "out", tokenizer=letters(vit))
    assert str(file) in str(caught.value)
    assert_nothing_was_written(tmp_path, file)


# ---- what no weights tell: open_clip


def open_clip_folder(fixture, folder, **changes):
    """As on the Hub: weights and configuration."""
    folder.mkdir()
    strays = ("input_resolution", "context_length", "vocab_size")
    weights = {name: t.float() for name, t in fixture.state_dict.items() if name not in strays}
    save_file(weights, folder / "open_clip_model.safetensors")
    wanted = fixture.meta["hparams_expected"]
    values = {
        "model_cfg": {
            "embed_dim": wanted["embed_dim"],
            "vision_cfg": {"width": wanted["vision_width"], "layers": wanted["vision_layers"], "head_width": 32}
            | changes.get("vision_cfg", {}),
            "text_cfg": {"width": wanted["transformer_width"], "heads": 4} | changes.get("text_cfg", {}),
        }
        | changes.get("model_cfg", {}),
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bilinear",
            "resize_mode": "squash",
        }
        | changes.get("preprocess_cfg", {}),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    return folder / "open_clip_model.safetensors"


def test_open_clips_configuration_gives_what_the_weights_do_not_show(openai, letters, tmp_path):
    method, fixture = openai
    file = open_clip_folder(fixture, tmp_path / "hub")
    result = convert_checkpoint(file, tmp_path / "out", tokenizer=letters(fixture))
    wanted = fixture.meta["hparams_expected"]
    width = wanted["vision_width"] * (32 if method == "clip_resnet" else 1)
    assert result.sizes["text.hidden_act"] == "gelu" and result.sizes["text.num_attention_heads"] == 4
    assert result.sizes["vision.num_attention_heads"] == width // 32
    processor, size = AutoImageProcessor.from_pretrained(tmp_path / "out"), wanted["image_resolution"]
    assert dict(processor.size) == {"height": size, "width": size} and not processor.do_center_crop
    assert processor.resample == 2 and list(processor.image_mean) == [0.5] * 3
    assert len(result.sources) == 2 and "open_clip_config.json" in result.notes[0]

    (tmp_path / "hub" / "open_clip_config.json").rename(tmp_path / "config.json")
    named = convert_checkpoint(
        file, tmp_path / "named", tokenizer=letters(fixture), open_clip_config=tmp_path / "config.json", text_heads=2
    )
    assert named.sizes == result.sizes | {"text.num_attention_heads": 2}, "what is said on the line wins"
    silent = convert_checkpoint(file, tmp_path / "silent", tokenizer=letters(fixture))
    assert silent.sizes["text.hidden_act"] == "quick_gelu" and "--activation gelu" in silent.notes[0]
    told = convert_checkpoint(file, tmp_path / "told", tokenizer=letters(fixture), activation="gelu")
    assert told.sizes["text.hidden_act"] == "gelu" and len(told.notes) == 1
    assert all("from the class token" in n[-1] and "--open-clip-config" in n[-1] for n in (silent.notes, told.notes))


def test_openais_own_files_give_no_note_about_the_activation(vit, letters, tmp_path):
    result = convert_checkpoint(
        jit_archive(vit.state_dict, tmp_path / "m.pt"), tmp_path / "out", tokenizer=letters(vit)
    )
    assert result.sizes["text.hidden_act"] == "quick_gelu" and not result.notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg.pool_type is 'avg'"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg.no_causal_mask is True"),
        ({"text_cfg": {"heads": "many"}}, "text_cfg.heads is 'many'"),
        ({"preprocess_cfg": {"resize_mode": "longest"}}, "resize_mode is 'longest'"),
        ({"preprocess_cfg": {"interpolation": "random"}}, "interpolation is 'random'"),
        ({"model_cfg": {"vision_cfg": None}}, "not an open_clip configuration"),
    ],
)
def test_a_configuration_that_clip_does_not_compute_is_refused(vit, letters, tmp_path, changes, message):
    file = open_clip_folder(vit, tmp_path / "hub", **changes)
    with pytest.raises((ValueError, OSError), match=message):
        convert_checkpoint(file, tmp_path / "out", tokenizer=letters(vit))
    assert_nothing_was_written(tmp_path, file.parent)


def test_converted_models_of_open_clip_give_its_outputs(openai, letters, tmp_path):
    """Its own code computes what is expected: GELU, heads of another width, the temperature as one element,
    `text.` before names.
    """
    open_clip = pytest.importorskip("open_clip")
    method, fixture = openai
    wanted = fixture.meta["hparams_expected"]
    vision = {
        "image_size": wanted["image_resolution"],
        "layers": wanted["vision_layers"],
        "width": wanted["vision_width"],
        "patch_size": wanted["vision_patch_size"],
        "head_width": 32,
    }
    text = {
        "context_length": wanted["context_length"],
        "vocab_size": wanted["vocab_size"],
        "width": wanted["transformer_width"],
        "heads": 4,
        "layers": wanted["transformer_layers"],
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(wanted["embed_dim"], vision, text).eval()
    pixels, ids = fixture.inputs["image"], fixture.inputs["text"]
    with torch.no_grad():
        images, texts = model.encode_image(pixels), model.encode_text(ids)
    folder = tmp_path / "hub"
    folder.mkdir()
    weights = {name: t.reshape(1) if name == "logit_scale" else t for name, t in model.state_dict().items()}
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": {"embed_dim": wanted["embed_dim"], "vision_cfg": vision, "text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    outputs = {"image_features": images, "text_features": texts}
    save_file({"image": pixels, "text": ids, **outputs}, tmp_path / "expected.safetensors")
    file = folder / "open_clip_pytorch_model.bin"
    result = convert_checkpoint(
        file, tmp_path / "out", tokenizer=letters(fixture), expected=tmp_path / "expected.safetensors"
    )
    assert result.method == method and set(result.expected_differences) == set(outputs)


# ------------------------------------------------------------------------------------------------------ Chinese-CLIP


@pytest.fixture(scope="module")
def chinese():
    return load_fixture("chinese_clip")


def chinese_heads(fixture):
    hyper = fixture.meta["hyper"]
    return {"text_heads": hyper["text_heads"], "vision_heads": hyper["vision_width"] // hyper["vision_head_width"]}


def chinese_vocabulary(fixture, path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"猫的照片一张图海滩上两只狗"]
    tokens += [f"[unused{i}]" for i in range(fixture.meta["hyper"]["vocab"] - len(tokens))]
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


def test_chinese_clip_is_converted_with_its_vocabulary(chinese, tmp_path):
    file = from_a_training(chinese.state_dict, tmp_path / "clip_cn.pt")
    ids = chinese.inputs["input_ids"]
    mask = (ids != chinese.meta["hyper"]["pad"]).long()
    expected = expected_file(chinese, tmp_path / "expected.safetensors", attention_mask=mask)
    vocabulary = chinese_vocabulary(chinese, tmp_path / "vocab.txt")
    options = {"tokenizer": vocabulary, **chinese_heads(chinese)}
    result = convert_checkpoint(file, tmp_path / "out", expected=expected, **options)
    assert result.method == "chinese_clip" and result.kind == "ChineseCLIPModel" and result.difference < 1e-5
    assert set(result.expected_differences) == {"image_features", "text_features", "logits_per_image"}
    processor, model = AutoProcessor.from_pretrained(tmp_path / "out"), AutoModel.from_pretrained(tmp_path / "out")
    image = torch.zeros(3, 90, 40, dtype=torch.uint8)
    inputs = processor(text=["猫的照片"], images=image, padding=True, return_tensors="pt")
    size = chinese.meta["hyper"]["image_resolution"]
    assert inputs["pixel_values"].shape == (1, 3, size, size), "squashed, not cropped"
    assert inputs["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3]] and model(**inputs).logits_per_image.shape == (1, 1)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == min(
        52, chinese.meta["hyper"]["max_position"]
    )
    assert convert_checkpoint(file, tmp_path / "again", compare=True, **options).difference < 1e-5


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(openai, chinese, letters, tmp_path):
    _, fixture = openai
    file, size = plain(fixture.state_dict, tmp_path / "m.pt"), fixture.meta["hparams_expected"]["vocab_size"]
    with pytest.raises(ValueError, match=rf"tokenizer: the official one has 49408 tokens.* wants {size} and"):
        convert_checkpoint(file, tmp_path / "out")
    other = letters_tokenizer(size + 1, tmp_path / "other")
    with pytest.raises(ValueError, match=r"tokenizer: .*other has .*--tokenizer"):
        convert_checkpoint(file, tmp_path / "out", tokenizer=other)
    with pytest.raises(OSError, match="nowhere"):
        convert_checkpoint(file, tmp_path / "out", tokenizer=tmp_path / "nowhere")
    cn = plain(chinese.state_dict, tmp_path / "cn.pt")
    with pytest.raises(FileNotFoundError, match="tokenizer: .*vocab.txt does not exist"):
        convert_checkpoint(cn, tmp_path / "out", tokenizer=tmp_path / "vocab.txt", **chinese_heads(chinese))
    assert_nothing_was_written(tmp_path, file, other, cn)


def test_conversion_works_without_a_tokenizer(openai, tmp_path):
    _, fixture = openai
    file = plain(fixture.state_dict, tmp_path / "m.pt")
    result = convert_checkpoint(file, tmp_path / "out", tokenizer="none", compare=True)
    assert result.difference < 1e-2 and "without a tokenizer" in result.notes[-1]
    assert not list((tmp_path / "out").glob("*token*"))
    AutoImageProcessor.from_pretrained(tmp_path / "out")


def test_the_official_vocabulary_is_the_default(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    from hf_clip_variants.modeling.clip.convert_clip import to_official

    text = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 64}
    config = CLIPConfig(
        text_config=text, vision_config=text | {"image_size": 336, "patch_size": 112}, projection_dim=16
    )
    file = plain(to_official(CLIPModel(config).state_dict(), config), tmp_path / "m.pt")
    convert_checkpoint(file, tmp_path / "out", compare=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(
        text=["a photo of a cat"], images=torch.zeros(3, 400, 500, dtype=torch.uint8), return_tensors="pt"
    )
    assert inputs["input_ids"].tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407]]
    assert inputs["pixel_values"].shape == (1, 3, 336, 336) and processor.tokenizer.model_max_length == 77


# ------------------------------------------------------------------------------------------------------- comparing


def test_nothing_is_written_when_expected_outputs_differ(openai, letters, tmp_path):
    method, fixture = openai
    file = plain(fixture.state_dict, tmp_path / "m.pt")
    expected = expected_file(fixture, tmp_path / "expected.safetensors")
    result = convert_checkpoint(file, tmp_path / "out", tokenizer=letters(fixture), expected=expected)
    assert set(result.expected_differences) == {
        "image_features",
        "text_features",
        "logits_per_image",
        "logits_per_text",
    }
    assert 0 <= max(result.expected_differences.values()) < 1e-3 and result.difference < 1e-2

    heads = fixture.meta["hparams_expected"]["transformer_heads"]
    for change in ({"activation": "gelu"}, {"text_heads": 2 * heads}):
        with pytest.raises(ValueError, match="expected: .* differs by .*wrong options"):
            convert_checkpoint(file, tmp_path / "wrong", tokenizer=letters(fixture), expected=expected, **change)
    bad = {
        "no inputs": {name: fixture.outputs[name] for name in ("image_features",)},
        "no outputs": dict(fixture.inputs),
        "surprise": {**fixture.inputs, "surprise": torch.ones(1)},
        "do not give logits_per_image": {
            "image": fixture.inputs["image"],
            "logits_per_image": fixture.outputs["logits_per_image"],
        },
        "image_features has shape": {"image": fixture.inputs["image"], "image_features": torch.ones(1, 2)},
    }
    for message, tensors in bad.items():
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match=f"expected: .*{message}"):
            convert_checkpoint(
                file, tmp_path / "wrong", tokenizer=letters(fixture), expected=tmp_path / "bad.safetensors"
            )
    assert not (tmp_path / "wrong").exists() and not list(tmp_path.glob(".tmp*"))


def test_compare_reads_the_folder_back(vit, letters, tmp_path, monkeypatch):
    """A model that saves other weights than it has: --compare sees it, and nothing stays."""
    from transformers import CLIPModel

    save = CLIPModel.save_pretrained

    def save_wrongly(self, folder, **options):
        weights = {name: t + 0.1 if "visual_projection" in name else t for name, t in self.state_dict().items()}
        return save(self, folder, state_dict=weights, **options)

    monkeypatch.setattr(CLIPModel, "save_pretrained", save_wrongly)
    file = plain(vit.state_dict, tmp_path / "m.pt")
    with pytest.raises(RuntimeError, match="compare: 1 weights are not as they were written: .*visual_projection"):
        convert_checkpoint(file, tmp_path / "out", tokenizer=letters(vit), compare=True)
    assert_nothing_was_written(tmp_path, file)


# ------------------------------------------------------------------------------------------------ hostile and broken


def test_hostile_files_run_nothing_and_write_nothing(run, vit, letters, tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists(), "else this proves nothing"
    canary.unlink()
    files = hostile_files(vit.state_dict, tmp_path / "files", canary)
    assert len(files) == 7
    for file in files:
        for method in ((), ("--method", "clip"), ("--method", "tip_adapter", "--base", tmp_path)):
            code, out, err = (
                run("convert", file, tmp_path / "out", "--tokenizer", letters(vit), *method)
                if not method[2:]
                else run("convert", file, tmp_path / "out", *method)
            )
            assert (code, out, err.count("\n")) == (1, "", 1) and "refused" in err and file.name in err, (file, err)
    with pytest.raises(UnsafeCheckpointError):
        convert_checkpoint(files[0], tmp_path / "out")
    assert not canary.exists()
    assert_nothing_was_written(tmp_path, tmp_path / "files")


def test_code_in_an_archive_is_never_read(vit, letters, tmp_path):
    canary = tmp_path / "canary"
    archive = jit_archive(vit.state_dict, tmp_path / "model.pt")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(tmp_path / "doctored.pt", "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith(".py"):
                data = f"import os\nos.system('touch {canary}')\n".encode()
            elif entry.filename.endswith(("constants.pkl", ".debug_pkl")):
                data = pickle.dumps(Payload(canary), protocol=2)
            target.writestr(entry.filename, data)
    convert_checkpoint(tmp_path / "doctored.pt", tmp_path / "out", tokenizer=letters(vit))
    assert_equals_the_official_code(tmp_path / "out", vit)
    assert not canary.exists()


def test_truncated_files_are_named(run, vit, letters, tmp_path):
    whole = {
        layout: LAYOUTS[layout](vit.state_dict, tmp_path / "m.pt").read_bytes()
        for layout in ("plain", "legacy", "archive")
    }
    file = tmp_path / "m.pt"
    for data in whole.values():
        for cut in (0, 100, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:cut])
            code, out, err = run("convert", file, tmp_path / "out", "--tokenizer", letters(vit))
            assert (code, out) == (1, "") and "m.pt" in err, err
    code, _, err = run("convert", tmp_path / "nowhere.pt", tmp_path / "out")
    assert code == 1 and f"no such file {tmp_path / 'nowhere.pt'}" in err
    assert_nothing_was_written(tmp_path, file)


def test_missing_and_unexpected_names_are_counted(openai, letters, tmp_path):
    _, fixture = openai
    many = {f"visual.surprise.{i}": torch.ones(1) for i in range(7)}
    for weights, message in (
        (fixture.state_dict | many, r"7 unexpected: visual.surprise.0, .*visual.surprise.4, …$"),
        (
            {n: t for n, t in fixture.state_dict.items() if "ln_final" not in n},
            "2 missing: ln_final.weight, ln_final.bias$",
        ),
        (fixture.state_dict | {"ln_final.bias": torch.ones(3)}, r"1 of the wrong shape: ln_final.bias \(3,\)"),
        (
            fixture.state_dict | {"ln_final.bias": fixture.state_dict["ln_final.bias"] * torch.nan},
            "1 not finite: ln_final.bias",
        ),
        (fixture.state_dict | {"logit_bias": torch.ones(1)}, "logit_bias"),
    ):
        file = plain(weights, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(file, tmp_path / "out", tokenizer=letters(fixture))
    assert_nothing_was_written(tmp_path, file)


def test_files_of_unknown_and_other_methods_are_refused(vit, openai, tmp_path):
    method, fixture = openai
    file = plain({f"layer.{i}.weight": torch.ones(1) for i in range(9)}, tmp_path / "m.pt")
    with pytest.raises(
        ValueError, match=r"method: .*m.pt has names of no method known here: layer.0.weight, .*, … \(9 in all\)"
    ):
        convert_checkpoint(file, tmp_path / "out")
    plain({"vision_model.embeddings.class_embedding": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="transformers' own names"):
        convert_checkpoint(file, tmp_path / "out")
    plain(fixture.state_dict, file)
    for wrong in {"clip", "clip_resnet", "chinese_clip", "coop", "tip_adapter"} - {method}:
        options = {"base": "somewhere"} if wrong in ("coop", "tip_adapter") else {}
        with pytest.raises(
            ValueError, match=rf"method: '{wrong}' was asked for, but .*m.pt has the names of {method}:"
        ):
            convert_checkpoint(file, tmp_path / "out", wrong, **options)
    plain(fixture.state_dict | {"visual.\x1b[31mred": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"m.pt: 1 names that cannot be printed, the first is visual.\\x1b\[31mred"):
        convert_checkpoint(file, tmp_path / "out")
    with pytest.raises(
        ValueError, match="method: 'clips' has no converter, expected one of clip, chinese_clip, clip_resnet"
    ):
        convert_checkpoint(file, tmp_path / "out", "clips")
    assert_nothing_was_written(tmp_path, file)


def test_options_of_another_method_are_errors(vit, tmp_path):
    file = plain(vit.state_dict, tmp_path / "m.pt")
    for name, value in (
        ("base", "x"),
        ("class_names", ["a"]),
        ("ratio", 0.1),
        ("context_init", "a"),
        ("alpha", 1.0),
        ("class_token_position", "end"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: given, but it belongs to .*, and this is clip"):
            convert_checkpoint(file, tmp_path / "out", **{name: value})
    for name in ("dtype", "activation"):
        with pytest.raises(ValueError, match=f"{name}: 'int8', expected one of"):
            convert_checkpoint(file, tmp_path / "out", **{name: "int8"})
    with pytest.raises(TypeError, match=r"unknown options \['heads'\]"):
        convert_checkpoint(file, tmp_path / "out", heads=3)
    assert_nothing_was_written(tmp_path, file)


# ------------------------------------------------------------------------------------------------- the folder written


def test_an_existing_folder_is_replaced_only_with_overwrite(openai, letters, tmp_path):
    _, fixture = openai
    file = plain(fixture.state_dict, tmp_path / "m.pt")
    arguments, out = {"tokenizer": letters(fixture)}, tmp_path / "out"
    out.mkdir()
    convert_checkpoint(file, out, **arguments)  # an empty one is fine
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "notes.txt").write_text("mine")
    convert_checkpoint(file, out, **arguments)  # the same once more: an interrupted script is repeated
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before | {"notes.txt": b"mine"}

    with pytest.raises(
        FileExistsError, match=r"out: not empty, and what it holds is not this conversion of m.pt.*--overwrite"
    ):
        convert_checkpoint(file, out, **arguments, dtype="float16")
    changed = plain(fixture.state_dict | {"logit_scale": torch.tensor(1.0)}, tmp_path / "changed.pt")
    with pytest.raises(FileExistsError, match="not this conversion of changed.pt"):
        convert_checkpoint(changed, out, **arguments)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before | {"notes.txt": b"mine"}

    (out / "adapter_config.json").write_text("{}")
    convert_checkpoint(changed, out, overwrite=True, tokenizer="none")
    assert AutoModel.from_pretrained(out).logit_scale.item() == 1
    names = {path.name for path in out.iterdir()}
    assert "notes.txt" in names and not names & {"adapter_config.json", "tokenizer.json", "processor_config.json"}

    strangers = tmp_path / "strangers"
    strangers.mkdir()
    (strangers / "thesis.doc").write_text("mine")
    with pytest.raises(FileExistsError, match="strangers: not empty; choose another"):
        convert_checkpoint(tmp_path / "not even read.pt", strangers)
    with pytest.raises(NotADirectoryError, match="m.pt: expected a folder"):
        convert_checkpoint(file, file)


def test_a_failure_leaves_the_old_model(vit, letters, tmp_path, monkeypatch):
    file = plain(vit.state_dict, tmp_path / "m.pt")
    convert_checkpoint(file, tmp_path / "out", tokenizer=letters(vit))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    from hf_clip_variants.conversion import convert as conversion

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "check_reloaded", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(
            file, tmp_path / "out", tokenizer=letters(vit), compare=True, dtype="bfloat16", overwrite=True
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert not list(tmp_path.glob(".tmp*"))


# ------------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_a_summary(run, openai, letters, tmp_path):
    method, fixture = openai
    file = from_a_training(fixture.state_dict, tmp_path / "m.pt")
    code, out, err = run(
        "convert", file, tmp_path / "out", "--tokenizer", letters(fixture), "--compare", "--activation", "quick_gelu"
    )
    assert code == 0 and err == "", err
    assert (
        out.startswith(f"{CLASSES[method]}: ")
        and f"projection_dim: {fixture.meta['hparams_expected']['embed_dim']}" in out
    )
    dropped = next(line for line in out.splitlines() if line.startswith("Not needed: "))
    assert sorted(dropped.removeprefix("Not needed: ").split(", ")) == [
        "argparse.Namespace",
        "args",
        "context_length",
        "epoch",
        "input_resolution",
        "optimizer",
        "vocab_size",
    ]
    assert "Before and after saving: outputs differ by " in out

    code, out, err = run("convert", file, tmp_path / "out", "--tokenizer", letters(fixture), "--json", "--overwrite")
    values = json.loads(out)
    assert (
        code == 0
        and values["method"] == method
        and values["dtype"] == "float32"
        and list(values["sources"]) == [str(file)]
    )
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["sources"] == list(values["sources"].values()) and record["method"] == method
    assert str(tmp_path) not in json.dumps(record) and record["options"]["tokenizer"] == letters(fixture).name


def test_exit_codes_of_the_command(run, vit, letters, tmp_path, monkeypatch):
    file = plain(vit.state_dict, tmp_path / "m.pt")
    assert run("convert", file)[0] == 2 and run("convert", file, tmp_path / "out", "--dtype", "int8")[0] == 2
    code, out, err = run("convert", file, tmp_path / "out", "--method", "coop", "--base", tmp_path)
    assert (code, out) == (1, "") and err.startswith("Error: --method: 'coop' was asked for")

    from hf_clip_variants.conversion import convert as conversion

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_tokenizer", interrupt)
    code, out, err = run("convert", file, tmp_path / "out", "--tokenizer", letters(vit))
    assert (code, out) == (130, "") and "Traceback" not in err
    assert_nothing_was_written(tmp_path, file)
