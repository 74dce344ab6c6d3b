"""python -m experiments.passkey"""

from configs.passkey import PRESETS
from experiments import passkey
from resonance_jax.command import main

if __name__ == "__main__":
    main(passkey.run, PRESETS, passkey.__doc__)
