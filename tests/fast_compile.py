"""How tests have programs compiled: compiling is most of a test's time, and LLVM's optimisation half of it."""

FAST_COMPILE = "--xla_backend_optimization_level=0"
"""For XLA_FLAGS, of the tests and of the processes that they start where only time depends on it."""
