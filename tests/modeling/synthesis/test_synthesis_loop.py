"""The loop: seeds, groups, the best state, stopping, resuming."""

import math

import pytest
import torch

from hf_clip_variants.modeling.synthesis.synthesis_loop import SynthesisLoop, SynthesisSample, checked_seeds


class Noisy:
    """Pulls numbers to 1 with noise from each sample's generator."""

    def losses(self, samples, step):
        noise = torch.stack([torch.randn(3, generator=sample.generator) for sample in samples])
        return ((torch.stack([sample.tensors["x"] for sample in samples]) - 1 + 0.1 * noise) ** 2).sum(1)

    def evaluate(self, samples):
        return ((torch.stack([sample.tensors["x"] for sample in samples]) - 1) ** 2).sum(1)

    def after_step(self, sample, step, num_steps):
        sample.tensors["x"].clamp_(-5, 5)

    def images(self, samples):
        return torch.stack([sample.tensors["x"].view(3, 1, 1).expand(3, 2, 2) for sample in samples])


def samples(*seeds, lr=0.1):
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, generator=generator).requires_grad_()
        found.append(SynthesisSample(seed, generator, {"x": x}, torch.optim.Adam([x], lr=lr)))
    return found


def results(loop):
    return {sample.seed: sample.tensors["x"].detach().clone() for sample in loop.run()}


def test_a_seed_gives_the_same_bits_whatever_else_is_made():
    together, alone = (results(SynthesisLoop(Noisy(), samples(*seeds), 20)) for seeds in ((3, 1, 2), (1,)))
    assert torch.equal(together[1], alone[1]) and not torch.equal(together[1], together[2])
    grouped = results(SynthesisLoop(Noisy(), samples(3, 1, 2), 20, samples_at_once=2))
    torch.testing.assert_close(grouped[1], alone[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop", [1, 7, 10, 13])
def test_a_loop_that_was_stopped_ends_with_the_same_bits(stop):
    whole = SynthesisLoop(Noisy(), samples(0, 1), 20, evaluate_every=3, keep_best=True)
    expected = results(whole)
    first = SynthesisLoop(Noisy(), samples(0, 1), 20, evaluate_every=3, keep_best=True)
    first.run(lambda loop: loop.step < stop)
    assert first.step == stop and not first.is_done
    second = SynthesisLoop(Noisy(), samples(0, 1), 20, evaluate_every=3, keep_best=True)
    second.load_state_dict(first.state_dict())
    found = results(second)
    assert all(torch.equal(found[seed], expected[seed]) for seed in (0, 1))
    for one, other in zip(second.samples, whole.samples, strict=True):
        assert one.losses == other.losses and one.evaluations == other.evaluations
        assert one.best_value == other.best_value and torch.equal(one.best["x"], other.best["x"])


def test_the_best_state_is_kept_and_a_still_loop_stops():
    loop = SynthesisLoop(Noisy(), samples(0, lr=0.9), 15, evaluate_every=1, keep_best=True)
    loop.run()
    sample = loop.finish()[0]
    values = [value for _, value in sample.evaluations]
    assert loop.value_of(sample) == min(values) < values[-1]
    assert float(Noisy().evaluate([sample])) == pytest.approx(min(values))
    still = SynthesisLoop(Noisy(), samples(0, lr=0.0), 50, evaluate_every=5, min_delta=1e-6)
    still.run()
    assert still.step == 5 and still.samples[0].stopped and still.is_done


def test_a_loss_that_is_not_finite_is_told():
    class Broken(Noisy):
        def losses(self, samples, step):
            return super().losses(samples, step) * (math.nan if step == 2 else 1)

    with pytest.raises(ValueError, match="loss: .* in step 2"):
        SynthesisLoop(Broken(), samples(0), 9).run()


def test_bad_numbers_and_foreign_states_are_refused():
    for options, said in (
        ({"num_steps": -1}, "num_steps: -1"),
        ({"num_steps": 10**9}, "num_steps"),
        ({"num_steps": 5, "samples_at_once": 0}, "samples_at_once"),
        ({"num_steps": 5, "evaluate_every": 0}, "evaluate_every"),
    ):
        with pytest.raises(ValueError, match=said):
            SynthesisLoop(Noisy(), samples(0), **options)
    with pytest.raises(ValueError, match="samples: 0"):
        SynthesisLoop(Noisy(), [], 5)
    state = SynthesisLoop(Noisy(), samples(0), 5).state_dict()
    for others, said in (
        (samples(0, 1), "1 pictures, expected 2"),
        (samples(1), "of seed 0, expected that of seed 1"),
    ):
        with pytest.raises(ValueError, match=said):
            SynthesisLoop(Noisy(), others, 5).load_state_dict(state)
    for seeds in ((), (1, 1), -1, "0", 1.0, True, [2**64], None, {1, 2}, b"1"):
        with pytest.raises(ValueError, match="seeds: "):
            checked_seeds(seeds)
    assert checked_seeds(3) == [3] and checked_seeds((2, 1)) == [2, 1]
