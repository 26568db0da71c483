"""The post-import hook, with toy modules."""

import importlib
import importlib.util
import inspect
import subprocess
import sys
import threading
import warnings
import zipfile

import pytest

from hf_clip_variants.registration import post_import
from hf_clip_variants.registration.post_import import after_import


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Creates toy modules, and removes them and their hooks afterwards."""
    names = []

    def make(name, source="VALUE = 1\n"):
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        names.append(name)
        importlib.invalidate_caches()
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    for name in names:
        sys.modules.pop(name, None)
        post_import._FINDER.callbacks.pop(name, None)


def test_callback_runs_after_the_import_and_gets_the_module(toy):
    seen = []
    after_import(toy("toy_late"), lambda module: seen.append(module.VALUE))
    assert seen == []
    import toy_late

    assert seen == [1]
    importlib.import_module("toy_late")
    assert seen == [1], "a second import statement does not run the callback"
    importlib.reload(toy_late)
    assert seen == [1, 1], "a reload runs the module, and so the callback, again"


def test_callback_runs_now_if_the_module_is_imported(toy):
    importlib.import_module(toy("toy_early"))
    seen = []
    after_import("toy_early", seen.append)
    assert [module.__name__ for module in seen] == ["toy_early"]


def test_imported_module_has_its_original_loader(toy):
    after_import(toy("toy_trace"), lambda module: None)
    import toy_trace

    plain = importlib.machinery.SourceFileLoader
    assert isinstance(toy_trace.__loader__, plain) and isinstance(toy_trace.__spec__.loader, plain)
    assert inspect.getsource(toy_trace) == "VALUE = 1\n"


def test_find_spec_does_not_import(toy):
    seen = []
    after_import(toy("toy_spec"), seen.append)
    spec = importlib.util.find_spec("toy_spec")
    assert spec.origin.endswith("toy_spec.py") and spec.loader.get_source("toy_spec") == "VALUE = 1\n"
    assert seen == [] and "toy_spec" not in sys.modules
    after_import("toy_absent", seen.append)
    assert importlib.util.find_spec("toy_absent") is None
    with pytest.raises(ModuleNotFoundError, match="toy_absent"):
        importlib.import_module("toy_absent")


def test_private_copy_of_a_module_is_not_registered(toy):
    seen = []
    after_import(toy("toy_by_hand"), seen.append)
    spec = importlib.util.find_spec("toy_by_hand")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.VALUE == 1 and seen == []


def test_error_in_the_callback_is_a_warning_during_import(toy):
    def fail(module):
        raise KeyError("no such enum")

    after_import(toy("toy_failing"), fail)
    with pytest.warns(
        RuntimeWarning, match="could not register its methods with toy_failing .KeyError: 'no such enum'"
    ):
        import toy_failing
    assert toy_failing.VALUE == 1
    with pytest.raises(KeyError):  # already imported: the error is raised
        after_import("toy_failing", fail)


def test_error_in_the_module_is_raised_unchanged(toy):
    seen = []
    after_import(toy("toy_broken", "raise RuntimeError('mine')\n"), seen.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="mine"):
            importlib.import_module("toy_broken")
    assert seen == [] and "toy_broken" not in sys.modules


def test_zip_archives_and_namespace_packages(toy, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("toy_zipped.py", "VALUE = 2\n")
        archive.writestr("toy_zipped_too.py", "VALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path / "archive.zip"))
    (tmp_path / "toy_namespace").mkdir()
    seen = []
    after_import("toy_zipped", lambda module: seen.append(module.VALUE))
    after_import("toy_namespace", seen.append)
    try:
        import toy_namespace
        import toy_zipped
        import toy_zipped_too

        assert seen == [2] and toy_zipped_too.VALUE == 3 and toy_zipped.__loader__ is toy_zipped_too.__loader__
        assert toy_namespace.__file__ is None
    finally:
        for name in ("toy_zipped", "toy_zipped_too", "toy_namespace"):
            sys.modules.pop(name, None)
            post_import._FINDER.callbacks.pop(name, None)


def test_another_hook_of_the_same_kind(toy, monkeypatch):
    """Two finders that both call `importlib.util.find_spec` must not recurse endlessly."""

    class Other:
        busy = False

        def find_spec(self, name, path=None, target=None):
            if name != "toy_shared" or self.busy:
                return None
            self.busy = True
            try:
                return importlib.util.find_spec(name)
            finally:
                self.busy = False

    seen = []
    after_import(toy("toy_shared"), lambda module: seen.append(module.VALUE))
    for position in (0, len(sys.meta_path)):
        sys.modules.pop("toy_shared", None)
        seen.clear()
        finders = list(sys.meta_path)
        finders.insert(position, Other())
        monkeypatch.setattr(sys, "meta_path", finders)
        importlib.import_module("toy_shared")
        assert seen and set(seen) == {1}


def test_eight_threads_import_at_the_same_time(toy):
    seen, errors = [], []
    after_import(
        toy("toy_threads", "import time\ntime.sleep(0.05)\nVALUE = 1\n"), lambda module: seen.append(module.VALUE)
    )
    barrier = threading.Barrier(8)

    def work():
        try:
            barrier.wait(10)
            assert importlib.import_module("toy_threads").VALUE == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert not errors and seen == [1]


def test_after_import_waits_for_an_import_in_another_thread(toy):
    started, seen = threading.Event(), []
    sys.toy_started = started
    toy("toy_slow", "import sys, time\nsys.toy_started.set()\ntime.sleep(0.1)\nVALUE = 1\n")
    thread = threading.Thread(target=importlib.import_module, args=("toy_slow",))
    thread.start()
    assert started.wait(10)
    after_import("toy_slow", lambda module: seen.append(module.VALUE))
    thread.join(10)
    del sys.toy_started
    assert seen == [1]


def test_module_with_a_hook_can_be_run_by_run_module(toy, tmp_path):
    """`python -m name` asks our loader for the module's code."""
    toy("toy_main", "import sys\nprint('ran', __name__, sys.argv[1:])\n")
    program = (
        "import runpy, hf_clip_variants.registration.post_import as p; "
        "p.after_import('toy_main', print); runpy.run_module('toy_main', run_name='x')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "ran x []\n", done.stderr
