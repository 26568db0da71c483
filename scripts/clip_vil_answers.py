"""CLIP-ViL on questions, true and false captions, and captions: CLIP's grid against words alone and a random tower.

    python scripts/clip_vil_answers.py --out scripts/results/clip_vil                  # seeds 1, 2, 3
    python scripts/clip_vil_answers.py --out /tmp/answers --development --seeds 0      # another style to test on

The image encoder is that of the embedded CLIP, frozen; its grids of 8 x 8 cells are computed once, and averaged to
4 x 4 to be fast. BERT and heads are small and new.

- easy-vqa: questions about one coloured shape (the package `easy-vqa`, its own split), 13 answers.
- questions: about drawn scenes of one to three things in four places on a coloured ground: what is in a place, where a
  thing is, how many there are, the ground's colour, whether there is a thing.
- entailment: sentences about such scenes, true, or false in one word: that there is a thing, that it is in a place,
  the ground's colour, how many things there are. Half of them are true.
- captions: written for such scenes; right names are those of things that are there.

Test scenes are drawn in a style that no training scene has. Towers: `clip`; `random`, the same image encoder with new
weights, frozen, too, for both kinds of questions; `none`: a single zero instead of a grid, so words alone are read.

OUT/runs.jsonl gets a line for each task, tower and seed, OUT/table.md means and standard deviations over seeds; what
is in runs.jsonl is not run again. OUT/scenes.png shows test scenes with what the models with CLIP's grid say.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, BertTokenizerFast, CLIPVisionModel

from hf_clip_variants import (
    ClipViLConfig,
    ClipViLForImageCaptioning,
    ClipViLForVisualEntailment,
    ClipViLForVisualQuestionAnswering,
    embedded_model,
)
from hf_clip_variants.data.scenes.scenes import SceneMaker


TASKS, TOWERS = ("easy-vqa", "questions", "entailment", "captions"), ("clip", "random", "none")
ANSWERED = ("easy-vqa", "questions")  # the tasks of the random tower
THINGS = ("cat", "taco", "cactus", "octopus", "banana", "pizza")
PLACES = ("top left", "top right", "bottom left", "bottom right")
COLOURS = {"red": (214, 48, 49), "green": (46, 160, 67), "blue": (52, 101, 214), "yellow": (240, 205, 60)}
COLOURS |= {"white": (245, 245, 245), "grey": (128, 128, 128)}
NUMBERS = ("one", "two", "three")
TRAIN, DEVELOPMENT_STYLE, TEST_STYLE = ("fluentflat", "notov1"), "emojione", "fluent3d"
SIDE, BATCH, LR, DATA_SEED = 64, 64, 1e-3, 5
BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 40}
BERT |= {"initializer_range": 0.1}  # of BERT's 0.02, a narrow one looks at everything alike for long
DECODER = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0, "max_position_embeddings": 80}
DECODER |= {"init_std": 0.1}
DECODER |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}


# ---- scenes


class Scene:
    """A picture, and what is in it: place -> thing, and the ground's colour."""

    def __init__(self, maker: SceneMaker, random: np.random.Generator):
        self.colour = list(COLOURS)[int(random.integers(len(COLOURS)))]
        ground = np.clip(np.array(COLOURS[self.colour]) + random.integers(-12, 13, 3), 0, 255)
        self.image = Image.new("RGB", (SIDE, SIDE), tuple(int(one) for one in ground))
        places = random.permutation(4)[: int(random.integers(1, 4))]
        things = random.permutation(len(THINGS))[: len(places)]
        self.things = {PLACES[place]: THINGS[thing] for place, thing in zip(sorted(places), things, strict=True)}
        for place, thing in self.things.items():
            picture = maker.draw_object(THINGS.index(thing), SIDE, random)
            row, column = divmod(PLACES.index(place), 2)
            room = [max(0, SIDE // 2 - side) for side in picture.size]
            left = column * SIDE // 2 + int(random.integers(0, room[0] + 1))
            top = row * SIDE // 2 + int(random.integers(0, room[1] + 1))
            self.image.paste(picture, (left, top), picture)

    def caption(self) -> str:
        return " and ".join(f"{thing} {place}" for place, thing in self.things.items()) + f" on {self.colour}"

    def questions(self, random: np.random.Generator) -> list[tuple[str, str, str]]:
        """(kind, question, answer) of each kind."""
        place, thing = list(self.things.items())[int(random.integers(len(self.things)))]
        absent = [one for one in THINGS if one not in self.things.values()]
        there = random.random() < 0.5
        asked = thing if there else absent[int(random.integers(len(absent)))]
        return [
            ("what", f"what is {place} ?", thing),
            ("where", f"where is the {thing} ?", place),
            ("how many", "how many things are there ?", NUMBERS[len(self.things) - 1]),
            ("colour", "what colour is the ground ?", self.colour),
            ("yes or no", f"is there a {asked} ?", "yes" if there else "no"),
        ]

    def claims(self, random: np.random.Generator) -> list[tuple[str, str, str]]:
        """(kind, sentence, "true" or "false") of each kind; a false one is wrong in one word."""
        place, thing = list(self.things.items())[int(random.integers(len(self.things)))]
        number = NUMBERS[len(self.things) - 1]

        def told(right: str, known) -> tuple[str, str]:
            wrong = [one for one in known if one != right and one not in self.things.values()]
            if random.random() < 0.5:
                return right, "true"
            return wrong[int(random.integers(len(wrong)))], "false"

        found = []
        for kind, text, right, known in (
            ("thing", "there is a {}", thing, THINGS),
            ("place", f"there is a {{}} {place}", thing, THINGS),
            ("colour", "the ground is {}", self.colour, COLOURS),
            ("number", "there are {} things", number, NUMBERS),
        ):
            word, answer = told(right, known)
            found.append((kind, text.replace("{}", word), answer))
        return found


def drawn(count: int, styles, seed: int) -> list[Scene]:
    maker = SceneMaker(styles=styles, class_names=THINGS, size=SIDE, object_size=(0.38, 0.48), seed=seed)
    random = np.random.default_rng(seed)
    return [Scene(maker, random) for _ in range(count)]


# ---- grids


class Towers:
    """Grids of images by CLIP's image encoder, or by the same with new weights."""

    def __init__(self, seed: int):
        clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(embedded_model()).image_processor
        torch.manual_seed(seed)
        vision = CLIPVisionModel(clip.vision_model.config)
        self.values = {k: v for k, v in vision.config.to_dict().items() if k not in ("architectures", "dtype")}
        self.encoders = {}
        for name, weights in (("clip", clip.vision_model), ("random", vision)):
            config = ClipViLConfig(text_config=BERT, vision_config=self.values, decoder_config=DECODER)
            model = ClipViLForImageCaptioning(config).eval()
            model.grid.vision_model.load_state_dict(weights.state_dict())
            self.encoders[name] = model

    def grids(self, tower: str, images: list[Image.Image]) -> torch.Tensor:
        """(N, 17, 192): the class token and the means of two by two cells each; of `none` one zero each."""
        if tower == "none":
            return torch.zeros(len(images), 1, self.values["hidden_size"])
        found = []
        for start in range(0, len(images), 50):
            pixels = self.processor(images[start : start + 50], return_tensors="pt").pixel_values
            tokens = self.encoders[tower].get_grid_features(pixels)
            cells = tokens[:, 1:].transpose(1, 2).unflatten(2, (SIDE // 8, SIDE // 8))
            pooled = torch.nn.functional.avg_pool2d(cells, 2).flatten(2).transpose(1, 2)
            found.append(torch.cat([tokens[:, :1], pooled], dim=1))
        return torch.cat(found)


# ---- training


def tokenizer_of(texts) -> BertTokenizerFast:
    words = sorted({word for text in texts for word in text.lower().replace("?", " ?").split()})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(names)}, do_lower_case=True)


def configured(towers: Towers, tokenizer, labels: list[str]) -> ClipViLConfig:
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return ClipViLConfig(
        text_config=BERT | {"vocab_size": len(tokenizer)},
        vision_config=towers.values,
        decoder_config=DECODER,
        freeze_vision=True,
        initializer_range=0.1,
        max_text_length=32,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        **names,
    )


def trained(model, grids: torch.Tensor, rows: list[int], texts: dict, labels: torch.Tensor, steps: int, seed: int):
    """`rows`: the image of each text."""
    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LR, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps + 1, pct_start=0.1)
    rows, order = torch.tensor(rows), torch.randperm(len(rows))
    model.train()
    for step in range(steps):
        if (step + 1) * BATCH > len(order) * (1 + step * BATCH // len(order)):
            order = torch.cat([order, torch.randperm(len(rows))])
        chosen = order[step * BATCH : (step + 1) * BATCH]
        chosen = chosen if len(chosen) else torch.randperm(len(rows))[:BATCH]
        inputs = {name: value[chosen] for name, value in texts.items()}
        loss = model(grid_features=grids[rows[chosen]], labels=labels[chosen], **inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def answers_of(model, grids: torch.Tensor, rows: list[int], texts: dict) -> torch.Tensor:
    rows = torch.tensor(rows)
    found = []
    for chosen in torch.arange(len(rows)).split(250):
        inputs = {name: value[chosen] for name, value in texts.items()}
        found.append(model(grid_features=grids[rows[chosen]], **inputs).logits.argmax(-1))
    return torch.cat(found)


def encoded(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    found = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def answering(towers, tower, train, test, labels, kind, steps, seed, grids) -> tuple[dict[str, float], list[str]]:
    """`train`, `test`: (row of an image, kind, text, answer). -> shares of right answers, and all answers."""
    texts = [one[2] for one in train + test]
    tokenizer = tokenizer_of(texts)
    both = encoded(tokenizer, texts)
    parts = [
        {name: value[some] for name, value in both.items()} for some in (slice(len(train)), slice(len(train), None))
    ]
    numbers = {name: label for label, name in enumerate(labels)}
    wanted = torch.tensor([numbers[one[3]] for one in train])
    torch.manual_seed(seed)
    model = kind(configured(towers, tokenizer, labels))
    trained(model, grids[0], [one[0] for one in train], parts[0], wanted, steps, seed)
    found = [labels[int(label)] for label in answers_of(model, grids[1], [one[0] for one in test], parts[1])]
    right = defaultdict(list)
    for answer, (_, what, _, expected) in zip(found, test, strict=True):
        right[what].append(answer == expected)
        right["all"].append(answer == expected)
    return {what: float(np.mean(some)) for what, some in right.items()}, found


# ---- tasks


class Work:
    """Scenes and the random tower's weights are the same for all seeds; a seed is one of new weights and batches."""

    def __init__(self, options, seed: int):
        self.options, self.seed, self.towers = options, 0, Towers(seed)
        style = DEVELOPMENT_STYLE if options.development else TEST_STYLE
        self.train, self.test = (
            drawn(options.scenes, TRAIN, 10 * seed),
            drawn(options.test_scenes, style, 10 * seed + 1),
        )
        self.random = np.random.default_rng(seed + 7)
        self.questions = [
            [(i, *one) for i, scene in enumerate(scenes) for one in scene.questions(self.random)]
            for scenes in (self.train, self.test)
        ]
        self.claims = [
            [(i, *one) for i, scene in enumerate(scenes) for one in scene.claims(self.random)]
            for scenes in (self.train, self.test)
        ]
        self.known: dict = {}
        self.said: dict = {}

    def grids(self, what: str, tower: str):
        if (what, tower) not in self.known:
            if what == "scenes":
                images = [[scene.image for scene in scenes] for scenes in (self.train, self.test)]
            else:
                images = [[Image.open(path).convert("RGB") for path in some] for some in self.shapes()[0]]
            self.known[what, tower] = [self.towers.grids(tower, some) for some in images]
        return self.known[what, tower]

    def shapes(self):
        """Paths of pictures, and questions, of both splits of easy-vqa."""
        import easy_vqa as source

        if "shapes" not in self.known:
            reads = ((source.get_train_questions, source.get_train_image_paths, self.options.shapes),)
            reads += ((source.get_test_questions, source.get_test_image_paths, self.options.test_shapes),)
            paths, rows = [], []
            for read, where, count in reads:
                found = where()
                chosen = sorted(found)[:count]
                place = {image: i for i, image in enumerate(chosen)}
                paths.append([found[image] for image in chosen])
                asked = zip(*read(), strict=True)
                rows.append([(place[i], "all", text, answer) for text, answer, i in asked if i in place])
            self.known["shapes"] = paths, rows
        return self.known["shapes"]

    def run(self, task: str, tower: str) -> dict[str, float]:
        options, seed = self.options, self.seed
        if task == "easy-vqa":
            import easy_vqa

            rows, labels, kind = self.shapes()[1], easy_vqa.get_answers(), ClipViLForVisualQuestionAnswering
            grids = self.grids("shapes", tower)
        elif task == "questions":
            labels = [*THINGS, *PLACES, *NUMBERS, *COLOURS, "yes", "no"]
            rows, kind, grids = self.questions, ClipViLForVisualQuestionAnswering, self.grids("scenes", tower)
        elif task == "entailment":
            rows, kind, grids = self.claims, ClipViLForVisualEntailment, self.grids("scenes", tower)
            labels = ["true", "false"]
        else:
            return self.captions(tower)
        found, self.said[task, tower] = answering(self.towers, tower, *rows, labels, kind, options.steps, seed, grids)
        return found

    def captions(self, tower: str) -> dict[str, float]:
        train, test = ([scene.caption() for scene in scenes] for scenes in (self.train, self.test))
        tokenizer, grids = tokenizer_of(train), self.grids("scenes", tower)
        texts = encoded(tokenizer, train)
        torch.manual_seed(self.seed)
        model = ClipViLForImageCaptioning(configured(self.towers, tokenizer, ["none"]))
        labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
        trained(model, grids[0], list(range(len(train))), texts, labels, self.options.steps, self.seed)
        ids = [model.generate(grid_features=some, max_new_tokens=30) for some in grids[1].split(100)]
        said = [text for some in ids for text in tokenizer.batch_decode(some, skip_special_tokens=True)]
        self.said["captions", tower] = said
        scores = defaultdict(list)
        for text, scene, expected in zip(said, self.test, test, strict=True):
            named, there = {one for one in THINGS if one in text.split()}, set(scene.things.values())
            scores["right names"] += [one in there for one in named]
            scores["names found"] += [one in named for one in there]
            scores["all names"].append(named == there)
            scores["colour"].append(text.endswith(f"on {scene.colour}"))
            scores["whole caption"].append(text == expected)
        return {what: float(np.mean(some)) for what, some in scores.items() if some}


# ---- results


def lines_of(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(lines: list[dict]) -> str:
    """Means and standard deviations over seeds, in percent, a table for each task."""
    text = ""
    for task in TASKS:
        mine = [line for line in lines if line["task"] == task]
        if not mine:
            continue
        columns = list(dict.fromkeys(name for line in mine for name in line["found"]))
        text += f"| {task} | {' | '.join(columns)} | seeds |\n|---|{'---|' * (len(columns) + 1)}\n"
        for tower in TOWERS:
            rows = [line["found"] for line in mine if line["tower"] == tower]
            if not rows:
                continue
            cells = []
            for name in columns:
                values = [100 * row[name] for row in rows if name in row]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
            text += f"| {tower} | {' | '.join(cells)} | {len(rows)} |\n"
        text += "\n"
    return text


def picture(work: Work, path: Path, count: int = 6) -> None:
    """Test scenes with captions and answers of the models that saw CLIP's grid."""
    from hf_clip_variants.annotations.legend import Entry, with_legend

    shown, ink = [], (40, 40, 40)
    for i in range(count):
        said = work.said.get(("captions", "clip"))
        entries = [Entry(ink, said[i], "", i)] if said else []
        answers = work.said.get(("questions", "clip"))
        for number, (_, _, question, expected) in enumerate(work.questions[1][5 * i : 5 * i + 5]):
            if answers:
                found = answers[5 * i + number]
                entries.append(Entry(ink, question, found if found == expected else f"{found} ({expected})", number))
        large = work.test[i].image.resize((256, 256), Image.Resampling.BICUBIC)
        shown.append(with_legend(large, entries, work.test[i].caption()))
    width, height = (max(one.size[side] for one in shown) for side in (0, 1))
    sheet = Image.new("RGB", (2 * width, (count + 1) // 2 * height), "white")
    for i, one in enumerate(shown):
        sheet.paste(one, (i % 2 * width, i // 2 * height))
    sheet.save(path)


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--development", action="store_true", help="another style to test on")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--towers", default=",".join(TOWERS))
    parser.add_argument("--scenes", type=int, default=800, help="to train on")
    parser.add_argument("--test-scenes", type=int, default=200)
    parser.add_argument("--shapes", type=int, default=500, help="pictures of easy-vqa to train on, 4000 at most")
    parser.add_argument("--test-shapes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(argv)
    for name, known in (("tasks", TASKS), ("towers", TOWERS)):
        chosen = getattr(options, name).split(",")
        if unknown := [one for one in chosen if one not in known]:
            parser.error(f"--{name}: {unknown[0]!r}; want some of {', '.join(known)}")
        setattr(options, name, chosen)
    return options


def main(argv=None) -> None:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    work = Work(options, DATA_SEED)
    for seed in map(int, options.seeds.split(",")):
        done = {(line["task"], line["tower"], line["seed"]) for line in lines_of(options.out)}
        pairs = [(task, tower) for task in options.tasks for tower in options.towers]
        pairs = [(task, tower) for task, tower in pairs if tower != "random" or task in ANSWERED]
        wanted = [pair for pair in pairs if (*pair, seed) not in done]
        if not wanted:
            continue
        work.seed = seed
        for task, tower in wanted:
            start = time.process_time()
            found = {name: round(value, 4) for name, value in work.run(task, tower).items()}
            line = {"task": task, "tower": tower, "seed": seed, "found": found}
            line["cpu_seconds"] = round(time.process_time() - start, 1)
            with (options.out / "runs.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if work.said:
            picture(work, options.out / "scenes.png")
    written = table(lines_of(options.out))
    (options.out / "table.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
