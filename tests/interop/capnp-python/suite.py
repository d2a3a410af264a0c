"""The control interface, spoken by a second implementation of Cap'n Proto. Names are those of the schema."""

import asyncio
import json
import os
import pathlib
import signal
import stat
import struct
import sys
import unittest

import capnp

from monitor import IDLE, Packets, alive, eventually, started, within
import websocket

STDOUT, STDERR, DONE = 2, 3, b"\0"


def on_a_daemon(test):
    """Runs the test with a daemon of its own."""

    def body(self):
        async def with_daemon():
            async with started() as monitor:
                await test(self, monitor)

        asyncio.run(with_daemon())

    body.__name__ = test.__name__
    return body


class Suite(unittest.TestCase):
    async def refused(self, call, text):
        with self.assertRaises(capnp.KjException) as caught:
            await call
        self.assertIn(text, str(caught.exception))

    @on_a_daemon
    async def test_version_tells_who_answers(self, monitor):
        brief = await monitor.call("version")
        self.assertEqual(brief.processId, monitor.pid)
        for field in ["version", "commit", "buildDate", "target", "rustVersion", "cargoVersion"]:
            self.assertTrue(getattr(brief, field), field)
        self.assertEqual((len(brief.version.split(".")), brief.cargoTree), (3, ""))
        verbose = await monitor.call("version", verbose=True, metadata=[{"key": "traceparent", "value": "?"}])
        self.assertIn("holdfast", verbose.cargoTree)

    @on_a_daemon
    async def test_a_container_runs_and_its_output_and_exit_code_are_written_down(self, monitor):
        pid = await monitor.run("c", ["sh", "-c", "echo out; echo err >&2; exit 42"])
        self.assertGreater(pid, 0)
        self.assertEqual(await monitor.exit_code("c"), 42)
        self.assertEqual(sorted(monitor.log("c")), [("stderr", "err"), ("stdout", "out")])

    @on_a_daemon
    async def test_a_container_that_cannot_be_made_fails_its_call_alone(self, monitor):
        await self.refused(monitor.create("bad", ["invalid"]), "not found in $PATH")
        await self.refused(monitor.call("reopenLogContainer", id="bad"), "not-found")
        self.assertEqual((await monitor.call("version")).processId, monitor.pid)

    @on_a_daemon
    async def test_exec_answers_code_and_output(self, monitor):
        await monitor.run("c", IDLE)
        done = await monitor.exec("c", "sh", "-c", "printf out; printf err >&2; exit 3")
        self.assertEqual((done.exitCode, done.stdout, done.stderr, done.timedOut), (3, b"out", b"err", False))
        terminal = await monitor.exec("c", "sh", "-c", "echo out; echo err >&2", terminal=True)
        self.assertEqual((terminal.exitCode, terminal.stdout, terminal.stderr), (0, b"out\r\nerr\r\n", b""))
        late = await monitor.exec("c", "sh", "-c", "echo begun; exec sleep 100", timeoutSec=1)
        self.assertEqual((late.timedOut, late.stdout), (True, b"begun\n"))
        data = bytes(range(256)) * 4096
        (monitor.place / "rootfs/data").write_bytes(data)
        self.assertEqual((await monitor.exec("c", "cat", "/data")).stdout, data)

    @on_a_daemon
    async def test_calls_run_side_by_side_and_a_cancelled_one_hurts_no_other(self, monitor):
        await monitor.run("c", IDLE)
        slow = asyncio.ensure_future(monitor.exec("c", "sh", "-c", "read x </gate; echo slow"))
        os.mkfifo(monitor.place / "rootfs/gate")
        given_up = asyncio.ensure_future(monitor.exec("c", "sleep", "100", timeoutSec=1))
        await asyncio.sleep(0)
        fast = [monitor.exec("c", "echo", str(number)) for number in range(10)]
        answers = [answer.stdout for answer in await asyncio.gather(*fast)]
        self.assertEqual(answers, [f"{number}\n".encode() for number in range(10)])
        given_up.cancel()
        self.assertFalse(slow.done())
        opened = await asyncio.to_thread(open, monitor.place / "rootfs/gate", "w")
        with opened as gate:
            gate.write("go\n")
        self.assertEqual((await slow).stdout, b"slow\n")

    @on_a_daemon
    async def test_a_log_is_reopened_by_its_path(self, monitor):
        await monitor.run("c", ["sh", "-c", "echo before; while [ ! -e /go ]; do sleep 0.01; done; echo after"])
        await eventually("the first line", lambda: monitor.log("c"))
        log = monitor.file("c", "log")
        log.rename(log.with_suffix(".1"))
        await monitor.call("reopenLogContainer", id="c")
        self.assertEqual(log.read_bytes(), b"")
        (monitor.place / "rootfs/go").touch()
        self.assertEqual(await monitor.exit_code("c"), 0)
        self.assertEqual(monitor.log("c"), [("stdout", "after")])
        self.assertIn(b"before", log.with_suffix(".1").read_bytes())

    @on_a_daemon
    async def test_a_terminal_is_resized_also_before_the_start(self, monitor):
        await monitor.create("tty", ["stty", "size"], terminal=True)
        await monitor.call("setWindowSizeContainer", id="tty", width=10, height=20)
        monitor.runc("start", "tty")
        self.assertEqual(await monitor.exit_code("tty"), 0)
        self.assertEqual(monitor.log("tty"), [("stdout", "20 10\r")])
        await monitor.create("pipes", IDLE)
        await self.refused(monitor.call("setWindowSizeContainer", id="pipes", width=1, height=1), "no terminal")

    @on_a_daemon
    async def test_attach_carries_both_streams_and_bytes_of_every_kind(self, monitor):
        await monitor.run("c", ["sh", "-c", "echo ready >&2; cat; echo end >&2; exit 5"], stdin=True)
        await eventually("the first line", lambda: monitor.log("c"))
        path = monitor.file("c", "attach")
        await monitor.call("attachContainer", id="c", socketPath=str(path), stopAfterStdinEof=True)
        mode = path.stat().st_mode
        self.assertTrue(stat.S_ISSOCK(mode) and mode & 0o777 == 0o700, oct(mode))
        first, second = Packets(path), Packets(path)
        data = b"\0\xff\n" * 6000
        # Both are clients once both have seen something.
        await first.send(b"hello\n")
        for client in [first, second]:
            self.assertEqual(await client.receive(), bytes([STDOUT]) + b"hello\n")
        await first.send(data)
        first.socket.shutdown(1)
        for client in [first, second]:
            streams = {STDOUT: b"", STDERR: b""}
            while (packet := await client.receive()) != DONE:
                self.assertTrue(2 <= len(packet) <= 8192, len(packet))
                streams[packet[0]] += packet[1:]
            self.assertEqual(streams, {STDOUT: data, STDERR: b"end\n"})
            self.assertEqual(await client.receive(), b"")
            client.close()
        self.assertEqual(await monitor.exit_code("c"), 5)
        await eventually("the socket to be gone", lambda: not path.exists())
        await self.refused(monitor.call("attachContainer", id="nobody", socketPath=str(path)), "not-found")

    @on_a_daemon
    async def test_attach_without_stop_after_eof_leaves_stdin_open(self, monitor):
        await monitor.run("c", ["cat"], stdin=True)
        path = monitor.file("c", "attach")
        await monitor.call("attachContainer", id="c", socketPath=str(path), stopAfterStdinEof=False)
        for line in [b"one\n", b"two\n"]:
            client = Packets(path)
            await client.send(line)
            self.assertEqual(await client.receive(), bytes([STDOUT]) + line)
            client.close()
        self.assertFalse(monitor.file("c", "exit").exists())

    @on_a_daemon
    async def test_exec_and_attach_get_urls_that_are_used_once(self, monitor):
        await monitor.run("c", ["sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; echo attached"])
        command = ["sh", "-c", "echo out; echo err >&2; exit 7"]
        exec = {"id": "c", "command": command, "stdout": True, "stderr": True, "cgroupManager": "cgroupfs"}
        url = (await monitor.call("serveExecContainer", **exec)).url
        self.assertRegex(url, r"^http://127\.0\.0\.1:\d+/exec/[^/]+$")
        channels, code = await within(websocket.collect(url))
        self.assertEqual((channels[1], channels[2], code), (b"out\n", b"err\n", 1000))
        status = json.loads(channels[3])
        self.assertEqual((status["reason"], status["details"]["causes"][0]["message"]), ("NonZeroExitCode", "7"))
        with self.assertRaisesRegex(AssertionError, "404"):
            await within(websocket.collect(url))
        url = (await monitor.call("serveAttachContainer", id="c", stdout=True)).url
        self.assertRegex(url, r"^http://127\.0\.0\.1:\d+/attach/[^/]+$")
        channels, code = await within(websocket.collect(url, (monitor.place / "rootfs/go").touch))
        self.assertEqual((channels[1], code), (b"attached\n", 1000))
        await self.refused(monitor.call("serveExecContainer", **(exec | {"id": "nobody"})), "not-found")

    @on_a_daemon
    async def test_namespaces_of_a_pod_are_pinned_to_files(self, monitor):
        base = monitor.place / "ns"
        kinds = ["ipc", "pid", "net", "user", "uts"]
        wanted = [kind for kind in kinds if kind != "user"]
        made = await monitor.call("createNamespaces", namespaces=wanted, basePath=str(base), podId="pod-1")
        self.assertEqual([str(namespace.type) for namespace in made.namespaces], kinds)
        for namespace in made.namespaces:
            kind, path = str(namespace.type), pathlib.Path(namespace.path)
            self.assertEqual(path, base / f"{kind}ns" / "pod-1")
            pinned = path.stat()
            self.assertEqual((pinned.st_size, pinned.st_mode & 0o777), (0, 0o444))
            # A namespace that was not asked for is the daemon's own.
            ours = os.stat(f"/proc/{monitor.pid}/ns/{kind}").st_ino
            self.assertEqual(pinned.st_ino == ours, kind == "user", kind)
        await self.refused(monitor.call("createNamespaces", namespaces=wanted, basePath=str(base)), "podId")
        await monitor.stop()
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
        self.assertNotIn(str(base), mounts)

    @on_a_daemon
    async def test_descriptors_go_over_their_own_socket_into_a_container(self, monitor):
        path = (await monitor.call("startFdSocket")).path
        self.assertEqual(path, (await monitor.call("startFdSocket")).path)
        fds = Packets(path)
        reader, writer = os.pipe()
        # How many descriptors, and the number of the request.
        await fds.send_fds(struct.pack("<II", 1, 1), [writer])
        os.close(writer)
        reply = await fds.receive()
        self.assertEqual((len(reply), reply[:8]), (16, struct.pack("<II", 1, 1)))
        slot = struct.unpack("<Q", reply[8:])[0]
        await monitor.run("c", ["sh", "-c", "echo through >&3"], additionalFds=[slot], commandArgs=["--preserve-fds=1"])
        self.assertEqual(await monitor.exit_code("c"), 0)
        # Nobody else holds the pipe any more.
        self.assertEqual(await asyncio.to_thread(os.read, reader, 100), b"through\n")
        self.assertEqual(await within(asyncio.to_thread(os.read, reader, 100)), b"")
        os.close(reader)
        await self.refused(monitor.create("again", IDLE, additionalFds=[slot]), "slot")
        await fds.send(struct.pack("<II", 3, 2))
        refusal = await fds.receive()
        self.assertEqual(refusal[:8], struct.pack("<II", 0xFFFFFFFF, 2))
        self.assertTrue(refusal[8:].decode())
        fds.close()

    @on_a_daemon
    async def test_sigterm_ends_the_containers_and_then_the_daemon(self, monitor):
        pid = await monitor.run("c", IDLE)
        await monitor.create("created", IDLE)
        await monitor.stop(signal.SIGTERM)
        self.assertFalse(alive(pid))
        for id in ["c", "created"]:
            self.assertEqual(await monitor.exit_code(id), 137)
        self.assertFalse((monitor.run_dir / "conmon.sock").exists())


def main():
    names = [name if name.startswith("test_") else f"test_{name}" for name in sys.argv[1:]]
    loader = unittest.TestLoader()
    tests = unittest.TestSuite(map(Suite, names)) if names else loader.loadTestsFromTestCase(Suite)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(tests)
    failed = len(result.failures) + len(result.errors)
    print(f"capnp-python: {result.testsRun - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
