"""Tables, plots and progress lines for people."""

from resonance_jax.report.perplexity import difference, doubling, figures, positions, table
from resonance_jax.report.plots import (
    accuracy_by_position_plot,
    perplexity_panels,
    perplexity_plot,
    style,
)
from resonance_jax.report.progress import Progress, training_progress
from resonance_jax.report.provenance import machine
from resonance_jax.report.tables import csv_text, markdown, print_table

__all__ = [
    "Progress",
    "accuracy_by_position_plot",
    "csv_text",
    "difference",
    "doubling",
    "figures",
    "machine",
    "markdown",
    "perplexity_panels",
    "perplexity_plot",
    "positions",
    "print_table",
    "style",
    "table",
    "training_progress",
]
