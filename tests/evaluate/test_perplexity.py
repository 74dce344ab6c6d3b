"""Perplexity: the reference script's numbers, one forward for every length, windows by hand."""

import jax
import numpy as np
import pytest

from resonance_jax import evaluate, model, rope
from resonance_jax.evaluate import nll_over_devices, perplexity_sweep
from resonance_jax.evaluate.nll import token_nll
from resonance_jax.evaluate.perplexity_protocols import cut_windows


@pytest.fixture(scope="module")
def small():
    config = model.PRESETS["tiny"].replace(
        vocab_size=64, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, n_layers=2
    )
    # Larger weights than a fresh model's, so that attention and hence positions matter.
    lm = model.Decoder(config, jax.random.key(3))
    return lm.replace_params(jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, lm.params))


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64, n) for n in (300, 140, 255, 80)]


def spec(method="yarn", **options):
    scale = {"scale": 4.0} if method == "yarn" else {}
    return rope.RopeSpec(method=method, head_dim=16, train_length=64, **scale, **options)


def test_equals_the_reference_script(goldens):
    """Every entry of ppl.npz: window losses and the printed figure to 1e-4 relative."""
    from resonance_jax.model.decoder import Decoder

    lm = _reference_model(goldens, Decoder)
    _, docs = goldens.find("ppl.npz", "docs")
    documents = [docs[f"doc{i}"].astype(np.int32) for i in range(3)]
    entries = goldens.of_kind("perplexity")
    assert len(entries) == 10
    for entry in entries:
        arrays, settings = goldens.arrays(entry), entry["settings"]
        s = rope.RopeSpec(
            method="yarn", head_dim=16, scale=4.0, train_length=32, resonance=entry["resonance_rope"]
        )
        r = evaluate.perplexity(
            lm,
            documents,
            rope.frequencies(s),
            protocol="yarn",
            length=settings["max_length"],
            stride=settings["sliding_window"],
            bos_id=1 if settings["add_start_token"] else None,
            truncate=settings["truncate"],
        )
        np.testing.assert_array_equal(r.scored, arrays["scored_tokens"], err_msg=entry["id"])
        np.testing.assert_allclose(r.nll / r.scored, arrays["window_loss"], rtol=1e-4, err_msg=entry["id"])
        np.testing.assert_allclose(r.window_mean, arrays["mean_perplexity"], rtol=1e-4, err_msg=entry["id"])


def _reference_model(goldens, Decoder):
    entry, arrays = goldens.find("llama_ref.npz", "weights")
    c = entry["config"]
    config = model.DecoderConfig(
        vocab_size=c["vocab"],
        d_model=c["hidden"],
        n_layers=c["layers"],
        n_heads=c["heads"],
        n_kv_heads=c["kv"],
        head_dim=c["hidden"] // c["heads"],
        d_ff=c["inter"],
        norm_eps=c["eps"],
    )
    w = {name.removeprefix("weights/"): a.astype(np.float32) for name, a in arrays.items()}
    stack = lambda name: np.stack([w[f"model.layers.{i}.{name}.weight"].T for i in range(c["layers"])])
    layers = {
        "attn_norm": stack("input_layernorm"),
        "mlp_norm": stack("post_attention_layernorm"),
        **{x: stack(f"self_attn.{x}_proj") for x in "qkvo"},
        **{x: stack(f"mlp.{x}_proj") for x in ("gate", "up", "down")},
    }
    params = {
        "embed": w["model.embed_tokens.weight"],
        "layers": layers,
        "final_norm": w["model.norm.weight"],
        "head": w["lm_head.weight"].T,
    }
    return Decoder(config, params=params)


@pytest.mark.parametrize("method", ["default", "yarn", "dynamic_ntk"])
def test_prefix_sweep_equals_a_loop_over_lengths(small, documents, method):
    lengths = [32, 64, 128, 192, 250]
    s = spec(method)
    swept = evaluate.sweep(small, documents, s, lengths, bos_id=1)
    long_enough = [d for d in documents if len(d) >= 249]
    for n in lengths:
        one = evaluate.perplexity(small, long_enough, rope.frequencies(s, length=n), "prefix", n, bos_id=1)
        assert swept[n].documents == 2 and swept[n].tokens == 2 * (n - 1)
        np.testing.assert_allclose(swept[n].nll, one.nll, rtol=1e-5)
        np.testing.assert_allclose(swept[n].position_nll, one.position_nll, rtol=1e-4)


def test_a_static_prefix_does_not_see_the_future_and_a_dynamic_table_does(small, documents):
    tokens = np.concatenate([[1], documents[0][:255]])[None]
    for method, differs in (("yarn", False), ("dynamic_ntk", True)):
        table = lambda n, method=method: rope.frequencies(spec(method), length=n)
        whole = np.asarray(token_nll(small, tokens, table(256)))[:, :127]
        half = np.asarray(token_nll(small, tokens[:, :128], table(128)))
        assert (np.abs(whole - half).max() > 1e-3) == differs


def test_sliding_scores_every_token_once(small, documents):
    r = evaluate.perplexity(small, documents, rope.frequencies(spec()), "sliding", 64, stride=16, bos_id=1)
    assert r.tokens == sum(len(d) for d in documents) and r.documents == 4
    assert r.windows == sum(1 + max(0, -(-(len(d) - 63) // 16)) for d in documents)
    assert r.position_scored.sum() == r.tokens
    np.testing.assert_allclose(r.position_nll.sum(), r.nll.sum(), rtol=1e-6)


def test_windows_by_hand():
    tokens = np.arange(100, 110)
    cut = cut_windows(tokens, "sliding", length=5, stride=2, bos_id=1)
    assert [ids.tolist() for ids, _ in cut][:2] == [[1, 100, 101, 102, 103], [1, 102, 103, 104, 105]]
    assert [first for _, first in cut] == [1, 3, 3, 3]
    (ids, first), *rest = cut_windows(tokens, "prefix", length=5, stride=2, bos_id=None)
    assert ids.tolist() == [100, 101, 102, 103, 104] and first == 1 and not rest


def test_both_averages_differ_as_they_should(small, documents):
    r = evaluate.perplexity(small, documents, rope.frequencies(spec()), "yarn", 64, stride=60, bos_id=1)
    by_window = np.exp(np.mean(r.nll / r.scored))
    assert r.window_mean == pytest.approx(by_window) and r.window_mean != pytest.approx(
        r.token_mean, rel=1e-6
    )


def test_windows_in_batches_equal_windows_alone(small, documents):
    freqs = rope.frequencies(spec())
    r = evaluate.perplexity(small, documents, freqs, "sliding", 64, stride=32, bos_id=1)
    nll = []
    for d in documents:
        for ids, first in cut_windows(d, "sliding", 64, 32, 1):
            nll.append(np.asarray(token_nll(small, ids[None], freqs))[0, first - 1 :].sum())
    np.testing.assert_allclose(r.nll, nll, rtol=1e-5)


def test_stored_documents_are_not_computed_again(small, documents, tmp_path, monkeypatch):
    """A sweep stopped in its third document and run again scores the rest only, with the same result."""
    s, lengths = spec("dynamic_ntk"), [16, 64]
    whole = evaluate.sweep(small, documents, s, lengths, "sliding", stride=8, bos_id=1)
    store, scored = evaluate.Store(tmp_path), []
    score = perplexity_sweep._score

    def stopping(lm, part, *rest, **options):
        scored.append(part[0].index)
        if len(scored) == 5:  # two lengths a document: in the third document's first
            raise KeyboardInterrupt
        return score(lm, part, *rest, **options)

    monkeypatch.setattr(perplexity_sweep, "_score", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate.sweep(small, documents, s, lengths, "sliding", stride=8, bos_id=1, store=store)
    again = evaluate.sweep(small, documents, s, lengths, "sliding", stride=8, bos_id=1, store=store)
    assert scored == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    for n in lengths:
        for name in ("nll", "scored", "document", "position_nll", "position_scored"):
            np.testing.assert_array_equal(getattr(again[n], name), getattr(whole[n], name))


@pytest.mark.parametrize("change", ["weights", "encoding", "text", "stride", "lengths", "bos"])
def test_a_kept_result_serves_only_the_inputs_that_made_it(small, documents, tmp_path, change):
    """Under any other input a sweep over a used store gives what a sweep without one gives, and says why."""
    options = {"protocol": "sliding", "stride": 8, "bos_id": 1}
    s, lengths, lm = spec("yarn"), [16, 64], small
    evaluate.sweep(lm, documents, s, lengths, **options, store=evaluate.Store(tmp_path))
    if change == "weights":
        lm = small.replace_params(jax.tree.map(lambda x: x * 1.01, small.params))
    elif change == "encoding":
        s = spec("yarn", resonance=True)
    elif change == "text":
        documents = [np.flip(tokens) for tokens in documents]
    elif change == "stride":
        options["stride"] = 4
    elif change == "lengths":
        lengths = [32, 64]
    else:
        options["bos_id"] = 2
    with pytest.warns(UserWarning, match="computed anew"):
        kept = evaluate.sweep(lm, documents, s, lengths, **options, store=evaluate.Store(tmp_path))
    fresh = evaluate.sweep(lm, documents, s, lengths, **options)
    for n in lengths:
        np.testing.assert_array_equal(kept[n].nll, fresh[n].nll)


def test_a_flipped_bit_in_a_kept_result_is_found(small, documents, tmp_path):
    s, options = spec(), {"protocol": "prefix", "bos_id": 1, "store": evaluate.Store(tmp_path)}
    whole = evaluate.sweep(small, documents, s, [64], **options)
    files = sorted(tmp_path.iterdir())
    content = bytearray(files[0].read_bytes())
    for at in range(len(content) // 4, len(content), len(content) // 4):
        files[0].write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        again = evaluate.sweep(small, documents, s, [64], **(options | {"store": evaluate.Store(tmp_path)}))
        np.testing.assert_array_equal(again[64].nll, whole[64].nll)
    files[1].write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="damaged"):
        evaluate.sweep(small, documents, s, [64], **(options | {"store": evaluate.Store(tmp_path)}))


@pytest.mark.parametrize("how", ["pmap", "mesh"])
def test_data_parallel_equals_one_device(small, documents, how):
    from resonance_jax.parallel.mesh import make_mesh

    freqs = rope.frequencies(spec())
    one = evaluate.perplexity(small, documents, freqs, "sliding", 64, stride=16, bos_id=1)
    lm = small
    if how == "mesh":
        mesh = make_mesh(data=8)
        lm = model.Decoder(small.config, mesh=mesh)
        lm = lm.replace_params(jax.device_put(small.params, lm.shardings()))
    many = evaluate.perplexity(lm, documents, freqs, "sliding", 64, stride=16, bos_id=1, pmap=how == "pmap")
    np.testing.assert_allclose(many.nll, one.nll, rtol=1e-5)


@pytest.fixture(scope="module")
def over_four(small):
    """The same decoder on four devices."""
    from resonance_jax.parallel.mesh import make_mesh

    mesh = make_mesh(data=4, devices=jax.devices()[:4])
    lm = small.replace(mesh=mesh)
    return lm.replace_params(jax.device_put(small.params, lm.shardings()))


@pytest.fixture
def calls(monkeypatch):
    """[rows, width] of every call of the decoder, and how many devices cut its time."""
    seen, score = [], nll_over_devices.token_nll

    def noting(lm, tokens, freqs):
        seen.append((*tokens.shape, 1 if lm.mesh is None else lm.mesh.shape["sequence"]))
        return score(lm, tokens, freqs)

    monkeypatch.setattr(nll_over_devices, "token_nll", noting)
    return seen


def same_as_on_one_device(many, one):
    """Float32 sums in another order: 1e-5 of a document's NLL."""
    assert many.keys() == one.keys()
    for n in one:
        np.testing.assert_array_equal(many[n].document, one[n].document)
        np.testing.assert_array_equal(many[n].scored, one[n].scored)
        np.testing.assert_allclose(many[n].nll, one[n].nll, rtol=1e-5)


def share(results):
    done = evaluate.work(results.values())
    return done["computed"] / done["scored"]


@pytest.mark.parametrize("method", ["yarn", "dynamic_ntk"])
def test_four_devices_do_four_documents_in_one_call_at_every_length(small, over_four, calls, method):
    rng, lengths = np.random.default_rng(5), [128, 250]
    documents = [rng.integers(0, 64, 260) for _ in range(4)]
    many = evaluate.sweep(over_four, documents, spec(method), lengths, bos_id=1)
    assert calls == ([(4, 250, 1)] if method == "yarn" else [(4, 128, 1), (4, 250, 1)])
    assert share(many) <= 1.05
    same_as_on_one_device(many, evaluate.sweep(small, documents, spec(method), lengths, bos_id=1))


def test_what_is_left_over_is_cut_in_time_and_nothing_is_computed_twice(small, over_four, calls, tmp_path):
    """Seven documents on four devices: four, then two halves each, then one in four parts."""
    rng = np.random.default_rng(6)
    documents = [rng.integers(0, 64, 260) for _ in range(7)]
    options = {"bos_id": 1, "store": evaluate.Store(tmp_path)}
    many = evaluate.sweep(over_four, documents, spec(), [250], **options)
    assert calls == [(4, 250, 1), (2, 252, 2), (1, 256, 4)]
    assert many[250].computed == 4 * 250 + 2 * 252 + 256 and 1 < share(many) <= 1.05
    same_as_on_one_device(many, evaluate.sweep(small, documents, spec(), [250], bos_id=1))
    calls.clear()
    kept = evaluate.sweep(over_four, documents, spec(), [250], **options)
    assert kept[250].computed == many[250].computed and not calls


def test_documents_of_mixed_sizes_share_batches_with_their_like(small, over_four):
    rng = np.random.default_rng(7)
    documents = [rng.integers(0, 64, n) for n in (250, 130, 240, 245, 135, 252)]
    options = {"protocol": "yarn", "truncate": True, "bos_id": 1}
    many = evaluate.sweep(over_four, documents, spec(), [256], **options)
    one = evaluate.sweep(small, documents, spec(), [256], **options)
    same_as_on_one_device(many, one)
    assert max(share(many), share(one)) <= 1.3


def test_weights_stay_where_they_are_when_time_is_cut(small):
    """Another mesh over the same devices, with the same parts of the weights in the same buffers."""
    from resonance_jax.evaluate.nll_over_devices import NllOverDevices
    from resonance_jax.parallel.mesh import make_mesh

    lm = small.replace(mesh=make_mesh(data=4, tensor=2))
    lm = lm.replace_params(jax.device_put(small.params, lm.shardings()))
    cut = NllOverDevices(lm)._cut(2)
    assert dict(cut.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2, "sequence": 2}
    where = lambda x: sorted((p.device.id, p.data.unsafe_buffer_pointer()) for p in x.addressable_shards)
    for before, after in zip(*map(jax.tree.leaves, (lm.params, cut.params)), strict=True):
        assert where(before) == where(after)
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocol": "windowed"}, "unknown protocol 'windowed'"),
        ({"protocol": "sliding", "stride": 64}, "stride must be between 1 and"),
        ({"length": 1}, "at least 2 positions"),
        ({"length": 400}, "none of the 4 documents has the 399 tokens"),
    ],
)
def test_bad_input(small, documents, change, sentence):
    arguments = {"protocol": "prefix", "length": 64, "bos_id": 1, **change}
    with pytest.raises(ValueError, match=sentence):
        evaluate.perplexity(small, documents, rope.frequencies(spec()), **arguments)


def test_intervals_cover_the_truth_and_pairs_are_tighter():
    """Of 200 synthetic corpora about 95 % of the intervals hold the mean; pairing removes what is shared."""
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(200):
        document = np.repeat(np.arange(40), 3)
        nats = rng.normal(2.0, 0.5, 40)[document] + rng.normal(0, 0.1, 120)
        interval = evaluate.mean_interval(nats * 50, np.full(120, 50), document, draws=400, seed=i)
        covered += interval.low <= 2.0 <= interval.high
    assert 180 <= covered <= 199
    a, b, counts = nats * 50 + 1.0, nats * 50, np.full(120, 50)
    difference = evaluate.paired_difference(a, b, counts, document)
    assert difference.value == pytest.approx(0.02) and difference.excludes(0)
    assert difference.high - difference.low < 1e-9
