"""Reading checkpoints of unknown origin: what is read, and what must never happen."""

import argparse
import io
import os
import pickle
import random
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from crafted_pickles import state_dict, tensor, text, write_legacy, write_zip
from parity_fixtures import assert_close, load_fixture
from safetensors.torch import save_file

from hf_clip_variants.conversion.checkpoint_reader import (
    UnsafeCheckpointError,
    read_checkpoint,
    read_state_dict,
    unwrap_state_dict,
)


SUFFIXES = [".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".pth.tar-50"]


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "visual.conv1.weight": torch.randn(4, 3, 2, 2, generator=generator).half(),
        "ln.weight": torch.randn(5, generator=generator),
        "scale": torch.tensor(2.5),
        "ids": torch.arange(6).reshape(2, 3),
        "mask": torch.tensor([True, False]),
        "brain": torch.randn(3, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert actual[name].dtype == wanted.dtype and torch.equal(actual[name], wanted), name


class Payload:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def shell(canary):
    return Payload(os.system, f"touch {canary}")


class TestReads:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_torch_save(self, weights, tmp_path, suffix, zipped):
        path = tmp_path / f"model{suffix}"
        torch.save(OrderedDict(weights), path, _use_new_zipfile_serialization=zipped)
        assert_same(read_state_dict(path), weights)
        assert_same(read_state_dict(str(path)), weights)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
    def test_every_pickle_protocol_is_read(self, weights, tmp_path, protocol, zipped):
        path = tmp_path / "model.pt"
        torch.save(weights, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert_same(read_state_dict(path), weights)

    def test_safetensors_are_recognised_by_content(self, weights, tmp_path):
        for name in ("model.safetensors", "model.bin"):
            save_file(weights, tmp_path / name)
            assert_same(read_state_dict(tmp_path / name), weights)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_views_of_one_storage_share_memory(self, tmp_path, zipped):
        base = torch.arange(12.0).reshape(3, 4)
        views = {
            "all": base,
            "transposed": base.t(),
            "column": base[:, 1],
            "tail": base[2:],
            "one": base[1, 1],
            "wide": base[:, ::2],
        }
        torch.save(views, tmp_path / "views.pt", _use_new_zipfile_serialization=zipped)
        loaded = read_state_dict(tmp_path / "views.pt")
        assert_same(loaded, views)
        assert loaded["all"].untyped_storage().data_ptr() == loaded["tail"].untyped_storage().data_ptr()

    def test_parameters_and_new_dtypes_are_read(self, tmp_path):
        parameter = torch.nn.Parameter(torch.ones(2))
        parameter.note = "kept by torch, dropped here"
        weights = {
            "p": parameter,
            "f8": torch.ones(2).to(torch.float8_e4m3fn),
            "u16": torch.ones(3, dtype=torch.uint16),
        }
        torch.save(weights, tmp_path / "model.pt")
        loaded = read_state_dict(tmp_path / "model.pt")
        assert not loaded["p"].requires_grad and torch.equal(loaded["p"], parameter)
        assert torch.equal(loaded["f8"].float(), torch.ones(2)) and loaded["u16"].dtype == torch.uint16

    def test_a_single_tensor(self, tmp_path):
        """Tip-Adapter's `keys_16shots.pt` and `best_F_16shots.pt`."""
        torch.save(torch.nn.Parameter(torch.ones(2, 3).half()), tmp_path / "keys.pt")
        assert torch.equal(read_checkpoint(tmp_path / "keys.pt"), torch.ones(2, 3).half())
        with pytest.raises(
            ValueError, match=r"keys.pt: expected a dictionary .* got a single tensor: use read_checkpoint"
        ):
            read_state_dict(tmp_path / "keys.pt")

    def test_plain_values_are_read(self, tmp_path):
        shared = [1, 2.5, "x", None, True, -(10**30)]
        stored = {
            "a": shared,
            "b": (shared, {}),
            3: torch.ones(1),
            "size": torch.Size([2, 3]),
            "many": defaultdict(int, k=1),
        }
        torch.save(stored | {"when": np.float64(1), "list": [argparse.Namespace()]}, tmp_path / "x.pt")
        loaded = read_checkpoint(tmp_path / "x.pt")
        assert torch.equal(loaded.pop("3"), torch.ones(1))
        assert loaded == {"a": shared, "b": (shared, {}), "size": (2, 3), "many": {"k": 1}, "list": [None]}
        assert loaded["b"][0] is loaded["a"]

    def test_storages_of_dropped_entries_are_not_read(self, tmp_path, monkeypatch):
        torch.save({"model": {"w": torch.ones(2)}, "optimizer": {"exp_avg": torch.ones(3)}}, tmp_path / "x.pt")
        read = []
        original = torch.frombuffer
        monkeypatch.setattr(
            torch, "frombuffer", lambda data, **kwargs: read.append(len(data)) or original(data, **kwargs)
        )
        read_state_dict(tmp_path / "x.pt")
        assert read == [8]


class TestTorchScript:
    """OpenAI's CLIP files are TorchScript archives."""

    @pytest.fixture
    def script(self, tmp_path):
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.visual = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
                self.logit_scale = torch.nn.Parameter(torch.tensor(0.5))
                self.register_buffer("input_resolution", torch.tensor(224))

            def forward(self, x):
                return self.visual(x) * self.logit_scale + torch.tensor([1.0, 2.0])

        path = tmp_path / "script.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(Model().half().float(), torch.ones(1, 3))
            torch.jit.save(traced, path)
        return path, {name: value.detach() for name, value in traced.state_dict().items()}

    @staticmethod
    def doctor(path, replace):
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
        doctored = path.with_name("doctored.pt")
        with zipfile.ZipFile(doctored, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, next((new for end, new in replace.items() if name.endswith(end)), data))
        return doctored

    def test_names_and_tensors_equal_the_running_modules(self, script):
        assert_same(read_state_dict(script[0]), script[1])

    def test_code_and_constants_are_never_read(self, script, canary):
        payload = pickle.dumps(shell(canary), protocol=2)
        code = f"import os\nos.system('touch {canary}')\n".encode()
        doctored = self.doctor(
            script[0], {"constants.pkl": payload, ".py": code, ".debug_pkl": payload, "traced_inputs.pkl": payload}
        )
        assert_same(read_state_dict(doctored), script[1])
        assert not canary.exists()

    def test_a_payload_in_the_data_is_refused(self, script, canary):
        doctored = self.doctor(script[0], {"script/data.pkl": pickle.dumps(shell(canary), protocol=2)})
        with pytest.raises(UnsafeCheckpointError, match="^refused global os.system"):
            read_state_dict(doctored)
        assert not canary.exists()


# What a hostile file may name, as module:name.
REFUSED_GLOBALS = """
    builtins:eval __builtin__:exec builtins:getattr builtins:__import__ builtins:open nt:system posix:system
    subprocess:Popen sys:exit shutil:rmtree runpy:run_path torch:load torch.storage:_load_from_bytes
    torch.serialization:load torch.hub:load torch.jit:load torch._utils:_rebuild_device_tensor_from_numpy
    torch.nn.modules.linear:Linear numpy.testing._private.utils:runstring numpy.f2py.crackfortran:myeval numpy:load
    functools:partial operator:attrgetter types:FunctionType types:CodeType pickle:loads
"""
# Python's own unpickler follows dots from an allowed name to others.
REFUSED_DOTTED_NAMES = """
    argparse:Namespace.__init__.__globals__ torch.optim.sgd:torch.hub.load omegaconf:os.system
    torch.optim.Optimizer.__init__:__globals__
    collections:OrderedDict.__class__ torch._utils:_rebuild_tensor_v2.__globals__ torch:FloatStorage.cuda
"""


class TestRefusesCode:
    def test_the_payload_runs_when_python_unpickles_it(self, canary):
        """Otherwise the tests below would prove nothing."""
        pickle.loads(pickle.dumps(shell(canary)))
        assert canary.exists()

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("place", ["alone", "after a valid state dict", "as an attribute of a tensor"])
    def test_torch_save(self, weights, tmp_path, canary, suffix, zipped, place):
        parameter = torch.nn.Parameter(torch.ones(1))
        parameter.note = shell(canary)
        evil = {
            "alone": shell(canary),
            "after a valid state dict": {"state_dict": weights, "zz": shell(canary)},
            "as an attribute of a tensor": {"w": parameter},
        }[place]
        path = tmp_path / f"evil{suffix}"
        torch.save(evil, path, _use_new_zipfile_serialization=zipped)
        for read in (read_state_dict, read_checkpoint):
            with pytest.raises(UnsafeCheckpointError, match="^refused global os.system") as error:
                read(path)
            assert str(path) in str(error.value)
        assert not canary.exists()

    @pytest.mark.parametrize("protocol", range(6))
    def test_a_plain_pickle_is_refused(self, tmp_path, canary, protocol):
        path = tmp_path / "evil.bin"
        path.write_bytes(pickle.dumps(shell(canary), protocol=protocol))
        with pytest.raises(UnsafeCheckpointError, match="^refused global os.system"):
            read_state_dict(path)
        assert not canary.exists()

    def test_a_payload_after_the_objects_of_a_legacy_file_is_not_run(self, tmp_path, canary):
        """Where torch.load would unpickle the list of storages."""
        good = state_dict(tensor([4], [1]))
        path = write_legacy(tmp_path / "evil.pt", good + pickle.dumps(shell(canary), 2))
        with pytest.raises(UnsafeCheckpointError, match="^refused global os.system"):
            read_state_dict(path)
        path = write_zip(tmp_path / "evil.pth", good + pickle.dumps(shell(canary), 2))
        with pytest.raises(UnsafeCheckpointError, match="bytes after the end"):
            read_state_dict(path)
        assert not canary.exists()

    @pytest.mark.parametrize("module_and_name", (REFUSED_GLOBALS + REFUSED_DOTTED_NAMES).split())
    @pytest.mark.parametrize("opcode", ["global", "stack_global", "inst"])
    def test_globals_that_rebuild_no_tensor_are_refused(self, tmp_path, module_and_name, opcode):
        module, name = module_and_name.split(":")
        code = {
            "global": f"c{module}\n{name}\n(tR".encode(),
            "stack_global": text(module) + text(name) + b"\x93)\x81",
            "inst": f"(i{module}\n{name}\n".encode(),
        }[opcode]
        shown = {"__builtin__": "builtins", "nt": "os", "posix": "os"}.get(module, module)
        with pytest.raises(UnsafeCheckpointError) as error:
            read_state_dict(write_zip(tmp_path / "x.pt", state_dict(code)))
        assert str(error.value).startswith(f"refused global {shown}.{name}")

    def test_calling_a_storage_type_is_refused(self, tmp_path):
        with pytest.raises(UnsafeCheckpointError, match="refused a call of torch.FloatStorage"):
            read_state_dict(write_zip(tmp_path / "x.pt", state_dict(b"ctorch\nFloatStorage\n(tR")))

    def test_names_from_the_file_are_printed_safely(self, tmp_path):
        path = write_zip(tmp_path / "x.pt", state_dict(text("\x1b[31m" + "a" * 5000) + text("b") + b"\x93"))
        with pytest.raises(UnsafeCheckpointError) as error:
            read_state_dict(path)
        assert "\x1b" not in str(error.value) and len(str(error.value)) < 1000

    def test_a_tar_archive_is_refused(self, tmp_path, canary):
        torch.save({"w": shell(canary)}, tmp_path / "evil.pt")
        for mode, message in (("w", "refused a tar archive"), ("w:gz", "unknown opcode")):
            path = tmp_path / "evil.pth.tar"
            with tarfile.open(path, mode) as archive:
                archive.add(tmp_path / "evil.pt")
            with pytest.raises(OSError, match=message):
                read_state_dict(path)
        assert not canary.exists()

    def test_whole_models_are_refused_with_a_hint(self, tmp_path):
        torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
        with pytest.raises(
            UnsafeCheckpointError, match=r"torch.nn.modules.linear.Linear: .* only its state_dict\(\) can be read"
        ):
            read_state_dict(tmp_path / "x.pt")

    def test_nothing_is_extracted(self, tmp_path):
        folder = tmp_path / "in" / "here"
        folder.mkdir(parents=True)
        extra = {
            "../escaped": b"x",
            "archive/../../escaped": b"x",
            "/absolute_escape": b"x",
            "archive/data/../../escaped": b"x",
        }
        path = write_zip(folder / "x.pt", state_dict(tensor([4], [1])), extra=extra)
        assert list(read_state_dict(path)) == ["w"]
        assert [item for item in tmp_path.rglob("*") if item.is_file()] == [path]
        assert not Path("/absolute_escape").exists()


class TestDamaged:
    @pytest.fixture
    def files(self, weights, tmp_path):
        save_file(weights, tmp_path / "a.safetensors")
        torch.save(weights, tmp_path / "zip.pt")
        torch.save(weights, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
        return [tmp_path / "a.safetensors", tmp_path / "zip.pt", tmp_path / "legacy.pt"]

    def test_truncated_and_extended_files_are_errors(self, files):
        for path in files:
            data = path.read_bytes()
            cuts = [0, 1, 3, 7, 8, 9, 100, len(data) // 3, len(data) // 2, len(data) - 9, len(data) - 1]
            for damaged in [data[:cut] for cut in cuts] + [data + b"x", data + bytes(100)]:
                path.write_bytes(damaged)
                if path.name == "zip.pt" and len(damaged) > len(data):
                    continue  # a zip archive may carry a comment: what is behind it is not read
                with pytest.raises(OSError, match=r"not a valid|empty|refused storage") as error:
                    read_state_dict(path)
                assert str(path) in str(error.value), (path.name, len(damaged))

    def test_errors_about_safetensors_name_the_format(self, tmp_path):
        path = tmp_path / "model.safetensors"
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
        with pytest.raises(OSError, match=rf"^{path}: not a valid safetensors file \(.+\). Re-download"):
            read_state_dict(path)

    @pytest.mark.parametrize(
        "content",
        [
            b"<!DOCTYPE html><html>",
            b"\x89PNG\r\n\x1a\n" + bytes(90),
            bytes(1000),
            b"PK\x03\x04" + bytes(400),
            b"N.",
            b"(",
            b"\x80\x02].",
        ],
    )
    def test_garbage_is_an_error_with_the_path(self, tmp_path, content):
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        with pytest.raises(OSError, match="not a valid PyTorch checkpoint") as error:
            read_state_dict(path)
        assert not isinstance(error.value, UnsafeCheckpointError) and str(error.value).startswith(str(path))

    def test_other_zip_files_are_errors(self, tmp_path):
        path = tmp_path / "x.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(OSError, match="0 entries <name>/data.pkl"):
            read_state_dict(path)
        write_zip(path, state_dict(tensor([4], [1])), extra={"archive/byteorder": b"big"})
        with pytest.raises(OSError, match="not little-endian"):
            read_state_dict(path)
        write_zip(path, state_dict(tensor([4], [1])), storages={"1": bytes(16)})
        with pytest.raises(OSError, match="entry archive/data/0 is missing"):
            read_state_dict(path)

    def test_missing_files_and_folders_are_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
            read_state_dict(tmp_path / "none.pt")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            read_state_dict(tmp_path)

    def test_bytes_that_are_missing_in_the_middle_are_errors(self, files):
        """A zip archive then lies about positions: some are before the file's beginning."""
        for path in files:
            data = path.read_bytes()
            for start in range(50, len(data) // 2, 97):
                path.write_bytes(data[:start] + data[start + 5 :])
                with pytest.raises((OSError, ValueError), match=re.escape(str(path))):
                    read_state_dict(path)

    def test_flipped_bytes_give_our_errors_or_tensors(self, files, weights):
        """Our errors or tensors, never another exception. Zip archives have checksums, so their tensors are equal."""
        generator = random.Random(0)
        outcomes = {path.name: {"read": 0, "refused": 0} for path in files}
        for path in files:
            data = path.read_bytes()
            for _ in range(300):
                damaged = bytearray(data)
                # half of them where the structure is: the first and the last kilobyte
                where = generator.choice([len(data), 1024, -1024])
                place = generator.randrange(min(abs(where), len(data)))
                damaged[place if where > 0 else -1 - place] ^= generator.randrange(1, 256)
                path.write_bytes(damaged)
                try:
                    loaded = read_state_dict(path)
                except (OSError, ValueError) as error:
                    assert str(path) in str(error)
                    outcomes[path.name]["refused"] += 1
                    continue
                outcomes[path.name]["read"] += 1
                if path.name == "zip.pt":
                    assert_same(loaded, weights)
                else:
                    assert sum(t.numel() * t.element_size() for t in loaded.values()) <= len(data)
        assert all(count > 20 for outcome in outcomes.values() for count in outcome.values()), outcomes


class TestUnwrap:
    @pytest.mark.parametrize("keys", [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
    def test_nesting_and_prefixes_are_removed(self, weights, keys, prefix):
        nested = {prefix + name: tensor for name, tensor in weights.items()}
        for key in keys:
            nested = {"epoch": torch.tensor(3), key: nested}
        assert_same(unwrap_state_dict(nested), weights)

    def test_only_wrappers_are_stripped(self):
        weights = {"visual._orig_mod.w": torch.ones(1), "a.module.w": torch.ones(1), "modules.w": torch.ones(1)}
        assert list(unwrap_state_dict(weights)) == ["visual.w", "a.module.w", "modules.w"]

    def test_one_log_line_lists_what_was_dropped(self, caplog, tmp_path):
        stored = {
            "epoch": 3,
            "state_dict": {"module.w": torch.ones(1), "steps": 7},
            "args": argparse.Namespace(lr=1),
            "best": np.float64(0.5),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}},
        }
        torch.save(stored, tmp_path / "x.pt")
        assert list(read_state_dict(tmp_path / "x.pt")) == ["w"]
        (record,) = caplog.records
        assert record.getMessage().startswith(
            f"{tmp_path / 'x.pt'}: kept 1 tensors, dropped epoch, args, best, optimizer, steps; never built: "
        )
        assert "argparse.Namespace" in record.getMessage() and "multiarray.scalar" in record.getMessage()

    def test_nothing_is_logged_when_nothing_was_dropped(self, caplog, weights):
        unwrap_state_dict(weights)
        assert not caplog.records

    def test_long_lists_are_cut(self, caplog):
        unwrap_state_dict({"w": torch.ones(1)} | {f"k{i}": i for i in range(30)})
        assert "k9 and 20 more" in caplog.text and "k10" not in caplog.text

    def test_errors(self, tmp_path):
        with pytest.raises(ValueError, match="no state dict found; the top level holds epoch, lr"):
            unwrap_state_dict({"epoch": 1, "lr": 0.1})
        with pytest.raises(ValueError, match="two tensors are named 'w'"):
            unwrap_state_dict({"w": torch.ones(1), "module.w": torch.ones(1)})
        with pytest.raises(ValueError, match="got a list"):
            unwrap_state_dict([torch.ones(1)])


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_checkpoint_converts(tmp_path, zipped):
    """float16 weights with `module.`, beside Namespace, NumPy scalars, optimiser, scheduler: features equal the
    official ones.
    """
    from hf_clip_variants.modeling.clip.convert_clip import clip_from_official

    fixture = load_fixture("clip_openai_ckpt_vit")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    checkpoint = {
        "epoch": 50,
        "state_dict": OrderedDict((f"module.{name}", tensor) for name, tensor in fixture.state_dict.items()),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)},
        "args": argparse.Namespace(arch="ViT", nested=argparse.Namespace(x=[1])),
        "val_result": np.float32(71.3),
        "confusion": np.eye(3),
        "out": Path("runs"),
    }
    path = tmp_path / "model.pth.tar-50"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    model = clip_from_official(read_state_dict(path))
    with torch.no_grad():
        features = model.get_image_features(fixture.inputs["image"]).pooler_output
    assert_close(features, fixture.outputs["image_features"], "image_features")


def test_reading_does_not_touch_the_file(weights, tmp_path):
    torch.save(weights, tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    loaded = read_state_dict(tmp_path / "x.pt")
    loaded["ln.weight"].zero_()
    assert (tmp_path / "x.pt").read_bytes() == before and io.BytesIO(before).read(4) == b"PK\x03\x04"
