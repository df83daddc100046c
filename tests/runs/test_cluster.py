"""A cluster of several nodes measures what one process does, whatever happens to one of them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import nodes
import pytest
import tiny
from safetensors.torch import load_file

from diffmem.store.database import Row
from diffmem.store.store import Store

pytestmark = pytest.mark.slow

MINUTES = 300.0
LONGER = ("--set", "T.epochs=400", "--set", "score.every=200")
"""Long enough to be killed after a checkpoint."""
ONE_CELL = ("--set", "M.dropout=0.0")

DIES = '''
import os
import sys

def at_once(images):
    """End the process, if it is a node's."""
    if "default_worker" in sys.argv[0]:
        os._exit(1)
    return images.flatten(1).float()

def while_scoring(images):
    """End it at a batch of generated images."""
    return at_once(images) if len(images) == 12 else images.flatten(1).float()
'''
DYING = tiny.TEXT.replace("[[axes]]\nM.dropout = [0.0, 0.2]\n", "") + 'measures = ["nearest", "dies"]\n'
DYING += '[spaces.dies]\nfeatures = "dies_on_nodes:WHEN"\nthreshold = 0.5\n'


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "dies_on_nodes.py").write_text(DIES)
    return folder


@pytest.fixture(scope="module")
def cluster(modules: Path) -> Iterator[nodes.Nodes]:
    path = tiny.environment()["PYTHONPATH"]
    with nodes.two_nodes(PYTHONPATH=f"{path}{os.pathsep}{modules}") as found:
        yield found


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tiny.write(tmp_path)


def on(cluster: nodes.Nodes, study: Path, store: Path, *more: str) -> list[str]:
    return tiny.command("run", study, "--store", store, "--cluster", f"ray://{cluster.address}", *more)


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=tiny.environment(), start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def with_modules(command: list[str], modules: Path) -> subprocess.CompletedProcess[str]:
    path = f"{tiny.environment()['PYTHONPATH']}{os.pathsep}{modules}"
    return subprocess.run(
        command,
        env=tiny.environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=MINUTES,
        check=False,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, errors = process.communicate(timeout=MINUTES)
    assert "Traceback" not in errors, errors
    return process.returncode, said, errors


def alone(study: Path, folder: Path, *more: str) -> Store:
    """Return the store of one process."""
    store = folder / "alone" / "s.duckdb"
    store.parent.mkdir()
    found = tiny.here("run", study, "--store", store, *more)
    assert found.returncode == 0, found.stderr
    return Store(store)


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    """Return what one process measures of the longer study."""
    folder = tmp_path_factory.mktemp("longer")
    return tiny.results(alone(tiny.write(folder), folder, *LONGER))


def outcomes(store: Path) -> list[str]:
    return [row["outcome"] for row in Store(store).rows("SELECT outcome FROM attempts ORDER BY started_at")]


def left_at_work(store: Path) -> list[str]:
    return sorted(path.name for path in (store.parent / "work").iterdir())


def test_two_nodes_measure_what_one_process_does_bit_by_bit_and_can_be_watched(cluster, study, tmp_path):
    store = tmp_path / "cluster" / "s.duckdb"
    with running(on(cluster, study, store)) as process:
        tiny.wait_for(process, "epoch 12")
        assert Store(store).rows("SELECT epoch FROM checkpoints")[0] == {"epoch": 12}
        code, said, errors = ended(process)
    assert code == 0, errors
    assert "2 of 2 cells are finished" in said
    expected = alone(study, tmp_path)
    tiny.check_equal(tiny.results(Store(store)), tiny.results(expected))
    for table in ("held_out", "training_images", "notes"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert str(Store(store).rows(query)) == str(expected.rows(query))
    assert outcomes(store) == ["finished", "finished"]
    for cell, kept in expected.kept_weights().items():
        found = Store(store).kept_weights()[cell]
        assert list(found) == list(kept) == [30]
        mine, theirs = load_file(found[30]), load_file(kept[30])
        assert all(mine[name].equal(theirs[name]) for name in theirs)
    assert left_at_work(store) == []
    assert list(Store(store).states.iterdir()) == []


def test_a_cell_whose_node_dies_goes_on_elsewhere_from_its_last_state(cluster, study, tmp_path):
    store = tmp_path / "cluster" / "s.duckdb"
    cluster.kill()  # so that the cell can be on one node alone
    try:
        with running(on(cluster, study, store, *ONE_CELL, *LONGER)) as process:
            tiny.wait_for(process, "epoch 200")
            cluster.add()
            cluster.kill()
            code, said, errors = ended(process)
    finally:
        cluster.add()
    assert code == 0, errors
    assert "its node or its process died" in said
    assert "going on at step 200 of 400" in said
    assert outcomes(store) == ["lost", "finished"]
    tiny.check_equal(tiny.results(Store(store)), tiny.results(alone(study, tmp_path, *ONE_CELL, *LONGER)))
    assert left_at_work(store) == []


def test_a_run_whose_driver_is_killed_goes_on_by_the_same_command(cluster, study, longer, tmp_path):
    store = tmp_path / "cluster" / "s.duckdb"
    command = on(cluster, study, store, *LONGER)
    with running(command) as process:
        tiny.wait_for(process, "epoch 200")
        process.kill()
    with running(command) as process:
        code, said, errors = ended(process)
    assert code == 0, errors
    assert "going on at step 200 of 400" in said
    assert "training from the start" not in said
    assert sorted(outcomes(store)) == ["finished", "finished", "lost", "lost"]
    tiny.check_equal(tiny.results(Store(store)), longer)


def test_a_signal_saves_every_cell_and_the_same_command_goes_on(cluster, study, longer, tmp_path):
    store = tmp_path / "cluster" / "s.duckdb"
    command = on(cluster, study, store, *LONGER)
    with running(command) as process:
        tiny.wait_for(process, "epoch 200")
        process.send_signal(signal.SIGINT)
        code, _, errors = ended(process)
    assert code == 128 + signal.SIGINT, errors
    assert "everything is saved" in errors
    assert set(outcomes(store)) == {"interrupted"}
    saved = [int(name.split(".")[2]) for name in left_at_work(store)]
    assert max(saved) > 200 or len(saved) == 2
    with running(command) as process:
        code, said, errors = ended(process)
    assert code == 0, errors
    assert said.count("going on at step") == outcomes(store).count("interrupted")
    tiny.check_equal(tiny.results(Store(store)), longer)


def test_a_run_begun_on_one_machine_goes_on_from_its_states(cluster, study, longer, tmp_path):
    store = tmp_path / "cluster" / "s.duckdb"
    with running(tiny.command("run", study, "--store", store, *LONGER)) as process:
        tiny.wait_for(process, "epoch 200")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 128 + signal.SIGTERM
    with running(on(cluster, study, store, *LONGER)) as process:
        code, said, errors = ended(process)
    assert code == 0, errors
    assert said.count("going on at step") == 1
    tiny.check_equal(tiny.results(Store(store)), longer)
    assert left_at_work(store) == []
    assert list(Store(store).states.iterdir()) == []


def test_a_search_finds_what_one_process_finds(cluster, tmp_path):
    """What is known of both ends, from elsewhere, has each curve searched between them, for some rounds."""
    text = tiny.TEXT + '[emm]\nsearch = "bisect"\nrange = [4, 32]\ntolerance = 0.5\nepsilon = 0.5\n'
    study, both = tiny.load(tmp_path, text), []
    for name in ("cluster", "alone"):
        both.append(Store(tmp_path / name / "s.duckdb"))
        tiny.register(both[-1], study, [*study.at(4), *study.at(32)])
        for size, ratio in ((4, 1.0), (32, 0.0)):
            for entry in study.at(size):
                tiny.measure(both[-1], entry.cell, [ratio] * len(tiny.EPOCHS))
    with running(on(cluster, Path(study.path), both[0].path)) as process:
        code, _, errors = ended(process)
    assert code == 0, errors
    assert tiny.here("run", study.path, "--store", both[1].path).returncode == 0
    tiny.check_equal(*map(tiny.results, both))
    sizes = both[0].rows("SELECT DISTINCT configuration->'$.P.size' AS size FROM cells ORDER BY ALL")
    assert len(sizes) > 3


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(cluster, tmp_path):
    text = tiny.TEXT.replace("M.dropout = [0.0, 0.2]", "T.lr = [1e30, 5e-3]")
    study, store = tiny.write(tmp_path, text), tmp_path / "cluster" / "s.duckdb"
    with running(on(cluster, study, store)) as process:
        code, said, errors = ended(process)
    assert code == 1
    assert "failed: the training loss is" in said
    assert "1 of 2 cells failed" in errors
    assert sorted(outcomes(store)) == ["failed", "finished"]


@pytest.mark.parametrize("when", ["at_once", "while_scoring"])
def test_a_cell_that_kills_its_process_each_time_counts_as_failed(cluster, modules, when, tmp_path):
    study, store = tiny.write(tmp_path, DYING.replace("WHEN", when)), tmp_path / "cluster" / "s.duckdb"
    found = with_modules(on(cluster, study, store), modules)
    assert found.returncode == 1
    assert "3 times in a row without getting further; does it need more memory?" in found.stdout
    assert "Traceback" not in found.stderr
    assert outcomes(store)[-1] == "failed"


def test_files_that_cannot_be_kept_at_work_end_the_run_before_it_trains(cluster, study, tmp_path):
    store = tmp_path / "cluster" / "s.duckdb"
    with running(on(cluster, study, store, "--work", "nowhere://folder")) as process:
        code, said, errors = ended(process)
    assert code == 1
    assert errors.startswith("nowhere://folder: cannot keep the files of a run there")
    assert "epoch" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            'cluster.Origin.here = lambda *_: cluster.Origin("99.0", "/")',
            f"on {socket.gethostname()}: diffmem {version('diffmem')} is installed here, and 99.0 where the run was "
            "started; install the same; what was saved is kept, run the same command again\n",
        ),
        (
            "def no_task(*_):\n    raise ImportError('not on this node')\n    yield\ncluster._work_on = no_task",
            "M.dropout = 0.0: its task failed on the cluster: ImportError: not on this node; is diffmem "
            f"{version('diffmem')} installed on all nodes?\n",
        ),
    ],
    ids=["another diffmem", "no diffmem"],
)
def test_a_node_that_is_not_as_the_drivers_ends_the_run_in_a_sentence(cluster, change, said, study, tmp_path):
    """Only the driver is changed, so that the nodes differ from it."""
    script = tmp_path / "driver.py"
    script.write_text(
        f"from diffmem.runs import cluster_driver as cluster\n{change}\nfrom diffmem.cli import main\nmain()\n"
    )
    command = [sys.executable, str(script), *on(cluster, study, tmp_path / "cluster" / "s.duckdb")[3:]]
    with running(command) as process:
        code, _, errors = ended(process)
    assert (code, errors.replace("M.dropout = 0.2", "M.dropout = 0.0")) == (1, said)  # whichever was first


def test_no_cluster_at_an_address_is_said_in_a_sentence(study, tmp_path):
    found = tiny.diffmem("run", study, "--store", tmp_path / "s.duckdb", "--cluster", "ray://127.0.0.1:1")
    assert found.returncode == 1
    assert found.stderr == (
        "--cluster: no Ray cluster can be used at 127.0.0.1:1: [Errno 111] Connection refused; `ray start --head` "
        "starts one, and prints its address\n"
    )


def test_without_a_cluster_this_machine_becomes_one(study, tmp_path):
    store = tmp_path / "cluster" / "s.duckdb"
    found = tiny.diffmem("run", study, "--store", store, "--cluster", "ray", RAY_ADDRESS="local")
    assert found.returncode == 0, found.stderr
    assert "a cluster of 1 node" in found.stdout
    tiny.check_equal(tiny.results(Store(store)), tiny.results(alone(study, tmp_path)))


def test_without_ray_it_says_what_to_install(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    found = tiny.here("run", study, "--store", tmp_path / "s.duckdb", "--cluster", "ray")
    assert found.returncode == 2
    assert found.stderr == "--cluster ray needs Ray: `pip install 'diffmem[ray]'`, on every node\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--cluster", "ray", "--processes", "2"),
            "--cluster hands out cells from one process; leave out --processes, --split and --shard",
        ),
        (
            ("--cluster", "ray", "--shard", "1/2"),
            "--cluster hands out cells from one process; leave out --processes, --split and --shard",
        ),
        (("--gpus-per-cell", "0.5"), "--gpus-per-cell and --work are for a run with --cluster"),
        (("--work", "there"), "--gpus-per-cell and --work are for a run with --cluster"),
        (("--cluster", "slurm"), "'slurm' is not ray, or as ray://10.0.0.1:6379"),
        (("--cluster", "ray://"), "'ray://' is not ray, or as ray://10.0.0.1:6379"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said, study, tmp_path):
    found = tiny.here("run", study, "--store", tmp_path / "s.duckdb", *options)
    assert found.returncode == 2
    assert said in found.stderr
    assert not (tmp_path / "s.duckdb").exists()
