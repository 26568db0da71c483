"""A method is its folder and its row: without both everything else works, and a new folder and row are enough."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from package_copy import add_row, copy_package, methods_built_on, remove_method
from paths import PROGRAMS, ROOT

from hf_clip_variants.registry import methods


FOUNDATION = "clip_classifier"  # every adapter is built on it


@pytest.mark.slow
def test_package_works_without_any_one_method(tmp_path):
    copies, built_on = {}, {}
    for name in (row.name for row in methods() if row.name != FOUNDATION):
        package = copy_package(tmp_path / name)
        built_on[name] = methods_built_on(package, name)
        for removed in {name} | built_on[name]:
            remove_method(package, removed)
        copies[name] = str(package.parent)
    # Models that are built on a removed model are removed, too. Adapters depend on no other method.
    assert {name for name, others in built_on.items() if others} == {"clip_resnet"}
    task = tmp_path / "copies.json"
    task.write_text(json.dumps(copies))
    command = [sys.executable, "-W", "ignore", str(PROGRAMS / "import_everything.py"), str(task)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"{name} works" for name in copies]


TOY_ROW = """\
    Method(
        name="toy_bias",
        kind="adapter",
        title="Toy-Bias",
        paper=Paper("A bias for each class", "2601.00001", 2026, "Somebody"),
        code=OfficialCode("somebody/toy-bias", "MIT"),
        task="image-classification",
        summary="A learned bias for each class.",
        config="adapters.toy_bias.config:ToyBiasConfig",
        layer="adapters.toy_bias.layer:ToyBiasLayer",
        tuner="adapters.toy_bias.model:ToyBiasModel",
        few_shot=(FewShotEntry("toy_bias", "Toy-Bias", "adapters.toy_bias.few_shot:TOY_BIAS"),),
    ),
"""
TOY_FILES = {
    "__init__.py": "",
    "README.md": "# Toy-Bias\n",
    "config.py": """
        from dataclasses import dataclass, field
        from typing import ClassVar

        from ..tuner import TunerConfig


        @dataclass
        class ToyBiasConfig(TunerConfig):
            peft_type_name: ClassVar[str] = "CLIPV_TOY_BIAS"
            allow_other_backbone: bool = field(default=False, metadata={"help": "Load on other weights. Not saved."})

            def adapter_tensors(self):
                return {"logit_head.clipv_toy_bias_bias": (len(self.class_names),)}

            def why_classes_are_fixed(self):
                return "has a bias for each class"
        """,
    "layer.py": """
        import torch
        from torch import nn

        from ..tuner import TunerLayer


        class ToyBiasLayer(TunerLayer):
            adapter_layer_names = ("clipv_toy_bias_bias",)

            def __init__(self, base_layer, anchor):
                super().__init__(base_layer, anchor)
                self.clipv_toy_bias_bias = nn.ParameterDict()

            def update_layer(self, adapter_name, config):
                self.configs[adapter_name] = config
                zeros = torch.zeros(len(config.class_names), device=self.adapter_device)
                self.clipv_toy_bias_bias[adapter_name] = nn.Parameter(zeros)

            def forward(self, *args, **kwargs):
                logits, name = self.base_layer(*args, **kwargs), self.active_name()
                return logits if name is None else logits + self.clipv_toy_bias_bias[name]
        """,
    "model.py": """
        from ..tuner import Tuner
        from .layer import ToyBiasLayer


        class ToyBiasModel(Tuner):
            prefix = "clipv_toy_bias_"
            tuner_layer_cls = ToyBiasLayer
            tensor_widths = ()

            @classmethod
            def targets(cls, config, base):
                return {"logit_head": base.family.image_modules(base.clip)[-1]}

            def _wrap(self, target, name, anchor):
                return ToyBiasLayer(target, anchor)
        """,
    "few_shot.py": """
        from ...few_shot.method import FewShotMethod
        from ...few_shot.recipes import SMALL_MODEL_TRAINER, Recipe
        from .config import ToyBiasConfig


        def recipe(shots, dataset, protocol):
            return Recipe(
                method="toy_bias", epochs=3, batch_size=8, few_shot_protocol="coop", seeds=(1,), **SMALL_MODEL_TRAINER
            )


        def fit(fit):
            return fit.train_best([ToyBiasConfig(**fit.config)])[0], {}


        TOY_BIAS = FewShotMethod(name="toy_bias", config_class=ToyBiasConfig, published=recipe, fit=fit)
        """,
}


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory):
    """A copy of the package with one more folder and row, and the environment that imports this copy."""
    folder = tmp_path_factory.mktemp("toy")
    package = copy_package(folder)
    for name, text in TOY_FILES.items():
        (package / "adapters" / "toy_bias").mkdir(exist_ok=True)
        (package / "adapters" / "toy_bias" / name).write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    add_row(package, TOY_ROW)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return folder, os.environ | {"PYTHONPATH": path}


def run(with_toy, *arguments, code=0):
    folder, environment = with_toy
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr[-3000:]
    return done.stdout


COMMAND = ("-c", "from hf_clip_variants.cli import main; main()")


@pytest.mark.slow
def test_commands_fit_save_and_load_a_new_adapter(with_toy):
    folder, _ = with_toy
    assert "toy_bias" in run(with_toy, *COMMAND, "methods", "--kind", "adapter")
    results = json.loads(
        run(
            with_toy,
            *COMMAND,
            *"adapt --data emoji:fluentflat,emojione --test-data emoji:notov1 --methods toy_bias".split(),
            *"--shots 1 --seeds 1 --out run --json".split(),
        )
    )
    (fitted,) = results["runs"]
    assert fitted["error"] is None and fitted["title"] == "Toy-Bias" and fitted["trained_parameters"] == 190
    adapter = folder / "run" / fitted["folder"]
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "CLIPV_TOY_BIAS"
    assert "A bias for each class" in (adapter / "README.md").read_text()
    evaluated = json.loads(
        run(with_toy, *COMMAND, "evaluate", "--adapter", adapter, "--data", "emoji:notov1", "--json")
    )
    assert evaluated["accuracy"] == pytest.approx(fitted["accuracy"]["notov1"])


def test_new_adapter_is_public_and_in_the_readme(with_toy):
    folder, _ = with_toy
    program = "import hf_clip_variants as h, hf_clip_variants.adapters as a; print(h.ToyBiasConfig is a.ToyBiasConfig)"
    assert run(with_toy, "-c", program).strip() == "True"
    readme, stub = folder / "README.md", folder / "names.pyi"
    readme.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    run(with_toy, ROOT / "scripts" / "make_generated_files.py", "--readme", readme, "--stub", stub)
    assert "| [Toy-Bias](hf_clip_variants/adapters/toy_bias/README.md) | `toy_bias` | adapter |" in readme.read_text()
    assert "from .adapters.toy_bias.config import ToyBiasConfig as ToyBiasConfig" in stub.read_text()


def test_contract_requires_a_case_for_a_new_adapter(with_toy):
    program = textwrap.dedent("""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("contract", sys.argv[1])
        contract = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(contract)
        try:
            contract.test_every_adapter_of_the_registry_has_a_case()
        except AssertionError as error:
            print("missing")
    """)
    contract = ROOT / "tests" / "hf_clip_variants" / "adapters" / "test_contract.py"
    assert run(with_toy, "-c", program, contract).strip() == "missing"
