"""The contract of models (tests/support/model_contract.py) over the registry, and their code without this package."""

import json
import os
import random
import re
import subprocess
import sys

import pytest
import torch
from fake_hub import FakeHub
from model_contract import CASES, ModelContract
from paths import PROGRAMS
from safetensors.torch import save_file
from transformers.utils import ModelOutput

from hf_clip_variants.registry import methods


def test_every_model_of_the_registry_has_a_case():
    assert {case.name for case in CASES.values()} == {row.name for row in methods("model")}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


class TestModels(ModelContract):
    pass


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_whole_numbers_of_any_type_give_the_same_answer_or_are_refused_by_name(case, dtype):
    model, inputs = case.make(), case.inputs(2)
    names = [name for name, value in inputs.items() if torch.is_tensor(value) and value.dtype == torch.int64]
    names = [name for name in names if torch.equal(inputs[name].to(dtype).long(), inputs[name])]
    with torch.no_grad():
        expected = case.run(model, **inputs)
        for name in names:
            try:
                found = case.run(model, **inputs | {name: inputs[name].to(dtype)})
            except ValueError as error:
                assert str(error).startswith(name), error
            else:
                torch.testing.assert_close(
                    found, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}"
                )


@pytest.mark.parametrize("number, with_loss", [(float("nan"), False), (3e38, True)], ids=["NaN", "too large"])
def test_weights_that_give_no_finite_answer_give_none(case, number, with_loss):
    """Of weights outside of repeated layers: an error says so, or nothing that is answered depends on them."""
    model, inputs = case.make(), case.inputs(2)
    if with_loss:
        inputs |= case.loss_options
    else:
        inputs = {n: v for n, v in inputs.items() if "labels" not in n and n not in case.only_in_training}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    names = sorted(n for n, t in tensors if t.is_floating_point() and t.numel() and not re.search(r"\d", n))
    tensors = dict(tensors)
    for name in random.Random(case.id).sample(names, min(12, len(names))):
        flat = tensors[name].data.view(-1)
        before = flat[0].item()
        flat[0] = number
        try:
            with torch.inference_mode():
                found = dict(answers_of(model(**inputs)))
        except ValueError as error:
            assert "NaN" in str(error) or "3e+38" in str(error), (name, error)
        else:
            wrong = [key for key, value in found.items() if not value.isfinite().all()]
            assert not wrong, f"{wrong} are not finite, because of {name}"
        flat[0] = before


def answers_of(outputs, start: str = ""):
    for name, value in outputs.items():
        if isinstance(value, ModelOutput):
            yield from answers_of(value, f"{start}{name}.")
        elif torch.is_tensor(value) and value.is_floating_point() and "hidden" not in name:
            yield f"{start}{name}", value


def export(case, folder) -> dict:
    """Exports the case's model and processor, and writes what they give; the arguments of the program below."""
    from hf_clip_variants.hub.export import export_with_code

    model, processor = case.make(), case.processor and case.processor()
    repo_id = f"alice/coded-{case.id}"
    exported = export_with_code(model, processor, folder / f"exported-{case.id}", license="mit", repo_id=repo_id)
    assert model._auto_class is None and (processor is None or type(processor)._auto_class is None)
    assert "auto_map" not in model.config.to_dict()
    inputs = {name: value for name, value in case.inputs(4).items() if name not in case.only_in_training}
    expected = {f"inputs.{name}": value for name, value in inputs.items() if torch.is_tensor(value)}
    expected["output"] = case.run(model).contiguous()
    if hasattr(processor, "video_processor"):
        expected["video"] = torch.randint(0, 256, (5, 40, 30, 3), dtype=torch.uint8)
        expected["processed"] = processor(videos=expected["video"].numpy(), return_tensors="pt").pixel_values_videos
    elif case.row.point_processor:
        expected["cloud"] = torch.randn(90, 3)
        expected["processed"] = processor(points=expected["cloud"], return_tensors="pt").points
    elif processor is not None:
        expected["image"] = torch.randint(0, 256, (40, 30, 3), dtype=torch.uint8)
        expected["processed"] = processor(images=expected["image"].numpy(), return_tensors="pt").pixel_values
    if case.row.feature_extractor:
        expected["audio"], rate = torch.randn(700) / 9, processor.feature_extractor.sampling_rate
        expected["input_features"] = processor(
            audio=expected["audio"], sampling_rate=rate, return_tensors="pt"
        ).input_features
    save_file(expected, folder / "expected.safetensors")
    readme = (exported / "README.md").read_text()
    (folder / "snippet.py").write_text(readme.partition("```python\n")[2].partition("```")[0])
    return {
        "name": case.id,
        "home": str(folder),
        "folder": str(exported),
        "repo_id": repo_id,
        "auto_class": case.auto_class,
        "output": case.output,
    }


@pytest.mark.hub
@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_exported_code_runs_where_the_package_is_missing(part, tmp_path):
    """A third of the models in one process: what it imports takes as long as what it does."""
    cases = [*CASES.values()][part::3]
    with FakeHub() as hub:
        exports = []
        for case in cases:
            (tmp_path / case.id).mkdir()
            exports.append(export(case, tmp_path / case.id))
            hub.create(exports[-1]["repo_id"], exports[-1]["folder"])
        (tmp_path / "exports.json").write_text(json.dumps(exports))
        ran = subprocess.run(
            [sys.executable, str(PROGRAMS / "without_package.py"), str(tmp_path / "exports.json")],
            env={**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    steps = ["refused without trust_remote_code", "folder", "hub", "saved again", "pushed again", "snippet"]
    passed = ran.stdout.splitlines()
    for case in cases:
        missing = [step for step in steps if f"passed: {case.id}: {step}" not in passed]
        assert not missing, f"{case.id}: {missing}"
