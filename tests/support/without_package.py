"""Run by the contract of models in a process that cannot import hf_clip_variants: loads, saves and pushes exported code.

Arguments: folder of the export, Hub id of the same, Auto class, name of the output. The working folder holds what to expect. Prints one line a step
that passed.
"""

import json
import runpy
import sys
from pathlib import Path


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_clip_variants", "modeling"):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


sys.meta_path.insert(0, Blocked())
sys.path = [entry for entry in sys.path if not (Path(entry or ".") / "hf_clip_variants").exists()]

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


folder, repo_id, auto_class, output = Path(sys.argv[1]), sys.argv[2], getattr(transformers, sys.argv[3]), sys.argv[4]
expected = load_file("expected.safetensors")
inputs = {name.removeprefix("inputs."): tensor for name, tensor in expected.items() if name.startswith("inputs.")}


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
        pixels = processor(images=expected["picture"].numpy(), return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, expected["processed"], rtol=0, atol=1e-5)
        if "sound" in expected:
            extractor = processor.feature_extractor
            assert "transformers_modules" in type(extractor).__module__
            heard = extractor(expected["sound"], sampling_rate=extractor.sampling_rate, return_tensors="pt")
            torch.testing.assert_close(heard.input_features, expected["heard"])
    print("passed:", step, flush=True)


try:
    auto_class.from_pretrained(repo_id, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
    print("passed: refused without trust_remote_code", flush=True)

check(*load(folder), "folder")
model, processor = load(repo_id)
check(model, processor, "hub")

again = Path("again")
model.save_pretrained(again)
if processor is not None:
    processor.save_pretrained(again)
assert {p.name for p in again.glob("*.py")} >= {p.name for p in folder.glob("*.py")}
assert {"AutoConfig", auto_class.__name__} <= set(json.loads((again / "config.json").read_text())["auto_map"])
check(*load(again.absolute()), "saved again")

model.push_to_hub("alice/again")
if processor is not None:
    processor.push_to_hub("alice/again")
check(*load("alice/again"), "pushed again")

if hasattr(model, "set_classes"):
    model.set_classes(["dog", "cat"], tokenizer=processor.tokenizer)
    assert model(**inputs | {"labels": None})[output].shape[-1] == 2
    print("passed: new classes", flush=True)

runpy.run_path("snippet.py")
print("passed: snippet", flush=True)
assert not any(name.split(".")[0] == "hf_clip_variants" for name in sys.modules)
