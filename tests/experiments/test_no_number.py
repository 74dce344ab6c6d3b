"""Activations that overflow give no figure: exit 3 where another encoding gave one, otherwise a refusal."""

import json

import numpy as np
import pytest

from experiments import perplexity as command
from resonance_jax import evaluate
from resonance_jax.command import guarded
from resonance_jax.files import read_json
from tests.reliability import scored


@pytest.mark.parametrize(("bad", "code"), [(("YaRN",), 3), (("YaRN", "RoPE (own)"), 2)])
def test_an_encoding_without_a_number_is_left_out(tmp_path, monkeypatch, capsys, bad, code):
    folder = scored.base(tmp_path / "inputs")
    sweep = evaluate.sweep

    def overflowing(lm, documents, spec, *arguments, **options):
        results = sweep(lm, documents, spec, *arguments, **options)
        if spec.title in bad or (spec.title == "RoPE" and "RoPE (own)" in bad):
            for result in results.values():
                result.nll[0] = np.nan
        return results

    monkeypatch.setattr(evaluate, "sweep", overflowing)
    config = scored.config_of(folder, tmp_path / "run", encodings=("own", "yarn"), lengths=(32, 64))
    for _ in range(2):  # the kept result says it again
        assert guarded(command.run, config) == code
        captured = capsys.readouterr()
        assert (
            "YaRN is left out: its NLL is no finite number at length 32" in captured.out + captured.err
            or (code == 2 and "is left out" in captured.err)
        )
    if code == 3:
        result = read_json(tmp_path / "run" / "perplexity.json")
        (part,) = result["corpora"].values()
        assert {row["encoding"] for row in part["rows"]} == {"RoPE (own)"} and len(result["no_number"]) == 1
        assert "NaN" not in json.dumps(result)
