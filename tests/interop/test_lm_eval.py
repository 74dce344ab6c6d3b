"""The harness's own runner on a local task, with our decoder beside its Hugging Face model in PyTorch."""

import json

import jax
import numpy as np
import pytest

from resonance_jax import data, interop, model, rope

pytestmark = pytest.mark.parity
pytest.importorskip("lm_eval", reason="needs lm_eval: pip install resonance-jax[lm_eval]")

TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "until": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "x"
generation_kwargs: {until: ["e"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random LLaMA with a byte-level tokenizer.json that puts <s> first, as LLaMA's does."""
    import tokenizers

    folder = tmp_path_factory.mktemp("lm") / "small"
    shape = {"vocab_size": 258, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16, "d_ff": 48}
    lm = model.Decoder(model.PRESETS["tiny"].replace(**shape), jax.random.key(1))
    sharp = jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, lm.params)  # so that choices differ
    spec = rope.RopeSpec("linear", head_dim=16, train_length=64, scale=2.0)
    special = {"bos_token_id": 256, "eos_token_id": 257}
    interop.save_hf(lm.replace_params(sharp), folder, rope=spec, extra=special)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<s>", "</s>"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    first = [("<s>", 256)]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=first)
    made.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    """The three tasks on five documents of our own."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    documents = [
        {
            "question": f"Ship {n} sailed to the {'far ' * n}island, and there",
            "choices": [" it sank", " we ate", " 17"],
            "label": n % 3,
        }
        for n in range(5)
    ]
    (folder / "ours.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    for name, text in TASKS.items():
        head = f"task: ours_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {folder}/ours.jsonl}}\n"
        (folder / f"{name}.yaml").write_text(head + "test_split: train\n" + text)
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluated(manager, lm, names=tuple(TASKS)):
    import lm_eval

    out = lm_eval.simple_evaluate(
        model=lm, tasks=[f"ours_{name}" for name in names], task_manager=manager, bootstrap_iters=0
    )
    answers = {name: [s["resps"] for s in samples] for name, samples in out["samples"].items()}
    return out["results"], answers


def test_the_harness_says_of_ours_what_it_says_of_transformers(checkpoint, manager):
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    import resonance_jax.interop.lm_eval  # noqa: F401 (registers the model)

    ours = get_model("resonance-jax").create_from_arg_string(f"pretrained={checkpoint},length=128")
    theirs = HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", max_length=128, batch_size=1)
    our_results, our_answers = evaluated(manager, ours)
    results, answers = evaluated(manager, theirs, ("choice", "until"))
    # With the tokenizer's own BOS theirs has two in front of a rolling text, and scores the second.
    theirs.add_bos_token = False
    results |= evaluated(manager, theirs, ("rolling",))[0]
    for task, figures in results.items():
        for name, value in figures.items():
            if isinstance(value, float):
                assert our_results[task][name] == pytest.approx(value, rel=1e-5), (task, name)
    choices, ours_choices = (np.asarray(a["ours_choice"], float) for a in (answers, our_answers))
    np.testing.assert_allclose(ours_choices[..., 0], choices[..., 0], atol=2e-4)
    np.testing.assert_array_equal(ours_choices[..., 1], choices[..., 1])
    assert our_answers["ours_until"] == answers["ours_until"]
    assert len({str(a) for a in answers["ours_until"]}) > 1


def test_rolling_windows_and_a_dynamic_encoding_score_every_token_once(checkpoint):
    from lm_eval.api.instance import Instance

    from resonance_jax import evaluate
    from resonance_jax.interop.lm_eval import ResonanceLM

    text = "There and back again, " * 10  # 220 tokens, in four windows of at most 64
    lm = ResonanceLM(str(checkpoint), encoding="resonance-dynamic-ntk", length=64)
    (total,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    tokens, expected, start = data.tokenizer(checkpoint).encode(text), 0.0, 0
    for end in (64, 128, 192, 220):
        before = max(0, end - 64)
        window = np.concatenate([[256] if not before else tokens[before - 1 : before], tokens[before:end]])
        table = rope.frequencies(lm.spec, length=len(window) - 1)
        nll = np.asarray(evaluate.token_nll(lm.decoder, window[None], table))[0]
        expected -= nll[len(nll) - (end - start) :].sum()
        start = end
    assert total == pytest.approx(expected, rel=1e-5)


def test_what_does_not_fit_is_said(checkpoint, caplog):
    from lm_eval.api.instance import Instance

    from resonance_jax.interop.lm_eval import ResonanceLM

    lm = ResonanceLM(str(checkpoint), length=32)
    made = lm.generate_until([Instance("generate_until", {}, ("word " * 20, {"max_gen_toks": 4}), 0)])
    assert len(made) == 1 and "a request of 101 tokens lost its first 73" in caplog.text
    with pytest.raises(ValueError, match="a continuation has 40 tokens, length=32"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("a", "b" * 40), 0)])
    with pytest.raises(ValueError, match="length=32 leaves no room for a prompt"):
        lm.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 32}), 0)])
    with pytest.raises(ValueError, match="unknown model arguments: lenght"):
        ResonanceLM(str(checkpoint), lenght=32)


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, asked, 0) for asked in arguments]


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_the_number_of_new_tokens_has_four_names(checkpoint, name):
    from resonance_jax.interop.lm_eval import ResonanceLM

    lm = ResonanceLM(str(checkpoint), length=600)
    asked = lm._options({name: 7, "until": "x"})
    assert asked == (7, ("x",), 0.0, 1.0) and lm._options({})[0] == lm.max_gen_toks == 256


@pytest.mark.parametrize("encoding", ["own", "dynamic-ntk"])
def test_a_batch_is_what_one_request_after_the_other_is(checkpoint, encoding):
    from resonance_jax.interop.lm_eval import ResonanceLM

    lms = [ResonanceLM(str(checkpoint), encoding, length=96, batch_size=n) for n in (1, "4")]
    texts = ["a ship", "There and back again, " * 6, "b", "a ship", "over the sea and far away"]
    pairs = instances("loglikelihood", *[(text, " it " + "sank" * n) for n, text in enumerate(texts)])
    one, four = (lm.loglikelihood(pairs) for lm in lms)
    np.testing.assert_allclose([x for x, _ in one], [x for x, _ in four], rtol=1e-5)
    assert [best for _, best in one] == [best for _, best in four]
    whole = instances("loglikelihood_rolling", *[(text,) for text in texts])
    one, four = (lm.loglikelihood_rolling(whole) for lm in lms)
    np.testing.assert_allclose(one, four, rtol=1e-5)
    until = instances("generate_until", *[(text, {"max_tokens": 4 + n % 2}) for n, text in enumerate(texts)])
    one, four = (lm.generate_until(until) for lm in lms)
    assert one == four and len(set(one)) > 1


def test_chat_templates_are_applied_and_their_special_tokens_are_tokens(checkpoint, tmp_path):
    import shutil

    from resonance_jax.interop.lm_eval import ResonanceLM

    template = (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = shutil.copytree(checkpoint, tmp_path / "chat")
    (chat / "chat_template.jinja").write_text(template)
    lm, plain = ResonanceLM(str(chat), length=64), ResonanceLM(str(checkpoint), length=64)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so "}]
    assert lm.apply_chat_template(talk[:1]) == "<s>[user]hi</s>[assistant]"
    assert lm.apply_chat_template(talk, add_generation_prompt=False) == "<s>[user]hi</s>[assistant]so "
    assert (
        lm.apply_chat_template([{"role": "system", "content": "be"}, talk[0]]) == "<s>[user]hi</s>[assistant]"
    )
    ids = lm.tok_encode(lm.apply_chat_template(talk[:1]))
    assert ids.count(256) == ids.count(257) == 1 and ids[0] == 256
    assert lm.chat_template(True) == template and lm.chat_template(False) == plain.chat_template(False) == ""
    assert lm.tokenizer_name != plain.tokenizer_name
    with pytest.raises(ValueError, match="has no chat template"):
        plain.chat_template(True)
    with pytest.raises(ValueError, match="unknown chat template 'rag'"):
        lm.chat_template("rag")


def test_the_harnesss_own_flags_mean_something_or_are_refused(checkpoint):
    from resonance_jax.interop.lm_eval import ResonanceLM

    lm = ResonanceLM(str(checkpoint), device="cpu:1", bos="none")
    assert lm.decoder.params["embed"].devices() == {jax.devices()[1]} and lm.tok_encode("a")[0] != 256
    for name, value in (
        ("batch_size", "auto"),
        ("batch_size", 0),
        ("max_batch_size", 8),
        ("device", "cuda:9"),
    ):
        with pytest.raises(ValueError, match=name.replace("device", "no device 'cuda:9'")):
            ResonanceLM(str(checkpoint), **{name: value})


def test_any_of_several_end_tokens_ends_a_generation(checkpoint, tmp_path):
    import shutil

    from resonance_jax.interop.lm_eval import ResonanceLM

    lm = ResonanceLM(str(checkpoint), length=64)
    request = instances("generate_until", ("a ship", {"max_tokens": 6}))
    (said,) = lm.generate_until(request)
    ends = shutil.copytree(checkpoint, tmp_path / "ends")
    first = int(lm.text.encode(said[0])[0])
    (ends / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, first, 9999]}))
    assert said and ResonanceLM(str(ends), length=64).generate_until(request) == [""]
