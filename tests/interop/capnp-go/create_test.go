package interop

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func itoa(number int) string { return strconv.Itoa(number) }

func TestTheRuntimeListsACreatedContainer(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		container := s.describe("a", idle().tty(terminal))
		// Empty lists are accepted like missing ones.
		container.CleanupCmd, container.GlobalArgs, container.CommandArgs = []string{}, []string{}, []string{}
		s.create(container)
		equal(t, "the state", s.status("a"), "created")
		s.start("a")
		equal(t, "the state", s.status("a"), "running")
	})
}

func TestTheExitFileHoldsTheCodeWithoutANewline(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.run("ok", bundle{args: []string{"ls"}}.tty(terminal))
		equal(t, "the exit file", s.waitExit("ok"), "0")
		s.run("bad", shell("exit 42").tty(terminal))
		equal(t, "the exit file", s.waitExit("bad"), "42")
		if exists(s.file("ok", "oom")) {
			t.Error("there is an OOM file")
		}
	})
}

func TestAShutdownEndsAContainerThatWasOnlyCreated(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.create(s.describe("a", idle().tty(terminal)))
		check(t, s.Shutdown())
		s.ended = true
		equal(t, "the exit file", s.read("a", "exit"), "137")
		eventually(t, "the end of the container", func() bool { return s.status("a") != "created" })
		for _, name := range []string{"conmon.sock", "conmon-fd.sock"} {
			if exists(filepath.Join(s.RunDir, name)) {
				t.Errorf("%s is left", name)
			}
		}
	})
}

func TestTheCleanupCommandRunsAtTheEnd(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		container := s.describe("a", shell(":").tty(terminal))
		container.CleanupCmd = []string{"touch", s.file("a", "cleaned up")}
		s.create(container)
		s.start("a")
		eventually(t, "the file of the cleanup command", func() bool { return exists(s.file("a", "cleaned up")) })
		equal(t, "its content", s.read("a", "cleaned up"), "")
		equal(t, "the exit file", s.read("a", "exit"), "0")
	})
}

func TestAProgramThatIsNotInTheImageIsToldInTheRuntimesWords(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		start := time.Now()
		_, err := s.CreateContainer(deadline(t), s.describe("a", bundle{args: []string{"invalid"}}.tty(terminal)))
		if err == nil {
			t.Fatal("it was created")
		}
		contains(t, err.Error(), "not found in $PATH")
		t.Logf("%v, after %v", err, time.Since(start))
		// The same connection was closed for it; the next call makes a new one.
		s.run("b", bundle{args: []string{"ls"}}.tty(terminal))
		equal(t, "the exit file", s.waitExit("b"), "0")
	})
}

func TestPathsMayBeLongerThanASocketAddress(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		dir := t.TempDir()
		for len(dir) < 400 {
			dir = filepath.Join(dir, strings.Repeat("long", 20))
		}
		check(t, os.MkdirAll(dir, 0o755))
		s := sandboxIn(t, dir)
		s.run("a", idle().tty(terminal))
		result := must(s.ExecSync(deadline(t), "a", 0, terminal, "echo", "-n", "far away"))(t)
		equal(t, "stdout", result.Stdout, "far away")
	})
}

func TestAResizeSucceedsWithATerminalAndFailsWithout(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		s.create(s.describe("a", shell("stty size; exec sleep 1000").tty(terminal)))
		err := s.SetWindowSize(deadline(t), "a", 10, 20)
		equal(t, "the resize succeeds", err == nil, terminal)
		if terminal {
			s.start("a")
			eventually(t, "rows and columns in the log", func() bool { return strings.Contains(s.read("a", "log"), "20 10") })
		}
	})
}

func TestAContainerThatRunsOutOfMemoryGetsAnEmptyOOMFile(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		// `tail` keeps the whole of a line that never ends.
		eater := shell("exec tail -n 1 /dev/zero").tty(terminal)
		eater.memory = 12 << 20
		s.run("a", eater)
		equal(t, "the exit file", s.waitExit("a"), "137")
		// Who sees the exit file may rely on the OOM file.
		if !exists(s.file("a", "oom")) || s.read("a", "oom") != "" {
			t.Error("no empty OOM file")
		}
	})
}

func TestGlobalArgumentsReachTheRuntimeBeforeItsCommand(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		container := s.describe("a", idle().tty(terminal))
		container.GlobalArgs = []string{"--log", s.file("a", "runtime.log"), "--debug"}
		s.create(container)
		if s.read("a", "runtime.log") == "" {
			t.Error("the runtime's log is empty")
		}
	})
}

func TestACallThatFailsDoesNotDisturbContainers(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.run("a", idle())
	for name, call := range map[string]func() error{
		"reopen": func() error { return s.ReopenLog(deadline(t), "unknown") },
		"resize": func() error { return s.SetWindowSize(deadline(t), "unknown", 1, 1) },
		"attach": func() error { return s.Attach(deadline(t), "unknown", s.file("a", "attach"), false) },
	} {
		if err := call(); err == nil {
			t.Errorf("%s of an unknown container succeeds", name)
		}
	}
	result := must(s.ExecSync(deadline(t), "a", 0, false, "true"))(t)
	equal(t, "the code of an exec afterwards", result.ExitCode, 0)
}
