"""Files with weights that are none, or too many: refused with their name, before they are read."""

import json
import os
import pickle
import resource
import struct
import time

import pytest
import torch
from glip_runs import glip_model
from model_contract import CASES
from safetensors.torch import save_file
from tiny import tiny_clip
from tiny_families import tiny_dual_encoder
from vild_runs import vild_config

from hf_clip_variants import CLIPClassifier, GLIPForZeroShotObjectDetection, ViLDForZeroShotObjectDetection
from hf_clip_variants.modeling.loading_and_saving.weight_files import LARGEST_COUNT, read_header


@pytest.fixture
def folder(tmp_path):
    tiny_clip(0).save_pretrained(tmp_path)
    return tmp_path


def write_header(path, header: bytes, length: int | None = None, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def test_the_header_of_a_good_file_is_what_safetensors_reads(folder):
    tensors = tiny_clip(0).state_dict()
    assert read_header(folder / "model.safetensors") == {name: tuple(t.shape) for name, t in tensors.items()}


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "seven bytes": lambda path: path.write_bytes(b"1234567"),
    "length beyond the file": lambda path: write_header(path, b"{}", 2**40),
    "negative length": lambda path: write_header(path, b"{}", 2**64 - 1),
    "no JSON": lambda path: write_header(path, b"nothing!"),
    "a list": lambda path: write_header(path, b"[1, 2, 3]"),
    "deeply nested": lambda path: write_header(path, b"[" * 200_000),
    "no shapes": lambda path: write_header(path, b'{"a": {"dtype": "F32"}}'),
    "offsets of text": lambda path: write_header(path, b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": "x"}}'),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_an_os_error_with_its_path(folder, damage):
    damage(folder / "model.safetensors")
    with pytest.raises(OSError, match=rf"{folder / 'model.safetensors'}: not a valid safetensors file \(.+\)"):
        CLIPClassifier.from_pretrained(folder)


def test_a_file_of_empty_tensors_without_end_is_refused_at_once(folder):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"tensor.{i}": empty for i in range(200_000)}).encode()
    for count in (LARGEST_COUNT + 1, 200_000):
        part = header if count == 200_000 else json.dumps({f"t{i}": empty for i in range(count)}).encode()
        write_header(folder / "model.safetensors", part)
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(OSError, match=r"model.safetensors: not a valid safetensors file \(.* at most\)"):
            CLIPClassifier.from_pretrained(folder)
        assert time.monotonic() - start < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


INDEXES = {
    "empty": ("", "not a list of weights"),
    "no JSON": ("{", "not a list of weights"),
    "a list": ("[]", "not a list of weights"),
    "no map": ("{}", "not a list of weights"),
    "a map of numbers": ('{"weight_map": {"a": 5}}', "5 is not a safetensors file"),
    "nothing in it": ('{"weight_map": {}}', "names no files"),
    "a missing file": ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "model-00001-of-00002.*not there"),
    "another folder": ('{"weight_map": {"a": "../x.safetensors"}}', "is not a safetensors file beside it"),
    "a pickle": ('{"weight_map": {"a": "pytorch_model.bin"}}', "is not a safetensors file beside it"),
}


@pytest.mark.parametrize(("text", "said"), INDEXES.values(), ids=INDEXES)
def test_an_index_without_its_files_is_named(folder, text, said):
    os.remove(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(OSError, match=said):
        CLIPClassifier.from_pretrained(folder)


def test_shards_still_load_and_a_damaged_one_is_named(folder):
    model = tiny_clip(0)
    os.remove(folder / "model.safetensors")
    model.save_pretrained(folder, max_shard_size="20KB")
    loaded = CLIPClassifier.from_pretrained(folder)
    assert torch.equal(loaded.clip.visual_projection.weight, model.visual_projection.weight)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(OSError, match=f"{shard}: not a valid safetensors file"):
        CLIPClassifier.from_pretrained(folder)


class _Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_folder_with_only_a_pickle_gets_our_own_sentence(folder):
    canary, path = folder / "canary", folder / "pytorch_model.bin"
    os.remove(folder / "model.safetensors")
    torch.save(tiny_clip(0).state_dict(), path)
    assert CLIPClassifier.from_pretrained(folder).clip is not None, "numbers alone do load, by PyTorch's safe reader"
    whole = path.read_bytes()
    for content in (
        b"",
        b"garbage" * 9,
        whole[: len(whole) // 2],
        pickle.dumps(_Payload(canary)),
        pickle.dumps([1, 2]),
    ):
        path.write_bytes(content)
        with pytest.raises(
            OSError, match=r"pytorch_model.bin .*want model.safetensors.*hf-clip-variants convert"
        ) as error:
            CLIPClassifier.from_pretrained(folder)
        assert "weights_only" not in str(error.value) and error.value.__suppress_context__
    torch.save({"a": _Payload(canary)}, path)
    with pytest.raises(OSError, match="hf-clip-variants convert"):
        CLIPClassifier.from_pretrained(folder)
    path.rename(folder / "weights.pt")
    with pytest.raises(OSError, match=r"no model.safetensors there, weights.pt .*hf-clip-variants convert"):
        CLIPClassifier.from_pretrained(folder)
    assert not canary.exists()


def test_more_weights_than_the_file_has_are_refused_before_they_are_made(folder):
    """Missing weights are made anew, so a file with one tensor must not let a giant be made."""
    save_file({"logit_scale": torch.tensor(1.0)}, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values["text_config"] |= {"hidden_size": 16_384, "intermediate_size": 65_536, "num_hidden_layers": 8}
    (folder / "config.json").write_text(json.dumps(values))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"asks for .* weights, .* have 1; look at .*text_config.hidden_size"):
        CLIPClassifier.from_pretrained(folder, output_loading_info=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize("field", ["mask_num_convs", "head_num_convs", "head_num_layers", "rpn_num_convs"])
def test_a_number_of_layers_that_the_file_has_not_is_named(tmp_path, field):
    ViLDForZeroShotObjectDetection(vild_config(use_masks=True)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: 5}))
    with pytest.raises(ValueError, match=rf"{field}: 5.*but the weights in .* have [12] layers"):
        ViLDForZeroShotObjectDetection.from_pretrained(tmp_path)


def test_layers_of_a_part_whose_tensors_have_another_name_are_those_of_its_configuration(tmp_path):
    case = CASES["clip4clip"]
    case.make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_config": None}))
    with pytest.raises(ValueError, match=r"head_config.num_hidden_layers: 4.* have 2 layers temporal_layers.layers"):
        case.row.load(case.part).from_pretrained(tmp_path)


def test_a_factor_that_may_have_made_a_shape_is_named(tmp_path):
    glip_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dynamic_relu_reduction": 3}))
    with pytest.raises(ValueError, match=r"look at .*dynamic_relu_reduction \(3\)"):
        GLIPForZeroShotObjectDetection.from_pretrained(tmp_path)


def test_channels_behind_a_flat_patch_embedding_are_named(tmp_path):
    tiny_dual_encoder("siglip2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_channels"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"look at .*vision_config.num_channels \(1\)"):
        CLIPClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("part, field", [("text_config", "vocab_size"), ("backbone_config", "embed_dim")])
def test_a_size_of_an_inner_configuration_that_the_file_has_not_is_named(tmp_path, part, field):
    glip_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part][field] *= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"look at .*{part}\.{field} \({config[part][field]}\)"):
        GLIPForZeroShotObjectDetection.from_pretrained(tmp_path)


def test_a_switch_that_may_have_made_a_missing_weight_is_named(tmp_path):
    model = CASES["groupvit"].make()
    del model.multi_label_logit_scale
    state = {name: tensor for name, tensor in model.state_dict().items() if "multi_label" not in name}
    model.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are missing: .*look at .*num_noun_prompts \(\d\)"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("field, value", [("window_size", [4]), ("use_absolute_embeddings", "x")])
def test_what_no_check_foresaw_is_named_where_no_model_can_be_built(tmp_path, field, value):
    glip_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"backbone_config\.{field}"):
        GLIPForZeroShotObjectDetection.from_pretrained(tmp_path)
