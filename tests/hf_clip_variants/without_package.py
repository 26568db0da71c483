"""Run by test_hub.py in a process of its own that cannot import hf_clip_variants: loads, saves and pushes exported code.

Arguments: folder of the export, Hub id of the same, folder for results. Prints one line a check that passed.
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
sys.path = [entry for entry in sys.path if not (Path(entry) / "hf_clip_variants").exists()]

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForImageClassification, AutoProcessor  # noqa: E402


folder, repo_id, results = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
expected = load_file(results / "expected.safetensors")


def check(model, processor, what):
    assert "transformers_modules" in type(model).__module__, type(model).__module__
    with torch.inference_mode():
        logits = model.eval()(expected["pixel_values"]).logits
        torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-5)
        pixels = processor(images=expected["picture"].numpy(), return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, expected["processed"], rtol=0, atol=1e-5)
    print("passed:", what, flush=True)


def load(source, **options):
    return (
        AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True, **options),
        AutoProcessor.from_pretrained(source, trust_remote_code=True, **options),
    )


try:
    AutoModelForImageClassification.from_pretrained(repo_id, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
    print("passed: refused without trust_remote_code", flush=True)

model, processor = load(folder)
check(model, processor, "folder")
model, processor = load(repo_id)
check(model, processor, "hub")

again = results / "again"
model.save_pretrained(again)
processor.save_pretrained(again)
python_files = {p.name for p in again.glob("*.py")}
assert python_files >= {p.name for p in folder.glob("*.py")}, python_files
assert set(json.loads((again / "config.json").read_text())["auto_map"]) >= {
    "AutoConfig",
    "AutoModelForImageClassification",
}
check(*load(again), "saved again")

model.push_to_hub("alice/again")
processor.push_to_hub("alice/again")
check(*load("alice/again"), "pushed again")

model.set_classes(["dog", "cat"], tokenizer=processor.tokenizer)
with torch.inference_mode():
    assert model(expected["pixel_values"]).logits.shape == (len(expected["pixel_values"]), 2)
print("passed: new classes", flush=True)

runpy.run_path(str(results / "snippet.py"))
print("passed: snippet", flush=True)
assert not any(name.split(".")[0] == "hf_clip_variants" for name in sys.modules)
