"""The probes on images: which features are measured, which images, and what the two commands print."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
import torch
from few_shot_runs import CONCEPTS, save_images
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, save_tiny_family
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPModel,
    CLIPVisionModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_clip_variants import CLIPClassifier, embedded_model, load_images
from hf_clip_variants.data import emoji_styles
from hf_clip_variants.data.held_out import hold_out
from hf_clip_variants.evaluation.image_encoder import load_image_encoder, load_probe_images
from hf_clip_variants.evaluation.probes import knn_classify, linear_probe
from hf_clip_variants.metrics.classification import accuracy, mean_class_accuracy
from hf_clip_variants.modeling.dual_encoders.backbones import family_of


PIXELS = {"size": {"height": 24, "width": 24}, "do_convert_rgb": None}


@pytest.fixture
def broken_image_folder(images, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(images, folder)
    (folder / "train" / "cat" / "emojione.png").write_bytes(b"no image")
    (folder / "test" / "dog" / "notov1.png").write_bytes(b"")
    return folder


def write_numbered(file, labels):
    """Parquet with integer labels and no names, as pandas and pyarrow write it."""
    emoji = load_images("emoji:fluentflat")
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [emoji.encoded_bytes(i) for i in range(len(labels))], "label": labels}), file
    )
    return file


@pytest.fixture
def numbered(tmp_path):
    write_numbered(tmp_path / "test.parquet", [10, 5])
    return write_numbered(tmp_path / "ints.parquet", [3, 5, 10, 11] * 2)


def save_vit(folder, pooling: bool):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=8
    )
    model = ViTModel(config, add_pooling_layer=pooling)
    model.save_pretrained(folder)
    ViTImageProcessor(**PIXELS).save_pretrained(folder)
    return model.eval()


def encoded(encoder, images) -> torch.Tensor:
    return encoder.features_of(images, progress=False).features[0]


# ---------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("model_type", FAMILIES)
def test_projecting_the_encoders_features_gives_the_projected_ones(model_type, tmp_path):
    folder, images = save_tiny_family(model_type, tmp_path), load_images("emoji:notov1").select(range(3))
    before, projected = (encoded(load_image_encoder(folder, kind, "cpu"), images) for kind in ("encoder", "projected"))
    model, family = AutoModel.from_pretrained(folder).eval(), family_of(model_type)
    with torch.no_grad():
        if family.visual_projection is None:
            assert torch.equal(before, projected)
        else:
            assert not torch.equal(before, projected)
            torch.testing.assert_close(model.get_submodule(family.visual_projection)(before), projected)
        pixels = load_image_encoder(folder).processor(images=[images.image(2)], return_tensors="pt").pixel_values
        expected = family.image_features(model, pixels).pooler_output
    torch.testing.assert_close(projected[2:], expected, atol=1e-4, rtol=1e-4)


def test_a_classifiers_features_are_those_of_its_clip(clip, tmp_path):
    images = load_images("emoji:notov1").select(range(3))
    CLIPClassifier.from_pretrained(clip, class_names=["cat", "dog"]).save_pretrained(tmp_path)
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(clip / name, tmp_path)
    for kind in ("encoder", "projected"):
        theirs = encoded(load_image_encoder(clip, kind), images)
        assert torch.equal(encoded(load_image_encoder(tmp_path, kind), images), theirs)


def test_image_models_use_their_own_pooling(clip, tmp_path):
    images = load_images("emoji:notov1").select(range(2))
    vit = save_vit(tmp_path / "vit", pooling=True)
    encoder = load_image_encoder(tmp_path / "vit")
    pixels = torch.stack(
        [encoder.processor(images=images.image(i), return_tensors="pt").pixel_values[0] for i in (0, 1)]
    )
    assert pixels.shape == (2, 3, 24, 24), "alpha is composited, whatever the processor's own setting"
    with torch.no_grad():
        torch.testing.assert_close(encoded(encoder, images), vit(pixels).pooler_output)
    assert encoder.pooling == "own"

    CLIPVisionModel.from_pretrained(clip).save_pretrained(tmp_path / "vision")
    shutil.copy(clip / "processor_config.json", tmp_path / "vision")
    torch.testing.assert_close(
        encoded(load_image_encoder(tmp_path / "vision"), images), encoded(load_image_encoder(clip), images)
    )


def test_a_checkpoint_without_pooling_weights_gives_the_class_token(tmp_path):
    images = load_images("emoji:notov1").select(range(2))
    vit = save_vit(tmp_path, pooling=False)
    first, second = (load_image_encoder(tmp_path) for _ in range(2))
    assert torch.equal(encoded(first, images), encoded(second, images)) and first.pooling == "class token"
    pixels = first.processor(images=[images.image(0)], return_tensors="pt").pixel_values
    with torch.no_grad():
        torch.testing.assert_close(encoded(first, images)[:1], vit(pixels).last_hidden_state[:, 0])


def test_unsuitable_models_are_refused(tmp_path):
    save_vit(tmp_path / "vit", pooling=True)
    with pytest.raises(ValueError, match="features: 'projected' of a ViTModel.*want 'encoder'"):
        load_image_encoder(tmp_path / "vit", "projected")
    with pytest.raises(ValueError, match="features: got 'pooled'; want 'encoder' or 'projected'"):
        load_image_encoder(tmp_path / "vit", "pooled")
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "vit" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"not a whole ViTModel checkpoint, 1 weights are missing: \['layernorm.weight'"
    ):
        load_image_encoder(tmp_path / "vit")
    text = BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=50)
    BertModel(text).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="model: BertModel takes input_ids, not images"):
        load_image_encoder(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="no config.json there"):
        load_image_encoder(tmp_path / "empty")


def test_cached_features_are_read_for_the_same_model_and_kind_only(clip, tmp_path):
    images = load_images("emoji:notov1").select(range(4))
    encoder = load_image_encoder(clip)
    features = encoder.features_of(images, cache_dir=tmp_path, progress=False).features

    def fail(pixels):
        raise AssertionError("the encoder ran")

    again = replace(load_image_encoder(clip), encode=fail)
    assert torch.equal(again.features_of(images, cache_dir=tmp_path, progress=False).features, features)
    for other in (load_image_encoder(clip, "projected"), load_image_encoder(clip, dtype=torch.bfloat16)):
        with pytest.raises(AssertionError, match="the encoder ran"):
            replace(other, encode=fail).features_of(images, cache_dir=tmp_path, progress=False)


def test_a_half_precision_model_gives_float32_features(clip):
    images = load_images("emoji:notov1").select(range(4))
    full, half = (encoded(load_image_encoder(clip, dtype=dtype), images) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.999


# ---------------------------------------------------------------------------------------------------------- images


def test_classes_are_matched_by_name(images, tmp_path):
    table = tmp_path / "test.csv"
    rows = [f"{images / 'test' / name / 'notov1.png'},{name}" for name in ("owl", "banana", "cat")]
    table.write_text("path,label\n" + "\n".join(rows) + "\n")
    train, test = load_probe_images(str(images), str(table))
    assert train.class_names == test.class_names == tuple(sorted(CONCEPTS)) and train.split == "train"
    assert [test.class_names[label] for label in test.labels] == ["owl", "banana", "cat"]


def test_splits_are_found_by_default_and_can_be_named(images):
    train, test = load_probe_images(str(images))
    assert (train.split, test.split, len(train), len(test)) == ("train", "test", 12, 12)
    train, test = load_probe_images(str(images), train_split="test", test_split="train")
    assert (train.split, test.split) == ("test", "train")
    _, test = load_probe_images("emoji:fluent3d", "emoji:notov1")
    assert test.split is None and len(test) == 190


def test_training_images_as_test_images_bring_a_warning(images, caplog):
    for test, split in (("emoji:notov1", None), (str(images), "train"), (None, "train")):
        train = "emoji:notov1" if test == "emoji:notov1" else str(images)
        caplog.clear()
        learned, tested = load_probe_images(train, test, test_split=split)
        assert learned.ids == tested.ids
        assert "the test images are the training images" in caplog.text


def test_unsuitable_test_images_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match="test: emoji:notov1 has one image a class.*name images to test on"):
        load_probe_images("emoji:notov1")
    with pytest.raises(ValueError, match="1 of 6 classes are not among the 5 trained ones: 'cat'"):
        some = tmp_path / "some"
        shutil.copytree(images / "train", some)
        shutil.rmtree(some / "cat")
        load_probe_images(str(some), str(images))
    both = tmp_path / "both"
    shutil.copytree(images, both)
    shutil.rmtree(both / "train" / "dog")
    with pytest.raises(ValueError, match="test: .*both has images of classes without any training image: 'dog'"):
        load_probe_images(str(both))
    shutil.rmtree(both / "test" / "dog")
    shutil.rmtree(both / "test" / "cat")
    _, test = load_probe_images(str(both))
    assert set(test.labels) == {test.class_names.index(name) for name in ("banana", "owl", "pizza", "rose")}


def test_without_a_test_split_a_share_is_held_out(images, tmp_path):
    folder = save_images(tmp_path, {"": emoji_styles()})
    train, test = load_probe_images(str(folder))
    assert (len(train), len(test), train.split, test.split) == (18, 6, None, "held-out")
    assert sorted(test.labels) == list(range(6)) and set(train.ids) | set(test.ids) == set(load_images(folder).ids)
    rows = hold_out(load_images(folder).labels, load_images(folder).ids)
    assert train.ids == tuple(load_images(folder).ids[row] for row in rows[0]), "the same images as elsewhere"
    (folder / "cat" / "0.png").write_bytes(b"")
    train, test = load_probe_images(str(folder))
    assert [name for name, _ in (*train.skipped, *test.skipped)] == ["cat/0.png"]
    shutil.copytree(images / "train", tmp_path / "splits" / "train")
    shutil.copytree(images / "test", tmp_path / "splits" / "val")
    assert load_probe_images(str(tmp_path / "splits"))[1].split == "held-out"
    assert load_probe_images(str(tmp_path / "splits"), test_split="val")[1].split == "validation"


def test_integer_labels_without_names_are_named_by_their_numbers(numbered, tmp_path):
    train, test = load_probe_images(str(numbered), str(numbered.with_name("test.parquet")))
    assert train.class_names == test.class_names == ("3", "5", "10", "11")
    assert [test.class_names[label] for label in test.labels] == ["10", "5"]
    named = load_probe_images(str(numbered), reading={"class_names": {3: "a", 5: "b", 10: "c", 11: "d"}})
    assert named[0].class_names == tuple("abcd")
    unseen = numbered.with_name("unseen.parquet")
    write_numbered(unseen, [3, 7])
    with pytest.raises(ValueError, match=r"label of images\[1\].*got 7.*want one of 3, 5, 10, 11"):
        load_probe_images(str(numbered), str(unseen))


def test_unreadable_images_are_left_out_and_listed(broken_image_folder):
    train, test = load_probe_images(str(broken_image_folder))
    assert (len(train), len(test)) == (11, 11)
    assert [name for name, _ in train.skipped] == ["cat/emojione.png"] and test.skipped[0][0] == "dog/notov1.png"


# ---------------------------------------------------------------------------------------------------------- commands


def test_linear_probe_prints_what_the_function_finds(run, images, tmp_path):
    arguments = ["linear-probe", embedded_model(), "--train", images, "--out", tmp_path / "out" / "result.json"]
    code, out, err = run(*arguments, "--json", "--seed", 2, "--hold-out", 0.5)
    result = json.loads(out)
    assert code == 0 and json.loads((tmp_path / "out" / "result.json").read_text()) == result
    train, test = load_probe_images(str(images))
    encoder = load_image_encoder(embedded_model())
    x, y = encoded(encoder, train), encoded(encoder, test)
    found = linear_probe(x, torch.from_numpy(train.labels.copy()), y, seed=2, held_out=0.5)
    labels = torch.from_numpy(test.labels.copy())
    assert result["accuracy"] == accuracy(found.predicted, labels) > 0.6
    assert result["mean_per_class"] == mean_class_accuracy(found.predicted, labels, 6)
    assert (result["strength"], result["converged"], result["iterations"]) == (found.strength, True, found.iterations)
    assert result["held_out"] == 6
    assert [(row["strength"], row["accuracy"]) for row in result["searched"]] == list(found.validation.items())
    assert list(result["per_class"]) == sorted(CONCEPTS) and (result["features"], result["width"]) == ("encoder", 192)
    assert (result["data"], result["split"], result["images"], result["classes"]) == (str(images), "test", 12, 6)
    assert result["train"] == {"data": str(images), "split": "train", "images": 12, "unreadable": []}

    code, out, _ = run(*arguments[:4], "--features", "projected", "--strength", 3)
    assert code == 0 and "of 12 images in 6 classes" in out and "projected features of width 256" in out
    assert "L2 strength 3 (given)" in out and "Mean over classes" in out and "12 training images" in out


def test_knn_prints_what_the_function_finds(run, images):
    arguments = ["knn", embedded_model(), "--train", images]
    code, out, _ = run(*arguments, "--k", 3, "--temperature", 0.5, "--features", "projected", "--json")
    result = json.loads(out)
    train, test = load_probe_images(str(images))
    encoder = load_image_encoder(embedded_model(), "projected")
    labels = torch.from_numpy(train.labels.copy())
    predicted = knn_classify(encoded(encoder, train), labels, encoded(encoder, test), k=3, temperature=0.5)
    assert code == 0 and result["accuracy"] == accuracy(predicted, torch.from_numpy(test.labels.copy())) > 0.6
    assert (result["k"], result["temperature"], result["features"]) == (3, 0.5, "projected")
    code, out, _ = run(*arguments, "-k", 1)
    assert code == 0 and "1 neighbours, temperature 0.07" in out and "encoder features of width 192" in out
    code, out, err = run(*arguments)
    assert (code, out) == (1, "") and err.startswith("Error: --k: got 20; want 1..12")


@pytest.mark.parametrize("command", ["linear-probe", "knn"])
def test_unreadable_images_are_named_once_and_exit_1(run, clip, broken_image_folder, command, caplog):
    options = ["--strength", 1] if command == "linear-probe" else ["--k", 5]
    code, out, err = run(command, clip, "--train", broken_image_folder, *options, "--json")
    result = json.loads(out)
    assert code == 1 and result["images"] == result["train"]["images"] == 11
    assert result["unreadable"] == ["dog/notov1.png"] and result["train"]["unreadable"] == ["cat/emojione.png"]
    told = caplog.text + err
    assert "2 images could not be read" in err
    assert (
        told.count("'dog/notov1.png': the file is empty") == told.count("'cat/emojione.png': not an image file") == 1
    )


@pytest.mark.parametrize("command", ["linear-probe", "knn"])
def test_a_plain_folder_is_enough(run, clip, tmp_path, command):
    folder = save_images(tmp_path, {"": emoji_styles()})
    options = ["--strength", 1] if command == "linear-probe" else ["--k", 1]
    code, out, err = run(command, clip, "--train", folder, *options, "--json")
    result = json.loads(out)
    assert code == 0 and (result["split"], result["images"], result["train"]["images"]) == ("held-out", 6, 18)
    assert f"{folder}: no test split, so 6 of 24 images are held out to test on, 20% of each class." in err


@pytest.mark.parametrize("command", ["linear-probe", "knn"])
def test_integer_labels_need_no_names_and_can_have_them(run, clip, numbered, command):
    options = ["--strength", 1] if command == "linear-probe" else ["--k", 1]
    code, out, _ = run(command, clip, "--train", numbered, *options, "--json")
    assert code == 0 and list(json.loads(out)["per_class"]) == ["3", "5", "10", "11"]
    names = numbered.with_name("names.json")
    names.write_text('{"10": "ten", "11": "eleven", "3": "three", "5": "five"}')
    code, out, _ = run(command, clip, "--train", numbered, *options, "--class-names", names, "--json")
    assert code == 0 and list(json.loads(out)["per_class"]) == ["three", "five", "ten", "eleven"]


def test_a_probe_that_did_not_converge_says_so(run, clip, images):
    arguments = ["linear-probe", clip, "--train", images, "--strength", 1e-6, "--max-iterations", 1]
    code, out, err = run(*arguments, "--json")
    assert code == 0 and json.loads(out)["converged"] is False
    assert "L-BFGS did not converge in 1 iterations; raise --max-iterations" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["knn", "CLIP", "--train", "emoji:notov1"], "--test"),
        (["knn", "CLIP", "--train", "nowhere/at/all"], "nowhere/at/all"),
        (["knn", "EMPTY", "--train", "IMAGES", "--k", "1"], "config.json"),
        (["knn", "CLIP", "--train", "IMAGES", "--k", "1", "--out", "EMPTY"], "is a folder; want a file"),
        (["linear-probe", "CLIP", "--train", "IMAGES", "--strength", "0"], "strength: got 0"),
        (["knn", "CLIP", "--train", "IMAGES", "--k", "13"], "k: got 13; want 1..12"),
        (["knn", "CLIP", "--train", "IMAGES", "--k", "1", "--temperature", "0"], "temperature: got 0"),
        (["linear-probe", "CLIP", "--train", "IMAGES", "--hold-out", "1"], "--hold-out: got 1"),
        (["linear-probe", "CLIP", "--train", "emoji:notov1", "--test", "emoji:fluent3d"], "no class has two training"),
        (
            ["linear-probe", "CLIP", "--train", "IMAGES", "--label-column", "x", "--test-split", "dev"],
            "split: got 'dev'",
        ),
    ],
)
def test_errors_are_one_line(run, clip, images, tmp_path, arguments, words):
    names = {"CLIP": clip, "EMPTY": tmp_path, "IMAGES": images}
    code, out, err = run(*(names.get(argument, argument) for argument in arguments))
    assert (code, out) == (1, "") and err.startswith("Error: ") and words in err and err.count("\n") == 1, (
        "before any progress: nothing was encoded"
    )


def test_without_scikit_learn_only_knn_runs(run, clip, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, _, err = run("linear-probe", clip, "--train", images)
    assert code == 1 and err == 'Error: linear-probe needs sklearn: pip install "hf-clip-variants[probe]"\n'
    assert run("knn", clip, "--train", images, "--k", 1)[0] == 0


@pytest.mark.parametrize("command", ["linear-probe", "knn"])
def test_help_names_the_extra_and_imports_nothing_heavy(command):
    program = (
        f"import sys\nfrom hf_clip_variants.cli import main\ntry:\n    main(['{command}', '--help'])\nexcept "
        f"SystemExit: pass\n"
        "print([n for n in ('torch', 'transformers', 'sklearn', 'scipy', 'numpy', 'datasets') if n in sys.modules], "
        "file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == "[]\n" and "--train" in done.stdout and "--features" in done.stdout
    assert ('"hf-clip-variants[probe]"' in " ".join(done.stdout.split())) == (command == "linear-probe")


def test_importing_the_probes_does_not_import_scikit_learn():
    program = (
        "import sys; sys.modules['sklearn'] = None; "  # importing it would fail
        "import hf_clip_variants.evaluation.probes, hf_clip_variants.evaluation.image_encoder"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------------------------------- the effect


def test_a_trained_image_encoder_beats_a_random_one_of_its_size(tmp_path):
    """88 classes with two images each, tested on the style of another designer: chance is 1.1 %."""
    shutil.copytree(embedded_model(), tmp_path / "random")
    trained = CLIPModel.from_pretrained(embedded_model(), dtype=torch.float32)
    torch.manual_seed(0)
    CLIPModel(trained.config).save_pretrained(tmp_path / "random")
    train, test = load_probe_images("emoji:fluentflat,emojione@food-drink", "emoji:notov1@food-drink")
    labels, truth = torch.from_numpy(train.labels.copy()), torch.from_numpy(test.labels.copy())
    found = {}
    for name, folder in (("trained", embedded_model()), ("random", tmp_path / "random")):
        encoder = load_image_encoder(folder)
        x, y = encoded(encoder, train), encoded(encoder, test)
        found[name, "linear"] = accuracy(linear_probe(x, labels, y).predicted, truth)
        found[name, "knn"] = accuracy(knn_classify(x, labels, y), truth)
    print(found)
    for probe in ("linear", "knn"):
        assert found["trained", probe] > found["random", probe] + 0.2, found
