"""What the TPU's compiler makes of a program for a slice that is not there, or why it refuses it."""

import dataclasses
import re
import time
from collections import Counter
from typing import Any

import jax

from resonance_jax.parallel import hlo, memory
from resonance_jax.parallel.collectives import collectives

TOO_MUCH = "RESOURCE_EXHAUSTED"
"""How XLA's message begins when a program does not fit."""
_USED = re.compile(r"(?:Used |\()([\d.]+)([KMGT]?)\)?(?: of | exceeds available HBM \()([\d.]+)([KMGT]?)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_KERNEL = re.compile(r'kernel_name = "([\w.-]+)"')
_PRODUCT = re.compile(
    r"stablehlo\.dot_general .*?(?:precision = \[(\w+), (\w+)\])?\s*(?:\{[^}]*\} )?: "
    r"\(tensor<[^>]*?(\w+)>, tensor<[^>]*?(\w+)>\) -> tensor<[^>]*?(\w+)>"
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program, compiled for a slice. Sizes are bytes on each device.

    Attributes:
        fits: whether the compiler could lay it out in the chips' memory.
        verdict: the same in a sentence, the compiler's own where it does not fit.
        peak_bytes: what is held at the worst moment (memory.peak); where it does not fit, what the compiler
            says would be.
        capacity: where it does not fit, what the compiler says there is; otherwise None.
        arguments, outputs, aliases, temporaries: what they take, aliases being outputs in the place of
            arguments; None where it does not fit.
        flops: by the compiler's count, each loop's body once and fused kernels not at all.
        collectives: see parallel.collectives.Collective.
        unknown_loops: loops that do not state how often they run; what is in them counts once.
        instructions: how many the compiled program has, each loop's body once; None where it does not fit.
        kernels: how often the program's source calls each Mosaic kernel.
        products: how many matrix products the source has, by the types and precision that they ask for.
        seconds: to lower and to compile.
    """

    fits: bool
    verdict: str
    peak_bytes: int | None
    capacity: int | None
    arguments: int | None
    outputs: int | None
    aliases: int | None
    temporaries: int | None
    flops: float | None
    collectives: list[dict[str, Any]]
    unknown_loops: int
    instructions: int | None
    kernels: dict[str, int]
    products: dict[str, int]
    seconds: dict[str, float]

    @property
    def attention(self) -> str:
        """The attention kernel, by the Mosaic kernels in the program."""
        fused = any(name.startswith("splash") for name in self.kernels)
        return "splash" if fused else "none that is fused (XLA's own products)"

    def rows(self) -> list[dict[str, str]]:
        """For report.print_table: what a device holds."""
        sizes = {
            "arguments": self.arguments,
            "outputs": self.outputs,
            "of them in the arguments' place": self.aliases,
            "temporaries": self.temporaries,
            "held at the worst moment": self.peak_bytes,
        }
        return [
            {"a device holds": name, "bytes": memory.readable(count)}
            for name, count in sizes.items()
            if count is not None
        ]

    def sent(self) -> list[dict[str, str]]:
        """For report.print_table: what the devices send each other."""
        where = {True: ", across slices", False: "", None: ", groups not stated"}
        return [
            {
                "collective": row["kind"],
                "among": f"{row['over'] or '?'} devices{where[row['across']]}",
                "runs a step": f"{row['count']:,}",
                "bytes a device": memory.readable(row["bytes"]),
            }
            for row in self.collectives
        ]


def compile_for(lowered: jax.stages.Lowered, seconds: float, per_slice: int = 0) -> Compiled:
    """Compile a program that was lowered for TPU devices, and read what came out.

    Args:
        lowered: the program.
        seconds: how long lowering it took.
        per_slice: devices in a slice where there are several slices; 0: there is one.

    Raises:
        jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
    """
    source = lowered.as_text()
    kernels = dict(Counter(_KERNEL.findall(source)))
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if TOO_MUCH not in str(error):
            raise
        sentence = refusal(str(error))
        used, capacity = stated(sentence)
        return Compiled(
            fits=False,
            verdict=sentence,
            peak_bytes=used,
            capacity=capacity,
            arguments=None,
            outputs=None,
            aliases=None,
            temporaries=None,
            flops=None,
            collectives=[],
            unknown_loops=0,
            instructions=None,
            kernels=kernels,
            products=products(source),
            seconds={"lower": seconds, "compile": time.monotonic() - began},
        )
    took, sizes = time.monotonic() - began, compiled.memory_analysis()
    assert sizes is not None  # as in memory.peak
    text = compiled.as_text()
    assert text is not None
    program = hlo.read(text)
    cost = compiled.cost_analysis() or {}
    held = memory.peak(compiled)
    return Compiled(
        fits=True,
        verdict=f"It fits: the compiler needs {memory.readable(held)} a device.",
        peak_bytes=held,
        capacity=None,
        arguments=int(sizes.argument_size_in_bytes),
        outputs=int(sizes.output_size_in_bytes),
        aliases=int(sizes.alias_size_in_bytes),
        temporaries=int(sizes.temp_size_in_bytes),
        flops=float(cost["flops"]) if "flops" in cost else None,
        collectives=[dataclasses.asdict(row) for row in collectives(program, per_slice)],
        unknown_loops=hlo.runs(program)[1],
        instructions=sum(map(len, program.computations.values())),
        kernels=kernels,
        products=products(source),
        seconds={"lower": seconds, "compile": took},
    )


def refusal(message: str) -> str:
    """The sentence of the compiler's message that says how much memory there is and how much is needed."""
    lines = [line.strip() for line in message.splitlines() if _USED.search(line)]
    chosen = lines[0] if lines else message.strip().splitlines()[0]
    found = re.search(r"Ran out of memory.*", chosen)
    sentence = found[0] if found else chosen
    # Further figures follow in the same line after the second full stop that ends a sentence.
    parts = re.split(r"(?<=[a-z\d])\. ", sentence)
    return ". ".join(parts[:2]).rstrip(".") + "."


def stated(sentence: str) -> tuple[int | None, int | None]:
    """(bytes needed, bytes there are) by a refusal's sentence, to the three digits that it gives."""
    found = _USED.search(sentence)
    if found is None:
        return None, None
    return int(float(found[1]) * _UNITS[found[2]]), int(float(found[3]) * _UNITS[found[4]])


def products(source: str) -> dict[str, int]:
    """How many matrix products a lowered program's source has, by what they multiply and how exactly.

    A key is such as "bf16 x bf16 -> f32, DEFAULT". On TPU DEFAULT multiplies float32 as one pass of bfloat16.
    """
    count: Counter[str] = Counter()
    for first, second, left, right, result in _PRODUCT.findall(source):
        asked = sorted({p for p in (first, second) if p}) or ["DEFAULT"]
        kinds = " x ".join(_dtype(kind) for kind in (left, right))
        count[f"{kinds} -> {_dtype(result)}, {' and '.join(asked)}"] += 1
    return dict(count)


def _dtype(kind: str) -> str:
    """The type at the end of a shape and type: bf16 of "4x8xbf16"."""
    return kind.rpartition("x")[2]
