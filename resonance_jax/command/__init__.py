"""What every command shares: its options, how it starts and ends, and its run folder."""

from resonance_jax.command.child_command import run_command
from resonance_jax.command.command_line import main
from resonance_jax.command.device import device_line
from resonance_jax.command.dtype import with_chosen_dtype
from resonance_jax.command.host_devices import use_every_core
from resonance_jax.command.one_sentence_errors import guarded
from resonance_jax.command.options import option_words, options_of, stated_options, with_options
from resonance_jax.command.precision import use_precision
from resonance_jax.command.result_file import keep_result, kept_result
from resonance_jax.command.run_folder import default_folder, local_part, open_run, remember, stated_config
from resonance_jax.command.several_processes import decoding_mesh, open_run_of_first, together
from resonance_jax.command.signals import leave_on_signals

__all__ = [
    "decoding_mesh",
    "default_folder",
    "device_line",
    "guarded",
    "keep_result",
    "kept_result",
    "leave_on_signals",
    "local_part",
    "main",
    "open_run",
    "open_run_of_first",
    "option_words",
    "options_of",
    "remember",
    "run_command",
    "stated_config",
    "stated_options",
    "together",
    "use_every_core",
    "use_precision",
    "with_chosen_dtype",
    "with_options",
]
