"""What each of GLIPv2's losses is for: a tiny model with one of them, with none and with all, on drawn scenes.

    python scripts/glipv2_losses.py --out scripts/results/glipv2            # five variants, seeds 1, 2, 3
    python scripts/glipv2_losses.py --small --out /tmp/glipv2

Scenes have an ellipse of one of three colours on noise. Half of a batch has class names for prompts, half a sentence
whose noun is hidden. All variants have the same weights at the start, the same scenes and every head; a variant's
losses have the weight 1, the others 0. Each measure is made on scenes that were not trained on:

words      share of hidden words that are right
regions    share of regions whose nearest word in another image's prompt is their class, by features before fusion
masks      overlap (IoU) of the best detection's mask with the ellipse
boxes      overlap of the best detection's box with the ellipse's, of GLIP's own losses, which all variants have

The settings are those of tests/modeling/glipv2/test_effects_glipv2.py. OUT/runs.jsonl has a line for each variant and
seed, OUT/table.md means and standard deviations, OUT/measures.png the same as bars.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torchvision.ops import box_iou
from transformers import BertTokenizerFast, set_seed

from hf_clip_variants import GLIPv2Config, GLIPv2ForZeroShotObjectDetection, GLIPv2ImageProcessor, GLIPv2Processor
from hf_clip_variants.modeling.detection.instance_masks import whole_masks


SIDE = 64
NAMES = ["cat", "dog", "bird"]  # here the red, the green and the blue ellipse
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "on", "the", "pizza", *NAMES]
MASK = WORDS.index("[MASK]")
WEIGHTS = {"inter-image": "inter_image_weight", "words": "mlm_weight", "masks": "mask_weight"}
VARIANTS = {
    "none": (),
    "inter-image": ("inter-image",),
    "words": ("words",),
    "masks": ("masks",),
    "all": tuple(WEIGHTS),
}
TITLES = {"none": "GLIP's losses alone", "inter-image": "+ inter-image contrast", "words": "+ hidden words"}
TITLES |= {"masks": "+ masks", "all": "+ all three"}
MEASURES = ("words", "regions", "masks", "boxes")


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--test-scenes", type=int, default=48)
    parser.add_argument("--small", action="store_true", help="seconds: two steps")
    options = parser.parse_args(argv)
    if options.small:
        options.steps, options.test_scenes, options.seeds = 2, 6, "0"
    return options


def new_processor() -> GLIPv2Processor:
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=True)
    images = GLIPv2ImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE})
    return GLIPv2Processor(images, tokenizer, max_text_length=24)


def new_model(seed: int) -> GLIPv2ForZeroShotObjectDetection:
    """About 60,000 weights. They start larger than those of wide layers, which do not learn in so few steps."""
    text = {"vocab_size": len(WORDS), "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 28, "max_position_embeddings": 40}
    text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    swin = {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 3, "drop_path_rate": 0.0}
    config = GLIPv2Config(
        backbone_config=swin,
        text_config=text,
        hidden_size=12,
        head_num_layers=2,
        fusion_hidden_size=24,
        fusion_num_heads=3,
        fusion_dropout=0.0,
        num_groups=3,
        dynamic_relu_reduction=2,
        anchor_sizes=[16, 32, 64, 128, 256],
        drop_block_prob=0.0,
        max_text_length=24,
        contrastive_dim=10,
        mask_num_convs=2,
        mask_token_id=MASK,
        end_token_id=WORDS.index("[SEP]"),
    )
    set_seed(seed)
    model = GLIPv2ForZeroShotObjectDetection(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if not name.startswith(("backbone.", "text_encoder.")):
                spread = torch.randn(tensor.shape, generator=generator)
                if tensor.dim() == 1:
                    tensor.add_(0.2 * spread)
                else:
                    tensor.copy_(1.2 * spread / tensor[0].numel() ** 0.5)
        model.predictions.bias.fill_(-1.0)
    return model


def draw_scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[dict]]:
    """Images (N, 3, 64, 64) with an ellipse each, which names they show, and labels with masks."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*2 * (torch.arange(SIDE) + 0.5,), indexing="ij")
    pixels, labels = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator), []
    kinds = torch.arange(count) % len(NAMES)
    for i, kind in enumerate(kinds.tolist()):
        width, height = (torch.rand(2, generator=generator) * 16 + 20).tolist()
        left, top = (torch.rand(2, generator=generator) * torch.tensor([SIDE - width, SIDE - height])).tolist()
        middle = left + width / 2, top + height / 2
        mask = ((x - middle[0]) / width) ** 2 + ((y - middle[1]) / height) ** 2 <= 0.25
        pixels[i, kind, mask] = 2
        box = torch.tensor([[*middle, width, height]]) / SIDE
        labels.append({"boxes": box, "masks": mask[None], "class_labels": torch.tensor([0])})
    return pixels, kinds, labels


def make_batch(processor: GLIPv2Processor, count: int, seed: int) -> dict:
    """The first half with class names for prompts, the second with sentences, whose object's name is hidden."""
    pixels, kinds, labels = draw_scenes(count, seed)
    captions, phrases, half = [], [], count // 2
    for i, kind in enumerate(kinds.tolist()):
        if i < half:
            caption, spans = processor.caption_of(NAMES)
            labels[i]["class_labels"] = torch.tensor([kind])
        else:
            caption = f"a {NAMES[kind]} on the pizza"
            spans = [[(2, 2 + len(NAMES[kind]))]]
        captions.append(caption)
        phrases.append(spans)
    prompts = processor(captions=captions, phrases=phrases)
    hidden = torch.full_like(prompts.input_ids, -100)
    hidden[half:, 2] = prompts.input_ids[half:, 2]
    ids = torch.where(hidden >= 0, processor.tokenizer.mask_token_id, prompts.input_ids)
    inputs = dict(prompts) | {"input_ids": ids, "is_caption": torch.arange(count) >= half, "mlm_labels": hidden}
    return inputs | {"pixel_values": pixels, "labels": labels}


def train(variant: str, seed: int, options: argparse.Namespace) -> GLIPv2ForZeroShotObjectDetection:
    model, processor = new_model(seed).train(), new_processor()
    for loss, field in WEIGHTS.items():
        setattr(model.config, field, 1.0 if loss in VARIANTS[variant] else 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr)
    for step in range(options.steps):
        loss = model(**make_batch(processor, options.batch, 1000 * seed + step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def measure(model: GLIPv2ForZeroShotObjectDetection, processor: GLIPv2Processor, count: int) -> dict[str, float]:
    """On scenes that were not trained on."""
    inputs = make_batch(processor, count, 10_000_000)
    asked = inputs["mlm_labels"] >= 0
    words = (model(**inputs).mlm_logits[asked].argmax(dim=1) == inputs["mlm_labels"][asked]).float().mean()
    # Regions are compared with a prompt of another image, whose names have another order.
    pixels, kinds, labels = draw_scenes(count, 20_000_000)
    prompt = processor(text=NAMES[::-1])
    features, _ = model.feature_maps(pixels)
    flat = torch.cat([one.flatten(2) for one in features], dim=2).transpose(1, 2)
    anchors = torch.cat(model.anchors_of([one.shape[-2:] for one in features]))
    middles = torch.cat([label["boxes"][:, :2] for label in labels]) * SIDE
    finest = features[0][0, 0].numel()
    nearest = torch.cdist(middles, (anchors[:finest, :2] + anchors[:finest, 2:]) / 2).argmin(dim=1)
    of_words = model.encode_prompts(prompt.input_ids, prompt.attention_mask)[0]
    regions, of_words = model.contrast(flat[torch.arange(count), nearest], of_words)
    places = [int(row.nonzero()) for row in prompt.phrase_map[0]]
    right = (regions @ of_words[places].T).argmax(dim=1) == len(NAMES) - 1 - kinds
    outputs = model(pixels, **prompt, output_masks=True)
    masks, boxes = [], []
    for one, label in zip(processor.post_process_grounded_object_detection(outputs), labels, strict=True):
        if not len(one["boxes"]):
            masks.append(0.0), boxes.append(0.0)
            continue
        middle, size = label["boxes"].split(2, dim=1)
        true = torch.cat([middle - size / 2, middle + size / 2], dim=1) * SIDE
        boxes.append(float(box_iou(one["boxes"][:1], true)))
        mask = next(whole_masks(one["masks"][:1], one["boxes"][:1], (SIDE, SIDE)))
        masks.append(float((mask & label["masks"][0]).sum() / (mask | label["masks"][0]).sum()))
    found = {"words": float(words), "regions": float(right.float().mean())}
    return found | {"masks": statistics.mean(masks), "boxes": statistics.mean(boxes)}


def lines_of(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(lines: list[dict]) -> str:
    """Means and standard deviations over seeds, in percent."""
    text = f"| | {' | '.join(MEASURES)} | seeds |\n" + "|---" * (len(MEASURES) + 2) + "|\n"
    for variant, title in TITLES.items():
        rows = [line for line in lines if line["variant"] == variant]
        cells = []
        for name in MEASURES if rows else ():
            values = [100 * row[name] for row in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        text += f"| {title} | {' | '.join(cells)} | {len(rows)} |\n" if rows else ""
    return text


def draw_bars(lines: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 3.2))
    for place, (variant, title) in enumerate(TITLES.items()):
        rows = [line for line in lines if line["variant"] == variant]
        for k, name in enumerate(MEASURES if rows else ()):
            values, at = [100 * row[name] for row in rows], k + 0.17 * place
            axis.bar(at, statistics.mean(values), 0.16, color=f"C{place}", label=None if k else title)
            axis.plot([at] * len(values), values, "k.", markersize=3)
    axis.set_xticks([k + 0.34 for k in range(len(MEASURES))], MEASURES)
    axis.set_ylabel("%"), axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main(argv=None) -> None:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    done = {(line["variant"], line["seed"]) for line in lines_of(options.out)}
    for seed in map(int, options.seeds.split(",")):
        for variant in options.variants.split(","):
            if (variant, seed) in done:
                continue
            start = time.process_time()
            found = measure(train(variant, seed, options), new_processor(), options.test_scenes)
            line = {"variant": variant, "seed": seed, "cpu_seconds": round(time.process_time() - start, 1)}
            line |= {name: round(value, 4) for name, value in found.items()}
            with (options.out / "runs.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    lines = lines_of(options.out)
    (options.out / "table.md").write_text(table(lines))
    draw_bars(lines, options.out / "measures.png")
    print(table(lines))


if __name__ == "__main__":
    main()
