"""What a fine-tuning would take, said before it is begun: by a formula, or by the TPU's own compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.finetune import Config
from experiments.finetune.inputs import (
    check_numbers,
    decoder_and_encoding,
    encoding,
    find_from_scratch,
    identity,
)
from resonance_jax.command import open_run, use_precision, with_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jax.sharding import Mesh

    from resonance_jax import rope, train
    from resonance_jax.model import DecoderConfig
    from resonance_jax.parallel.compiled import Compiled
    from resonance_jax.parallel.mesh import Device
    from resonance_jax.train.plan_search import Setting

    MakeTraining = Callable[[Config, Mesh], train.TrainConfig]
    """Makes the TrainConfig of the run on a mesh."""


def base(config: Config) -> tuple[DecoderConfig, rope.RopeSpec]:
    """The decoder that would be trained, and the encoding of its base. Where the base is not there, --shape
    stands for it."""
    from resonance_jax.command.checkpoints import open_if_there

    checkpoint = open_if_there(config.checkpoint) if config.checkpoint else None
    from_scratch = None if config.checkpoint else find_from_scratch(config)
    return decoder_and_encoding(config, checkpoint, from_scratch)


def show_plan(config: Config) -> int:
    """Print the plan; 1 when it does not fit."""
    import jax

    from resonance_jax.parallel.mesh_for_rows import sizes_for_rows
    from resonance_jax.report.tables import print_table
    from resonance_jax.train import plan

    check_numbers(config)
    shape, _ = base(config)
    chip = plan.chip(config.ahead.chip or jax.devices()[0].device_kind)
    sizes = sizes_for_rows(config.mesh, config.ahead.devices or jax.device_count(), config.batch_size)
    lora = config.adapters if config.lora else None
    made = plan.plan(shape, sizes, config.batch_size, config.length, config.micro, lora, chip)
    print(made.title)
    print_table(made.rows())
    print(made.verdict)
    return 0 if made.fits is not False else 1


def search_plan(config: Config, training: MakeTraining) -> int:
    """Search mesh, rows at a time and recomputation for --devices of --chip, and print what was found; 1:
    nothing fits."""
    from resonance_jax.parallel.memory import readable
    from resonance_jax.parallel.topology import has_compiler, slice_named
    from resonance_jax.report.tables import print_table
    from resonance_jax.train import plan, plan_search

    check_numbers(config)
    if config.ahead.chip is None or config.ahead.devices is None:
        raise ValueError("--plan auto searches for chips that need not be here: give --chip and --devices.")
    shape, _ = base(config)
    lora, chip = config.adapters if config.lora else None, plan.chip(config.ahead.chip)
    name = slice_named(config.ahead.chip, config.ahead.devices)
    compiled = None if name is None or not has_compiler() else refusal_on(name, config, training)
    found = plan_search.search(
        plan_search.settings(shape, config.ahead.devices, config.batch_size, config.length, lora, chip),
        compiled,
    )
    rows = found.rows()
    print_table(rows, f"{config.ahead.devices} x {chip[0]}, {config.batch_size} rows of {config.length:,}")
    if (chosen := found.chosen) is None:
        least = min(setting.plan.total for setting, _ in found.refused) if found.refused else None
        print("Nothing fits." if least is None else f"Nothing fits; the least is {readable(least)} per chip.")
        return 1
    print(chosen.plan.verdict)
    print(f"{name}: the compiler fits it too." if compiled else "Not compiled: --compile says more.")
    options = {**chosen.mesh, "micro": chosen.micro, "remat": chosen.remat}
    print(" ".join(f"--{option} {value}" for option, value in options.items()))
    return 0


def refusal_on(name: str, config: Config, training: MakeTraining) -> Callable[[Setting], str | None]:
    """A function that compiles the step under a setting for a slice, and says why it does not fit, if so."""
    from resonance_jax.parallel.topology import absent_devices, without_a_tpu

    without_a_tpu()
    use_precision(config.precision, config.dtype, "tpu")

    def refusal(setting: Setting) -> str | None:
        own = {"micro": setting.micro, "remat": setting.remat, **setting.mesh}
        print(f"compiling for {name}: {setting.axes}, {setting.micro} rows at a time, remat {setting.remat}")
        _, _, compile_it = step(with_options(config, **own), absent_devices(name), setting.mesh, training)
        result = compile_it()
        print(f"  {result.verdict} ({result.seconds['compile']:.0f} s)")
        return None if result.fits else result.verdict

    return refusal


def step(
    config: Config, devices: Sequence[Device], sizes: dict[str, int], training: MakeTraining
) -> tuple[DecoderConfig, train.TrainConfig, Callable[[], Compiled]]:
    """The decoder, how it is trained, and a function that compiles its step, on a mesh of these sizes."""
    from resonance_jax import rope
    from resonance_jax.parallel.mesh import make_mesh
    from resonance_jax.train.compiled_step import compile_step

    shape, own = base(config)
    mesh = make_mesh(devices=devices, **sizes)
    table = rope.frequencies(encoding(config, own, config.resonance), length=config.length)
    lora, how = config.adapters if config.lora else None, training(config, mesh)
    rows = config.batch_size
    return shape, how, lambda: compile_step(shape, how, mesh, rows, config.length, table, lora)


def compile_ahead(config: Config, training: MakeTraining) -> int:
    """Compile the step for the slice of --compile, print and keep what came out; 1 when it does not fit."""
    from resonance_jax.parallel.topology import absent_devices, chip_of, without_a_tpu

    check_numbers(config)
    name = chip_of(config.ahead.compile)
    without_a_tpu()
    use_precision(config.precision, config.dtype, "tpu")
    from resonance_jax.parallel.memory import readable
    from resonance_jax.parallel.mesh_for_rows import sizes_for_rows
    from resonance_jax.report.compiled import keep_compiled, show_compiled
    from resonance_jax.train import plan

    devices = absent_devices(config.ahead.compile, config.ahead.slices)
    sizes = sizes_for_rows(config.mesh, len(devices), config.batch_size)
    shape, how, compile_it = step(config, devices, sizes, training)
    lora = config.adapters if config.lora else None
    chip = plan.chip(name) if name in plan.CHIPS else ("TPU", None)
    made = plan.plan(shape, sizes, config.batch_size, config.length, how.micro, lora, chip)
    folder = open_run("finetune", identity(config))
    print(
        f"{config.ahead.slices} x {config.ahead.compile}: {len(devices)} x {devices[0].device_kind}, "
        f"{config.batch_size} rows of {config.length:,}, {how.micro} at a time, remat {shape.remat}, mesh "
        + " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    )
    result = compile_it()
    keep_compiled(
        folder,
        result,
        {
            "slice": config.ahead.compile,
            "slices": config.ahead.slices,
            "devices": len(devices),
            "device_kind": devices[0].device_kind,
            "mesh": sizes,
            "micro": how.micro,
            "remat": shape.remat,
            "dtype": shape.dtype,
            "plan_bytes": made.total,
            "step_flops": made.flops,
        },
    )
    show_compiled(result)
    print(
        f"{made.flops / 1e12:,.1f} TFLOP per step over all devices (a formula, recomputation included); "
        f"compiled in {result.seconds['compile']:.0f} s; the plan said {readable(made.total)}."
    )
    print(f"{result.verdict}\n{folder}/tpu_compile.json")
    return 0 if result.fits else 1
