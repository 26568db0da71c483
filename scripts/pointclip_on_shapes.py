"""
PointCLIP on furniture, household things, plants and vehicles: zero-shot, few-shot, damaged clouds, names.

    python scripts/pointclip_on_shapes.py shapes.parquet scripts/results/pointclip
    python scripts/pointclip_on_shapes.py shapes.parquet scripts/results/pointclip --meshes shapes_meshes.parquet

`shapes.parquet` has columns `points` (N, 3), with +y up and in the unit sphere, `class`, `split` (train or test) and
names in several languages. The model is the embedded CLIP, or `--clip`. All settings are the published ones: nothing
was chosen on these clouds, so all test clouds of the 20 classes with four objects to learn from are reported.
Few-shot figures are means over seeds, which draw the shots, with their standard deviation; training uses
one augmented copy of each object beside the plain one.
"""

import argparse
import collections
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import get_peft_model
from transformers import AutoModel, AutoProcessor

from hf_clip_variants import PointCLIPModel, PointCloudProcessor, PointTextProcessor, embedded_model
from hf_clip_variants.adapters import InterViewAdapterConfig
from hf_clip_variants.adapters.inter_view_adapter.few_shot import optimizers, published_recipe
from hf_clip_variants.annotations.point_pictures import draw_depth_maps, draw_parts
from hf_clip_variants.modeling.pointclip.views_pointclip import SEARCHED_ON_TEST_LABELS
from hf_clip_variants.modeling.points.point_sampling import augment_points, in_unit_sphere
from hf_clip_variants.modeling.video.class_texts import class_features


SHOTS = (1, 2, 4)
MESH_POINTS = 192  # of a mesh and of each cloud that it is compared with
TEMPLATES = {
    "depth map": "point cloud depth map of a {}.",
    "big": "point cloud of a big {}.",
    "emoji": "an emoji of a {}.",
}
LANGUAGES = {
    "English": "name",
    "German": "name_de",
    "French": "name_fr",
    "Spanish": "name_es",
    "Chinese": "name_zh_tw",
}
LANGUAGES |= {"Japanese": "name_ja", "Russian": "name_ru"}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
VARIANTS = {
    "PointCLIP, 6 views": {"projection": "sparse"},
    "PointCLIP, 10 views": {"projection": "sparse", "views": "sparse_10"},
    "V2": {"projection": "realistic"},
    "V2, CLIP's normalisation": {"projection": "realistic", "image_mean": MEAN, "image_std": STD},
}
BEST = "V2, CLIP's normalisation"
FEW_SHOT = ("PointCLIP, 10 views", BEST)


def read(path: Path, points: int) -> pd.DataFrame:
    table = pd.read_parquet(path)
    table["cloud"] = [np.stack(rows)[:points].astype(np.float32) for rows in table["points"]]
    return table.drop(columns=["points", "rgb"], errors="ignore")


def classes_with(table: pd.DataFrame, train: int) -> list[str]:
    counts = {split: collections.Counter(table[table["split"] == split]["class"]) for split in ("train", "test")}
    return sorted(name for name in counts["train"] if counts["train"][name] >= train and counts["test"][name])


def chosen_rows(table: pd.DataFrame, names: list[str], pool: int) -> pd.DataFrame:
    """Objects of these classes: all of the test split, and the first `pool` of each class of the train split."""
    table = table[table["class"].isin(names)]
    is_test = table["split"] == "test"
    return pd.concat([table[~is_test].groupby("class").head(pool), table[is_test]]).reset_index(drop=True)


@torch.no_grad()
def encode(model: PointCLIPModel, clouds: np.ndarray, rows: np.ndarray | None = None) -> torch.Tensor:
    """(B, N, 3) -> (B, V, C); zeros for all but `rows`."""
    rows = np.arange(len(clouds)) if rows is None else rows
    points = torch.from_numpy(clouds[rows])
    found = torch.cat([model.get_point_features(part).pooler_output for part in points.split(16)])
    return found.new_zeros(len(clouds), *found.shape[1:]).index_copy_(0, torch.from_numpy(rows), found)


@torch.no_grad()
def zero_shot(model, views: torch.Tensor, labels: torch.Tensor, texts: torch.Tensor) -> float:
    logits = model._compare(views, texts)[0]
    return 100 * float((logits.argmax(1) == labels).float().mean())


def pictures_of(model: PointCLIPModel, clouds: np.ndarray, size: int = 32) -> torch.Tensor:
    """(B, V * size * size) small depth maps: for the nearest neighbour."""
    found = []
    for part in torch.from_numpy(clouds).split(16):
        maps = model.project_points(part)[:, :, 0]
        found.append(torch.nn.functional.adaptive_avg_pool2d(maps, size).flatten(1))
    return torch.cat(found)


def nearest(train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * float((train_labels[torch.cdist(test, train).argmin(1)] == labels).float().mean())


def fit_adapter(model: PointCLIPModel, views: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int):
    """`views` (copies, B, V, C): of each cloud plain and augmented ones, drawn anew in each epoch."""
    torch.manual_seed(seed)
    tuned = get_peft_model(model, InterViewAdapterConfig())
    recipe = published_recipe(epochs)
    size = min(recipe.batch_size, len(labels))
    optimizer, schedule = optimizers(tuned, max(1, len(labels) // size), recipe)
    tuned.train()
    rows = torch.arange(len(labels))
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(size):
            if len(batch) < size:
                continue
            copy = torch.randint(len(views), (len(batch),))
            loss = tuned(view_features=views[copy, rows[batch]], labels=labels[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return tuned.eval()


def damaged(clouds: np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
    """Noise of 0.03, a turn about the upright axis, any turn, or only the half that faces one direction."""
    random, found = np.random.default_rng(seed), []
    for cloud in clouds:
        if kind == "noise":
            cloud = cloud + random.normal(scale=0.03, size=cloud.shape)
        elif kind in ("turned about +y", "turned anyhow"):
            q = random.normal(size=(3, 3)) if kind == "turned anyhow" else None
            angle = random.uniform(0, 2 * np.pi)
            c, s = np.cos(angle), np.sin(angle)
            turn = np.linalg.qr(q)[0] if q is not None else np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
            cloud = cloud @ (turn * np.sign(np.linalg.det(turn)))
        elif kind == "half":
            direction = random.normal(size=3) * [1, 0.2, 1]
            order = np.argsort(cloud @ direction)[len(cloud) // 2 :]
            cloud = cloud[np.resize(order, len(cloud))]
        found.append(cloud.astype(np.float32))
    return np.stack(found)


def read_meshes(path: Path, table: pd.DataFrame) -> dict:
    """Files of `path` (columns `id`, `class`, `format`, `mesh`) through the processor, and for how many of them the
    nearest of all clouds of `table`, by the mean distance of nearest points, is that of the same shape, and class."""
    meshes, processor = pd.read_parquet(path), PointCloudProcessor(num_points=MESH_POINTS)
    known = torch.from_numpy(np.stack([in_unit_sphere(cloud) for cloud in table["cloud"]]))
    found = {"files": len(meshes), "own shape": 0, "own class": 0}
    with tempfile.TemporaryDirectory() as folder:
        for row in meshes.itertuples():
            file = Path(folder) / f"mesh.{row.format}"
            file.write_bytes(row.mesh)
            cloud = processor(file, return_tensors="pt")["points"]
            apart = torch.cdist(cloud.expand_as(known), known)
            best = table.iloc[int((apart.amin(1).mean(1) + apart.amin(2).mean(1)).argmin())]
            found["own shape"] += int(best["id"] == row.id)
            found["own class"] += int(best["class"] == row[meshes.columns.get_loc("class") + 1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clip", default=None, help="folder or Hub id; default: the embedded one")
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--pool", type=int, default=5, help="objects of a class that shots are drawn from")
    parser.add_argument("--copies", type=int, default=1, help="augmented copies of each shot that are encoded")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--damaged", action="store_true", help="noisy, turned and partial clouds, too")
    parser.add_argument("--pictures-only", action="store_true", help="draw depth maps and parts, measure nothing")
    parser.add_argument("--meshes", type=Path, help="table of mesh files of some of the shapes: read them, no more")
    arguments = parser.parse_args()

    if arguments.meshes:
        print(json.dumps(read_meshes(arguments.meshes, read(arguments.shapes, MESH_POINTS)), indent=1))
        return
    source = arguments.clip or embedded_model()
    clip = AutoModel.from_pretrained(source, dtype=torch.float32)
    processor = PointTextProcessor.from_clip(AutoProcessor.from_pretrained(source))
    table = read(arguments.shapes, arguments.points)
    results: dict = {"clip": str(arguments.clip or "embedded"), "points": arguments.points, "epochs": arguments.epochs}
    results |= {"copies": arguments.copies, "seeds": arguments.seeds}
    models = {name: PointCLIPModel.from_clip(clip, **options) for name, options in VARIANTS.items()}
    if arguments.pictures_only:
        arguments.out.mkdir(parents=True, exist_ok=True)
        print("drawn", draw(chosen_rows(table, classes_with(table, 4), 1), models, processor, arguments.out))
        return
    names = classes_with(table, 4)
    table = chosen_rows(table, names, arguments.pool)
    clouds = np.stack(table["cloud"])
    is_test = (table["split"] == "test").to_numpy()
    test, train = np.flatnonzero(is_test), np.flatnonzero(~is_test)
    views = {name: encode(model, clouds, test if name not in FEW_SHOT else None) for name, model in models.items()}
    print("encoded", len(table), "clouds", flush=True)

    # ---- zero-shot
    results["zero_shot"] = []
    labels = torch.tensor([names.index(name) for name in table["class"].iloc[test]])
    for name, model in models.items():
        for title, template in TEMPLATES.items():
            texts = class_features(model, processor.tokenizer, names, [template], "names").detach()
            row = {"classes": len(names), "test": len(test), "variant": name, "template": title}
            row["accuracy"] = zero_shot(model, views[name][test], labels, texts)
            results["zero_shot"].append(row)
            if model.config.projection == "realistic" and title == "depth map":
                for backbone in ("ViT-B/16", "ViT-B/32"):
                    model.config.view_weights = list(SEARCHED_ON_TEST_LABELS["modelnet40"][backbone])
                    searched = row | {"weights": f"searched on ModelNet40's test labels, {backbone}"}
                    searched["accuracy"] = zero_shot(model, views[name][test], labels, texts)
                    results["zero_shot"].append(searched)
                model.config.view_weights = None
    save(results, arguments.out)

    # ---- names in several languages: which of the test clouds has this name
    results["languages"] = []
    for language, column in LANGUAGES.items():
        named = [row for row in test if table[column].iloc[row]]
        texts = class_features(
            models[BEST], processor.tokenizer, [table[column].iloc[row] for row in named], ["{}"], "names"
        )
        with torch.no_grad():
            ranks = models[BEST]._compare(views[BEST][named], texts)[0].T.argsort(1, descending=True)
        own = (ranks == torch.arange(len(named))[:, None]).float().argmax(1)
        found = {"language": language, "names": len(named), "chance": 1000 / len(named)}
        results["languages"].append(found | {"recall_at_10": 100 * float((own < 10).float().mean())})

    # ---- few-shot, and damaged clouds
    kinds = ("noise", "turned anyhow", "half") if arguments.damaged else ()
    results["few_shot"], results["damaged"] = [], []
    for name in FEW_SHOT[::-1]:
        model = models[name]
        generator = torch.Generator().manual_seed(0)
        copies = [views[name][train]]
        for _ in range(arguments.copies):
            copies.append(encode(model, augment_points(torch.from_numpy(clouds[train]), generator).numpy()))
        copies = torch.stack(copies)
        print("augmented copies of", name, flush=True)
        maps = pictures_of(model, clouds)
        texts = class_features(model, processor.tokenizer, names, [TEMPLATES["big"]], "names").detach()
        model.class_features = texts
        harmed = {kind: encode(model, damaged(clouds[test], kind)) for kind in kinds}
        harmed_maps = {
            kind: pictures_of(model, np.concatenate([clouds, damaged(clouds[test], kind)])) for kind in kinds
        }
        base = {"variant": name, "classes": len(names), "test": len(test)}
        results["few_shot"].append(
            base | {"shots": 0, "method": "zero-shot", "mean": zero_shot(model, views[name][test], labels, texts)}
        )
        for kind in kinds:
            accuracy = zero_shot(model, harmed[kind], labels, texts)
            results["damaged"].append(base | {"kind": kind, "method": "zero-shot", "mean": accuracy})
        for shots in SHOTS:
            found, hurt = collections.defaultdict(list), collections.defaultdict(list)
            for seed in range(arguments.seeds):
                random = np.random.default_rng(seed)
                chosen = []
                for label in names:
                    own = [place for place, row in enumerate(train) if table["class"].iloc[row] == label]
                    chosen += list(random.permutation(own)[:shots])
                shot_labels = torch.tensor([names.index(table["class"].iloc[train[place]]) for place in chosen])
                rows = train[chosen]
                unit = torch.nn.functional.normalize(views[name], dim=-1).flatten(1)
                found["nearest depth map"].append(nearest(maps[rows], shot_labels, maps[test], labels))
                found["nearest CLIP features"].append(nearest(unit[rows], shot_labels, unit[test], labels))
                tuned = fit_adapter(model, copies[:, chosen], shot_labels, arguments.epochs, seed)
                with torch.no_grad():
                    logits = tuned(view_features=views[name][test]).logits
                    found["inter-view adapter"].append(100 * float((logits.argmax(1) == labels).float().mean()))
                    if shots == max(SHOTS):
                        for kind in kinds:
                            logits = tuned(view_features=harmed[kind]).logits
                            accuracy = 100 * float((logits.argmax(1) == labels).float().mean())
                            hurt[kind, "inter-view adapter"].append(accuracy)
                            both = harmed_maps[kind]
                            hurt[kind, "nearest depth map"].append(
                                nearest(both[rows], shot_labels, both[len(clouds) :], labels)
                            )
                model = tuned.unload()
            for method, values in found.items():
                spread = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
                results["few_shot"].append(base | {"shots": shots, "method": method} | spread)
                print(name, shots, method, spread, flush=True)
            for (kind, method), values in hurt.items():
                spread = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
                results["damaged"].append(base | {"kind": kind, "method": method, "shots": shots} | spread)
        save(results, arguments.out)


def draw(table: pd.DataFrame, models: dict, processor: PointTextProcessor, out: Path) -> list[str]:
    """Depth maps and parts of some test objects that may be shown without a credit; returns their names."""
    free = table[(table["split"] == "test") & table["licence"].str.startswith("CC0")]
    rows = free.drop_duplicates("class").head(3)
    for number, (_, row) in enumerate(rows.iterrows(), 1):
        points = torch.from_numpy(row["cloud"])[None]
        for name, model in (("sparse", models["PointCLIP, 10 views"]), ("realistic", models["V2"])):
            maps = model.project_points(points)[0, :, 0].numpy()
            draw_depth_maps(maps, title=row["class"]).quantize(16).save(out / f"{number}_{name}.png", optimize=True)
    row, model = rows.iloc[0], models[BEST]
    parts = ["leg", "seat", "back", "top"]
    texts = class_features(model, processor.tokenizer, parts, ["{}"], "parts").detach()
    points = torch.from_numpy(row["cloud"])[None]
    found = model.segment_parts(points, texts)[0].argmax(-1).numpy()
    draw_parts(row["cloud"], found, parts, row["class"]).quantize(32).save(out / "1_parts.png", optimize=True)
    return rows["class"].tolist()


def tables(results: dict) -> str:
    """The results as Markdown."""
    lines = ["| projection | template | view weights | accuracy % |", "|---|---|---|---|"]
    for row in results["zero_shot"]:
        weights = row.get("weights", "uniform")
        lines.append(f"| {row['variant']} | {row['template']} | {weights} | {row['accuracy']:.1f} |")
    lines += ["", "| projection | shots | method | accuracy % |", "|---|---|---|---|"]
    for row in results.get("few_shot", ()):
        spread = f" ± {row['std']:.1f}" if "std" in row else ""
        lines.append(f"| {row['variant']} | {row['shots']} | {row['method']} | {row['mean']:.1f}{spread} |")
    lines += ["", "| projection | clouds | method | accuracy % |", "|---|---|---|---|"]
    for row in results.get("damaged", ()):
        method = row["method"] + (f", {row['shots']} shots" if "shots" in row else "")
        spread = f" ± {row['std']:.1f}" if "std" in row else ""
        lines.append(f"| {row['variant']} | {row['kind']} | {method} | {row['mean']:.1f}{spread} |")
    lines += ["", "| language of the names | names | in the first ten % | chance % |", "|---|---|---|---|"]
    for row in results.get("languages", ()):
        lines.append(
            f"| {row['language']} | {row['names']} | {row['recall_at_10']:.1f} | {min(100, row['chance']):.1f} |"
        )
    return "\n".join(lines) + "\n"


def save(results: dict, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "table.md").write_text(tables(results), encoding="utf-8")


if __name__ == "__main__":
    main()
