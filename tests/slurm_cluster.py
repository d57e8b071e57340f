"""A Slurm cluster of this one machine, with accounts, for as long as a test needs it.

The programs are those of Debian's packages slurm-wlm, slurmdbd, munge and mariadb-server. Their daemons run as the user
of the test, and keep all that they write in one directory.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

COMMANDS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
COMMANDS += ("mariadb-install-db", "mariadb", "sbatch", "srun", "scancel", "squeue", "sacct", "sacctmgr")
PATIENCE = 60  # seconds for a daemon to answer

CLUSTER = """
ClusterName=one
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=1
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={host}
AccountingStoragePort={ports[2]}
AccountingStoragePass={place}/munge.socket
SchedulerParameters=sched_interval=1
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""
ACCOUNTS = """
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
DbdHost={host}
DbdPort={ports[2]}
SlurmUser={user}
PidFile={place}/slurmdbd.pid
LogFile={place}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[3]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def missing() -> list[str]:
    """The commands of these packages that are not here."""
    return [command for command in COMMANDS if _found(command) is None]


@contextmanager
def cluster(place: Path) -> Iterator[dict[str, str]]:
    """The cluster, in a directory of a short name (a socket's path has 108 bytes at most), and what its clients need in
    their environment.

    Raises:
        TimeoutError: a daemon does not answer; it names it, with the end of what it wrote.
    """
    facts = {"place": place, "host": socket.gethostname().split(".")[0], "user": getpass.getuser()}
    facts["ports"] = _ports(4)
    for directory in ("state", "spool", "accounts"):
        (place / directory).mkdir()
    for name, content in {"slurm.conf": CLUSTER, "slurmdbd.conf": ACCOUNTS}.items():
        (place / name).write_text(content.format(**facts))
        (place / name).chmod(0o600)
    (place / "munge.key").write_bytes(os.urandom(1024))
    (place / "munge.key").chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}
    database = ["--no-defaults", f"--datadir={place}/accounts", f"--socket={place}/accounts.socket"]

    def call(*words: str) -> bool:
        program = _found(words[0]) or words[0]
        return subprocess.run([program, *words[1:]], env=environment, capture_output=True, check=False).returncode == 0

    with ExitStack() as running:

        def start(name: str, *words: str, answers: Callable[[], bool]) -> None:
            log = running.enter_context((place / f"{name}.txt").open("wb"))
            process = subprocess.Popen([str(_found(name)), *words], env=environment, stdout=log, stderr=log)
            running.callback(_stop, process)
            deadline = time.monotonic() + PATIENCE
            while not answers():
                if time.monotonic() > deadline or process.poll() is not None:
                    raise TimeoutError(f"{name} does not answer: {(place / f'{name}.txt').read_text()[-2000:]}")
                time.sleep(0.2)

        socket_file, key = place / "munge.socket", place / "munge.key"
        start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_file}",
            f"--pid-file={place}/munged.pid", f"--log-file={place}/munged.log", f"--seed-file={place}/munge.seed",
            answers=socket_file.exists,
        )  # fmt: skip
        who = f"--user={facts['user']}"
        assert call("mariadb-install-db", *database[:2], who, "--auth-root-authentication-method=normal")
        address = ["--bind-address=127.0.0.1", f"--port={facts['ports'][3]}", who]
        sql = "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm.* to slurm@'127.0.0.1'"
        client = ["mariadb", "--no-defaults", database[2], "--user=root", "--execute"]
        start("mariadbd", *database, *address, answers=lambda: call(*client, "select 1"))
        assert call(*client, sql)
        start("slurmdbd", "-D", answers=lambda: call("sacctmgr", "--immediate", "add", "cluster", "one"))
        start("slurmctld", "-D", "-f", str(place / "slurm.conf"), answers=lambda: call("squeue"))
        start("slurmd", "-D", "-f", str(place / "slurm.conf"), answers=lambda: call("srun", "--immediate=20", "true"))
        yield {"SLURM_CONF": environment["SLURM_CONF"]}


def _found(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
