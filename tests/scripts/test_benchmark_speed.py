"""The speed benchmark: ratios, memory, targets, and no timing of wrong results."""

import json
import mmap
import sys
from functools import cache

import pytest
import torch
from paths import SCRIPTS

from hf_clip_variants.evaluation.precision import cpu_has_bfloat16


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    import benchmark_speed

    yield benchmark_speed
    torch.set_num_threads(threads)
    for name in ("benchmark_speed", "speed_rows"):
        sys.modules.pop(name, None)


class Work:
    """Cases that advance a clock by a known amount and return a number."""

    def __init__(self):
        self.now = 0.0

    def case(self, seconds, result=1.0):
        def run():
            self.now += next(seconds) if hasattr(seconds, "__next__") else seconds
            return torch.tensor(result)

        return run


def row(benchmark, ours, peer, target=2.0, **kwargs):
    work = Work()
    cases = {"ours": work.case(*ours), "peer": work.case(*peer)}
    return benchmark.Row("toy", cases, {"peer": target}, clock=lambda: work.now, **kwargs)


def error(ours, peer):
    return (ours - peer).abs().item()


def test_ratio_is_the_median_over_rounds_without_warm_up(benchmark):
    (result,) = benchmark.measure("toy", row(benchmark, [2.0], [iter([1000.0, 8.0, 2.0, 6.0])]), rounds=3)
    assert (result.low, result.ratio, result.high) == (1.0, 3.0, 4.0)
    assert (result.ours_s, result.peer_s, result.rounds, result.ok) == (2.0, 6.0, 3, True)


def test_without_warm_up_the_first_round_is_timed_and_compared(benchmark):
    cold = row(benchmark, [2.0], [iter([8.0, 2.0, 6.0])], error=error, warm_up=False)
    (result,) = benchmark.measure("toy", cold, rounds=3)
    assert (result.low, result.ratio, result.high, result.max_error) == (1.0, 3.0, 4.0, 0.0)
    with pytest.raises(benchmark.WrongResult):
        benchmark.measure("toy", row(benchmark, [1.0], [9.0, 1.1], error=error, warm_up=False), rounds=1)


@pytest.mark.parametrize("target, ok", [(3.0, True), (3.7, True), (3.8, False)])
def test_ratio_more_than_20_percent_below_target_fails(benchmark, target, ok):
    measured = row(benchmark, [1.0], [3.0], target)
    assert benchmark.measure("toy", measured, rounds=1)[0].ok is ok
    assert benchmark.measure("toy", measured, rounds=1, judge=False)[0].ok is None


@pytest.mark.parametrize("tolerance", [1e-5, {"peer": 1e-5}])
@pytest.mark.parametrize("theirs", [1.1, float("nan")])
def test_different_results_are_not_timed(benchmark, tolerance, theirs):
    with pytest.raises(benchmark.WrongResult, match="toy: ours differs from peer by .*, 1e-05 is allowed"):
        benchmark.measure("toy", row(benchmark, [1.0], [9.0, theirs], error=error, tolerance=tolerance), rounds=1)


def test_kept_bytes_count_each_activation_once_and_no_weight(benchmark):
    linear = torch.nn.Linear(10, 10, bias=False)
    x = torch.randn(5, 10)

    def run():
        return linear(x).exp().sin().sum()  # keeps x, exp's result (for both exp and sin): 2 x 50 numbers

    assert benchmark.saved_bytes(run, (linear,)) == 2 * 50 * 4
    measured = benchmark.Row("toy", {"ours": run, "peer": run}, {"peer": 0.01}, weights=(linear,), kept_target=2)
    (result,) = benchmark.measure("toy", measured, rounds=1)
    assert result.kept_mb == (400 / 2**20, 400 / 2**20) and not result.ok


def test_peaks_are_compared_process_by_process(benchmark):
    peaks = {"ours": [10.0, 20.0, 0.2], "peer": [40.0, 40.0, 6.0]}
    (result,) = benchmark.measure("toy", row(benchmark, [1.0], [3.0]), rounds=1, peaks=peaks)
    assert result.peak_mb == (10.0, 40.0)
    assert result.peak_ratio == (4.0, 2.0, 6.0), "median, lowest, highest; less than 1 MB counts as 1"
    assert "**4.0** [2.0, 6.0]" in benchmark.table_line(vars(result))


def test_peak_growth_includes_freed_memory(benchmark):
    def touch_64_mb():
        # Not from the allocator, which may return memory that is already resident.
        with mmap.mmap(-1, 64 * 2**20) as fresh:
            for page in range(0, len(fresh), mmap.PAGESIZE):
                fresh[page] = 1

    assert 60 < benchmark.peak_growth(touch_64_mb) < 80
    assert benchmark.peak_growth(lambda: None) < 10


def test_results_of_rows_that_were_not_measured_are_kept(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(
        benchmark, "ROWS", {n: lambda small: row(benchmark, [1.0], [3.0], error=error) for n in ("first", "second")}
    )
    out = tmp_path / "results" / "speed"
    assert benchmark.main(["--rounds", "2", "--out", str(out)]) == 0
    assert benchmark.main(["--rounds", "5", "--rows", "first", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [(r["row"], r["rounds"]) for r in lines] == [("first", 5), ("second", 2)]
    assert lines[0]["machine"]["torch"] == torch.__version__.split("+")[0] and lines[0]["machine"]["threads"] == 1
    table = out.with_suffix(".md").read_text()
    assert (
        "| first | peer | **3.00** [3.00, 3.00] | 2.00 | 1.00 s | 3.00 s | 0e+00 |" in table
        and "- `second`: toy" in table
    )


def test_missed_target_sets_exit_code(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ROWS", {"toy": lambda small: row(benchmark, [1.0], [1.0])})
    assert benchmark.main(["--rounds", "1"]) == 1
    assert benchmark.main(["--rounds", "1", "--small"]) == 0
    assert "MISSED" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main(["--rows", "nothing"])
    assert "unknown ['nothing'], expected some of toy" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_agree_with_their_peers_at_tiny_size(benchmark, monkeypatch, capsys):
    import speed_rows_adapt
    import speed_rows_predict

    run = speed_rows_adapt.output_of
    once = cache(lambda *arguments: run(list(arguments)))
    for module in (speed_rows_adapt, speed_rows_predict):  # peers of several rows are the same process
        monkeypatch.setattr(module, "output_of", lambda each: run(each) if each[0] == "-m" else once(*each))
    left_out = ("import", "cli_", "adapt_5000", *(() if cpu_has_bfloat16() else ("adapt_500_bf16",)))
    rows = [name for name in benchmark.ROWS if not name.startswith(left_out)]
    assert benchmark.main(["--small", "--rounds", "1", "--rows", ",".join(rows)]) == 0  # WrongResult otherwise
    table = capsys.readouterr().out.rsplit("peer / ours", 1)[1]
    assert [name for name in rows if f"\n| {name} | " not in table] == []
