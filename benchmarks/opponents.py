"""transformers with PyTorch as the benchmarks' opponent: its model, its NLL, its compiled decoding.

Not a benchmark itself; the scripts beside it import it. torch is imported where it is used.
"""

from beside import THREADS

HEAD_AT_ONCE = 1024
"""Positions whose logits are made together: the whole [T, V] of a long text would be gigabytes."""


def loaded(folder, dtype="float32"):
    """The model in a Hugging Face directory, with SDPA, on as many threads as ours."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()


def nll_of(lm, compiled=False):
    """nll(ids [T]) -> the NLL in nats of every token but the first. compiled: the layers by torch.compile."""
    import torch

    layers = torch.compile(lm.model) if compiled else lm.model

    @torch.no_grad()
    def nll(ids):
        ids = torch.as_tensor(ids, dtype=torch.long)
        x = layers(ids[None], use_cache=False).last_hidden_state[0, :-1]
        parts = zip(x.split(HEAD_AT_ONCE), ids[1:].split(HEAD_AT_ONCE), strict=True)
        loss = torch.nn.functional.cross_entropy
        return torch.cat(
            [loss(lm.lm_head(rows).float(), next_, reduction="none") for rows, next_ in parts]
        ).numpy()

    return nll


def compiled_decoding():
    """Of `generate` with a static cache: compile the forward. transformers must be told to on a CPU."""
    import transformers

    compiled = transformers.CompileConfig(fullgraph=False, mode="default")
    compiled._compile_all_devices = True
    return compiled
