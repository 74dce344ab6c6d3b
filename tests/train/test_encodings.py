"""The encoding that weights were trained under travels with them, out to a directory and back."""

import json

import jax
import numpy as np
import pytest

from resonance_jax import interop, model, rope, train
from tests.train.small import CONFIG, batches
from tests.unchecked import unchecked

RESONANT = rope.RopeSpec("yarn", head_dim=16, scale=4.0, train_length=8, resonance=True)
DYNAMIC = rope.RopeSpec("dynamic_ntk", head_dim=16, train_length=8)
UNNAMED = rope.RopeSpec("dynamic_yarn", head_dim=16, train_length=8, resonance=True)
PLAIN = rope.RopeSpec(head_dim=16, train_length=8)
ONE = train.TrainConfig(1, train.OptimizerConfig(lr=1e-2))
ROWS = 16  # positions in a row of `batches`


def base(**stated):
    return model.Decoder(CONFIG, jax.random.key(0), **stated)


def fit(encoding, run_dir, lm=None, **options):
    return train.fit(lm or base(rope=PLAIN), batches, encoding, ONE, run_dir, **options).lm


def assert_travels(lm, folder, length):
    """save_hf(lm, folder) with no more words gives the same table and the same logits."""
    interop.save_hf(lm, folder)
    again = interop.load_hf(folder)
    trained, stated = (rope.frequencies(each.rope, length=length) for each in (lm, again))
    np.testing.assert_allclose(stated.inv_freq64, trained.inv_freq64, rtol=1e-9)
    np.testing.assert_array_equal(stated.wavelength, trained.wavelength)
    tokens = batches(5)["tokens"]
    np.testing.assert_array_equal(again(tokens, stated), lm(tokens, trained))
    return again, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("spec", [RESONANT, DYNAMIC, UNNAMED, PLAIN], ids=lambda spec: spec.title)
def test_a_fitted_decoder_states_what_it_was_trained_under(tmp_path, spec):
    lm = fit(spec, tmp_path / "run")
    assert lm.rope == spec
    # Resonance YaRN states 4 x 8 positions; the others reach the rows that they were trained on.
    reached = 32 if spec is RESONANT else ROWS
    assert lm.context_length == reached
    again, config = assert_travels(lm, tmp_path / "hf", ROWS)
    # transformers takes this key for dynamic NTK's L.
    assert config["max_position_embeddings"] == again.context_length == (8 if spec is DYNAMIC else reached)
    assert again.rope.train_length == 8


def test_the_table_is_made_for_the_length_that_is_asked_for(tmp_path):
    """Of a dynamic method another length is another table; unnamed ones are written as that table."""
    lm = fit(UNNAMED, tmp_path / "run", length=64)
    assert lm.context_length == 64
    default = fit(UNNAMED, tmp_path / "default")
    assert np.abs(np.subtract(lm.params["embed"], default.params["embed"])).max() > 0
    again, _ = assert_travels(lm, tmp_path / "hf", 64)
    assert rope.same(rope.frequencies(again.rope, length=64), rope.frequencies(UNNAMED, length=64))
    assert not rope.same(rope.frequencies(UNNAMED, length=ROWS), rope.frequencies(UNNAMED, length=64))


def test_a_bare_table_states_nothing(tmp_path):
    lm = fit(rope.frequencies(RESONANT), tmp_path / "run")
    assert lm.rope is None and lm.context_length == ROWS
    with pytest.raises(ValueError, match=r"states no encoding \(lm\.rope is None\); name it: rope=RopeSpec"):
        interop.save_hf(lm, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    np.testing.assert_array_equal(lm.params["embed"], fit(RESONANT, tmp_path / "same").params["embed"])


def test_the_context_only_grows(tmp_path):
    lm = base(rope=PLAIN, context_length=512)
    assert lm.replace_params(lm.params).context_length == 512
    tuned = fit(RESONANT, tmp_path / "run", lm)
    assert tuned.context_length == 512
    assert assert_travels(tuned, tmp_path / "hf", ROWS)[0].context_length == 512
    assert base().context_length is None


def test_so_it_is_for_many_runs(tmp_path):
    """Each of them states its own; specs and bare tables may stand side by side."""
    encodings = [RESONANT, UNNAMED, rope.frequencies(PLAIN)]
    runs = train.fit_many(CONFIG, [0, 0, 0], encodings, batches, ONE, tmp_path / "runs", length=48)
    lms = [runs.lm(run) for run in range(3)]
    assert [lm.rope for lm in lms] == [RESONANT, UNNAMED, None]
    assert [lm.context_length for lm in lms] == [48, 48, 48]
    for number, lm in enumerate(lms[:2]):
        assert_travels(lm, tmp_path / f"hf-{number}", 48)
    with pytest.raises(ValueError, match="states no encoding"):
        interop.save_hf(lms[2], tmp_path / "hf")
    stacked = train.stack_frequencies([rope.frequencies(e, length=48) for e in (RESONANT, UNNAMED, PLAIN)])
    again = train.fit_many(CONFIG, [0, 0, 0], stacked, batches, ONE, tmp_path / "stacked")
    assert again.ropes == (None, None, None)
    jax.tree.map(np.testing.assert_array_equal, again.params, runs.params)


@pytest.mark.parametrize(
    ("encoding", "sentence"),
    [
        (rope.RopeSpec(head_dim=8), "is for head_dim=8, but a head of the decoder has 16 dims"),
        ("yarn", "is a rope.RopeSpec or the table of rope.frequencies"),
        (rope.RopeSpec("dynamic_ntk", head_dim=16, train_length=8), "length must be at least 1 position"),
    ],
)
def test_what_cannot_be_trained_under(tmp_path, encoding, sentence):
    with unchecked(), pytest.raises(ValueError, match=sentence):
        fit(encoding, tmp_path / "run", length=0)
    with unchecked(), pytest.raises(ValueError, match=sentence):
        train.fit_many(CONFIG, [0], [encoding], batches, ONE, tmp_path / "runs", length=0)
    assert not list(tmp_path.iterdir())


def test_many_runs_take_one_encoding_each(tmp_path):
    sentence = "expected one encoding for each run, got Resonance YaRN alone"
    with unchecked(), pytest.raises(ValueError, match=sentence):
        train.fit_many(CONFIG, [0], RESONANT, batches, ONE, tmp_path)


# Layers of several types.

MIXED = CONFIG.replace(layer_types=(model.LayerType(), model.LayerType("sliding_attention", window=4)))
BOTH = rope.LayerSpecs({"full_attention": RESONANT, "sliding_attention": PLAIN})


def test_a_table_a_layer_type_is_trained_under(tmp_path):
    """One run, and two in one program; both state it, both go on under it, and both refuse another."""
    lm = fit(BOTH, tmp_path / "one", model.Decoder(MIXED, jax.random.key(0)))
    assert lm.rope == BOTH and lm.context_length == 32
    bare = rope.frequencies(BOTH)
    tables = fit(bare, tmp_path / "bare", model.Decoder(MIXED, jax.random.key(0)))
    assert tables.rope is None
    np.testing.assert_array_equal(tables.params["embed"], lm.params["embed"])
    other = {**bare, "sliding_attention": bare["full_attention"]}
    for encoding in (other, RESONANT):
        with pytest.raises(ValueError, match="was trained under the encodings"):
            fit(encoding, tmp_path / "one", model.Decoder(MIXED, jax.random.key(0)))
    many = train.fit_many(MIXED, [0, 0], [BOTH, other], batches, ONE, tmp_path / "many")
    np.testing.assert_allclose(many.lm(0).params["embed"], lm.params["embed"], rtol=1e-4, atol=1e-5)
    assert many.lm(0).rope == BOTH and many.lm(1).rope is None
    assert np.abs(many.lm(0).params["layers"]["q"] - many.lm(1).params["layers"]["q"]).max() > 1e-6


def test_what_does_not_fit_a_layer_type_is_refused(tmp_path):
    lm, bare = model.Decoder(MIXED, jax.random.key(0)), rope.frequencies(BOTH)
    for encoding in ({"full_attention": bare["full_attention"]}, rope.LayerSpecs({"full_attention": PLAIN})):
        with pytest.raises(ValueError, match="give one for each"):
            fit(encoding, tmp_path / "run", lm)
    with pytest.raises(
        ValueError, match="the same layer types, got one for all and full_attention, sliding_attention"
    ):
        train.stack_frequencies([bare, rope.frequencies(PLAIN)])
    stacked = train.stack_frequencies([bare, bare])
    with pytest.raises(ValueError, match="one rotary size"):
        train.stack_frequencies(
            [bare, {**bare, "full_attention": rope.frequencies(rope.RopeSpec(head_dim=8))}]
        )
    assert all(rope.same(each, bare) for each in train.encodings.unstack_frequencies(stacked))
