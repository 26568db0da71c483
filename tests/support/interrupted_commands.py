"""A command in a process that gets a signal. A module of its own: a new process imports it by name."""

import os
import signal
import sys
import time


def run_and_say_ready(arguments: list[str], log: str, ready: bool) -> None:
    """A command in a process of its own, which writes "ready" when it begins to work."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    os.chdir(os.path.dirname(log))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server's processes ignore it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if ready:  # when a model has been read
        import transformers

        real = transformers.PreTrainedModel.from_pretrained.__func__

        def slow(cls, *args, **kwargs):
            found = real(cls, *args, **kwargs)
            print("ready", flush=True)
            time.sleep(0.3)
            return found

        transformers.PreTrainedModel.from_pretrained = classmethod(slow)
    if arguments[0].endswith(".py"):
        import runpy

        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        from hf_clip_variants import cli

        cli.main(arguments)
