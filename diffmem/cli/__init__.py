"""The command line: parse, call one function, print. The only place that prints and that ends the process."""

import errno
import io
import os
import signal
import sys
from typing import Any

import click

from diffmem.cli import (
    auditing,
    beginning,
    extraction,
    findings,
    gaps,
    halves,
    looking,
    measuring,
    models,
    onsets,
    planning,
    quality,
    results,
    running,
    scoring,
    status,
    stores,
)
from diffmem.cli.tables import echo
from diffmem.errors import DiffmemError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


ALIASES = {"ls": "list"}
"""Other names of commands."""


class Group(click.Group):
    """A group whose commands end with a sentence and an exit code where a DiffmemError comes through."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name or another one."""
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal's encoding lacks is no reason to end
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except DiffmemError as error:
            echo(str(error), err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try to write the rest when it ends
            echo("the output cannot be written, the disk is full; what was measured is in the store", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(None, "-V", "--version", package_name="diffmem")
def main() -> None:
    """Measure how much of its training data a diffusion model copies, and up to what dataset size.

    \b
    diffmem init mine --images photos/   write a study file to start from
    diffmem plan quickstart              show what would be trained
    diffmem run quickstart               train and score what is missing
    diffmem emm quickstart               the largest memorized training sets
    diffmem report                       everything as one HTML page

    \b
    Exit codes:
      0    done
      1    something could not be done: a cell failed, the store is locked or
           damaged, the machine lacks space or memory
      2    wrong input: a command line, a study, a query, or a name that the
           store does not have
      130  stopped by Ctrl-C (SIGINT); 143: by SIGTERM
    """


@main.command("help")
@click.argument("command", required=False)
@click.pass_context
def help_(context: click.Context, command: str | None) -> None:
    """Show the help of a command.

    Example: diffmem help run
    """
    known = main.resolve_command(context, [command])[1] if command else main
    if known is None:
        return  # which is when the shell completes a line
    above = context.parent or context
    click.echo(known.get_help(click.Context(known, parent=above, info_name=command) if command else above))


for command in (
    beginning.init,
    beginning.list_,
    running.run,
    planning.plan,
    status.status,
    results.emm,
    gaps.gaps,
    quality.quality,
    halves.halves,
    onsets.onset,
    extraction.extraction,
    results.report,
    findings.findings,
    looking.show,
    looking.diff,
    looking.query,
    looking.export,
    stores.store_group,
    scoring.score,
    measuring.measure,
    models.generate,
    auditing.audit,
    planning.schema,
):
    main.add_command(command)
