"""Tables, plots and progress: people look before they read."""

from resonance_jax.report.machine import machine
from resonance_jax.report.perplexity import difference, doubling, figures, positions, table
from resonance_jax.report.plots import perplexity_panels, perplexity_plot
from resonance_jax.report.progress import Progress, training_progress
from resonance_jax.report.tables import csv_text, markdown, print_table

__all__ = [
    "Progress",
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
    "table",
    "training_progress",
]
