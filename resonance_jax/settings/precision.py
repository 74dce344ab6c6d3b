"""How exactly a command multiplies float32 numbers, by the names that JAX gives."""

from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["auto", "float32", "tensorfloat32", "bfloat16"]
"""float32 is JAX's "highest" (on a TPU six passes of bfloat16), tensorfloat32 its "high" (there three), and
bfloat16 its "default" (there one; a GPU's libraries take TF32). auto: as the dtype says."""
