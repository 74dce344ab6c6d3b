"""Checkpoints are whole or not believed: every file is compared with what was saved before it is read."""

import json
import re
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resonance_jax.train import checksums
from resonance_jax.train.checkpoint import Checkpoints, newest_step, saved_params
from tests.bucket import bucket
from tests.unchecked import unchecked

MADE_BY = {"encodings": [], "settings": {"optimizer": {"lr": 0.1, "freeze": ["embed"]}, "seed": 3}}


def state(step):
    return {"params": {"w": jnp.arange(12.0).reshape(3, 4) + step}, "key": jax.random.key(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with the checkpoints of the steps 3 and 4."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, 3, 4)
    return folder


def save(folder, *steps, made_by=MADE_BY, **options):
    checkpoints = Checkpoints(folder, made_by, **options)
    for step in steps:
        checkpoints.save(step, state(step), f"log of {step}")
    checkpoints.close()


def resume(folder, made_by=MADE_BY, like=None):
    checkpoints = Checkpoints(folder, made_by)
    try:
        return checkpoints.resume(jax.eval_shape(lambda: state(0)) if like is None else like)
    finally:
        checkpoints.close()


def assert_resumes(folder, step):
    found, restored, log = resume(folder)
    assert (found, log) == (step, f"log of {step}")
    np.testing.assert_array_equal(restored["params"]["w"], state(step)["params"]["w"])
    assert restored["key"] == state(step)["key"]


def test_the_newest_is_restored_in_silence(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_resumes(saved, 4)
    assert newest_step(saved) == 4
    np.testing.assert_array_equal(saved_params(saved)["w"], state(4)["params"]["w"])


def files(folder: Path) -> list[str]:
    """Every file of step 4 but the two that Orbax writes as it commits, which hold no more than the time."""
    found = sorted(str(p.relative_to(folder / "4")) for p in (folder / "4").rglob("*") if p.is_file())
    assert {"meta/metadata", "state/_METADATA", "state/manifest.ocdbt", "sha256.json"} < set(found)
    return [name for name in found if name not in checksums.AT_COMMIT]


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped": flipped,
    "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_whatever_file_of_the_newest_is_damaged_the_one_before_is_taken(saved, tmp_path, how):
    """Found by checksum, without Orbax, and set aside with a sentence; then the step can be saved again."""
    for name in files(saved):
        if (name, how) == ("sha256.json", "removed"):
            continue  # then it is like one of an earlier version
        folder = shutil.copytree(saved, tmp_path / "copy")
        DAMAGES[how](folder / "4" / name)
        assert checksums.fault(folder / "4", 4), name
        if name in ("meta/metadata", "sha256.json", "state/manifest.ocdbt"):
            with pytest.warns(UserWarning, match=r"step 4 in .* is damaged .* the run goes on from step 3"):
                assert_resumes(folder, 3)
            assert newest_step(folder) == 3 and (folder / "4.damaged-1").is_dir()
            save(folder, 4)
            assert_resumes(folder, 4)
        shutil.rmtree(folder)


def test_a_step_that_is_not_what_its_name_says(saved, tmp_path):
    """An empty folder, one without a part, and one that was given a larger number."""
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / "9").mkdir()
    (folder / "4").rename(folder / "40")
    shutil.copytree(folder / "40", folder / "8")
    shutil.rmtree(folder / "8" / "meta")
    with pytest.warns(UserWarning) as told:
        assert_resumes(folder, 3)
    sentences = [str(warning.message) for warning in told]
    assert len(sentences) == 3
    for wanted in (
        "step 40 .*it was saved as step 4",
        "step 9 .*it is empty",
        "step 8 .*it was saved as step 4",
    ):
        assert any(re.search(wanted, sentence) for sentence in sentences), wanted
    assert newest_step(folder) == 3


def test_none_is_whole(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    for step in (3, 4):
        flipped(folder / str(step) / "state" / "manifest.ocdbt")
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* is whole: 4 \(state/manifest.ocdbt is damaged\), 3 "
    ):
        resume(folder)
    assert newest_step(folder) == 4  # nothing is moved
    with pytest.raises(ValueError, match=r"step 4 in .* is damaged .* run what made it again"):
        saved_params(folder)
    assert resume(tmp_path / "new") is None


def without_checksums(saved, tmp_path) -> Path:
    """What an earlier version left."""
    folder = shutil.copytree(saved, tmp_path / "copy")
    for step in (3, 4):
        (folder / str(step) / checksums.MANIFEST).unlink()
    return folder


def test_checkpoints_without_checksums_are_read_if_orbax_can_and_that_is_said(saved, tmp_path):
    folder = without_checksums(saved, tmp_path)
    with pytest.warns(UserWarning, match="step 4 in .* has no checksums"):
        assert_resumes(folder, 4)
    (folder / "4" / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.warns(UserWarning) as told:
        assert_resumes(folder, 3)
    # Orbax leaves coroutines unawaited where a read fails; Python warns of them when it collects them.
    ours = [str(warning.message) for warning in told if warning.category is UserWarning]
    assert "Orbax cannot read it" in ours[0] and "no checksums" in ours[1]
    (folder / "3").rename(folder / "30")  # and the meta beside the arrays states the step once more
    with pytest.raises(ValueError, match="is whole: 30"):
        resume(folder)


def changed(**settings):
    return {**MADE_BY, "settings": {**MADE_BY["settings"], **settings}}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": {"lr": 0.2, "freeze": ["embed"]}}, "optimizer.lr: 0.1 there, 0.2 here"),
        ({"optimizer": {"lr": 0.1, "freeze": []}}, r"optimizer.freeze: \['embed'\] there, \[\] here"),
        ({"meta": {"run": "b"}, "seed": 4}, "meta.run: None there, 'b' here, seed: 3 there, 4 here"),
    ],
)
def test_another_run_s_checkpoint_is_refused_and_left_alone(saved, tmp_path, settings, sentence):
    folder = shutil.copytree(saved, tmp_path / "copy")
    flipped(folder / "4" / "state" / "manifest.ocdbt")
    with pytest.raises(ValueError, match=f"belongs to another run .{sentence}"):
        resume(folder, changed(**settings))
    assert newest_step(folder) == 4


def test_from_any_devices_to_any_others(tmp_path):
    """Four devices, one without a word about where, then two."""

    def on(count):
        where = NamedSharding(Mesh(np.asarray(jax.devices()[:count]), ("x",)), PartitionSpec(None, "x"))
        return {"params": {"w": jax.device_put(state(7)["params"]["w"], where)}, "key": jax.random.key(7)}

    checkpoints = Checkpoints(tmp_path, MADE_BY)
    checkpoints.save(7, on(4))
    checkpoints.close()
    _, plain, _ = resume(tmp_path)
    assert plain["params"]["w"].devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(plain["params"]["w"], state(7)["params"]["w"])
    _, two, _ = resume(tmp_path, like=on(2))
    assert two["params"]["w"].sharding == on(2)["params"]["w"].sharding


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_a_number_of_checkpoints_to_keep_that_cannot_be(tmp_path, keep):
    with (
        unchecked(),
        pytest.raises(ValueError, match=f"keep must be a whole number of at least 1, got {keep}"),
    ):
        Checkpoints(tmp_path / "new", MADE_BY, keep)
    assert not (tmp_path / "new").exists()


def test_checksums_in_an_object_store(tmp_path):
    """Written, compared and set aside where nothing can be renamed."""
    from etils import epath

    with bucket(tmp_path):
        folder = epath.Path("gs://b/checkpoints/4")
        for name, content in (("state/d/x", b"weights"), ("meta/metadata", b"{}")):
            with (folder / name).open("wb") as file:
                file.write(content)
        checksums.write_manifest(folder, 4)
        assert json.loads((folder / checksums.MANIFEST).read_text())["files"].keys() == {
            "state/d/x",
            "meta/metadata",
        }
        assert checksums.fault(folder, 4) is None
        assert checksums.fault(folder, 5) == "it was saved as step 4"
        with (folder / "state/d/x").open("wb") as file:
            file.write(b"weightz")
        assert checksums.fault(folder, 4) == "state/d/x is damaged"
        aside = checksums.set_aside(folder)
        assert not folder.exists() and (aside / "state" / "d" / "x").read_bytes() == b"weightz"
