"""One self-contained HTML page of a report: `pibench report --html`."""
