"""
The commands of `hf-clip-variants`, one module each, imported when the command runs.

Command `name` is the function `name` of module `name` (a typer signature; its docstring is the help text) plus a row
in `hf_clip_variants.cli.COMMANDS`. Keep torch, transformers, peft and datasets inside functions:
`hf-clip-variants name --help` imports the module. A command checks its arguments first (`arguments.py`), then calls
`prepare_libraries`. Its docstring has a summary, one example, the text, more examples; lines of examples fit 78
columns. Options that several commands have are in `options.py`, how they print is in `output.py`. Errors that the user
can fix are `ValueError`, `OSError` or `ImportError` with a message that says how; for other exit codes, `raise
typer.Exit(code)`.
"""
