// Package interop tests the daemon from Go, over the wire only. The tests follow the checklist of behaviours that clients
// of the 1.x contract assert: one test per line of it, named after it.
package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast.example/interop/conmon"
	"holdfast.example/interop/monitor"
)

// patience is how long a test waits for something that is to happen.
const patience = 20 * time.Second

// Containers of a sandbox share it; nothing in the tests changes it.
var rootfs string

// cgroups numbers those of this process; they are flat, because a runtime removes only the last part.
var cgroups atomic.Int32

func TestMain(m *testing.M) {
	if pod := os.Getenv(enginePod); pod != "" {
		os.Exit(runEngine(pod))
	}
	os.Exit(prepareAndRun(m))
}

func prepareAndRun(m *testing.M) int {
	if os.Geteuid() != 0 || !filepath.IsAbs(os.Getenv("HOLDFAST_BIN")) {
		fmt.Fprintln(os.Stderr, "run as root, by the script `run`: the tests make real containers with $HOLDFAST_BIN")
		return 1
	}
	dir, err := os.MkdirTemp("", "hf-go-rootfs")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	rootfs = dir
	if err := makeRootfs(dir); err != nil {
		fmt.Fprintln(os.Stderr, "the root file system of the containers:", err)
		return 1
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become a subreaper:", err)
		return 1
	}
	return m.Run()
}

// makeRootfs needs a static busybox, and links all its applets.
func makeRootfs(dir string) error {
	for _, sub := range []string{"bin", "dev", "proc", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	content, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), content, 0o755); err != nil {
		return err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sandbox is a monitor with directories of its own. At the end of the test everything it made must go as it should.
type sandbox struct {
	*monitor.Monitor
	t          *testing.T
	dir        string
	options    monitor.Options
	containers []string
	ended      bool // the test itself ended the monitor
}

func newSandbox(t *testing.T, changes ...func(*monitor.Options)) *sandbox {
	t.Helper()
	return sandboxIn(t, t.TempDir(), changes...)
}

func sandboxIn(t *testing.T, dir string, changes ...func(*monitor.Options)) *sandbox {
	t.Helper()
	s := &sandbox{t: t, dir: dir, options: sandboxOptions(t, dir)}
	for _, change := range changes {
		change(&s.options)
	}
	s.New()
	t.Cleanup(s.end)
	return s
}

// New finds or starts the monitor. An engine's monitor is reaped by the host's init; here this process does it, which
// does it at once.
func (s *sandbox) New() {
	s.t.Helper()
	s.Monitor = must(monitor.New(s.t.Context(), s.options))(s.t)
	pid := s.Pid
	go func() { _, _ = unix.Wait4(pid, nil, 0, nil) }()
}

func sandboxOptions(t *testing.T, dir string) monitor.Options {
	t.Helper()
	output := must(os.OpenFile(filepath.Join(dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600))(t)
	t.Cleanup(func() { _ = output.Close() })
	return monitor.Options{
		Program:     os.Getenv("HOLDFAST_BIN"),
		RunDir:      filepath.Join(dir, "run"),
		Runtime:     must(exec.LookPath("runc"))(t),
		RuntimeRoot: filepath.Join(dir, "runc"),
		LogDriver:   "stdout",
		Output:      output,
	}
}

// end is the part of the checklist that holds after every test.
func (s *sandbox) end() {
	for _, id := range s.containers {
		if output, err := s.runc("delete", "--force", id); err != nil {
			s.t.Errorf("runc delete --force %s: %v: %s", id, err, output)
		}
	}
	if !s.ended {
		start := time.Now()
		if err := s.Shutdown(); err != nil {
			s.t.Error("shutdown:", err)
		}
		s.t.Logf("shutdown took %v", time.Since(start).Round(time.Millisecond))
	}
	left := ""
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if left = processesOf(s.dir); left == "" || time.Now().After(deadline) {
			break
		}
	}
	if left != "" {
		s.t.Errorf("processes are left:\n%s", left)
	}
	if s.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(s.dir, "daemon.log"))
		s.t.Logf("the daemon's log:\n%s", log)
	}
}

// processesOf lists processes, other than this one, that have a directory in their command line.
func processesOf(dir string) string {
	found := ""
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		cmdline, err := os.ReadFile(path)
		if err == nil && bytes.Contains(cmdline, []byte(dir+"/")) {
			found += fmt.Sprintf("%s: %s\n", path, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
		}
	}
	return found
}

func (s *sandbox) runc(args ...string) (string, error) {
	output, err := exec.Command(s.options.Runtime, append([]string{"--root", s.options.RuntimeRoot}, args...)...).CombinedOutput()
	return string(output), err
}

// status is what the runtime says of a container: created, running, stopped; "" of one it does not know.
func (s *sandbox) status(id string) string {
	output, err := s.runc("state", id)
	if err != nil {
		return ""
	}
	var state struct{ Status string }
	if err := json.Unmarshal([]byte(output), &state); err != nil {
		s.t.Error("runc state:", err)
	}
	return state.Status
}

func (s *sandbox) start(id string) {
	s.t.Helper()
	// To files: a pipe would be held open by the container's processes.
	command := exec.Command(s.options.Runtime, "--root", s.options.RuntimeRoot, "start", id)
	output := must(os.Create(filepath.Join(s.dir, "start."+id)))(s.t)
	defer output.Close()
	command.Stdout, command.Stderr = output, output
	if err := command.Run(); err != nil {
		s.t.Fatalf("runc start %s: %v: %s", id, err, must(os.ReadFile(output.Name()))(s.t))
	}
}

// file is one of the files of a container: exit, exits (for the second exit path), oom, log.
func (s *sandbox) file(id, name string) string {
	return filepath.Join(s.dir, "c", id, name)
}

func (s *sandbox) read(id, name string) string {
	content, err := os.ReadFile(s.file(id, name))
	if err != nil {
		return ""
	}
	return string(content)
}

// bundle is what a container is made of.
type bundle struct {
	args     []string
	terminal bool
	stdin    bool
	memory   int64  // limit in bytes, 0 is none
	hold     string // a file of the host that the container sees as /tmp/hold, "" is none
}

func shell(script string) bundle { return bundle{args: []string{"sh", "-c", script}} }

func idle() bundle { return shell("trap 'exit 0' TERM; while :; do sleep 1000 & wait; done") }

func (b bundle) tty(terminal bool) bundle { b.terminal = terminal; return b }

// describe writes the bundle and returns a request to create the container, which a test may change.
func (s *sandbox) describe(id string, b bundle) monitor.Container {
	s.t.Helper()
	dir := filepath.Join(s.dir, "c", id)
	check(s.t, os.MkdirAll(dir, 0o755))
	unique := fmt.Sprintf("/hf-go-%d-%d", os.Getpid(), cgroups.Add(1))
	config := must(json.Marshal(b.config(unique)))(s.t)
	check(s.t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o644))
	return monitor.Container{
		ID: id, Bundle: dir, Terminal: b.terminal, Stdin: b.stdin,
		ExitPaths:    []string{s.file(id, "exit")},
		OOMExitPaths: []string{s.file(id, "oom")},
		LogDrivers:   []monitor.LogDriver{{Type: conmon.Conmon_LogDriver_Type_containerRuntimeInterface, Path: s.file(id, "log")}},
	}
}

func (b bundle) config(cgroup string) map[string]any {
	capabilities := []string{"CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"}
	mount := func(kind, path string) map[string]any {
		return map[string]any{"type": kind, "source": kind, "destination": path}
	}
	mounts := []any{mount("proc", "/proc"), mount("tmpfs", "/dev"), mount("devpts", "/dev/pts"), mount("tmpfs", "/tmp")}
	if b.hold != "" {
		options := []string{"bind", "rw"}
		mounts = append(mounts, map[string]any{"type": "bind", "source": b.hold, "destination": "/tmp/hold", "options": options})
	}
	var namespaces []any
	for _, kind := range []string{"pid", "ipc", "uts", "mount", "network"} {
		namespaces = append(namespaces, map[string]any{"type": kind})
	}
	linux := map[string]any{"cgroupsPath": cgroup, "namespaces": namespaces}
	if b.memory > 0 {
		linux["resources"] = map[string]any{"memory": map[string]any{"limit": b.memory, "swap": b.memory}}
	}
	return map[string]any{
		"ociVersion": "1.0.2",
		"hostname":   "sandbox",
		"root":       map[string]any{"path": rootfs, "readonly": true},
		"process": map[string]any{
			"terminal": b.terminal, "user": map[string]any{"uid": 0, "gid": 0}, "args": b.args,
			"env": []string{"PATH=/bin", "PS1=$ "}, "cwd": "/",
			"capabilities": map[string]any{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
		},
		"mounts": mounts,
		"linux":  linux,
	}
}

// create creates a described container.
func (s *sandbox) create(container monitor.Container) uint32 {
	s.t.Helper()
	s.containers = append(s.containers, container.ID)
	pid := must(s.CreateContainer(s.t.Context(), container))(s.t)
	if pid == 0 {
		s.t.Fatal("the container's pid is 0")
	}
	return pid
}

// run creates and starts a container.
func (s *sandbox) run(id string, b bundle) uint32 {
	s.t.Helper()
	pid := s.create(s.describe(id, b))
	s.start(id)
	return pid
}

// waitExit waits for the exit file and returns its content, which must be complete when the file is there.
func (s *sandbox) waitExit(id string) string {
	s.t.Helper()
	eventually(s.t, "the exit file of "+id, func() bool { return exists(s.file(id, "exit")) })
	return s.read(id, "exit")
}

// rss is the resident memory of the monitor in KB.
func (s *sandbox) rss() int {
	for line := range strings.Lines(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Pid)))(s.t))) {
		if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
			return must(strconv.Atoi(strings.Fields(rest)[0]))(s.t)
		}
	}
	s.t.Fatal("no VmRSS")
	return 0
}

// both runs a test without and with a terminal.
func both(t *testing.T, test func(t *testing.T, terminal bool)) {
	t.Helper()
	for name, terminal := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, terminal)
		})
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

// within runs something that must end by itself.
func within[T any](t *testing.T, what string, work func() T) T {
	t.Helper()
	done := make(chan T, 1)
	go func() { done <- work() }()
	select {
	case result := <-done:
		return result
	case <-time.After(patience):
		t.Fatalf("waited %v in vain: %s", patience, what)
		panic("not reached")
	}
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return value
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, is, expected T) {
	t.Helper()
	if is != expected {
		t.Errorf("%s: is %#v, expected %#v", what, is, expected)
	}
}

func contains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q does not contain %q", text, part)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// buffer can be written by one task while another looks at it.
type buffer struct {
	lock sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(data []byte) (int, error) {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.data.Write(data)
}

func (b *buffer) String() string {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.data.String()
}

// descriptors counts the open ones of the monitor.
func (s *sandbox) descriptors() int {
	return len(must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.Pid)))(s.t))
}

// pidOf is the pid of a container's first process.
func (s *sandbox) pidOf(id string) int {
	s.t.Helper()
	var state struct{ Pid int }
	output, err := s.runc("state", id)
	check(s.t, err)
	check(s.t, json.Unmarshal([]byte(output), &state))
	return state.Pid
}

func must2[A, B any](a A, b B, err error) func(*testing.T) (A, B) {
	return func(t *testing.T) (A, B) {
		t.Helper()
		check(t, err)
		return a, b
	}
}
