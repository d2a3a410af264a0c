"""Plays API server and kubelet in front of a daemon, for clients that know pods and no one-time URLs.

    with-pod COMMAND...

runs the command with the server's address in $POD_API and ends with its code. There is one pod, of any name. Its
containers are made by the command:

    POST /containers/ID?command=ARG...[&tty=true][&stdin=true]   creates and starts one
    GET /containers/ID/exit                                      its exit code, once it has ended

A request of Kubernetes' API for exec, attach or portforward asks the daemon for a fresh URL, replays the head of the request
to it and then pipes bytes, as the kubelet does. Below /old/ no WebSockets are known, as before Kubernetes 1.30. What an engine
answers to the kubelet, the URL itself, is the answer to GET /cri/exec, /cri/attach and /cri/portforward with the same query.

In the pod's network these listen on 127.0.0.1:

    8000  sends back what comes, and ends where the client has ended
    8001  answers, where the client has ended, with the SHA-256 of what came
    8002  resets the connection as soon as something comes
    8003  sends 10 MiB of zero bytes, and ends
"""

import asyncio
import contextlib
import ctypes
import hashlib
import os
import pathlib
import socket
import struct
import sys
import threading
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "capnp-python"))
from monitor import IDLE, started  # noqa: E402

CLONE_NEWNET = 0x40000000
PIECE = 1 << 16
# A head larger than this is nobody's here.
HEAD = 1 << 16


class Refused(Exception):
    """The status and the text to answer with."""


class Server:
    def __init__(self, monitor, network):
        self.monitor = monitor
        self.network = network

    async def serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                try:
                    answer = await self.answer(head, reader, writer)
                    if answer is None:
                        return
                    status = "200 OK"
                except Refused as refused:
                    status, answer = refused.args
                body = answer.encode()
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()

    async def answer(self, head, reader, writer):
        """The text to answer with; None after the connection was another's."""
        lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = lines[0].split(" ")
        path, _, query = target.partition("?")
        query = urllib.parse.parse_qs(query)
        match [method, *path.strip("/").split("/")]:
            case ["POST", "containers", id]:
                await self.monitor.run(id, query["command"], terminal=flag(query, "tty"), stdin=flag(query, "stdin"))
                return ""
            case ["GET", "containers", id, "exit"]:
                return str(await self.monitor.exit_code(id))
            case ["GET", "cri", kind]:
                return await self.url(kind, query)
            case [_, *old, "api", "v1", "namespaces", _, "pods", _, kind]:
                if old == ["old"] and any(line.lower() == "upgrade: websocket" for line in lines):
                    raise Refused("400 Bad Request", "you must request SPDY")
                await self.replay(lines, await self.url(kind, query), reader, writer)
                return None
        raise Refused("404 Not Found", f"no {target} here")

    async def url(self, kind, query):
        streams = {name: flag(query, name) for name in ["stdin", "stdout", "stderr"]}
        match kind:
            case "exec":
                # As the kubelet does.
                streams["stderr"] &= not flag(query, "tty")
                more = {"command": query["command"], "tty": flag(query, "tty"), "cgroupManager": "cgroupfs"}
                asked = self.monitor.call("serveExecContainer", id=query["container"][0], **streams, **more)
            case "attach":
                asked = self.monitor.call("serveAttachContainer", id=query["container"][0], **streams)
            case "portforward":
                asked = self.monitor.call("servePortForwardContainer", netNsPath=self.network)
            case _:
                raise Refused("404 Not Found", f"a pod has no {kind}")
        try:
            url = (await asked).url
        except Exception as error:
            raise Refused("500 Internal Server Error", str(error)) from error
        if "ports" in query:
            # The plain call has no other place for them.
            url += "?ports=" + ",".join(query["ports"])
        return url

    async def replay(self, lines, url, reader, writer):
        to = urllib.parse.urlsplit(url)
        back, forth = await asyncio.open_connection(to.hostname, to.port)
        target = to.path + ("?" + to.query if to.query else "")
        lines[0] = f"{lines[0].split(' ')[0]} {target} HTTP/1.1"
        forth.write("\r\n".join([*lines, "X-Forwarded-For: 127.0.0.1", "", ""]).encode("latin-1"))
        pipes = [asyncio.create_task(pipe(reader, forth)), asyncio.create_task(pipe(back, writer))]
        try:
            # A kubelet closes both sides as soon as one of the directions has ended.
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pipes:
                task.cancel()
            forth.close()


def flag(query, name):
    return query.get(name, ["false"])[0] in ("true", "1")


async def pipe(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()


async def echo(reader, writer):
    await pipe(reader, writer)


async def digest(reader, writer):
    found = hashlib.sha256()
    while data := await reader.read(PIECE):
        found.update(data)
    writer.write(found.hexdigest().encode())


async def reset(reader, writer):
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def zeros(_reader, writer):
    for _ in range(160):
        writer.write(bytes(PIECE))
        await writer.drain()


def listener(port):
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    made.listen()
    return made


def listeners(network, ports):
    """Listening sockets in another network. Only a thread moves there, and it ends."""
    made = []

    def make():
        libc = ctypes.CDLL(None, use_errno=True)
        with open(network, "rb") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"enter {network}")
        made.extend(listener(port) for port in ports)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert len(made) == len(ports), "the services of the pod do not listen"
    return made


async def service(serve, listening):
    async def connected(reader, writer):
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            await serve(reader, writer)

    await asyncio.start_server(connected, sock=listening)


async def main():
    async with started() as monitor:
        # The pod's network is that of its first container.
        pid = await monitor.run("pod", IDLE)
        network = f"/proc/{pid}/ns/net"
        services = {8000: echo, 8001: digest, 8002: reset, 8003: zeros}
        for serve, listening in zip(services.values(), listeners(network, services), strict=True):
            await service(serve, listening)
        server = await asyncio.start_server(Server(monitor, network).serve, "127.0.0.1", 0, limit=HEAD)
        port = server.sockets[0].getsockname()[1]
        environment = os.environ | {"POD_API": f"http://127.0.0.1:{port}"}
        command = await asyncio.create_subprocess_exec(*sys.argv[1:], env=environment)
        return await command.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
