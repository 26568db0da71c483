"""A command in a process that gets a signal. A module of its own: a new process imports it by name."""

import os
import signal
import sys
import time


def run_and_say_ready(arguments: list[str], log: str, ready: str | None) -> None:
    """A command in a process of its own, which writes "ready" when it works: when it has read a model
    ("from_pretrained") or saved one ("save_pretrained"), or when its commit reaches a Hub in this process ("commit").
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    os.chdir(os.path.dirname(log))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server's processes ignore it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TMPDIR"] = os.path.dirname(log)
    if ready == "commit":
        from fake_hub import hub_in_this_process

        with hub_in_this_process(os.path.dirname(log)) as hub:
            hub._next_fault = lambda request: _say_ready_at(request, hub)
            _run(arguments)
    if ready:
        import transformers

        of_class = ready == "from_pretrained"
        real = getattr(transformers.PreTrainedModel, ready)
        real = real.__func__ if of_class else real

        def slow(owner, *args, **kwargs):
            found = real(owner, *args, **kwargs)
            print("ready", flush=True)
            time.sleep(0.3)
            return found

        setattr(transformers.PreTrainedModel, ready, classmethod(slow) if of_class else slow)
    _run(arguments)


def _say_ready_at(request: str, hub) -> None:
    hub.log.append(request)
    if "/commit/" in request:
        print("ready", flush=True)
        time.sleep(5)


def _run(arguments: list[str]) -> None:
    if arguments[0].endswith(".py"):
        import runpy

        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        from hf_clip_variants import cli

        cli.main(arguments)
