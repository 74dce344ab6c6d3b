"""python -m experiments.paper"""

from configs.paper import Config
from experiments import paper
from resonance_jax.command import main

if __name__ == "__main__":
    main(paper.run, Config, paper.__doc__)
