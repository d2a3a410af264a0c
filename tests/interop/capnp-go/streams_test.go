package interop

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	rest "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"

	"holdfast.example/interop/monitor"
)

// stream connects Kubernetes' own client to a URL.
func stream(ctx context.Context, t *testing.T, url string, options remotecommand.StreamOptions) error {
	t.Helper()
	if url == "" {
		t.Fatal("no URL")
	}
	executor := must(remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", url))(t)
	return executor.StreamWithContext(ctx, options)
}

func TestAnExecStreamCarriesBothStreams(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("a", idle().tty(terminal))
		// A terminal and stderr together are asked for by clients; stderr is ignored then.
		url := must(s.ServeExec(deadline(t), monitor.Exec{
			ID: "a", Command: []string{"sh", "-c", "echo -n stdout; echo -n stderr >&2"}, Tty: terminal, Stdout: true, Stderr: true,
		}))(t)
		var stdout, stderr buffer
		options := remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr, Tty: terminal}
		if terminal {
			options.Stderr = nil
		}
		check(t, stream(deadline(t), t, url, options))
		if terminal {
			equal(t, "stdout", stdout.String(), "stdoutstderr")
		} else {
			equal(t, "stdout", stdout.String(), "stdout")
			equal(t, "stderr", stderr.String(), "stderr")
		}
	})
}

func TestAnExecStreamTellsTheExitCode(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("a", idle().tty(terminal))
		for _, code := range []int{1, 42, 255} {
			url := must(s.ServeExec(deadline(t), monitor.Exec{
				ID: "a", Command: []string{"sh", "-c", "exit " + itoa(code)}, Tty: terminal, Stdout: true,
			}))(t)
			var failure exec.CodeExitError
			if err := stream(deadline(t), t, url, remotecommand.StreamOptions{Stdout: &buffer{}, Tty: terminal}); !errors.As(err, &failure) {
				t.Fatalf("code %d: %v", code, err)
			}
			equal(t, "the code", failure.Code, code)
		}
	})
}

func TestAnExecStreamTakesInputToItsEndAndAnswersAfterIt(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.run("a", idle())
	url := must(s.ServeExec(deadline(t), monitor.Exec{
		ID: "a", Command: []string{"sh", "-c", "sleep 0.2; wc -c"}, Stdin: true, Stdout: true, Stderr: true,
	}))(t)
	var stdout buffer
	input := strings.NewReader(strings.Repeat("holdfast", 1<<20))
	check(t, stream(deadline(t), t, url, remotecommand.StreamOptions{Stdin: input, Stdout: &stdout, Stderr: &buffer{}}))
	equal(t, "the count", strings.TrimSpace(stdout.String()), itoa(8<<20))
}

// sizes is a queue of one window size.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	if size, more := <-s; more {
		return &size
	}
	return nil
}

func TestAnExecStreamsTerminalHasTheClientsSize(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.run("a", idle())
	url := must(s.ServeExec(deadline(t), monitor.Exec{
		ID: "a", Command: []string{"sh", "-c", "until stty size | grep '20 10'; do :; done"}, Tty: true, Stdout: true,
	}))(t)
	queue := make(sizes, 1)
	queue <- remotecommand.TerminalSize{Width: 10, Height: 20}
	defer close(queue)
	var stdout buffer
	check(t, stream(deadline(t), t, url, remotecommand.StreamOptions{Stdout: &stdout, Tty: true, TerminalSizeQueue: queue}))
	contains(t, stdout.String(), "20 10")
}

func TestAnExecStreamThatCannotStartIsAFailure(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("a", idle())
		url := must(s.ServeExec(deadline(t), monitor.Exec{ID: "a", Command: []string{"no-such-program"}, Tty: terminal, Stdout: true}))(t)
		err := stream(deadline(t), t, url, remotecommand.StreamOptions{Stdout: &buffer{}, Tty: terminal})
		if err == nil {
			t.Fatal("the client sees success")
		}
		contains(t, err.Error(), "no-such-program")
	})
}

func TestAnAttachStreamShowsATerminalUntilItsClientLeaves(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.run("a", shell("while :; do echo hello; sleep 0.05; done").tty(true))
	url := must(s.ServeAttach(deadline(t), "a", false, true, true))(t)
	ctx, leave := context.WithCancel(t.Context())
	var stdout, stderr buffer
	done := make(chan error, 1)
	go func() {
		done <- stream(ctx, t, url, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	}()
	eventually(t, "the repeated output", func() bool { return strings.Contains(stdout.String(), "hello\r\nhello\r\n") })
	leave()
	if err := within(t, "the end of the client", func() error { return <-done }); err == nil {
		t.Error("the client's own end is no error")
	}
	equal(t, "stderr", stderr.String(), "")
}

func TestAnAttachStreamTypesAndEndsWithTheContainer(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.create(s.describe("a", bundle{args: []string{"cat"}, stdin: true}))
	url := must(s.ServeAttach(deadline(t), "a", true, true, true))(t)
	var stdout, stderr buffer
	reader, writer := must2(os.Pipe())(t)
	// Kept open to the end: with its last use the pipe would be closed, and the client would detach.
	defer writer.Close()
	done := make(chan error, 1)
	go func() {
		done <- stream(t.Context(), t, url, remotecommand.StreamOptions{Stdin: reader, Stdout: &stdout, Stderr: &stderr})
	}()
	s.start("a")
	must(writer.Write([]byte("typed\n")))(t)
	eventually(t, "the echo", func() bool { return stdout.String() == "typed\n" })
	_, err := s.runc("kill", "a", "KILL")
	check(t, err)
	check(t, within(t, "the end of the client", func() error { return <-done }))
}

func TestStreamsOfUnknownContainersAreFailedCalls(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	if url, err := s.ServeExec(deadline(t), monitor.Exec{ID: "unknown", Command: []string{"ls"}, Stdout: true}); err == nil || url != "" {
		t.Errorf("an exec URL %q, %v", url, err)
	}
	if url, err := s.ServeAttach(deadline(t), "unknown", false, true, false); err == nil || url != "" {
		t.Errorf("an attach URL %q, %v", url, err)
	}
}
