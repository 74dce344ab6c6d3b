"""One run on any mesh is one device's run; its state is cut; it stops, resumes and refuses as promised."""

import dataclasses
import itertools
import math
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resonance_jax import model, rope, train
from resonance_jax.model.kernel_choice import lowering_for
from resonance_jax.parallel.mesh import AXES, make_mesh
from resonance_jax.train import loop, one_run
from resonance_jax.train.batches import Ahead, micro_rows, place_batch, reader
from resonance_jax.train.checkpoint import newest_step
from resonance_jax.train.run_program import RunProgram
from tests.train.small import batches

CONFIG = model.PRESETS["tiny"].replace(
    vocab_size=32,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    tie_embeddings=False,
    kernel="block_pairs",
)
FREQS = rope.frequencies(rope.RopeSpec("yarn", head_dim=8, scale=4.0, train_length=16, resonance=True))
OPTIMIZER = train.OptimizerConfig(lr=2e-2, weight_decay=0.1, warmup=0.2)
STEPS, ROWS, LENGTH = 10, 8, 64


def data(step):
    return batches(step, ROWS, LENGTH)


def training(**changes):
    return train.TrainConfig(**{"steps": STEPS, "optimizer": OPTIMIZER, "steps_per_call": 1} | changes)


def decoder(mesh=None, **changes):
    return model.Decoder(CONFIG.replace(**changes), jax.random.key(0), mesh=mesh)


def losses(history):
    return np.asarray([record["loss"] for record in history])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(folder):
    run = train.fit(decoder(), data, FREQS, training(), folder)
    assert losses(run.history)[-1] < losses(run.history)[0] - 0.1  # it learns, or nothing is compared
    return run


SOME = [
    ({"data": 2, "fsdp": 2, "sequence": 2}, {"micro": 4}, {"remat": "dots"}),
    ({"fsdp": 2, "tensor": 2, "sequence": 2}, {}, {"remat": "attention"}),
]
ALL = [dict(zip(AXES, sizes, strict=True)) for sizes in itertools.product((1, 2, 4, 8), repeat=4)]
ALL = [(sizes, {}, {}) for sizes in ALL if np.prod(list(sizes.values())) == 8]


@pytest.mark.parametrize(
    ("sizes", "settings", "changes"),
    [*SOME, *(pytest.param(*case, marks=pytest.mark.full) for case in ALL)],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()),
)
def test_a_mesh_computes_what_one_device_does(alone, tmp_path, sizes, settings, changes):
    run = train.fit(decoder(make_mesh(**sizes), **changes), data, FREQS, training(**settings), tmp_path)
    np.testing.assert_allclose(losses(run.history), losses(alone.history), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), run.lm.params, alone.lm.params)


def test_a_target_beyond_the_last_token_on_a_mesh(tmp_path):
    """T tokens, T + 1 targets: time is cut in two, rows in four, and every target is scored."""

    def longer(step):
        rows = batches(step, ROWS, LENGTH + 1)["tokens"]
        return {"tokens": rows[:, :-1], "targets": np.where(np.arange(LENGTH + 1) < LENGTH - 4, -100, rows)}

    runs = [
        train.fit(decoder(mesh), longer, FREQS, training(steps=2), tmp_path / str(mesh is None))
        for mesh in (None, make_mesh(data=4, sequence=2))
    ]
    np.testing.assert_allclose(*(losses(run.history) for run in runs), rtol=1e-5)


def test_rows_of_another_length_are_refused(tmp_path):
    growing = lambda step: batches(step, ROWS, LENGTH + step)
    with pytest.raises(ValueError, match=r"expected 8 rows of 64 tokens, .* got \[8, 65\]"):
        train.fit(decoder(), growing, FREQS, training(), tmp_path)


def test_in_float64_to_ten_digits(x64, tmp_path):
    mesh = make_mesh(data=2, tensor=2, sequence=2)
    runs = [
        train.fit(decoder(mesh, dtype="float64"), data, FREQS, training(), tmp_path / str(mesh is None))
        for mesh in (None, mesh)
    ]
    np.testing.assert_allclose(*(losses(run.history) for run in runs), rtol=1e-10)
    assert runs[1].lm.params["embed"].dtype == jnp.float64


def test_parameters_and_moments_are_cut_alike():
    """Bytes a device: a jitted tx.init alone would leave whole moments on every device."""
    mesh = make_mesh(fsdp=4, tensor=2)
    program = RunProgram(CONFIG, training(), mesh)
    lm = decoder(mesh)
    state = program.first_state(program.place(lm.params, 0)[0], 0)
    batch = place_batch(lambda start, stop: reader(data)(0, start, stop), ROWS, LENGTH, mesh)
    norms = 2 * CONFIG.n_layers + 1
    cut = lm.count_parameters() - norms * CONFIG.d_model
    expected = 4 * (cut // 8 + norms * CONFIG.d_model)
    for count in (0, 1):
        moments = state.opt_state[0]
        assert moments.count == count
        for tree in (state.params, moments.mu, moments.nu):
            assert sum(x.addressable_shards[3].data.nbytes for x in jax.tree.leaves(tree)) == expected
        state, _ = program.step(state, {}, batch, FREQS)
    assert jax.tree.leaves(lm.params)[0].is_deleted() is False


def test_bfloat16_computes_and_float32_remembers(alone, tmp_path):
    run = train.fit(decoder(dtype="bfloat16"), data, FREQS, training(steps=3), tmp_path)
    np.testing.assert_allclose(losses(run.history), losses(alone.history)[:3], rtol=1e-2)
    assert {x.dtype.name for x in jax.tree.leaves(run.lm.params)} == {"float32"}
    program = RunProgram(CONFIG.replace(dtype="bfloat16"), training())
    kinds = {x.dtype.name for x in jax.tree.leaves(program.like.opt_state)}
    assert kinds == {"float32", "int32"}


def test_a_stopped_run_goes_on_upon_another_mesh_and_on_one_device(alone, tmp_path):
    def stop(done, total, **figures):
        if done in (4, 7):
            os.kill(os.getpid(), signal.SIGTERM)

    for mesh, step in ((make_mesh(fsdp=8), 4), (make_mesh(data=4, tensor=2), 7)):
        with pytest.raises(train.Interrupted, match=f"stopped at step {step} of 10"):
            train.fit(decoder(mesh), data, FREQS, training(), tmp_path, progress=stop)
    run = train.fit(decoder(), data, FREQS, training(), tmp_path)
    np.testing.assert_allclose(losses(run.history), losses(alone.history), rtol=1e-5)
    assert len(run.history) == STEPS and run.history[0]["tokens_per_second"] > 0


def test_where_and_how_fast_it_is_computed_may_change(alone, folder):
    """The finished run, asked for on a mesh and in micro-batches, recomputing, with another kernel."""
    lm = decoder(make_mesh(data=4, tensor=2), remat="full", kernel="xla")
    again = train.fit(lm, data, FREQS, training(micro=4, save_seconds=1e9, steps_per_call=3), folder)
    assert again.history == alone.history
    jax.tree.map(np.testing.assert_array_equal, again.lm.params, alone.lm.params)


def optimizer(**changes):
    return training(optimizer=dataclasses.replace(OPTIMIZER, **changes))


OTHERS = {
    "optimizer.lr: 0.02 there, 0.03 here": lambda: dict(config=optimizer(lr=0.03)),
    "optimizer.schedule: 'linear' there, 'cosine' here": lambda: dict(config=optimizer(schedule="cosine")),
    "optimizer.steps: 10 there, 20 here": lambda: dict(config=training(steps=20)),
    "optimizer.freeze": lambda: dict(config=optimizer(freeze=("embed",))),
    "seed: 0 there, 1 here": lambda: dict(seed=1),
    "lora.rank: None there, 16 here": lambda: dict(lora=train.LoraConfig()),
    "meta.corpus: None there, 'books' here": lambda: dict(meta={"corpus": "books"}),
    "rows: 8 there, 4 here": lambda: dict(batches=lambda step: batches(step, 4, LENGTH)),
    "row length: 64 there, 32 here": lambda: dict(batches=lambda step: batches(step, ROWS, 32)),
    "data: '.*' there": lambda: dict(batches=lambda step: data(step + 1)),
    "first weights: '.*' there": lambda: dict(lm=model.Decoder(CONFIG, jax.random.key(1))),
    "decoder.dtype: 'float32' there, 'bfloat16' here": lambda: dict(lm=decoder(dtype="bfloat16")),
    "trained under the encodings": lambda: dict(encoding=rope.RopeSpec(head_dim=8)),
}


@pytest.mark.parametrize("sentence", OTHERS)
def test_another_run_is_refused_in_the_same_folder(alone, folder, sentence):
    same = dict(lm=decoder(), batches=data, encoding=FREQS, config=training(), run_dir=folder)
    with pytest.raises(ValueError, match=sentence):
        train.fit(**same | OTHERS[sentence]())


def test_a_corpus_that_changed_behind_the_first_batch_is_another_run(tmp_path):
    """Batches that can say what all of them are made of are held to it, not to the first one alone."""

    class Rows:
        batch_size, length, fingerprint = ROWS, LENGTH, "one"

        def rows(self, step, start, stop):
            return data(0)["tokens"][start:stop]

    constant = train.OptimizerConfig(lr=1e-2, schedule="constant", warmup=0.0)
    same = dict(lm=decoder(), batches=Rows(), encoding=FREQS, run_dir=tmp_path)
    train.fit(**same, config=training(steps=1, optimizer=constant))
    edited = Rows()
    edited.fingerprint = "other"
    with pytest.raises(ValueError, match="every batch: 'one' there, 'other' here"):
        train.fit(**same | {"batches": edited}, config=training(steps=2, optimizer=constant))


def test_a_constant_rate_can_go_on_for_longer_but_not_back(tmp_path):
    constant = lambda steps: training(
        steps=steps, optimizer=train.OptimizerConfig(lr=1e-2, schedule="constant", warmup=0.0)
    )
    small = lambda step: batches(step, 1, 16)
    longer = train.fit(decoder(), small, FREQS, constant(4), tmp_path / "whole")
    train.fit(decoder(), small, FREQS, constant(2), tmp_path / "parts")
    parts = train.fit(decoder(), small, FREQS, constant(4), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, parts.lm.params, longer.lm.params)
    with pytest.raises(ValueError, match="holds a checkpoint of step 4, beyond the 3 asked for"):
        train.fit(decoder(), small, FREQS, constant(3), tmp_path / "parts")


def test_a_log_that_was_changed_is_not_gone_on_with(alone, folder, tmp_path):
    """metrics.jsonl belongs to the checkpoint: a digit, a missing line or a missing file is seen."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    log = copy / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    changed = lines[3].replace('"loss": ', '"loss": 1')
    assert changed != lines[3]
    for wrong in ([*lines[:3], changed, *lines[4:]], lines[1:], lines[:-1], ["[]\n", *lines], []):
        log.write_text("".join(wrong))
        with pytest.raises(ValueError, match=r"metrics\.jsonl is not what it was when step 10 was saved"):
            train.fit(decoder(), data, FREQS, training(), copy)
    log.write_text("".join(lines) + '{"step": 11, "lo')  # what a kill leaves
    assert train.fit(decoder(), data, FREQS, training(), copy).history == alone.history


def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path):
    for wrong, sentence in (
        (dict(keep=0), "keep must be a whole number of at least 1"),
        (dict(seed=-1), "seed must be a whole number of at least 0 and below 4,294,967,296, got -1"),
        (dict(seed=1 << 32), "seed must be"),
        (dict(profile=-1), "profile must be"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train.fit(decoder(), data, FREQS, training(), tmp_path / "run", **wrong)
    with pytest.raises(ValueError, match="a seed must be"):
        train.fit_many(CONFIG, [0, -3], [FREQS] * 2, data, training(), tmp_path / "run")
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        train.Evaluator(0, lambda state: {})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("a_call", "newest"), [(1, 2), (2, 2), (4, None)])
def test_a_loss_that_is_not_finite_keeps_its_batch(tmp_path, a_call, newest):
    """Found when the call's figures are fetched: whatever ran behind it, no state from after it is saved."""
    wild = train.OptimizerConfig(lr=1e30, schedule="constant", warmup=0)
    settings = training(optimizer=wild, steps_per_call=a_call, save_seconds=0.0)
    with pytest.raises(FloatingPointError, match="the loss of step 3 is not finite; its batch is in"):
        train.fit(decoder(), data, FREQS, settings, tmp_path)
    with np.load(tmp_path / "not-finite-step-3.npz") as kept:
        np.testing.assert_array_equal(kept["tokens"], data(2)["tokens"])
    assert newest_step(tmp_path / "checkpoints") == newest
    assert len(list((tmp_path / "metrics.jsonl").open())) == (newest or 0)


def test_the_next_batch_is_placed_and_no_figure_fetched_while_a_step_runs(alone, tmp_path, monkeypatch):
    """The order of what the host does in two calls of two steps, and the numbers of one step at a time."""
    told, shared = [], np.zeros((ROWS, LENGTH), np.int32)

    class Told(RunProgram):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            step = self.step
            self.step = lambda *rest: told.append("step") or step(*rest)

    def refilled(step):
        told.append(step)
        shared[:] = data(step)["tokens"]  # a source may do so: what is placed is a copy
        return {"tokens": shared}

    fetch = jax.device_get
    monkeypatch.setattr(one_run, "RunProgram", Told)
    monkeypatch.setattr(jax, "device_get", lambda x: told.append(f"fetch {len(x)}") or fetch(x))
    run = train.fit(decoder(), refilled, FREQS, training(steps_per_call=5), tmp_path)
    first = [0, "step", 1, "step", 2, "step", 3, "step", 4, "step", 5, "fetch 5"]
    second = ["step", 6, "step", 7, "step", 8, "step", 9, "step", "fetch 5"]
    at = told.index("step") - 1
    assert told[at : at + len(first + second)] == first + second
    np.testing.assert_array_equal(losses(run.history), losses(alone.history))
    assert all(record["tokens_per_second"] > 0 for record in run.history)


@pytest.mark.parametrize(("seconds", "counts"), [(0.0, [1] * STEPS), (math.inf, [1, 8, 1])])
def test_calls_take_as_many_steps_as_fit_into_a_second(alone, tmp_path, monkeypatch, seconds, counts):
    """Where steps_per_call is None: one at first, then 1 to 8 by what the call before took; numbers stay."""
    monkeypatch.setattr(loop, "CALL_SECONDS", seconds)
    done = []
    config = training(steps_per_call=None)
    run = train.fit(decoder(), data, FREQS, config, tmp_path, progress=lambda at, *_, **__: done.append(at))
    assert np.diff([0, *done]).tolist() == counts
    np.testing.assert_array_equal(losses(run.history), losses(alone.history))


def test_steps_that_fit_into_a_second():
    assert [loop.paced(4, seconds) for seconds in (0.0, 0.4, 0.9, 2.0, 40.0)] == [8, 8, 4, 2, 1]


def test_a_batch_that_cannot_be_read_stops_the_run_when_its_step_comes():
    made = []

    def make(step):
        made.append(step)
        if step == 2:
            raise OSError("gone")
        return step

    ahead = Ahead(make)
    ahead.prepare(1)
    assert ahead.take(1) == 1 and made == [1]
    ahead.prepare(2)
    with pytest.raises(OSError, match="gone"):
        ahead.take(2)
    ahead.prepare(4)
    assert ahead.take(3) == 3  # another than was prepared


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "sequence": 2}, {"fsdp": 4, "tensor": 2}])
def test_the_step_lowers_for_tpu(sizes):
    config = CONFIG.replace(
        head_dim=64, d_model=64, n_heads=2, n_kv_heads=2, kernel="auto", dtype="bfloat16", remat="full"
    )
    mesh, freqs = make_mesh(**sizes), rope.frequencies(rope.RopeSpec(head_dim=64))
    program = RunProgram(config, training(), mesh)
    batch = place_batch(lambda a, b: {"tokens": np.zeros((b - a, 4096), np.int32)}, ROWS, 4096, mesh)
    with lowering_for("tpu"):
        exported = jax.export.export(program.step, platforms=["tpu"])(program.like, {}, batch, freqs)
    assert exported.nr_devices == 8 and "tpu_custom_call" in exported.mlir_module()


def test_rows_that_the_mesh_does_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a micro-batch of 2 rows cannot be cut over 4 devices"):
        train.fit(decoder(make_mesh(fsdp=4, tensor=2)), data, FREQS, training(micro=2), tmp_path)
    with pytest.raises(ValueError, match="in micro-batches of 3"):
        train.fit(decoder(), data, FREQS, training(micro=3), tmp_path)


@pytest.mark.parametrize(
    ("rows", "length", "shards", "micro"),
    [(8, 512, 2, 4), (8, 512, 1, 2), (6, 256, 1, 3), (64, 32_768, 8, 8), (1, 64, 1, 1), (3, 64, 2, 2)],
)
def test_rows_of_a_micro_batch(rows, length, shards, micro):
    assert micro_rows(rows, length, shards) == micro  # 3 rows over 2 devices are refused later
