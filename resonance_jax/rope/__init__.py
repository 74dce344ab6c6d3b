"""RoPE encodings: a rule makes a table of frequencies; everything else takes the table."""

from resonance_jax.rope.explanation import explain
from resonance_jax.rope.hf import from_hf, to_hf, to_longrope
from resonance_jax.rope.hf_layers import nested, specs_from_hf
from resonance_jax.rope.integer_wavelengths import (
    critical_dimension,
    feature_gap,
    resonance,
    seen_twin,
    wavelengths,
)
from resonance_jax.rope.layer_specs import LayerSpecs, Specs, main_spec, specs_from_dict
from resonance_jax.rope.methods import METHODS
from resonance_jax.rope.names import named
from resonance_jax.rope.phases import FULL, SLIDING, Frequencies, Tables, cos_sin, from_inv_freq, rotate
from resonance_jax.rope.restatement import restate
from resonance_jax.rope.scale_for_length import restate_for_length
from resonance_jax.rope.spec import RopeSpec
from resonance_jax.rope.tables import fingerprint, frequencies, from_record, same, to_record

__all__ = [
    "FULL",
    "METHODS",
    "SLIDING",
    "Frequencies",
    "LayerSpecs",
    "RopeSpec",
    "Specs",
    "Tables",
    "cos_sin",
    "critical_dimension",
    "explain",
    "feature_gap",
    "fingerprint",
    "frequencies",
    "from_hf",
    "from_inv_freq",
    "from_record",
    "main_spec",
    "named",
    "nested",
    "resonance",
    "restate",
    "restate_for_length",
    "rotate",
    "same",
    "seen_twin",
    "specs_from_dict",
    "specs_from_hf",
    "to_hf",
    "to_longrope",
    "to_record",
    "wavelengths",
]
