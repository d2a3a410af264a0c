package interop

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/fsnotify/fsnotify"

	"holdfast.example/interop/monitor"
)

// enginePod makes this binary an engine instead of a test: it names a file with what is to be run.
const enginePod = "HOLDFAST_TEST_ENGINE_POD"

// podRequest is what an engine that is to be killed is told.
type podRequest struct {
	Options   monitor.Options
	Container monitor.Container
}

// runEngine starts a monitor and a container in it, says so, and then does nothing until it is killed.
func runEngine(file string) int {
	err := func() error {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var request podRequest
		if err := json.Unmarshal(content, &request); err != nil {
			return err
		}
		pod, err := monitor.New(context.Background(), request.Options)
		if err != nil {
			return err
		}
		if _, err := pod.CreateContainer(context.Background(), request.Container); err != nil {
			return err
		}
		return exec.Command(request.Options.Runtime, "--root", request.Options.RuntimeRoot, "start", request.Container.ID).Run()
	}()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("started")
	select {}
}

// A pod's life as CRI-O leads it: its exit paths, its watch for files that appear, its way back after a restart.
func TestAPodOutlivesItsEngineAndItsExitIsSeenByTheNextOne(t *testing.T) {
	t.Parallel()
	s := unstarted(t)
	web := shell(`echo begin; until [ -s /tmp/hold ]; do sleep 0.02; done; seq 1 30000; exit 7`)
	web.hold = filepath.Join(s.dir, "hold")
	check(t, os.WriteFile(web.hold, nil, 0o600))
	s.engineThatIsKilled(s.describe("web", web))
	eventually(t, "the first line", func() bool { return strings.Contains(s.read("web", "log"), "begin") })

	// The next engine finds the monitor, not by luck: without a program it could not start one.
	s.options.Program = "/does/not/exist"
	s.New()
	t.Cleanup(s.end)
	// What stops a unit may send this.
	check(t, syscall.Kill(s.Pid, syscall.SIGPIPE))
	result := must(s.ExecSync(deadline(t), "web", 0, false, "echo", "still here"))(t)
	equal(t, "an exec of the next engine", result.Stdout, "still here\n")

	exits := must(fsnotify.NewWatcher())(t)
	defer exits.Close()
	check(t, exits.Add(filepath.Join(s.dir, "exits")))
	check(t, os.WriteFile(web.hold, []byte("go"), 0o600))
	within(t, "the exit file that an engine watches for", func() error {
		for event := range exits.Events {
			if event.Has(fsnotify.Create) && filepath.Base(event.Name) == "web" {
				return nil
			}
		}
		return nil
	})
	// From here on nothing is waited for: who sees the file may rely on all else.
	code := must(strconv.ParseInt(s.read("web", "exit"), 10, 32))(t)
	equal(t, "the exit code", code, 7)
	stdout, _ := kubeletReads(t, s.file("web", "log"))
	equal(t, "the lines of the log", strings.Count(stdout, "\n"), 30001)
	output, err := s.runc("delete", "web")
	check(t, err)
	equal(t, "what the runtime says to the removal", output, "")
}

func TestTheEndOfAMonitorIsSeenAndItsContainersLiveOn(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.run("web", idle())
	first := s.Pid
	check(t, syscall.Kill(first, syscall.SIGKILL))
	eventually(t, "the pid is gone", func() bool { return errors.Is(syscall.Kill(first, 0), syscall.ESRCH) })
	equal(t, "the container's state", s.status("web"), "running")

	// A new one starts in the same directory, where the first left its socket. It knows no container.
	s.Close()
	s.New()
	if s.Pid == first {
		t.Error("the same pid")
	}
	if err := s.ReopenLog(deadline(t), "web"); err == nil {
		t.Error("a new monitor knows a container of the last one")
	}
	s.run("next", bundle{args: []string{"ls"}})
	equal(t, "the exit file of a new container", s.waitExit("next"), "0")
}

// unstarted is a sandbox without a monitor.
func unstarted(t *testing.T) *sandbox {
	t.Helper()
	dir := t.TempDir()
	s := &sandbox{t: t, dir: dir, options: sandboxOptions(t, dir)}
	s.options.LogDriver, s.options.Output = "none", nil
	return s
}

func (s *sandbox) engineThatIsKilled(container monitor.Container) {
	s.t.Helper()
	check(s.t, os.Mkdir(filepath.Join(s.dir, "exits"), 0o755))
	// The first is in the directory that is watched; the engine then reads the second.
	container.ExitPaths = []string{filepath.Join(s.dir, "exits", container.ID), s.file(container.ID, "exit")}
	request := filepath.Join(s.dir, "request")
	check(s.t, os.WriteFile(request, must(json.Marshal(podRequest{s.options, container}))(s.t), 0o600))
	engine := exec.Command(must(os.Executable())(s.t))
	engine.Env = append(os.Environ(), enginePod+"="+request)
	output := must(engine.StdoutPipe())(s.t)
	check(s.t, engine.Start())
	s.containers = append(s.containers, container.ID)
	line, _ := bufio.NewReader(output).ReadString('\n')
	check(s.t, engine.Process.Kill())
	_ = engine.Wait()
	if line != "started\n" {
		s.t.Fatalf("the engine says %q", line)
	}
}
