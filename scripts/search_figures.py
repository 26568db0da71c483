"""Search measured: recall against brute force, time of a query, rate of building against a plain loop of transformers.

    python scripts/search_figures.py --out scripts/results/search/figures.md
    python scripts/search_figures.py --small                 # seconds: shows that everything runs

Queries: 10,000 to a million vectors of 512 numbers, in clusters as embeddings of real data are (1,000 centres, and as
much noise again). Brute force is NumPy: all vectors as float32 in memory, one product, one sort. Ours reads the index
from the disk's cache. Recall at 20 is the share of brute force's 20 nearest that are found; brute force takes the
vectors as they are stored (float16), and, in a second column, as they were before (float32).

Times of queries are the processor's, of one thread: other programs on the machine change them little. The last column
has the shortest time on the wall.

Building: JPEG files of 500 x 375 pixels, made of the embedded emoji. The plain loop opens a batch of files with
Pillow, runs `CLIPProcessor` and `CLIPModel.get_image_features`, one batch after the other. Both in this process, in
turns, one thread for the model; ours has threads beside it that read files.
"""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import platform
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPConfig, CLIPModel

from hf_clip_variants import embedded_model, load_images, open_index
from hf_clip_variants.files.atomic_writes import write_atomically
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.search.building import build_index, features, save_rows
from hf_clip_variants.search.encoder import load_encoder


TOP = 20
QUERIES = 20
WIDTH = 512
CENTRES = 1000


# ---- queries


def clustered(count: int, seed: int) -> np.ndarray:
    """(N, D) float32 of unit norm."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, WIDTH), dtype=np.float32)
    random = np.random.default_rng(seed)
    found = np.empty((count, WIDTH), np.float32)
    for start in range(0, count, 10_000):
        part = found[start : start + 10_000]
        random.standard_normal(out=part, dtype=np.float32)
        part += centres[random.integers(0, CENTRES, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return found


def write_index(folder: Path, vectors: np.ndarray) -> None:
    count = len(vectors)
    names = pa.array([f"{row:08d}.jpg" for row in range(count)])
    half = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), WIDTH)
    columns = {"path": names, "kind": pa.array(["image"] * count), "features": half, "content": names}
    columns |= {name: pa.nulls(count, pa.float32()) for name in ("start", "end")}
    columns |= {name: pa.array(np.zeros(count, np.int64)) for name in ("size", "modified")}
    schema = features(WIDTH).arrow_schema.remove_metadata()
    table = pa.table({name: columns[name] for name in schema.names}).cast(schema)
    folder.mkdir(parents=True)
    save_rows(table, np.arange(count), "", folder)
    about = {"version": 1, "source": "/nowhere", "column": None, "split": None, "width": WIDTH, "unreadable": []}
    model = {"name": "none", "type": "none", "key": "none:none", "fingerprint": "none", "processor": {}}
    about |= {"model": model, "videos": {"mode": "frames"}}
    write_json(folder / "index.json", about)


def brute_force(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    scores = vectors @ query
    best = np.argpartition(scores, -TOP)[-TOP:]
    return best[np.argsort(-scores[best], kind="stable")]


def timed(function: Callable[[np.ndarray], object], queries: np.ndarray) -> tuple[list, list[tuple[float, float]]]:
    """Results, and the processor's and the wall's seconds of each query."""
    function(queries[0])  # does not count
    results, seconds = [], []
    for query in queries:
        start = time.process_time(), time.perf_counter()
        results.append(function(query))
        seconds.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return results, seconds


def recall(found: list, expected: list) -> float:
    return float(np.mean([len(set(ours) & set(theirs)) / TOP for ours, theirs in zip(found, expected, strict=True)]))


def milliseconds(seconds: list[tuple[float, float]]) -> str:
    values = [1000 * value for value, _ in seconds]
    spread = f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"
    return f"{spread} | {1000 * min(wall for _, wall in seconds):.1f}"


def query_rows(counts: list[int], place: Path) -> list[str]:
    lines = [
        f"| vectors | | recall@{TOP} of the stored vectors | of float32 ones | made in | ms a query | on the wall |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    queries = clustered(QUERIES, seed=1)
    for count in counts:
        vectors = clustered(count, seed=2)
        of_float32 = [brute_force(vectors, query) for query in queries]
        vectors = vectors.astype(np.float16).astype(np.float32)
        expected, seconds = timed(lambda query, all_=vectors: brute_force(all_, query), queries)
        folder = place / str(count)
        write_index(folder, vectors)
        del vectors
        rows = [("NumPy, all in memory", expected, seconds, 0.0)]
        index = open_index(folder)

        def ours(query, index=index, exact=True):
            hits = index.nearest(torch.from_numpy(query)[None], TOP, exact=exact)[0]
            return [hit.row for hit in hits]

        rows.append(("ours, exact, from the disk", *timed(ours, queries), 0.0))
        lists = max(4, round(count**0.5))
        start = time.process_time()
        index.add_faiss(f"IVF{lists},Flat")
        made = time.process_time() - start
        found, seconds = timed(lambda query: ours(query, exact=False), queries)
        rows.append((f"FAISS IVF{lists},Flat, 16 lists probed", found, seconds, made))
        for name, found, seconds, made in rows:
            values = f"{recall(found, expected):.3f} | {recall(found, of_float32):.3f}"
            took = f"{made:.1f} s" if made else ""
            lines.append(f"| {count:,} | {name} | {values} | {took} | {milliseconds(seconds)} |")
            print(lines[-1], flush=True)
        shutil.rmtree(folder)
    return lines


# ---- building


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of the size of usual photographs on the web."""
    icons = load_images("emoji:fluentflat,emojione,fluent3d,notov1")
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        noise = random.integers(0, 256, (94, 125, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
        icon = icons.image(number % len(icons)).convert("RGBA").resize((300, 300))
        picture.paste(icon, (100, 37), icon)
        picture.save(folder / f"{number:05d}.jpg", quality=85)
    return sorted(folder.iterdir())


def save_base(folder: Path) -> Path:
    """CLIP ViT-B/32 of the published sizes with random weights: times do not depend on them."""
    processor = AutoProcessor.from_pretrained(embedded_model())
    size = {"height": 224, "width": 224}
    processor.image_processor.size, processor.image_processor.crop_size = {"shortest_edge": 224}, size
    torch.manual_seed(0)
    config = CLIPConfig()
    config.text_config.num_hidden_layers = 1
    tokens = processor.tokenizer
    config.text_config.vocab_size, config.text_config.eos_token_id = len(tokens), tokens.eos_token_id
    CLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def plain_loop(model, processor, files: list[Path], batch_size: int) -> torch.Tensor:
    found = []
    with torch.no_grad():
        for start in range(0, len(files), batch_size):
            images = [Image.open(file).convert("RGB") for file in files[start : start + batch_size]]
            inputs = processor(images=images, return_tensors="pt")
            embeddings = model.get_image_features(**inputs).pooler_output
            found.append(embeddings / embeddings.norm(dim=-1, keepdim=True))
    return torch.cat(found)


def build_rows(models: list[tuple[str, Path, int]], rounds: int, place: Path) -> list[str]:
    lines = [
        "| model | files | plain loop, files/s | ours | times as fast | in processor time | largest difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, source, count in models:
        files = write_photos(place / "photos", count)
        model = CLIPModel.from_pretrained(source, dtype=torch.float32).eval()
        processor, encoder = AutoProcessor.from_pretrained(source), load_encoder(source, "cpu")
        times: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
        for number in range(rounds + 1):
            shutil.rmtree(place / "index", ignore_errors=True)
            for which in ("plain", "ours") if number % 2 else ("ours", "plain"):
                start = time.perf_counter(), time.process_time()
                if which == "plain":
                    expected = plain_loop(model, processor, files, 32)
                else:
                    index = build_index(place / "photos", encoder, place / "index", batch_size=32)
                if number:  # the first round does not count
                    times[which].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        difference = (torch.tensor(index.dataset["features"][:]) - expected).abs().max().item()
        shutil.rmtree(place / "photos")
        rates = [f"{count / statistics.median(t for t, _ in times[which]):.1f}" for which in ("plain", "ours")]
        ratios = [
            [before[clock] / after[clock] for before, after in zip(times["plain"], times["ours"], strict=True)]
            for clock in (0, 1)
        ]
        shown = [f"{statistics.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]" for r in ratios]
        lines.append(f"| {name} | {count} | {rates[0]} | {rates[1]} | {shown[0]} | {shown[1]} | {difference:.1e} |")
        print(lines[-1], flush=True)
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the tables here, too")
    parser.add_argument("--small", action="store_true", help="few vectors and files")
    parser.add_argument("--rounds", type=int, default=3, help="of building")
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        place = Path(folder)
        models = [("embedded CLIP, 64 pixels", Path(embedded_model()), 24 if options.small else 256)]
        if not options.small:
            models.append(("ViT-B/32, 224 pixels", save_base(place / "base"), 48))
        built = build_rows(models, 1 if options.small else options.rounds, place)
        searched = query_rows([500] if options.small else [10_000, 100_000, 1_000_000], place)
    command = shlex.join(["python", "scripts/search_figures.py", *(sys.argv[1:] if arguments is None else arguments)])
    about = f"{platform.machine()}, {os.cpu_count()} processors, threads {torch.get_num_threads()}"
    head = f"Written by `{command}`. {about}, torch {torch.__version__}, load {os.getloadavg()[0]:.0f}."
    notes = [
        f"Medians with the smallest and the largest, of {QUERIES} queries and of the rounds of building. Ours is all "
        "but loading the model: listing and hashing files, and writing the index. Differences are of float16 features."
    ]
    text = "\n".join([head, "", *searched, "", *built, "", *notes, ""])
    if options.out is not None:
        write_atomically(options.out, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
