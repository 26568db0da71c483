"""What a picture is optimised towards: chapters, one after the other, each with a goal of every guide."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .guide import GuidingEncoder
from .guiding_prompts import Goal, Prompt, parse_prompts
from .synthesis_loop import SynthesisSample


MOST_CHAPTERS = 64


@dataclass
class Story:
    """
    Args:
        text: as the user wrote it, or None.
        chapters: of each chapter the goal of each guide. Chapters have equal parts of the steps.
    """

    text: str | None
    chapters: list[list[Goal]]

    def chapter_at(self, done: int, num_steps: int) -> int:
        """The number of the chapter after `done` of `num_steps` steps."""
        return min(done * len(self.chapters) // max(1, num_steps), len(self.chapters) - 1)

    def goals(self, done: int, num_steps: int) -> list[Goal]:
        """Each guide's goal after `done` of `num_steps` steps."""
        return self.chapters[self.chapter_at(done, num_steps)]

    def share(self, done: int, num_steps: int) -> float:
        """The part of the chapter, in 0..1, that is over after `done` of `num_steps` steps."""
        return done * len(self.chapters) / max(1, num_steps) - self.chapter_at(done, num_steps)

    def joined(self, extra: Sequence[Sequence[Goal]]) -> "Story":
        """With further goals of each guide, in every chapter."""
        chapters = [
            [_joined([goal, *more]) for goal, more in zip(goals, extra, strict=True)] for goals in self.chapters
        ]
        return Story(self.text, chapters)


def current_goals(samples: Sequence[SynthesisSample], num_steps: int) -> list[list[Goal]]:
    """Of each guide, the goal of each sample in the chapter that it is in."""
    return list(zip(*(sample.goal.goals(len(sample.losses), num_steps) for sample in samples), strict=True))


def _joined(goals: Sequence[Goal]) -> Goal:
    if len(goals) == 1:
        return goals[0]
    return Goal(*(torch.cat([getattr(goal, name) for goal in goals]) for name in ("embeds", "weights", "stops")))


def parse_story(text: str, what: str = "prompt") -> list[list[Prompt]]:
    """`"a | b ^ c"` -> prompts of each chapter.

    Raises:
        ValueError: as `parse_prompts`; too many chapters.

    >>> [[prompt.text for prompt in chapter] for chapter in parse_story("a | b ^ c")]
    [['a', 'b'], ['c']]
    """
    parts = text.split("^") if isinstance(text, str) else [text]
    if len(parts) > MOST_CHAPTERS:
        raise ValueError(f"{what}: {len(parts)} chapters, expected at most {MOST_CHAPTERS}")
    return [parse_prompts(part, what) for part in parts]


def tokenizers_of(guides: Sequence[GuidingEncoder], tokenizer) -> list:
    """A tokenizer for each guide. ValueError if their numbers differ; one guide takes one without a list."""
    found = list(tokenizer) if isinstance(tokenizer, list | tuple) else [tokenizer]
    if len(found) != len(guides) and found != [None]:
        raise ValueError(
            f"tokenizer: {len(found)} for {len(guides)} guides, expected a list of one for each guide, in order"
        )
    return found if len(found) == len(guides) else [None] * len(guides)


def stories_of(
    guides: Sequence[GuidingEncoder],
    prompts: str | Sequence[str] | None,
    tokenizer,
    prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None,
) -> list[Story]:
    """
    Of each picture, from texts or from embeddings.

    Args:
        guides: the dual encoders, in order.
        prompts: a text or several, of which each is a story (`parse_story`).
        tokenizer: of the guide; of several, a list of one for each.
        prompt_embeds: (T, D) instead of prompts; of several guides, a list of one for each.

    Raises:
        ValueError: both or none of prompts and embeddings; blank texts, bad weights; other shapes; not finite.
    """
    if (prompts is None) == (prompt_embeds is None):
        raise ValueError("prompts, prompt_embeds: give exactly one of them")
    if prompt_embeds is not None:
        rows = zip(*_checked_embeds(guides, prompt_embeds), strict=True)
        return [Story(None, [[Goal.of(row[None], [Prompt("embedding")]) for row in of_guides]]) for of_guides in rows]
    if not isinstance(prompts, str | list | tuple):
        raise ValueError(f"prompts: got {type(prompts).__name__}, expected a text or a list of texts")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("prompts: none, expected at least one text")
    names = ["prompts" if isinstance(prompts, str) else f"prompts[{number}]" for number in range(len(texts))]
    parsed = [parse_story(text, name) for text, name in zip(texts, names, strict=True)]
    tokenizers = tokenizers_of(guides, tokenizer)
    return [
        Story(
            text,
            [
                [
                    Goal.of(guide.encode_prompts([prompt.text for prompt in part], own), part)
                    for guide, own in zip(guides, tokenizers, strict=True)
                ]
                for part in chapters
            ],
        )
        for text, chapters in zip(texts, parsed, strict=True)
    ]


def _checked_embeds(guides, prompt_embeds) -> list[torch.Tensor]:
    """(T, D) float32 of each guide, on its device."""
    given = [prompt_embeds] if isinstance(prompt_embeds, torch.Tensor) else list(prompt_embeds)
    if len(given) != len(guides):
        raise ValueError(f"prompt_embeds: {len(given)} tensors for {len(guides)} guides, expected one for each")
    for embeds, guide in zip(given, guides, strict=True):
        width = guide.config.projection_dim
        if not isinstance(embeds, torch.Tensor) or embeds.dim() != 2 or embeds.shape[1] != width or not len(embeds):
            got = list(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
            raise ValueError(f"prompt_embeds: got {got}, expected [prompts, {width}]")
        if not embeds.is_floating_point() or not embeds.isfinite().all():
            raise ValueError(f"prompt_embeds: got {embeds.dtype}, expected floats that are finite")
    if len({len(embeds) for embeds in given}) > 1:
        raise ValueError(f"prompt_embeds: {[len(embeds) for embeds in given]} prompts, expected as many of each guide")
    return [embeds.to(guide.device).float() for embeds, guide in zip(given, guides, strict=True)]


__all__ = ["MOST_CHAPTERS", "Story", "current_goals", "parse_story", "stories_of", "tokenizers_of"]
