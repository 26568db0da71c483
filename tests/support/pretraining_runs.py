"""Small pre-training runs for tests and for the programs that tests start."""

from tiny import tiny_clip, tiny_tokenizer
from transformers import CLIPImageProcessor, CLIPProcessor, TrainingArguments

from hf_clip_variants.data.augmentation.batches import AUGMENTATIONS_OF_BATCHES
from hf_clip_variants.data.images.emoji import FOLDER, load_emoji
from hf_clip_variants.data.pairs.batches import PairCollator, PairDataset, PairReader, PairStream, PairViews
from hf_clip_variants.data.pairs.sources import open_pairs
from hf_clip_variants.evaluation.zero_shot import ZeroShotSet
from hf_clip_variants.training.exact_contrastive_loss import ExactContrastiveLoss
from hf_clip_variants.training.pretrain_trainer import PretrainTrainer


SIZE = 24


def processor():
    square = {"height": SIZE, "width": SIZE}
    return CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=square), tiny_tokenizer())


def clip():
    return tiny_clip(text_config={"attention_dropout": 0.1}, vision_config={"attention_dropout": 0.1})


def still_clip():
    """Without dropout, whose masks depend on chunks and processes."""
    return tiny_clip(text_config={"attention_dropout": 0.0}, vision_config={"attention_dropout": 0.0})


def zero_shot_set():
    return ZeroShotSet("3d", load_emoji("fluent3d").select(range(21)), "icons")


def trainer(
    out,
    steps=6,
    batch_size=8,
    model=None,
    stream=False,
    on_device=False,
    sets=None,
    exact=True,
    micro_batch_size=None,
    world_size=1,
    schedule=None,
    trainer_class=PretrainTrainer,
    **options,
):
    """`batch_size` is the batch size of each of `world_size` processes."""
    pairs = open_pairs(FOLDER / "notov1.parquet", text_columns=["name"], streaming=stream)
    reader = PairReader(seed=3, source_size=SIZE)
    data = PairStream(pairs, reader, batch_size) if stream else PairDataset([pairs], reader, batch_size * world_size)
    views = PairViews({"pixel_values": AUGMENTATIONS_OF_BATCHES["icons"]}, SIZE, [0.5] * 3, [0.5] * 3, seed=3)
    arguments = {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "remove_unused_columns": False,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }
    return trainer_class(
        model if model is not None else clip(),
        TrainingArguments(str(out), **arguments | options),
        PairCollator(tiny_tokenizer(), 32, None if on_device else views),
        data,
        processing_class=processor(),
        views_on_device=views if on_device else None,
        eval_dataset=sets,
        micro_batch_size=micro_batch_size,
        schedule=schedule,
        callbacks=[ExactContrastiveLoss()] if exact else [],
    )


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]
