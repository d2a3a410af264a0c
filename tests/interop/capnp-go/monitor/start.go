// Package monitor drives a pod monitor the way that engines drive one under the 1.x contract: the same order of steps,
// the same limits, the same Cap'n Proto implementation.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"capnproto.org/go/capnp/v3/rpc"

	"holdfast.example/interop/conmon"
)

const (
	// A monitor that listens answers at once; this is for machines under load.
	callLimit = 10 * time.Second
	// After its starter has ended, a monitor has this many tries, one a millisecond, to answer.
	startTries = 100
	// A monitor that got SIGINT has this many tries, 100 ms apart, to be gone.
	shutdownTries = 100
)

// Options tell how a monitor is started.
type Options struct {
	Program         string // "" looks for `conmonrs` in $PATH
	RunDir          string
	Runtime         string
	RuntimeRoot     string
	LogLevel        string // "" is "debug", as engines' clients have it
	LogDriver       string // "" is "systemd"
	EnableTracing   bool
	TracingEndpoint string
	Output          *os.File // stdout and stderr of the driver "stdout"
}

// Monitor is a running monitor and at most one connection to it, shared by all calls.
type Monitor struct {
	Pid    int
	RunDir string

	lock sync.Mutex
	conn *rpc.Conn
	api  conmon.Conmon
}

// New finds the monitor that serves the run directory, or starts one.
func New(ctx context.Context, options Options) (*Monitor, error) {
	if err := os.MkdirAll(options.RunDir, 0o755); err != nil {
		return nil, err
	}
	monitor := &Monitor{RunDir: options.RunDir}
	if pid, err := monitor.pid(ctx); err == nil {
		monitor.Pid = pid
		return monitor, nil
	}
	pid, err := start(options)
	if err != nil {
		return nil, err
	}
	monitor.Pid = pid
	if err := monitor.ready(ctx); err != nil {
		return nil, errors.Join(err, monitor.Shutdown())
	}
	return monitor, nil
}

// start runs the program until it has gone to the background and returns the pid it left.
func start(options Options) (int, error) {
	program := options.Program
	if program == "" {
		found, err := exec.LookPath("conmonrs")
		if err != nil {
			return 0, err
		}
		program = found
	}
	command := exec.Command(program, arguments(options)...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if options.LogDriver == "stdout" {
		// Plain files: with anything else, Go would wait here until the daemon closes its copy.
		command.Stdout, command.Stderr = options.Output, options.Output
	}
	if err := command.Run(); err != nil {
		return 0, fmt.Errorf("start the monitor: %w", err)
	}
	content, err := os.ReadFile(pidfile(options.RunDir))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.ParseUint(string(content), 10, 32)
	return int(pid), err
}

func arguments(options Options) []string {
	value := func(given, otherwise string) string {
		if given == "" {
			return otherwise
		}
		return given
	}
	args := []string{"--runtime", options.Runtime, "--runtime-dir", options.RunDir}
	if options.RuntimeRoot != "" {
		args = append(args, "--runtime-root", options.RuntimeRoot)
	}
	args = append(args, "--log-level", value(options.LogLevel, "debug"))
	args = append(args, "--log-driver", value(options.LogDriver, "systemd"))
	if options.EnableTracing {
		args = append(args, "--enable-tracing")
		if options.TracingEndpoint != "" {
			args = append(args, "--tracing-endpoint", options.TracingEndpoint)
		}
	}
	return args
}

// ready waits until the monitor answers, then removes its pidfile, which must still be there.
func (m *Monitor) ready(ctx context.Context) error {
	var err error
	for range startTries {
		if _, err = m.pid(ctx); err == nil {
			return os.Remove(pidfile(m.RunDir))
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("the monitor does not answer: %w", err)
}

func (m *Monitor) pid(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	version, err := m.Version(ctx, false)
	return int(version.ProcessID), err
}

// Shutdown ends the monitor and all its containers.
func (m *Monitor) Shutdown() error {
	m.Close()
	if err := syscall.Kill(m.Pid, syscall.SIGINT); err != nil {
		return ignoreGone(err)
	}
	for range shutdownTries {
		if err := syscall.Kill(m.Pid, 0); err != nil {
			return ignoreGone(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("the monitor is still there after 10 s")
}

// Close ends the connection; the next call makes a new one.
func (m *Monitor) Close() {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.conn != nil {
		m.api.Release()
		_ = m.conn.Close()
		m.conn = nil
	}
}

func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func pidfile(runDir string) string {
	return filepath.Join(runDir, "pidfile")
}
