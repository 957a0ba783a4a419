"""`kdbench convert`: a pickled checkpoint becomes a folder of safetensors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kdbench.options import echo_json, errors_end_well, json_option


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@json_option
@errors_end_well
def convert(source, target, as_json) -> None:
    """Write the model of a folder with pytorch_model*.bin as safetensors.

    The pickle is read as tensors only; one that holds anything else is refused, since it may run code. The result is
    loaded again and compared tensor by tensor. Name it in a suite with `path:`.

    \b
    hf download facebook/opt-125m --revision 27dcfa74d334bc871f3234de431e71c6eeba5dd6 --local-dir opt-125m-pickled
    kdbench convert opt-125m-pickled opt-125m
    """
    from kdbench.distill import convert as conversion

    found = conversion.convert(source, target)
    if as_json:
        echo_json(asdict(found))
        return
    click.echo(f"{found.folder}: {found.tensors:,} tensors, {found.parameters:,} parameters, equal to the pickle's")
    if found.left_out:
        click.echo(f"no place in this architecture, left out: {', '.join(found.left_out)}", err=True)
