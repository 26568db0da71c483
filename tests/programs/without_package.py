"""Loads, saves and pushes exported code in a process that cannot import hf_clip_variants.

See tests/modeling/test_common.py. python without_package.py EXPORTS.json: for each export a name, a folder with the
expected results, the folder of the export, its Hub id, its Auto class and the name of its output. Prints one line for
each step that passed.
"""

import inspect
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import block_package  # noqa: F401  before torch and transformers
import torch
import transformers
from safetensors.torch import load_file


def check_export(name, home, folder, repo_id, auto_class, output):
    os.chdir(home)
    auto_class, folder = getattr(transformers, auto_class), Path(folder)
    expected = load_file("expected.safetensors")
    inputs = {key.removeprefix("inputs."): tensor for key, tensor in expected.items() if key.startswith("inputs.")}

    def passed(step):
        print(f"passed: {name}: {step}", flush=True)

    def load(source):
        model = auto_class.from_pretrained(source, trust_remote_code=True)
        if "processed" not in expected:
            return model, None
        return model, transformers.AutoProcessor.from_pretrained(source, trust_remote_code=True)

    def check(model, processor, step):
        assert "transformers_modules" in type(model).__module__, type(model).__module__
        with torch.inference_mode():
            torch.testing.assert_close(model.eval()(**inputs)[output], expected["output"], rtol=0, atol=1e-5)
        if processor is not None:
            if "video" in expected:
                assert "transformers_modules" in type(processor.video_processor).__module__
                pixels = processor(videos=expected["video"].numpy(), return_tensors="pt").pixel_values_videos
            elif "cloud" in expected:
                assert "transformers_modules" in type(processor.feature_extractor).__module__
                pixels = processor(points=expected["cloud"], return_tensors="pt").points
            else:
                pixels = processor(images=expected["image"].numpy(), return_tensors="pt").pixel_values
            torch.testing.assert_close(pixels, expected["processed"], rtol=0, atol=1e-5)
            if "audio" in expected:
                extractor = processor.feature_extractor
                assert "transformers_modules" in type(extractor).__module__
                features = extractor(expected["audio"], sampling_rate=extractor.sampling_rate, return_tensors="pt")
                torch.testing.assert_close(features.input_features, expected["input_features"])
        passed(step)

    try:
        auto_class.from_pretrained(repo_id, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
        passed("refused without trust_remote_code")

    check(*load(folder), "folder")
    model, processor = load(repo_id)
    check(model, processor, "hub")

    again, pushed = Path(f"again-{name}"), f"alice/again-{name}"
    model.save_pretrained(again)
    if processor is not None:
        processor.save_pretrained(again)
    assert {p.name for p in again.glob("*.py")} >= {p.name for p in folder.glob("*.py")}
    assert {"AutoConfig", auto_class.__name__} <= set(json.loads((again / "config.json").read_text())["auto_map"])
    check(*load(again.absolute()), "saved again")

    model.push_to_hub(pushed)
    if processor is not None:
        processor.push_to_hub(pushed)
    check(*load(pushed), "pushed again")

    if hasattr(model, "set_classes"):
        argument = "tokenizer" if "tokenizer" in inspect.signature(model.set_classes).parameters else "processor"
        model.set_classes(["dog", "cat"], **{argument: processor.tokenizer})
        assert model(**inputs | {"labels": None})[output].shape[-1] == 2

    runpy.run_path("snippet.py")
    passed("snippet")


failed = 0
for export in json.loads(Path(sys.argv[1]).read_text()):
    try:
        check_export(**export)
    except Exception:
        failed = 1
        print(f"failed: {export['name']}\n{traceback.format_exc()}")  # standard error is full of transformers' notes
assert not any(name.split(".")[0] == "hf_clip_variants" for name in sys.modules)
sys.exit(failed)
