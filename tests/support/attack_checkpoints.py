"""Attacks on everything that reads weights: damaged and hostile files and folders, through the reader, `convert`,
`from_pretrained`, `load_adapter` and `verify`.

What is right: a file gives exactly the tensors that its bytes say, or is refused with its path. A changed number in
the data part of a safetensors or an old `torch.save` file makes another valid file, and loading cannot know that there
was a different one; so what is loaded is compared with a second, independent reading of the changed file, and noticing
the change is left to `verify`, which must, whatever byte it is. Nothing in a file is ever run: hostile files would
create a file, and are never accepted.
"""

import functools
import itertools
import json
import os
import random
import shutil
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from adapter_models import tiny_classifier
from attack_cases import WRONG, Case
from crafted_pickles import Payload
from hostile_checkpoints import (
    DTYPES,
    Attack,
    Weights,
    bits,
    bomb,
    hostile_pickle,
    random_opcodes,
    real_payload,
    same,
    small_weights,
    zip_bomb,
)
from official_files import from_a_training, plain
from paths import FIXTURES
from safetensors.torch import load_file, save_file

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.conversion.checkpoint_reader import read_checkpoint, read_state_dict
from hf_clip_variants.conversion.convert import convert_checkpoint
from hf_clip_variants.hub.verification import verify


KIND = "checkpoints"


@functools.cache
def official_weights() -> Weights:
    """A CLIP of one layer and 64 tokens under OpenAI's names."""
    found = load_file(FIXTURES / "clip_openai_ckpt_vit" / "state_dict.safetensors")
    kept = {name: t for name, t in found.items() if "resblocks." not in name or "resblocks.0." in name}
    kept["token_embedding.weight"] = kept["token_embedding.weight"][:64]
    return {name: t.float().contiguous() for name, t in kept.items() if t.dim()} | {
        "logit_scale": kept["logit_scale"].float()
    }


def as_bytes_say(path: Path) -> Weights | None:
    """A safetensors file read by twenty lines that share nothing with the library; None if it is not valid."""
    data = path.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        found = {}
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                flat = torch.frombuffer(bytearray(body[first:last]), dtype=DTYPES[entry["dtype"]])
                found[name] = flat.reshape(entry["shape"])
        return found
    except (ValueError, KeyError, TypeError, RuntimeError, UnicodeDecodeError):
        return None


def as_torch_says(path: Path) -> Weights | None:
    """A `torch.save` file read by torch itself, for files that were only damaged, not made to attack."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, weights_only=True)
        return {name: t for name, t in found.items() if isinstance(t, torch.Tensor)}
    except Exception:
        return None


# ---- damage


def damaged(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """The bytes with a random fault, and its name."""
    data = bytearray(data)
    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 400))
    kind = rng.choice(["flip", "flip", "flips", "truncated", "longer", "zeros", "inserted", "removed", "swapped"])
    if kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(rng.randint(2, 12)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "truncated":
        del data[at:]
    elif kind == "longer":
        data += rng.randbytes(rng.randint(1, 64))
    elif kind == "zeros":
        size = min(rng.randint(1, 64), len(data) - at)
        data[at : at + size] = bytes(size)
    elif kind == "inserted":
        data[at:at] = rng.randbytes(rng.randint(1, 8))
    elif kind == "removed":
        del data[at : at + rng.randint(1, 8)]
    else:
        size, other = rng.randint(1, 32), rng.randrange(len(data))
        data[at : at + size], data[other : other + size] = data[other : other + size], data[at : at + size]
    return f"{kind} at {at}", bytes(data)


def lying_header(rng: random.Random, path: Path) -> str:
    """Writes a safetensors file whose header is JSON and wrong, in a random way; returns what."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    entry, other = header[rng.choice(names)], header[rng.choice(names)]
    big = rng.choice([-1, -(2**63), 2**31, 2**53, 2**63, 2**64 - 1, 10**30])
    odd = rng.choice([None, True, "1", 1.5, {}, [], [None], [[1]], "\u0000", -0.0])
    which = rng.choice(
        ["offset", "overlap", "shape", "dtype", "missing", "odd", "length", "twice", "metadata", "deep", "bom", "json"]
    )
    if which == "offset":
        entry["data_offsets"][rng.randrange(2)] = big
    elif which == "overlap":
        entry["data_offsets"] = list(other["data_offsets"]) if other is not entry else [0, 0]
        if other is entry:
            entry["shape"] = [0]
    elif which == "shape":
        entry["shape"] = rng.choice([[big], [big, 0], [2**32, 2**32], [*entry["shape"], 2], [1] * 100_000])
    elif which == "dtype":
        entry["dtype"] = rng.choice(["F33", "", "f32", "F8_E9", None, "U8" if entry["dtype"] != "U8" else "F32"])
    elif which == "missing":
        entry.pop(rng.choice(["dtype", "shape", "data_offsets"]))
    elif which == "odd":
        entry[rng.choice(["dtype", "shape", "data_offsets"])] = odd
    elif which == "metadata":
        header["__metadata__"] = rng.choice([odd, {"a": 1}, {"a": {"b": "c"}}, [1, 2], "text"])
    elif which == "deep":
        header[names[0]] = json.loads("[" * 200 + "]" * 200)
    written = json.dumps(header).encode()
    if which == "length":
        claimed = rng.choice([0, 1, len(written) - 1, len(written) + 1, len(data), 2**40, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", claimed) + written + body)
        return f"length {claimed}"
    if which == "twice":
        written = written[:-1] + b"," + written[1:]
    elif which == "bom":
        written = b"\xef\xbb\xbf" + written
    elif which == "json":
        written = rng.choice([b"[]", b"null", b"{", b'{"a":', b"\xff\xfe{}", b"{}", b'{"\\ud800": {}}', b"1e999"])
    path.write_bytes(struct.pack("<Q", len(written)) + written + body)
    return which


# ---- files, through the reader and `convert`


def _read_damaged_file(rng: random.Random, folder: Path) -> Attack:
    weights = small_weights(rng)
    layout = rng.choice(["zip", "legacy", "safetensors", "training"])
    path = folder / (
        "model.safetensors" if layout == "safetensors" else f"model{rng.choice(['.pt', '.bin', '.ckpt'])}"
    )
    if layout == "safetensors":
        save_file(weights, path, metadata={"format": "pt"})
    elif layout == "training":
        from_a_training(weights, path)
    else:
        plain(weights, path, zipped=layout == "zip")
    what, data = damaged(rng, path.read_bytes())
    sizes = sum(t.nbytes for t in weights.values())
    path.write_bytes(data)

    def run():
        found = read_state_dict(path)
        if same(found, weights):
            return found
        if layout == "safetensors":
            return found if (said := as_bytes_say(path)) is not None and same(found, said) else f"{WRONG}other tensors"
        if layout == "legacy":  # it has no checksums
            said = as_torch_says(path)
            if said is not None:
                return found if same(found, said) else f"{WRONG}not what torch reads"
            alike = [(n, t.shape, t.dtype) for n, t in found.items()] == [
                (n, t.shape, t.dtype) for n, t in weights.items()
            ]
            return found if alike and len(data) >= sizes else f"{WRONG}other names or shapes"
        return f"{WRONG}a damaged zip file was read, with other tensors"

    return f"reader, {layout}, {what}", run, (str(path),)


def _read_lying_header(rng: random.Random, folder: Path) -> Attack:
    path = folder / "model.safetensors"
    save_file(small_weights(rng), path)
    what = lying_header(rng, path)

    def run():
        found = read_state_dict(path)
        said = as_bytes_say(path)
        return found if said is not None and same(found, said) else f"{WRONG}not what the bytes say"

    return f"reader, header, {what}", run, (str(path),)


def _convert_damaged_file(rng: random.Random, folder: Path) -> Attack:
    """Names and shapes must fit exactly; values must be those of the file."""
    weights = dict(official_weights())
    name = rng.choice(sorted(weights))
    value = weights[name]
    what = rng.choice(["missing", "extra", "renamed", "shape", "flat", "dtype", "integers", "nan", "inf", "empty"])
    what = what if value.dim() or what not in ("shape", "flat", "empty") else "missing"
    if what == "missing":
        del weights[name]
    elif what == "extra":
        extra = rng.choice(["visual.extra", f"{name}.x", "prompt_learner.ctx", "a b", "é" * 50, "\x1b[31m"])
        weights[extra] = value
    elif what == "renamed":
        weights[name[:-1] + rng.choice("xyz")] = weights.pop(name)
    elif what == "shape":
        weights[name] = value.repeat(*([2] + [1] * (value.dim() - 1)))
    elif what == "flat":
        weights[name] = value.reshape(*([1] * rng.randint(1, 3)), -1)
    elif what == "dtype":
        weights[name] = value.to(rng.choice([torch.float64, torch.float16, torch.bfloat16]))
    elif what == "integers":
        weights[name] = value.to(rng.choice([torch.int8, torch.int64, torch.bool, torch.complex64]))
    elif what in ("nan", "inf"):
        weights[name] = value.clone()
        weights[name].view(-1)[rng.randrange(value.numel())] = float(what)
    else:
        weights[name] = value[:0]
    path, out = folder / "official.pt", folder / "converted"
    named = (str(path), name, *weights.keys() - official_weights().keys())
    if "prompt_learner.ctx" in weights:  # so that it seems to be an adapter's, to which other arguments belong
        named = (*named, "tokenizer: ")
    if what in (
        "shape",
        "flat",
    ):  # sizes are read from the weights, so that another tensor than this one may not fit them
        named = (*named, "CLIP state dict: ")
    plain(weights, path, zipped=rng.random() < 0.7)

    def run():
        convert_checkpoint(path, out, tokenizer="none")
        longer = what == "shape" and name in ("positional_embedding", "token_embedding.weight")  # for more tokens
        if what not in ("dtype", "extra", "flat") and not longer:
            return f"{WRONG}converted"
        found = load_file(out / "model.safetensors")
        if not all(torch.isfinite(t).all() for t in found.values() if t.is_floating_point()):
            return f"{WRONG}not finite"
        total = sum(t.double().sum() for t in weights.values()) if what != "extra" else None
        written = sum(t.double().sum() for n, t in found.items() if not n.endswith("position_ids"))
        close = total is None or abs(total - written) <= 1e-3 * max(1.0, abs(total))
        return found if close else f"{WRONG}other numbers"

    def checked():
        try:
            return run()
        finally:
            if not (out / "config.json").is_file() and out.exists():
                raise AssertionError(f"{out} is left half written")

    return f"convert, {what}, {name}", checked, named


# ---- no files at all, and too much


def _no_file(rng: random.Random, folder: Path) -> Attack:
    """What is not a regular file, or not a checkpoint at all."""
    path = folder / f"model{rng.choice(['.pt', '.safetensors', '.bin'])}"
    which = rng.choice(
        ["fifo", "device", "folder", "loop", "missing", "empty", "text", "html", "image", "random", "lfs"]
    )
    if which == "fifo":
        os.mkfifo(path)
    elif which == "device":
        path.symlink_to(rng.choice(["/dev/zero", "/dev/stdin", "/dev/random", "/dev/null"]))
    elif which == "folder":
        path.mkdir()
    elif which == "loop":
        path.symlink_to(path)
    elif which != "missing":
        contents = {
            "empty": b"",
            "text": b"hello\n" * 20,
            "html": b"<!doctype html><html><body>404 Not found</body></html>",
            "image": b"\x89PNG\r\n\x1a\n" + rng.randbytes(300),
            "random": rng.randbytes(rng.randint(1, 3_000)),
            "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n",
        }
        path.write_bytes(contents[which])
    door = rng.choice([read_state_dict, read_checkpoint, lambda p: convert_checkpoint(p, folder / "converted")])

    def run():
        door(path)
        return f"{WRONG}accepted"

    return f"no file, {which}", run, (str(path),)


def _many_tensors(rng: random.Random, folder: Path) -> Attack:
    """Hundreds of thousands of empty tensors in a small file, through the reader and as a model."""
    count = rng.choice([60_000, 200_000])
    path = _copy_of_model(folder) / "model.safetensors" if rng.random() < 0.5 else folder / "many.safetensors"
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{i}": entry for i in range(count)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    as_model = path.name == "model.safetensors"

    def run():
        CLIPClassifier.from_pretrained(path.parent) if as_model else read_state_dict(path)
        return f"{WRONG}accepted"

    return f"{count} tensors, {'model' if as_model else 'reader'}", run, (str(path), str(path.parent))


# ---- saved folders


@functools.cache
def _saved(what: str) -> dict[str, bytes]:
    """Files of a saved tiny classifier, or of an adapter on it, with a card that records their hashes."""
    import tempfile

    from peft import get_peft_model

    from hf_clip_variants.adapters import CoOpConfig
    from hf_clip_variants.hub.model_cards import model_card

    with tempfile.TemporaryDirectory() as place:
        model = tiny_classifier()
        if what == "adapter":
            torch.manual_seed(0)
            model = get_peft_model(model, CoOpConfig(num_context_tokens=3))
        model.save_pretrained(place)
        model_card(model, weights=place).save(Path(place) / "README.md")
        return {path.name: path.read_bytes() for path in Path(place).iterdir() if path.is_file()}


def _copy(what: str, folder: Path) -> Path:
    place = folder / what
    place.mkdir()
    for name, data in _saved(what).items():
        (place / name).write_bytes(data)
    return place


_copy_of_model = functools.partial(_copy, "model")


@functools.cache
def _saved_case(name: str) -> dict[str, bytes]:
    """Files of a tiny model of any kind."""
    import tempfile

    from model_contract import CASES

    with tempfile.TemporaryDirectory() as place:
        CASES[name].make().save_pretrained(place)
        return {path.name: path.read_bytes() for path in Path(place).iterdir() if path.is_file()}


def _tensors_of(model) -> Weights:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def _damaged_model(rng: random.Random, folder: Path) -> Attack:
    from model_contract import CASES

    kind = rng.choice(["", "", *CASES])
    if kind:
        place, load = folder / "model", CASES[kind].row.load(CASES[kind].part).from_pretrained
        place.mkdir()
        for name, data in _saved_case(kind).items():
            (place / name).write_bytes(data)
    else:
        place, load = _copy_of_model(folder), CLIPClassifier.from_pretrained
    path = place / "model.safetensors"
    if rng.random() < 0.5:
        what, data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
    else:
        what = lying_header(rng, path)

    def run():
        model = load(place)
        said = as_bytes_say(path)
        if said is None:
            return f"{WRONG}loaded what cannot be read"
        found = model.state_dict()
        known = {name: t for name, t in said.items() if name in found}
        # Text features are computed from the weights where a file has none.
        if not same({name: found[name] for name in known}, {n: t.to(found[n].dtype) for n, t in known.items()}):
            return f"{WRONG}other tensors"
        return model

    return f"from_pretrained {kind}, {what}", run, (str(place),)


def _damaged_adapter(rng: random.Random, folder: Path) -> Attack:
    from hf_clip_variants.adapters import load_adapter

    place = _copy("adapter", folder)
    path = place / "adapter_model.safetensors"
    if rng.random() < 0.5:
        what, data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
    else:
        what = lying_header(rng, path)

    def run():
        base = tiny_classifier()
        before = _tensors_of(base)
        try:
            model = load_adapter(place, base)
        except Exception:
            if not same(base.state_dict(), before):
                raise AssertionError("the base was changed by a refused adapter") from None
            raise
        said = as_bytes_say(path)
        if said is None:
            return f"{WRONG}loaded what cannot be read"
        found = [t for name, t in model.state_dict().items() if ".clipv_" in name]
        wanted = sorted(bits(t.float()) for t in said.values())
        return model if sorted(bits(t) for t in found) == wanted else f"{WRONG}other tensors"

    return f"load_adapter, {what}", run, (str(path), str(place))


def _verify(rng: random.Random, folder: Path) -> Attack:
    """Whatever changes in a weight file or in the recorded hashes is noticed."""
    place = _copy(rng.choice(["model", "adapter"]), folder)
    path = next(place.glob("*.safetensors"))
    card = place / "README.md"
    which = rng.choice(["weights", "weights", "weights", "header", "card", "hash", "removed", "added", "link"])
    before = path.read_bytes()
    if which == "weights":
        path.write_bytes(damaged(rng, before)[1])
    elif which == "header":
        lying_header(rng, path)
    elif which == "card":
        card.write_bytes(damaged(rng, card.read_bytes())[1])
    elif which == "hash":
        card.write_text(card.read_text().replace("sha256:", f"sha256: {rng.choice(['', '[]', 'abc', '{a: 1}'])}\nx:"))
    elif which == "removed":
        path.unlink()
    elif which == "added":
        save_file({"x": torch.ones(1)}, place / "model-00001-of-00002.safetensors")
    else:
        path.unlink()
        path.symlink_to(rng.choice(["/dev/zero", path, "/nowhere"]))
    same_weights = path.is_file() and which in ("card", "weights", "header") and path.read_bytes() == before

    def run():
        checks = verify(place)
        noticed = any(check.status != "ok" for check in checks)
        # A card may change in its prose.
        return checks if noticed or same_weights else f"{WRONG}all is well"

    return f"verify, {which}", run, (str(place), path.name, card.name)


def _shards(rng: random.Random, folder: Path) -> Attack:
    """A model in shards whose index lies."""
    place = _copy_of_model(folder)
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = sorted(weights)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"metadata": {"total_size": 1}, "weight_map": {n: files[i % 2] for i, n in enumerate(names)}}
    for i, file in enumerate(files):
        save_file({n: weights[n] for n in names[i::2]}, place / file, metadata={"format": "pt"})
    name, places = rng.choice(names), index["weight_map"]
    outside = folder / "outside.safetensors"
    save_file({name: weights[name] + 1}, outside, metadata={"format": "pt"})
    which = rng.choice(
        [
            "sound",
            "no shard",
            "swapped",
            "outside",
            "absolute",
            "types",
            "no map",
            "json",
            "empty",
            "damaged",
            "unlisted",
        ]
    )
    if which == "no shard":
        (place / rng.choice(files)).unlink()
    elif which == "swapped":
        places[name] = files[places[name] == files[0]]
    elif which == "outside":
        places[name] = "../outside.safetensors"
    elif which == "absolute":
        places[name] = str(outside)
    elif which == "types":
        places[name] = rng.choice([None, 3, [], {}, "", ".", "config.json", "no.bin", "\x00"])
    elif which == "no map":
        index.pop("weight_map")
    elif which == "unlisted":
        places.pop(name)
    elif which == "damaged":
        shard = place / rng.choice(files)
        shard.write_bytes(shard.read_bytes()[: rng.choice([0, 4, 50, 2_000])])
    written = json.dumps(index)
    if which == "json":
        written = rng.choice(
            ["", "{", "[]", "null", "3", '"text"', written[:-5], "\ud800".encode("utf-8", "ignore").decode()]
        )
    elif which == "empty":
        written = rng.choice(["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": null}'])
    (place / "model.safetensors.index.json").write_text(written)

    def run():
        found = CLIPClassifier.from_pretrained(place).state_dict()
        right = all(torch.equal(found[n], t) for n, t in weights.items() if n in found)
        return found if right else f"{WRONG}other tensors"

    return f"shards, {which}", run, (str(place), "weight_map", "index.json", name)


def _weights_beside(rng: random.Random, folder: Path) -> Attack:
    """A folder whose weights are a pickle, alone or beside nothing that loads."""
    place = _copy_of_model(folder)
    (place / "model.safetensors").unlink()
    canary = folder / "canary"
    file = rng.choice(["pytorch_model.bin", "model.pt", "model.ckpt.index", "tf_model.h5", "flax_model.msgpack", ""])
    if file:
        torch.save({"w": Payload(canary)}, place / file)

    def run():
        try:
            CLIPClassifier.from_pretrained(place)
        except (OSError, ValueError) as error:
            if "weights_only=False" in str(error):
                raise RuntimeError(f"advises to run the pickle: {error}") from error
            raise
        finally:
            if canary.exists():
                raise AssertionError("executed")
        return f"{WRONG}loaded"

    return f"no safetensors, {file or 'nothing'}", run, (str(place),)


ATTACKS = (
    _read_damaged_file,
    _read_damaged_file,
    _read_lying_header,
    _convert_damaged_file,
    hostile_pickle,
    hostile_pickle,
    real_payload,
    random_opcodes,
    bomb,
    zip_bomb,
    _no_file,
    _many_tensors,
    _damaged_model,
    _damaged_adapter,
    _verify,
    _shards,
    _weights_beside,
)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn. The files of a case are removed when it has run."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        attack = ATTACKS[count % len(ATTACKS)]
        place = Path(folder) / f"{count}"
        place.mkdir(parents=True)
        name, run, named = attack(random.Random(rng.random()), place)

        def tidy(run=run, place=place):
            try:
                return run()
            finally:
                shutil.rmtree(place, ignore_errors=True)

        yield Case(KIND, f"{count} {name}", tidy, named)
