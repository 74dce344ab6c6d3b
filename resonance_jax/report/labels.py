"""Endings of an encoding's label that say what was done to the model; report.plots gives them markers."""

FINETUNED = ", fine-tuned"
SWAPPED = ", swapped in without training"
