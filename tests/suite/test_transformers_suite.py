"""transformers' ModelTesterMixin, ProcessorTesterMixin and ImageProcessingTestMixin over every model of the registry.

They import transformers' package `tests`, so they run in a separate process. `DESELECTED` in the suites says which
tests are left out and why. `SUITE_MODELS=clip_resnet,slip` runs the tests of these models only.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from paths import TESTS

from hf_clip_variants.registry import methods


CHOSEN = os.environ.get("SUITE_MODELS")
ROWS = [row for row in methods("model") if not CHOSEN or row.name in CHOSEN.split(",")]
# In processes of about the same length, so that two workers end together: every other row, and what is no row's main
# class (`None`).
PARTS = [ROWS] if CHOSEN else [ROWS[::2], ROWS[1::2], None]
# Tests that must have run.
ESSENTIAL = {
    "modeling_suite": (
        "test_config",
        "test_save_load",
        "test_from_pretrained_no_checkpoint",
        "test_init_weights_can_init_buffers",
        "test_can_be_initialized_on_meta",
        "test_model_outputs_equivalence",
        "test_hidden_states_output",
        "test_attention_outputs",
        "test_training",
        "test_training_gradient_checkpointing",
        "test_determinism",
        "test_batching_equivalence",
        "test_problem_types",
        "test_all_tensors_are_parameter_or_buffer",
        "test_feed_forward_chunking",
        "test_retain_grad_hidden_states_attentions",
        "test_base_model_prefix_loads_base_weights",
    ),
    "processing_suite": (
        "test_image_processor_from_and_save_pretrained",
        "test_image_processor_save_load_with_autoimageprocessor",
        "test_call_pil",
        "test_call_numpy",
        "test_call_pytorch",
        "test_processor_from_and_save_pretrained",
        "test_processor_with_multiple_inputs",
        "test_model_input_names",
        "test_video_processor_from_and_save_pretrained",
        "test_video_processor_save_load_with_autovideoprocessor",
    ),
}


def run(folder: Path, report: Path, selection: str) -> tuple[dict[str, dict[str, list[str]]], str]:
    """Suite -> passed, failed, skipped -> "Class.test", of a selection as pytest's `-k` takes it. Both suites in one
    process: what it imports takes as long as a suite."""
    environment = {
        **os.environ,
        # PYTHONPATH already holds tests/support, see tests/conftest.py.
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"]]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", *(str(TESTS / "suite" / f"{suite}.py") for suite in ESSENTIAL)]
    command += ["--noconftest", "-c", os.devnull, "-q"]
    command += ["--rootdir", str(folder), "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
    command += ["--show-capture=no", "--tb=short", f"--junitxml={report}"]
    command += ["-k", selection]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    results = {suite: {"passed": [], "failed": [], "skipped": []} for suite in ESSENTIAL}
    for case in ElementTree.parse(report).iter("testcase") if report.is_file() else ():
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        test_class = case.get("classname", "").rsplit(".")[-1]
        suite = "processing_suite" if test_class.endswith("ProcessorSuite") else "modeling_suite"
        results[suite][kind].append(f"{test_class}.{case.get('name')}")
    return results, ran.stdout[-6000:] + ran.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(len(PARTS)))
def test_transformers_own_tests_pass(part, transformers_tests, tmp_path, record_property):
    rows = PARTS[part] or []
    names = " or ".join(row.load("model").__name__ for row in rows or ROWS)
    results, output = run(transformers_tests, tmp_path / "report.xml", names if rows else f"not ({names})")
    counts = {
        suite: ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items()) for suite, kinds in results.items()
    }
    for suite, count in counts.items():
        record_property("suite", f"transformers' own tests, {suite}, part {part + 1}: {count}")
    for suite, kinds in results.items():
        assert not kinds["failed"], f"{counts[suite]}\n{output}"
        assert kinds["passed"] or not rows, output
        for row in rows:
            if suite == "processing_suite" and not row.processor:
                continue  # it uses another method's
            passed = {name.split(".")[1] for name in kinds["passed"] if name.startswith(row.load("model").__name__)}
            parts = {
                "test_image_processor": row.image_processors,
                "test_video_processor": row.video_processor,
                "test_call": row.image_processors or row.video_processor,
                "test_model_input_names": not row.point_processor,
                "test_processor_with_multiple_inputs": not row.point_processor,
            }
            left_out = tuple(beginning for beginning, part in parts.items() if not part)
            essential = [name for name in ESSENTIAL[suite] if not name.startswith(left_out)]
            missing = [name for name in essential if name not in passed]
            assert not missing, f"{row.name}: did not run {missing}\n{output}"
