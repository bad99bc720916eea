"""Real clusters, one with accounting and one without; collected only by ``make test-slurm``."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster

collect_ignore_glob = [] if os.environ.get("SCALIFY_TEST_SLURM") else ["test_*.py"]
KINDS = {"accounting": True, "no-accounting": False}


@pytest.fixture(
    scope="session",
    params=list(KINDS),
)
def cluster(request) -> Iterator[Cluster]:
    """A running cluster, which the commands of this process ask."""
    accounting = KINDS[request.param]
    with TemporaryDirectory(prefix="slurm-") as folder, pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(Path(folder), port=16800 + 40 * accounting, accounting=accounting)
        cluster.start()
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
            patch.delenv(name)
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster
        cluster.stop()
