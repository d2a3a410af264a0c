package clientgo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/remotecommand"
	client "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

// stream runs a session of the kind to its end. What it asks for follows from the options.
func (w way) stream(ctx context.Context, t *testing.T, kind, id string, options client.StreamOptions, command ...string) error {
	t.Helper()
	query := url.Values{
		"container": {id}, "command": command, "tty": {strconv.FormatBool(options.Tty)},
		"stdin":  {strconv.FormatBool(options.Stdin != nil)},
		"stdout": {strconv.FormatBool(options.Stdout != nil)},
		"stderr": {strconv.FormatBool(options.Stderr != nil)},
	}
	return w.executor(t, w.url(t, kind, query)).StreamWithContext(ctx, options)
}

func (w way) executor(t *testing.T, url *url.URL) client.Executor {
	t.Helper()
	plain := must(client.NewSPDYExecutor(config(), "POST", url))(t)
	if w.spdy {
		return plain
	}
	websocket := must(client.NewWebSocketExecutor(config(), "GET", url.String()))(t)
	if w.fallback {
		return must(client.NewFallbackExecutor(websocket, plain, falls))(t)
	}
	return websocket
}

func (w way) exec(t *testing.T, id string, options client.StreamOptions, command ...string) error {
	t.Helper()
	return w.stream(deadline(t), t, "exec", id, options, command...)
}

func code(t *testing.T, err error) int {
	t.Helper()
	var failure exec.CodeExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &failure):
		return failure.Code
	}
	t.Fatal(err)
	return -1
}

func TestExecKeepsTheStreamsApart(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		var stdout, stderr buffer
		check(t, w.exec(t, "pod", client.StreamOptions{Stdout: &stdout, Stderr: &stderr}, "sh", "-c", "echo out; echo err >&2"))
		equal(t, "stdout", stdout.String(), "out\n")
		equal(t, "stderr", stderr.String(), "err\n")
	})
}

func TestExecCanGoWithoutStdoutOrStderr(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		var only buffer
		check(t, w.exec(t, "pod", client.StreamOptions{Stderr: &only}, "sh", "-c", "echo out; echo err >&2"))
		equal(t, "stderr", only.String(), "err\n")
		err := w.exec(t, "pod", client.StreamOptions{Stdin: strings.NewReader("3")}, "sh", "-c", "exit $(cat)")
		equal(t, "the code", code(t, err), 3)
	})
}

func TestExecTellsTheExitCode(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		for _, tty := range []bool{false, true} {
			for end, expected := range map[string]int{"exit 0": 0, "exit 1": 1, "exit 42": 42, "kill -9 $$": 137} {
				var stdout buffer
				err := w.exec(t, "pod", client.StreamOptions{Stdout: &stdout, Tty: tty}, "sh", "-c", "echo last words; "+end)
				equal(t, "the code of "+end, code(t, err), expected)
				contains(t, stdout.String(), "last words")
			}
		}
	})
}

func TestExecOfWhatIsNotThereIsAFailure(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		err := w.exec(t, "pod", client.StreamOptions{Stdout: &buffer{}}, "no-such-program")
		if err == nil {
			t.Fatal("the client sees success")
		}
		contains(t, err.Error(), "no-such-program")
	})
}

func TestExecDeliversBigOutput(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		var stdout buffer
		err := w.exec(t, "pod", client.StreamOptions{Stdout: &stdout, Stderr: &buffer{}}, "sh", "-c", "seq 1 1700000; exit 42")
		equal(t, "the code", code(t, err), 42)
		equal(t, "the digest", digest([]byte(stdout.String())), digest(numbers()))
	})
}

func TestExecTakesStdinToItsEnd(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		var stdout buffer
		options := client.StreamOptions{Stdin: bytes.NewReader(numbers()), Stdout: &stdout, Stderr: &buffer{}}
		check(t, w.exec(t, "pod", options, "sha256sum"))
		equal(t, "the digest", strings.TrimSuffix(stdout.String(), "  -\n"), digest(numbers()))
	})
}

func TestExecCarriesBigDataBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		var stdout buffer
		check(t, w.exec(t, "pod", client.StreamOptions{Stdin: bytes.NewReader(numbers()), Stdout: &stdout}, "cat"))
		equal(t, "the digest", digest([]byte(stdout.String())), digest(numbers()))
	})
}

func TestExecWithoutATakerOfItsStdinEndsWithEverything(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		var stdout buffer
		options := client.StreamOptions{Stdin: bytes.NewReader(numbers()), Stdout: &stdout}
		equal(t, "the code", code(t, w.exec(t, "pod", options, "sh", "-c", "seq 1 100000; exit 7")), 7)
		equal(t, "the lines", strings.Count(stdout.String(), "\n"), 100000)
	})
}

// tardy is a writer that takes its time at first.
type tardy struct {
	buffer
	waited bool
}

func (w *tardy) Write(data []byte) (int, error) {
	if !w.waited {
		time.Sleep(2 * time.Second)
		w.waited = true
	}
	return w.buffer.Write(data)
}

func TestExecLosesNothingToAClientThatReadsLate(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		var stdout tardy
		// Its stdin stays open, and so do things to send.
		stdin := newKeyboard(t)
		check(t, w.exec(t, "pod", client.StreamOptions{Stdin: stdin, Stdout: &stdout}, "seq", "1", "100000"))
		equal(t, "the lines", strings.Count(stdout.String(), "\n"), 100000)
	})
}

// keyboard is a stdin that stays open until the end of the test.
type keyboard struct {
	*io.PipeReader
	writer *io.PipeWriter
}

func newKeyboard(t *testing.T) keyboard {
	reader, writer := io.Pipe()
	t.Cleanup(func() { _ = writer.Close() })
	return keyboard{reader, writer}
}

// say types a line, which the session must take.
func (k keyboard) say(t *testing.T, line string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := k.writer.Write([]byte(line + "\n"))
		done <- err
	}()
	check(t, within(t, "a taker of "+line, done))
}

// sizes is a queue of one window size.
type sizes chan client.TerminalSize

func (s sizes) Next() *client.TerminalSize {
	if size, more := <-s; more {
		return &size
	}
	return nil
}

func TestExecOnATerminalIsTypedAtAndResized(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		var stdout buffer
		stdin := newKeyboard(t)
		queue := make(sizes, 1)
		defer close(queue)
		queue <- client.TerminalSize{Width: 100, Height: 30}
		done := make(chan error, 1)
		go func() {
			options := client.StreamOptions{Stdin: stdin, Stdout: &stdout, Tty: true, TerminalSizeQueue: queue}
			done <- w.exec(t, "pod", options, "sh")
		}()
		stdin.say(t, "until stty size | grep '^30 100'; do :; done")
		stdout.shows(t, "30 100\r\n")
		queue <- client.TerminalSize{Width: 90, Height: 20}
		stdin.say(t, "until stty size | grep '^20 90'; do :; done; exit 42")
		stdout.shows(t, "20 90\r\n")
		equal(t, "the code", code(t, within(t, "the end", done)), 42)
	})
}

func TestExecKnowsEveryProtocolOfTheClient(t *testing.T) {
	t.Parallel()
	const v1, v4 = remotecommand.StreamProtocolV1Name, remotecommand.StreamProtocolV4Name
	query := url.Values{"container": {"pod"}, "stdout": {"true"}, "stderr": {"true"}}
	query["command"] = []string{"sh", "-c", "seq 1 1700000; echo err >&2; exit 42"}
	run := func(name, protocol string, open func(t *testing.T) (client.Executor, error)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr buffer
			err := must(open(t))(t).StreamWithContext(deadline(t), client.StreamOptions{Stdout: &stdout, Stderr: &stderr})
			switch {
			case protocol == v4:
				equal(t, "the code", code(t, err), 42)
			case protocol != v1:
				contains(t, fmt.Sprint(err), "command terminated")
			default:
				// Where the output ends first, this client looks for no failure.
			}
			equal(t, "stderr", stderr.String(), "err\n")
			equal(t, "the digest", digest([]byte(stdout.String())), digest(numbers()))
		})
	}
	for _, protocol := range []string{v1, remotecommand.StreamProtocolV2Name, remotecommand.StreamProtocolV3Name, v4} {
		run(protocol, protocol, func(t *testing.T) (client.Executor, error) {
			transport, upgrader := must2(spdy.RoundTripperFor(config()))(t)
			return client.NewSPDYExecutorForProtocols(transport, upgrader, "POST", way{}.url(t, "exec", query), protocol)
		})
	}
	run("v4 over websocket", v4, func(t *testing.T) (client.Executor, error) {
		return client.NewWebSocketExecutorForProtocols(config(), "GET", way{}.url(t, "exec", query).String(), v4)
	})
}

func TestAttachTypesAndSeesBothStreamsToTheEnd(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		id := container(t, true, false, "sh", "-c", "while read a; do echo out $a; echo err $a >&2; [ $a != end ] || exit 5; done")
		var stdout, stderr buffer
		stdin := newKeyboard(t)
		done := make(chan error, 1)
		go func() {
			options := client.StreamOptions{Stdin: stdin, Stdout: &stdout, Stderr: &stderr}
			done <- w.stream(t.Context(), t, "attach", id, options)
		}()
		stdin.say(t, "one")
		stdout.shows(t, "out one\n")
		stdin.say(t, "end")
		// The code is the container's, not the session's.
		check(t, within(t, "the end", done))
		equal(t, "stdout", stdout.String(), "out one\nout end\n")
		equal(t, "stderr", stderr.String(), "err one\nerr end\n")
		equal(t, "the code", ask(t, "GET", "/containers/"+id+"/exit"), "5")
	})
}

func TestAttachToATerminalIsTypedAtAndResized(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		id := container(t, true, true, "sh")
		var stdout buffer
		stdin := newKeyboard(t)
		queue := make(sizes, 1)
		defer close(queue)
		queue <- client.TerminalSize{Width: 100, Height: 30}
		done := make(chan error, 1)
		go func() {
			options := client.StreamOptions{Stdin: stdin, Stdout: &stdout, Tty: true, TerminalSizeQueue: queue}
			done <- w.stream(t.Context(), t, "attach", id, options)
		}()
		stdin.say(t, "until stty size | grep '^30 100'; do :; done; exit 3")
		stdout.shows(t, "30 100\r\n")
		check(t, within(t, "the end", done))
	})
}

func TestEveryAttachClientSeesEverythingAndLeavesAlone(t *testing.T) {
	t.Parallel()
	id := container(t, true, false, "sh", "-c", "while read a; do echo $a; done")
	outputs, leave, done := make([]*buffer, len(ways)), make([]func(), len(ways)), make(chan error, len(ways))
	stdin := newKeyboard(t)
	for i, w := range ways {
		options := client.StreamOptions{}
		if i == 0 {
			options.Stdin = stdin
		}
		outputs[i] = &buffer{}
		options.Stdout = outputs[i]
		ctx, cancel := context.WithCancel(t.Context())
		leave[i] = cancel
		go func() { done <- w.stream(ctx, t, "attach", id, options) }()
	}
	// A line that all see tells that all are there.
	eventually(t, "all the clients", func() bool {
		stdin.say(t, "hello")
		for _, output := range outputs {
			if output.String() == "" {
				return false
			}
		}
		return true
	})
	for i := len(ways) - 1; i > 0; i-- {
		leave[i]()
		if within(t, "a client's end", done) == nil {
			t.Error("its own end is no error")
		}
	}
	stdin.say(t, "bye")
	outputs[0].shows(t, "bye\n")
	leave[0]()
}
