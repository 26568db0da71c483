"""Sharing: export with code, cards, push and pull over a Hub on loopback, and what happens when it fails."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from fake_hub import hub_in_this_process
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants.hub.export import export_with_code
from hf_clip_variants.hub.model_cards import PLACEHOLDER_ID, accuracy_result, card_arguments, model_card
from hf_clip_variants.hub.push import PushError, push


pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A plain CLIP checkpoint with its processor, as on the Hub."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    folder = tmp_path_factory.mktemp("base") / "clip"
    tiny_clip().save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    CLIPProcessor(images, tiny_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def classifier(clip_folder):
    from hf_clip_variants import CLIPClassifier

    return CLIPClassifier.from_pretrained(clip_folder, class_names=CLASS_NAMES).eval()


@pytest.fixture(scope="module")
def processor(clip_folder):
    from hf_clip_variants import CLIPClassifierProcessor

    return CLIPClassifierProcessor.from_pretrained(clip_folder)


@pytest.fixture
def hub(tmp_path):
    with hub_in_this_process(tmp_path / "home") as hub:
        yield hub


def logits_of(model):
    with torch.inference_mode():
        return model.eval()(pixel_values=tiny_pixels()).logits


def snippet_of(readme: str) -> str:
    return re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]


# ---- code


def test_saving_what_was_loaded_from_an_export_drops_its_auto_map(tmp_path, classifier, processor):
    from transformers import AutoModelForImageClassification, AutoProcessor

    folder = export_with_code(classifier, processor, tmp_path / "export")
    model = AutoModelForImageClassification.from_pretrained(folder)  # the installed package wins
    assert type(model) is type(classifier) and model.config.auto_map
    model.save_pretrained(tmp_path / "saved")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert [p.name for p in (tmp_path / "saved").glob("*.py")] == []
    for name in ("config.json", "processor_config.json"):
        assert "auto_map" not in (tmp_path / "saved" / name).read_text(), name


def test_models_that_cannot_be_exported_give_the_reason(tmp_path, classifier, processor):
    from peft import get_peft_model

    from hf_clip_variants.adapters import CLIPAdapterConfig

    with pytest.raises(ValueError, match="CLIPModel .* is not a model of this package, save_pretrained is enough"):
        export_with_code(tiny_clip(), processor, tmp_path / "export")
    with pytest.raises(ValueError, match="PeftModel carries an adapter. Code cannot travel with adapters: PEFT looks"):
        export_with_code(get_peft_model(classifier, CLIPAdapterConfig()), processor, tmp_path / "export")
    assert not (tmp_path / "export").exists()


# ---- cards


def test_a_card_has_metadata_results_and_no_foreign_markup(classifier):
    import yaml

    classifier.set_classes(["a|b", "`rm`", "<script>x</script>\n# head", "dog"], tokenizer=tiny_tokenizer())
    card = model_card(
        classifier,
        repo_id="alice/x",
        base_model="openai/clip-vit-base-patch32",
        license="cc-by-4.0",
        results=[
            accuracy_result(0.6213, "Emoji | 190", shots=2),
            accuracy_result(0.495, "Emoji | 190", method="zero-shot"),
        ],
        recipe={"learning rate": 0.02, "epochs": 30},
        datasets=["alice/emoji"],
        tags=["emoji"],
    )
    text = str(card)
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["license"] == "cc-by-4.0" and metadata["base_model"] == "openai/clip-vit-base-patch32"
    assert metadata["library_name"] == "transformers" and {"clip", "emoji", "hf-clip-variants"} <= set(
        metadata["tags"]
    )
    results = metadata["model-index"][0]["results"]
    assert sorted(metric["value"] for result in results for metric in result["metrics"]) == [0.495, 0.6213]
    assert "| Emoji \\| 190 | test | accuracy | 62.1 % | shots 2 |" in text
    assert "| learning rate | 0.02 |" in text and "2103.00020" in text
    assert "`a\\|b`, `` `rm` ``, `<script>x</script> # head`, `dog`" in text
    assert "\n# head" not in text


def test_a_card_shows_zero_shot_clip_beside_an_accuracy_and_the_interval_of_the_gain(classifier):
    results = [
        accuracy_result(0.788, "pets", zero_shot=0.827, interval=(-0.1, 0.02), shots=1),
        accuracy_result(0.6, "birds", zero_shot=0.5, interval=(0.04, 0.16)),
    ]
    text = str(model_card(classifier, results=results))
    assert (
        "| pets | test | accuracy | 78.8 % (zero-shot CLIP: 82.7 %) | "
        "gain −3.9 (−10.0 to +2.0), may be chance, shots 1 |" in text
    )
    assert "| birds | test | accuracy | 60.0 % (zero-shot CLIP: 50.0 %) | gain +10.0 (+4.0 to +16.0) |" in text
    assert "Gain: over zero-shot CLIP on the same images" in text
    told = card_arguments(text)
    assert _results(str(model_card(classifier, **told))) == _results(text), "a card that is written again keeps it"
    assert "Gain:" not in str(model_card(classifier, results=[accuracy_result(0.5, "pets")]))


def _results(card: str) -> str:
    return card.split("## Results")[1].split("## ")[0]


@pytest.mark.parametrize("value", [62.1, -0.1, float("nan"), "0.5"])
def test_an_accuracy_is_a_number_from_0_to_1(value):
    with pytest.raises(ValueError, match="value: expected an accuracy from 0 to 1"):
        accuracy_result(value, "emoji")


def test_a_card_for_a_model_of_another_package_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="'clip' is not a method of this package, expected one of clipv-clip_classifier"
    ):
        model_card(tiny_clip())
    with pytest.raises(ValueError, match="neither adapter_config.json nor config.json"):
        model_card(tmp_path)


def test_the_card_of_a_model_without_classes_shows_candidate_labels(tmp_path):
    from model_contract import CASES

    model = CASES["clip_resnet"].make()
    text = str(model_card(model, repo_id="alice/rn", base_model="open/rn50"))
    assert "# CLIP-ResNet" in text and 'pipeline("zero-shot-image-classification", model="alice/rn")' in text
    assert "made from `open/rn50`" in text and "candidate_labels=" in text and "## Classes" not in text
    with pytest.raises(ValueError, match="CLIPResNetVisionModel is a part of a model; export the whole"):
        export_with_code(model.vision_model, None, tmp_path)


# ---- push


def make_adapter(classifier, kind):
    from peft import get_peft_model

    from hf_clip_variants.adapters import CLIPAdapterConfig, CoOpConfig, TipAdapterConfig

    torch.manual_seed(0)
    if kind == "tip_adapter":
        model = get_peft_model(classifier, TipAdapterConfig())
        features = torch.randn(10, 24, generator=torch.Generator().manual_seed(1))
        model.base_model.build_cache(features, torch.arange(10) % len(CLASS_NAMES))
    else:
        config = {"coop": CoOpConfig(num_context_tokens=2), "clip_adapter": CLIPAdapterConfig(ratio=0.5)}[kind]
        model = get_peft_model(classifier, config)
    return model.eval()


ADAPTERS = ("coop", "clip_adapter", "tip_adapter")


def test_the_stock_methods_push_and_pull_model_processor_and_adapter(hub, classifier, processor):
    from peft import PeftModel
    from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoProcessor, pipeline

    expected = logits_of(classifier)
    classifier.push_to_hub("alice/pets", tags=["pets"])
    processor.push_to_hub("alice/pets")
    repository = hub.repos["alice/pets"]
    assert [c.title for c in repository.branches["main"]] == [
        "initial commit",
        "Upload CLIPClassifier",
        "Upload processor",
    ]
    expected_files = {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert expected_files == set(repository.files)
    loaded = AutoModelForImageClassification.from_pretrained("alice/pets")
    assert torch.equal(logits_of(loaded), expected)
    first, both = (commit.sha for commit in repository.branches["main"][1:3])
    loaded.set_classes(["dog", "cat"]).push_to_hub("alice/pets")
    assert AutoModelForImageClassification.from_pretrained("alice/pets").class_names == ["dog", "cat"]
    assert AutoModelForImageClassification.from_pretrained("alice/pets", revision=first).class_names == CLASS_NAMES
    assert type(AutoProcessor.from_pretrained("alice/pets")) is type(processor)
    assert type(AutoImageProcessor.from_pretrained("alice/pets")) is type(processor.image_processor)
    assert len(pipeline("image-classification", model="alice/pets", revision=both)(make_image())) == 5

    adapted = make_adapter(
        AutoModelForImageClassification.from_pretrained("alice/pets", revision=first), "clip_adapter"
    )
    expected = logits_of(adapted)
    adapted.push_to_hub("alice/adapter")
    base = AutoModelForImageClassification.from_pretrained("alice/pets", revision=first)
    torch.testing.assert_close(
        logits_of(PeftModel.from_pretrained(base, "alice/adapter")), expected, rtol=0, atol=1e-5
    )


def make_image():
    from PIL import Image

    return Image.new("RGB", (40, 30), "orange")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_and_its_base_in_one_repository(hub, classifier, processor, tmp_path, kind):
    from transformers import AutoModelForImageClassification, pipeline

    from hf_clip_variants import load_adapter

    adapted = make_adapter(classifier, kind)
    expected = logits_of(adapted)
    with adapted.disable_adapter():
        zero_shot = logits_of(adapted)
    assert not torch.equal(expected, zero_shot)
    repo_id = f"alice/{kind}"
    push(adapted, repo_id, with_base=True, processor=processor, license="mit", results=[accuracy_result(0.5, "toy")])
    files = hub.repos[repo_id].files
    assert len(hub.repos[repo_id].branches["main"]) == 2, "one commit"
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == repo_id
    assert str(tmp_path.parent).encode() not in b"".join(files.values()), "no path of this machine"
    model = AutoModelForImageClassification.from_pretrained(repo_id)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-5)
    model = load_adapter(repo_id)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), zero_shot, rtol=0, atol=1e-5)
    seen = pipeline(model=repo_id)(make_image(), top_k=5)  # the card knows the task
    pixels = processor(images=make_image(), return_tensors="pt").pixel_values
    with torch.inference_mode():
        probabilities = adapted(pixel_values=pixels).logits.softmax(-1)[0].tolist()
    torch.testing.assert_close(
        {entry["label"]: entry["score"] for entry in seen},
        dict(zip(CLASS_NAMES, probabilities, strict=True)),
        rtol=0,
        atol=1e-5,
    )
    run_snippet(files["README.md"].decode(), tmp_path)


def run_snippet(readme, folder):
    import runpy

    (folder / "snippet.py").write_text(snippet_of(readme))
    runpy.run_path(str(folder / "snippet.py"))


def test_an_adapter_pushed_alone_names_a_base_on_the_hub(hub, classifier, processor, clip_folder, tmp_path):
    from transformers import pipeline

    from hf_clip_variants import load_adapter

    hub.create("openai/tiny-clip", clip_folder)
    adapted = make_adapter(classifier, "tip_adapter")
    expected = logits_of(adapted)
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    with pytest.raises(
        ValueError, match="base_model: the adapter was trained on .*clip, which only this machine has; .*with_base"
    ):
        push(folder, "alice/tip")
    assert hub.repos.keys() == {"openai/tiny-clip"}
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "adapter_model.safetensors").write_bytes(b"x")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    push(folder, "alice/tip", base_model="openai/tiny-clip", license="mit", private=True)
    repository = hub.repos["alice/tip"]
    assert repository.private and set(repository.files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    readme = repository.files["README.md"].decode()
    assert "base_model: openai/tiny-clip" in readme and "base_model_relation: adapter" in readme
    assert "The adapter caches images of its classes" in readme and str(tmp_path) not in readme
    torch.testing.assert_close(logits_of(load_adapter("alice/tip")), expected, rtol=0, atol=1e-5)
    run_snippet(readme, tmp_path)
    with pytest.raises(RuntimeError, match="meant to be used with peft|pipeline_tag"):  # transformers: of any adapter
        pipeline(model="alice/tip")


@pytest.mark.parametrize("kind", ["coop", "clip_adapter"])
def test_an_adapter_on_a_plain_clip_model(hub, processor, clip_folder, tmp_path, kind):
    from transformers import CLIPModel

    from hf_clip_variants import load_adapter

    hub.create("openai/tiny-clip", clip_folder)
    adapted = make_adapter(CLIPModel.from_pretrained(clip_folder), kind)
    push(adapted, f"alice/{kind}", base_model="openai/tiny-clip")
    files = hub.repos[f"alice/{kind}"].files
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    inputs = {
        "input_ids": torch.tensor([[4036, *[4036] * 2 * (kind == "coop"), 5, 4037]]),
        "pixel_values": tiny_pixels(),
    }
    with torch.inference_mode():
        expected = adapted(**inputs).logits_per_image
        torch.testing.assert_close(
            load_adapter(f"alice/{kind}")(**inputs).logits_per_image, expected, rtol=0, atol=1e-5
        )
    run_snippet(files["README.md"].decode(), tmp_path)


def test_a_card_written_before_the_push_keeps_its_results(hub, classifier, processor, clip_folder, tmp_path):
    import yaml

    adapted = make_adapter(classifier, "tip_adapter")
    adapted.save_pretrained(tmp_path / "adapter")
    results = [accuracy_result(0.5, "toy", shots=2, seed=1), accuracy_result(0.25, "other")]
    recipe = {"alpha": 1.5, "a|b": "<c>"}
    card = model_card(adapted, results=results, recipe=recipe, license="mit", datasets=["me/toy"], tags=["x"])
    card.save(tmp_path / "adapter" / "README.md")
    assert PLACEHOLDER_ID in str(card) and str(clip_folder.parent) not in str(card)
    base = type(classifier).from_pretrained(clip_folder, class_names=CLASS_NAMES)
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    push(tmp_path / "adapter", "alice/both", with_base=True, base=tmp_path / "base")
    push(tmp_path / "adapter", "alice/alone", base_model="openai/tiny-clip")
    for repo_id in ("alice/both", "alice/alone"):
        readme = hub.repos[repo_id].files["README.md"].decode()
        metadata = yaml.safe_load(readme.split("---")[1])
        values = {m["value"] for r in metadata["model-index"][0]["results"] for m in r["metrics"]}
        assert values == {0.5, 0.25} and metadata["license"] == "mit" and metadata["datasets"] == ["me/toy"]
        assert "| toy | test | accuracy | 50.0 % | shots 2, seed 1 |" in readme
        assert "| alpha | 1.5 |\n| a\\|b | &lt;c> |" in readme
        assert "x" in metadata["tags"] and PLACEHOLDER_ID not in readme and repo_id in snippet_of(readme)
    assert "base_model: openai/tiny-clip" in readme


def test_a_saved_classifier_is_pushed_with_its_existing_card(hub, classifier, processor, tmp_path):
    folder = tmp_path / "pets"
    classifier.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(f"mine: {PLACEHOLDER_ID}")
    push(folder, "alice/pets", revision="v2", commit_message="Second try")
    assert hub.repos["alice/pets"].at("v2").title == "Second try"
    assert hub.repos["alice/pets"].at("v2").files["README.md"] == b"mine: alice/pets"
    assert set(hub.repos["alice/pets"].files) == set(), "main is untouched"
    push(folder, "alice/pets", license="mit")
    card = hub.repos["alice/pets"].files["README.md"].decode()
    assert "license: mit" in card and PLACEHOLDER_ID not in card
    assert (folder / "README.md").read_text() == f"mine: {PLACEHOLDER_ID}", "the local folder is left alone"
    run_snippet(card, tmp_path)


# ---- failures


@pytest.mark.parametrize(
    "status, where, said",
    [
        (401, "POST /api/repos/create", "hf auth login"),
        (403, "POST /api/models/alice/pets/commit", "token's permissions"),
        (409, "POST /api/models/alice/pets/commit", "changed the repository"),
        (500, "POST /api/models/alice/pets/preupload", "500"),
    ],
)
def test_a_failed_push_keeps_everything_and_names_the_command_to_repeat(
    hub, classifier, processor, status, where, said
):
    secret = os.environ["HF_TOKEN"]
    hub.fault(where, status=status, times=50)
    with pytest.raises(PushError) as failure:
        push(classifier, "alice/pets", processor=processor)
    text, folder = str(failure.value), failure.value.folder
    assert str(status) in text and said in text
    assert f"hf-clip-variants push {folder} alice/pets" in text
    assert torch.equal(logits_of(type(classifier).from_pretrained(folder)), logits_of(classifier))
    everything = "".join(str(e) for e in (failure.value, failure.value.__cause__)) + "".join(
        p.read_text(errors="ignore") for p in folder.rglob("*") if p.is_file()
    )
    assert secret not in everything
    hub.faults.clear()
    push(folder, "alice/pets")  # what the message says
    hub.fault("POST /api/models/alice/pets/(commit|preupload)", status=403, times=50)
    with pytest.raises(PushError, match=r"alice/pets --license mit --private --revision v2"):
        push(folder, "alice/pets", license="mit", private=True, revision="v2")
    assert "model.safetensors" in hub.repos["alice/pets"].files


def test_a_push_without_network_or_token_keeps_everything(hub, classifier, processor, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match="push to alice/pets failed") as failure:
        push(classifier, "alice/pets", processor=processor, folder=tmp_path / "kept")
    assert failure.value.folder == tmp_path / "kept" and (tmp_path / "kept" / "model.safetensors").is_file()
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PushError, match="hf auth login"):
        push(tmp_path / "kept", "alice/pets")
    with pytest.raises(PushError, match="HTTP 403|403 Forbidden"):
        push(tmp_path / "kept", "bob/pets", token="hf_alice_secret")


def test_a_token_in_the_servers_answer_is_not_shown(hub, classifier, processor, monkeypatch):
    from huggingface_hub import HfApi

    secret = os.environ["HF_TOKEN"]

    def refuse(*args, **kwargs):
        raise OSError(f"the proxy says: Authorization: Bearer {secret} is not welcome")

    monkeypatch.setattr(HfApi, "create_commit", refuse)
    with pytest.raises(PushError, match=r"Bearer \*\*\* is not welcome") as failure:
        push(classifier, "alice/pets", processor=processor)
    assert failure.value.__cause__ is None and failure.value.__suppress_context__


@pytest.mark.parametrize(
    "fault, error",
    [
        ({"cut": 0.4}, None),
        ({"status": 429}, None),
        ({"shrink": 0.4}, "Consistency check failed"),
        ({"status": 500, "times": 20}, "500"),
        ({"status": 404}, "404"),
    ],
)
def test_a_broken_download_leaves_no_half_file_and_the_next_one_finishes(hub, classifier, tmp_path, fault, error):
    from huggingface_hub import constants
    from transformers import AutoModelForImageClassification

    folder = tmp_path / "pets"
    classifier.save_pretrained(folder)
    hub.create("alice/pets", folder)
    hub.fault(r"GET /alice/pets/resolve/.*model.safetensors", **fault)
    if error is None:
        model = AutoModelForImageClassification.from_pretrained("alice/pets")
    else:
        with pytest.raises(OSError) as failure:
            AutoModelForImageClassification.from_pretrained("alice/pets")
        said = "".join(str(e) for e in (failure.value, failure.value.__cause__, failure.value.__context__))
        assert error in said and "model.safetensors" in said
        snapshots = Path(constants.HF_HUB_CACHE) / "models--alice--pets" / "snapshots"
        assert not list(snapshots.rglob("model.safetensors"))
        hub.faults.clear()
        model = AutoModelForImageClassification.from_pretrained("alice/pets")
    assert torch.equal(logits_of(model), logits_of(classifier))


def test_offline_loading_uses_the_cache_and_names_missing_files(hub, classifier, tmp_path):
    from transformers import AutoModelForImageClassification

    folder = tmp_path / "pets"
    classifier.save_pretrained(folder)
    hub.create("alice/pets", folder)
    AutoModelForImageClassification.from_pretrained("alice/pets")
    before = len(hub.log)
    model = AutoModelForImageClassification.from_pretrained("alice/pets", local_files_only=True)
    assert torch.equal(logits_of(model), logits_of(classifier)) and len(hub.log) == before
    with pytest.raises(OSError, match="alice/other"):
        AutoModelForImageClassification.from_pretrained("alice/other", local_files_only=True)


# ---- what comes from the Hub chooses no code


def test_a_hostile_configuration_runs_and_fetches_nothing(hub, classifier, tmp_path):
    from transformers import AutoModelForImageClassification

    canary = tmp_path / "canary"
    folder = tmp_path / "evil"
    classifier.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"},
        "trust_remote_code": True,
        "_attn_implementation_internal": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "backbone": "evil/backbone",
        "backbone_model_type": "clip",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()")
    hub.create("alice/evil", folder)
    model = AutoModelForImageClassification.from_pretrained("alice/evil", trust_remote_code=False)
    assert type(model) is type(classifier) and model.config._attn_implementation in ("sdpa", "eager")
    assert not canary.exists()
    assert not hub.requests("evil/kernel|evil/backbone|evil.py")
    text = config["text_config"]
    for changes, said in (
        ({"text_config": text | {"model_type": "evil"}}, "text_config.model_type: 'evil', expected 'clip_text_model'"),
        ({"torch_dtype": "os.system", "dtype": "os.system"}, "os.system"),
        ({"model_type": "evil"}, "evil"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {}, **changes}))
        with pytest.raises((ValueError, AttributeError, TypeError), match=re.escape(said)):
            AutoModelForImageClassification.from_pretrained(folder)
    assert not canary.exists()


def test_two_downloads_at_once_both_succeed(hub, classifier, tmp_path):
    import threading

    from transformers import AutoModelForImageClassification

    folder = tmp_path / "pets"
    classifier.save_pretrained(folder)
    hub.create("alice/pets", folder)
    hub.fault("GET .*model.safetensors", delay=0.3)
    loaded = []
    threads = [
        threading.Thread(target=lambda: loaded.append(AutoModelForImageClassification.from_pretrained("alice/pets")))
        for _ in range(2)
    ]
    [t.start() for t in threads]
    [t.join(60) for t in threads]
    assert len(loaded) == 2 and all(torch.equal(logits_of(m), logits_of(classifier)) for m in loaded)
