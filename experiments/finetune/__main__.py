"""python -m experiments.finetune"""

from configs.finetune import PRESETS
from experiments import finetune
from resonance_jax.command import main

if __name__ == "__main__":
    main(finetune.run, PRESETS, finetune.__doc__)
