"""What a small model is scored, asked and made to say on a mesh of four devices, in whatever processes."""

from pathlib import Path

import jax
import numpy as np

from resonance_jax import data, evaluate, generate, model, rope
from resonance_jax.data import leval
from resonance_jax.evaluate import passkey
from resonance_jax.evaluate.journal import Journal
from resonance_jax.evaluate.leval_asking import Asker, Prompt
from resonance_jax.parallel.mesh import make_mesh

CONFIG = model.PRESETS["tiny"].replace(
    vocab_size=264, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, n_layers=2
)
SPEC = rope.RopeSpec("yarn", head_dim=16, train_length=64, scale=4.0)


def figures(folder: str, devices: list | None = None) -> dict:
    """evaluate.sweep (with a store in `folder`, and once more from it), generate, passkey and L-Eval.

    devices: of the mesh; default all of all processes.
    """
    lm = model.Decoder(CONFIG, jax.random.key(3), mesh=make_mesh(data=2, fsdp=2, devices=devices))
    lm = lm.replace_params(jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, lm.params))
    random = np.random.default_rng(0)
    documents = [random.integers(0, 256, n).astype(np.int32) for n in (80, 70, 66, 75, 90)]
    store = evaluate.Store(folder)
    sweep = lambda: evaluate.sweep(lm, documents, SPEC, [32, 64], store=store)[64].nll.tolist()
    scored, kept = sweep(), sweep()
    table, tokenizer = rope.frequencies(SPEC, length=128), data.tokenizer("bytes")
    prompts = [documents[0][:20], documents[1][:9], documents[2][:12], documents[3][:30]]
    said = [
        generate.generate(lm, prompts, table, max_new_tokens=6, **options).tokens
        for options in ({}, {"temperature": 0.7, "top_p": 0.9, "key": jax.random.key(5)})
    ]
    cell = passkey.cell(lm, tokenizer, SPEC, passkey.template("short-bytes"), 64, 0.5, 4)
    question = leval.Question("coursera", "0:0", "text", "Which?", "A", "exam")
    asked = [Prompt(question, prompt, None, leval.Cut("text", 4, 4)) for prompt in prompts]
    answers = Asker(lm, tokenizer, SPEC, 128, max_new_tokens=4, batch_size=4).answers(asked)
    record = {"answers": [answer.prediction for some in answers for answer in some]}
    journal = lambda: Journal(Path(folder) / "journal.jsonl", {"made": "here"})
    journal().append(record)
    return {
        "journal": [found["answers"] == record["answers"] for found in journal().records],
        "scored": scored,
        "kept": kept,
        "said": [[row.tolist() for row in rows] for rows in said],
        "keys": cell["answers"],
        **record,
    }
