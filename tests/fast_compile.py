"""How tests have programs compiled: most of a test's time is compiling, half of it LLVM's optimisation."""

FAST_COMPILE = "--xla_backend_optimization_level=0"
"""For XLA_FLAGS, of the tests and of the processes that they start where only time depends on it."""
