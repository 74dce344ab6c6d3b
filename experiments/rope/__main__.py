"""python -m experiments.rope"""

from configs.rope import Explain, Export, Numerics, Show
from experiments import rope
from resonance_jax.command import leave_on_signals, main

if __name__ == "__main__":
    leave_on_signals()  # importing tyro takes a while
    from tyro.conf import PositionalRequiredArgs

    main(rope.run, PositionalRequiredArgs[Explain | Show | Numerics | Export], rope.__doc__)
