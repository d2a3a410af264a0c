package interop

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"

	"holdfast.example/interop/conmon"
)

// engine is asked by the kubelet's reader of logs whether the container still runs.
type engine struct {
	cri.RuntimeService
	running atomic.Bool
}

func (e *engine) ContainerStatus(context.Context, string, bool) (*criv1.ContainerStatusResponse, error) {
	state := criv1.ContainerState_CONTAINER_EXITED
	if e.running.Load() {
		state = criv1.ContainerState_CONTAINER_RUNNING
	}
	return &criv1.ContainerStatusResponse{Status: &criv1.ContainerStatus{State: state}}, nil
}

func kubeletReads(t *testing.T, path string) (stdout, stderr string) {
	t.Helper()
	var out, err buffer
	check(t, logs.ReadLogs(deadline(t), path, "", &logs.LogOptions{}, nil, &out, &err))
	return out.String(), err.String()
}

func TestTheKubeletReadsTheLog(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		// A line that is cut into records, one that never ends, bytes that are no text, and nothing in between.
		script := `echo out; echo err >&2; head -c 40000 /dev/zero | tr "\0" x; echo; printf '\377\376\n\n'; printf end`
		s.run("a", shell(script).tty(terminal))
		equal(t, "the exit file", s.waitExit("a"), "0")
		stdout, stderr := kubeletReads(t, s.file("a", "log"))
		long := strings.Repeat("x", 40000)
		// The reader ends a record that has no line feed of its own with nothing.
		if terminal {
			// One stream, with the terminal's line ends.
			equal(t, "stdout", stdout, "out\r\nerr\r\n"+long+"\r\n\377\376\r\n\r\nend")
			equal(t, "stderr", stderr, "")
		} else {
			equal(t, "stdout", stdout, "out\n"+long+"\n\377\376\n\nend")
			equal(t, "stderr", stderr, "err\n")
		}
	})
}

func TestAKubeletThatFollowsLosesNoLineOverRotations(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	container := s.describe("a", shell("while read line; do echo $line; done"))
	container.Stdin = true
	s.create(container)
	s.start("a")
	input := s.attach("a", true)

	kubelet := &engine{}
	kubelet.running.Store(true)
	var stdout, stderr buffer
	done := make(chan error, 1)
	go func() {
		done <- logs.ReadLogs(t.Context(), s.file("a", "log"), "a", &logs.LogOptions{Follow: true}, kubelet, &stdout, &stderr)
	}()
	expected := ""
	for rotation := range 5 {
		for line := range 50 {
			text := fmt.Sprintf("rotation %d line %d\n", rotation, line)
			expected += text
			input.say(t, text)
		}
		// The reader looks at the path only: what is renamed away before it saw the file is not seen, whoever writes it.
		eventually(t, "the lines before the rotation", func() bool { return stdout.String() == expected })
		check(t, os.Rename(s.file("a", "log"), s.file("a", "log."+itoa(rotation))))
		check(t, s.ReopenLog(deadline(t), "a"))
		if !exists(s.file("a", "log")) {
			t.Fatal("the new log is not there when the call returns")
		}
	}
	check(t, input.CloseStdin())
	equal(t, "the exit file", s.waitExit("a"), "0")
	kubelet.running.Store(false)
	check(t, within(t, "the end of the reader", func() error { return <-done }))
	equal(t, "what the kubelet saw", stdout.String(), expected)
	whole := ""
	for rotation := range 5 {
		part, _ := kubeletReads(t, s.file("a", "log."+itoa(rotation)))
		whole += part
	}
	equal(t, "the rotated files together", whole, expected)
}

func TestTheSizeLimitLeavesOnlyTheLastLine(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		container := s.describe("a", shell("echo hello world; echo goodbye world").tty(terminal))
		container.LogDrivers[0].MaxSize = 50
		s.create(container)
		s.start("a")
		s.waitExit("a")
		stdout, _ := kubeletReads(t, s.file("a", "log"))
		equal(t, "the log", strings.ReplaceAll(stdout, "\r", ""), "goodbye world\n")
	})
}

func TestTimesInTheLogAreUTCAndNeverGoBack(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	s.run("a", shell("seq 1 5000"))
	s.waitExit("a")
	last := ""
	for line := range strings.Lines(s.read("a", "log")) {
		stamp, _, _ := strings.Cut(line, " ")
		// Nine digits and a Z: such texts are ordered as their times are.
		if len(stamp) != len("2006-01-02T15:04:05.000000000Z") || stamp < last {
			t.Fatalf("%s after %s", stamp, last)
		}
		must(time.Parse(time.RFC3339Nano, stamp))(t)
		last = stamp
	}
}

func TestTheJSONDriverWritesObjects(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		container := s.describe("a", shell("echo '  hello  '; printf world").tty(terminal))
		container.LogDrivers[0].Type = conmon.Conmon_LogDriver_Type_json
		s.create(container)
		s.start("a")
		s.waitExit("a")
		log := strings.TrimSpace(s.read("a", "log"))
		if !strings.HasPrefix(log, "{") || !strings.HasSuffix(log, "}") {
			t.Fatalf("%q", log)
		}
		var messages []string
		for line := range strings.Lines(log) {
			var object struct {
				Timestamp     *int64
				Pipe, Message *string
				Time          time.Time
				Partial       bool
			}
			check(t, json.Unmarshal([]byte(line), &object))
			equal(t, "pipe", *object.Pipe, "stdout")
			equal(t, "timestamp", *object.Timestamp, object.Time.Unix())
			messages = append(messages, strings.TrimSuffix(*object.Message, "\r"))
			equal(t, "partial of "+line, object.Partial, *object.Message == "world")
		}
		equal(t, "the messages", strings.Join(messages, "|"), "  hello  |world")
	})
}
