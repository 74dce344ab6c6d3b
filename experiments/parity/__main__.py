"""python -m experiments.parity"""

from configs.parity import Config
from experiments import parity
from resonance_jax.command import main

if __name__ == "__main__":
    main(parity.run, Config, parity.__doc__)
