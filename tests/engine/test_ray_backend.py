"""Scoring on a Ray cluster: a real one of three nodes on this machine, and what may go wrong.

All of it takes about a minute, most of it to start the nodes and to load torch on them, once. The
cluster listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from spex_engine.backends import ray as ray_backend
from spex_engine.backends import ray_pool
from spex_engine.backends.base import Scorer
from spex_engine.backends.hf_loading import load_causal_lm
from spex_engine.backends.ray import RayModel, RayScorer, load
from spex_engine.backends.ray_replica import Replica, likeness, pack, unpack
from spex_engine.backends.transformers import load as load_here
from spex_engine.wire import InputError, Message, ModelError, Piece, Prompt, Question

torch.set_num_threads(1)

N = 12
PROMPT = Prompt(
    (
        Message(
            "user",
            tuple(Piece(f"Anna lives in Paris, number {i}; Carl likes tea. ", i) for i in range(N)),
        ),
    ),
    N,
)
QUESTION = Question(target=" in Paris")
MASKS = np.random.default_rng(0).random((320, N)) < 0.5


def go_on() -> bool:
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A causal model whose items of work take long enough to die in the middle of one."""
    path = tmp_path_factory.mktemp("model")
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "<end>"]
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(sorted(alphabet))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.05,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    """The oracle: the same model, here; float (m, tokens of the target)."""
    found = scored(load_here(str(folder), device="cpu").open(PROMPT, QUESTION, go_on))
    assert np.ptp(found.mean(axis=1)) > 0.01  # the masks matter
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing, and two nodes of one processor each."""
    import ray
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets allow but short paths
        elsewhere = tempfile.mkdtemp()
        Path(short, "ray").mkdir()  # where it notes which cluster is the current one
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # so that it listens here alone
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "node_ip_address": "127.0.0.1",
                "include_dashboard": False,
                "temp_dir": short,
                "_system_config": {  # a dead node is found out sooner
                    "health_check_initial_delay_ms": 500,
                    "health_check_period_ms": 500,
                    "health_check_failure_threshold": 2,
                },
            },
        )
        for _ in range(2):
            made.add_node(num_cpus=1, node_ip_address="127.0.0.1")
        patch.setenv("RAY_ADDRESS", made.address)
        patch.chdir(elsewhere)  # in place of a workspace
        yield made
        ray.shutdown()
        made.shutdown()
    shutil.rmtree(short, ignore_errors=True)
    shutil.rmtree(elsewhere)


@pytest.fixture(scope="module")
def model(cluster, folder) -> RayModel:
    return load(str(folder))


def scored(scorer: Scorer, after: Callable[[int], None] = lambda portions: None) -> np.ndarray:
    """Scores of MASKS; ``after`` is called after each portion, with how many there were."""
    found: np.ndarray | None = None
    for portions, (rows, scores) in enumerate(scorer.score(MASKS, go_on), start=1):
        if found is None:
            found = np.full((len(MASKS), scores.values.shape[1]), np.nan)
        assert np.isnan(found[rows]).all()  # each row once
        found[rows] = scores.values
        after(portions)
    assert found is not None
    return found


@pytest.fixture
def deaths(monkeypatch) -> list[int]:
    """How many masks each item had whose worker died of it."""
    seen: list[int] = []
    real = RayScorer._require_alive

    def note(self: RayScorer, item: Any) -> None:
        seen.append(len(item.rows))
        real(self, item)

    monkeypatch.setattr(RayScorer, "_require_alive", note)
    return seen


def until(true: Callable[[], bool], model: RayModel) -> None:
    for _ in range(300):
        if true():
            return
        model._pool.wait([], 0.1)
    raise AssertionError("it never came to that")


# ---- on the cluster -----------------------------------------------------------------------------


def test_the_same_as_here(model, expected, folder):
    assert len(model._pool.live) == 2
    scorer = model.open(PROMPT, QUESTION, go_on)
    np.testing.assert_allclose(scored(scorer), expected, atol=1e-6)
    here = load_here(str(folder), device="cpu").open(PROMPT, QUESTION, go_on)
    assert scorer.addresses(MASKS[:9]) == here.addresses(MASKS[:9])
    assert (scorer.tier, scorer.n_segments) == ("T1", N)
    assert (scorer.targets, scorer.notes) == (here.targets, here.notes)
    assert model.uri == f"ray+hf:{folder}"


def test_the_models_own_answer(model, folder):
    scorer = model.open(PROMPT, Question(), go_on)
    assert scorer.targets == load_here(str(folder)).open(PROMPT, Question(), go_on).targets
    assert scorer.targets[0].own
    rows, scores = next(iter(scorer.score(MASKS[:1], go_on)))
    assert rows.tolist() == [0]
    assert np.isfinite(scores.values).all()


def test_what_the_model_refuses(model):
    with pytest.raises(InputError, match="target is empty"):
        model.open(PROMPT, Question(target=" "), go_on)
    assert len(model._pool.live) == 2


def test_workers_run_what_was_sent_and_nothing_of_the_workspace(model):
    import ray

    def seen(self: Any) -> tuple[str, list[str]]:
        import spex_engine

        return spex_engine.__file__, sys.path

    for copy in model._pool.live:
        engine, path = ray.get(copy.actor.__ray_call__.remote(seen))
        assert "working_dir_files" in engine
        assert os.getcwd() not in path
        assert str(Path(sys.argv[0]).parent) not in path


def test_stopped_and_asked_again(model, expected):
    scorer = model.open(PROMPT, QUESTION, go_on)
    portions = scorer.score(MASKS, go_on)
    next(portions)
    portions.close()
    assert [copy.busy for copy in model._pool.live] == [0, 0]
    assert list(scorer.score(MASKS, lambda: True)) == []
    np.testing.assert_allclose(scored(scorer), expected, atol=1e-6)


def test_a_worker_is_killed(model, expected, deaths):
    import ray

    scorer = model.open(PROMPT, QUESTION, go_on)
    victim = model._pool.live[0]
    pid = ray.get(victim.actor.__ray_call__.remote(lambda self: os.getpid()))

    def kill(portions: int) -> None:
        if portions == 2:
            os.kill(pid, signal.SIGKILL)

    np.testing.assert_allclose(scored(scorer, kill), expected, atol=1e-6)
    assert deaths
    assert victim not in model._pool.live
    until(lambda: len(model._pool.live) == 2, model)  # another took its place
    np.testing.assert_allclose(scored(scorer), expected, atol=1e-6)


def test_a_node_is_removed(model, cluster, expected, deaths):
    """The bar: two nodes, one removed while both work; all values, equal to the local ones."""
    import ray

    scorer = model.open(PROMPT, QUESTION, go_on)
    first = ray.get(
        model._pool.live[0].actor.__ray_call__.remote(
            lambda self: ray.get_runtime_context().get_node_id()
        )
    )
    (node,) = (node for node in cluster.worker_nodes if node.node_id == first)

    def remove(portions: int) -> None:
        if portions == 2:
            cluster.remove_node(node, allow_graceful=False)

    found = scored(scorer, remove)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert deaths  # it had taken work with it
    assert len(model._pool.live) == 1


def test_a_model_that_the_nodes_lack(model, folder):
    with pytest.raises(ModelError, match=r"no free CPU for ray\+hf:"):  # the other model has them
        load_quickly(str(folder))
    model._pool.copies.clear()  # as when the model is no longer used
    with pytest.raises(ModelError, match=r"On the node \S+: There is no folder /nowhere/model"):
        load("/nowhere/model")


def load_quickly(name: str) -> RayModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_pool, "_FREEING", 0.1)
        return load(name)


# ---- without a cluster --------------------------------------------------------------------------


@pytest.fixture
def unconnected(monkeypatch, tmp_path) -> pytest.MonkeyPatch:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return monkeypatch


def test_no_cluster(tmp_path):
    """In a process of its own, which cannot see that of the other tests."""
    code = (
        "import functools, ray._private.services as s\n"
        "s.find_gcs_addresses = functools.cache(lambda: set())\n"
        "from spex_engine.backends.ray import load\nload('model')"
    )
    known = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    root = str(Path(ray_backend.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {root!r})\n{code}"],
        capture_output=True,
        text=True,
        env={**known, "RAY_TMPDIR": str(tmp_path)},
    )
    assert "ModelError: There is no Ray cluster at 'auto'" in done.stderr
    assert "`ray start --head`, or set RAY_ADDRESS" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("noted", [False, True])
def test_a_cluster_that_does_not_answer(unconnected, tmp_path, noted):
    if noted:  # by a `ray start` of yesterday
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    else:
        unconnected.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ModelError, match=r"No Ray cluster answers at 127\.0\.0\.1:1 .*RAY_ADDRESS"):
        load("model")


@pytest.mark.parametrize(
    ("address", "expected"), [("local", "names no Ray cluster"), ("nonsense", "cannot be used")]
)
def test_an_address_that_is_none(unconnected, address, expected):
    unconnected.setenv("RAY_ADDRESS", address)
    with pytest.raises(ModelError, match=rf"{expected}.*`ray start --head`"):
        load("model")


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelError, match=r"pip install 'spex-lsp\[ray\]'"):
        load("model")


def test_importing_it_does_not_import_ray():
    code = "import sys, spex_engine.backends.ray; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# ---- one copy -----------------------------------------------------------------------------------


def test_masks_are_packed():
    rng = np.random.default_rng(1)
    for n in (1, 7, 8, 9, 64):
        masks = rng.random((5, n)) < 0.5
        packed = pack(masks)
        assert packed.nbytes == 5 * -(-n // 8)
        np.testing.assert_array_equal(unpack(packed, n), masks)


def test_likeness(folder, tmp_path):
    def of(path: Path) -> bytes:
        return likeness(load_causal_lm(str(path), "cpu", None))

    same = shutil.copytree(folder, tmp_path / "same", copy_function=shutil.copyfile)
    os.utime(same / "model.safetensors", (0, 0))
    assert of(same) == of(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(same)
    with torch.no_grad():
        model.lm_head.weight[:, 0] += 1e-3
    model.save_pretrained(same)
    assert of(same) != of(folder)
    assert likeness(load_causal_lm(str(folder), "cpu", "bfloat16")) != of(folder)


def test_a_copy_gives_up(folder, monkeypatch):
    replica = Replica()
    replica.load(str(folder))
    asked = (PROMPT, QUESTION)
    whole = replica.score(b"k", asked, pack(MASKS[:40]), 3)
    assert sorted(whole.rows) == list(range(40))
    replica.give_up(3)
    late = replica.score(b"k", asked, pack(MASKS[:40]), 3)
    assert (len(late.rows), late.mark) == (0, whole.mark)
    for other in (2, 4):
        assert len(replica.score(b"k", asked, pack(MASKS[:40]), other).rows) == 40


def test_a_copy_keeps_few_prompts(folder):
    replica = Replica()
    replica.load(str(folder))
    for i in range(9):
        replica.open(b"%d" % i, (PROMPT, QUESTION))
    assert len(replica._scorers) == 4
    assert b"8" in replica._scorers
    with contextlib.suppress(InputError):
        replica.open(b"bad", (PROMPT, Question(target=" ")))
    assert b"bad" not in replica._scorers
