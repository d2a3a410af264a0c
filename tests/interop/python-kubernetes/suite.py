"""Streams as Kubernetes' Python client uses them. What it talks to is described in ../apiserver/serve.py."""

import hashlib
import itertools
import os
import sys
import time
import unittest
import urllib.parse
import urllib.request

from kubernetes import client
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import WSClient

API = os.environ["POD_API"]
# No step takes longer unless something is wrong.
LIMIT = 60
NUMBERS = b"".join(b"%d\n" % number for number in range(1, 1_700_001))
ECHO, DIGEST, RESET, ZEROS, NOBODY = 8000, 8001, 8002, 8003, 8009

ids = (f"c{number}" for number in itertools.count())


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def core():
    # A client for each session: the library changes it for the session's time.
    configuration = client.Configuration(host=API)
    return client.CoreV1Api(client.ApiClient(configuration))


def exec(*command, container="pod", **more):
    """A session, if `_preload_content` is false, else all output."""
    method = core().connect_get_namespaced_pod_exec
    flags = {"stdin": False, "stdout": True, "stderr": True, "tty": False}
    return stream(method, "pod", "default", container=container, command=list(command), **(flags | more))


def opened(*command, **more):
    return exec(*command, _preload_content=False, **more)


def shell(script, **more):
    return opened("sh", "-c", script, **more)


def container(command, stdin=False, tty=False):
    """A new container that runs the command."""
    id = next(ids)
    flags = {"stdin": str(stdin).lower(), "tty": str(tty).lower()}
    query = urllib.parse.urlencode({"command": command, **flags}, doseq=True)
    urllib.request.urlopen(f"{API}/containers/{id}?{query}", data=b"", timeout=LIMIT).close()
    return id


def forward(*ports):
    method = core().connect_get_namespaced_pod_portforward
    return portforward(method, "pod", "default", ports=",".join(map(str, ports)))


def read_to_end(connection):
    connection.settimeout(LIMIT)
    data = b""
    while piece := connection.recv(1 << 20):
        data += piece
    return data


def read_exactly(connection, length):
    connection.settimeout(LIMIT)
    data = b""
    while len(data) < length:
        data += connection.recv(length - len(data))
    return data


class Suite(unittest.TestCase):
    def finished(self, session, code):
        """Reads to the end, and returns what stdout and stderr had."""
        session.run_forever(timeout=LIMIT)
        self.assertEqual(session.returncode, code)
        return session.read_stdout(), session.read_stderr()

    def read_until(self, session, text):
        seen, end = "", time.monotonic() + LIMIT
        while text not in seen:
            self.assertLess(time.monotonic(), end, seen)
            seen += session.read_stdout(timeout=1)
        return seen

    def test_exec_answers_with_all_output_as_text(self):
        self.assertEqual(exec("sh", "-c", "echo out; echo größer"), "out\ngrößer\n")

    def test_exec_keeps_the_streams_apart(self):
        self.assertEqual(self.finished(shell("echo out; echo err >&2"), 0), ("out\n", "err\n"))

    def test_exec_speaks_the_newest_protocol_of_the_client(self):
        session = opened("true")
        self.assertEqual(session.subprotocol, "v5.channel.k8s.io")
        self.finished(session, 0)

    def test_exec_tells_the_exit_code(self):
        for tty in [False, True]:
            for end, code in [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("kill -9 $$", 137)]:
                with self.subTest(tty=tty, end=end):
                    session = shell(f"echo last words; {end}", tty=tty)
                    self.assertIn("last words", self.finished(session, code)[0])

    def test_exec_carries_any_bytes(self):
        data = bytes(range(256)) * 4096
        session = opened("cat", binary=True, stdin=True)
        session.write_stdin(data)
        session.close_channel(0)
        self.assertEqual(self.finished(session, 0)[0], data)

    def test_exec_delivers_big_output(self):
        session = shell("seq 1 1700000; exit 42", binary=True)
        self.assertEqual(sha256(self.finished(session, 42)[0]), sha256(NUMBERS))

    def test_exec_takes_stdin_to_its_end(self):
        session = opened("sha256sum", binary=True, stdin=True)
        for at in range(0, len(NUMBERS), 1_000_000):
            session.write_stdin(NUMBERS[at : at + 1_000_000])
        session.close_channel(0)
        self.assertEqual(self.finished(session, 0)[0].split()[0].decode(), sha256(NUMBERS))

    def test_exec_takes_stdin_in_one_message(self):
        session = opened("sha256sum", binary=True, stdin=True)
        session.write_stdin(NUMBERS)
        session.close_channel(0)
        self.assertEqual(self.finished(session, 0)[0].split()[0].decode(), sha256(NUMBERS))

    def test_exec_takes_text_on_stdin(self):
        session = opened("sh", stdin=True)
        session.write_stdin("echo größer\n")
        self.assertEqual(self.read_until(session, "\n"), "größer\n")
        session.write_stdin("exit 3\n")
        self.finished(session, 3)

    def test_exec_on_a_terminal_is_typed_at_and_resized(self):
        session = opened("sh", stdin=True, tty=True)
        session.write_channel(4, '{"Width":100,"Height":30}')
        session.write_stdin("until stty size | grep '^30 100'; do :; done; exit 42\n")
        self.read_until(session, "30 100\r\n")
        self.finished(session, 42)

    def test_exec_of_what_is_not_there_is_a_failure(self):
        session = opened("no-such-program")
        session.run_forever(timeout=LIMIT)
        self.assertIn("no-such-program", session.read_channel(3))

    def test_exec_in_what_is_not_there_is_refused(self):
        with self.assertRaisesRegex(ApiException, "500"):
            exec("true", container="nobody")

    def test_exec_speaks_the_protocol_that_older_clients_ask_for(self):
        flags = [("container", "pod"), ("stdout", "true"), ("stderr", "true")]
        command = [("command", part) for part in ["sh", "-c", "seq 1 1700000; echo err >&2; exit 42"]]
        query = urllib.parse.urlencode(flags + command)
        url = f"{API.replace('http', 'ws')}/api/v1/namespaces/default/pods/pod/exec?{query}"
        protocol = "v4.channel.k8s.io"
        headers = {"sec-websocket-protocol": protocol}
        session = WSClient(client.Configuration(), url, headers, capture_all=True, binary=True)
        self.assertEqual(session.subprotocol, protocol)
        stdout, stderr = self.finished(session, 42)
        self.assertEqual((sha256(stdout), stderr), (sha256(NUMBERS), b"err\n"))

    def test_attach_types_and_sees_both_streams_to_the_end(self):
        script = "while read a; do echo out $a; echo err $a >&2; [ $a != end ] || exit 5; done"
        id = container(["sh", "-c", script], stdin=True)
        flags = {"stdin": True, "stdout": True, "stderr": True, "_preload_content": False}
        session = stream(core().connect_get_namespaced_pod_attach, "pod", "default", container=id, **flags)
        session.write_stdin("one\n")
        self.read_until(session, "out one\n")
        session.write_stdin("end\n")
        # The code is the container's, not the session's.
        self.assertEqual(self.finished(session, 0)[0], "out end\n")

    def test_attach_to_a_terminal(self):
        id = container(["sh"], stdin=True, tty=True)
        flags = {"stdin": True, "stdout": True, "stderr": False, "tty": True, "_preload_content": False}
        session = stream(core().connect_get_namespaced_pod_attach, "pod", "default", container=id, **flags)
        session.write_channel(4, '{"Width":100,"Height":30}')
        session.write_stdin("until stty size | grep '^30 100'; do :; done; exit 3\n")
        self.read_until(session, "30 100\r\n")
        self.finished(session, 0)

    def test_forward_carries_several_ports_side_by_side(self):
        session = forward(ECHO, ZEROS)
        echo, zeros = session.socket(ECHO), session.socket(ZEROS)
        echo.sendall(b"hello")
        self.assertEqual(read_exactly(echo, 5), b"hello")
        self.assertEqual(sha256(read_exactly(zeros, 10 << 20)), sha256(bytes(10 << 20)))
        data = NUMBERS[:1_000_000]
        echo.sendall(data)
        self.assertEqual(read_exactly(echo, len(data)), data)
        self.assertEqual((session.error(ECHO), session.error(ZEROS)), (None, None))
        session.close()

    def test_forward_ends_when_its_port_has_ended(self):
        session = forward(ZEROS)
        self.assertEqual(len(read_to_end(session.socket(ZEROS))), 10 << 20)
        self.assertIsNone(session.error(ZEROS))

    def test_forward_to_a_port_of_nobody_is_that_ports_failure_alone(self):
        session = forward(ECHO, NOBODY)
        self.assertEqual(read_to_end(session.socket(NOBODY)), b"")
        self.assertIn("connection refused", session.error(NOBODY))
        session.socket(ECHO).sendall(b"hello")
        self.assertEqual(read_exactly(session.socket(ECHO), 5), b"hello")
        self.assertIsNone(session.error(ECHO))
        session.close()

    def test_forward_outlives_a_reset(self):
        session = forward(RESET, ECHO)
        session.socket(RESET).sendall(b"a good deal")
        session.socket(ECHO).sendall(b"hello")
        self.assertEqual(read_exactly(session.socket(ECHO), 5), b"hello")
        session.close()


if __name__ == "__main__":
    names = [name if name.startswith("test_") else f"test_{name}" for name in sys.argv[1:]]
    loader = unittest.TestLoader()
    tests = unittest.TestSuite(map(Suite, names)) if names else loader.loadTestsFromTestCase(Suite)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(tests)
    failed = len(result.failures) + len(result.errors)
    print(f"python-kubernetes: {result.testsRun - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
