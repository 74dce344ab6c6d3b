"""python -m experiments.posgen"""

from configs.posgen import PRESETS
from experiments import posgen
from resonance_jax.command import main

if __name__ == "__main__":
    main(posgen.run, PRESETS, posgen.__doc__, preset_by_default=False)
