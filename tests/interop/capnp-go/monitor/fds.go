package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"

	"holdfast.example/interop/conmon"
)

// MaxFds is how many descriptors the kernel lets one packet carry.
const MaxFds = 253

// failed stands in place of the count in a reply that has an error text.
const failed = 0xffffffff

// FdSocket passes descriptors to the monitor, which answers with numbers of slots.
type FdSocket struct {
	socket *net.UnixConn
	last   uint32
}

// OpenFdSocket makes the monitor listen for descriptors and connects to it.
func (m *Monitor) OpenFdSocket(ctx context.Context) (*FdSocket, string, error) {
	var path string
	err := m.call(func(api conmon.Conmon) error {
		future, release := api.StartFdSocket(ctx, func(params conmon.Conmon_startFdSocket_Params) error {
			_, err := params.NewRequest()
			return err
		})
		defer release()
		results, err := future.Struct()
		if err != nil {
			return err
		}
		response, err := results.Response()
		if err != nil {
			return err
		}
		path, err = response.Path()
		return err
	})
	if err != nil {
		return nil, "", err
	}
	socket, err := dial("unixpacket", path)
	return &FdSocket{socket: socket}, path, err
}

// Close gives up all slots of this connection that no container has taken.
func (f *FdSocket) Close() {
	_ = f.socket.Close()
}

// Send passes descriptors and returns their slots.
func (f *FdSocket) Send(files ...*os.File) ([]uint64, error) {
	return f.SendAs(uint32(len(files)), files...)
}

// SendAs claims to pass another number of descriptors than it does.
func (f *FdSocket) SendAs(count uint32, files ...*os.File) ([]uint64, error) {
	f.last++
	var numbers []int
	for _, file := range files {
		numbers = append(numbers, int(file.Fd()))
	}
	request := binary.LittleEndian.AppendUint64(nil, uint64(f.last)<<32|uint64(count))
	_, _, err := f.socket.WriteMsgUnix(request, syscall.UnixRights(numbers...), nil)
	// Numbers do not keep files open.
	runtime.KeepAlive(files)
	if err != nil {
		return nil, err
	}
	reply := make([]byte, 8+8*MaxFds+1)
	n, err := f.socket.Read(reply)
	if err != nil {
		return nil, err
	}
	return f.slots(reply[:n], len(files))
}

func (f *FdSocket) slots(reply []byte, expected int) ([]uint64, error) {
	if len(reply) < 8 {
		return nil, fmt.Errorf("a reply of %d bytes", len(reply))
	}
	head := binary.LittleEndian.Uint64(reply)
	if id := uint32(head >> 32); id != f.last {
		return nil, fmt.Errorf("a reply to request %d, not %d", id, f.last)
	}
	if uint32(head) == failed {
		return nil, errors.New(string(reply[8:]))
	}
	if int(uint32(head)) != expected || len(reply) != 8+8*expected {
		return nil, fmt.Errorf("number of fds does not match: %d, in %d bytes", uint32(head), len(reply))
	}
	var slots []uint64
	for rest := reply[8:]; len(rest) > 0; rest = rest[8:] {
		slots = append(slots, binary.LittleEndian.Uint64(rest))
	}
	return slots, nil
}
