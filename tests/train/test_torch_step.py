"""Five steps equal PyTorch's: transformers' LLaMA under torch.optim.AdamW, from the same weights."""

import numpy as np
import pytest

from resonance_jax import interop, rope, train
from resonance_jax.interop.hf_weights import NAMES, tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

STEPS, ROWS, LENGTH = 5, 4, 32
TOLERANCE = 1e-3  # of the norm of a tensor's whole update
TOKENS = np.random.default_rng(0).integers(0, 97, (STEPS, ROWS, LENGTH)).astype(np.int32)
OPTIMIZER = train.OptimizerConfig(lr=1e-3, weight_decay=0.1, warmup=0.4)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(directory of the first weights, tensors before, tensors after, losses) by transformers and torch."""
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
        max_position_embeddings=LENGTH,
    )
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("hf") / "model"
    llama.save_pretrained(folder)
    return folder, *torch_steps(llama, llama.parameters())


def torch_steps(llama, parameters):
    """(state before, state after, losses) of STEPS steps."""
    before = {name: p.detach().clone().numpy() for name, p in llama.state_dict().items()}
    c = OPTIMIZER
    adamw = torch.optim.AdamW(
        parameters, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=c.weight_decay
    )
    schedule = transformers.get_linear_schedule_with_warmup(adamw, 2, STEPS)
    losses = []
    for tokens in torch.as_tensor(TOKENS, dtype=torch.long):
        loss = llama(tokens, labels=tokens).loss
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        schedule.step()
        losses.append(loss.item())
    return before, {name: p.detach().numpy() for name, p in llama.state_dict().items()}, losses


def our_steps(folder, run_dir, **changes):
    """(our decoder, losses) after the same steps."""
    lm = interop.load_hf(folder)
    config = train.TrainConfig(STEPS, train.OptimizerConfig(**{**vars(OPTIMIZER), **changes}))
    freqs = rope.frequencies(lm.rope, length=LENGTH)
    run = train.fit(lm, lambda step: {"tokens": TOKENS[step]}, freqs, config, run_dir)
    return run.lm, [record["loss"] for record in run.history]


def furthest(lm, before, after) -> float:
    """The largest norm-wise difference of a tensor's update, relative to the update."""
    worst = 0.0
    for name, (path, layer, _) in tensors(lm.config).items():
        ours = lm.params
        for key in path.split("/"):
            ours = ours[key]
        ours = np.asarray(ours if layer is None else ours[layer], np.float64)
        ours = ours.T if NAMES[path][1] else ours
        wanted = np.asarray(after[name], np.float64) - before[name]
        worst = max(worst, np.linalg.norm(ours - before[name] - wanted) / np.linalg.norm(wanted))
    return worst


def test_the_updates_are_pytorchs(reference, tmp_path):
    folder, before, after, losses = reference
    lm, own = our_steps(folder, tmp_path)
    np.testing.assert_allclose(own, losses, rtol=1e-5)
    assert furthest(lm, before, after) < TOLERANCE


@pytest.mark.parametrize("change", [{"weight_decay": 0.0}, {"warmup": 0.2}, {"beta2": 0.999}], ids=str)
def test_another_optimizer_would_be_seen(reference, tmp_path, change):
    folder, before, after, _ = reference
    lm, _ = our_steps(folder, tmp_path, **change)
    assert furthest(lm, before, after) > TOLERANCE
