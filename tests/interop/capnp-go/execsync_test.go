package interop

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"holdfast.example/interop/monitor"
)

func TestTenExecsAtOnceGetEachItsOwnOutput(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("a", idle().tty(terminal))
		var group sync.WaitGroup
		for i := range 10 {
			group.Go(func() {
				text := fmt.Sprintf("hello world %d", i)
				result, err := s.ExecSync(t.Context(), "a", 0, terminal, "echo", "-n", text)
				if err != nil || result.Stdout != text || result.ExitCode != 0 {
					t.Errorf("exec %d: %+v, %v", i, result, err)
				}
			})
		}
		group.Wait()
	})
}

func TestExecsOneAfterAnotherLeaveNoDescriptor(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("a", idle().tty(terminal))
		exec := func() {
			must(s.ExecSync(deadline(t), "a", 0, terminal, "true"))(t)
		}
		exec()
		memory, descriptors := s.rss(), s.descriptors()
		for range 25 {
			exec()
		}
		t.Logf("VmRSS before %d KB, after 25 execs %d KB", memory, s.rss())
		eventually(t, "as many descriptors as before", func() bool { return s.descriptors() <= descriptors })
	})
}

func TestAnExecAnswersItsOutputWhichIsNotLogged(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		for _, timeout := range []uint64{0, 10} {
			s := newSandbox(t)
			s.run("a", idle().tty(terminal))
			result := must(s.ExecSync(deadline(t), "a", timeout, terminal, "echo", "-n", "hello", "world"))(t)
			equal(t, "the result", result, monitor.ExecResult{Stdout: "hello world"})
			check(t, s.ReopenLog(deadline(t), "a"))
			equal(t, "the container's log", s.read("a", "log"), "")
			if !exists(s.file("a", "log")) {
				t.Error("there is no log after it was reopened")
			}
		}
	})
}

func TestAnExecThatFailsAnswersItsCodeAndItsErrorText(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("a", idle().tty(terminal))
		result := must(s.ExecSync(deadline(t), "a", 0, terminal, "busybox", "invalid"))(t)
		const message = "invalid: applet not found"
		expected := monitor.ExecResult{ExitCode: 127, Stderr: message + "\n"}
		if terminal {
			expected = monitor.ExecResult{ExitCode: 127, Stdout: message + "\r\n"}
		}
		equal(t, "the result", result, expected)
		killed := must(s.ExecSync(deadline(t), "a", 0, terminal, "sh", "-c", "kill -TERM $$"))(t)
		equal(t, "the code of an exec that a signal ended", killed.ExitCode, 128+15)
	})
}

func TestAProgramThatIsMissingForAnExecIsNoFailedCall(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("a", idle().tty(terminal))
		result := must(s.ExecSync(deadline(t), "a", 0, terminal, "no-such-program"))(t)
		equal(t, "the code", result.ExitCode, -2)
		contains(t, result.Stderr, "no-such-program")
	})
}

func TestAnExecThatTakesTooLongIsEndedAndToldSo(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("a", idle().tty(terminal))
		result := must(s.ExecSync(deadline(t), "a", 3, terminal, "sleep", "5"))(t)
		equal(t, "timedOut", result.TimedOut, true)
		equal(t, "the code", result.ExitCode, -3)
	})
}

func TestALargeOutputOfAnExecIsWhole(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.run("a", idle())
	result := must(s.ExecSync(deadline(t), "a", 0, false, "seq", "1", "200000"))(t)
	lines := strings.Split(strings.TrimSuffix(result.Stdout, "\n"), "\n")
	equal(t, "the lines", len(lines), 200000)
	for i, line := range lines {
		if line != itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
}
