"""A daemon to test, driven through pycapnp: started, asked and stopped as engines do it."""

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import capnp

SCHEMA = pathlib.Path(__file__).resolve().parents[3] / "schema" / "conmon.capnp"
Conmon = capnp.load(str(SCHEMA)).Conmon

DAEMON = os.environ["HOLDFAST_BIN"]
RUNC = shutil.which("runc")
# No step takes longer unless something is wrong.
LIMIT = 30

IDLE = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"]


async def eventually(what, look):
    """What `look` returns as soon as that is something."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        seen = look()
        if seen:
            return seen
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited {LIMIT} s in vain for {what}")


def within(call):
    return asyncio.wait_for(call, LIMIT)


def alive(pid):
    """Whether the process runs; one that ended and was not collected does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Monitor:
    """A daemon in the background with directories of its own, and one connection to it."""

    def __init__(self, place):
        self.place = pathlib.Path(place)
        self.run_dir = self.place / "run"
        self.pid = None
        self.api = None
        self.ids = []

    def start(self):
        rootfs(self.place / "rootfs")
        command = [DAEMON, "--runtime", RUNC, "--runtime-dir", self.run_dir, "--runtime-root", self.place / "root"]
        subprocess.run([*command, "--log-driver", "none"], stdin=subprocess.DEVNULL, check=True, timeout=LIMIT)
        # At once, as a client does: what is not there now comes too late.
        pidfile = self.run_dir / "pidfile"
        self.pid = int(pidfile.read_text())
        pidfile.unlink()

    async def connect(self):
        path = str(self.run_dir / "conmon.sock")
        stream = await capnp.AsyncIoStream.create_unix_connection(path)
        client = capnp.TwoPartyClient(stream)
        # Not waited for: the first call goes out behind the bootstrap.
        return client.bootstrap().cast_as(Conmon)

    async def call(self, method, **request):
        """Calls a method with the fields of its request; returns its response."""
        return (await within(getattr(self.api, method)(request=request))).response

    def file(self, id, name):
        return self.place / "c" / id / name

    def bundle(self, id, args, terminal):
        """Writes a bundle. The directory's name is unique, which makes the cgroup's name so."""
        bundle = self.place / "c" / id
        bundle.mkdir(parents=True)
        cgroup = f"/{self.place.name}-{id}"
        bundle.joinpath("config.json").write_text(json.dumps(config(self.place / "rootfs", args, terminal, cgroup)))
        return bundle

    async def create(self, id, args, terminal=False, **more):
        bundle = self.bundle(id, args, terminal)
        self.ids.append(id)
        log = {"type": "containerRuntimeInterface", "path": str(self.file(id, "log"))}
        request = {"exitPaths": [str(self.file(id, "exit"))], "logDrivers": [log], "cgroupManager": "cgroupfs"}
        request |= {"id": id, "bundlePath": str(bundle), "terminal": terminal}
        return (await self.call("createContainer", **(request | more))).containerPid

    async def run(self, id, args, **more):
        pid = await self.create(id, args, **more)
        self.runc("start", id)
        return pid

    async def exec(self, id, *command, **more):
        return await self.call("execSyncContainer", id=id, command=list(command), cgroupManager="cgroupfs", **more)

    def runc(self, *arguments):
        subprocess.run([RUNC, "--root", self.place / "root", *arguments], check=True, timeout=LIMIT)

    def log(self, id):
        """(stream, line) of each record."""
        path = self.file(id, "log")
        lines = path.read_bytes().decode().split("\n")[:-1] if path.exists() else []
        return [(line.split(" ", 3)[1], line.split(" ", 3)[3]) for line in lines]

    async def exit_code(self, id):
        path = self.file(id, "exit")
        return int(await eventually(f"the exit file of {id}", lambda: path.exists() and path.read_text()))

    async def stop(self, how=signal.SIGTERM):
        os.kill(self.pid, how)
        await eventually("the end of the daemon", lambda: not alive(self.pid))

    def clean_up(self):
        if self.pid is not None and alive(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        for id in self.ids:
            delete = [RUNC, "--root", self.place / "root", "delete", "--force", id]
            subprocess.run(delete, stderr=subprocess.DEVNULL, check=False, timeout=LIMIT)


@contextlib.asynccontextmanager
async def started():
    """A daemon, connected to. Whatever happens, nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="hf-", ignore_cleanup_errors=True) as place:
        monitor = Monitor(place)
        try:
            async with capnp.kj_loop():
                monitor.start()
                monitor.api = await monitor.connect()
                yield monitor
        finally:
            monitor.clean_up()


def rootfs(path):
    """A static busybox with all its applets."""
    for name in ["bin", "dev", "proc", "sys", "tmp", "etc"]:
        (path / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    shutil.copy(busybox, path / "bin/busybox")
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout
    for applet in listed.split():
        if applet != "busybox":
            (path / "bin" / applet).symlink_to("busybox")


def config(root, args, terminal, cgroup):
    def mount(kind, path):
        return {"type": kind, "source": kind, "destination": path}

    capabilities = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"]
    process = {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {kind: capabilities for kind in ["bounding", "effective", "permitted"]},
    }
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root)},
        "process": process,
        "mounts": [mount("proc", "/proc"), mount("tmpfs", "/dev"), mount("devpts", "/dev/pts")],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ["pid", "ipc", "uts", "mount", "network"]],
        },
    }


class Packets:
    """A socket of whole packets, such as those for attach and for descriptors."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(str(path))
        self.socket.setblocking(False)

    async def send(self, packet):
        await within(asyncio.get_running_loop().sock_sendall(self.socket, packet))

    async def receive(self):
        """The next packet; b"" at the end."""
        return await within(asyncio.get_running_loop().sock_recv(self.socket, 9000))

    async def send_fds(self, packet, fds):
        # A packet is small and the peer reads: this does not wait.
        socket.send_fds(self.socket, [packet], fds)

    def close(self):
        self.socket.close()
