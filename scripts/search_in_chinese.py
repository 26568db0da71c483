"""Moving clips found by their Chinese names, with a small Chinese-CLIP that this program trains, and `search`.

    python scripts/search_in_chinese.py --clips moving.parquet --emoji emoji-noto.parquet emoji-twemoji.parquet \\
        emoji-openmoji.parquet --out scripts/results/search/chinese.md

No trained Chinese-CLIP is at hand without a network. So the image encoder is the embedded CLIP's, frozen, and a BERT
of two layers over Chinese characters learns to name still emoji (`name_zh`) by CLIP's loss. The result is a
`ChineseCLIPModel` with its processor, saved and loaded as any other one. No clip is trained on. Then the clips of the
test split are indexed by frames and looked for by their Chinese names.

Twice: with all names of still emoji ("names known": a clip shows what a still drawing with the same name showed), and
without those that name a test clip ("names new": only their characters are known). Beside it stand the English names
with the embedded CLIP, which saw English names of the same drawings, and Chinese names, which it never learned.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

import datasets
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoProcessor,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
)

from hf_clip_variants import embedded_model
from hf_clip_variants.files.atomic_writes import write_atomically
from hf_clip_variants.search.building import build_index
from hf_clip_variants.search.index import Index


KS = (1, 5, 10)
SETTINGS = ("names known", "names new")
TEXT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
TEXT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 52}


def on_white(cell: dict) -> Image.Image:
    image = datasets.Image().decode_example(cell).convert("RGBA")
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    return flat.convert("RGB")


@torch.no_grad()
def stills(files: list[Path], clip, processor) -> tuple[list[str], torch.Tensor]:
    """Chinese names and unit image features (N, D) of still emoji."""
    names, features = [], []
    for file in files:
        rows = datasets.Dataset.from_parquet(str(file)).select_columns(["image", "name_zh"])
        rows = rows.cast_column("image", datasets.Image(decode=False)).filter(lambda row: bool(row["name_zh"]))
        names += rows["name_zh"]
        for start in range(0, len(rows), 128):
            images = [on_white(cell) for cell in rows[start : start + 128]["image"]]
            pixels = processor.image_processor(images, return_tensors="pt")
            features.append(F.normalize(clip.get_image_features(**pixels).pooler_output, dim=-1))
    return names, torch.cat(features)


def new_model(clip, processor, names: list[str]) -> tuple[ChineseCLIPModel, ChineseCLIPProcessor]:
    """A Chinese-CLIP with the image encoder of a CLIP, and a new BERT over the characters of the names."""
    characters = sorted({character for name in names for character in name.lower() if not character.isspace()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *characters, *(f"##{c}" for c in characters)]
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, model_max_length=52)
    vision = clip.config.vision_config.to_dict()
    text = TEXT | {"vocab_size": len(vocabulary), "pad_token_id": 0}
    config = ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=clip.config.projection_dim)
    model = ChineseCLIPModel(config)
    model.vision_model.load_state_dict(clip.vision_model.state_dict())
    model.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    settings = processor.image_processor.to_dict()
    known = ("size", "crop_size", "resample", "image_mean", "image_std", "do_center_crop")
    images = ChineseCLIPImageProcessor(**{name: settings[name] for name in known if settings.get(name) is not None})
    return model, ChineseCLIPProcessor(images, tokenizer)


def train(model, processor, names: list[str], features: torch.Tensor, steps: int, batch: int, seed: int) -> None:
    """The text encoder alone; in a batch, no name comes twice."""
    generator = torch.Generator().manual_seed(seed)
    of_name: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        of_name.setdefault(name, []).append(row)
    distinct = sorted(of_name)
    tokens = processor.tokenizer(distinct, padding=True, truncation=True, return_tensors="pt")
    own = [*model.text_model.parameters(), *model.text_projection.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(own, lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        chosen = torch.randperm(len(distinct), generator=generator)[:batch]
        rows = [of_name[distinct[i]] for i in chosen]
        rows = [those[int(torch.randint(len(those), (), generator=generator))] for those in rows]
        ids, mask = tokens["input_ids"][chosen], tokens["attention_mask"][chosen]
        longest = int(mask.sum(1).max())
        output = model.get_text_features(input_ids=ids[:, :longest], attention_mask=mask[:, :longest])
        texts = F.normalize(output.pooler_output, dim=-1)
        logits = model.logit_scale.clamp(max=4.6).exp() * texts @ features[rows].T
        target = torch.arange(len(chosen))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step(), schedule.step()
    model.eval()


def recalls(index: Index, names: list[str], template: str | None = None) -> list[float]:
    """Percent of distinct names for which a clip of that name is among the first K; files are `<number>.webp`."""
    distinct = sorted(set(filter(None, names)))
    queries = index.encoder.encode_texts(distinct, template)
    found = index.nearest(queries, max(KS))
    hits = []
    for name, of_name in zip(distinct, found, strict=True):
        right = [names[int(Path(hit.path).stem)] == name for hit in of_name]
        hits.append([any(right[:k]) for k in KS])
    return [100 * statistics.fmean(column) for column in zip(*hits, strict=True)]


def chance(names: list[str]) -> list[float]:
    """Of a random order."""
    distinct, total = sorted(set(filter(None, names))), len(names)
    found = []
    for k in KS:
        missed = []
        for name in distinct:
            wrong, probability = total - names.count(name), 1.0
            for place in range(k):
                probability *= max(wrong - place, 0) / (total - place)
            missed.append(probability)
        found.append(100 * (1 - statistics.fmean(missed)))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="Parquet: clip, name, name_zh, split")
    parser.add_argument("--emoji", type=Path, nargs="+", required=True, help="Parquet: image, name_zh")
    parser.add_argument("--out", type=Path, help="write the table here, too")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--limit", type=int, help="of clips")
    parser.add_argument("--show", type=str, nargs="*", default=[], help="Chinese queries whose first hits are printed")
    options = parser.parse_args(arguments)
    clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(embedded_model())
    rows = datasets.Dataset.from_parquet(str(options.clips)).filter(lambda row: row["split"] == "test")
    rows = rows.select(range(min(len(rows), options.limit or len(rows))))
    names, features = stills(options.emoji, clip, processor)
    table: list[tuple[str, list[list[float]]]] = [("chance", [chance(rows["name_zh"][:])])]
    with tempfile.TemporaryDirectory(prefix="chinese-") as folder:
        place = Path(folder)
        (place / "clips").mkdir()
        for number, content in enumerate(rows["clip"]):
            (place / "clips" / f"{number:03d}.webp").write_bytes(content)
        index = build_index(place / "clips", embedded_model(), place / "english", device="cpu", fps=2)
        table.append(("embedded CLIP, Chinese names, which it never learned", [recalls(index, rows["name_zh"][:])]))
        table.append(("embedded CLIP, English names", [recalls(index, rows["name"][:], "an emoji of {}")]))
        print(table, flush=True)
        for title in options.settings:
            left_out = set(rows["name_zh"]) if title == "names new" else set()
            kept = [number for number, name in enumerate(names) if name not in left_out]
            if len({names[number] for number in kept}) < 2:
                continue  # all names are those of clips
            found = []
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                model, chinese = new_model(clip, processor, names)
                train(model, chinese, [names[i] for i in kept], features[kept], options.steps, options.batch, seed)
                model.save_pretrained(place / f"{title} {seed}")
                chinese.save_pretrained(place / f"{title} {seed}")
                index = build_index(
                    place / "clips", place / f"{title} {seed}", place / f"index {title} {seed}", device="cpu", fps=2
                )
                found.append(recalls(index, rows["name_zh"][:]))
                for query in options.show if title == "names known" and not seed else ():
                    hits = index.search(query, top=3)
                    shown = [f"{rows[int(Path(hit.path).stem)]['name_zh']} ({hit.score:.2f})" for hit in hits]
                    print(f"{query}: {', '.join(shown)}")
            table.append((f"small Chinese-CLIP, Chinese names, {title}", found))
    lines = ["| | R@1 | R@5 | R@10 |", "|---|---:|---:|---:|"]
    for title, found in table:
        cells = []
        for values in zip(*found, strict=True):
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if options.out is not None:
        shown = [Path(word).name if Path(word).suffix == ".parquet" else word for word in arguments or sys.argv[1:]]
        command = shlex.join(["python", "scripts/search_in_chinese.py", *shown])
        about = f"{len(rows)} clips of {len(set(rows['name_zh']))} Chinese names; percent, {options.seeds} seeds."
        write_atomically(options.out, f"Written by `{command}`. {about}\n\n" + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
