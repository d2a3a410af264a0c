package interop

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"holdfast.example/interop/monitor"
)

func (s *sandbox) fdSocket() *monitor.FdSocket {
	s.t.Helper()
	socket, path, err := s.OpenFdSocket(deadline(s.t))
	check(s.t, err)
	equal(s.t, "the socket's path", path, filepath.Join(s.RunDir, "conmon-fd.sock"))
	s.t.Cleanup(socket.Close)
	return socket
}

func TestDescriptorsReachTheContainer(t *testing.T) {
	both(t, func(t *testing.T, terminal bool) {
		s := newSandbox(t)
		one := must(os.Create(filepath.Join(s.dir, "one")))(t)
		two := must(os.Create(filepath.Join(s.dir, "two")))(t)
		slots := must(s.fdSocket().Send(one, two))(t)
		container := s.describe("a", shell("echo first >&3; echo second >&4").tty(terminal))
		container.AdditionalFds = slots
		container.CommandArgs = []string{"--preserve-fds=2"}
		s.create(container)
		s.start("a")
		equal(t, "the exit file", s.waitExit("a"), "0")
		equal(t, "the file behind descriptor 3", string(must(os.ReadFile(one.Name()))(t)), "first\n")
		equal(t, "the file behind descriptor 4", string(must(os.ReadFile(two.Name()))(t)), "second\n")
	})
}

func TestALeakedDescriptorStaysOpenUntilTheExit(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	reader, writer := must2(os.Pipe())(t)
	slots := must(s.fdSocket().Send(writer))(t)
	check(t, writer.Close())
	container := s.describe("a", idle())
	container.LeakFds = slots
	s.create(container)
	s.start("a")
	ended := make(chan error, 1)
	go func() {
		_, err := reader.Read(make([]byte, 1))
		ended <- err
	}()
	must(s.ExecSync(deadline(t), "a", 0, false, "true"))(t)
	select {
	case err := <-ended:
		t.Errorf("closed while the container runs: %v", err)
	default:
	}
	check(t, syscall.Kill(s.pidOf("a"), syscall.SIGKILL))
	equal(t, "the exit file", s.waitExit("a"), "137")
	within(t, "the end of the pipe", func() error { return <-ended })
}

func TestAsManyDescriptorsAsAPacketCarries(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	null := must(os.Open(os.DevNull))(t)
	files := make([]*os.File, monitor.MaxFds)
	for i := range files {
		files[i] = null
	}
	before := s.descriptors()
	socket := s.fdSocket()
	slots := must(socket.Send(files...))(t)
	seen := map[uint64]bool{}
	for _, slot := range slots {
		seen[slot] = true
	}
	equal(t, "different slots", len(seen), monitor.MaxFds)
	socket.Close()
	// The listener stays.
	eventually(t, "the descriptors are closed with their connection", func() bool { return s.descriptors() <= before+1 })
}

func TestAWrongCountIsAnsweredWithTheReason(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	socket := s.fdSocket()
	null := must(os.Open(os.DevNull))(t)
	for _, count := range []uint32{0, 2, 256 + 1} {
		if slots, err := socket.SendAs(count, null); err == nil {
			t.Errorf("%d claimed, 1 sent: slots %v", count, slots)
		} else {
			t.Logf("%d claimed, 1 sent: %v", count, err)
		}
	}
	must(socket.Send(null))(t)
}

func TestAnUnknownSlotFailsTheCallAndClaimsNothing(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	slots := must(s.fdSocket().Send(must(os.Open(os.DevNull))(t)))(t)
	container := s.describe("a", idle())
	container.LeakFds = []uint64{slots[0], slots[0] + 1000}
	if _, err := s.CreateContainer(deadline(t), container); err == nil {
		t.Fatal("it was created")
	}
	container.LeakFds = slots
	s.create(container)
}
