"""`fieldsight-run doctor`: what this machine offers and what is missing."""

from __future__ import annotations

from edge_runtime import terminal
from edge_runtime.cli.app import app
from edge_runtime.errors import InputError
from edge_runtime.terminal import JsonFile


@app.command(epilog="Example: `fieldsight-run doctor`")
def doctor(json_file: JsonFile = None) -> None:
    """Show what this machine offers and what is missing."""
    from edge_runtime.doctor import examine, missing_packages

    report = examine()
    for heading, facts in report.items():
        table = terminal.table_of(heading)
        for name, value in facts.items():
            table.add_row(name, value)
        terminal.console.print(table)
    terminal.write_json(json_file, report)
    if missing := missing_packages(report):
        raise InputError(f"missing packages: {', '.join(missing)}; run pip install fieldsight")
    terminal.next_command("fieldsight-run", "info", "NAME.bundle")
