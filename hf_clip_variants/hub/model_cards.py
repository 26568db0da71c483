"""Model cards: the method, the base model, the classes, measured results."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files.printable import printable
from ..metrics.intervals import gain_text, may_be_chance
from ..registry import Method, methods
from .card_snippets import model_snippet
from .verification import weight_hashes


PLACEHOLDER_ID = "YOUR_NAME/THIS_REPOSITORY"  # in cards made before the repository is known; `hub.push` replaces it
_CLASSES_SHOWN = 100
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)

_ADAPTER = """\
import torch
from hf_clip_variants import load_adapter
from PIL import Image
from transformers import AutoImageProcessor

model = load_adapter({repo_id})  # brings its base model
processor = AutoImageProcessor.from_pretrained({base_model})
image = Image.new("RGB", (224, 224), "orange")  # yours
with torch.inference_mode():
    logits = model(**processor(images=image, return_tensors="pt")).logits
print(model.get_base_model().class_names[logits.argmax(-1)])"""

_ADAPTER_ON_CLIP = """\
import torch
from hf_clip_variants import load_adapter
from PIL import Image
from transformers import AutoProcessor

model = load_adapter({repo_id})  # brings its base model
processor = AutoProcessor.from_pretrained({base_model})
image = Image.new("RGB", (224, 224), "orange")  # yours
inputs = processor(text=["a cat", "a dog"], images=image, padding=True, return_tensors="pt")
with torch.inference_mode():
    print(model(**inputs).logits_per_image.softmax(-1))"""


def accuracy_result(
    value: float,
    dataset: str,
    *,
    split: str = "test",
    zero_shot: float | None = None,
    interval: Sequence[float] | None = None,
    **details: Any,
) -> EvalResult:
    """An accuracy (0 to 1) in the Hub's format, as the card's table shows it.

    Args:
        value: of the model.
        dataset: name of the test set.
        split: its part.
        zero_shot: accuracy of zero-shot CLIP on the same images, shown beside it.
        interval: 95 % interval of the difference, from `metrics.intervals.paired_bootstrap`.
        details: what else the table says (shots=4, seeds=3, ...).

    Raises:
        ValueError: `value` is outside 0 to 1.

    >>> accuracy_result(0.788, "pets", zero_shot=0.827, interval=(-0.1, 0.02), shots=4).dataset_args
    {'zero_shot': 0.827, 'gain_interval': [-0.1, 0.02], 'shots': 4}
    """
    if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"value: expected an accuracy from 0 to 1, got {value!r}")
    if interval is not None:
        details = {"gain_interval": [round(end, 6) for end in interval], **details}
    if zero_shot is not None:
        details = {"zero_shot": round(zero_shot, 6), **details}
    return EvalResult(
        task_type="image-classification",
        dataset_type=re.sub(r"[^\w./-]+", "-", dataset).strip("-") or "unnamed",
        dataset_name=dataset,
        dataset_split=split,
        dataset_args=details or None,
        metric_type="accuracy",
        metric_name="accuracy",
        metric_value=float(value),
    )


def describe(model_or_folder: Any, adapter_name: str = "default") -> tuple[Method, dict[str, Any]]:
    """The row of a model (or of the folder that it was saved to) and its configuration as plain data;
    ValueError for others than ours.
    """
    if isinstance(model_or_folder, (str, Path)):
        folder = Path(model_or_folder)
        adapter, config = folder / "adapter_config.json", folder / "config.json"
        source = adapter if adapter.is_file() else config
        if not source.is_file():
            raise ValueError(f"{folder}: neither adapter_config.json nor config.json is there, expected a saved model")
        values = json.loads(source.read_text(encoding="utf-8"))
    elif adapters := getattr(model_or_folder, "peft_config", None):
        if adapter_name not in adapters:
            raise ValueError(f"adapter_name: {adapter_name!r}, the model has {', '.join(adapters)}")
        values = json.loads(json.dumps(adapters[adapter_name].to_dict(), default=_plain))
    else:
        values = model_or_folder.config.to_dict()
    for row in methods():
        if row.kind == "adapter" and values.get("peft_type") == row.peft_type:
            return row, values
        if row.kind == "model" and "peft_type" not in values and values.get("model_type") == row.model_type:
            return row, values
    kind = values.get("peft_type") or values.get("model_type")
    known = ", ".join(row.peft_type or row.model_type for row in methods())
    raise ValueError(f"{kind!r} is not a method of this package, expected one of {known}")


def _adapter_config(model: Any, row: Method, adapter_name: str):
    if isinstance(model, (str, Path)):
        return row.load("config").from_pretrained(str(model))
    return model.peft_config[adapter_name]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else getattr(value, "value", str(value))


def _code(text: Any) -> str:
    """Text of unknown origin as Markdown code, escaped so that it ends neither the code nor a table."""
    text = re.sub(r"\s+", " ", printable(str(text))).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def _cell(text: Any) -> str:
    line = re.sub(r"\s+", " ", printable(str(text)))
    return re.sub(r"([\\`\[\]|])", r"\\\1", line).replace("<", "&lt;")


def _literal(value: Any) -> str:
    """A value of unknown origin as Python code: text in double quotes and on one line."""
    if not isinstance(value, str):
        return "[" + ", ".join(map(_literal, value)) + "]" if isinstance(value, list | tuple) else repr(value)
    text = re.sub(r'(["\\])', r"\\\1", value)
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'


def _citation(row: Method) -> str:
    surname = "".join(filter(str.isalnum, row.title.lower()))
    lines = [f"@article{{{surname}{row.paper.year},", f"  title = {{{row.paper.title}}},"]
    lines += [f"  author = {{{row.paper.authors}}},"] if row.paper.authors else []
    lines += [f"  journal = {{arXiv preprint arXiv:{row.paper.arxiv}}},", f"  year = {{{row.paper.year}}},"]
    return "\n".join([*lines, f"  url = {{{row.paper.url}}}", "}"])


def _result_rows(results: Sequence[EvalResult]) -> list[dict[str, str]]:
    rows = []
    for result in results:
        value = result.metric_value
        shown = f"{100 * value:.1f} %" if result.metric_type == "accuracy" and isinstance(value, float) else value
        more = dict(result.dataset_args or {})
        zero_shot, interval = more.pop("zero_shot", None), more.pop("gain_interval", None)
        told = [f"{name} {item}" for name, item in more.items()]
        if zero_shot is not None:
            shown += f" (zero-shot CLIP: {100 * zero_shot:.1f} %)"
        if zero_shot is not None and interval is not None:
            chance = ", may be chance" if may_be_chance(interval) else ""
            told.insert(0, f"gain {gain_text(value - zero_shot, interval)}{chance}")
        details = ", ".join(told)
        row = {"data": result.dataset_name, "split": result.dataset_split or "", "value": shown, "details": details}
        rows.append(
            {name: _cell(text) for name, text in (row | {"metric": result.metric_name or result.metric_type}).items()}
        )
    return rows


def _snippet(
    row: Method, values: Mapping, repo_id: str, base_model: str | None, with_code: bool, with_base: bool
) -> str:
    if row.kind == "adapter" and not with_base:
        is_plain = (values.get("auto_mapping") or {}).get("base_model_class") == "CLIPModel"
        if row.task == "image-classification" and not is_plain:
            return _ADAPTER.format(repo_id=_literal(repo_id), base_model=_literal(base_model))
        # A method's own snippet may use any field of its configuration.
        template = row.load("card_snippet") if row.card_snippet else _ADAPTER_ON_CLIP
        names = values.get("class_names") or ["cat", "dog"]
        defaults = row.load("config")().to_dict()
        about = {**defaults, **values, "repo_id": repo_id, "base_model": base_model, "names": names}
        return template.format_map({name: _literal(value) for name, value in about.items()})
    return model_snippet(row, values.get("architectures") or (), _literal(repo_id), with_code)


def card_arguments(readme: str) -> dict[str, Any]:
    """The arguments of `model_card` that wrote this text: `results`, `recipe`, `license`, `datasets`, `tags`.

    Empty for other cards.
    """
    if "hf-clip-variants" not in readme:
        return {}
    data = ModelCard(readme, ignore_metadata_errors=True).data
    table = re.search(r"^## Training\n\n\| setting \| value \|\n\|---\|---\|\n((?:\|.*\|\n)*)", readme, re.MULTILINE)
    rows = [re.split(r"(?<!\\)\|", line)[1:3] for line in table[1].splitlines()] if table else []
    recipe = dict([cell.strip().replace("\\|", "|").replace("&lt;", "<") for cell in cells] for cells in rows)
    found = {"results": data.eval_results, "recipe": recipe, "license": data.license}
    found |= {"datasets": data.datasets, "tags": set(data.tags or ()) - {"custom_code"}}
    return {name: value for name, value in found.items() if value}


def _shown_templates(templates: Sequence[str] | Mapping[str, Sequence[str]]) -> str:
    if isinstance(templates, Mapping):
        return f"each class has prompts of its own, {sum(map(len, templates.values()))} in all, in the configuration."
    return ", ".join(_code(template) for template in templates)


def model_card(
    model: Any,
    *,
    repo_id: str = PLACEHOLDER_ID,
    base_model: str | None = None,
    license: str | None = None,
    results: Sequence[EvalResult] = (),
    recipe: Mapping[str, Any] | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    description: str = "",
    adapter_name: str = "default",
    with_code: bool = False,
    with_base: bool = False,
    weights: str | Path | None = None,
) -> ModelCard:
    """A card for a model or an adapter: Hub metadata, a snippet to run, classes, results, training, citation.

    Args:
        model: a model of this package, a `PeftModel` with an adapter of ours, or the folder that one of them was saved
            to.
        repo_id: its repository; if left out, `hub.push` fills it in later.
        base_model: id of the CLIP that it is made from. Default for adapters: the one in their configuration.
        license: of the weights, as the Hub writes it ("mit", "cc-by-4.0").
        results: measured ones, from `accuracy_result`. Only these are shown.
        recipe: how it was trained, setting by setting.
        datasets: Hub ids of what it was trained on.
        tags: further ones; description: Markdown.
        adapter_name: which adapter of a `PeftModel`.
        with_code: the repository holds the code (`export_with_code`).
        with_base: the repository of an adapter holds its base, too.
        weights: the folder whose weight files' SHA-256 the card records, for `verification.verify`. Default: `model`,
            if that is a folder.

    Raises:
        ValueError: `model` is not a model of this package.

    Example:

    ```python
    card = model_card("runs/pets/adapter", license="mit", results=[accuracy_result(0.91, "pets", shots=4)])
    card.save("runs/pets/adapter/README.md")
    ```
    """
    row, values = describe(model, adapter_name)
    is_adapter = row.kind == "adapter"
    if is_adapter:
        base_model = base_model or values.get("base_model_name_or_path")
        if base_model and os.path.exists(base_model):  # a path on this machine means nothing to others
            base_model = Path(base_model).name
        names, templates = values.get("class_names") or [], values.get("templates") or []
    else:
        labels = values.get("id2label") or {}
        names = [name for _, name in sorted(labels.items(), key=lambda item: int(item[0]))]
        templates = values.get("templates") or []
        names = names if templates else []
    where = "the CLIP classifier in this repository" if with_base else _code(base_model)
    what = f"for {len(names)} classes" if names else "for classes of your choice"
    if is_adapter:
        title = f"{row.title} {what}"
        summary = f"An adapter by [{row.title}]({row.paper.url}) ({row.paper.title}, {row.paper.year}) on {where}."
    elif "AutoModelForImageClassification" not in row.auto_classes:
        title = row.title
        summary = f"[{row.title}]({row.paper.url}) ({row.paper.title}, {row.paper.year})"
        summary += f", made from {_code(base_model)}." if base_model else "."
    else:
        title = f"CLIP classifier {what}"
        summary = (
            f"[{row.title}]({row.paper.url}) ({row.paper.title}, {row.paper.year}) that knows its classes by their "
            "names" + (f", made from {_code(base_model)}." if base_model else ".")
        )
    if with_code:
        preparation = "Needs `transformers` and nothing else: the code is in this repository."
        note = 'Code runs when the model is loaded: read it, then pin what you read with `revision="<commit hash>"`.'
    else:
        preparation = "`pip install hf-clip-variants`, then:"
        note = ""
    if is_adapter and (why := _adapter_config(model, row, adapter_name).why_classes_are_fixed()):
        note = f"The adapter {why}: use it with these classes, in this order."
    shown = ", ".join(_code(name) for name in names[:_CLASSES_SHOWN])
    if len(names) > _CLASSES_SHOWN:
        shown += f" and {len(names) - _CLASSES_SHOWN} more, in the configuration."
    weights = weights or (model if isinstance(model, (str, Path)) else None)
    data = ModelCardData(
        sha256=(weight_hashes(weights) or None) if weights else None,
        license=license,
        # By this, `pipeline(model=...)` without a task takes or refuses a repository.
        library_name="peft" if is_adapter and not with_base else "transformers",
        pipeline_tag="image-classification" if is_adapter else row.task,
        base_model=base_model if base_model and _HUB_ID.fullmatch(base_model) else None,
        base_model_relation="adapter" if is_adapter and not with_base else None,
        datasets=list(datasets) or None,
        tags=sorted({"clip", "hf-clip-variants", row.name, *tags, *(["custom_code"] if with_code else [])}),
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("model_card.md").read_text(encoding="utf-8"),
        title=title,
        summary=summary,
        description=description,
        preparation=preparation,
        snippet=_snippet(row, values, repo_id, base_model, with_code, with_base),
        note=note,
        class_names=shown,
        templates="" if values.get("fixed_class_features") else _shown_templates(templates),
        results=_result_rows(results),
        with_gains=any("gain_interval" in (result.dataset_args or {}) for result in results),
        recipe=[(_cell(name), _cell(value)) for name, value in (recipe or {}).items()],
        licence=f"Weights: {license}." if license else "The author of these weights has not stated one.",
        citation=_citation(row),
    )


__all__ = ["PLACEHOLDER_ID", "accuracy_result", "card_arguments", "describe", "model_card"]
