"""Official adapter files become adapter folders that give the official numbers; another base or other
class names or words are noticed.
"""

import json

import pytest
import torch
from official_files import dassl, fixture_tokenizer, learner, plain, whole_model
from parity_fixtures import assert_close, load_fixture
from safetensors.torch import save_file

from hf_clip_variants import convert_checkpoint, load_adapter
from hf_clip_variants.evaluation.prediction import load_for_prediction
from hf_clip_variants.hub.verification import verify


PHOTO = "a photo of a {}."


def base_of(fixture, templates, folder):
    """The fixture's frozen CLIP, converted like any other, with a tokenizer that gives the fixture's ids."""
    tokenizer = fixture_tokenizer(fixture, templates, folder / "tokenizer")
    heads = {"vision_heads": fixture.hparam("vision_heads"), "text_heads": fixture.hparam("transformer_heads")}
    file = plain(fixture.backbone_state_dict(), folder / "clip.pt")
    convert_checkpoint(file, folder / "base", tokenizer=tokenizer, activation="quick_gelu", **heads)
    return folder / "base"


def context_words(fixture):
    return {PHOTO: fixture.inputs["words_init.tokenized_prompts"]}


def only_names(fixture):
    """Prompts "X X name .": placeholders stand for the words before the name."""
    return {"x{}.": fixture.inputs["tokenized_prompts"]}


def photo_of(fixture):
    return {PHOTO: fixture.inputs["tokenized_prompts"]}


def classifier_outputs(fixture):
    return {name: fixture.outputs[name] for name in ("logits", "image_features")}


def names_of(fixture):
    return fixture.meta["class_names"]


class Case:
    """An official file of a fixture: its prompts, its contents, and the options that it needs."""

    def __init__(self, name, method, templates, weights, options=None, outputs=classifier_outputs):
        self.fixture_name, self.method, self.templates, self.weights = name, method, templates, weights
        self.options, self.outputs = options or (lambda fixture: {}), outputs


def coop_file(kind):
    def weights(fixture):
        found = learner(fixture)
        return {"ctx": found[f"{kind}.ctx"], **{n: found[n] for n in ("token_prefix", "token_suffix")}}

    return weights


def coop_case(kind, position):
    return Case(
        "coop",
        "coop",
        context_words,
        coop_file(kind),
        lambda fixture: {"class_token_position": position},
        lambda fixture: {
            "logits": fixture.outputs[f"{position}.{kind}.logits"],
            "image_features": fixture.outputs["image_features"],
            "text_features": fixture.outputs[f"{position}.{kind}.text_features"],
        },
    )


CASES = {
    **{
        f"coop-{kind}-{position}": coop_case(kind, position)
        for kind in ("unified", "csc")
        for position in ("end", "middle", "front")
    },
    "cocoop": Case("cocoop", "cocoop", only_names, learner),
    "maple": Case("maple", "maple", only_names, whole_model),
    "maple-learner": Case("maple", "maple", only_names, learner),
    "maple-words": Case(
        "maple_words", "maple", photo_of, whole_model, lambda fixture: {"context_init": fixture.hparam("CTX_INIT")}
    ),
    "vpt-deep": Case("vpt_deep", "vpt", photo_of, whole_model, lambda fixture: {"templates": PHOTO}),
    "vpt-shallow": Case("vpt_shallow", "vpt", photo_of, whole_model, lambda fixture: {"templates": PHOTO}),
    "ivlp": Case("ivlp", "ivlp", only_names, whole_model),
    "clip_adapter": Case(
        "clip_adapter",
        "clip_adapter",
        lambda fixture: {fixture.hparam("template"): fixture.inputs["input_ids"]},
        lambda fixture: {
            n.removeprefix("adapter."): t for n, t in fixture.state_dict.items() if n.startswith("adapter.")
        },
        lambda fixture: {"templates": fixture.hparam("template"), "ratio": fixture.hparam("ratio_official")},
        # `image_features` of the fixture are those before the adapter
        lambda fixture: {"logits": fixture.outputs["logits"]},
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Base folders by fixture."""
    made = {}

    def base(case):
        fixture = load_fixture(case.fixture_name)
        if case.fixture_name not in made:
            folder = tmp_path_factory.mktemp(case.fixture_name)
            made[case.fixture_name] = base_of(fixture, case.templates(fixture), folder)
        return fixture, made[case.fixture_name]

    return base


def prepared(case, bases, tmp_path):
    fixture, base = bases(case)
    file = dassl(case.weights(fixture), tmp_path / "official" / "model.pth.tar-5")
    return fixture, file, {"base": base, "class_names": names_of(fixture), **case.options(fixture)}


@pytest.mark.parametrize("name", CASES)
def test_official_files_give_the_official_outputs(name, bases, tmp_path):
    case = CASES[name]
    fixture, file, options = prepared(case, bases, tmp_path)
    expected = tmp_path / "expected.safetensors"
    save_file({"pixel_values": fixture.inputs["pixel_values"], **case.outputs(fixture)}, expected)
    result = convert_checkpoint(file, tmp_path / "out", expected=expected, **options)
    assert result.method == case.method and result.kind == f"CLIPV_{case.method.upper()}"
    assert set(result.expected_differences) == set(case.outputs(fixture)) and result.difference < 1e-5

    model = load_adapter(tmp_path / "out")  # knows its base and its classes
    assert model.get_base_model().class_names == names_of(fixture)
    with torch.no_grad():
        logits = model(pixel_values=fixture.inputs["pixel_values"]).logits
    assert_close(logits, case.outputs(fixture)["logits"], "logits")

    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"README.md", "adapter_config.json", "adapter_model.safetensors", "conversion.json"}
    assert all(check.status == "ok" for check in verify(tmp_path / "out"))
    assert {"epoch", "optimizer", "scheduler", "val_result"} <= set(result.dropped) and len(
        set(result.dropped)
    ) == len(result.dropped)
    kept = [n for n in case.weights(fixture) if n not in result.dropped]
    assert kept and not [
        n for n in kept if n.startswith("text_encoder.ln_final") or n.endswith(("token_prefix", "token_suffix"))
    ]


@pytest.mark.parametrize("name", ["coop-unified-end", "maple-words", "vpt-deep"])
def test_half_precision_files_are_converted(name, bases, tmp_path):
    """What the official trainers save when they train in float16."""
    case = CASES[name]
    fixture, _, options = prepared(case, bases, tmp_path)
    halves = {n: t.half() if t.is_floating_point() else t for n, t in case.weights(fixture).items()}
    file = dassl(halves, tmp_path / "half" / "model.pth.tar")
    result = convert_checkpoint(file, tmp_path / "out", compare=True, **options)
    assert result.dtype == "float32" and result.difference < 1e-5


def test_an_adapter_without_class_names_works_with_any_classes(bases, tmp_path):
    for name in ("coop-unified-end", "cocoop", "maple", "vpt-deep", "ivlp", "clip_adapter"):
        fixture, file, options = prepared(CASES[name], bases, tmp_path / name)
        options = {n: v for n, v in options.items() if n not in ("class_names", "templates")}
        result = convert_checkpoint(file, tmp_path / name / "out", compare=True, **options)
        assert result.difference < 1e-5
        loaded = load_for_prediction(adapter=tmp_path / name / "out", class_names=["cat", "forest"])
        assert loaded.class_names == ["cat", "forest"]
        assert loaded.model(pixel_values=fixture.inputs["pixel_values"]).logits.shape == (fixture.hparam("batch"), 2)


# ------------------------------------------------------------------------------------------------------- Tip-Adapter


@pytest.fixture(scope="module")
def tip(tmp_path_factory):
    """Fixture, base, and a cache folder as the official code writes it."""
    fixture, folder = load_fixture("tip_adapter"), tmp_path_factory.mktemp("tip")
    ids = fixture.inputs["template_input_ids"]
    templates = {template: ids[:, i] for i, template in enumerate(fixture.hparam("templates"))}
    caches = folder / "caches"
    caches.mkdir()
    torch.save(fixture.outputs["cache_keys"], caches / "keys_4shots.pt")
    torch.save(fixture.outputs["cache_values"].half(), caches / "values_4shots.pt")
    torch.save(torch.nn.Parameter(fixture.outputs["F.weight_after_step2"]), caches / "best_F_4shots.pt")
    options = {
        "base": base_of(fixture, templates, folder),
        "class_names": names_of(fixture),
        "templates": fixture.hparam("templates"),
    }
    return fixture, caches, options


def test_tip_adapters_cache_is_converted(tip, tmp_path):
    fixture, caches, options = tip
    key = next(key for key in fixture.outputs if key.startswith("tip_logits.beta"))
    beta, alpha = map(float, key.removeprefix("tip_logits.beta").split("_alpha"))
    save_file(
        {"pixel_values": fixture.inputs["val_images"], "logits": fixture.outputs[key]},
        tmp_path / "expected.safetensors",
    )
    result = convert_checkpoint(
        caches / "keys_4shots.pt",
        tmp_path / "out",
        expected=tmp_path / "expected.safetensors",
        alpha=alpha,
        beta=beta,
        **options,
    )
    assert result.method == "tip_adapter" and not result.notes and len(result.sources) == 2
    config = load_adapter(tmp_path / "out").peft_config["default"]
    assert (config.alpha, config.beta, config.trainable_keys) == (alpha, beta, False)


def test_tip_adapters_trained_keys_are_converted(tip, tmp_path):
    fixture, caches, options = tip
    result = convert_checkpoint(caches / "best_F_4shots.pt", tmp_path / "out", compare=True, **options)
    assert "alpha and beta are in no file" in result.notes[0]
    model = load_adapter(tmp_path / "out")
    assert model.peft_config["default"].trainable_keys
    keys = model.get_base_model().logit_head.clipv_tip_adapter_keys["default"]
    assert torch.equal(keys, fixture.outputs["F.weight_after_step2"])


def test_tip_adapters_files_must_fit_each_other(tip, tmp_path):
    fixture, caches, options = tip
    alone = tmp_path / "keys_4shots.pt"
    torch.save(fixture.outputs["cache_keys"], alone)
    with pytest.raises(ValueError, match="values: no values_… file with the labels of keys_4shots.pt lies beside it"):
        convert_checkpoint(alone, tmp_path / "out", **options)
    convert_checkpoint(alone, tmp_path / "named", values=caches / "values_4shots.pt", **options)
    torch.save(fixture.outputs["cache_keys"][:, 1:], alone)
    with pytest.raises(ValueError, match=r"keys_4shots.pt: shape .*, expected .*keys_\*.pt"):
        convert_checkpoint(alone, tmp_path / "out", values=caches / "values_4shots.pt", **options)
    torch.save({"w": fixture.outputs["cache_keys"]}, tmp_path / "values.pt")
    with pytest.raises(ValueError, match="values: .* holds named tensors"):
        convert_checkpoint(caches / "keys_4shots.pt", tmp_path / "out", values=tmp_path / "values.pt", **options)
    nameless = {name: value for name, value in options.items() if name == "base"}
    with pytest.raises(ValueError, match="class_names: Tip-Adapter caches images of its classes"):
        convert_checkpoint(caches / "keys_4shots.pt", tmp_path / "out", **nameless)
    with pytest.raises(ValueError, match="values: "):
        convert_checkpoint(
            caches / "keys_4shots.pt", tmp_path / "out", **options | {"class_names": names_of(fixture)[:-1]}
        )
    assert not (tmp_path / "out").exists()


# ---- what the file knows is checked


def fails(file, out, match, **options):
    with pytest.raises(ValueError, match=match):
        convert_checkpoint(file, out, **options)
    assert not out.exists() and not list(out.parent.glob(".tmp*"))


def test_a_different_base_of_the_same_sizes_is_noticed(bases, tmp_path):
    """Of the same sizes: only the comparison of weights can notice it."""
    for name in ("coop-unified-end", "cocoop", "maple", "vpt-deep", "ivlp"):
        case = CASES[name]
        fixture, file, options = prepared(case, bases, tmp_path / name)
        generator = torch.Generator().manual_seed(1)
        weights = {
            n: torch.randn(t.shape, generator=generator) * t.std() if t.dim() > 1 else t
            for n, t in fixture.backbone_state_dict().items()
        }
        heads = {"vision_heads": fixture.hparam("vision_heads"), "text_heads": fixture.hparam("transformer_heads")}
        other = plain(weights, tmp_path / name / "other.pt")
        convert_checkpoint(other, tmp_path / name / "other", tokenizer=bases(case)[1].parent / "tokenizer", **heads)
        fails(
            file,
            tmp_path / name / "out",
            "base: .*other is not the CLIP",
            **options | {"base": tmp_path / name / "other"},
        )


def test_class_names_that_differ_from_the_training_are_noticed(bases, tmp_path):
    for name in ("coop-csc-end", "cocoop", "maple-words", "ivlp"):
        fixture, file, options = prepared(CASES[name], bases, tmp_path / name)
        names = names_of(fixture)
        swapped = [names[1], names[0], *names[2:]]
        out = tmp_path / name / "out"
        fails(
            file, out, f"class_names: the 1. class is '{names[1]}', its prompt", **options | {"class_names": swapped}
        )
        fails(file, out, rf"class_names: .*\b{len(names)}\b", **options | {"class_names": names[1:]})


def test_a_class_specific_context_needs_names(bases, tmp_path):
    _, file, options = prepared(CASES["coop-csc-end"], bases, tmp_path)
    del options["class_names"]
    fails(file, tmp_path / "out", "class_names: the context is of .* classes", **options)


def test_the_initial_words_must_be_given(bases, tmp_path):
    _, file, options = prepared(CASES["maple-words"], bases, tmp_path)
    words = options.pop("context_init")
    fails(file, tmp_path / "out", "context_init: .*all prompts go on with the same token", **options)
    fails(
        file, tmp_path / "out", "context_init: .* is not what the prompts", context_init=f"{words} {words}", **options
    )
    fails(file, tmp_path / "out", "class_names: the 1. class", context_init="", **options)


def test_conversion_without_a_base_is_an_error(bases, tmp_path):
    _, file, options = prepared(CASES["cocoop"], bases, tmp_path)
    fails(file, tmp_path / "out", "base: cocoop is an adapter.*--base", class_names=options["class_names"])
    with pytest.raises(OSError, match="nowhere"):
        convert_checkpoint(file, tmp_path / "out", **options | {"base": tmp_path / "nowhere"})


@pytest.mark.parametrize("name", ["coop-unified-end", "cocoop", "maple", "vpt-deep", "ivlp", "clip_adapter"])
def test_unknown_names_are_listed(name, bases, tmp_path):
    case = CASES[name]
    fixture, _, options = prepared(case, bases, tmp_path)
    prefix = "" if name in ("coop-unified-end", "cocoop", "clip_adapter") else "image_encoder."
    weights = case.weights(fixture) | {f"{prefix}surprise.{i}": torch.ones(1) for i in range(7)}
    file = dassl(weights, tmp_path / "model.pth.tar")
    fails(file, tmp_path / "out", r"surprise\.0", **options)
    if prefix:
        fails(
            file,
            tmp_path / "out",
            r"unexpected names image_encoder\.surprise\.0, .*surprise\.4, … \(7 in all\)",
            **options,
        )


def test_the_method_of_a_prompt_learner_is_recognised(bases, tmp_path):
    fixture, _, options = prepared(CASES["ivlp"], bases, tmp_path)
    prompts = ("VPT", "VPT_shallow")
    shallow = {n: t for n, t in whole_model(fixture).items() if not n.endswith(prompts)}
    file = dassl(shallow, tmp_path / "shallow.pth.tar")
    fails(file, tmp_path / "out", "method: .* could be coop or ivlp, say which", **options)
    assert convert_checkpoint(file, tmp_path / "said", "ivlp", **options).method == "ivlp"
    fails(file, tmp_path / "out", "expected ctx", method="coop", **options)
    file = plain({"enc.transformer.prompt_embeddings": torch.ones(1, 2, 3)}, tmp_path / "vit.pt")
    fails(file, tmp_path / "out", "VPT on a ViT .*convert_vpt_vit", **options)


# ------------------------------------------------------------------------------------------------------- the command


def test_the_command_converts_adapters(run, bases, tmp_path):
    fixture, file, options = prepared(CASES["coop-csc-middle"], bases, tmp_path)
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(names_of(fixture)) + "\n")
    arguments = ("convert", file, tmp_path / "out", "--base", options["base"], "--position", "middle")
    code, out, err = run(*arguments, "--classes", names, "--json")
    assert code == 0, err
    values = json.loads(out)
    assert values["kind"] == "CLIPV_COOP" and values["parameters"] == learner(fixture)["csc.ctx"].numel()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["class_names"] == names_of(fixture) and config["class_token_position"] == "middle"
    code, out, err = run(*arguments, "--classes", ",".join(names_of(fixture)), "--compare", "--overwrite")
    assert code == 0 and out.startswith("CLIPV_COOP: ") and "Not needed: " in out and "Before and after" in out, err
    code, out, err = run("convert", file, tmp_path / "other")
    assert (code, out) == (1, "") and err.startswith("Error: --base: coop is an adapter")
    code, _, err = run("predict", "--adapter", tmp_path / "out", tmp_path / "nothing.png")
    assert code == 1 and "nothing.png" in err
