"""What is added to an encoding's title when something was done to the model; report.plots draws it apart."""

FINETUNED = ", fine-tuned"
SWAPPED = ", swapped in without training"
