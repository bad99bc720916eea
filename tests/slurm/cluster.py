"""A real SLURM cluster on this machine, out of Debian's packages, for root or an ordinary user.

``python tests/slurm/cluster.py up FOLDER`` starts munge, the controller, two nodes of four
processors and two fake GPUs each and, with ``--accounting``, the accounting database; it prints
what a shell has to evaluate. ``down FOLDER`` ends it all. Nothing is written outside the folder.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from shutil import which

import daemons
from configuration import SLURM_CONF, SLURMDBD_CONF, WITH_ACCOUNTING, WITHOUT_ACCOUNTING
from daemons import ClusterError

SBIN = "/usr/sbin"
PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
}
TABLES = ("mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data")
NODES = ("127.0.0.1", "127.0.0.2")  # names that resolve on every machine
LONGEST_FOLDER = 60  # characters: a socket's path has to fit into 108


@dataclass(frozen=True)
class Cluster:
    """A cluster in a folder; what is running is found from the folder alone, by any process.

    Args:
        folder: absolute, of ``LONGEST_FOLDER`` characters at most.
        port: the first of twenty TCP ports of its own.
        accounting: with slurmdbd, so that ``sacct`` answers.
        array_size: ``MaxArraySize``.
    """

    folder: Path
    port: int = 16800
    accounting: bool = False
    array_size: int = 1001

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs, without the variables of a job that this process may be in."""
        usual = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        path = f"{os.environ['PATH']}:{SBIN}"
        return {**usual, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def start(self) -> None:
        """Start every daemon, and wait until both nodes are idle.

        Raises:
            ClusterError: with the ends of the daemons' logs.
        """
        self._check()
        self.stop()
        for name in ("state", "gpus", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munge's socket is for everybody
        self._configure()
        try:
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self._start_slurm()
        except ClusterError as error:
            logs = "\n".join(map(_end_of_log, sorted(self.folder.glob("*.out"))))
            self.stop()
            raise ClusterError(f"{error}\n{logs}") from error

    def stop(self) -> None:
        """Cancel the jobs and end the daemons, if there are any."""
        if daemons.running(self.folder, "slurmctld"):
            self.client("scancel", "--me", check=False)
            daemons.happens(lambda: not self.client("squeue", "-h", check=False), 20)
        for node in NODES:
            self.kill_node(node)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            daemons.end(self.folder, name)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        conf = str(self.folder / "slurm.conf")
        self._start(f"slurmd.{node}", "slurmd", "-D", "-N", node, "-f", conf, mark=self._mark(node))

    def kill_node(self, node: str, *, jobs: bool = True) -> None:
        """End a node without a word, as a power cut does.

        Args:
            node: one of ``NODES``.
            jobs: with all that runs on it; False: its daemon only.
        """
        daemons.end(self.folder, f"slurmd.{node}", signal.SIGKILL)
        own = f"SLURM_CONF={self.folder / 'slurm.conf'}"
        for mark in (self._mark(node), f"SLURMD_NODENAME={node}") if jobs else ():
            for pid in daemons.with_variables(own, mark):
                daemons.kill(pid, signal.SIGKILL)

    def client(self, *command: str, check: bool = True) -> str:
        """The output of ``squeue``, ``scontrol`` and the like."""
        done = self._run(command)
        if check and done.returncode:
            raise ClusterError(f"{shlex.join(command)}: {done.stderr or done.stdout}")
        return done.stdout.strip()

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess:
        options = {"capture_output": True, "text": True, "timeout": 60, "check": False}
        return subprocess.run(command, env=self.environment, **options)

    def _mark(self, node: str) -> str:
        """A variable in the environment of a node's daemon, and of those that look after jobs."""
        return f"TEST_NODE={self.folder}:{node}"

    def _start(self, name: str, *command: str, mark: str = "") -> None:
        more = dict([mark.split("=", 1)]) if mark else {}
        path = which(command[0], path=self.environment["PATH"])
        assert path is not None, "_check has looked"
        daemons.start(self.folder, name, [path, *command[1:]], {**self.environment, **more})

    def _check(self) -> None:
        if not self.folder.is_absolute() or len(str(self.folder)) > LONGEST_FOLDER:
            raise ClusterError(f"{self.folder} is not absolute, or too long for a socket")
        missing = missing_packages(accounting=self.accounting)
        if missing:
            raise ClusterError(f"apt-get install --no-install-recommends {' '.join(missing)}")

    def _configure(self) -> None:
        facts = self._facts()
        accounting = WITH_ACCOUNTING if self.accounting else WITHOUT_ACCOUNTING
        facts["accounting"] = accounting.format(**facts)
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**facts))
        secret = self.folder / "slurmdbd.conf"
        secret.touch(mode=0o600)
        secret.write_text(SLURMDBD_CONF.format(**facts))
        for index in range(2):
            gpu = self.folder / "gpus" / f"nvidia{index}"
            gpu.unlink(missing_ok=True)
            gpu.symlink_to("/dev/null")
        gpus = f"NodeName={facts['nodes']} Name=gpu File={self.folder}/gpus/nvidia[0-1]\n"
        (self.folder / "gres.conf").write_text(gpus)

    def _facts(self) -> dict[str, object]:
        host = socket.gethostname().partition(".")[0]
        address = _address(host)
        local = address.startswith("127.")  # else the daemons listen everywhere, behind munge
        return {
            "folder": self.folder,
            "host": host,
            "address": address if local else "127.0.0.1",
            "listening": "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if local else "",
            "user": getuser(),
            "nodes": "127.0.0.[1-2]",
            "size": "CPUs=4 RealMemory=8000 Gres=gpu:2",
            "array_size": self.array_size,
            "port": self.port,
            "controller_port": self.port + 1,
            "node_port": self.port + 2,
            "database_port": self.port + 3,
            "tables_port": self.port + 4,
            "ports": f"[{self.port + 11}-{self.port + 12}]",
        }

    def _start_munge(self) -> None:
        key, at = self.folder / "munge.key", f"{self.folder}/munge.socket"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = {"pid-file": "munged.daemon", "log-file": "munged.log", "seed-file": "munge.seed"}
        options = [f"--{name}={self.folder}/{file}" for name, file in files.items()]
        words = [f"--key-file={key}", f"--socket={at}", "--num-threads=2", *options]
        self._start("munged", "munged", "-F", *words)
        ready = daemons.happens(lambda: self.client("munge", "-n", "-S", at, check=False), 15)
        if not ready:
            raise ClusterError("munge does not answer")

    def _start_accounting(self) -> None:
        command = self._database()
        if not (self.folder / "mysql" / "mysql").is_dir():
            self._fill(command)
        grant = self.folder / "grant.sql"
        grant.write_text(
            "CREATE DATABASE IF NOT EXISTS slurm_acct;\n"
            "CREATE OR REPLACE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';\n"
            "GRANT ALL ON slurm_acct.* TO 'slurm'@'127.0.0.1';\n"
        )
        self._start("mariadbd", *command, f"--init-file={grant}")
        if not daemons.happens(lambda: daemons.answers(self.port + 4), 60):
            raise ClusterError("the database does not answer")
        self._start("slurmdbd", "slurmdbd", "-D")
        ask = ["sacctmgr", "--noheader", "show", "cluster"]
        if not daemons.happens(lambda: self._run(ask).returncode == 0, 60):
            raise ClusterError("slurmdbd does not answer")

    def _database(self) -> list[str]:
        options = {
            "datadir": self.folder / "mysql",
            "pid-file": self.folder / "mariadbd.daemon",
            "socket": self.folder / "mysql.socket",
            "bind-address": "127.0.0.1",
            "port": self.port + 4,
            "innodb-buffer-pool-size": "32M",
            "innodb-log-file-size": "16M",
            "innodb-lock-wait-timeout": 900,
            "innodb-flush-log-at-trx-commit": 0,
            "performance-schema": "OFF",
            "lc-messages-dir": "/usr/share/mysql",
            "user": getuser(),
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        return ["mariadbd", "--no-defaults", "--skip-name-resolve", *words]

    def _fill(self, command: list[str]) -> None:
        """Make the system's tables, as mariadb-install-db does with the help of more packages."""
        (self.folder / "mysql").mkdir(exist_ok=True)
        first = f"create database mysql;\nuse mysql;\nset @auth_root_socket='{getuser()}';\n"
        tables = [Path(f"/usr/share/mysql/{name}.sql").read_text("utf-8") for name in TABLES]
        done = subprocess.run(
            [*command, "--bootstrap", "--enforce-storage-engine=", "--log-warnings=0"],
            input=first + "".join(tables),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"the database's tables cannot be made: {done.stderr[-2000:]}")

    def _start_slurm(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", "-c", "-f", str(self.folder / "slurm.conf"))
        if not daemons.happens(lambda: " UP" in self.client("scontrol", "ping", check=False), 30):
            raise ClusterError("the controller does not answer")
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Until both nodes are idle.

        Raises:
            ClusterError: they are not, after half a minute.
        """
        ask = ("sinfo", "-h", "-N", "-p", "test", "-t", "idle", "-o", "%N")
        if not daemons.happens(lambda: len(self.client(*ask).split()) == len(NODES), 30):
            raise ClusterError(f"the nodes are not idle: {self.client('sinfo', '-N', '-l')}")


def missing_packages(*, accounting: bool) -> list[str]:
    """The packages to install before a cluster can start."""
    wanted = list(PROGRAMS) if accounting else list(PROGRAMS)[:4]
    path = f"{os.environ['PATH']}:{SBIN}"
    return [PROGRAMS[program] for program in wanted if which(program, path=path) is None]


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _end_of_log(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").splitlines()[-8:]
    return "\n".join([f"--- {log}", *lines])


def main() -> None:
    """Start or stop a cluster from a shell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("up", "down", "packages"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("/tmp/scalify-slurm"))
    parser.add_argument("--accounting", action="store_true")
    parser.add_argument("--port", type=int, default=16900, help="the first of twenty")
    it = parser.parse_args()
    cluster = Cluster(it.folder.absolute(), it.port, it.accounting)
    if it.what == "packages":
        print(" ".join(missing_packages(accounting=True)))
    elif it.what == "down":
        cluster.stop()
    else:
        cluster.start()
        print(f"export SLURM_CONF={cluster.folder}/slurm.conf PATH=$PATH:{SBIN}")


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        sys.exit(f"error: {error}")
