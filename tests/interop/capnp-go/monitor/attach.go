package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"holdfast.example/interop/conmon"
)

// What a packet of an attach socket is.
const (
	PacketDone   = 0
	PacketStdout = 2
	PacketStderr = 3
	// MaxPacket is the largest packet that a monitor may send.
	MaxPacket = 8192
)

// Attach makes the socket of a container's own streams; connect to it with Connect.
func (m *Monitor) Attach(ctx context.Context, id, path string, stopAfterStdinEOF bool) error {
	return m.call(func(api conmon.Conmon) error {
		future, release := api.AttachContainer(ctx, func(params conmon.Conmon_attachContainer_Params) error {
			request, err := params.NewRequest()
			request.SetStopAfterStdinEof(stopAfterStdinEOF)
			return first(err, request.SetId(id), request.SetSocketPath(path))
		})
		defer release()
		_, err := future.Struct()
		return err
	})
}

// Streams is a client of an attach socket.
type Streams struct {
	socket *net.UnixConn
}

// Connect makes a client of an attach socket.
func Connect(path string) (*Streams, error) {
	socket, err := dial("unixpacket", path)
	return &Streams{socket}, err
}

// Write sends stdin; each call is one packet.
func (s *Streams) Write(data []byte) (int, error) {
	return s.socket.Write(data)
}

// CloseStdin ends stdin; output still comes.
func (s *Streams) CloseStdin() error {
	return s.socket.CloseWrite()
}

// Close ends the client.
func (s *Streams) Close() {
	_ = s.socket.Close()
}

// Copy writes the output to two writers until the monitor says that it is done, which is no error.
func (s *Streams) Copy(stdout, stderr io.Writer) error {
	// One more than a packet may have, so that a longer one is noticed.
	packet := make([]byte, MaxPacket+1)
	for {
		n, err := s.socket.Read(packet)
		// On a packet socket a read of nothing is the end, not an empty packet: there are none.
		if n == 0 || err != nil {
			return errors.Join(errors.New("the stream ended without the packet that says so"), err)
		}
		if n > MaxPacket {
			return fmt.Errorf("a packet of more than %d bytes", MaxPacket)
		}
		writer := stdout
		switch packet[0] {
		case PacketDone:
			return nil
		case PacketStdout:
		case PacketStderr:
			writer = stderr
		default:
			return fmt.Errorf("a packet of type %d", packet[0])
		}
		if _, err := writer.Write(packet[1:n]); err != nil {
			return err
		}
	}
}
