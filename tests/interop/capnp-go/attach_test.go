package interop

import (
	"bytes"
	"crypto/sha256"
	"os"
	"strings"
	"testing"

	"holdfast.example/interop/monitor"
)

// attached is a client of a container's attach socket that collects what comes.
type attached struct {
	*monitor.Streams
	stdout, stderr buffer
	done           chan error
}

func (s *sandbox) attach(id string, stopAfterStdinEOF bool) *attached {
	s.t.Helper()
	check(s.t, s.Attach(deadline(s.t), id, s.file(id, "attach"), stopAfterStdinEOF))
	client := &attached{Streams: must(monitor.Connect(s.file(id, "attach")))(s.t), done: make(chan error, 1)}
	s.t.Cleanup(client.Close)
	go func() { client.done <- client.Copy(&client.stdout, &client.stderr) }()
	return client
}

func (a *attached) say(t *testing.T, text string) {
	t.Helper()
	must(a.Write([]byte(text)))(t)
}

func (a *attached) end(t *testing.T) {
	t.Helper()
	check(t, within(t, "the packet that says that all is done", func() error { return <-a.done }))
}

func TestAttachToAShellOnATerminalShowsEchoAndPrompt(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	container := s.describe("a", bundle{args: []string{"sh"}, terminal: true, stdin: true})
	s.create(container)
	client := s.attach("a", true)
	s.start("a")
	client.say(t, "echo Hello $((40 + 2))\n")
	eventually(t, "the first answer", func() bool { return strings.Contains(client.stdout.String(), "Hello 42\r\n") })
	client.say(t, "echo again >&2\n")
	eventually(t, "the second answer", func() bool { return strings.Contains(client.stdout.String(), "\nagain\r\n") })
	// Between the two the shell may ask the terminal where its cursor is.
	contains(t, client.stdout.String(), "$ ")
	contains(t, client.stdout.String(), "echo Hello $((40 + 2))\r\n")
	client.say(t, "exit 3\n")
	client.end(t)
	equal(t, "stderr", client.stderr.String(), "")
	equal(t, "the exit file", s.waitExit("a"), "3")
}

func TestAttachToAShellOnPipesKeepsTheStreamsApart(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.create(s.describe("a", bundle{args: []string{"sh"}, stdin: true}))
	client := s.attach("a", true)
	s.start("a")
	client.say(t, "echo out\n")
	eventually(t, "the answer on stdout", func() bool { return client.stdout.String() == "out\n" })
	client.say(t, "echo err >&2\n")
	eventually(t, "the answer on stderr", func() bool { return client.stderr.String() == "err\n" })
	client.say(t, "exit\n")
	client.end(t)
	equal(t, "stdout", client.stdout.String(), "out\n")
	equal(t, "the exit file", s.waitExit("a"), "0")
}

func TestAttachEndsTheContainersStdinOnlyWhereItWasAskedTo(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]bool{"stop": true, "stay": false} {
		s := newSandbox(t)
		s.create(s.describe(name, bundle{args: []string{"sh", "-c", "cat; echo end"}, stdin: true}))
		client := s.attach(name, stop)
		s.start(name)
		client.say(t, "one\n")
		check(t, client.CloseStdin())
		eventually(t, "the echo", func() bool { return strings.HasPrefix(client.stdout.String(), "one\n") })
		if !stop {
			second := s.attach(name, stop)
			second.say(t, "two\n")
			eventually(t, "the echo of another client's stdin", func() bool { return second.stdout.String() == "two\n" })
			_, err := s.runc("kill", name, "KILL")
			check(t, err)
			second.end(t)
			client.end(t)
			continue
		}
		client.end(t)
		equal(t, "stdout", client.stdout.String(), "one\nend\n")
		equal(t, "the exit file", s.waitExit(name), "0")
	}
}

func TestAttachCarriesAnyBytesInPacketsOfAnySize(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.create(s.describe("a", bundle{args: []string{"cat"}, stdin: true}))
	client := s.attach("a", true)
	s.start("a")
	var sent bytes.Buffer
	for _, size := range []int{1, 8192, 27000, 32768, 180000} {
		packet := make([]byte, size)
		for i := range packet {
			packet[i] = byte(i * 7) // With NUL and bytes that are no text.
		}
		sent.Write(packet)
		// A packet socket takes no packet larger than its buffer; engines send at most 32 KiB.
		for rest := packet; len(rest) > 0; {
			n := must(client.Write(rest[:min(len(rest), 32768)]))(t)
			rest = rest[n:]
		}
	}
	check(t, client.CloseStdin())
	client.end(t)
	equal(t, "the digest", sha256.Sum256([]byte(client.stdout.String())), sha256.Sum256(sent.Bytes()))
}

func TestEveryAttachClientSeesEverything(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.create(s.describe("a", bundle{args: []string{"sh", "-c", "read line; seq 1 20000"}, stdin: true}))
	var clients []*attached
	for range 3 {
		clients = append(clients, s.attach("a", false))
	}
	s.start("a")
	clients[0].say(t, "go\n")
	for _, client := range clients {
		client.end(t)
		equal(t, "the lines", strings.Count(client.stdout.String(), "\n"), 20000)
	}
}

func TestAnAttachSocketIsItsOwnersAloneAndGoesWithItsContainer(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.run("a", idle())
	client := s.attach("a", false)
	info := must(os.Stat(s.file("a", "attach")))(t)
	equal(t, "its mode", info.Mode().Perm(), 0o700)
	_, err := s.runc("kill", "a", "KILL")
	check(t, err)
	client.end(t)
	eventually(t, "the socket is gone", func() bool { return !exists(s.file("a", "attach")) })
}
